"""The spaces of a run: made from a model, one a site, trained along with the dial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded
from trimtab.dials.adapter import linear_shape
from trimtab.errors import ConfigError
from trimtab.progress import SILENT, Progress
from trimtab.readings import reference
from trimtab.readout import Needs
from trimtab.sites import Site
from trimtab.spaces import (
    TRAINABLE,
    Projector,
    Space,
    leading_directions,
    span_of,
)
from trimtab.store import Store
from trimtab.training.plan import Run
from trimtab.training.settings import SpaceSettings

SAMPLE = 256
"""Answers on which the suppressed tokens are found: the first so many of the training set."""


class Spaces(nn.Module):
    """One space a site, in the order of the sites; sites may share one."""

    def __init__(self, spaces: Mapping[Site, Space], settings: SpaceSettings):
        super().__init__()
        self.sites, self.settings = tuple(spaces), settings
        self.each = nn.ModuleList(dict.fromkeys(spaces.values()))
        self.place = [list(self.each).index(space) for space in spaces.values()]

    def items(self) -> dict[Site, Space]:
        """The spaces by site."""
        return {site: self.each[n] for site, n in zip(self.sites, self.place, strict=True)}  # type: ignore[misc]

    def forward(self, states: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """States `[..., d]` a site, in its space."""
        spaces = self.items()
        return {site: spaces[site](h) for site, h in states.items()}

    def penalty(self) -> Tensor | None:
        """The weighted mean over sites of `stretch`; None where nothing can be stretched."""
        found = [s for space in self.items().values() if (s := space.stretch()) is not None]
        return self.settings.weight_norm * torch.stack(found).mean() if found else None


def build_spaces(run: Run, needs: Needs) -> Spaces:
    """The spaces of a run, in float32 on the model's device.

    `svd` and `suppressed` are the same at every site: what is left when the top directions of
    embedding and unembedding are taken out, and the span of the unembedding rows of the tokens that
    the reference suppresses.

    Raises:
        ConfigError: a site whose states have another width than a space made from the LM head.
    """
    model, settings = run.model, run.recipe.space  # type: ignore[attr-defined]
    widths = site_widths(model, needs.sites)
    generator = torch.Generator().manual_seed(run.seed)
    device = next(model.parameters()).device
    if settings.kind in TRAINABLE:
        extra = {"rank": settings.rank} if settings.kind == "hra" and settings.rank else {}
        try:
            made: dict[Site, Space] = {
                site: TRAINABLE[settings.kind](width, generator, **extra)  # type: ignore[call-arg]
                for site, width in widths.items()
            }
        except ValueError as error:
            raise ConfigError(f"space {settings.kind}: {error}") from error
        return Spaces(made, settings).to(device)
    head = models.head_weight(model)
    if wrong := [s for s, width in widths.items() if width != head.shape[1]]:
        raise ConfigError(
            f"space {settings.kind} is made from the LM head, whose rows have {head.shape[1]} "
            f"entries; site {wrong[0]!r} has {widths[wrong[0]]}: use sites of the residual stream, "
            "or space ortho, hra, ether or etherplus"
        )
    if settings.kind == "svd":
        embedding: Tensor = models.embed(model).weight  # type: ignore[assignment]
        projector = Projector(
            leading_directions([embedding, head], settings.share).float(), without=True
        )
    else:
        tokens = suppressed_tokens(
            model, run.encoded, settings.rank or 64, store=run.store, progress=run.progress
        )
        projector = Projector(span_of(head, tokens).float())
    return Spaces(dict.fromkeys(widths, projector), settings).to(device)


@torch.no_grad()
def suppressed_tokens(
    model: nn.Module,
    encoded: Encoded,
    count: int,
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Ids of the tokens whose log-probs the reference lowers most between block N/2 and
    block N-1, read through the final norm and the LM head at the last token of the data's first
    answers, the mean over them (after wassname's "suppressed hidden states", which maps back all
    positive changes instead)."""
    layers = models.n_layers(model)
    sites: tuple[Site, Site] = (layers // 2, layers - 1)
    with progress.bar("reading the reference", encoded.n_answers, "answers") as update:
        found = reference(model, encoded, sites=sites, pool="last", store=store, progress=update)
    norm, head = models.final_norm(model), models.head(model)
    parameter = next(head.parameters())
    early, late = (
        head(norm(found.states[site][:SAMPLE].to(parameter))).float().log_softmax(-1).mean(0)
        for site in sites
    )
    return (early - late).topk(min(count, len(early))).indices


def site_widths(model: nn.Module, sites: Sequence[Site]) -> dict[Site, int]:
    """Hidden units at each site."""
    width = models.text_config(model).hidden_size
    found: dict[Site, int] = {}
    for site in sites:
        found[site] = width
        if isinstance(site, str) and ":" in site:
            path, _, side = site.rpartition(":")
            shape = linear_shape(model.get_submodule(path))
            found[site] = shape[side == "out"] if shape else width
    return found
