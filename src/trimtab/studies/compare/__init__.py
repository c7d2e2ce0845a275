"""Models x suites x methods x seeds, with verdicts against DPO."""

STUDY = "trimtab.studies.compare.comparison:Compare"
PAGE = "trimtab.report.compare:read_page"
