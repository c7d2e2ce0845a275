"""What can be done to hidden states along a direction: functions of states, tensors alone.

States h are `[..., d]`, a direction v is a unit vector `[d]`. Each function gives the changed
states; how much of the change is made (alpha), where, and for which rows is a dial's business.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "... d"]
Direction = Float[Tensor, "d"]


def add(h: States, step: Direction) -> States:
    """h + step (contrastive activation addition, Rimsky et al. 2024, sec. 3)."""
    return h + step


def project_out(h: States, v: Direction) -> States:
    """h without its component along v: h - <h, v> v (directional ablation, Arditi et al. 2024)."""
    return h - _component(h, v) * v


def suppress_above(h: States, v: Direction, threshold: float = 0.0) -> States:
    """The component along v capped at a threshold, in the states' units; what lies below stays.

    At 0 the half-space that v points into loses its component, the other one is untouched.
    """
    return h - (_component(h, v) - threshold).clamp(min=0) * v


def repel(h: States, v: Direction, cosine: float = 0.0) -> States:
    """States whose cosine with v exceeds a limit, turned away from v until it does not.

    Lengths are kept, and so is the direction of what is orthogonal to v. A state along v itself,
    which has no such direction, is turned towards the axis that v uses least.
    """
    length = h.norm(dim=-1, keepdim=True)
    along = _component(h, v)
    rest = h - along * v
    off = rest.norm(dim=-1, keepdim=True)
    spare = torch.zeros_like(v)
    spare[v.abs().argmin()] = 1.0
    spare = project_out(spare, v)
    none = off <= 1e-6 * length
    away = torch.where(none, spare / spare.norm(), rest / off.clamp(min=1e-30))
    turned = length * (cosine * v + (1 - cosine**2) ** 0.5 * away)
    return torch.where(along > cosine * length, turned, h)


def replace(h: States, v: Direction, value: float) -> States:
    """The component along v set to a value, in the states' units, whatever it was (clamping)."""
    return h + (value - _component(h, v)) * v


def keep_norm(new: States, old: States) -> States:
    """The new states at the old ones' lengths; a new state of length 0 stays what it is."""
    length = new.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, new * (old.norm(dim=-1, keepdim=True) / length), new)


def _component(h: Tensor, v: Tensor) -> Tensor:
    """<h, v>, `[..., 1]`."""
    return (h * v).sum(-1, keepdim=True)
