"""Pairs as token ids: one row a prompt, with all the answers that an item has to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.errors import DataError, ModelError
from trimtab.pairs import Pair, PairSet
from trimtab.pairs.pair import Text

PromptStyle = Literal["plain", "chat"]


@dataclass(frozen=True)
class Row:
    """One prompt and its answers, as token ids.

    Attributes:
        item: the item that the row was cut from.
        prompt: ids shared by all answers (may be empty).
        answers: ids of each distinct answer, EOS included.
        pairs: for each pair, the indices of its chosen and rejected answer.
        pair_ids: for each pair, its index in the pair set that was encoded.
    """

    item: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    pair_ids: tuple[int, ...]

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
        eos: the id that ends an answer; None where the tokenizer has none.
        name: the pair set's name.
    """

    rows: tuple[Row, ...]
    dropped_pairs: int
    eos: int | None
    name: str
    answer_offsets: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        offsets, total = [], 0
        for row in self.rows:
            offsets.append(total)
            total += len(row.answers)
        object.__setattr__(self, "answer_offsets", (*offsets, total))

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

    @property
    def digest(self) -> str:
        """sha256 over the token ids: what a forward pass depends on."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(repr((row.prompt, row.answers)).encode())
        return sha.hexdigest()


def encode(
    pairs: PairSet,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
) -> Encoded:
    """Tokenise pairs into rows that share their prompt.

    The answer starts where the ids of the prompt and of prompt + answer part (TRL's rule); over
    the answers of one row the earliest such place counts. Plain answers end with EOS, chat ones as
    the template ends them. A pair of which an answer exceeds `max_length` tokens together with the
    prompt is dropped and counted, never cut.

    Args:
        prompt_style: `chat` wraps a plain prompt as a user message in the chat template.

    Raises:
        DataError: nothing is left, or an answer has no tokens.
        ModelError: a chat template is needed and the tokenizer has none.
    """
    style = _chat(tokenizer) if prompt_style == "chat" else None
    groups: dict[tuple[str, str], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault((pair.item, repr(pair.prompt)), []).append(index)
    rows: list[Row] = []
    dropped = 0
    for (item, _), indices in groups.items():
        row, lost = _row(item, indices, pairs, tokenizer, max_length, style)
        dropped += lost
        if row is not None:
            rows.append(row)
    if not rows:
        raise DataError(
            f"{pairs.name}: all {len(pairs)} pairs are longer than max_length={max_length} tokens; "
            "raise --max-length"
        )
    return Encoded(tuple(rows), dropped, tokenizer.eos_token_id, pairs.name)


def encode_answers(
    prompt: Text,
    answers: Sequence[Text],
    tokenizer: Any,
    *,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
) -> Encoded:
    """One row of answers to one prompt, none better than another: to be scored in one pass. Answers
    that are the same keep their places.

    Raises:
        DataError: no answer, an empty or over-long one, or one without tokens of its own.
        ModelError: as `encode`.
    """
    style = _chat(tokenizer) if prompt_style == "chat" else None
    prompt_ids: list[int] = []
    full: list[list[int]] = []
    for number, answer in enumerate(answers, 1):
        if not (answer.strip() if isinstance(answer, str) else answer):
            raise DataError(f"answer {number} is empty")
        prompt_ids, ids = _tokenize(Pair(prompt, answer, answer, ""), answer, tokenizer, style)
        if len(ids) > max_length:
            raise DataError(
                f"answer {number} and its prompt have {len(ids)} tokens, over {max_length}"
            )
        full.append(ids)
    if not full:
        raise DataError("no answers to score")
    shared = min(common_length(prompt_ids, ids) for ids in full)
    cut = tuple(tuple(ids[shared:]) for ids in full)
    if empty := [n for n, ids in enumerate(cut, 1) if not ids]:
        raise DataError(f"answer {empty[0]} has no tokens of its own")
    row = Row("answers", tuple(prompt_ids[:shared]), cut, (), ())
    return Encoded((row,), 0, tokenizer.eos_token_id, "answers")


def _row(
    item: str, indices: list[int], pairs: PairSet, tokenizer: Any, max_length: int, style: Any
) -> tuple[Row | None, int]:
    """One row of the pairs that fit, and how many did not."""
    texts: dict[str, int] = {}
    full: list[list[int]] = []
    prompt_ids: list[int] = []
    cut: list[tuple[int, int, int]] = []
    for index in indices:
        pair = pairs[index]
        ends = []
        for answer in (pair.chosen, pair.rejected):
            key = repr(answer)
            if key not in texts:
                prompt_ids, ids = _tokenize(pair, answer, tokenizer, style)
                texts[key] = len(full)
                full.append(ids)
            ends.append(texts[key])
        cut.append((ends[0], ends[1], index))
    kept = [(c, r, i) for c, r, i in cut if max(len(full[c]), len(full[r])) <= max_length]
    if not kept:
        return None, len(cut)
    used = sorted({a for c, r, _ in kept for a in (c, r)})
    shared = min(common_length(prompt_ids, full[a]) for a in used)
    answers = tuple(tuple(full[a][shared:]) for a in used)
    if any(not answer for answer in answers):
        raise DataError(
            f"{pairs[indices[0]].source or pairs.name}: an answer has no tokens of its own"
        )
    if not shared and any(len(answer) < 2 for answer in answers):
        raise DataError(
            f"{pairs[indices[0]].source or pairs.name}: an answer of one token to an empty prompt: "
            "nothing predicts it"
        )
    place = {a: n for n, a in enumerate(used)}
    return Row(
        item,
        tuple(prompt_ids[:shared]),
        answers,
        tuple((place[c], place[r]) for c, r, _ in kept),
        tuple(i for _, _, i in kept),
    ), len(cut) - len(kept)


def _tokenize(pair: Pair, answer: Any, tokenizer: Any, style: Any) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of prompt + answer."""
    prompt = pair.prompt
    if isinstance(answer, str) and style is None:
        if not isinstance(prompt, str):
            raise DataError(
                f"{pair.source}: the prompt is chat messages, the answers are plain text"
            )
        eos = tokenizer.eos_token or ""
        text = prompt + answer
        if eos and not text.endswith(eos):
            text += eos
        return tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
    chat = style or _chat(tokenizer)
    turns = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str) and prompt
        else list(prompt or ())
    )
    reply = (
        [{"role": "assistant", "content": answer.strip()}]
        if isinstance(answer, str)
        else list(answer)
    )
    return chat(turns, True) if turns else [], chat([*turns, *reply], False)  # type: ignore[list-item]


def _chat(tokenizer: Any) -> Any:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the pairs are chat messages (or --prompt-style chat), "
            "and the tokenizer has no chat template"
        )

    def render(messages: list[Any], generation_prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False
        )

    return render


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
