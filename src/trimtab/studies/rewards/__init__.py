"""Preference heads beside the bare model, SFT and DPO on multiple choice."""

STUDY = "trimtab.studies.rewards.study:Rewards"
PAGE = "trimtab.report.heads:page"
