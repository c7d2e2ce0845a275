"""Preference pairs: what they are, and reading them from anywhere."""

from .overlap import check_disjoint, unseen
from .pair import Pair, PairSet
from .personas import persona_pairs
from .spec import parse_spec, read_pairs

__all__ = [
    "Pair",
    "PairSet",
    "check_disjoint",
    "parse_spec",
    "persona_pairs",
    "read_pairs",
    "unseen",
]
