"""The same on natural text: a language model trained on answers of GENIES distributions, with code
and cooking anchored.

Code is told by its symbols, cooking by its subject alone: its documents come from one forum with
others on other subjects. Labels are names of distributions and of forums, as a fixed, careless
annotator gives them: a fifth of the documents of a concept, and half a percent of the rest.
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
from torch import Tensor

from trimtab.anchoring.callback import Concepts
from trimtab.anchoring.labels import Keywords, auroc, error_rate, noisy
from trimtab.progress import SILENT, Progress
from trimtab.provenance import versions
from trimtab.studies.anchoring import corpus, language, results
from trimtab.studies.anchoring.corpus import CONCEPTS, KINDS
from trimtab.studies.anchoring.gates import Gate, over_seeds
from trimtab.studies.anchoring.language import ALPHAS, Batch, Cells, Setup, more, perplexity

NAME, TITLE = "natural", "A language model on natural text with code and cooking anchored"
ABOUT = (
    "A language model trained from scratch on documents of public data sets; code and cooking are "
    "anchored by sparse, noisy labels, then projected out. Gates were written down before the runs."
)
SEEDS = 3
SETUP = Setup(NAME, CONCEPTS, steps=400, batch=24)
RECALL, FALSE_POSITIVES = 0.2, 0.005
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
    digest: str

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Documents side by side."""
        return Batch(*language.pad(rows, self.tokenizer.pad_token_id))

    def of(self, kind: str, count: int) -> list[list[int]]:
        """Held-out documents of a kind."""
        return self.test[kind][:count]


def load(root: Path | None) -> Corpus:
    """Read the documents, train the tokenizer on those of the training split, encode all.

    Raises:
        DataError: as `corpus.read` does.
    """
    texts = corpus.read(root)
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
        corpus.digest(texts),
    )


