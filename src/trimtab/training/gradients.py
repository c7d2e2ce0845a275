"""Gradients of a loss with respect to hidden states, a chosen and a rejected one a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import (
    Batch,
    Contrast,
    Encoded,
    collate,
    gradient_batches,
    layout_of,
    node_batches,
    plan_batches,
    unshared,
)
from trimtab.batching.spans import the_line
from trimtab.errors import ConfigError, DataError
from trimtab.objectives import Objective
from trimtab.readings import Progress
from trimtab.readout import Needs, Readout
from trimtab.sites import Site
from trimtab.states import by_row, depth, input_of, module_at, pair_up, pooled_tokens, read
from trimtab.training.probe import check_gradients


@dataclass
class Gradients:
    """Of every pair, in order: the gradient of its loss at the state of each pole, by site."""

    chosen: dict[Site, Float[Tensor, "pair d"]]
    rejected: dict[Site, Float[Tensor, "pair d"]]


def read_gradients(
    model: nn.Module,
    encoded: Encoded | Contrast,
    objective: Objective,
    sites: Sequence[Site],
    *,
    whole: bool = False,
    budget: int = 2048,
    progress: Progress | None = None,
) -> Gradients:
    """One backward pass over the pairs, each for itself: nothing is averaged before it is returned.

    The state that a gradient is taken at is, for a contrast, that of the token a pole is read at;
    otherwise one vector added to every token of the answer. The reference is the model itself. The
    gradients are float32 (float64 in a float64 model), whatever the model's dtype; weights, quantised
    ones too, take none.

    Args:
        whole: log-probs are those of the whole sequence up to the token after the one that is read,
            as published, instead of that token's alone. Only it depends on the state, so that this
            changes weights, not directions of single gradients. Contrasts only.

    Raises:
        ConfigError: no gradient reaches a site, because the loss reads nothing above it.
        DataError: the loss needs the log-prob of a token after the one read, and there is none.
        TrainingError: gradients through the base are wrong.
    """
    check_gradients(model)
    needs = objective.needs(models.n_layers(model))
    check_reached(model, needs, sites)
    before = sequence_logps(model, encoded, budget) if whole and needs.logps else None
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    numbers: list[int] = []
    with models.differentiable(model):
        for batch, pairs in _pair_batches(encoded, budget, model):
            if needs.logps and not batch.token_scored.any():
                raise DataError(
                    f"{encoded.name}: the loss needs a token after the one that is read; there is none"
                )
            chosen, rejected = batch.pair_chosen, batch.pair_rejected
            each: dict[Site, Tensor] = {}
            # Pairs that share an answer take turns: one backward pass would sum their gradients there.
            for turn in _turns(chosen.tolist(), rejected.tolist()):
                grads = _one_pass(model, batch, objective, needs, sites, turn, before, pairs)
                for site, grad in grads.items():
                    into = each.setdefault(site, grad.new_zeros(2, len(pairs), grad.shape[1]))
                    into[:, turn] = torch.stack([grad[chosen[turn]], grad[rejected[turn]]])
            for site in sites:
                found[site].append(each[site].cpu())
            numbers += pairs
            if progress:
                progress(len(numbers), encoded.n_pairs)
    back = torch.tensor(numbers).argsort()
    joined = {site: torch.cat(parts, 1)[:, back] for site, parts in found.items()}  # two pair d
    return Gradients({s: g[0] for s, g in joined.items()}, {s: g[1] for s, g in joined.items()})


def check_reached(model: nn.Module, needs: Needs, sites: Sequence[Site]) -> None:
    """Raise ConfigError where a site lies above everything that the loss reads."""
    if needs.logps:
        return
    deepest = max((depth(model, s) for s in needs.sites), default=-1)
    for site in sites:
        if depth(model, site) > deepest:
            raise ConfigError(
                f"site {site!r}: the loss reads states after block {deepest} and nothing above it, "
                "so that it has no gradient there; choose a lower site"
            )


def sequence_logps(
    model: nn.Module, contrast: Encoded | Contrast, budget: int = 2048
) -> Float[Tensor, "pair two two"]:
    """For every pair and pole the summed log-prob of the tokens up to the one it is read at, and how
    many they are. Each distinct prefix is computed once."""
    if not isinstance(contrast, Contrast):
        raise ConfigError("whole sequences are scored for contrasts only")
    device = next(model.parameters()).device
    sums: list[Tensor] = [torch.zeros(0)] * len(contrast.sequences)
    with torch.no_grad():
        for batch, sequences in node_batches(contrast, budget, layout_of(model, contrast)):
            logps = read(model, batch.to(device), logps=True).logps
            assert logps is not None
            for s, answers in sequences:
                token = logps[torch.tensor(answers, dtype=torch.long, device=device)]
                sums[s] = torch.cat([token.new_zeros(1), token.cumsum(0)]).cpu()
    return torch.stack(
        [
            torch.stack([torch.stack([sums[s][n - 1], torch.tensor(n - 1.0)]) for s, n in poles])
            for poles in zip(contrast.chosen, contrast.rejected, strict=True)
        ]
    )


def _pair_batches(
    encoded: Encoded | Contrast, budget: int, model: nn.Module
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of whole pairs on the model's device, and each pair's place in row order."""
    # Not "shared": its prefix is a pass of its own, which the probes are not made for.
    layout = unshared(layout_of(model, encoded))
    device = next(model.parameters()).device
    if isinstance(encoded, Contrast):
        for batch, pairs in gradient_batches(encoded, budget, layout):
            yield batch.to(device), pairs
        return
    first = [0]
    for row in encoded.rows:
        first.append(first[-1] + len(row.pairs))
    for rows in plan_batches(encoded, budget, layout):
        yield (
            collate(encoded, rows, layout).to(device),
            [n for i in rows for n in range(first[i], first[i + 1])],
        )


