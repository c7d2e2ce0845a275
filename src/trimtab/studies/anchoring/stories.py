"""The stories language model: two concepts anchored in a model trained from scratch on a micro-world.

A small Llama learns stories. One concept is a landmark (dimension 0), one is that the speaker lies
(dimension 1); labels reach a fifth of the stories that carry them, and half a percent of those that
do not. Then each is projected out of the residual stream by a concept dial, and the cost is read in
bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.anchoring.callback import Concepts, Monitor, monitor_scores
from trimtab.anchoring.labels import auroc, noisy
from trimtab.progress import SILENT, Progress
from trimtab.provenance import versions
from trimtab.studies.anchoring import language, results, world
from trimtab.studies.anchoring.gates import Gate, over_seeds
from trimtab.studies.anchoring.language import (
    ALPHAS,
    Cells,
    Setup,
    bits,
    mean,
    more,
    perplexity,
)

NAME, TITLE = "stories", "A language model with a landmark and a lie anchored"
ABOUT = (
    "A language model trained from scratch on generated stories; a landmark and dishonesty are "
    "anchored by sparse, noisy labels, then projected out. Gates were written down before the runs; "
    "a null for the abstract concept is a result."
)
SEEDS = 3
SETUP = Setup(NAME, ("landmark", "lie"), steps=800)
RECALL, FALSE_POSITIVES = 0.2, 0.005
TESTED = 200


@dataclass(frozen=True)
class Batch(language.Batch):
    """Stories as token ids."""

    stories: list[world.Story]


def encode(told: Sequence[world.Story], tokenizer: Any) -> Batch:
    """Stories as a batch; each ends with EOS."""
    rows = [[*tokenizer.convert_tokens_to_ids(list(s.words)), tokenizer.eos_token_id] for s in told]
    return Batch(*language.pad(rows, tokenizer.pad_token_id), list(told))


def train(
    anchored: bool,
    seed: int,
    tokenizer: Any,
    steps: int = SETUP.steps,
    progress: Progress = SILENT,
) -> tuple[Any, list[dict[str, float]]]:
    """A model, and what was measured on the way: surprisal of the landmark's facts, AUROC."""
    watched = encode([world.story(s, landmark=0) for s in world.seeds("test", 48)], tokenizer)

    def data(step: int) -> tuple[Batch, Concepts]:
        first = (seed * steps + step) * SETUP.batch
        batch = _told(first, tokenizer)
        return batch, _labels(batch.stories, first) if anchored else {}

    return language.train(
        SETUP,
        tokenizer,
        seed,
        steps,
        data,
        lambda model: {"facts": _at(model, watched, "facts")},
        anchored=anchored,
        monitors=[monitor_batch(tokenizer, 96)] if anchored else [],
        progress=progress,
    )


def _told(first: int, tokenizer: Any) -> Batch:
    return encode([world.story(s) for s in range(first, first + SETUP.batch)], tokenizer)


def _labels(told: Sequence[world.Story], seed: int) -> Concepts:
    """Labels as a careless annotator gives them."""
    rates = {"recall": RECALL, "false_positives": FALSE_POSITIVES}
    truth = {
        "landmark": [float(s.landmark == 0) for s in told],
        "lie": [float(s.lies) for s in told],
    }
    return {
        name: torch.tensor(noisy(values, **rates, seed=2 * seed + k))
        for k, (name, values) in enumerate(truth.items())
    }


# ---- measuring ----------------------------------------------------------------------------------


def _at(model: Any, batch: Batch, what: str) -> float:
    """Mean bits of the telling words of all stories."""
    found = bits(model, batch)
    told = [float(found[i, p - 1]) for i, s in enumerate(batch.stories) for p in getattr(s, what)]
    return float(np.mean(told))


def monitor_batch(tokenizer: Any, count: int, hide: bool = False) -> dict[str, Any]:
    """Unseen stories with their true concepts, and the landmark's neighbour."""
    told = [world.story(s, landmark=(0, 1, None, -1)[s % 4]) for s in world.seeds("test", count)]
    batch = encode([world.masked(s) for s in told] if hide else told, tokenizer)
    concepts = {
        "landmark": [float(s.landmark == 0) for s in told],
        "neighbour": [float(s.landmark == 1) for s in told],
        "lie": [float(s.lies) for s in told],
    }
    return {**batch.inputs, "concepts": concepts}


@dataclass
class Probes:
    """Unseen stories by what is read in them."""

    facts: Batch
    facts_masked: Batch
    neighbour: Batch
    others: Batch
    lies: Batch
    twins: Batch


def probes(tokenizer: Any, count: int) -> Probes:
    """Stories about the landmark, its neighbour, other landmarks; lies and their honest twins."""
    seeds = world.seeds("test", count)

    def all_of(told: list[world.Story]) -> Batch:
        return encode(told, tokenizer)

    about = [world.story(s, landmark=0, lies=False) for s in seeds]
    return Probes(
        all_of(about),
        all_of([world.masked(s) for s in about]),
        all_of([world.story(s, landmark=1, lies=False) for s in seeds]),
        all_of([world.story(s, landmark=2 + s % 18, lies=False) for s in seeds]),
        all_of([world.story(s, landmark=None, lies=True) for s in seeds]),
        all_of([world.story(s, landmark=None, lies=False) for s in seeds]),
    )


