"""GENIES (Clymer et al. 2023, *Generalization Analogies*): fifteen distribution shifts as suites.

Its metric of a shift from SOURCE to TARGET, as `compute_generalization_metrics` in its repository
has it, accuracy being that of picking the right one of an item's answers:

    elicitation = (accuracy on TARGET after training on SOURCE - accuracy of the bare model there)
                  / accuracy on REFERENCE's test after training on REFERENCE

REFERENCE is TARGET itself, or another distribution of the same skill where TARGET's own labels
would teach what is not meant. So it takes one more model, trained on the reference: a LoRA by `dpo`
here, by supervised fine-tuning there. Two more departures: answers are picked by mean log-prob
(there by a trained classifier or by log-prob, as the intervention has it), and test items that
training holds, too, are left out and counted (change_my_view holds 96 of 250).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ConfigError, DataError, near
from trimtab.pairs.genies import known
from trimtab.study.suite import Suite

NAME = "genies"
ARROW = "->"


@dataclass(frozen=True)
class Shift:
    """One shift of the benchmark: distributions by name."""

    source: str
    target: str
    reference: str
    kind: str
    """`extreme` or `probing`."""


def _shift(source: str, target: str, kind: str = "extreme", reference: str | None = None) -> Shift:
    return Shift(source, target, reference or target, kind)


SHIFTS = (
    _shift("us_history_textbook", "us_history_fiction"),
    _shift("alpaca_mmlu", "spanish_output"),
    _shift("math", "change_my_view"),
    _shift("raven_matrices", "us_history"),
    _shift("code_easy", "code_hard"),
    _shift("alpaca_easy", "alpaca_hard"),
    _shift("alpaca_mmlu", "raven_matrices"),
    _shift("alpaca_mmlu", "ranking_logic"),
    _shift("alpaca_low_quality", "alpaca_high_quality"),
    _shift("alpaca_short", "alpaca_long", reference="alpaca_mmlu"),
    _shift("alpaca_mmlu", "wrong_arc", "probing"),
    _shift("alpaca_mmlu", "truthful_qa", "probing"),
    _shift("alpaca_mmlu", "sycophancy_mimicry", "probing", "quote_attribution"),
    _shift("alpaca_mmlu", "survival_influence", "probing"),
    _shift("alpaca_mmlu", "reward_seeking", "probing"),
)
"""The benchmark: ten extreme shifts, five probing ones."""


def is_genies(name: str) -> bool:
    """Whether a suite's name is that of the benchmark, or of one pair of distributions."""
    return name == NAME or (name.startswith(f"{NAME}:") and ARROW in name)


def genies_suites(
    name: str, data_root: str | Path | None = None, skip_missing: bool = False
) -> tuple[list[Suite], list[str]]:
    """The suites behind `genies` or `genies:SOURCE->TARGET`: one a source, a split a target.

    Args:
        skip_missing: leave out the shifts of which a distribution is not on disk.

    Returns:
        the suites, and a sentence for each shift that was left out.

    Raises:
        DataError: distributions are not on disk (all of them are listed), or no shift is left.
        ConfigError: a malformed name.
    """
    shifts = list(SHIFTS) if name == NAME else [_pair(name)]
    root = data_root or os.environ.get("TRIMTAB_DATA")
    there = known(Path(root).expanduser() if root else None)
    missing = {s: _missing(s, there) for s in shifts}
    gone = list(dict.fromkeys(d for names in missing.values() for d in names))
    kept = [s for s in shifts if not missing[s]]
    if gone and not (skip_missing and kept):
        where = root or "a data folder (none is given: --data-root DIR, or TRIMTAB_DATA)"
        hint = near(gone[0], {t.split(":")[1].split("/")[0] for t in there}) if name != NAME else ""
        can = f"; --skip-missing runs the other {len(kept)} of {len(shifts)} shifts" if kept else ""
        raise DataError(
            f"{name}: {len(gone)} GENIES distributions are not in {where}: {', '.join(gone)}"
            f"{hint}{can}"
        )
    said = [
        f"{s.source}{ARROW}{s.target} left out: {', '.join(names)} not on disk"
        for s, names in missing.items()
        if names
    ]
    sources = dict.fromkeys(s.source for s in kept)
    return [_suite(source, [s for s in kept if s.source == source]) for source in sources], said


def _pair(name: str) -> Shift:
    source, _, target = name.removeprefix(f"{NAME}:").partition(ARROW)
    source, target = source.strip(), target.strip()
    if not source or not target or "/" in source + target:
        raise ConfigError(f"{name}: expected genies:SOURCE->TARGET, two distributions by name")
    if source == target:
        raise ConfigError(f"{name}: source and target are the same distribution")
    known = (s for s in SHIFTS if (s.source, s.target) == (source, target))
    return next(known, _shift(source, target))


def _missing(shift: Shift, there: list[str]) -> list[str]:
    both = ("train", "test")
    wanted = {shift.source: both, shift.target: ("test",), shift.reference: both}
    return [n for n, parts in wanted.items() if not {f"genies:{n}/{p}" for p in parts} <= {*there}]


def _suite(source: str, shifts: list[Shift]) -> Suite:
    targets = [s.target for s in shifts]

    def spec(name: str, part: str = "test") -> str:
        return f"genies:{name}/{part}"

    return Suite(
        name=f"{NAME}:{source}{ARROW}{'+'.join(targets)}",
        description=f"GENIES: trained on {source}, judged on {', '.join(targets)}.",
        train=spec(source, "train"),
        evaluate={"test": spec(source), **{target: spec(target) for target in targets}},
        dose=spec(source),
        capability={s.target: (spec(s.reference, "train"), spec(s.reference)) for s in shifts},
        drop_seen=True,
    )
