"""Screens before fitting: at each block, how far pairs agree on a direction, how far it tells other pairs
apart, and what the block's states say by themselves of which answer comes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Contrast, Encoded
from trimtab.directions.screens import Found, agreement, separation
from trimtab.errors import DataError, ModelError
from trimtab.models.heads import head_site, head_weight
from trimtab.progress import SILENT, Progress
from trimtab.readings import collect, reference
from trimtab.readout import Pool
from trimtab.rendering import common_length
from trimtab.sites import Site
from trimtab.states import find_sites
from trimtab.statistics import SHARE, mean_interval
from trimtab.store import Store

FEWEST = 10
"""Items below which nobody is told that pairs do not agree."""


@dataclass(frozen=True)
class Screen:
    """What a site's states say.

    Attributes:
        agreement: mean cosine of items' differences, with what random signs reach.
        separation: d' on held-out halves.
        lens: share of items whose chosen answer's first own token the logit lens puts above the
            rejected one's, read where the two part; None where nothing is common to both.
        margin: by how much, in logits before any scaling or capping behind the head.
    """

    site: Site
    agreement: Found
    separation: Found
    lens: Found | None
    margin: Found | None


def screened(
    model: nn.Module,
    encoded: Encoded | Contrast,
    sites: Sequence[Site] | None = None,
    *,
    pool: Pool = "completion",
    seed: int = 0,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> tuple[list[Screen], str]:
    """The screens of sites (all blocks by default), and what is to be said of them.

    Args:
        pool: which positions of an answer are averaged.
        seed: of resamples, random signs and halves.

    Raises:
        DataError: fewer than four items, or differences of length 0.
    """
    sites = range(models.n_layers(model)) if sites is None else sites
    pool = pool if isinstance(encoded, Encoded) else "completion"
    with progress.bar("reading states", encoded.n_answers, "answers") as update:
        found = collect(model, encoded, sites=sites, pool=pool, progress=update)
    chosen, rejected = encoded.pair_answers()
    items = items_of(encoded)
    margins, said = lens_margins(model, encoded, sites, store=store, progress=progress)
    screens = []
    for site in sites:
        d = by_item(found.states[site][chosen] - found.states[site][rejected], items)
        try:
            both = agreement(d, seed), separation(d, seed)
        except ValueError as error:
            raise DataError(f"{encoded.name}: at site {site!r}, {error}") from error
        screens.append(Screen(site, *both, *_lens(margins.get(site))))
    return screens, said


def best_site(screens: Sequence[Screen]) -> Site:
    """Where the direction of half the items tells the other half best apart; of equals the first."""
    return max(screens, key=lambda s: s.separation.value).site


def sites_for(
    spec: str,
    model: nn.Module,
    encoded: Encoded | Contrast,
    *,
    progress: Progress = SILENT,
    **how: Any,
) -> tuple[Site, ...]:
    """Sites by name; of `auto` the block whose direction tells held-out halves of these pairs best apart.
    Raises as `find_sites` and `screened`."""
    if spec != "auto":
        return find_sites(model, spec)
    best = best_site(screened(model, encoded, progress=progress, **how)[0])
    progress.say(f"{encoded.name}: block {best} tells held-out halves best apart")
    return (best,)


def items_of(encoded: Encoded | Contrast) -> list[str]:
    """The item of every pair, in the order of `pair_answers`."""
    if isinstance(encoded, Contrast):
        return list(encoded.items)
    return [row.item for row in encoded.rows for _ in row.pairs]


def by_item(values: Float[Tensor, "pair ..."], items: Sequence[str]) -> Float[Tensor, "item ..."]:
    """Means over the pairs of each item: both orders of a lettered question, or all its wrong answers."""
    place = {item: n for n, item in enumerate(dict.fromkeys(items))}
    at = torch.tensor([place[item] for item in items], device=values.device)
    total = values.new_zeros(len(place), *values.shape[1:]).index_add_(0, at, values)
    count = torch.bincount(at, minlength=len(place)).to(total)
    return total / count.reshape(-1, *[1] * (values.ndim - 1))


def disagreement(differences: Float[Tensor, "pair d"], items: Sequence[str]) -> str:
    """What is to be said where items' differences agree no more than chance has them; else nothing."""
    d = by_item(differences, items)
    if len(d) < FEWEST or not (d.norm(dim=1) > 0).all():
        return ""
    found = agreement(d)
    if found.value > found.chance:
        return ""
    return (
        f"the pairs do not agree on a direction (mean cosine {found.value:.3f}, with signs drawn at "
        f"random up to {found.chance:.3f}); trimtab inspect SPEC --model M --layers shows every block"
    )


