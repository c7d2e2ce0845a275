"""Comparisons: suites, cells of a grid, statistics and verdicts."""

from trimtab.study.compare import compare
from trimtab.study.demo import demo
from trimtab.study.evaluation import evaluate
from trimtab.study.grid import Comparison
from trimtab.study.suite import Suite, read_suite, suite_names

__all__ = ["Comparison", "Suite", "compare", "demo", "evaluate", "read_suite", "suite_names"]
