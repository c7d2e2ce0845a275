"""Whether what a model decodes with a cache, and in padded batches, is what the model says.

It is tried on each model's first use: rows of several lengths are continued by given tokens (so that
no near tie decides), a short one past the smallest window that the config names (some caches keep the
prompt and let go of what was generated), and the log-probs at each step are compared with those of
plain passes over one whole row. What fails is done without: rows one by one, and where the cache itself
is wrong, a whole pass a token.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab import models
from trimtab.batching.forward import forget_lengths
from trimtab.batching.probes import windows
from trimtab.dials.contexts import paused
from trimtab.errors import ModelError
from trimtab.models import text_config
from trimtab.proofs import proven

Way = Literal["batch", "rows", "plain"]
"""Padded batches with a cache; one row at a time with a cache; plain passes over one whole row."""

STEPS, LIKELY = 4, 5
"""Tokens that a row is continued by, and how many of the likeliest are compared at each."""

SAID = {
    "rows": "a batch of several prompts does not say what each says alone: one at a time",
    "plain": "decoding with its cache does not say what whole passes do: one pass for each token",
}

Decoded = Callable[[list[list[int]], Tensor], Float[Tensor, "row step vocab"]]
"""Prompts and what continues them `[row, step]`, to the log-probs at each step."""


def way_of(model: Any, what: str, reach: int, decoder: Callable[[Any], Decoded]) -> Way:
    """How a way of decoding is right for rows of up to `reach` tokens, prompt and continuation together.

    Args:
        what: the way's name in the store of proofs.
        decoder: the way itself, for the model.

    Raises:
        ModelError: they are more than the model has learned positions for.
    """
    # Proofs are for all rows up to a length, in steps: thresholds of any kind lie below it.
    whole = next((n for n in (64, 128, 256, 512) if n >= reach), -(-reach // 512) * 512)
    learned = models.learned_positions(model)
    if learned and reach > learned:
        raise ModelError(
            f"{type(model).__name__}: {reach} tokens, prompt and continuation, are more than the "
            f"{learned} that it has learned positions for; shorten the prompts or --max-new-tokens"
        )
    whole = min(whole, learned or whole)
    limit = models.context(model)
    if limit and reach <= limit:  # what the model was not made for is not asked of it
        whole = min(whole, limit)
    found = proven(model, what, whole, lambda: _try(model, whole, decoder(model)))
    way: Way = found["way"]
    if way != "batch":
        name = type(model).__name__
        warnings.warn(f"{name}: {SAID[way]} ({found['why']})", stacklevel=3)
    return way


@torch.no_grad()
def _try(model: Any, whole: int, decoded: Decoded) -> dict[str, Any]:
    """The first way that is right, and what is wrong with the others."""
    draw = torch.Generator().manual_seed(0)
    longest = whole - STEPS
    lengths = sorted({min(5, longest), max(longest // 2, 1), longest})
    vocabulary = min(text_config(model).vocab_size, 1000)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(2, vocabulary, shape, generator=draw)

    rows = [tokens(n).tolist() for n in lengths]
    forced = tokens(len(rows), STEPS)
    past = next((n for n in windows(model) if n + STEPS + len(rows[0]) <= whole), 0)
    on = tokens(1, past + STEPS)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    tolerance = 0.2 if dtype in (torch.bfloat16, torch.float16) else 1e-3
    why = ""
    with models.reading(model), paused():
        truth = _plain(model, rows, forced)
        truth_on = _plain(model, rows[:1], on)
        tries: dict[Way, Callable[[], Tensor]] = {
            "batch": lambda: decoded(rows, forced),
            "rows": lambda: torch.cat(
                [decoded([row], forced[i : i + 1]) for i, row in enumerate(rows)]
            ),
        }
        if models.rows_depend(model):
            del tries["batch"]
        for way, attempt in tries.items():
            try:
                error = _difference(attempt(), truth)
                if past:
                    error = max(error, _difference(decoded(rows[:1], on), truth_on))
            except Exception as problem:  # whatever a model does not take, the next does without
                why = f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"
                continue
            if error <= tolerance:
                return {"way": way, "why": why or models.rows_depend(model), "error": error}
            why = f"log-probs differ by {error:.2g}"
    return {"way": "plain", "why": why}


def _difference(found: Tensor, truth: Tensor) -> float:
    """Mean absolute difference at the tokens that are likely in truth, at the worst step."""
    likely = truth.topk(LIKELY, -1).indices
    error = (found.gather(-1, likely) - truth.gather(-1, likely)).abs().mean(-1).max().item()
    return error if error == error else float("inf")


def _plain(model: Any, rows: list[list[int]], forced: Tensor) -> Tensor:
    found = []
    for row, tokens in zip(rows, forced.tolist(), strict=True):
        logits = plain_logits(model, [*row, *tokens[:-1]], len(tokens))
        found.append(logits.log_softmax(-1))
    return torch.stack(found).cpu()


def plain_logits(model: Any, ids: list[int], last: int = 1) -> Float[Tensor, "last vocab"]:
    """Logits at the last tokens of one row, from a pass without a cache."""
    forget_lengths(model)
    takes = inspect.signature(model.forward).parameters
    keep: dict[str, Any] = {"logits_to_keep": last} if "logits_to_keep" in takes else {}
    if "use_cache" in takes or any(p.kind == p.VAR_KEYWORD for p in takes.values()):
        keep["use_cache"] = False
    given = torch.tensor([ids], device=next(model.parameters()).device)
    return model(input_ids=given, **keep).logits[0, -last:].float()