def _lens(margin: Float[Tensor, "item"] | None) -> tuple[Found | None, Found | None]:
    if margin is None:
        return None, None
    share = mean_interval((torch.sign(margin).double().numpy() + 1) / 2, SHARE)
    return Found(*share), Found(*mean_interval(margin.double().numpy()))


# ---- the logit lens -------------------------------------------------------------------------------


def lens_margins(
    model: nn.Module,
    encoded: Encoded | Contrast,
    sites: Sequence[Site],
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[Site, Float[Tensor, "item"]], str]:
    """Logit of the first token that the chosen answer has for itself less that of the rejected one's, as
    the final norm and the head make it of a site's state at the last token that both have; by item.

    A block's state comes before the final norm, the last one's, too (site `final` has it behind it already).
    That norm and head are all that follows the last block is tried on these very states: where it is not,
    nothing is returned, and said why.
    """
    places, tokens, kept = [], [], []
    rows = encoded.rows if isinstance(encoded, Encoded) else ()
    number = 0
    for row in rows:
        for c, r in row.pairs:
            a, b = row.answers[c], row.answers[r]
            k = common_length(a, b)
            if k < min(len(a), len(b)) and len(row.prompt) + k:
                places.append((*row.prompt, *a[:k]))
                tokens.append((a[k], b[k]))
                kept.append(number)
            number += 1
    if not places:
        return {}, "no logit lens: nothing is common to chosen and rejected"
    norm, ask = _norm_of(model), head_site(model)
    if norm is None:
        return {}, "no logit lens: no final norm was found"
    distinct = dict.fromkeys(places)
    at = {ids: n for n, ids in enumerate(distinct)}
    poles = tuple((at[ids], len(ids)) for ids in places)
    items = items_of(encoded)
    read = Contrast(
        tuple(distinct),
        poles,
        poles,
        tuple(items[n] for n in kept),
        0,
        f"{encoded.name}, where answers part",
    )
    last = models.n_layers(model) - 1
    with progress.bar("reading the lens", read.n_answers, "prompts") as update:
        found = reference(
            model, read, sites=(*dict.fromkeys((*sites, last)), ask), store=store, progress=update
        )
    weight = head_weight(model)
    with torch.no_grad():
        mine, normed = found.states[ask].float(), norm(found.states[last])
        if not torch.allclose(normed, mine, rtol=1e-2, atol=1e-2 * float(mine.abs().mean())):
            return {}, "no logit lens: between the last block and the head is more than a norm"
        c, r = torch.tensor(tokens).T.to(weight.device)
        toward = (weight[c] - weight[r]).float()
        bias: Any = getattr(models.head(model), "bias", None)
        shift = 0.0 if bias is None else (bias[c] - bias[r]).float()
        which, _ = read.pair_answers()
        margins = {}
        for site in sites:
            h = found.states[site][which]
            state = (h if site in ("final", ask) else norm(h)).to(toward.device)
            margins[site] = by_item((state * toward).sum(1) + shift, read.items).cpu()
    left = number - len(kept)
    return margins, f"logit lens: {left} pairs without a common token are left out" if left else ""


def _norm_of(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The model's own final norm, on float states."""
    try:
        norm: Any = models.final_norm(model)
    except ModelError:
        return None
    parameter = next(iter(norm.parameters()), next(model.parameters()))
    return lambda h: norm(h.to(parameter)).float()
