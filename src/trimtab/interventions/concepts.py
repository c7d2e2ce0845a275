"""Acting on the direction of a concept: states in, states out.

`v` is a direction `[d]` (normalised here), states are `[..., d]`. Where a state has length 0
nothing is changed. Source: Sparse Concept Anchoring (arXiv 2512.12469) and its code, which acts on
one side of the concept only where the paper's formulas act on both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.interventions.falloffs import Falloff, Linear, Mapper

EPS = 1e-8


def alignment(x: Float[Tensor, "... d"], v: Float[Tensor, "d"]) -> Float[Tensor, "... 1"]:
    """Cosine with the concept, clamped to 0..1: a state on the far side counts as unaligned."""
    return ((x @ unit(v).to(x)) / (x.norm(dim=-1) + EPS)).clamp(0, 1).unsqueeze(-1)


def suppress(
    x: Float[Tensor, "... d"], v: Float[Tensor, "d"], falloff: Falloff | Mapper | None = None
) -> Float[Tensor, "... d"]:
    """x - g(a) (x . v) v: less of the concept in states that hold it; the far side is untouched.

    With the hard gate `Falloff(power=0)` this is a one-sided projection. With a mapper m, g is
    1 - m(a) / a: the part along v becomes m(a) of the state's former length. Directions at right
    angles to the concept are kept; lengths are not.
    """
    v = unit(v).to(x)
    a = alignment(x, v)
    if falloff is None or isinstance(falloff, Falloff):
        strength = (falloff or Falloff())(a)
    else:
        strength = torch.where(a > 0, 1 - falloff(a) / a.clamp(min=EPS), 0.0)
    return x - strength * (x @ v).unsqueeze(-1) * v


def repel(
    x: Float[Tensor, "... d"],
    v: Float[Tensor, "d"],
    mapper: Mapper | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "... d"]:
    """States on the concept's side turned away from it until their cosine is m(a); lengths stay.

    x' = ||x|| (m v + sqrt(1 - m^2) u), u the direction of x without v. A state that is nothing but
    the concept has no such direction; one at right angles is drawn for it (from `generator`, or a
    fixed one, so that the same state always ends in the same place).
    """
    v = unit(v).to(x)
    length = x.norm(dim=-1, keepdim=True)
    along = (x @ v).unsqueeze(-1)
    rest = x - along * v
    size = rest.norm(dim=-1, keepdim=True)
    lost = size <= EPS * length.clamp(min=1)
    if bool(lost.any()):
        drawn = torch.randn(
            x.shape[-1], generator=generator or torch.Generator().manual_seed(0)
        ).to(x)
        away = unit(drawn - (drawn @ v) * v)
        rest, size = torch.where(lost, away, rest), torch.where(lost, 1.0, size)
    left = (mapper or Linear())(alignment(x, v)).clamp(-1, 1)
    turned = length * (left * v + (1 - left**2).clamp(min=0).sqrt() * rest / size)
    return torch.where((along > 0) & (length > 0), turned, x)


def project(
    x: Float[Tensor, "... d"],
    axes: Sequence[int] | Float[Tensor, "d"],
    *,
    renormalise: bool = False,
) -> Float[Tensor, "... d"]:
    """States without a subspace: dimensions `axes` set to 0, or a direction projected out.

    Args:
        axes: dimensions, or one direction `[d]`.
        renormalise: give each state its former length again (what is left of a state that was
            nothing but the concept stays 0).
    """
    if isinstance(axes, Tensor):
        v = unit(axes).to(x)
        out = x - (x @ v).unsqueeze(-1) * v
    else:
        keep = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        keep[list(axes)] = 0
        out = x * keep
    if not renormalise:
        return out
    return out * (x.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True).clamp(min=EPS))


def reflect(x: Float[Tensor, "... d"], v: Float[Tensor, "d"]) -> Float[Tensor, "... d"]:
    """x - 2 (x . v) v: the concept sent to the opposite direction; lengths stay."""
    v = unit(v).to(x)
    return x - 2 * (x @ v).unsqueeze(-1) * v


def redirect(
    x: Float[Tensor, "... d"], v: Float[Tensor, "d"], gamma: float = 1.0
) -> Float[Tensor, "... d"]:
    """x - (x . v) v - gamma v: whatever a state held of the concept, it now points against it."""
    v = unit(v).to(x)
    return x - ((x @ v).unsqueeze(-1) + gamma) * v


def unit(v: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    """A direction at length 1. Raises ConfigError where it is zero or not finite."""
    length = v.norm()
    if not (torch.isfinite(length) and length > 0):
        raise ConfigError("a concept's direction is zero or not finite")
    return v / length
