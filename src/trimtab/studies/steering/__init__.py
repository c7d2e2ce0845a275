"""Every way to steer towards a trait, at the damage of a persona prompt."""

STUDY = "trimtab.studies.steering.study:Dose"
PAGE = "trimtab.report.steering:page"
