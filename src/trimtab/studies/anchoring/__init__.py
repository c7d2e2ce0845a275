"""The published experiments on anchoring, and those that they left to do."""

STUDY = "trimtab.studies.anchoring.study:Anchoring"
PAGE = "trimtab.studies.anchoring.study:page"
