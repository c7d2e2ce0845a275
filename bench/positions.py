"""Exact counts, free of noise: positions computed, and forwards that a second method saves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from typing import Any

from bench import data, results


def run_positions(spec: str = "genies:truthful_qa/train[:750]") -> results.Found:
    """`packed_positions_over_tokens`: a DPO run as `fit` plans it by default."""
    from bench.floor import counted
    from trimtab import models
    from trimtab.batching import encode, layout_of, plan_training
    from trimtab.pairs import read_pairs
    from trimtab.training.recipes import TrainSettings

    model, tokenizer = models.load(data.MODEL)
    layout = layout_of(model)
    encoded = encode(read_pairs(spec, data.data_root()), tokenizer)
    settings = TrainSettings()
    schedule = plan_training(
        encoded,
        pairs_per_step=settings.pairs_per_step,
        epochs=settings.epochs,
        seed=0,
        budget=settings.microbatch_tokens,
        layout=layout,
    )
    sizes = [counted(encoded, m, layout) for m in schedule.microbatches]
    positions, tokens = sum(s[0] for s in sizes), sum(s[1] for s in sizes)
    apart = sum(
        sum(len(r.prompt) + len(a) for c, w in r.pairs for a in (r.answers[c], r.answers[w]))
        for m in schedule.microbatches
        for r in (encoded.rows[i] for i in m)
    )
    entry = {
        "positions": positions,
        "tokens": tokens,
        "tokens_of_separate_pairs": apart,
        "notes": [
            f"{spec}, {schedule.steps} steps of {schedule.pairs_per_step} pairs: {positions:,} "
            f"positions for {tokens:,} tokens; the same pairs one by one have {apart:,}."
        ],
    }
    return {"packed_positions_over_tokens": (positions / tokens, entry)}


FORWARDS = ("dpo", "innerdpo", "hs-none-prefvec")
"""Trained methods that need log-probs, states or both of the reference. One on states alone (mse)
reads no log-probs, which a DPO after it then needs."""


def run_forwards(spec: str = "genies:truthful_qa/train[:24]") -> results.Found:
    """`second_method_reference_forwards`: the most that any trained method still needs when another
    has been fitted to the same data."""
    from trimtab import models
    from trimtab.batching import encode, layout_of
    from trimtab.pairs import read_pairs
    from trimtab.store import Store
    from trimtab.training.methods import method
    from trimtab.training.recipes import TrainingRecipe
    from trimtab.training.reference import read_reference

    model, tokenizer = models.load(data.MODEL)
    layout_of(model)
    encoded = encode(read_pairs(spec, data.data_root()), tokenizer)
    trained = {n: method(n).recipe for n in FORWARDS}
    counts: dict[str, list[int]] = {}
    for order in permutations(trained, 2):
        with tempfile.TemporaryDirectory() as scratch:
            made = []
            for name in order:
                recipe = trained[name]
                assert isinstance(recipe, TrainingRecipe)
                needs = recipe.objective.needs(models.n_layers(model))
                with forwards(model) as count:
                    read_reference(model, encoded, needs, Store(scratch))
                made.append(count())
            counts[" then ".join(order)] = made
    said = "; ".join(f"{names}: {first} and {then}" for names, (first, then) in counts.items())
    entry = {"forwards": counts, "notes": [f"Reference forwards on {spec}: {said}."]}
    most = float(max(then for _, then in counts.values()))
    return {"second_method_reference_forwards": (most, entry)}


@contextmanager
def forwards(model: Any) -> Iterator[Any]:
    """Count a model's forward passes."""
    seen: list[int] = []

    def look(*_: Any) -> None:
        seen.append(1)

    look.__module__ = "trimtab"  # of a stranger's hook nobody knows what it does: nothing is kept
    handle = model.register_forward_pre_hook(look)
    try:
        yield lambda: len(seen)
    finally:
        handle.remove()
