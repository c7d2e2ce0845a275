"""`compare-heads`: an alignment head beside DPO, GenARM and ARGS."""
