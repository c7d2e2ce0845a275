"""What else dials change: a panel of side effects, at α = 1 and at equal damage."""

STUDY = "trimtab.studies.panel.study:SideEffects"
PAGE = "trimtab.report.panel:page"
