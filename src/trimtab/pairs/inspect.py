"""Looking at pairs before training on them: counts, lengths, duplicates, overlap, leakage."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.sparse import csgraph
from scipy.special import expit

from ..terminal import visible
from .files import text_of
from .overlap import overlap
from .pair import Pair, PairSet, Text

WORD = re.compile(r"\w+|[^\w\s]")
QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


def inspect_pairs(
    pairs: PairSet,
    tokenizer: Any = None,
    max_length: int | None = None,
    other: PairSet | None = None,
) -> dict[str, Any]:
    """A report of plain numbers and strings, fit for JSON and for `render`.

    Args:
        pairs: what to look at.
        tokenizer: a Hugging Face tokenizer; with it the report has lengths in tokens.
        max_length: in tokens, prompt and answer and EOS together; longer rows are counted.
        other: another set, for what the two have in common.

    Returns:
        `name`, `pairs`, `items`, `responses_per_item` ({responses: items}), `concepts`, `left_out`,
        `notes`, `conversational` (pairs of chat messages), `duplicates` (pairs whose text came before),
        `reversed` (pairs whose reverse came before), `contradictory` (pairs that are part of a circle of
        preferences), `precision` (see `precision`), `leakage` (see `leakage`), `examples`
        (three pairs), and, where asked for, `tokens` and `overlap` (see `overlap`).
    """
    items = pairs.items()
    sizes = Counter(
        len({text_of(a) for p in group for a in (p.chosen, p.rejected)}) for group in items.values()
    )
    texts = [tuple(map(text_of, (p.prompt, p.chosen, p.rejected))) for p in pairs]
    distinct = {(*text, p.setting) for text, p in zip(texts, pairs, strict=True)}
    report: dict[str, Any] = {
        "name": pairs.name,
        "pairs": len(pairs),
        "items": len(items),
        "responses_per_item": dict(sorted(sizes.items())),
        "concepts": dict(Counter(p.concept for p in pairs if p.concept is not None)),
        "left_out": pairs.left_out,
        "notes": list(pairs.notes),
        "conversational": sum(p.conversational for p in pairs),
        "duplicates": len(texts) - len(distinct),
        **contradictions(pairs),
        "precision": precision(len(items)),
        "leakage": leakage(pairs),
        "examples": [
            dict(zip(("prompt", "chosen", "rejected"), texts[i], strict=True))
            for i in sorted({0, len(texts) // 2, len(texts) - 1})
            if texts
        ],
    }
    if tokenizer is not None:
        report["tokens"] = token_lengths(pairs, tokenizer, max_length)
    if other is not None:
        report["overlap"] = {"name": other.name, **overlap(other, pairs)}
    return report


def contradictions(pairs: PairSet) -> dict[str, int]:
    """`reversed`: pairs whose reverse (the same prompt, the answers swapped) came before;
    `contradictory`: pairs in a circle of preferences (A over B, B over C, C over A), reversed ones among
    them. No model can have them all right."""
    number: dict[tuple[str, ...], int] = {}
    edges: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    turned = 0
    for pair in pairs:
        context = text_of(pair.prompt), pair.setting
        better, worse = (
            number.setdefault((*context, text_of(a)), len(number))
            for a in (pair.chosen, pair.rejected)
        )
        turned += (worse, better) in seen
        seen.add((better, worse))
        edges.append((better, worse))
    if not edges:
        return {"reversed": 0, "contradictory": 0}
    rows, columns = zip(*edges, strict=True)
    graph = sparse.csr_matrix((np.ones(len(edges)), (rows, columns)), shape=(len(number),) * 2)
    _, part = csgraph.connected_components(graph, directed=True, connection="strong")
    return {"reversed": turned, "contradictory": int(sum(part[a] == part[b] for a, b in edges))}


HELD, COARSE = 0.2, 0.1
"""The share that is usually held out, and the half-width beyond which a figure decides little."""


def precision(items: int) -> dict[str, float]:
    """Half the width of a 95 % interval around an accuracy of one half, on all items (`all`) and on a
    fifth of them (`held_out`)."""
    return {
        name: min(1.0, 0.98 / max(n, 1) ** 0.5)
        for name, n in (("all", items), ("held_out", round(HELD * items)))
    }


CEILING = 0.95


def ceiling(accuracy: float, items: int) -> str:
    """What the bare model's accuracy says of what a dial can gain on these pairs."""
    said = f"has {accuracy:.1%} of {items:,} items right"
    if accuracy >= CEILING:
        return f"{said}: next to nothing is left to gain (a ceiling)"
    if accuracy <= 1 - CEILING:
        return f"{said}: are chosen and rejected the right way round?"
    return said


