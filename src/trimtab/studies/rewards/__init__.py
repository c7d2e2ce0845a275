"""`compare-rewards`: preference heads on multiple choice."""
