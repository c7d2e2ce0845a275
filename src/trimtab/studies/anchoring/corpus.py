"""Documents for the natural-text experiment: answers of GENIES distributions (Clymer et al. 2023).

Code is the distribution of that name. Cooking is what the forum distributions tell from their
field `subreddit`: posts and comments in one register with other subjects of the same forum. Beside
them lie their neighbours, other code and recipes, and prose and mathematics of six distributions.
Nothing of it is kept in results but counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.pairs.genies import read_items, responses

LENGTH, VOCABULARY = 96, 2048
"""Tokens a document is cut at; tokens of the tokenizer."""
SHORTEST, MOST = 40, 600
"""Characters of the shortest document; items that are read of a distribution."""
_FORUM = ("shp_high_quality", "shp_low_quality")
_KITCHEN = ("askculinary", "askbaking")

Item = Mapping[str, Any]


def _right(item: Item, where: str) -> list[str]:
    return [responses(item.get("responses"), where)[0]]


def _kitchen(item: Item, where: str) -> list[str]:
    return _posted(item, where) if _subject(item, where) in _KITCHEN else []


def _elsewhere(item: Item, where: str) -> list[str]:
    return [] if _subject(item, where) in _KITCHEN else _posted(item, where)


def _recipes(item: Item, where: str) -> list[str]:
    # Some run on into the next answer of a numbered list.
    wrong = (t.split("4. Misgen")[0] for t in responses(item.get("responses"), where)[1])
    return [t for t in wrong if "ngredient" in t and "def " not in t]


def _posted(item: Item, where: str) -> list[str]:
    right, wrong = responses(item.get("responses"), where)
    return [str(item.get("post_content", "")), right, *wrong]


def _subject(item: Item, where: str) -> str:
    if "subreddit" not in item:
        raise DataError(f"{where}: no field 'subreddit' (it has {', '.join(item)})")
    return str(item["subreddit"])


@dataclass(frozen=True)
class Kind:
    """Documents of one sort."""

    sources: tuple[str, ...]
    texts: Callable[[Item, str], list[str]]
    what: str


KINDS: dict[str, Kind] = {
    "code": Kind(("code",), _right, "programs"),
    "cooking": Kind(_FORUM, _kitchen, "posts and comments of a forum on cooking"),
    "other code": Kind(
        ("code_low_quality", "counterfactual_python"), _right, "programs of other distributions"
    ),
    "recipes": Kind(("code_with_cooking_style",), _recipes, "recipes given in place of programs"),
    "forum": Kind(_FORUM, _elsewhere, "posts and comments on everything else"),
    "others": Kind(
        (
            *("alpaca_high_quality", "biology_with_literary_style", "change_my_view"),
            *("creative_writing", "math", "relinquish_power"),
        ),
        _right,
        "answers, essays, stories, mathematics",
    ),
}
CONCEPTS = ("code", "cooking")
SOURCES = tuple(dict.fromkeys(chain.from_iterable(k.sources for k in KINDS.values())))
SPLITS = ("train", "test")

Texts = dict[str, list[str]]
"""Documents by kind."""


def data_root(given: Path | None) -> Path | None:
    """The folder of local data: the one given, or what TRIMTAB_DATA names."""
    root = given or os.environ.get("TRIMTAB_DATA")
    return Path(root).expanduser() if root else None


def read(root: Path | None) -> dict[str, Texts]:
    """Documents by split and kind, each once, and none of the test's among those trained on.

    Sources of one kind take turns, so that the first documents are of all of them.

    Raises:
        DataError: no data folder, a distribution that is not there, or not in GENIES' layout; the
            text says which, where it was looked for, and how to name the folder.
    """
    items = {(d, s): read_items(f"{d}/{s}", root, MOST) for s in SPLITS for d in SOURCES}
    seen: set[str] = set()
    found: dict[str, Texts] = {}
    for split in SPLITS:
        found[split] = {}
        for name, kind in KINDS.items():
            lists = [
                [t.strip() for where, item in items[d, split] for t in kind.texts(item, where)]
                for d in kind.sources
            ]
            turns = [t for group in zip_longest(*lists) for t in group if t and len(t) >= SHORTEST]
            found[split][name] = [t for t in dict.fromkeys(turns) if t not in seen]
            if not found[split][name]:
                raise DataError(f"{root}: no {split} documents of {name} in {kind.sources[0]}")
        seen.update(chain.from_iterable(found[split].values()))
    return found


def digest(texts: Mapping[str, Texts]) -> str:
    """Tells one set of documents from another."""
    found = hashlib.sha256(f"{LENGTH} {VOCABULARY}".encode())
    for text in (t for s in SPLITS for kind in KINDS for t in texts[s][kind]):
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()[:12]


def tokenizer(texts: Texts) -> Any:
    """A byte-level BPE tokenizer trained on documents, as transformers has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(chain.from_iterable(texts.values()), trainer)
    return wrapped(core)


def wrapped(core: Any, **special: str) -> Any:
    """A tokenizer as transformers has them."""
    from transformers import PreTrainedTokenizerFast

    special |= {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos")}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids, EOS at the end of every document that is not cut."""
    rows = tokenizer(list(texts))["input_ids"]
    return [[*row, tokenizer.eos_token_id][:LENGTH] for row in rows]


def byte_counts(tokenizer: Any) -> np.ndarray:
    """How many bytes of text each token stands for: one a character of its byte-level name."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return np.array([0 if n in special else len(n) for n in names])


def telling(rows: Mapping[str, list[list[int]]], concept: str, tokens: int) -> np.ndarray:
    """Which tokens give a concept away, `[token]`: they stand in three of its documents or more, and
    in four times as large a share of them as of the forum's and the others'."""
    count = {}
    for name, kinds in (("with", [concept]), ("without", ["forum", "others"])):
        found, documents = np.zeros(tokens), 0
        for row in chain.from_iterable(rows[k] for k in kinds):
            found[list(set(row))] += 1
            documents += 1
        count[name] = found, documents
    (here, some), (there, rest) = count["with"], count["without"]
    return (here >= 3) & (here / some >= 4 * there / rest)
