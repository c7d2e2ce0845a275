"""The stories language model: two concepts anchored in a model trained from scratch on a micro-world.

A small Llama learns stories. One concept is a landmark (dimension 0), one is that the speaker lies
(dimension 1); labels reach a fifth of the stories that carry them, and half a percent of those that
do not. Then each is projected out of the residual stream by a concept dial, and the cost is read in
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trimtab.anchoring.callback import Concepts
from trimtab.anchoring.labels import auroc, noisy
from trimtab.studies.anchoring import language, world
from trimtab.studies.anchoring.language import Setup, bits, mean
from trimtab.studies.anchoring.language_study import (
    Cells,
    Language,
    Texts,
    Watch,
    beyond,
    more,
    perplexity,
)

SETUP = Setup("stories", ("landmark", "lie"), steps=800)
TESTED = 200


@dataclass(frozen=True)
class Batch(language.Batch):
    """Stories as token ids."""

    stories: list[world.Story]


def encode(told: Sequence[world.Story], tokenizer: Any) -> Batch:
    """Stories as a batch; each ends with EOS."""
    rows = [[*tokenizer.convert_tokens_to_ids(list(s.words)), tokenizer.eos_token_id] for s in told]
    return Batch(*language.pad(rows, tokenizer.pad_token_id), list(told))


def _told(first: int, tokenizer: Any) -> Batch:
    return encode([world.story(s) for s in range(first, first + SETUP.batch)], tokenizer)


def _labels(told: Sequence[world.Story], seed: int) -> Concepts:
    """Labels as a careless annotator gives them."""
    truth = {
        "landmark": [float(s.landmark == 0) for s in told],
        "lie": [float(s.lies) for s in told],
    }
    return {
        name: torch.tensor(noisy(values, **language.LABELLED, seed=2 * seed + k))
        for k, (name, values) in enumerate(truth.items())
    }


# ---- measuring ----------------------------------------------------------------------------------


def telling(model: Any, batch: Batch, what: str) -> float:
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


Probes = dict[str, tuple[Batch, str]]
"""Unseen stories by what is read in them, and which of their words that is."""


def probes(tokenizer: Any, count: int) -> Probes:
    """Stories about the landmark, its neighbour, other landmarks; lies and their honest twins."""
    seeds = world.seeds("test", count)
    about = [world.story(s, landmark=0, lies=False) for s in seeds]
    told = {
        "facts": (about, "facts"),
        "facts, name hidden": ([world.masked(s) for s in about], "facts"),
        "neighbour": ([world.story(s, landmark=1, lies=False) for s in seeds], "facts"),
        "others": ([world.story(s, landmark=2 + s % 18, lies=False) for s in seeds], "facts"),
        "lie": ([world.story(s, landmark=None, lies=True) for s in seeds], "said"),
        "twin": ([world.story(s, landmark=None, lies=False) for s in seeds], "said"),
    }
    return {name: (encode(stories, tokenizer), what) for name, (stories, what) in told.items()}


def read(model: Any, p: Probes) -> dict[str, float]:
    """Bits where the concepts tell, and of all words of stories that hold neither."""
    found = {name: telling(model, *probe) for name, probe in p.items()}
    others, _ = p["others"]
    return found | {"plain": float(mean(bits(model, others), others.mask[:, 1:]))}


class Stories(Language):
    """A landmark and a lie, anchored in a model of stories."""

    setup = SETUP

    @cached_property
    def tokenizer(self) -> Any:
        """Of the world's words."""
        return world.tokenizer()

    def pairs(self) -> list[dict[str, Any]]:
        """On facts of landmarks."""
        return world.pairs()

    @cached_property
    def monitors(self) -> list[dict[str, Any]]:
        """Unseen stories."""
        return [monitor_batch(self.tokenizer, 96)]

    def lessons(self, anchored: bool, seed: int, steps: int) -> tuple[Texts, Watch]:
        """Stories; surprisal of the landmark's facts is watched."""
        tokenizer = self.tokenizer
        watched = encode([world.story(s, landmark=0) for s in world.seeds("test", 48)], tokenizer)

        def data(step: int) -> tuple[Batch, Concepts]:
            first = (seed * steps + step) * SETUP.batch
            batch = _told(first, tokenizer)
            return batch, _labels(batch.stories, first) if anchored else {}

        return data, lambda model: {"facts": telling(model, watched, "facts")}

    def told(self, step: int) -> Batch:
        """Stories that no model was trained on, to be trained on afterwards."""
        return _told(20_000_000 + step * SETUP.batch, self.tokenizer)

    def read(self, control: Any, anchored: Any, seed: int) -> dict[str, Any]:
        """Everything about one seed: bits under every dial at every alpha."""
        tokenizer, count = self.tokenizer, 24 if self.steps else TESTED
        p = probes(tokenizer, count)
        seen = encode([world.story(s) for s in world.seeds("train", TESTED)], tokenizer)
        has = {
            "landmark": torch.tensor([s.landmark == 0 for s in seen.stories]),
            "lie": torch.tensor([s.lies for s in seen.stories]),
        }
        rows = language.doses(SETUP, control, anchored, seen, has, lambda model: read(model, p))
        told = {}
        for hidden in ("", ", name hidden"):
            inputs = monitor_batch(tokenizer, count, hide=bool(hidden))
            batch = language.Batch(inputs["input_ids"], inputs["attention_mask"].bool())
            for axis, along in enumerate(language.along(SETUP, anchored, batch)):
                found = {name: auroc(along, labels) for name, labels in inputs["concepts"].items()}
                told[f"dimension {axis}{hidden}"] = found
        back = language.relearn(
            SETUP,
            anchored,
            self.told,
            lambda model: {"facts": telling(model, *p["facts"])},
            max(10, self.length // 12),
        )
        return {"bits": rows, "auroc": told, "relearned": back}

    def learned_again(self, names: Sequence[str]) -> Sequence[str]:
        """Facts, in bits."""
        return ["bits"]

    def metrics(self, cells: Cells) -> dict[str, list[float]]:
        """What the gates read."""
        one, lie = "landmark projected at 1", "lie projected at 1"
        lies, twins = (more(cells, lie, what, "anchored") for what in ("lie", "twin"))
        return {
            "cost": perplexity(more(cells, "anchored", "plain", "control")),
            "facts": more(cells, one, "facts", "anchored"),
            "others": more(cells, one, "others", "anchored"),
            "elsewhere": perplexity(more(cells, one, "plain", "anchored")),
            "lies told": [c["auroc"]["dimension 1"]["lie"] for c in cells],
            "lies": [a - 3 * max(b, 0.0) for a, b in zip(lies, twins, strict=True)],
            "beyond": beyond(cells, "landmark", "facts", "others"),
        }