def labels(c: Corpus, seed: int) -> dict[str, Tensor]:
    """Labels of all documents trained on; each keeps its own throughout."""
    rates = {"recall": RECALL, "false_positives": FALSE_POSITIVES}
    return {
        concept: torch.tensor(noisy(_truth(c, concept), **rates, seed=2 * seed + k))
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


def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    key = (size, seed, epoch)
    if key not in _ORDERS:
        _ORDERS[key] = np.random.default_rng([seed, epoch]).permutation(size)
    return _ORDERS[key]


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def train(
    c: Corpus, anchored: bool, seed: int, steps: int, progress: Progress = SILENT
) -> tuple[Any, list[dict[str, float]]]:
    """A model, and what was measured on the way: bits of held-out documents, AUROC of both
    dimensions."""
    given = labels(c, seed)
    watched = {kind: c.of(kind, WATCHED) for kind in KINDS}
    concepts = {k: c.batch(watched[k]) for k in CONCEPTS}

    def data(step: int) -> tuple[Batch, Concepts]:
        drawn = _drawn(c, seed, step)
        return c.batch([c.rows[i] for i in drawn]), {k: v[drawn] for k, v in given.items()}

    def watch(model: Any) -> dict[str, float]:
        found = {k: _mean_bits(model, batch) for k, batch in concepts.items()}
        if anchored:
            told = monitored(c, model, watched)
            found |= {f"auroc/{k}": told[f"dimension {i}"][k] for i, k in enumerate(CONCEPTS)}
        return found

    return language.train(
        SETUP, c.tokenizer, seed, steps, data, watch, anchored=anchored, progress=progress
    )


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


def monitored(
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


def measure(c: Corpus, control: Any, anchored: Any, seed: int, count: int, steps: int) -> Any:
    """Everything about one seed, as JSON values."""
    seen = c.batch([row for kind in KINDS for row in c.train[kind][:TESTED]])
    kinds = [kind for kind in KINDS for _ in c.train[kind][:TESTED]]
    rows = language.doses(
        SETUP,
        control,
        anchored,
        lambda concept: language.difference(
            control, seen, torch.tensor([k == concept for k in kinds]), SETUP.sites
        ),
        lambda model: read(c, model, count),
    )
    documents = {kind: c.of(kind, count) for kind in KINDS}
    told = monitored(c, anchored, documents)
    for axis, concept in enumerate(CONCEPTS):
        bare = hidden(c, documents, concept)
        if all(bare.values()):
            key = f"dimension {axis}"
            told[f"{key}, telling tokens gone"] = monitored(c, anchored, bare)[key]
    watched = {k: c.batch(c.of(k, count)) for k in (*CONCEPTS, "others")}
    back = language.relearn(
        SETUP,
        anchored,
        lambda step: c.batch([c.rows[i] for i in _drawn(c, 1_000 + seed, step)]),
        lambda model: {k: _mean_bits(model, b) for k, b in watched.items()},
        max(10, steps // 10),
    )
    given = {k: error_rate(v.tolist(), _truth(c, k)) for k, v in labels(c, seed).items()}
    marked = {k: int(v.sum()) for k, v in labels(c, seed).items()}
    return {
        "bits": rows,
        "auroc": told,
        "relearned": back,
        "labels": {k: [r.recall, r.false_positives, marked[k]] for k, r in given.items()},
    }


# ---- running ------------------------------------------------------------------------------------


def run(
    out: Path,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Train the control and the anchored model on every seed; save the first anchored one with its
    tokenizer, a dial a concept, and pairs to evaluate them on. A finished seed on the same documents
    is not run again.

    Raises:
        DataError: the data folder is not known, or a distribution is not in it.
    """
    c = load(corpus.data_root(data_root))
    length = SETUP.steps if steps is None else steps
    count = WATCHED // 2 if steps else TESTED

    def one(seed: int) -> dict[str, Any]:
        begun = time.perf_counter()
        control, learned = train(c, False, seed, length, progress)
        anchored, logged = train(c, True, seed, length, progress)
        cell = measure(c, control, anchored, seed, count, length)
        if seed == seeds[0]:
            language.save(SETUP, out, anchored, c.tokenizer, pairs(c))
        kept = {"history": logged, "control_history": learned}
        return cell | kept | {"seconds": time.perf_counter() - begun}

    cells = language.cells(out, seeds, f"{length}-{c.digest}", one)
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
        "corpus": c.digest,
        "tables": _tables(c, cells),
        "seconds": language.seconds(cells),
    }
    return results.write(out, result, {"alphas": np.array(ALPHAS)})


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


def _tables(c: Corpus, cells: Cells) -> list[dict[str, Any]]:
    columns = list(cells[0]["bits"]["control"])
    words = {
        k: error_rate([w(t) for x in KINDS for t in c.texts["train"][x]], _truth(c, k))
        for k, w in WORDS.items()
    }
    return [
        {
            "title": "Documents",
            "caption": "What each kind is; documents trained on and held out; tokens trained on; bytes "
            f"a token; bits a byte, held out, of both models. {language.SPREAD}",
            "header": ["kind", "what", "train", "test", "tokens", "bytes", "control", "anchored"],
            "rows": [
                [
                    kind,
                    KINDS[kind].what,
                    *(str(len(found[kind])) for found in (c.train, c.test)),
                    f"{sum(map(len, c.train[kind])):,}",
                    size := _bytes(c, kind),
                    *(
                        language.spread([b / size for b in more(cells, m, kind)])
                        for m in ("control", "anchored")
                    ),
                ]
                for kind in KINDS
            ],
            "text": [1],
        },
        {
            "title": "Labels",
            "caption": "Those trained with, drawn once a document: recall, false positives, documents "
            "labelled. Beside them, what a labeller by keywords would reach. Tokens that give the "
            "concept away, and their share of its documents.",
            "header": [
                *("concept", "recall", "false pos.", "labelled", "keywords: recall"),
                *("false pos.", "telling tokens", "share"),
            ],
            "rows": [
                [
                    k,
                    *(language.spread([x["labels"][k][i] for x in cells]) for i in (0, 1, 2)),
                    words[k].recall,
                    words[k].false_positives,
                    str(int(c.telling[k].sum())),
                    float(c.telling[k][np.concatenate(c.train[k])].mean()),
                ]
                for k in CONCEPTS
            ],
        },
        language.surprisals(
            cells,
            columns,
            "Bits a token of held-out documents; plain tokens are those of a concept's documents that "
            "do not give it away.",
        ),
        language.monitored(
            cells,
            "AUROC of the mean cosine with a dimension: held-out documents of a kind against the "
            "forum's and the others'.",
        ),
        {
            "title": "Coming back",
            "caption": "Bits a token after both dimensions are cut from all weights, and the model is "
            f"trained on with all documents. {language.SPREAD}",
            "header": ["after", *CONCEPTS, "others"],
            "rows": [
                [
                    f"{5 * i} steps",
                    *(
                        language.spread([x["relearned"][i][k] for x in cells])
                        for k in (*CONCEPTS, "others")
                    ),
                ]
                for i in range(0, len(cells[0]["relearned"]), 2)
            ],
        },
    ]


def _bytes(c: Corpus, kind: str) -> float:
    """Bytes a token of the documents that are read, the first token of each aside."""
    sizes = np.concatenate([c.bytes[row[1:]] for row in c.of(kind, TESTED)])
    return float(sizes.mean())


def gates(result: Mapping[str, Any]) -> list[Gate]:
    """Medians over seeds, reported as they fall: none of them can fail a check."""
    cells = result["cells"]

    def rise(row: str, kind: str, less: str = "anchored") -> list[float]:
        return more(cells, row, kind, less)

    def worst(row: str, less: str = "anchored") -> list[float]:
        return perplexity(
            [max(b) for b in zip(*(rise(row, k, less) for k in ELSEWHERE), strict=True)]
        )

    def told(key: str, kind: str) -> list[float]:
        return [c["auroc"].get(key, {}).get(kind, np.nan) for c in cells]

    code, cooking = (f"{k} projected at 1" for k in CONCEPTS)
    more_cooking, more_forum = rise(cooking, "cooking"), rise(cooking, "forum")
    aimed = partial(over_seeds, stretch=True)
    return [
        aimed(
            "perplexity cost of anchoring, forum or others, the larger",
            worst("anchored", "control"),
            high=0.01,
        ),
        aimed("code, projected: bits a token more", rise(code, "code"), low=1),
        aimed(
            "code projected: rise of perplexity, forum or others, the larger",
            worst(code),
            high=0.01,
        ),
        aimed("cooking, projected: bits a token more", more_cooking, low=0.25),
        aimed(
            "cooking, projected: bits more, less three times those of the forum",
            [a - 3 * max(b, 0.0) for a, b in zip(more_cooking, more_forum, strict=True)],
            low=0,
        ),
        aimed(
            "cooking projected: rise of perplexity of others",
            perplexity(rise(cooking, "others")),
            high=0.01,
        ),
        aimed("AUROC of code", told("dimension 0", "code"), low=0.9),
        aimed("AUROC of cooking", told("dimension 1", "cooking"), low=0.8),
        aimed(
            "AUROC of code, its telling tokens gone",
            told("dimension 0, telling tokens gone", "code"),
            low=0.8,
        ),
        aimed(
            "bits on code beyond the difference of means at no more collateral",
            language.beyond(cells, "code", "code", "others"),
            low=0,
        ),
        aimed(
            "bits on cooking beyond the difference of means at no more collateral",
            language.beyond(cells, "cooking", "cooking", "forum"),
            low=0,
        ),
    ]
