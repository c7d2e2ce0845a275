"""Where the prompts of the rows that a model is about to see end, for those who ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from trimtab.errors import ConfigError

_PROMPTS: ContextVar[Tensor | None] = ContextVar("prompts", default=None)
BARE: ContextVar[bool] = ContextVar("bare", default=False)
"""True where dials that are attached do nothing (`dials.attach` asks): a proof is about the model."""
_APART: ContextVar[bool] = ContextVar("apart", default=False)


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
    token = _PROMPTS.set(given)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


def given_prompts() -> Tensor | None:
    """What `prompts` was given, in the context that is open."""
    return _PROMPTS.get()


@contextmanager
def rows_apart() -> Iterator[None]:
    """Within it a line of a batch holds one row and all of it (`layout_of` never says `shared`): for
    edits that differ from row to row, or that ask where a row's prompt ends."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def are_rows_apart() -> bool:
    """Whether the context of `rows_apart` is open."""
    return _APART.get()
