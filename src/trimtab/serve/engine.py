"""Requests, each with its dials at strengths of its own, as rows of one batch that never stops."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import torch

from trimtab import models
from trimtab.dials import Dial
from trimtab.dials.attach import Edit, attach
from trimtab.dials.where import Condition
from trimtab.errors import ConfigError, TrimtabError
from trimtab.evaluation.cache_proof import Way
from trimtab.serve.job import Job
from trimtab.serve.reading import Lane, Reading
from trimtab.serve.request import Begun, End, Event, Request
from trimtab.serve.rows import Rows, reads_in_pieces, way_to_serve

Parts = list[tuple[Sequence[Any], float]]
"""A dial's edits with their weights (`Dial.parts`)."""

PREFILL = 128
"""Positions of prompts that are read between two tokens of the others."""


class TooLong(ConfigError):
    """A request of more tokens than there may be."""


class Busy(TrimtabError):
    """More requests wait than may."""


class Engine:
    """A model with dials that answers requests, as many at a time as the batch has rows.

    A request joins between two tokens and leaves when it is done; a long prompt is read a piece at a time
    between the tokens of the others, where that is right for the model. Where batches are not what the
    model says (`way`), rows run one by one, a token each in turn. The model is the engine's alone until it
    is closed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dials: Mapping[str, Dial],
        *,
        rows: int = 16,
        queue: int = 128,
        context: int = 2048,
        prefill: int = PREFILL,
        force: bool = False,
    ):
        """
        Args:
            dials: by the names that requests use.
            rows: of the batch; a request takes one, with `shift` two.
            queue: requests that may wait.
            context: tokens of the longest request, prompt and answer together; at most what the model
                was made for.
            prefill: positions of prompts that are read between two tokens of the others (twice as many
                for a request with `shift`).

        Raises:
            DialError: a dial was made for another model (`force` goes on).
            ConfigError: a dial that leans nothing, or dials that cannot be used together.
        """
        self.model, self.tokenizer, self.dials = model, tokenizer, dict(dials)
        self._own_tokenizer = copy.deepcopy(tokenizer)  # of the engine's thread
        for name, dial in self.dials.items():
            if dial.kind == "reward":
                raise ConfigError(f"{name}: a reward dial ranks answers, it leans no model")
            if not force:
                dial.check_base(model, tokenizer)
            dial.to(next(model.parameters()).device).eval()
        self._parts: dict[str, Parts] = {name: d.parts(model) for name, d in self.dials.items()}
        self._conditions = {
            name: found for name, parts in self._parts.items() if (found := _condition(parts))
        }
        self._after = {name: _unconditional(parts) for name, parts in self._parts.items()}
        self.rows, self.queue, self.prefill = rows, queue, prefill
        limits = (models.learned_positions(model), models.context(model))
        self.context = min([context, *(limit for limit in limits if limit)])
        self.way: Way = way_to_serve(model, self.context)
        in_pieces = reads_in_pieces(model, self.way, prefill, self.context)
        self._piece = prefill if in_pieces else None
        everything = [
            (edits, torch.ones(1)) for parts in self._parts.values() for edits, _ in parts
        ]
        with attach(model, everything, 1.0):  # refuses what does not go together
            Rows(model, [[2, 3]], self.way)
        self._lock = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._batch: Rows | None = None
        self._lanes: list[Lane] = []
        self._readings: deque[Reading] = deque()
        self._refusing = self._closing = False
        self._on, self._turned = ExitStack(), None  # the dials that are on, and how
        self.peak = 0
        """Rows that ran together at most."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # ---- from any thread ------------------------------------------------------------------------

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Job:
        """Begin a request. `deliver` is called in the engine's thread with every event, an `End` last.

        Raises:
            ConfigError: it has no prompt, or turns a dial that is not there; TooLong.
            Busy: too many wait, or the engine is closing.
        """
        self.check(request)
        job = Job(request, deliver, self._own_tokenizer)
        with self._lock:
            if self._refusing:
                raise Busy("the engine is closing")
            if len(self._waiting) >= self.queue:
                raise Busy(f"{self.queue} requests wait already; try again later")
            self._waiting.append(job)
            self._lock.notify()
        return job

    def check(self, request: Request) -> None:
        """Raise ConfigError for a request that can never run."""
        if not request.ids:
            raise ConfigError("the prompt is empty")
        if len(request.ids) + request.max_tokens > self.context:
            raise TooLong(
                f"{len(request.ids)} tokens of the prompt and up to {request.max_tokens} of the answer "
                f"are more than {self.context}"
            )
        if unknown := set(request.alphas) - set(self.dials):
            raise ConfigError(
                f"no dial {', '.join(sorted(unknown))} (known: {', '.join(self.dials)})"
            )
        if request.shift and self.rows < 2:
            raise ConfigError("shift takes two rows, and the batch has one")

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of a request as they come. Left early, it is cancelled."""
        events: SimpleQueue[Event] = SimpleQueue()
        job = self.submit(request, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if isinstance(event, End):
                    return
        finally:
            job.cancel()

    @property
    def load(self) -> tuple[int, int]:
        """Rows of the batch now, and requests that wait."""
        return len(self._lanes) + self._read, len(self._waiting)

    @property
    def _read(self) -> int:
        """Rows whose prompts are being read."""
        return sum(len(reading.lanes) for reading in list(self._readings))

    def close(self, patience: float = 0.0) -> None:
        """Refuse what comes, give what runs some seconds, then cancel it and end the engine's thread."""
        self._refusing = True
        end = time.monotonic() + patience
        while self.load != (0, 0) and time.monotonic() < end:
            time.sleep(0.02)
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- in the engine's thread -----------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._waiting or self._readings or self._lanes or self._closing):
                    self._lock.wait()
                if self._closing:
                    lanes = [*self._lanes, *(lane for r in self._readings for lane in r.lanes)]
                    for job in [*self._waiting, *(lane.job for lane in lanes)]:
                        job.end("cancelled")
                    self._waiting.clear()
                    self._readings.clear()
                    self._drop()
                    return
                self._admit()
            self._prefill()
            self.peak = max(self.peak, len(self._lanes))
            try:
                self._step()
            except Exception as error:  # whatever a model does: the next requests find an engine
                for lane in self._lanes:
                    lane.job.end("error", _said(error))
                self._drop()

    def _drop(self) -> None:
        self._untouched()
        self._lanes, self._batch = [], None

    def _admit(self) -> None:
        """Begin to read the prompts of those that wait, first come, first served, as far as there is
        room: those of one length together, as long as that is no more than a pass may read."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            job.end("cancelled")
        room, found = self.rows - self.load[0], {}
        while self._waiting and (room := room - 1 - self._waiting[0].beside) >= 0:
            job = self._waiting.popleft()
            lanes = [Lane(job), Lane(job, bare=True)][: 1 + job.beside]
            length = len(job.request.ids)
            if length not in found or found[length].positions(lanes) > self.prefill:
                found[length] = Reading(self._piece, self._conditions)
                self._readings.append(found[length])
            found[length].take(lanes)

    def _prefill(self) -> None:
        """Read on in the prompts that came first, by up to `prefill` positions, and join the rows of
        those that are read to their end."""
        left = self.prefill
        while self._readings and left > 0:
            reading = self._readings[0]
            if all(job.cancelled for job in reading.jobs):
                for job in reading.jobs:
                    job.end("cancelled")
                self._readings.popleft()
                continue
            if left < self.prefill and reading.positions() > left:
                return
            left -= reading.positions()
            self._untouched()  # so that conditions are judged on what the bare model read
            try:
                rows = reading.read(self.model, self.way, self._turned_for_reading)
            except Exception as error:  # one of them may be to blame: each alone
                self._readings.popleft()
                if len(reading.jobs) == 1:
                    reading.jobs[0].end("error", _said(error))
                else:
                    self._readings.extendleft(map(reading.alone, reversed(reading.jobs)))
                continue
            if rows is not None:
                self._begin(reading, rows)
                self._readings.popleft()

    def _begin(self, reading: Reading, rows: Rows) -> None:
        """Join the rows of prompts that were read to the batch."""
        for lane in reading.lanes:
            if not lane.bare:
                names = [n for n in self._conditions if lane.job.request.alphas.get(n)]
                lane.job.tell(Begun({name: name not in lane.shut for name in names}))
        if self._batch is None:
            self._batch = rows
        else:
            self._batch.join(rows)
        self._lanes += reading.lanes

    def _step(self) -> None:
        """A token of every request, and what comes after it."""
        if self._batch is None:
            return
        logits, taken = self._batch.logits.cpu(), []
        token: int | None = None
        for n, lane in enumerate(self._lanes):
            if not lane.bare:  # the row of the bare model, where there is one, is the next
                token = lane.job.take(logits[n], logits[n + 1] if lane.job.beside else None)
            taken.append(token)
        stay = [n for n, t in enumerate(taken) if t is not None]
        if not stay:
            return self._drop()
        self._lanes = [self._lanes[n] for n in stay]
        self._batch.select(stay)
        self._turn(self._lanes, self._after)
        self._batch.feed([t for t in taken if t is not None])

    def _turn(self, lanes: list[Lane], parts: Mapping[str, Parts]) -> None:
        """Turn every dial to the strengths of these rows. A dial that all of them have at one strength
        is turned by a number: 0 attaches nothing. What is on stays on, for that costs time."""
        strengths = {name: [lane.alpha(name) for lane in lanes] for name in parts}
        wanted = (id(parts), strengths)
        if wanted == self._turned:
            return
        self._untouched()
        weighted = []
        for name, alphas in strengths.items():
            strength = alphas[0] if len(set(alphas)) == 1 else torch.tensor(alphas)
            weighted += [(edits, weight * strength) for edits, weight in parts[name]]
        self._on.enter_context(attach(self.model, weighted, 1.0))
        self._turned = wanted

    def _turned_for_reading(self, lanes: list[Lane], decided: bool) -> None:
        self._turn(lanes, self._after if decided else self._parts)

    def _untouched(self) -> None:
        """Take all dials off."""
        self._on.close()
        self._turned = None


def _condition(parts: Parts) -> Condition | None:
    """What decides on a whole row whether a dial acts."""
    edits = [edit for some, _ in parts for edit in some if isinstance(edit, Edit)]
    found = (e.condition for e in edits if e.condition and e.condition.over != "token")
    return next(found, None)


def _unconditional(parts: Parts) -> Parts:
    """The same edits where it is decided already in which rows they act."""

    def bare(edit: Any) -> Any:
        if isinstance(edit, Edit) and edit.condition and edit.condition.over != "token":
            return dataclasses.replace(edit, condition=None)
        return edit

    return [([bare(edit) for edit in some], weight) for some, weight in parts]


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"