def token_lengths(pairs: PairSet, tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """Quantiles of token counts of prompts, chosen and rejected answers, each part on its own.

    `row` is prompt, longer answer and EOS: the length that `max_length` is held against. Chat
    messages count as their contents; a chat template adds a few tokens a message.
    """

    def counts(texts: list[Text]) -> np.ndarray:  # [pair]
        unique = list(dict.fromkeys(t if isinstance(t, str) else contents(t) for t in texts))
        ids = tokenizer(unique, add_special_tokens=False)["input_ids"] if unique else []
        length = {text: len(i) for text, i in zip(unique, ids, strict=True)}
        return np.array([length[t if isinstance(t, str) else contents(t)] for t in texts])

    parts = {
        "prompt": counts([p.prompt for p in pairs]),
        "chosen": counts([p.chosen for p in pairs]),
        "rejected": counts([p.rejected for p in pairs]),
    }
    parts["row"] = parts["prompt"] + np.maximum(parts["chosen"], parts["rejected"]) + 1
    report: dict[str, Any] = {
        name: {
            q: int(np.quantile(values, level, method="higher")) for q, level in QUANTILES.items()
        }
        for name, values in parts.items()
        if len(values)
    }
    report["max_length"] = max_length
    report["too_long"] = None if max_length is None else int((parts["row"] > max_length).sum())
    return report


def contents(text: Text) -> str:
    """The contents of chat messages, without roles."""
    return text if isinstance(text, str) else "\n".join(m["content"] for m in text)


def leakage(pairs: PairSet, folds: int = 5, l2: float = 1.0) -> dict[str, Any]:
    """How far the answers alone, without the prompts, give the label away.

    `words`: accuracy of a logistic classifier on the words (and punctuation) of the two answers,
    cross-validated over items. `longer`: how often the longer answer (in characters) is the chosen
    one. Both count ties as one half and average within items first; 0.5 is no leak; None with fewer
    than two items. `balanced`: whether every answer is chosen as often as it is rejected. Then
    `words` falls far below 0.5, as the other folds teach the opposite; that is not a leak.
    """
    items = list(pairs.items())
    chosen = Counter(contents(p.chosen) for p in pairs)
    balanced = chosen == Counter(contents(p.rejected) for p in pairs)
    if len(items) < 2:
        return {"words": None, "longer": None, "balanced": balanced}
    number = {item: i for i, item in enumerate(items)}
    group = np.array([number[p.item] for p in pairs])  # [pair]
    length = np.array([len(contents(p.chosen)) - len(contents(p.rejected)) for p in pairs])
    # Which item goes to which fold is shuffled: neighbours in a file may be alike.
    fold = np.random.default_rng(0).permutation(len(items)) % min(folds, len(items))
    x = word_differences(list(pairs))  # [pair, word]
    margin = np.zeros(len(group))
    for k in np.unique(fold):
        held = fold[group] == k
        margin[held] = x[held] @ logistic(x[~held], l2)
    return {
        "words": accuracy(margin, group),
        "longer": accuracy(length, group),
        "balanced": balanced,
    }


def accuracy(margin: np.ndarray, group: np.ndarray) -> float:
    """How often margins [pair] are positive, ties one half, averaged within groups [pair] first."""
    right = (np.sign(margin) + 1) / 2
    return float(np.mean(np.bincount(group, right) / np.bincount(group)))


def word_differences(pairs: list[Pair]) -> sparse.csr_matrix:
    """Words of the chosen minus words of the rejected answer, both of length 1: [pair, word]."""
    vocabulary: dict[str, int] = {}
    rows, columns, values = [], [], []
    for i, pair in enumerate(pairs):
        for sign, answer in ((1.0, pair.chosen), (-1.0, pair.rejected)):
            words = Counter(WORD.findall(contents(answer).lower()))
            norm = sum(n * n for n in words.values()) ** 0.5
            for word, n in words.items():
                rows.append(i)
                columns.append(vocabulary.setdefault(word, len(vocabulary)))
                values.append(sign * n / norm)
    return sparse.csr_matrix(
        (values, (rows, columns)), shape=(len(pairs), max(len(vocabulary), 1)), dtype=float
    )


def logistic(x: sparse.csr_matrix, l2: float) -> np.ndarray:
    """Weights [word] that minimise sum(-log sigmoid(x w)) + l2/2 |w|²: no intercept, as swapping
    chosen and rejected must negate the margin."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        value = np.logaddexp(0, -z).sum() + l2 / 2 * w @ w
        return float(value), l2 * w - x.T @ expit(-z)

    return minimize(loss, np.zeros(x.get_shape()[1]), jac=True, method="L-BFGS-B").x


def render(report: dict[str, Any]) -> Any:
    """The report of `inspect_pairs` as something that `rich` prints."""
    from rich.console import Group
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text as Line

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()

    def add(label: str, text: str) -> None:
        facts.add_row(label, escape(visible(text)))

    answers = report["responses_per_item"]
    add("pairs", f"{report['pairs']:,} in {report['items']:,} items")
    add("answers an item", ", ".join(f"{n} ({count:,} items)" for n, count in answers.items()))
    if report["concepts"]:
        add("concepts", ", ".join(f"{c} {n}" for c, n in report["concepts"].items()))
    if report["conversational"]:
        add("chat messages", f"{report['conversational']:,} pairs")
    for reason, n in report["left_out"].items():
        add("left out", f"{n:,} {reason}")
    for note in report["notes"]:
        add("note", note)
    add("duplicates", f"{report['duplicates']:,}")
    if report["reversed"] or report["contradictory"]:
        add(
            "contradictory",
            f"{report['contradictory']:,} pairs: with others they prefer in a circle",
        )
        add("", f"{report['reversed']:,} of them are an earlier pair reversed")
    known = report["precision"]
    small = ""
    if known["all"] > COARSE:
        small = ": too few to measure on, let alone to hold some out"
    elif known["held_out"] > COARSE:
        small = f": hold out more than {HELD:.0%}, or measure on other pairs"
    add(
        "enough?",
        f"an accuracy on all items is known to ±{known['all']:.0%}, on a fifth of them to "
        f"±{known['held_out']:.0%}{small}",
    )
    if bare := report.get("bare"):
        add("the bare model", bare)
    if shared := report.get("overlap"):
        add(
            f"in common with {shared['name']}",
            f"{shared['items']:,} items, {shared['pairs']:,} pairs, {shared['prompts']:,} prompts, "
            f"{shared['answers']:,} answers",
        )
    leak = report["leakage"]
    if leak["words"] is not None:
        verdict = judged(leak["words"])
        if leak["balanced"]:
            verdict = "no leak: every answer is as often chosen as rejected"
        add("answers alone", f"their words tell the label of {leak['words']:.1%}: {verdict}")
        verdict = "no sign" if abs(leak["longer"] - 0.5) < 0.05 else "length is a clue"
        add("", f"the longer one is chosen in {leak['longer']:.1%}: {verdict}")
    parts: list[Any] = [facts]

    if tokens := report.get("tokens"):
        lengths = Table(title="length in tokens", title_justify="left", header_style="bold")
        lengths.add_column("")
        for q in QUANTILES:
            lengths.add_column(q, justify="right")
        for name in ("prompt", "chosen", "rejected", "row"):
            if name in tokens:
                lengths.add_row(name, *(f"{tokens[name][q]:,}" for q in QUANTILES))
        parts += ["", lengths]
        if tokens["too_long"] is not None:
            parts.append(
                f"{tokens['too_long']:,} rows are longer than {tokens['max_length']:,} tokens"
            )

    for i, example in enumerate(report["examples"], 1):
        body = Table.grid(padding=(0, 1))
        for name, style in (("prompt", "dim"), ("chosen", "green"), ("rejected", "red")):
            body.add_row(
                Line(name, style="bold"), Line(visible(shorten(example[name].strip())), style=style)
            )
        parts += ["", Panel(body, title=f"example {i}", title_align="left", border_style="dim")]
    return Group(Line(visible(report["name"]), style="bold underline"), "", *parts)


def judged(words: float) -> str:
    """What a leakage figure means, for someone who sees it for the first time."""
    if words < 0.55:
        return "no leak"
    return "some leak" if words < 0.75 else "prompts are hardly needed to tell"


def shorten(text: str, width: int = 400) -> str:
    """Text of at most `width` characters: its end is kept for prompts' sake, its middle cut."""
    if len(text) <= width:
        return text
    half = width // 2
    return f"{text[:half]} […] {text[-half:]}"
