"""Which dials are on, on which model, and who has put them there."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from trimtab import models
from trimtab.batching.spans import BARE, HELD
from trimtab.errors import ConfigError

_STAYS: ContextVar[bool] = ContextVar("stays", default=False)
"""Whether a hook that is made now stays on where others are paused."""
_lock = threading.Lock()
_ids = itertools.count()
_open: weakref.WeakKeyDictionary[nn.Module, dict[int, object]] = weakref.WeakKeyDictionary()
"""Owners of the contexts that are open on a model, in the order in which they were entered. The key
is its `trunk`, which whatever wraps the model shares with it."""


def opened(model: nn.Module) -> tuple[int, ...]:
    """The contexts that are open on a model, in order."""
    return tuple(_open.get(models.trunk(model), ()))


def check_bare(model: nn.Module, what: str) -> None:
    """Raise ConfigError where a dial is on: what is wanted of the bare model would be another's."""
    if opened(model):
        raise ConfigError(f"{what}: a dial is on; leave its context first")


def check_owner(model: nn.Module) -> None:
    """Raise ConfigError where another thread or task has a dial on: the two would mix."""
    _check(_open.get(models.trunk(model), {}))


@contextmanager
def on(model: nn.Module) -> Iterator[None]:
    """A dial is on, for this thread (and asyncio task); left in any order, and from any thread.

    Raises:
        ConfigError: another thread or task has one on.
    """
    trunk, number = models.trunk(model), next(_ids)
    with _lock:
        owners = _open.setdefault(trunk, {})
        _check(owners)
        owners[number] = _owner()
    try:
        yield
    finally:
        with _lock:
            owners.pop(number, None)


@contextmanager
def paused() -> Iterator[None]:
    """The bare model, although dials are attached: their edits do nothing until the context is left,
    in this thread; those that are held on stay.

    For passes without gradients: a backward pass recomputes outside of it.
    """
    before = BARE.get()
    BARE.set(before or "but held")
    try:
        with torch.no_grad():
            yield
    finally:
        BARE.set(before)


@contextmanager
def staying(context: AbstractContextManager[None], name: str) -> Iterator[None]:
    """A dial's context, as a part of the model: it acts where others are paused, too, and what is read
    of the model is kept under the name."""
    stays = _STAYS.set(True)
    try:
        context.__enter__()
    finally:
        _STAYS.reset(stays)
    held = HELD.set(name)
    try:
        yield
    finally:
        HELD.reset(held)
        context.__exit__(None, None, None)


@contextmanager
def hooked(
    module: nn.Module, run: Callable[..., Any], *, before: bool = False, first: bool = False
) -> Iterator[None]:
    """A hook on a module, and on no copy of it, until the context is left: `run(args, kwargs, output)`
    gives what takes the output's place, or None; with `before`, `run(args, kwargs)`. With `first` it
    comes before those that are there."""
    hook = _Hook(module, run)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(hook, with_kwargs=True, prepend=first)
    try:
        yield
    finally:
        hook.home = None
        handle.remove()


class _Hook:
    """A hook that knows its module: in a copy of that (`deepcopy`) it does nothing."""

    def __init__(self, home: nn.Module, run: Callable[..., Any]):
        self.home: nn.Module | None = home
        self.run, self.stays = run, _STAYS.get()

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        if module is self.home:
            bare = BARE.get()
            return None if bare is True or (bare and not self.stays) else self.run(*call)
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                "torch.nn.DataParallel runs copies of the model, which have no dial: run it on one "
                "device, or in several processes"
            )
        return None

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    """What a copied model has in a hook's place."""


def _check(owners: dict[int, object]) -> None:
    if any(owner != _owner() for owner in owners.values()):
        raise ConfigError(
            "another thread or task has a dial on this model, and hooks act in all of them: enter "
            "one dial after the other, run mixed strengths as the rows of one batch (an alpha a "
            "row), or give each thread a copy of the model"
        )


def _owner() -> object:
    """This thread, and within an event loop its task."""
    try:
        return threading.current_thread(), asyncio.current_task()
    except RuntimeError:
        return threading.current_thread(), None
