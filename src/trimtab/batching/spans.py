"""Where the prompts of the rows that a model is about to see end, for those who ask."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.errors import ConfigError

_PROMPTS: ContextVar[Tensor | None] = ContextVar("prompts", default=None)
BARE: ContextVar[bool | str] = ContextVar("bare", default=False)
"""True where dials that are attached do nothing (`dials.attach` asks): a proof is about the model.
`but held`: those that are held on act all the same."""
HELD: ContextVar[str] = ContextVar("held", default="")
"""What is held on (`dials.contexts.staying`): what is read there is kept under its name."""
_LINE: ContextVar[tuple[int, int] | None] = ContextVar("line", default=None)

_lock = threading.Lock()
_apart: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""How many contexts of `rows_apart` are open on a model, by its trunk."""

_edits: weakref.WeakKeyDictionary[nn.Module, dict[object, int]] = weakref.WeakKeyDictionary()


@contextmanager
def prompts(where: Sequence[int] | Tensor) -> Iterator[None]:
    """Say which tokens of the rows are the prompt's, for passes over prompt and answer in one.

    Without it, the first pass over a row counts as its prompt and what is decoded after it, from
    the cache, as its completion.

    Args:
        where: prompt tokens of each row `[B]`, padding not counted; or True at them `[B, T]`.

    Raises:
        ConfigError: another shape.
    """
    given = torch.as_tensor(where)
    if given.ndim not in (1, 2) or (given.ndim == 2) != (given.dtype == torch.bool):
        raise ConfigError(
            f"prompts of shape {tuple(given.shape)}, {given.dtype}: expected a count a row [B], or "
            "True at the prompts' tokens [B, T]"
        )
    before = _PROMPTS.get()
    _PROMPTS.set(given)
    try:
        yield
    finally:  # not by the token: a generator may be closed in another context than it was begun in
        _PROMPTS.set(before)


def given_prompts() -> Tensor | None:
    """What `prompts` was given, in the context that is open."""
    return _PROMPTS.get()


@contextmanager
def rows_apart(model: nn.Module) -> Iterator[None]:
    """Within it a line of a batch holds one row and all of it (`layout_of` never says `shared`): for
    edits that differ from row to row, or that ask where a row's prompt ends. Left in any order."""
    trunk = models.trunk(model)
    with _lock:
        _apart[trunk] = _apart.get(trunk, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _apart[trunk] -= 1


def are_rows_apart(model: nn.Module) -> bool:
    """Whether a context of `rows_apart` is open on the model."""
    return bool(_apart.get(models.trunk(model)))


@contextmanager
def edited_after(model: nn.Module, block: int) -> Iterator[None]:
    """Within it what is done to the model's states is done after this block, at its output at the
    earliest; -1 where it may be before. Left in any order."""
    mine, edits = object(), _edits.setdefault(models.trunk(model), {})
    edits[mine] = block
    try:
        yield
    finally:
        del edits[mine]


def first_edited(model: nn.Module) -> int | None:
    """The least block of `edited_after` that is open; None where nothing is done."""
    return min(_edits.get(models.trunk(model), {}).values(), default=None)


@contextmanager
def one_line(n: int, of: int) -> Iterator[None]:
    """Say that the model sees only line `n` of a batch of `of`: rows that must not run together run
    one after the other, each at the strengths of its own place in the batch."""
    token = _LINE.set((n, of))
    try:
        yield
    finally:
        _LINE.reset(token)


def the_line() -> tuple[int, int] | None:
    """The line that is running alone and how many there are, in the context of `one_line`."""
    return _LINE.get()


def of_the_line(values: Tensor) -> Tensor:
    """Of values of a batch's rows `[B, …]` those of the line that is running alone `[1, …]`; all of
    them where none is."""
    if line := _LINE.get():
        at = line[0] * len(values) // line[1]
        return values[at : at + 1]
    return values
