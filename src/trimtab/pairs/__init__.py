"""Preference pairs: what they are, and reading them from anywhere."""

from .overlap import check_disjoint, unseen
from .pair import Pair, PairSet
from .spec import parse_spec, read_pairs

__all__ = ["Pair", "PairSet", "check_disjoint", "parse_spec", "read_pairs", "unseen"]
