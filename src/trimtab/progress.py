"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trimtab.terminal import visible

LINE_EVERY = 15.0
"""Seconds between plain lines."""


class Progress:
    """Where long work reports to. `quiet` says nothing at all; the default stream is stderr."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)

    def left_out(self, name: str, counts: Mapping[str, int], notes: Iterable[str] = ()) -> None:
        """A line for each reason for which reading a source left pairs out, and for what else is to
        be said of it."""
        for reason, count in counts.items():
            self.say(f"{name}: {count} {reason} left out")
        for note in notes:
            self.say(f"{name}: {note}")

    def rendered(
        self,
        name: str,
        pairs: int | None,
        encoded: Any,
        max_length: int,
        context: int | None = None,
    ) -> None:
        """A line for what became of pairs when they were turned into tokens: those that are too long
        (`context`: also for the model), those that are the same tokens twice, and what else is to be
        said of their rendering."""
        of = "" if pairs is None else f" of {pairs}"
        if encoded.dropped_pairs:
            self.say(
                f"{name}: {encoded.dropped_pairs}{of} pairs exceed {max_length} tokens: dropped"
            )
        if encoded.identical_pairs:
            self.say(
                f"{name}: {encoded.identical_pairs}{of} pairs have the same tokens as chosen and as "
                "rejected: dropped"
            )
        for note in encoded.notes:
            self.say(f"{name}: {note}")
        if beyond := sum(n > context for n in encoded.lengths) if context else 0:
            self.say(
                f"{name}: {beyond} of {len(encoded.lengths)} prompts with their answers are longer "
                f"than the {context} tokens that the model was made for, and scored all the same "
                f"(--max-length {context} drops them)"
            )

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "") -> Iterator[Update]:
        """Yields what is called with `(done, total)`. What it `said` last stays in a line at the end."""
        start = last = time.monotonic()
        if self.quiet:
            yield Update(lambda done, total: None)
            return
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{unit} {{task.fields[rate]}}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
            )
            with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
                task = bars.add_task(visible(label), total=total, rate="", said="")

                def turn(done: int, total: int) -> None:
                    rate = f"{done / max(time.monotonic() - start, 1e-9):.1f}/s"
                    bars.update(task, completed=done, total=total, rate=rate, said=update.said)

                yield (update := Update(turn))
        else:

            def line(done: int, total: int) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= LINE_EVERY:
                    last = now
                    left = (now - start) / max(done, 1) * (total - done)
                    said = f", {update.said}" if update.said else ""
                    self.say(f"{label}: {done}/{total} {unit}{said}, {left:.0f} s left")

            yield (update := Update(line))
        if update.said:
            self.say(f"{label}: {update.said}")


class Update:
    """Where a bar stands: called with what is done and the whole."""

    def __init__(self, show: Callable[[int, int], None]):
        self.show = show
        self.said = ""
        """What is shown beside it: a loss, the accuracy so far."""
        self.right = self.of = 0.0

    def __call__(self, done: int, total: int) -> None:
        self.show(done, total)

    def tally(self, right: float, of: int) -> None:
        """So many more pairs were judged, of which so many rightly."""
        self.right, self.of = self.right + right, self.of + of
        if self.of:
            self.said = f"accuracy {self.right / self.of:.3f}"


def figures(
    record: Mapping[str, Any], names: Iterable[str] = ("loss", "margin", "accuracy")
) -> str:
    """Figures of a step in a line: `loss 0.42, accuracy 0.88`."""
    known = [(name, record[name]) for name in names if record.get(name) is not None]
    return ", ".join(f"{name} {value:.3g}" for name, value in known)


SILENT = Progress(quiet=True)
"""For callers who did not ask for progress."""


class Notice(UserWarning):
    """A line that a user should read, though the work goes on."""


def warn(text: str) -> None:
    """Say such a line: a Python warning, a line on stderr from the command line."""
    warnings.warn(text, Notice, stacklevel=3)
