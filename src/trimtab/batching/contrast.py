"""Contrasts: pairs of whole sequences, each read at one token, every distinct prefix computed once.

Persona prompts share their head, the truncations of a suffix are prefixes of one another, and a
causal model's state at a token depends on what stands before it alone. So all sequences are laid
out as one tree of tokens, cut into rows:

    sequences    a b c      a b d e      a x
    row          a b c d e x
    position     0 1 2 2 3 1
    end          6 5 3 5 5 6      (a token is seen from itself up to its end: by its descendants)

A truncation costs nothing: it is a token of the row. Models whose attention cannot be masked get a
row for each sequence, whose truncations are tokens of it all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from trimtab.batching.batches import Batch, collate, plan_batches
from trimtab.batching.layouts import Layout
from trimtab.batching.tokens import Encoded
from trimtab.rendering import common_length

ROW = 512
"""Positions of a tree row: long rows repeat fewer heads, short ones spend less on attention."""

Ids = tuple[int, ...]
Pole = tuple[int, int]
"""A sequence's index and how many of its tokens count: it is read at the last of them."""


@dataclass(frozen=True)
class Contrast:
    """Pairs of poles, each a token sequence (or the beginning of one) read at its last token.

    It stands where an `Encoded` does when states are read: its answers are its distinct poles.

    Attributes:
        sequences: distinct token sequences, BOS included where the model has one.
        chosen: the positive pole of each pair.
        rejected: the negative pole of each pair.
        items: of each pair: truncations of one suffix share an item.
        dropped_pairs: pairs left out because a pole did not fit `max_length`.
        name: the pair set's name.
        identical_pairs: pairs left out because both poles are the same tokens.
        notes: what else is to be said of how the poles were rendered.
        read_as: `chat` or `plain`, what they were as text; `auto` where nobody knows.
    """

    sequences: tuple[Ids, ...]
    chosen: tuple[Pole, ...]
    rejected: tuple[Pole, ...]
    items: tuple[str, ...]
    dropped_pairs: int
    name: str
    identical_pairs: int = 0
    notes: tuple[str, ...] = ()
    read_as: str = "auto"
    poles: tuple[Pole, ...] = field(init=False)
    """The distinct poles, in order of first appearance."""

    def __post_init__(self) -> None:
        both = (pole for pair in zip(self.chosen, self.rejected, strict=True) for pole in pair)
        object.__setattr__(self, "poles", tuple(dict.fromkeys(both)))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(sequence) for sequence in self.sequences]

    @property
    def n_answers(self) -> int:
        """Distinct poles."""
        return len(self.poles)

    @property
    def n_pairs(self) -> int:
        """Pairs that were kept."""
        return len(self.chosen)

    @property
    def n_items(self) -> int:
        """Items of which at least one pair was kept."""
        return len(set(self.items))

    @property
    def n_tokens(self) -> int:
        """Tokens of all poles, each counted whole: what separate sequences would cost."""
        return sum(
            stop for pair in zip(self.chosen, self.rejected, strict=True) for _, stop in pair
        )

    @property
    def digest(self) -> str:
        """sha256 over the token ids and the pairs: what is read, and in which order."""
        sha = hashlib.sha256()
        for ids in self.sequences:
            sha.update(repr(ids).encode())
        sha.update(repr((self.chosen, self.rejected)).encode())
        return sha.hexdigest()

    @property
    def known(self) -> bool:
        """Whether the token after each that is read is known, as losses on log-probs need it."""
        return all(stop < len(self.sequences[s]) for s, stop in self.poles)

    def limit(self, n: int | None) -> Contrast:
        """The first `n` items (all of their pairs); None keeps everything."""
        keep = set(list(dict.fromkeys(self.items))[:n])
        kept = [i for i, item in enumerate(self.items) if item in keep]
        return replace(
            self,
            chosen=tuple(self.chosen[i] for i in kept),
            rejected=tuple(self.rejected[i] for i in kept),
            items=tuple(self.items[i] for i in kept),
        )

    def pair_answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For every pair, the index of its chosen and rejected pole among `poles`."""
        place = {pole: n for n, pole in enumerate(self.poles)}
        return (
            torch.tensor([place[p] for p in self.chosen]),
            torch.tensor([place[p] for p in self.rejected]),
        )

    def ids(self, pole: Pole) -> Ids:
        """The tokens of a pole."""
        return self.sequences[pole[0]][: pole[1]]


def batches_of(
    encoded: Encoded | Contrast, budget: int = 2048, layout: Layout = "packed"
) -> Iterator[Batch]:
    """All answers of an encoded set, or all poles of a contrast, in batches within a budget."""
    if isinstance(encoded, Contrast):
        yield from contrast_batches(encoded, budget, layout)
    else:
        for rows in plan_batches(encoded, budget, layout):
            yield collate(encoded, rows, layout)


def contrast_batches(
    contrast: Contrast, budget: int = 2048, layout: Layout = "packed"
) -> Iterator[Batch]:
    """Every pole once, in batches of at most `budget` positions. A pole is an answer of one token,
    the one it is read at; `answer_ids` count the distinct poles. Pairs are left to the caller."""
    stops: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for number, (s, stop) in enumerate(contrast.poles):
        stops[s] = max(stop, stops.get(s, 0))
        readers.setdefault(s, []).append(number)
    used = list(stops)
    lines, places = grow([contrast.sequences[s][: stops[s]] for s in used], layout)
    reads: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in lines]
    for s, (line, path) in zip(used, places, strict=True):
        for number in readers[s]:
            reads[line].append((number, path[: contrast.poles[number][1]]))
    for run in _runs(lines, budget):
        tokens = _Tokens()
        for row, line in enumerate(run):
            for number, path in reads[line]:
                tokens.read(row, lines[line], path, number)
        yield tokens.batch([lines[i] for i in run], layout)


def gradient_batches(
    contrast: Contrast, budget: int = 2048, layout: Layout = "packed"
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of whole pairs, whose states have gradients of their own, and the pairs' indices.

    The token that a pole is read at is a node of its own, seen by no other pole: a loss of one pole
    never reaches the state of another. The token that follows in the pole's sequence, where there is
    one, is scored: its log-prob is the pole's.
    """
    order = sorted(range(contrast.n_pairs), key=lambda i: contrast.ids(contrast.chosen[i]))
    for pairs in _chunks(contrast, order, budget):
        poles = [p for i in pairs for p in (contrast.chosen[i], contrast.rejected[i])]
        lines, places = grow([contrast.ids(p) for p in poles], layout, own=True)
        tokens = _Tokens()
        for number, ((s, stop), (line, path)) in enumerate(zip(poles, places, strict=True)):
            tokens.read(line, lines[line], path, number)
            if stop < len(contrast.sequences[s]):
                tokens.follow(line, path[-1], contrast.sequences[s][stop], number)
        numbers = torch.arange(len(pairs))
        yield tokens.batch(lines, layout, 2 * numbers, 2 * numbers + 1, pairs), pairs


