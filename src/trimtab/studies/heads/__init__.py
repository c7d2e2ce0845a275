"""An alignment head beside DPO, GenARM and ARGS, over alpha."""

STUDY = "trimtab.studies.heads.study:Heads"
PAGE = "trimtab.report.heads:page"
