"""Models that torch.compile has seen: run as they are written while hooks are on them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trimtab.errors import ConfigError

_lock = threading.Lock()
_depth = 0
_stance: Any = None  # what was set, with the stance before it
_unused = False  # the compiler, when the outermost context was entered


def unwrapped(model: Any) -> Any:
    """The model within what `torch.compile(model)` and torch's data-parallel wrappers give; any other
    is itself."""
    while True:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = getattr(model, "module" if parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within it, compiled models, layers and functions run as they are written, in every thread.

    Compiled code does not look for hooks that came or went after it was made, so that a dial would
    not be seen there, or never be rid of. Contexts may be left in any order and in any thread.

    Raises:
        ConfigError: entered within a compiled function.
    """
    global _depth, _stance, _unused
    with _lock:
        imported = "torch._dynamo" in sys.modules  # before its first use it is not
        if _depth == 0:
            _unused = not imported
        if _stance is None and imported:
            try:
                _stance = torch.compiler.set_stance("force_eager")
            except RuntimeError as error:
                raise ConfigError(
                    "hooks are put on a model within a compiled function, which would keep them: "
                    "enter the dial around the call of the compiled function"
                ) from error
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth and _stance is not None:
                stance, _stance = _stance, None
                stance.__exit__(None, None, None)
            if not _depth and _unused and "torch._dynamo" in sys.modules:
                torch._dynamo.reset()  # what it has made meanwhile has our hooks
