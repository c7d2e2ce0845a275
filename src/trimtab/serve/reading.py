"""Prompts on their way into the batch, whole or a piece at a time between two tokens of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.dials.where import Condition
from trimtab.evaluation.cache_proof import Way
from trimtab.serve.job import Job
from trimtab.serve.rows import Rows
from trimtab.states import seeing


@dataclass(eq=False)
class Lane:
    """A row of the batch: a job's own, or the bare model beside it."""

    job: Job
    bare: bool = False
    shut: set[str] = field(default_factory=set)
    """Dials whose condition did not hold in the prompt."""

    def alpha(self, dial: str) -> float:
        """The strength of a dial in this row."""
        return 0.0 if self.bare or dial in self.shut else self.job.request.alphas.get(dial, 0.0)

    @property
    def key(self) -> Any:
        """Prompt and strengths: lanes that share them are read as one row."""
        turned = {} if self.bare else {n: a for n, a in self.job.request.alphas.items() if a}
        return tuple(self.job.request.ids), tuple(sorted(turned.items()))


class Reading:
    """Prompts of one length.

    A condition over a prompt is judged once all of it is read, and says what acts from its first token
    on. So where a prompt comes in pieces and a dial with such a condition is turned, it is read twice: as
    the bare model reads it, and again with what was found to act.

    Args:
        piece: tokens a pass; None where all are read in one.
        conditions: over prompts, by the names of their dials.
    """

    def __init__(self, piece: int | None, conditions: Mapping[str, Condition]):
        self.piece, self.conditions = piece, conditions
        self.lanes: list[Lane] = []
        self.first: dict[Any, Lane] = {}
        self.rows: Rows | None = None
        self.judged, self.twice = not conditions, False
        self._scores: dict[str, list[Tensor]] = {name: [] for name in conditions}

    @property
    def jobs(self) -> list[Job]:
        """Whose prompts these are."""
        return list(dict.fromkeys(lane.job for lane in self.lanes))

    def take(self, lanes: Sequence[Lane]) -> None:
        """Lanes whose prompts are of the length of the others."""
        self.lanes += lanes
        for lane in lanes:
            self.first.setdefault(lane.key, lane)
            pieces = self.piece is not None and self.piece < len(lane.job.request.ids)
            self.twice |= pieces and any(map(lane.alpha, self.conditions))

    def alone(self, job: Job) -> Reading:
        """A job's lanes, to be read from the beginning."""
        reading = Reading(self.piece, self.conditions)
        reading.take([lane for lane in self.lanes if lane.job is job])
        return reading

    def positions(self, more: Sequence[Lane] = ()) -> int:
        """How many the next pass reads, with some further lanes."""
        unread = self.rows.unread.shape[1] if self.rows else len(self.lanes[0].job.request.ids)
        return len({*self.first, *(lane.key for lane in more)}) * min(unread, self.piece or unread)

    def read(self, model: Any, way: Way, turn: Callable[[list[Lane], bool], None]) -> Rows | None:
        """One pass. A row a lane, once they have come to the end of their prompts.

        Args:
            turn: turns the dials as lanes want them, and is told whether what acts is decided.
        """
        with ExitStack() as stack:
            seen = {name: stack.enter_context(self._seeing(model, name)) for name in self._unjudged}
            if self.judged or not self.twice:
                turn(list(self.first.values()), self.judged)
            if self.rows is None:
                ids = [lane.job.request.ids for lane in self.first.values()]
                self.rows = Rows(model, ids, way, self.piece)
            else:
                self.rows.read_on(self.piece)
        for name, scores in seen.items():
            self._scores[name].append(torch.cat(scores))  # row token
        if self.rows.unread.shape[1]:
            return None
        which = [list(self.first).index(lane.key) for lane in self.lanes]
        again = self.twice and not self.judged
        for name in self._unjudged:
            acts = self._acts(name)
            for lane, n in zip(self.lanes, which, strict=True):
                lane.shut |= set() if acts[n] else {name}
        self.judged = True
        if again:
            self.rows = None
            return None
        self.rows.select(which)
        return self.rows

    @property
    def _unjudged(self) -> Mapping[str, Condition]:
        return {} if self.judged else self.conditions

    @contextmanager
    def _seeing(self, model: Any, name: str) -> Iterator[list[Tensor]]:
        """The scores of the tokens that a pass reads, a line at a time where rows run apart."""
        condition, found = self.conditions[name], []
        with seeing(model, condition.site, lambda h: found.append(condition.scores(h))):
            yield found

    def _acts(self, name: str) -> list[bool]:
        """Whether a dial acts, for each prompt."""
        condition, of_token = self.conditions[name], torch.cat(self._scores[name], -1)
        scores = of_token[:, -1] if condition.over == "last" else of_token.mean(-1)
        return condition.passes(scores).tolist()