@contextmanager
def _probe(
    model: nn.Module, site: Site, batch: Batch, probes: dict[Site, Tensor]
) -> Iterator[None]:
    """Add a vector of zeros an answer to its tokens' states, to take a gradient with respect to it."""
    module, is_input = module_at(model, site)
    where = pooled_tokens(batch, "completion")

    def add(h: Tensor) -> Tensor:
        line, _ = the_line() or (None, 1)
        rows = by_row(h, batch if line is None else batch.line(line), site)
        if not line:  # None, or the first of several
            dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
            probe = torch.zeros(batch.n_answers, rows.shape[-1], dtype=dtype, device=h.device)
            probes[site] = probe.requires_grad_()
        here = where.row >= 0 if line is None else where.row == line
        row = where.row[here] if line is None else torch.zeros_like(where.row[here])
        added = probes[site][where.answer[here]].to(h.dtype)
        return rows.index_put((row, where.at[here]), added, accumulate=True).view_as(h)

    def at_input(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (add(args[0]), *args[1:]), kwargs
        h = input_of(args, kwargs)
        name = next(k for k, v in kwargs.items() if v is h)
        return args, {**kwargs, name: add(h)}

    def at_output(_: nn.Module, __: Any, out: Any) -> Any:
        return (add(out[0]), *out[1:]) if isinstance(out, tuple) else add(out)

    if is_input:
        handle = module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(at_output)
    try:
        yield
    finally:
        handle.remove()


def _one_pass(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    needs: Needs,
    sites: Sequence[Site],
    turn: list[int],
    before: Tensor | None,
    pairs: list[int],
) -> dict[Site, Float[Tensor, "answer d"]]:
    """Gradients of the summed losses of some of a batch's pairs at all of its answers."""
    probes: dict[Site, Tensor] = {}
    with torch.enable_grad(), ExitStack() as stack:
        for site in sites:
            stack.enter_context(_probe(model, site, batch, probes))
        policy = pair_up(read(model, batch, logps=needs.logps, sites=needs.sites), batch)
        if before is not None:
            policy = _longer(policy, before[pairs])
        loss, _ = objective(policy, _detached(policy))
        grads = torch.autograd.grad(loss[turn].sum(), [probes[s] for s in sites], allow_unused=True)
    return {  # nothing that the loss reads depends on a probe without one
        site: torch.zeros_like(probes[site]) if grad is None else grad
        for site, grad in zip(sites, grads, strict=True)
    }


def _turns(chosen: Sequence[int], rejected: Sequence[int]) -> list[list[int]]:
    """Pairs in groups within which no answer occurs twice."""
    turns: list[list[int]] = []
    taken: list[set[int]] = []
    for pair, answers in enumerate(zip(chosen, rejected, strict=True)):
        turn = next((n for n, used in enumerate(taken) if not used & set(answers)), len(turns))
        if turn == len(turns):
            turns.append([])
            taken.append(set())
        turns[turn].append(pair)
        taken[turn] |= set(answers)
    return turns


def _longer(readout: Readout, before: Tensor) -> Readout:
    """Log-probs of the tokens before, a constant, added to those read."""
    new = {}
    for pole, name in enumerate(("chosen", "rejected")):
        for what, kind in enumerate(("logps", "tokens")):
            value = getattr(readout, f"{name}_{kind}")
            new[f"{name}_{kind}"] = value + before[:, pole, what].to(value.device)
    return dataclasses.replace(readout, **new)


def _detached(readout: Readout) -> Readout:
    """The same values without a graph: what a frozen copy of the model would give."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        return value.detach() if isinstance(value, Tensor) else value

    return Readout(**{f.name: cut(getattr(readout, f.name)) for f in dataclasses.fields(Readout)})
