"""Pooled states of a batch as TRL makes it: chosen answers above, rejected ones below, padded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trimtab import models
from trimtab.batching.positions import Positions
from trimtab.errors import DataError
from trimtab.models.places import seeing
from trimtab.readout import Needs, Pool, Readout, last_tokens
from trimtab.sites import Site
from trimtab.states import pooled


def positions(
    input_ids: Int[Tensor, "answer T"],
    completion: Bool[Tensor, "answer T"],
    eos: int | None,
    pool: Pool,
) -> Positions:
    """The tokens of each answer that are averaged.

    Raises:
        DataError: an answer has none, such as one that is an end marker alone.
    """
    rows, at, count = [], [], []
    last = last_tokens(pool)
    for number, (ids, mask) in enumerate(zip(input_ids, completion, strict=True)):
        where = mask.nonzero()[:, 0]
        ended = len(where) > 0 and eos is not None and int(ids[where[-1]]) == eos
        content = where[:-1] if ended else where
        kept = where[-1:] if pool == "marker" and ended else content
        if pool == "predicting":
            kept = content - 1
        elif last is not None:
            kept = content[-last:]
        if not len(kept):
            raise DataError(f"answer {number + 1} of a batch has no token to read a state of")
        rows.append(torch.full_like(kept, number))
        at.append(kept)
        count.append(len(kept))
    row = torch.cat(rows)
    return Positions(row, torch.cat(at), row, torch.tensor(count, device=row.device))


class Seen:
    """What was read in forward passes, one after the other: states pooled by answer, and log-probs of
    every token where the model's output has them, as TRL's has."""

    def __init__(self) -> None:
        self.passes: list[dict[Site, Float[Tensor, "answer d"]]] = []
        self.logps: list[Float[Tensor, "answer T"]] = []

    def readout(self, number: int, scored: Bool[Tensor, "answer T"] | None = None) -> Readout:
        """One pass as pairs: the first half of its answers are the chosen ones.

        Args:
            scored: which tokens are, to have log-probs, too.
        """
        halves = {site: h.chunk(2) for site, h in self.passes[number].items()}
        found = Readout(
            chosen={site: chosen for site, (chosen, _) in halves.items()},
            rejected={site: rejected for site, (_, rejected) in halves.items()},
        )
        if scored is None:
            return found
        tokens = scored[:, 1:].sum(1)
        logps = self.logps[number][:, -scored[:, 1:].shape[1] :].sum(1)
        return replace(
            found,
            **dict(zip(("chosen_logps", "rejected_logps"), logps.chunk(2), strict=True)),
            **dict(zip(("chosen_tokens", "rejected_tokens"), tokens.chunk(2), strict=True)),
        )


@contextmanager
def watching(watched: list[nn.Module], needs: Needs, where: Positions) -> Iterator[Seen]:
    """Within it, what passes the sites of any of the models is pooled, a pass at a time."""
    seen = Seen()

    def see(site: Site, h: Tensor) -> None:
        if not seen.passes or site in seen.passes[-1]:
            seen.passes.append({})
        seen.passes[-1][site] = pooled(h[where.row, where.at], where, needs)[1]

    def score(_: nn.Module, __: object, out: object) -> None:
        if (logps := getattr(out, "log_probs", None)) is not None:
            seen.logps.append(logps)

    with ExitStack() as stack:
        for model in watched:
            stack.callback(model.register_forward_hook(score).remove)
            for site in needs.sites:
                stack.enter_context(seeing(models.unwrapped(model), site, partial(see, site)))
        yield seen
