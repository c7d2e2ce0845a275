"""From pairs of whole sequences to token contrasts: chat templates, suffixes, truncations."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from trimtab.batching.contrast import Contrast, Ids, Pole
from trimtab.errors import ConfigError, DataError
from trimtab.pairs import Pair, PairSet, persona_pairs
from trimtab.rendering import (
    USUAL,
    Rendering,
    begin_answer,
    common_length,
    head_text,
    ids_of,
    messages_of,
    plain_ids,
    template_of,
)
from trimtab.rendering.begin import Where as Thinking
from trimtab.rendering.begin import no_thinking

Stops = Literal["every", "last", "known"]
"""Where a pole is read: after every truncation of its suffix (one token up to all but one), at its
last token, or at the last token whose successor is known (as a loss on log-probs needs it)."""


def is_contrast(pairs: PairSet) -> bool:
    """Whether no pair has a prompt, so that the answers are whole sequences."""
    return not any(pair.prompt for pair in pairs)


def make_contrast(
    template: str,
    positive: Sequence[str],
    negative: Sequence[str],
    suffixes: Sequence[str],
    tokenizer: Any,
    *,
    stops: Stops = "every",
    thinking: Thinking = "template",
    max_length: int = 1024,
    rendering: Rendering = USUAL,
    name: str = "contrast",
) -> Contrast:
    """Personas in contrast, as token ids: what `fit` reads a direction from.

    The persona's prompt goes through the chat template, up to where the answer begins; the suffix's
    own tokens follow, as if the model had generated them. No text is tokenised twice.

    Args:
        template: what the user asks, with `{persona}` where the persona goes.
        positive: personas that have the trait.
        negative: their opposites, in the same order.
        suffixes: beginnings of answers; each is read after every truncation (see `Stops`).
        thinking: for reasoning models, where the suffix stands.
        rendering: how the chat template is run.

    Raises:
        DataError: an empty suffix, personas without their opposites, no place for the persona.
        ModelError: the tokenizer has no chat template, or the template does not take the messages.
        ConfigError: `thinking` is asked of a model that does not think.
    """
    pairs = persona_pairs(template, positive, negative, suffixes, name)
    return encode_contrast(
        pairs,
        tokenizer,
        stops=stops,
        thinking=thinking,
        max_length=max_length,
        rendering=rendering,
    )


def encode_contrast(
    pairs: PairSet,
    tokenizer: Any,
    *,
    stops: Stops = "every",
    thinking: Thinking = "template",
    max_length: int = 1024,
    rendering: Rendering = USUAL,
) -> Contrast:
    """Pairs without a prompt as a contrast.

    Where both poles end in the same assistant message, that is the suffix; it is truncated as
    `stops` says. Other poles are read once, at their last token (`known`: the last but one). Plain
    text is tokenised as it stands; where it begins with the BOS token (a template rendered before),
    none is added. Pairs whose poles are the same tokens are dropped and counted.

    Raises:
        DataError: a pair has a prompt; a pole has too few tokens; nothing fits `max_length`.
        ModelError, ConfigError: as `make_contrast`.
    """
    numbers: dict[Ids, int] = {}
    chosen: list[Pole] = []
    rejected: list[Pole] = []
    items: list[str] = []
    notes: Counter[str] = Counter()
    dropped = apart = same = 0
    for pair in pairs:
        if pair.prompt:
            raise DataError(
                f"{pair.source or pairs.name}: a contrast has no prompt, this pair does"
            )
        (head, tail), (other_head, other_tail) = (
            _pole(pair, pole, tokenizer, thinking, rendering, notes)
            for pole in (pair.chosen, pair.rejected)
        )
        lengths = _lengths(tail, other_tail, stops)
        whole, other = head + tail, other_head + other_tail
        if whole == other:
            same += 1
            continue
        if max(len(whole), len(other)) > max_length:
            dropped += 1
            continue
        apart += _far_apart(head or whole, other_head or other)
        for short in lengths:
            for ids, poles in ((whole, chosen), (other, rejected)):
                stop = len(ids) - short
                if stop < 1:
                    raise DataError(
                        f"{pair.source or pairs.name}: a pole has too few tokens to read"
                    )
                poles.append((numbers.setdefault(ids, len(numbers)), stop))
            items.append(pair.item)
    if not items and same == len(pairs):
        raise DataError(
            f"{pairs.name}: in all {same} pairs both poles are the same tokens: nothing to tell apart"
        )
    if not items:
        raise DataError(
            f"{pairs.name}: all {len(pairs)} pairs are longer than max_length={max_length} tokens; "
            "raise --max-length"
        )
    if apart:
        warnings.warn(
            f"{pairs.name}: in {apart} of {len(pairs)} pairs the poles differ in most of their "
            "tokens, not in the persona alone: the direction will hold all of that",
            stacklevel=2,
        )
    return Contrast(
        tuple(numbers),
        tuple(chosen),
        tuple(rejected),
        tuple(items),
        dropped,
        pairs.name,
        identical_pairs=same,
        notes=tuple(f"{count} poles: {note}" for note, count in sorted(notes.items())),
        read_as="chat" if all(pair.conversational for pair in pairs) else "plain",
    )


def _lengths(tail: Ids, other: Ids, stops: Stops) -> Sequence[int]:
    """How many tokens before its end each reading of a pole is."""
    if stops == "last":
        return [0]
    if stops == "known" or not tail or tail != other:
        return [1 if stops == "known" else 0]
    return range(len(tail) - 1, 0, -1) if len(tail) > 1 else [0]


def _pole(
    pair: Pair,
    pole: Any,
    tokenizer: Any,
    thinking: Thinking,
    rendering: Rendering,
    notes: Counter[str],
) -> tuple[Ids, Ids]:
    """Ids up to where the suffix begins, and of the suffix."""
    if isinstance(pole, str):
        if thinking != "template":
            raise ConfigError(f"thinking={thinking!r}: expected chat messages, given plain text")
        ids = plain_ids(pole, tokenizer)
        if not ids:
            raise DataError("a pole has no tokens")
        return (), ids
    template = template_of(tokenizer, rendering, pair.chat_template_kwargs, pair.tools)
    answered = pole[-1]["role"] == "assistant"
    turns, suffix = (pole[:-1], pole[-1]["content"]) if answered else (pole, "")
    head, said = head_text(
        template, messages_of(tuple(turns), pair.system), pair.source, opened=answered
    )
    notes.update(said)
    if not answered and thinking != "template":
        raise no_thinking(thinking)
    between = begin_answer(template, head, thinking) if answered else ""
    ids = (*ids_of(head, tokenizer), *(ids_of(between, tokenizer) if between else ()))
    return ids, ids_of(suffix, tokenizer) if suffix else ()


def _far_apart(a: Ids, b: Ids) -> bool:
    """Whether two sequences differ in more than half of the longer one."""
    start = common_length(a, b)
    end = common_length(a[start:][::-1], b[start:][::-1])
    return 2 * (start + end) < max(len(a), len(b))
