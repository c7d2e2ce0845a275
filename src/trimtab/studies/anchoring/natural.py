"""The same on natural text: a language model trained on answers of GENIES distributions, with code
and cooking anchored.

Code is told by its symbols, cooking by its subject alone: its documents come from one forum with
others on other subjects. Labels are names of distributions and of forums, as a fixed, careless
annotator gives them: a fifth of the documents of a concept, and half a percent of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.anchoring.callback import Concepts
from trimtab.anchoring.labels import Keywords, auroc, error_rate, noisy
from trimtab.studies.anchoring import corpus, language
from trimtab.studies.anchoring.corpus import CONCEPTS, KINDS
from trimtab.studies.anchoring.language import Batch, Setup
from trimtab.studies.anchoring.language_study import (
    Cells,
    Language,
    Texts,
    Watch,
    beyond,
    more,
    perplexity,
    spread,
)

SETUP = Setup("natural", CONCEPTS, steps=400, batch=24)
TESTED, WATCHED = 48, 16
"""Held-out documents of a kind that are read at the end, and on the way."""
ELSEWHERE = ("forum", "others")
"""Kinds that hold neither concept."""
WORDS = {
    "code": Keywords(("def", "return", "class", "import", "range")),
    "cooking": Keywords(("cook", "cooking", "oven", "sauce", "recipe", "pan", "flavor", "bake")),
}
"""A keyword labeller a concept, to state how often it would be wrong."""


@dataclass(frozen=True)
class Corpus:
    """Documents as token ids, by kind; a list of those trained on, with its labels."""

    tokenizer: Any
    texts: dict[str, corpus.Texts]
    train: dict[str, list[list[int]]]
    test: dict[str, list[list[int]]]
    rows: list[list[int]]
    kinds: list[str]
    telling: dict[str, np.ndarray]
    bytes: np.ndarray

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Documents side by side."""
        return Batch(*language.pad(rows, self.tokenizer.pad_token_id))

    def of(self, kind: str, count: int) -> list[list[int]]:
        """Held-out documents of a kind."""
        return self.test[kind][:count]


def load(texts: dict[str, corpus.Texts]) -> Corpus:
    """Train the tokenizer on the documents of the training split, encode all."""
    tokenizer = corpus.tokenizer(texts["train"])
    train, test = (
        {kind: corpus.encode(texts[split][kind], tokenizer) for kind in KINDS}
        for split in corpus.SPLITS
    )
    return Corpus(
        tokenizer,
        texts,
        train,
        test,
        [row for kind in KINDS for row in train[kind]],
        [kind for kind in KINDS for _ in train[kind]],
        {c: corpus.telling(train, c, len(tokenizer)) for c in CONCEPTS},
        corpus.byte_counts(tokenizer),
    )


def labels(c: Corpus, seed: int) -> dict[str, Tensor]:
    """Labels of all documents trained on; each keeps its own throughout."""
    return {
        concept: torch.tensor(noisy(_truth(c, concept), **language.LABELLED, seed=2 * seed + k))
        for k, concept in enumerate(CONCEPTS)
    }


def _truth(c: Corpus, concept: str) -> list[float]:
    return [float(kind == concept) for kind in c.kinds]


def _drawn(c: Corpus, seed: int, step: int) -> np.ndarray:
    """The documents of a step: all of them in a random order, then in another."""
    order, size = [], len(c.rows)
    for place in range(step * SETUP.batch, (step + 1) * SETUP.batch):
        epoch, at = divmod(place, size)
        order.append(_order(size, seed, epoch)[at])
    return np.array(order)


@cache
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


# ---- measuring ----------------------------------------------------------------------------------


def _mean_bits(model: Any, batch: Batch, which: Tensor | None = None) -> float:
    """Mean bits a token, of all or of some of the vocabulary."""
    keep = batch.mask[:, 1:] if which is None else batch.mask[:, 1:] & which[batch.ids[:, 1:]]
    return float(language.mean(language.bits(model, batch), keep))


def read(c: Corpus, model: Any, count: int) -> dict[str, float]:
    """Bits a token of held-out documents of every kind; and, of a concept's, of the tokens that do
    not give it away."""
    found = {}
    for kind in KINDS:
        batch = c.batch(c.of(kind, count))
        found[kind] = _mean_bits(model, batch)
        if kind in CONCEPTS:
            plain = torch.from_numpy(~c.telling[kind])
            found[f"{kind}, plain tokens"] = _mean_bits(model, batch, plain)
    return found


