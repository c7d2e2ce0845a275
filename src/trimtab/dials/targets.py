"""On which layers of a model an adapter sits, and what it leaves out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Set

from torch import nn

from trimtab import models
from trimtab.dials.linear import linear_shape
from trimtab.dials.trial import refuse_unfit, unfit
from trimtab.errors import DialError

ALL, EXPERTS = "all-linear", "experts"


def linear_modules(
    model: nn.Module, targets: str = ALL, blocks: Collection[int] | None = None
) -> dict[str, tuple[int, int]]:
    """Linear layers inside decoder layers, by path, with (in, out) features.

    Args:
        targets: `all-linear`: all on which an adapter acts as it would on a weight, found by trying
            (`trial.unfit`); or a regular expression searched in the paths.
        blocks: only these decoder layers.

    Raises:
        DialError: nothing matches (the linear layers of the first block are listed), or what is named
            is no place for an adapter.
    """
    found: dict[str, tuple[int, int]] = {}
    names: list[str] = []
    seen: set[nn.Module] = set()
    try:
        search = re.compile(targets).search
    except re.error as error:
        raise DialError(f"targets {targets!r}: not a regular expression ({error})") from error
    for k, prefix in enumerate(models.layer_paths(model)):
        for name, module in models.layers(model)[k].named_modules():
            if (shape := linear_shape(module)) is None or module in seen:
                continue
            seen.add(module)
            path = f"{prefix}.{name}"
            names.append(path)
            if (blocks is None or k in blocks) and (targets == ALL or search(path)):
                found[path] = shape
    if found and targets == ALL:
        reasons = unfit(model)
        if fit := {path: shape for path, shape in found.items() if not reasons[path]}:
            return fit
        path = next(iter(found))
        raise DialError(f"targets {ALL}: no linear layer can be adapted; {path}: {reasons[path]}")
    if not found:
        few = ", ".join(sorted({_kind(n) for n in names})[:12])
        raise DialError(f"targets {targets!r} match no linear layer; the model has {few}")
    refuse_unfit(model, found, training=True)
    return found


def left_out(model: nn.Module, adapted: Set[str]) -> list[str]:
    """What an adapter on all linear layers leaves out, in lines to be said: layers that are no place for
    one, and the share of the decoder layers' weights that it does not sit on.

    Args:
        adapted: paths of the modules and parameters that it sits on.
    """
    reasons = unfit(model)
    places: Counter[tuple[str, str]] = Counter()
    total, missed = 0, Counter[str]()
    for prefix, layer in zip(models.layer_paths(model), models.layers(model), strict=True):
        for name, _ in layer.named_modules():
            if (why := reasons.get(f"{prefix}.{name}")) and f"{prefix}.{name}" not in adapted:
                places[_kind(name), why] += 1
        for name, p in layer.named_parameters():
            if p.ndim < 2:
                continue
            total += p.numel()
            if adapted.isdisjoint({f"{prefix}.{name}", f"{prefix}.{name}".rpartition(".")[0]}):
                missed[_kind(name)] += p.numel()
    lines = [f"left out: {n} x {kind}, {why}" for (kind, why), n in places.items()]
    if missed:
        few = ", ".join(f"{k} {n / total:.1%}" for k, n in missed.most_common(4))
        more = ", …" if len(missed) > 4 else ""
        lines.append(
            f"the adapter sits on {1 - missed.total() / total:.0%} of the decoder layers' weights, "
            f"not on {few}{more}"
        )
    return lines


def _kind(path: str) -> str:
    """A path with N for the numbers in it."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", path)
