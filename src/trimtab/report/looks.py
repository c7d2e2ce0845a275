"""The colour and the marker of every method: the same on each page of the house."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trimtab.config_files import read_yaml

LOOKS = read_yaml(Path(__file__).with_name("looks.yaml"))
MARKERS: dict[str, str] = LOOKS["markers"]
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
    *LOOKS["known"],
    *(f"side-none-{loss}" for loss in _LOSSES),
    *(f"hs-{s}-{x}" for x in _LOSSES for s in ("svd", "ortho", "hra", "ether", "etherplus")),
    *LOOKS["later"],
]
"""Methods in the order of their colours and markers."""

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