def told_by_axis(
    c: Corpus, model: Any, rows: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, dict[str, float]]:
    """AUROC of the mean cosine with each dimension: documents of a kind against the forum's and the
    others'."""
    along = {kind: language.along(SETUP, model, c.batch(found)) for kind, found in rows.items()}
    told: dict[str, dict[str, float]] = {}
    for axis in range(len(CONCEPTS)):
        rest = [*along["forum"][axis], *along["others"][axis]]
        told[f"dimension {axis}"] = {
            kind: auroc([*s[axis], *rest], [1.0] * len(s[axis]) + [0.0] * len(rest))
            for kind, s in along.items()
            if kind not in ELSEWHERE
        }
    return told


def hidden(c: Corpus, rows: Mapping[str, list[list[int]]], concept: str) -> dict[str, Any]:
    """Documents without the tokens that give a concept away; those with fewer than 8 left go."""
    which = c.telling[concept]
    left = {
        kind: [[i for i in row if not which[i]] for row in found] for kind, found in rows.items()
    }
    return {kind: [row for row in found if len(row) >= 8] for kind, found in left.items()}


# ---- the experiment -----------------------------------------------------------------------------


class Natural(Language):
    """Code and cooking, anchored in a model of natural text."""

    setup = SETUP

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.texts = corpus.read(corpus.data_root(self.settings.data_root))
        self.common["corpus"] = corpus.digest(self.texts)

    @cached_property
    def c(self) -> Corpus:
        """The documents, encoded."""
        return load(self.texts)

    @property
    def tokenizer(self) -> Any:
        """Trained on the documents."""
        return self.c.tokenizer

    @property
    def named(self) -> Sequence[str]:
        """The documents."""
        return [self.common["corpus"]]

    def pairs(self) -> list[dict[str, Any]]:
        """How documents go on."""
        return pairs(self.c)

    def lessons(self, anchored: bool, seed: int, steps: int) -> tuple[Texts, Watch]:
        """Documents; bits of held-out ones are watched, and AUROC of both dimensions."""
        c = self.c
        given = labels(c, seed)
        watched = {kind: c.of(kind, WATCHED) for kind in KINDS}
        concepts = {k: c.batch(watched[k]) for k in CONCEPTS}

        def data(step: int) -> tuple[Batch, Concepts]:
            drawn = _drawn(c, seed, step)
            return c.batch([c.rows[i] for i in drawn]), {k: v[drawn] for k, v in given.items()}

        def watch(model: Any) -> dict[str, float]:
            found = {k: _mean_bits(model, batch) for k, batch in concepts.items()}
            if anchored:
                told = told_by_axis(c, model, watched)
                found |= {f"auroc/{k}": told[f"dimension {i}"][k] for i, k in enumerate(CONCEPTS)}
            return found

        return data, watch

    def read(self, control: Any, anchored: Any, seed: int) -> dict[str, Any]:
        """Everything about one seed: bits under every dial at every alpha."""
        c, count = self.c, WATCHED // 2 if self.steps else TESTED
        seen = c.batch([row for kind in KINDS for row in c.train[kind][:TESTED]])
        kinds = [kind for kind in KINDS for _ in c.train[kind][:TESTED]]
        has = {concept: torch.tensor([k == concept for k in kinds]) for concept in CONCEPTS}
        rows = language.doses(
            SETUP, control, anchored, seen, has, lambda model: read(c, model, count)
        )
        documents = {kind: c.of(kind, count) for kind in KINDS}
        told = told_by_axis(c, anchored, documents)
        for axis, concept in enumerate(CONCEPTS):
            bare = hidden(c, documents, concept)
            if all(bare.values()):
                key = f"dimension {axis}"
                told[f"{key}, telling tokens gone"] = told_by_axis(c, anchored, bare)[key]
        watched = {k: c.batch(c.of(k, count)) for k in (*CONCEPTS, "others")}
        back = language.relearn(
            SETUP,
            anchored,
            lambda step: c.batch([c.rows[i] for i in _drawn(c, 1_000 + seed, step)]),
            lambda model: {k: _mean_bits(model, b) for k, b in watched.items()},
            max(10, self.length // 10),
        )
        given = {k: (v, error_rate(v.tolist(), _truth(c, k))) for k, v in labels(c, seed).items()}
        marked = {k: [r.recall, r.false_positives, int(v.sum())] for k, (v, r) in given.items()}
        return {"bits": rows, "auroc": told, "relearned": back, "labels": marked}

    def gathered(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """And which documents they are."""
        found, arrays = super().gathered()
        return found | {"corpus": self.common["corpus"]}, arrays

    def tables(self, cells: Cells) -> list[dict[str, Any]]:
        """And documents and labels."""
        own = {"Documents": _documents(self.c, cells), "Labels": _labelled(self.c, cells)}
        given = {"Documents": {"text": [1]}}
        first = [self.entry.table(name, rows, **given.get(name, {})) for name, rows in own.items()]
        return [*first, *super().tables(cells)]

    def metrics(self, cells: Cells) -> dict[str, list[float]]:
        """What the gates read."""

        def rise(row: str, kind: str, less: str = "anchored") -> list[float]:
            return more(cells, row, kind, less)

        def worst(row: str, less: str = "anchored") -> list[float]:
            rises = zip(*(rise(row, k, less) for k in ELSEWHERE), strict=True)
            return perplexity([max(b) for b in rises])

        def told(key: str, kind: str) -> list[float]:
            return [c["auroc"].get(key, {}).get(kind, np.nan) for c in cells]

        code, cooking = (f"{k} projected at 1" for k in CONCEPTS)
        subject, forum = rise(cooking, "cooking"), rise(cooking, "forum")
        return {
            "cost": worst("anchored", "control"),
            "code": rise(code, "code"),
            "code elsewhere": worst(code),
            "cooking": subject,
            "cooking less forum": [
                a - 3 * max(b, 0.0) for a, b in zip(subject, forum, strict=True)
            ],
            "cooking elsewhere": perplexity(rise(cooking, "others")),
            "code told": told("dimension 0", "code"),
            "cooking told": told("dimension 1", "cooking"),
            "code told, bare": told("dimension 0, telling tokens gone", "code"),
            "code beyond": beyond(cells, "code", "code", "others"),
            "cooking beyond": beyond(cells, "cooking", "cooking", "forum"),
        }


def pairs(c: Corpus, count: int = 60) -> list[dict[str, Any]]:
    """Preference pairs: how a held-out document of a concept goes on, against how one of the forum's
    does."""
    found = []
    for k in range(count):
        concept, n = CONCEPTS[k % len(CONCEPTS)], k // len(CONCEPTS)
        if n >= min(len(c.test[concept]), len(c.test["forum"])):
            break
        row, other = c.test[concept][n], c.test["forum"][n]
        parts = (row[: len(row) // 2], row[len(row) // 2 :], other[len(other) // 2 :])
        prompt, chosen, rejected = (c.tokenizer.decode(p, skip_special_tokens=True) for p in parts)
        if chosen.strip() and rejected.strip():
            entry = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "item": f"{k}"}
            found.append(entry | {"concept": concept})
    return found


def _documents(c: Corpus, cells: Cells) -> list[list[Any]]:
    rows = []
    for kind in KINDS:
        # bytes a token of the documents that are read, the first token of each aside
        size = float(np.concatenate([c.bytes[row[1:]] for row in c.of(kind, TESTED)]).mean())
        both = ([b / size for b in more(cells, m, kind)] for m in ("control", "anchored"))
        counts = (str(len(found[kind])) for found in (c.train, c.test))
        tokens = f"{sum(map(len, c.train[kind])):,}"
        rows.append([kind, KINDS[kind].what, *counts, tokens, size, *map(spread, both)])
    return rows


def _labelled(c: Corpus, cells: Cells) -> list[list[Any]]:
    rows = []
    for k in CONCEPTS:
        trained = (spread([x["labels"][k][i] for x in cells]) for i in (0, 1, 2))
        words = error_rate([WORDS[k](t) for x in KINDS for t in c.texts["train"][x]], _truth(c, k))
        share = float(c.telling[k][np.concatenate(c.train[k])].mean())
        told = str(int(c.telling[k].sum()))
        rows.append([k, *trained, words.recall, words.false_positives, told, share])
    return rows
