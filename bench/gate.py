"""A gate in a training run: each optimizer step waits until the parent lets it go.

The same gate holds both sides. It hangs on PyTorch's hooks around every optimizer's step, so that
neither trainer is touched, and what is timed is one whole cycle: collating, forward, backward,
clipping, optimizer, schedule, logging.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bench.lane import Channel, peak_bytes, reset_peak


class Gate:
    """Reports every step but the first, which is the warm-up and the one that is checked."""

    def __init__(self, channel: Channel, first: Callable[[], dict[str, Any]]):
        """
        Args:
            first: called with the gradients of the first step in place; what it returns is sent.
        """
        self.channel, self.first = channel, first
        self.start: float | None = None
        self.found: dict[str, Any] = {}

    def __enter__(self) -> Gate:
        self.handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]
        gc.collect()
        with contextlib.suppress(
            OSError, AttributeError
        ):  # what earlier passes freed, back to the system
            ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        self.found["before"] = peak_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, *_: Any) -> None:
        if self.start is None:
            self.found |= self.first()

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self.start is None:
            self.channel.say(peak=peak_bytes(), **self.found)
        else:
            self.channel.say(
                seconds=time.perf_counter() - self.start,
                processor=time.process_time() - self.busy,
                peak=peak_bytes(),
            )
        if not self.channel.wait():
            raise SystemExit(0)  # the parent has what it wanted
        self.start, self.busy = time.perf_counter(), time.process_time()


def total(losses: list[Tensor]) -> float:
    """The sum of the losses of a step's microbatches."""
    return float(sum(loss.double().sum() for loss in losses))
