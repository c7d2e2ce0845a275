"""Maps of hidden states in which an objective compares them: states in, states out.

A space is an `nn.Module` on tensors `[..., d]`, one a site. `isometric` spaces keep all lengths and
angles; trainable ones that are not pay for changing lengths (`stretch`).
"""

from trimtab.spaces.projection import Projector, leading_directions, span_of
from trimtab.spaces.space import Space
from trimtab.spaces.trainable import Ether, EtherPlus, Householder, Orthogonal

TRAINABLE: dict[str, type[Space]] = {
    "ortho": Orthogonal,
    "hra": Householder,
    "ether": Ether,
    "etherplus": EtherPlus,
}
"""Spaces made from a width alone; `svd` and `suppressed` are a `Projector`, fixed for a run."""

__all__ = [
    "TRAINABLE",
    "Ether",
    "EtherPlus",
    "Householder",
    "Orthogonal",
    "Projector",
    "Space",
    "leading_directions",
    "span_of",
]
