"""DPO against TRL: equal losses and gradients first, then time and memory of a step."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench import data, results
from bench.lane import OUT, Lane
from bench.sides import Comparison, alternate, rate_lane

EQUAL = 2e-5
"""Largest relative difference of losses, and of whole gradients, in float32."""


@dataclass(frozen=True)
class Case:
    """A data set that both sides train on, the same pairs in every step.

    Attributes:
        pairs: the spec.
        items: how many items of it.
        batches: TRL's batch sizes to try, each a divisor of the number of pairs.
        samplings: its ways of drawing batches to try.
        whole: all pairs of each item instead of one.
        dtype: what both sides compute in.
    """

    pairs: str
    items: int
    batches: tuple[int, ...]
    samplings: tuple[str, ...] = ("group_by_length",)
    whole: bool = False
    dtype: str = "float32"

    def quick(self) -> Case:
        """A small one, to see that everything runs."""
        return Case(self.pairs, 4, (4,), whole=self.whole, dtype=self.dtype)

    def spec(self) -> dict[str, Any]:
        """What both lanes are told."""
        return {
            "mode": "training",
            "pairs": self.pairs,
            "items": self.items,
            "whole": self.whole,
            "dtype": self.dtype,
        }


CASES = {
    "dpo_vs_trl_truthful_qa": Case(
        "genies:truthful_qa/train", 32, (4, 8, 16), ("group_by_length", "random")
    ),
    "dpo_vs_trl_truthful_qa_bf16": Case(
        "genies:truthful_qa/train",
        32,
        (4, 8, 16),
        ("group_by_length", "random"),
        dtype="bfloat16",
    ),
    "dpo_vs_trl_truthful_qa_items": Case("genies:truthful_qa/train", 16, (4, 8), whole=True),
    "dpo_vs_trl_change_my_view": Case("genies:change_my_view/train", 8, (2, 4)),
}


def run(name: str, repeats: int, quick: bool, tune: bool) -> results.Found:
    """One of `CASES`. Measures `memory_vs_trl` too where it is the first of them."""
    case = CASES[name].quick() if quick else CASES[name]
    key = f"{name}-quick" if quick else name
    setting = best_setting(key, case, tune and not quick)
    gradients = {side: str(OUT / f"{key}.{side}.safetensors") for side in ("ours", "theirs")}
    spec = case.spec() | {"name": key}
    data.adapter_weights()
    with ExitStack() as stack:
        ours = stack.enter_context(
            Lane("bench.ours", spec | {"objective": "dpo", "gradients": gradients["ours"]})
        )
        us = ours.hear()
        theirs = stack.enter_context(
            Lane("bench.theirs", spec | setting | {"gradients": gradients["theirs"]})
        )
        them = theirs.hear()
        rate = stack.enter_context(rate_lane(case.dtype))
        same = compared(us, them, gradients)
        notes = []
        if case.dtype == "float32":
            worst = max(same["loss_difference"], same["gradient_difference"])
            if not worst <= EQUAL:
                raise SystemExit(f"{name}: the two sides do not agree, nothing was timed: {same}")
        else:
            same |= against_float32(case, key, gradients)
        found = alternate(ours, theirs, rate, repeats)
    details = found.details(us["work"], them["operations"]) | {
        "trl": setting,
        "trl_positions": them["positions"],
        "pairs": us["pairs"],
        "microbatches": us["microbatches"],
        "equality": same,
    }
    notes.append(
        f"TRL at its best: {described(setting)}; {them['positions']} padded positions against "
        f"our {us['work']['positions']}, every one scored against our {us['work']['scored']}."
    )
    if plain := [
        t["seconds"]
        for t in results.load(results.TUNING).get(key, {}).get("tried", ())
        if t["sampling"] == "random"
    ]:
        notes.append(
            "One step of TRL with its default sampling, when the setting was sought: "
            f"{plain[0]:.1f} s."
        )
    if case.dtype != "float32":
        slow = defaults(case, key)
        details["trl_defaults_s"] = slow
        ratio = slow / sorted(found.ours)[len(found.ours) // 2]
        notes.append(
            f"TRL at its defaults (bf16, checkpointing, live reference, batch 8): {slow:.1f} s, "
            f"{ratio:.1f} times ours."
        )
        notes.append(
            "Relative gradient difference from float32: "
            f"ours {same['ours_from_float32']:.1%}, TRL's {same['theirs_from_float32']:.1%}."
        )
    details["notes"] = notes
    made = {name: (found.ratio, details)}
    if name == "dpo_vs_trl_truthful_qa":
        made |= memory(case, key, found, them, gradients["theirs"])
    return made


MEMORY = "1.5GiB"
"""What our side is given (`--train.memory`) where memory is compared."""


def memory(
    case: Case, key: str, found: Comparison, them: dict[str, Any], truth: str
) -> results.Found:
    """Peak resident memory above what each process holds before its first step: TRL's over ours, of steps
    on the same pairs to the same gradient."""
    ours = str(OUT / f"{key}.memory.safetensors")
    spec = case.spec() | {"name": f"{key}-memory", "objective": "dpo", "gradients": ours}
    with Lane("bench.ours", spec | {"memory": MEMORY}) as lane:
        us = lane.hear()
        steps = [lane.go() for _ in found.ours]
    if not (off := gradient_difference(ours, truth)[0]) <= EQUAL:
        raise SystemExit(f"memory_vs_trl: the gradients differ by {off:.2g}")
    above = max(step["peak"] for step in steps) - us["before"], found.peaks[1] - them["before"]
    seconds = sorted(step["seconds"] for step in steps)
    speed = sorted(found.theirs)[len(found.theirs) // 2] / seconds[len(seconds) // 2]
    processor = sorted(step["processor"] for step in steps)[len(steps) // 2]
    note = (
        f"Above the {us['before'] / 2**30:.2f} GiB that a process holds before its first step (libraries "
        f"and weights; TRL's {them['before'] / 2**30:.2f}), with `--train.memory {MEMORY}`: "
        f"{us['microbatches']} microbatches of at most {us['work']['widest']} positions, at {speed:.2f} "
        f"times TRL's speed ({processor:.1f} s of processor time). At our own defaults, the line above: "
        f"{(found.peaks[0] - us['before']) / 2**30:.2f} GiB."
    )
    entry = {
        "ours_bytes": above[0],
        "theirs_bytes": above[1],
        "speed": speed,
        "gradient_difference": off,
        "notes": [note],
    }
    return {"memory_vs_trl": (above[1] / above[0], entry)}


def best_setting(key: str, case: Case, tune: bool) -> dict[str, Any]:
    """TRL's fastest setting for a case: found once, one choice after the other, and kept."""
    kept = results.load(results.TUNING)
    if key in kept and not tune:
        return kept[key]["best"]
    best: dict[str, Any] = {
        "batch": case.batches[len(case.batches) // 2],
        "sampling": "group_by_length",
        "load": "float32",
        "attention": "sdpa",
    }
    if key.endswith("-quick"):
        return best
    tried: list[dict[str, Any]] = []

    def seconds(setting: dict[str, Any]) -> float:
        spec = case.spec() | setting | {"name": f"{key}-tuning"}
        with Lane("bench.theirs", spec) as lane:
            lane.hear()
            tried.append(setting | {"seconds": lane.go()["seconds"]})
        return tried[-1]["seconds"]

    choices: list[tuple[str, tuple[Any, ...]]] = [
        ("batch", case.batches),
        ("sampling", case.samplings),
    ]
    if case.dtype == "bfloat16":
        choices += [("attention", ("sdpa", "eager")), ("load", ("float32", "bfloat16"))]
    least = seconds(best)
    for field, values in choices:
        base = best
        for value in values:
            if value != base[field] and (took := seconds(base | {field: value})) < least:
                best, least = base | {field: value}, took
    results.record(results.TUNING, {key: {"best": best, "tried": tried}})
    return best


def described(setting: dict[str, Any]) -> str:
    """A setting in words."""
    return (
        f"batches of {setting['batch']}, `{setting['sampling']}`, {setting['attention']} "
        f"attention, weights loaded in {setting['load']}"
    )


def defaults(case: Case, key: str) -> float:
    """Seconds of a step of TRL as it comes."""
    spec = case.spec() | {"name": f"{key}-defaults", "defaults": True, "batch": min(8, case.items)}
    with Lane("bench.theirs", spec) as lane:
        lane.hear()
        return lane.go()["seconds"]


def compared(us: dict[str, Any], them: dict[str, Any], files: dict[str, str]) -> dict[str, float]:
    """Relative differences of the losses and of the whole gradients of the first step."""
    whole, worst = gradient_difference(files["ours"], files["theirs"])
    return {
        "our_loss": us["loss"],
        "their_loss": them["loss"],
        "loss_difference": abs(us["loss"] - them["loss"]) / abs(them["loss"]),
        "gradient_difference": whole,
        "gradient_difference_worst_tensor": worst,
    }


def against_float32(case: Case, key: str, files: dict[str, str]) -> dict[str, float]:
    """How far each side's gradients in half precision are from those in float32."""
    truth = str(OUT / f"{key}.float32.safetensors")
    spec = case.spec() | {
        "name": f"{key}-float32",
        "objective": "dpo",
        "dtype": "float32",
        "gradients": truth,
    }
    with Lane("bench.ours", spec) as lane:
        lane.hear()
    return {f"{side}_from_float32": gradient_difference(files[side], truth)[0] for side in files}


def gradient_difference(one: str, other: str) -> tuple[float, float]:
    """|a - b| / |b| over all tensors as one vector, and the largest over single tensors."""
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys(), "the two sides train different parameters"
    off = {k: (a[k].double() - b[k].double()).norm() for k in b}
    size = {k: b[k].double().norm() for k in b}
    whole = sum(v**2 for v in off.values()) / sum(v**2 for v in size.values())
    return float(whole**0.5), max(float(off[k] / size[k]) for k in b)
