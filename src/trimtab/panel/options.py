"""Log-probs of an item's options: what all properties but those of texts are read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from trimtab.batching import Encoded, PromptStyle, encode
from trimtab.dials import Dial
from trimtab.errors import DataError
from trimtab.evaluation.items import logps_of
from trimtab.evaluation.scores import read_at
from trimtab.pairs import Pair, PairSet
from trimtab.rendering import USUAL, Rendering
from trimtab.store import Store


@dataclass(frozen=True)
class Options:
    """A question with K answers, the right one (or the first) at place 0."""

    item: str
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Log-probs of options by item.

    Attributes:
        items: names of those that could be scored.
        sums: summed log-prob of each option, a vector an item.
        means: the same a token.
        left_out: items that are too long, or of which two options are the same tokens.
    """

    items: tuple[str, ...]
    sums: tuple[Float[np.ndarray, " options"], ...]
    means: tuple[Float[np.ndarray, " options"], ...]
    left_out: int


class Asked:
    """Options as tokens, read on the bare model once and on every dial anew."""

    def __init__(
        self,
        options: Sequence[Options],
        name: str,
        tokenizer: Any,
        *,
        openings: bool = False,
        max_length: int = 1024,
        prompt_style: PromptStyle = "plain",
        rendering: Rendering = USUAL,
    ):
        """
        Args:
            openings: the answers go on: what ends an answer is not scored.

        Raises:
            DataError: no items, or none that fits.
        """
        if not options:
            raise DataError(f"{name}: no items")
        self.options = {o.item: len(o.answers) for o in options}
        self.name = name
        self.encoded: Encoded = encode(
            PairSet(pairs_of(options, name, openings), name),
            tokenizer,
            max_length=max_length,
            prompt_style=prompt_style,
            rendering=rendering,
        )

    def scored(
        self,
        model: nn.Module,
        dial: Dial | None = None,
        alpha: float = 0.0,
        *,
        store: Store | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """Log-probs with the dial at `alpha`; the bare model's come from the store."""
        encoded = self.encoded
        found = read_at(model, encoded, dial, alpha, store=store, progress=progress)
        sums, means = logps_of(found)
        kept: list[tuple[str, np.ndarray]] = []
        for start, row in zip(encoded.answer_offsets, encoded.rows, strict=False):
            if len(row.answers) == self.options[row.item] == len(row.pairs) + 1:
                place = [row.pairs[0][0], *(r for _, r in row.pairs)]
                kept.append((row.item, start + np.array(place)))
        if not kept:
            raise DataError(f"{self.name}: no item of which every option can be told apart")
        return Scored(
            tuple(item for item, _ in kept),
            tuple(sums[at] for _, at in kept),
            tuple(means[at] for _, at in kept),
            len(self.options) - len(kept),
        )


def pairs_of(options: Sequence[Options], name: str, openings: bool = False) -> list[Pair]:
    """The first answer of each beside every other one."""
    return [
        Pair(o.prompt, o.answers[0], other, o.item, source=f"{name} ({o.item})", open=openings)
        for o in options
        for other in o.answers[1:]
    ]
