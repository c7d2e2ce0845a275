"""An objective on states, which stops at its deepest site, against our own DPO step."""

from __future__ import annotations

from bench import data, results
from bench.dpo import CASES
from bench.lane import Lane
from bench.sides import alternate, rate_lane

SITES = "0.3..0.6"


def run(repeats: int, quick: bool) -> results.Found:
    """`states_only_vs_dpo`."""
    case = CASES["dpo_vs_trl_truthful_qa"]
    case = case.quick() if quick else case
    data.adapter_weights()
    settings = {"sites": SITES, "weight_outer": 0.0}
    states = case.spec() | {"name": "states-only", "objective": "innerdpo", "settings": settings}
    full = case.spec() | {"name": "states-dpo", "objective": "dpo"}
    with Lane("bench.ours", states) as ours:
        us = ours.hear()
        with Lane("bench.ours", full) as theirs, rate_lane() as rate:
            them = theirs.hear()
            found = alternate(ours, theirs, rate, repeats)
    details = found.details(us["work"], them["work"]["counted"])
    details["notes"] = [
        f"Sites {SITES} of the depth, the adapter on the blocks below them alone, "
        f"{us['work']['positions']} positions on both sides."
    ]
    return {"states_only_vs_dpo": (found.ratio, details)}
