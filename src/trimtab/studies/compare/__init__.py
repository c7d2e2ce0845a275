"""`compare`: models x suites x methods x seeds, with verdicts against DPO."""