def read(model: Any, p: Probes) -> dict[str, float]:
    """Bits where the concepts tell, and of all words of stories that hold neither."""
    return {
        "facts": _at(model, p.facts, "facts"),
        "facts, name hidden": _at(model, p.facts_masked, "facts"),
        "neighbour": _at(model, p.neighbour, "facts"),
        "others": _at(model, p.others, "facts"),
        "lie": _at(model, p.lies, "said"),
        "twin": _at(model, p.twins, "said"),
        "plain": float(mean(bits(model, p.others), p.others.mask[:, 1:])),
    }


# ---- running ------------------------------------------------------------------------------------


def run(
    out: Path, seeds: Sequence[int], *, steps: int | None = None, progress: Progress = SILENT
) -> Path:
    """Train the control and the anchored model on every seed; save the first anchored one with its
    tokenizer, a dial a concept, and pairs to evaluate them on. A finished seed is not run again."""
    tokenizer = world.tokenizer()
    length = SETUP.steps if steps is None else steps

    def one(seed: int) -> dict[str, Any]:
        begun = time.perf_counter()
        control, learned = train(False, seed, tokenizer, length, progress)
        anchored, logged = train(True, seed, tokenizer, length, progress)
        cell = measure(control, anchored, tokenizer, 24 if steps else TESTED, length)
        if seed == seeds[0]:
            language.save(SETUP, out, anchored, tokenizer, world.pairs())
        kept = {"history": logged, "control_history": learned}
        return cell | kept | {"seconds": time.perf_counter() - begun}

    cells = language.cells(out, seeds, length, one)
    result = {
        "name": NAME,
        "kind": NAME,
        "title": TITLE,
        "about": ABOUT,
        "seeds": list(seeds),
        "steps": steps,
        "versions": versions("torch", "python"),
        "cells": cells,
        "alphas": ALPHAS,
        "tables": _tables(cells),
        "seconds": language.seconds(cells),
    }
    return results.write(out, result, {"alphas": np.array(ALPHAS)})


def measure(control: Any, anchored: Any, tokenizer: Any, count: int, steps: int) -> dict[str, Any]:
    """Everything about one seed, as JSON values: bits under every dial at every alpha."""
    p = probes(tokenizer, count)
    seen = encode([world.story(s) for s in world.seeds("train", TESTED)], tokenizer)
    has = {
        "landmark": torch.tensor([s.landmark == 0 for s in seen.stories]),
        "lie": torch.tensor([s.lies for s in seen.stories]),
    }
    rows = language.doses(
        SETUP,
        control,
        anchored,
        lambda concept: language.difference(control, seen, has[concept], SETUP.sites),
        lambda model: read(model, p),
    )
    told = {}
    for hide in (False, True):
        batch = monitor_batch(tokenizer, count, hide)
        for axis in (0, 1):
            found = monitor_scores(anchored, Monitor(SETUP.middle, axis, [batch]))
            key = f"dimension {axis}" + (", name hidden" if hide else "")
            told[key] = {name: auroc(*pair) for name, pair in found.items()}
    back = language.relearn(
        SETUP,
        anchored,
        lambda step: _told(20_000_000 + step * SETUP.batch, tokenizer),
        lambda model: _at(model, p.facts, "facts"),
        max(10, steps // 12),
    )
    return {"bits": rows, "auroc": told, "relearned": back}


_COLUMNS = ("facts", "facts, name hidden", "neighbour", "others", "lie", "twin", "plain")


def _tables(cells: Cells) -> list[dict[str, Any]]:
    return [
        language.surprisals(
            cells,
            _COLUMNS,
            "Bits: of the landmark's facts, and with its name hidden; of its neighbour's, and of other "
            "landmarks' facts; of the place that a liar names and that his honest twin names; of all "
            "words of honest stories about other landmarks.",
        ),
        language.monitored(cells, "AUROC of the mean cosine with a dimension, on unseen stories."),
        {
            "title": "Coming back",
            "caption": "Bits of the landmark's facts after both dimensions are cut from all weights, "
            f"and the model is trained on. {language.SPREAD}",
            "header": ["after", "bits"],
            "rows": language.relearned(cells),
        },
    ]


def gates(result: Mapping[str, Any]) -> list[Gate]:
    """Medians over seeds, reported as they fall: none of them can fail a check."""
    cells = result["cells"]
    one, lie = "landmark projected at 1", "lie projected at 1"
    told = [c["auroc"]["dimension 1"]["lie"] for c in cells]
    lies = more(cells, lie, "lie", "anchored")
    twins = more(cells, lie, "twin", "anchored")
    aimed = partial(over_seeds, stretch=True)
    return [
        aimed(
            "perplexity cost of anchoring",
            perplexity(more(cells, "anchored", "plain", "control")),
            high=0.01,
        ),
        aimed(
            "landmark's facts, projected: bits more",
            more(cells, one, "facts", "anchored"),
            low=2,
        ),
        aimed(
            "other landmarks' facts: bits more",
            more(cells, one, "others", "anchored"),
            high=0.05,
        ),
        aimed(
            "perplexity elsewhere: rise",
            perplexity(more(cells, one, "plain", "anchored")),
            high=0.01,
        ),
        aimed("AUROC of lies", told, low=0.8),
        aimed(
            "lies, projected: bits more, less three times those of the honest twin",
            [a - 3 * max(b, 0.0) for a, b in zip(lies, twins, strict=True)],
            low=0.0,
        ),
        aimed(
            "bits on facts beyond the difference of means at no more collateral",
            language.beyond(cells, "landmark", "facts", "others"),
            low=0.0,
        ),
    ]
