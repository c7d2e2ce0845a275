"""The old name of `trimtab.statistics`."""

import warnings

from trimtab.statistics import *  # noqa: F403

warnings.warn("trimtab.study.statistics is now trimtab.statistics", DeprecationWarning, 2)