def node_batches(
    contrast: Contrast, budget: int = 2048, layout: Layout = "packed"
) -> Iterator[tuple[Batch, list[tuple[int, tuple[int, ...]]]]]:
    """Batches in which every token of the tree that has a predecessor is an answer of its own, to be
    scored; and of each sequence that lies in them its index and its tokens' answers."""
    lines, places = grow(contrast.sequences, layout)
    for run in _runs(lines, budget):
        rows = {line: row for row, line in enumerate(run)}
        tokens, answers = _Tokens(), {}
        paths = [(s, line, path) for s, (line, path) in enumerate(places) if line in rows]
        for _, line, path in paths:
            for n in range(1, len(path)):
                if (line, path[n]) not in answers:
                    answers[line, path[n]] = len(answers)
                    token = lines[line].ids[path[n]]
                    tokens.follow(rows[line], path[n - 1], token, answers[line, path[n]])
        yield (
            tokens.batch([lines[i] for i in run], layout),
            [(s, tuple(answers[line, at] for at in path[1:])) for s, line, path in paths],
        )


# ---- the tree -----------------------------------------------------------------------------------


@dataclass
class Line:
    """A row under construction: of each token its id, its depth, and one past its last descendant."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def grow(
    sequences: Sequence[Ids], layout: Layout = "packed", *, own: bool = False, limit: int = ROW
) -> tuple[list[Line], list[tuple[int, tuple[int, ...]]]]:
    """The tree of token sequences, depth first, in rows of at most `limit` tokens (or one sequence).

    In sorted order a sequence shares most with the one before it; the path to the common prefix
    stays open and the rest is appended. A new row repeats the path.

    Args:
        own: the last token of each sequence is a node of its own, which nothing descends from.

    Returns:
        The rows, and for each sequence its row and where its tokens lie in it.
    """
    lines: list[Line] = []
    places: list[tuple[int, tuple[int, ...]]] = [(0, ())] * len(sequences)
    path: list[int] = []
    before: Ids = ()

    def close(down_to: int) -> None:
        for at in path[down_to:]:
            lines[-1].ends[at] = len(lines[-1].ids)
        del path[down_to:]

    for s in sorted(range(len(sequences)), key=sequences.__getitem__):
        ids = sequences[s]
        shared = common_length(before, ids)
        if own:
            shared = max(0, min(shared, len(ids) - 1, len(before) - 1))
        branches = shared < len(before)  # what an unmasked row cannot hold
        if lines and (
            len(lines[-1].ids) + len(ids) - shared > limit
            or (layout in ("padded", "alone") and branches)
        ):
            close(0)
            shared = 0
            lines.append(Line())
        elif not lines:
            lines.append(Line())
        close(shared)
        line = lines[-1]
        for depth in range(shared, len(ids)):
            path.append(len(line.ids))
            line.ids.append(ids[depth])
            line.positions.append(depth)
            line.ends.append(0)
        places[s] = (len(lines) - 1, tuple(path))
        before = ids
    if lines:
        close(0)
    return lines, places


def _runs(lines: Sequence[Line], budget: int) -> Iterator[list[int]]:
    """Rows of like length, longest first, in runs of at most `budget` padded positions."""
    run: list[int] = []
    for i in sorted(range(len(lines)), key=lambda i: -len(lines[i].ids)):
        if run and len(lines[run[0]].ids) * (len(run) + 1) > budget:
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _chunks(contrast: Contrast, order: list[int], budget: int) -> Iterator[list[int]]:
    """Pairs, in order, in runs whose trees have about `budget` tokens."""
    run: list[int] = []
    cost, last = 0, ((), ())
    for i in order:
        now = contrast.ids(contrast.chosen[i]), contrast.ids(contrast.rejected[i])
        more = sum(
            len(b) - min(common_length(a, b), len(b) - 1, max(len(a) - 1, 0))
            for a, b in zip(last, now, strict=True)
        )
        if run and cost + more > budget:
            yield run
            run, more, cost = [], sum(map(len, now)), 0
        run.append(i)
        cost, last = cost + more, now
    if run:
        yield run


class _Tokens:
    """The flat token lists of a batch, and the batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, int, bool]] = []
        # (row, at, from, id, answer, whether its state is read; else it is scored)

    def read(self, row: int, line: Line, path: Sequence[int], answer: int) -> None:
        """A pole's state, at the last token of its path."""
        at = path[-1]
        self.rows.append((row, at, path[-2] if len(path) > 1 else at, line.ids[at], answer, True))

    def follow(self, row: int, at: int, token: int, answer: int) -> None:
        """A token predicted at a place."""
        self.rows.append((row, at, at, token, answer, False))

    def batch(
        self,
        lines: Sequence[Line],
        layout: Layout,
        chosen: torch.Tensor | None = None,
        rejected: torch.Tensor | None = None,
        pairs: Sequence[int] = (),
    ) -> Batch:
        """As tensors; padding on the right."""
        width = max(len(line.ids) for line in lines)
        none = torch.zeros(0, dtype=torch.long)

        def grid(values: list[list[int]], pad: int) -> torch.Tensor:
            return torch.tensor([v + [pad] * (width - len(v)) for v in values])

        columns = list(zip(*self.rows, strict=True))
        row, at, source, token, answer = (torch.tensor(c) for c in columns[:5])
        read = torch.tensor(columns[5])
        # Answers are numbered within the batch, in order of appearance.
        numbers = {a: n for n, a in enumerate(dict.fromkeys(columns[4]))}
        return Batch(
            layout="padded" if layout == "padded" else "alone" if layout == "alone" else "packed",
            input_ids=grid([line.ids for line in lines], 0),
            positions=grid([line.positions for line in lines], 0),
            segments=grid([[0] * len(line.ids) for line in lines], -1),
            members=grid([[0] * len(line.ids) for line in lines], -1),
            ends=grid([line.ends for line in lines], 0),
            token_row=row,
            token_at=at,
            token_from=source,
            token_id=token,
            token_answer=torch.tensor([numbers[a] for a in answer.tolist()]),
            token_scored=~read,
            token_body=read,
            token_marker=torch.zeros_like(read),
            answer_ids=torch.tensor(list(numbers)),
            pair_chosen=none if chosen is None else chosen,
            pair_rejected=none if rejected is None else rejected,
            pair_ids=torch.tensor(list(pairs), dtype=torch.long),
            items=tuple("" for _ in numbers),
        )
