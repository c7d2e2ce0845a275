"""Whether what can be seen of pairs before fitting tells how well the mean vector steers, and where."""

STUDY = "trimtab.studies.screens.study:Screening"
PAGE = "trimtab.studies.screens.page:page"
