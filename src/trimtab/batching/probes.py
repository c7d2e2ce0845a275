"""The rows that a layout is tried on: a few of those at hand, the shortest and the longest among them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from trimtab.batching import masks
from trimtab.batching.contrast import Contrast
from trimtab.batching.tokens import Encoded, Row
from trimtab.models import text_config

MOST = 4
"""Rows that are tried."""
PASSES = 6
"""How often a tried row is computed, more or less: alone, packed, behind masks that leak, shared."""
SECONDS = 10
"""What a proof may cost, or a tenth of the pass it is for."""
RATE = {"cpu": 1e11, "cuda": 5e13}
"""Operations a second that are counted on. A proof must not depend on a clock: the same rows are to be
read in the same way, whatever else the machine is doing."""
SHORT = 6
"""An answer of fewer tokens hardly shows whether it sees another."""


def rows_of(rows: Encoded | Contrast) -> list[Row]:
    """The rows of an encoded set; the sequences of a contrast as rows, of which the second half is
    the answer."""
    if isinstance(rows, Encoded):
        return list(rows.rows)
    half = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in rows.sequences]
    return [Row("", prompt, (answer,), (), ()) for prompt, answer in half]


def random_rows(model: nn.Module) -> list[Row]:
    """Two rows of random tokens, one longer than the smallest window, for a model without data."""
    config, draw = text_config(model), random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(min(config.vocab_size, 1000)) for _ in range(n))

    n_prompt = (masks.sliding_window(config) or 0) + 9
    limit = getattr(config, "max_position_embeddings", None)
    if limit and n_prompt + 8 > limit:
        n_prompt = max(1, min(9, limit - 8))  # no sequence outruns this window
    return [
        Row("", ids(n), tuple(ids(7) for _ in range(3)), ((0, 1),), (0,)) for n in (n_prompt, 5)
    ]


def choose(rows: Sequence[Row], most: float) -> tuple[list[Row], int]:
    """Rows to try for at most so many computed positions, and up to which length they speak: that of
    the longest that can be afforded. The shortest, the longest, the widest when packed, and the one in
    the middle."""
    order = sorted(rows, key=lambda row: (row.longest, row.packed_length, row.prompt, row.answers))
    tried = [_ready(order[0], order)]
    cost = _cost(tried[0])
    fits = [row for row in order if cost + _cost(row) <= most]
    if not fits:
        return [], 0
    for row in (fits[-1], max(fits, key=lambda row: row.packed_length), fits[len(fits) // 2]):
        row = _ready(row, order)
        if row not in tried and (len(tried) == 1 or cost + _cost(row) <= most):
            tried.append(row)
            cost += _cost(row)
    return tried, fits[-1].longest


def affordable(model: nn.Module, rows: Sequence[Row]) -> float:
    """Positions that a proof may compute: a tenth of the rows', or what takes ten seconds."""
    weights = sum(p.numel() for p in model.parameters())
    rate = RATE.get(next(model.parameters()).device.type, RATE["cpu"])
    tenth = sum(row.packed_length for row in rows) / 10
    return max(tenth, SECONDS * rate / (2 * weights))


def cuts(model: nn.Module, rows: Sequence[Row]) -> list[int]:
    """Lengths among these rows' at which the model's config may change what it computes."""
    low, high = (pick(row.longest for row in rows) for pick in (min, max))
    return [n for n in thresholds(model) if low <= n < high]


def thresholds(model: nn.Module) -> list[int]:
    """Lengths at which the model's config may change what it computes, in order: windows, chunks, blocks
    of an indexer, original context lengths of a scaled RoPE."""
    named = set(_lengths(text_config(model).to_dict()))
    return sorted(named | {a * b for a in named for b in named})


_LENGTH = re.compile(
    r"^(?!.*layer).*(window|chunk|block|position|original|context|local|topk|top_k|budget|n_ctx)"
)


_WINDOW = re.compile(r"window|chunk")


def windows(model: nn.Module) -> list[int]:
    """The lengths that the model's config names as windows or chunks, in order."""
    return sorted(set(_lengths(text_config(model).to_dict(), _WINDOW)))


def _lengths(
    config: Any, pattern: re.Pattern[str] = _LENGTH, inside: bool = False
) -> Iterator[int]:
    """Whole numbers above 1 that a config names as lengths, at any depth."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        named = inside or bool(pattern.search(str(key)))
        if isinstance(value, dict | list | tuple):
            yield from _lengths(value, pattern, named and not isinstance(value, dict))
        elif named and isinstance(value, int) and value > 1:
            yield value


def _ready(row: Row, others: Sequence[Row]) -> Row:
    """A row with two answers or three that are long enough to show what they see. Its tokens stay what
    they are: the prompt's end becomes the answers' beginning where these are short, and an only answer
    is given another row's for company."""
    answers = sorted(set(row.answers), key=len)
    answers = [*answers[:1], *answers[-2:]] if len(answers) > 3 else answers
    if len(answers) == 1:
        (only,) = answers
        pool = [a for other in others for a in other.answers if a[: len(only)] != only]
        mate = pool[len(pool) // 2] if pool else tuple(reversed(row.prompt + only))
        answers.append(mate[: len(only)])
    short = SHORT - len(answers[-1])
    prompt = row.prompt
    if short > 0 and len(prompt) > 2 * short:
        answers = [prompt[-short:] + answer for answer in answers]
        prompt = prompt[:-short]
    return Row("", prompt, tuple(answers), ((0, 1),), (0,))


def _cost(row: Row) -> int:
    return PASSES * row.longest * min(3, max(2, len(row.answers)))


def encoded(rows: Sequence[Row]) -> Encoded:
    """Rows as a set."""
    return Encoded(tuple(rows), 0, None, "proof")


def changed(row: Row) -> Row:
    """A row that parts from this one after a quarter of its prompt, with its first answer alone."""
    at = len(row.prompt) // 4
    other = next((t for t in row.prompt[at:] if t != row.prompt[at]), row.answers[0][0])
    prompt = (*row.prompt[:at], other, *row.prompt[at + 1 :])
    return replace(row, prompt=prompt, answers=row.answers[:1], turns=())


def widest(rows: Sequence[Row], tried: Sequence[Row]) -> Row | None:
    """The row of most packed positions, where those that are tried have fewer."""
    row = max(rows, key=lambda row: row.packed_length)
    return row if row.packed_length > max(r.packed_length for r in tried) else None
