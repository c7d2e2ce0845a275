"""Tasks that lm-evaluation-harness lacks: YAML files, and what they compute."""
