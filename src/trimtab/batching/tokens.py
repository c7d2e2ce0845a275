"""Pairs as token ids: one row a prompt, with all the answers that an item has to it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import DataError
from trimtab.pairs import Pair, PairSet
from trimtab.pairs.pair import Text
from trimtab.rendering import (
    USUAL,
    PromptStyle,
    Rendered,
    Rendering,
    Turn,
    by_eos,
    common_length,
    render_answer,
)


@dataclass(frozen=True)
class Row:
    """One prompt and its answers, as token ids.

    Attributes:
        item: the item that the row was cut from.
        prompt: ids shared by all answers (may be empty).
        answers: ids of each distinct answer, what ends it included.
        pairs: for each pair, the indices of its chosen and rejected answer.
        pair_ids: for each pair, its index in the pair set that was encoded.
        turns: for each answer its turns, as places in it: what is scored, pooled, and the marker. Left
            out, an encoded set takes the whole answer, which its last EOS ends.
    """

    item: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    pair_ids: tuple[int, ...]
    turns: tuple[tuple[Turn, ...], ...] = ()

    @property
    def packed_length(self) -> int:
        """Positions of the packed row."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt + answer: what the context and `max_length` limit."""
        return len(self.prompt) + max(map(len, self.answers))


@dataclass(frozen=True)
class Encoded:
    """A pair set as token rows.

    Attributes:
        rows: in order of first appearance.
        dropped_pairs: pairs left out because a whole answer did not fit `max_length`.
        eos: the id that ends the answers of rows that do not say what their turns are.
        name: the pair set's name.
        identical_pairs: pairs left out because both answers are the same tokens.
        notes: what else is to be said of how the pairs were rendered.
    """

    rows: tuple[Row, ...]
    dropped_pairs: int
    eos: int | None
    name: str
    identical_pairs: int = 0
    notes: tuple[str, ...] = ()
    answer_offsets: tuple[int, ...] = field(init=False)
    places: tuple[int, ...] = field(init=False)
    """Where each packed row begins among the tokens of all, and how many there are."""

    def __post_init__(self) -> None:
        offsets, total, places = [], 0, [0]
        rows = tuple(
            row
            if row.turns
            else replace(row, turns=tuple(by_eos(a, self.eos) for a in row.answers))
            for row in self.rows
        )
        object.__setattr__(self, "rows", rows)
        for row in rows:
            offsets.append(total)
            total += len(row.answers)
            places.append(places[-1] + row.packed_length)
        object.__setattr__(self, "places", tuple(places))
        object.__setattr__(self, "answer_offsets", (*offsets, total))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer with its prompt."""
        return [len(row.prompt) + len(answer) for row in self.rows for answer in row.answers]

    @property
    def n_answers(self) -> int:
        """Distinct answers over all rows: the length of every cached per-answer value."""
        return self.answer_offsets[-1]

    @property
    def n_pairs(self) -> int:
        """Pairs that were kept."""
        return sum(len(row.pairs) for row in self.rows)

    @property
    def n_items(self) -> int:
        """Items of which at least one pair was kept."""
        return len({row.item for row in self.rows})

    def pair_answers(self) -> tuple[Tensor, Tensor]:
        """For every pair, in row order, the index of its chosen and rejected answer."""
        rows = zip(self.answer_offsets, self.rows, strict=False)
        pairs = [(first + c, first + r) for first, row in rows for c, r in row.pairs]
        return torch.tensor([c for c, _ in pairs]), torch.tensor([r for _, r in pairs])

    @property
    def digest(self) -> str:
        """sha256 over the token ids, and over the turns where they are not what EOS makes of the
        answers: what readings depend on."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(repr((row.prompt, row.answers)).encode())
            if row.turns != tuple(by_eos(a, self.eos) for a in row.answers):
                sha.update(repr([[tuple(t) for t in turns] for turns in row.turns]).encode())
        return sha.hexdigest()


