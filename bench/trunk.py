"""What is saved below a dial: steps of an adapter on the upper half, and scores at several alphas, from
stored states."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import data, results
from bench.dpo import CASES, EQUAL, best_setting, compared
from bench.heads import in_turn, ratio
from bench.lane import OUT, Lane
from bench.sides import alternate, rate_lane

SHORT = "dpo_vs_trl_truthful_qa"
UPPER = (
    "upper_half_vs_all",
    "upper_half_vs_all_bf16",
    "upper_half_vs_trl",
    "trained_vector_vs_trl",
)
VECTOR = {"site": 15, "s": 3.0}
"""The middle block of SmolLM2, and the length that its states are moved by a unit of what is trained."""
ALPHAS = (-2.0, -1.0, 0.5, 1.0, 2.0)


def run_upper(name: str, repeats: int, quick: bool) -> results.Found:
    """`upper_half_vs_all` (and in bfloat16): a step from the trunk against today's on all layers;
    `upper_half_vs_trl`: against TRL's on the same layers, equal gradients first;
    `trained_vector_vs_trl`: a vector at one pole, from zero, TRL being given a model whose one trained
    parameter is added after that block by a hook."""
    case = CASES[f"{SHORT}_bf16" if name.endswith("bf16") else SHORT]
    case = case.quick() if quick else case
    data.adapter_weights()
    spec = case.spec() | {"name": name}
    where: dict[str, Any] = {"vector": VECTOR} if "vector" in name else {"upper": True}
    upper = spec | where | {"objective": "dpo"}
    against: tuple[str, dict[str, Any]] = (
        "bench.ours",
        {"objective": "dpo", "name": f"{name}-all"},
    )
    setting: dict[str, Any] = {}
    files = {side: str(OUT / f"{name}.{side}.safetensors") for side in ("ours", "theirs")}
    if name.endswith("trl"):
        setting = best_setting(f"{SHORT}-quick" if quick else SHORT, case, False)
        against = ("bench.theirs", where | setting | {"gradients": files["theirs"]})
        upper |= {"gradients": files["ours"]}
    with Lane("bench.ours", upper) as ours:
        us = ours.hear()
        with Lane(against[0], spec | against[1]) as theirs, rate_lane(case.dtype) as rate:
            them = theirs.hear()
            same = compared(us, them, files) if setting else {}
            worst = max(same.get(k, 0.0) for k in ("loss_difference", "gradient_difference"))
            if worst > (5 * EQUAL if quick else EQUAL):  # gradients of a few pairs nearly cancel
                raise SystemExit(f"{name}: the two sides do not agree, nothing was timed: {same}")
            found = alternate(ours, theirs, rate, repeats)
    operations = them["operations"] if setting else them["work"]["counted"]
    details = found.details(us["work"], operations) | ({"equality": same} if same else {})
    positions = them["positions"] if setting else them["work"]["positions"]
    details["notes"] = [
        f"Blocks from the middle on; {us['work']['positions']} positions against {positions}."
    ]
    return {name: (found.ratio, details)}


def run_alphas(repeats: int, quick: bool) -> results.Found:
    """`five_alphas_vs_today` and `five_alphas_cold_vs_today`: log-probs of a split with a vector after the
    middle block at five alphas, from a trunk that is there and one that has to be read first, against
    the whole model at each. The figures must be the same to the bit."""
    import torch

    from trimtab import models, trunk
    from trimtab.batching import encode
    from trimtab.dials import VectorDial
    from trimtab.evaluation import score
    from trimtab.store import Store

    model, tokenizer = models.load(data.MODEL, dtype="float32")
    pairs = data.pairs_of("genies:truthful_qa/test", 8 if quick else 48, whole=True)
    encoded = encode(pairs, tokenizer)
    middle = models.n_layers(model) // 2
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    dial = VectorDial({middle: direction}, {middle: 3.0})

    def scores(store: Store) -> list[Any]:
        return [score(model, encoded, dial, a, force=True, store=store).margin for a in ALPHAS]

    with _folder() as folder:
        today, ours = Store(folder, trunk=False), Store(folder)

        def cold() -> None:
            shutil.rmtree(folder)
            trunk._kept.clear()
            scores(ours)

        same = [bool((a == b).all()) for a, b in zip(scores(today), scores(ours), strict=True)]
        assert all(same), f"scores at {ALPHAS} are the same: {same}"
        work = {
            "today": lambda: scores(today),
            "warm": lambda: scores(ours),
            "cold": cold,
        }
        seconds = in_turn(work, 1 if quick else repeats)
    notes = [
        f"{encoded.n_answers} answers, {encoded.places[-1]} tokens, alphas "
        f"{', '.join(f'{a:g}' for a in ALPHAS)}; the scores are the same to the bit."
    ]
    found: results.Found = {}
    for name, which in (("five_alphas_vs_today", "warm"), ("five_alphas_cold_vs_today", "cold")):
        entry: dict[str, Any] = {"ours_s": seconds[which], "theirs_s": seconds["today"]}
        entry["notes"] = notes if which == "warm" else []
        found[name] = (ratio(seconds["today"], seconds[which]), entry)
    return found


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
