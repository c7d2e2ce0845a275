"""The dial of a training recipe before its first step: drawn from the seed, the identity at any alpha."""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import Any

import torch
from torch import nn

from trimtab import models
from trimtab.batching import Encoded
from trimtab.dials import AdapterDial, DeloraDial, Dial, IA3Dial, RoadDial, VeraDial
from trimtab.dials.experts import stacked
from trimtab.dials.low_rank import column_norms
from trimtab.dials.reft import ReftDial
from trimtab.dials.targets import ALL, EXPERTS, left_out, linear_modules
from trimtab.dials.vector import STRENGTH, width_of
from trimtab.errors import ConfigError
from trimtab.progress import SILENT, Progress
from trimtab.readings import reference
from trimtab.readout import Needs
from trimtab.sites import Site, parse_sites
from trimtab.store import Store
from trimtab.training.plan import Run
from trimtab.training.rotation import new_rotation
from trimtab.training.screens import sites_for
from trimtab.training.settings import (
    AdapterSettings,
    ReftSettings,
    RotationSettings,
    VectorSettings,
)
from trimtab.training.vectors import LearnedVector


def new_dial(run: Run, needs: Needs, deepest: int) -> Dial:
    """What a training recipe trains.

    Args:
        deepest: the last block that the objective sees anything of.
    """
    settings, model, progress = run.recipe.dial, run.model, run.progress
    generator = torch.Generator().manual_seed(run.seed)
    if isinstance(settings, RotationSettings):
        spread = 2e-3 if run.recipe.both_ends else 0.0  # at 0 both ends are one point, a saddle
        return new_rotation(settings, model, run.encoded, needs, run.seed, progress, spread=spread)
    if isinstance(settings, VectorSettings | ReftSettings):
        sites = sites_for(settings.sites, model, run.encoded, store=run.store, progress=progress)
        hidden = models.text_config(model).hidden_size
        widths = {site: width_of(model, site) or hidden for site in sites}
        where: Any = settings.positions
        if isinstance(settings, ReftSettings):
            return ReftDial(
                widths,
                form=settings.form,
                rank=min(settings.rank, *widths.values()),
                positions=where,
                generator=generator,
            )
        scales = None if settings.unit == "raw" else dict.fromkeys(sites, 1.0)
        return LearnedVector(widths, scales, positions=where, largest=settings.largest)
    count = models.n_layers(model)
    blocks = parse_sites(settings.blocks or "0..1", count)
    some = {k for k in blocks if isinstance(k, int) and k <= deepest}
    if not some:
        raise ConfigError(
            f"dial.blocks {settings.blocks}: all above block {deepest}, the last that the objective sees"
        )
    within = None if len(some) == count else some
    rank, dropout = settings.rank, settings.dropout
    if settings.tuner == "lora":
        dial = new_lora(settings, model, within, generator)
        if within is None:
            say_left_out(settings, model, {*dial.paths, *dial.parameters_of}, progress)
        return dial
    shapes = linear_modules(model, settings.targets, within)
    if within is None:
        say_left_out(settings, model, shapes.keys(), progress)
    match settings.tuner:
        case "ia3":
            return IA3Dial(shapes)
        case "road":
            return RoadDial(shapes)
        case "vera":
            return VeraDial(shapes, rank=rank, dropout=dropout, generator=generator)
        case "delora":
            norms = column_norms(model, shapes)
            return DeloraDial(shapes, rank=rank, dropout=dropout, norms=norms, generator=generator)
    raise ConfigError(f"dial.tuner {settings.tuner!r}: expected lora, ia3, road, vera or delora")


def in_units(
    dial: Dial, model: nn.Module, encoded: Encoded, store: Store | None, progress: Progress = SILENT
) -> dict[Site, float]:
    """The states' mean length at the sites of a dial that edits states, a tenth of which becomes the
    unit in which it is trained; empty for other dials."""
    if not isinstance(dial, LearnedVector | ReftDial):
        return {}
    with progress.bar("reading states", encoded.n_answers, "answers") as update:
        found = reference(model, encoded, sites=dial.sites, store=store, progress=update)
    lengths = {site: found.norms[site].mean().item() for site in dial.sites}
    if not getattr(dial, "raw", False):
        dial.scales = {site: STRENGTH * length for site, length in lengths.items()}
    return lengths


def new_lora(
    settings: AdapterSettings,
    model: nn.Module,
    blocks: Collection[int] | None,
    generator: torch.Generator,
) -> AdapterDial:
    """A LoRA by its settings, not yet trained."""
    return AdapterDial.for_model(
        model,
        settings.targets,
        blocks,
        rank=settings.rank,
        lora_alpha=settings.lora_alpha,
        dropout=settings.dropout,
        rslora=settings.rslora,
        generator=generator,
    )


def say_left_out(
    settings: AdapterSettings, model: nn.Module, adapted: Set[str], progress: Progress
) -> None:
    """What an adapter on all there is to adapt leaves out."""
    if settings.targets not in (ALL, EXPERTS):
        return
    lines = left_out(model, adapted)
    if settings.targets == ALL and any("expert" in line for line in lines) and stacked(model):
        lines[-1] += "; --dial.targets experts adapts stacked experts"
    for line in lines:
        progress.say(line)
