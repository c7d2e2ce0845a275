"""What was run, from a stage and its finished cells."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from trimtab import models
from trimtab.batching import Encoded
from trimtab.provenance import commit
from trimtab.study.cells import Cell, values_of
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.results import About


def described_by(stage: Any, cells: Iterable[Cell], *, more: dict[str, Any], **own: Any) -> About:
    """`study.json` of a study whose settings name a model, a dtype and a device.

    Args:
        more: what this study alone has to say; the cells' processor time is added.
        own: fields of `About`.
    """
    settings, device = stage.settings, models.resolve_device(stage.settings.device)
    source = models.identify(settings.model)
    content = {c.label: json.loads(c.result.read_text(encoding="utf-8")) for c in cells}
    made, mixed = made_with((label, c.get(VERSIONS, {})) for label, c in content.items())
    for line in mixed:
        stage.progress.say(line)
    return About(
        **{"suite": "", "methods": {}, "seeds": settings.seeds, **own},
        model=source.name,
        model_digest=source.digest,
        dtype=str(models.resolve_dtype(settings.dtype, device)).removeprefix("torch."),
        device=device.type,
        threads=settings.threads,
        versions=made,
        notes=tuple(mixed),
        commit=commit(),
        settings=values_of(settings),
        more={**more, "cpu_seconds": sum(c["seconds"] for c in content.values())},
    )


def sizes(encoded: Encoded) -> dict[str, int]:
    """Items, pairs and dropped pairs of a split."""
    return {"items": encoded.n_items, "pairs": encoded.n_pairs, "dropped": encoded.dropped_pairs}
