"""A step of each objective against our own DPO step; what more sites and longer pairs cost."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median
from typing import Any

from bench import data, results
from bench.dpo import CASES
from bench.lane import Lane
from bench.sides import Comparison, alternate, rate_lane

STEPS = {
    "step_ipo_vs_dpo": "ipo",
    "step_simpo_vs_dpo": "simpo",
    "step_orpo_vs_dpo": "orpo",
    "step_mse_vs_dpo": "hs-none-mse",
    "step_rank_vs_dpo": "hs-none-rank",
    "step_prefvec_vs_dpo": "hs-none-prefvec",
    "step_innerdpo_vs_dpo": "innerdpo",
}
"""The method behind each line."""

SHORT, LONG = "dpo_vs_trl_truthful_qa", "dpo_vs_trl_change_my_view"
DEEPEST = 17


def run(name: str, repeats: int, quick: bool) -> results.Found:
    """One of `STEPS`: DPO's seconds over its own."""
    found, us, them = _pair(_spec(name, SHORT, quick, STEPS[name]), _dpo(SHORT, quick), repeats)
    details = found.details(us["work"], them["work"]["counted"])
    gib = [peak / 2**30 for peak in found.peaks]
    details["peak_bytes"] = list(found.peaks)
    details["notes"] = [f"Peak memory {gib[0]:.2f} GiB, DPO's {gib[1]:.2f}."]
    if trl := results.load(results.RATIOS).get(SHORT):
        details["notes"].append(f"Against TRL's DPO, by way of our own: {found.ratio * trl:.2f}×.")
    return {name: (found.ratio, details)}


def sites(repeats: int, quick: bool) -> results.Found:
    """`sites_18_over_1`: both go as deep, so that what differs is reading and comparing states."""
    name = "sites_18_over_1"

    def states(which: list[int]) -> dict[str, Any]:
        settings = {"sites": which, "weight_outer": 0.0}
        return _spec(f"sites-{len(which)}", SHORT, quick, "innerdpo") | {"settings": settings}

    few, many = states([DEEPEST]), states(list(range(DEEPEST + 1)))
    found, us, them = _pair(few, many, repeats)
    details = found.details(us["work"], them["work"]["counted"])
    return {name: (found.ratio, details)}


def lengths(repeats: int, quick: bool) -> results.Found:
    """`length_per_position`."""
    found, us, them = _pair(_dpo(SHORT, quick), _dpo(LONG, quick), repeats)
    positions = us["work"]["positions"], them["work"]["positions"]
    each = [
        1000 * median(s) / n for s, n in zip((found.ours, found.theirs), positions, strict=True)
    ]
    details = {
        "ours_s": found.ours,
        "theirs_s": found.theirs,
        "positions": list(positions),
        "notes": [
            f"{each[0]:.2f} ms a position in a step of {positions[0]} short ones, {each[1]:.2f} in one "
            f"of {positions[1]} long ones."
        ],
    }
    return {"length_per_position": (each[1] / each[0], details)}


def _dpo(case: str, quick: bool) -> dict[str, Any]:
    return _spec(f"{case}-alone", case, quick, "dpo")


def _spec(name: str, case: str, quick: bool, objective: str) -> dict[str, Any]:
    one = CASES[case].quick() if quick else CASES[case]
    return one.spec() | {"name": name, "objective": objective}


def _pair(
    ours: dict[str, Any], theirs: dict[str, Any], repeats: int
) -> tuple[Comparison, dict[str, Any], dict[str, Any]]:
    """Both lanes in turn: their times, and what each found in setting up."""
    data.adapter_weights()
    with ExitStack() as stack:
        lanes, said = [], []
        for spec in (ours, theirs):
            lanes.append(stack.enter_context(Lane("bench.ours", spec)))
            said.append(lanes[-1].hear())
        rate = stack.enter_context(rate_lane())
        return alternate(lanes[0], lanes[1], rate, repeats), said[0], said[1]
