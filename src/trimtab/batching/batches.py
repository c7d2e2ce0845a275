"""Rows as tensors, packed or padded, and the cutting of a data set into batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from trimtab.batching.layouts import Arrangement, BatchLayout, Layout, layout_of_rows
from trimtab.batching.tokens import Encoded, Row
from trimtab.rendering import common_length

SHARED_LEAST = 64
"""Positions that sharing a prefix has to save, or else it is not worth its pass."""
WIDEST = 256
"""Lines of several rows are no wider."""
ATTENTION = 600
"""The width at which attention costs as much as all else (SmolLM2; larger models have a larger)."""


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. B lines of T positions, C answers, M scored tokens, P pairs.

    A *scored* token is an answer token with a predecessor in its row, of a turn that is the answer's
    own. The flat `token_*` tensors name each: where it stands, who predicts it, which answer it
    belongs to.
    """

    layout: BatchLayout
    input_ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]  # -1 padding, 0 prompt, 1.. answers
    members: Int[Tensor, "B T"]  # which row of the line
    token_row: Int[Tensor, "M"]  # line
    token_at: Int[Tensor, "M"]  # index of the token in its line
    token_from: Int[Tensor, "M"]  # index of the token that predicts it; itself where none does
    token_id: Int[Tensor, "M"]
    token_answer: Int[Tensor, "M"]  # 0..C-1
    token_scored: Bool[Tensor, "M"]
    token_body: Bool[Tensor, "M"]  # an answer's content, without what the template puts around it
    token_marker: Bool[Tensor, "M"]  # the token that ends the answer
    answer_ids: Int[Tensor, "C"]  # index over the whole encoded set, for cached values
    pair_chosen: Int[Tensor, "P"]  # 0..C-1
    pair_rejected: Int[Tensor, "P"]
    pair_ids: Int[Tensor, "P"]  # index in the pair set
    items: tuple[str, ...]  # of each answer, for error messages
    prefix: Int[Tensor, "S"] | None = None  # ids before every row, computed once: positions 0..S-1
    places: Int[Tensor, "B T"] | None = (
        None  # of each token among those of all packed rows, -1 padding
    )
    ends: Int[Tensor, "B T"] | None = None  # of tree rows: one past a token's last descendant

    @property
    def n_answers(self) -> int:
        """C."""
        return len(self.answer_ids)

    def line(self, n: int) -> Batch:
        """One line as a batch of its own, without padding: its answers are numbered anew, and belong
        to no pair."""
        width = int((self.segments[n] >= 0).sum())
        grid = {
            k: getattr(self, k)[n : n + 1, :width]
            for k in ("input_ids", "positions", "segments", "members", "ends", "places")
            if getattr(self, k) is not None
        }
        mine = self.token_row == n
        answers, numbers = self.token_answer[mine].unique(return_inverse=True)
        tokens = {k: v[mine] for k, v in vars(self).items() if k.startswith("token_")}
        none = self.pair_ids[:0]
        return replace(
            self,
            **grid,
            **{**tokens, "token_row": torch.zeros_like(numbers), "token_answer": numbers},
            answer_ids=self.answer_ids[answers],
            pair_chosen=none,
            pair_rejected=none,
            pair_ids=none,
            items=tuple(self.items[i] for i in answers.tolist()),
        )

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        """The same batch on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(
    encoded: Encoded,
    rows: Sequence[int],
    layout: Layout = "packed",
    *,
    share_least: int = SHARED_LEAST,
    one_line: bool = False,
    multiple: int = 1,
) -> Batch:
    """Rows of an encoded set, by index, as one batch. Padding is on the right and costs nothing
    but its positions; ids at padding are 0. In layout `shared` a common prefix is taken out where
    that saves at least `share_least` positions; with `one_line` all rows lie in one line. Lines are
    padded to a `multiple` of positions."""
    layout = layout_of_rows(layout, [encoded.rows[i] for i in rows])
    shared = common_prefix([encoded.rows[i] for i in rows]) if layout == "shared" else 0
    shared = shared if shared * (len(rows) - 1) >= share_least else 0
    # (id, position, segment, member, place) of each token
    lines: list[list[tuple[int, int, int, int, int]]] = []
    token: dict[str, list[Any]] = {
        k: [] for k in ("row", "at", "from", "id", "answer", "scored", "body", "marker")
    }
    answer_ids, chosen, rejected, pair_ids, items = [], [], [], [], []
    single = by_answer(layout)
    groups = [[n] for n in range(len(rows))]
    if one_line and layout == "shared":
        groups = [list(range(len(rows)))]
    elif layout == "shared":
        groups = lines_of([encoded.rows[i].packed_length - shared for i in rows])
    for group in groups:
        line: list[tuple[int, int, int, int, int]] = []
        for member, index in enumerate(rows[n] for n in group):
            row = encoded.rows[index]
            first = len(answer_ids)
            n_prompt = len(row.prompt) - shared
            place = encoded.places[index] + shared
            prompt = [
                (t, shared + p, 0, member, place + p) for p, t in enumerate(row.prompt[shared:])
            ]
            line += prompt
            place += n_prompt
            start = len(line)  # of the answers
            for number, answer in enumerate(row.answers):
                if single and number:
                    lines.append(line)
                    line = list(prompt)
                turns = row.turns[number]
                body = {n for turn in turns for n in range(turn.content, turn.end)}
                scored = {n for turn in turns for n in range(turn.start, turn.stop)}
                segment = 1 if single else number + 1
                for offset, t in enumerate(answer):
                    at = len(line)
                    previous = at - 1 if offset else start - 1 if n_prompt else -1
                    token["row"].append(len(lines))
                    token["at"].append(at)
                    token["from"].append(previous if previous >= 0 else at)
                    token["id"].append(t)
                    token["answer"].append(first + number)
                    token["scored"].append(previous >= 0 and offset in scored)
                    token["body"].append(offset in body)
                    token["marker"].append(offset == turns[-1].marker)
                    line.append((t, shared + n_prompt + offset, segment, member, place + offset))
                place += len(answer)
            offset = encoded.answer_offsets[index]
            answer_ids += range(offset, offset + len(row.answers))
            items += [row.item] * len(row.answers)
            chosen += [first + c for c, _ in row.pairs]
            rejected += [first + r for _, r in row.pairs]
            pair_ids += row.pair_ids
        lines.append(line)
    width = -(-max(map(len, lines)) // multiple) * multiple
    pad = [(0, 0, -1, -1, -1)]
    grid = torch.tensor([line + pad * (width - len(line)) for line in lines])  # B T 5
    ints = {
        k: torch.tensor(v, dtype=torch.long)
        for k, v in token.items()
        if k not in ("scored", "body", "marker")
    }
    return Batch(
        layout=layout,
        input_ids=grid[..., 0].contiguous(),
        positions=grid[..., 1].contiguous(),
        segments=grid[..., 2].contiguous(),
        members=grid[..., 3].contiguous(),
        places=grid[..., 4].contiguous(),
        **{f"token_{k}": v for k, v in ints.items()},
        token_scored=torch.tensor(token["scored"], dtype=torch.bool),
        token_body=torch.tensor(token["body"], dtype=torch.bool),
        token_marker=torch.tensor(token["marker"], dtype=torch.bool),
        answer_ids=torch.tensor(answer_ids),
        pair_chosen=torch.tensor(chosen),
        pair_rejected=torch.tensor(rejected),
        pair_ids=torch.tensor(pair_ids),
        items=tuple(items),
        prefix=torch.tensor(encoded.rows[rows[0]].prompt[:shared]) if shared else None,
    )


def common_prefix(rows: Sequence[Row]) -> int:
    """Length of the longest prefix of all prompts that leaves each a token to predict its answers."""
    prompts = [row.prompt for row in rows]
    common = common_length(min(prompts), max(prompts))  # in order, all others lie between these
    return max(0, min(common, min(map(len, prompts)) - 1))


def trimmed(encoded: Encoded, layout: Layout) -> tuple[Row, ...]:
    """Rows as long as they are computed: for planning."""
    common = common_prefix(encoded.rows) if layout == "shared" else 0
    if not common:
        return encoded.rows
    return tuple(replace(row, prompt=row.prompt[common:]) for row in encoded.rows)


Over = Literal["answer", "last_turn", "all"]
"""Tokens that a reward reads: the answer's, those of its last turn, or the prompt's too."""


@dataclass(frozen=True)
class Spans:
    """Which of an answer's tokens are read, as places in the answer (`all`: in prompt and answer).
    What a chat template puts before the content or behind the marker belongs to none."""

    start: Int[Tensor, "answer"]
    end: Int[Tensor, "answer"]
    """Past the last, the marker included."""
    marker: Int[Tensor, "answer"]
    """The token that ends the answer; `end` where there is none."""


def answer_spans(encoded: Encoded, over: Over = "answer") -> Spans:
    """Spans of all answers of an encoded set: from the content of the first turn, or of the last."""
    found: list[tuple[int, int, int]] = []
    for row in encoded.rows:
        before = len(row.prompt) if over == "all" else 0
        for turns in row.turns:
            start = 0 if over == "all" else turns[-1 if over == "last_turn" else 0].content
            found.append((start, before + turns[-1].trail, before + turns[-1].marker))
    return Spans(*torch.tensor(found).T)


def row_length(row: Row, layout: Layout) -> int:
    """Positions that a row takes in a batch line, for planning."""
    return row.longest if by_answer(layout, row) else row.packed_length


def row_cost(row: Row, layout: Layout) -> int:
    """Positions that a row takes altogether."""
    return row.longest * len(row.answers) if by_answer(layout, row) else row.packed_length


def by_answer(layout: Layout, *rows: Row) -> bool:
    """Whether every answer of these rows has a line of its own, with the prompt before it."""
    return layout_of_rows(layout, rows) in ("padded", "alone")


def batch_positions(rows: Sequence[Row], layout: Layout) -> int:
    """Positions that a batch of rows computes, padding included."""
    layout = layout_of_rows(layout, rows)
    lengths = [row_length(row, layout) for row in rows]
    if layout == "shared":
        lines = lines_of(lengths)
        return _widest(lengths, lines) * len(lines)
    count = sum(len(row.answers) for row in rows) if by_answer(layout) else len(rows)
    return max(lengths) * count


def lines_of(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of these lengths laid into lines, longest first, each into the first line with room: the
    width at which padding and attention, which grows with it, together cost least."""
    longest = max(lengths)
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    total = sum(lengths)
    # So many lines, each with a fiftieth to spare; a dozen tries are enough.
    counts = range(-(-total // WIDEST), total // longest + 1)
    widths = [-(-total * 51 // (50 * k)) for k in counts[:: -(-len(counts) // 12) or 1]]
    best: list[list[int]] = []
    least = float("inf")
    for width in (longest, *(w for w in widths if w > longest)):
        lines: list[list[int]] = []
        room: list[int] = []
        for n in order:
            place = next((i for i, r in enumerate(room) if r >= lengths[n]), len(lines))
            if place == len(lines):
                lines.append([])
                room.append(width)
            lines[place].append(n)
            room[place] -= lengths[n]
        widest = _widest(lengths, lines)
        cost = widest * len(lines) * (ATTENTION + widest)
        if cost < least:
            best, least = lines, cost
    return best


def _widest(lengths: Sequence[int], lines: list[list[int]]) -> int:
    return max(sum(lengths[n] for n in line) for line in lines)


def plan_batches(
    encoded: Encoded, budget: int = 2048, layout: Layout = "packed"
) -> list[list[int]]:
    """Row indices in batches of at most `budget` padded positions, longest first.

    Rows of like length share a batch, so that little is padding. A row above the budget makes a
    batch of its own. Longest first: if memory does not suffice, that shows at once.
    """
    rows = trimmed(encoded, layout)
    order = sorted(range(len(rows)), key=lambda i: -row_length(rows[i], layout))
    parts: dict[int | None, list[int]] = {}  # by rows that may share a batch
    for i in order:
        part = layout.part_of(rows[i]) if isinstance(layout, Arrangement) else None
        parts.setdefault(part, []).append(i)
    return [
        batch
        for part in parts.values()
        for batch in fill(part, [rows[i] for i in part], budget, layout)
    ]


def fill(order: list[int], rows: list[Row], budget: int, layout: Layout) -> list[list[int]]:
    """Cut rows, in order, into runs of at most `budget` padded positions (or of a single row)."""
    batches: list[list[int]] = []
    held: list[Row] = []
    for index, row in zip(order, rows, strict=True):
        if batches and _fits([*held, row], budget, layout):
            batches[-1].append(index)
            held.append(row)
        else:
            batches.append([index])
            held = [row]
    return batches


def _fits(rows: Sequence[Row], budget: int, layout: Layout) -> bool:
    """Whether a batch of rows stays within a budget of positions. Lines are laid out only where that
    decides: they hold no less than the rows, and no more than one row a line would."""
    layout = layout_of_rows(layout, rows)
    if layout == "shared":
        lengths = [row.packed_length for row in rows]
        if sum(lengths) > budget:
            return False
        if max(lengths) * len(lengths) <= budget:
            return True
    return batch_positions(rows, layout) <= budget
