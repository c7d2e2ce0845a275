"""The colour and the marker of every method: the same on each page of the house."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple

MARKERS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "s": "M-3.5-3.5h7v7h-7Z",
    "^": "M0-4.5L4.3 3.2h-8.6Z",
    "D": "M0-4.7L4.7 0L0 4.7L-4.7 0Z",
    "v": "M0 4.5L-4.3-3.2h8.6Z",
    "p": "M0-4.6L4.4-1.4L2.7 3.7H-2.7L-4.4-1.4Z",
    "X": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0Z",
    "P": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8Z",
    "<": "M-4.5 0L3.2-4.3v8.6Z",
    ">": "M4.5 0L-3.2-4.3v8.6Z",
    "h": "M0-4.5L3.9-2.2v4.4L0 4.5L-3.9 2.2v-4.4Z",
    "d": "M0-4.8L3 0L0 4.8L-3 0Z",
    "*": "M0-4.8L1.2-1.5H4.6L1.8.6L2.8 3.9L0 1.9L-2.8 3.9L-1.8.6L-4.6-1.5H-1.2Z",
}
"""Markers by matplotlib's name, and the same shapes as SVG paths."""

COLOURS = 8
"""Colours `m0` to `m7`, which the pages define."""


class Look(NamedTuple):
    """The name of a colour and a marker."""

    colour: str
    marker: str


CONTROLS = {
    "base": Look("muted", "o"),
    "random": Look("muted", "s"),
    "instruction": Look("ink", "D"),
    "persona": Look("ink", "D"),
}

_LOSSES = ("mse", "prefvec", "rank", "innerdpo")
KNOWN = [
    *("dpo", "innerdpo", "mean", "projgrad", "hs-none-prefvec", "hs-none-mse", "pca", "logistic"),
    *("rotation", "fisher", "pca_center", "gradient_mean", "gradient_svd", "contrastive", "iav"),
    *("genarm", "ipo", "simpo", "orpo", "sft", "args", "hs-suppressed-prefvec", "projbp", "dph"),
    *("iav-merged", "dph-joint", "dph-frozen", "hs-none-rank", "dph-frozen-more-data"),
    *("hs-none-innerdpo", "hs-suppressed-mse", "hs-suppressed-rank", "hs-suppressed-innerdpo"),
    *(f"side-none-{loss}" for loss in _LOSSES),
    *(f"hs-{s}-{x}" for x in _LOSSES for s in ("svd", "ortho", "hra", "ether", "etherplus")),
]
"""Eight colours times nine markers, in this order: what often stands side by side differs in both.
Arms of comparisons of heads stand here, too, with '-' for what is no letter."""

_OF_KNOWN, _OF_OTHERS = list(MARKERS)[:9], list(MARKERS)[9:]
TABLE = CONTROLS | {
    name: Look(f"m{i % COLOURS}", _OF_KNOWN[i % len(_OF_KNOWN)]) for i, name in enumerate(KNOWN)
}


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """The looks of methods that one page shows, the bare model's among them.

    A name of the user's own has a look that follows from the name, with one of the other markers; only
    where two such names on a page would look alike does the later one, by the alphabet, take the next.
    """
    found = dict(TABLE)
    free = [Look(f"m{c}", m) for m in _OF_OTHERS for c in range(COLOURS)]
    taken = set()
    for name in sorted(set(methods) - set(TABLE)):
        start = zlib.crc32(name.encode())
        places = [free[(start + step) % len(free)] for step in range(len(free))]
        found[name] = next((look for look in places if look not in taken), places[0])
        taken.add(found[name])
    return found