def encode(
    pairs: PairSet,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
) -> Encoded:
    """Tokenise pairs into rows that share their prompt.

    The answer starts where the ids of the prompt and of prompt + answer part (TRL's rule); over
    the answers of one row the earliest such place counts. Plain answers end with EOS, chat ones as
    the template ends them, those of open pairs do not end. A pair of which an answer exceeds
    `max_length` tokens together with the prompt is dropped and counted, never cut; so is one whose
    answers are the same tokens.

    Args:
        prompt_style: `chat` wraps a plain prompt as a user message in the chat template.
        rendering: how the chat template is run.

    Raises:
        DataError: nothing is left, an answer has no tokens, or the chat template leaves out or alters
            a message.
        ModelError: a chat template is needed and the tokenizer has none, or it does not take the
            messages.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault((pair.item, repr(pair.prompt), pair.setting), []).append(index)
    rows: list[Row] = []
    over_long = same = 0
    notes: Counter[str] = Counter()
    for (item, *_), indices in groups.items():
        row, longer, identical = _row(
            item, indices, pairs, tokenizer, max_length, prompt_style, rendering, notes
        )
        over_long, same = over_long + longer, same + identical
        if row is not None:
            rows.append(row)
    if not rows and same == len(pairs):
        raise DataError(
            f"{pairs.name}: in all {same} pairs both answers are the same tokens (blanks at an "
            "answer's ends and reasoning are left out by some chat templates): nothing to tell apart"
        )
    if not rows:
        also = f", the other {same} have the same tokens twice" if same else ""
        raise DataError(
            f"{pairs.name}: {'all ' if not same else ''}{over_long} pairs are longer than "
            f"max_length={max_length} tokens{also}; raise --max-length"
        )
    said = tuple(f"{count} answers: {note}" for note, count in sorted(notes.items()))
    return Encoded(
        tuple(rows), over_long, tokenizer.eos_token_id, pairs.name, identical_pairs=same, notes=said
    )


def encode_answers(
    prompt: Text,
    answers: Sequence[Text],
    tokenizer: Any,
    *,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
) -> Encoded:
    """One row of answers to one prompt, none better than another: to be scored in one pass. Answers
    that are the same keep their places.

    Raises:
        DataError: no answer, an empty or over-long one, or one without tokens of its own.
        ModelError: as `encode`.
    """
    found: list[Rendered] = []
    for number, answer in enumerate(answers, 1):
        if not (answer.strip() if isinstance(answer, str) else answer):
            raise DataError(f"answer {number} is empty")
        one = render_answer(
            prompt, answer, tokenizer, prompt_style, rendering=rendering, where=f"answer {number}"
        )
        if len(one.ids) > max_length:
            raise DataError(
                f"answer {number} and its prompt have {len(one.ids)} tokens, over {max_length}"
            )
        found.append(one)
    if not found:
        raise DataError("no answers to score")
    shared, cut, turns = _cut(found)
    if empty := [n for n, ids in enumerate(cut, 1) if not ids]:
        raise DataError(f"answer {empty[0]} has no tokens of its own")
    row = Row("answers", found[0].prompt[:shared], cut, (), (), turns)
    said = tuple(sorted(set().union(*(one.notes for one in found))))
    return Encoded((row,), 0, tokenizer.eos_token_id, "answers", notes=said)


def _row(
    item: str,
    indices: list[int],
    pairs: PairSet,
    tokenizer: Any,
    max_length: int,
    style: PromptStyle,
    rendering: Rendering,
    notes: Counter[str],
) -> tuple[Row | None, int, int]:
    """One row of the pairs that fit; how many are too long, and how many the same tokens twice."""
    texts: dict[str, int] = {}
    numbers: dict[tuple[int, ...], int] = {}
    found: list[Rendered] = []

    def number(pair: Pair, answer: Text) -> int:
        key = repr(answer)
        if key not in texts:
            one = render_answer(
                pair.prompt,
                answer,
                tokenizer,
                style,
                rendering=rendering,
                system=pair.system,
                tools=pair.tools,
                template_kwargs=pair.chat_template_kwargs,
                where=pair.source or pairs.name,
            )
            notes.update(one.notes)
            one = one.opened() if pair.open else one
            texts[key] = numbers.setdefault(one.ids, len(found))
            if texts[key] == len(found):
                found.append(one)
        return texts[key]

    cut = [
        (number(pairs[i], pairs[i].chosen), number(pairs[i], pairs[i].rejected), i) for i in indices
    ]
    apart = [(c, r, i) for c, r, i in cut if c != r]
    kept = [
        (c, r, i) for c, r, i in apart if max(len(found[c].ids), len(found[r].ids)) <= max_length
    ]
    lost = len(apart) - len(kept), len(cut) - len(apart)
    if not kept:
        return None, *lost
    used = sorted({a for c, r, _ in kept for a in (c, r)})
    shared, answers, turns = _cut([found[a] for a in used])
    where = pairs[indices[0]].source or pairs.name
    if any(not answer for answer in answers):
        raise DataError(f"{where}: an answer has no tokens of its own")
    if not shared and any(each[-1].stop < 2 for each in turns):
        raise DataError(f"{where}: an answer of one token to an empty prompt: nothing predicts it")
    place = {a: n for n, a in enumerate(used)}
    return (
        Row(
            item,
            found[used[0]].prompt[:shared],
            answers,
            tuple((place[c], place[r]) for c, r, _ in kept),
            tuple(i for _, _, i in kept),
            turns,
        ),
        *lost,
    )


def _cut(
    found: Sequence[Rendered],
) -> tuple[int, tuple[tuple[int, ...], ...], tuple[tuple[Turn, ...], ...]]:
    """How many tokens the prompt of a row has, its answers from there on, and their turns. What one
    prompt's answers have in common is not scored twice: the earliest place where one begins counts
    for all."""
    prompt = found[0].prompt
    shared = min(
        min(common_length(prompt, one.ids), common_length(one.prompt, one.ids)) for one in found
    )
    one_prompt = all(one.prompt == prompt for one in found)
    turns = []
    for one in found:
        first, *others = (turn.moved(shared) for turn in one.turns)
        if one_prompt:
            first = first._replace(
                start=0, content=0 if first.content == first.start else first.content
            )
        turns.append((first, *others))
    return shared, tuple(one.ids[shared:] for one in found), tuple(turns)
