"""Cutting dimensions of a layer out of a model's weights.

A layer's dimensions are written by a producer (the linear layer before it) and read by a consumer
(the one after it). `ablate` zeroes what is written and read, `prune` rebuilds both without it,
`reflect` and `redirect` send the concept against its own direction. Where a normalisation lies
between the two, ablation and pruning are one function: project out, then renormalise.

Layers are `nn.Linear`, or any module with a `weight` `[..., out, in]` and a `bias` `[..., out]` or
None; leading dimensions are models trained side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import ConfigError


def ablate(producer: Any, consumer: Any, axes: Sequence[int]) -> None:
    """Zero dimensions `axes`: rows and biases of the producer, columns of the consumer. In place.

    Raises:
        ConfigError: a dimension that the layer has not, or all of them.
    """
    ablate_stream([producer], [consumer], _checked(producer, consumer, axes), [])


def prune(producer: Any, consumer: Any, axes: Sequence[int]) -> None:
    """Rebuild both layers without dimensions `axes`; the layer between is narrower. In place.

    The same function as `ablate`. Raises ConfigError as it does.
    """
    axes = _checked(producer, consumer, axes)
    keep = [i for i in range(producer.weight.shape[-2]) if i not in axes]
    _replace(producer, "weight", producer.weight[..., keep, :])
    if producer.bias is not None:
        _replace(producer, "bias", producer.bias[..., keep])
    _replace(consumer, "weight", consumer.weight[..., keep])
    for module, name in ((producer, "out_features"), (consumer, "in_features")):
        if hasattr(module, name):
            setattr(module, name, len(keep))


def reflect(producer: Any, axes: Sequence[int]) -> None:
    """Negate what is written to dimensions `axes`: the concept ends at the opposite end, where a
    fallback can have been trained to receive it. In place."""
    axes = _checked(producer, None, axes)
    with torch.no_grad():
        producer.weight[..., axes, :] *= -1
        if producer.bias is not None:
            producer.bias[..., axes] *= -1


def redirect(producer: Any, axis: int, gamma: float = 1.0) -> None:
    """Write -gamma to dimension `axis`, whatever comes in. In place.

    Raises:
        ConfigError: the producer has no bias to hold it.
    """
    axes = _checked(producer, None, [axis])
    if producer.bias is None:
        raise ConfigError("redirection is written into a bias, and the layer has none")
    with torch.no_grad():
        producer.weight[..., axes, :] = 0
        producer.bias[..., axes] = -gamma


def ablate_stream(
    writers: Iterable[Any], readers: Iterable[Any], axes: Sequence[int], embeddings: Sequence[Any]
) -> None:
    """Zero dimensions of a residual stream: everything that writes it and reads it. In place.

    Args:
        writers: linear layers whose outputs are added to the stream.
        readers: linear layers that read it, the LM head among them.
        axes: dimensions to cut.
        embeddings: token embeddings, `weight` `[token, d]`.
    """
    with torch.no_grad():
        for table in embeddings:
            table.weight[:, _checked_width(table.weight.shape[-1], axes)] = 0
        for writer in writers:
            rows = _checked_width(writer.weight.shape[-2], axes)
            writer.weight[..., rows, :] = 0
            if getattr(writer, "bias", None) is not None:
                writer.bias[..., rows] = 0
        for reader in readers:
            reader.weight[..., _checked_width(reader.weight.shape[-1], axes)] = 0


def _checked(producer: Any, consumer: Any, axes: Sequence[int]) -> list[int]:
    width = producer.weight.shape[-2]
    if consumer is not None and consumer.weight.shape[-1] != width:
        raise ConfigError(
            f"one layer writes {width} dimensions, the other reads {consumer.weight.shape[-1]}"
        )
    return _checked_width(width, axes)


def _checked_width(width: int, axes: Sequence[int]) -> list[int]:
    if bad := [a for a in axes if not 0 <= a < width]:
        raise ConfigError(f"dimension {bad[0]}: the layer has {width} (0 to {width - 1})")
    found = sorted(set(axes))
    if not found:
        raise ConfigError("no dimension to cut")
    if len(found) == width:
        raise ConfigError(f"cutting all {width} dimensions would leave no layer")
    return found


def _replace(module: Any, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    new = value.detach().clone()
    setattr(
        module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    )
