"""Terms that place concepts in a model's states while it is trained ("prescriptive" anchoring).

Each loss is a frozen dataclass of hyperparameters, called on states `[..., sample, d]`; it gives a
value a sample, `[..., sample]`. Leading dimensions are independent models (seeds trained side by
side). `Term` joins a loss to a column of the timeline, a layer, and the labels that it answers to;
`pooled` turns values a position into values a sequence. Source: Sparse Concept Anchoring
(arXiv 2512.12469), formulas as the published code has them where paper and code differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.bounds import Bounded, Positive, Within, check
from trimtab.errors import ConfigError
from trimtab.sites import Site

EPS = 1e-8


class Loss(Protocol):
    """States `[..., sample, d]` to a value a sample, `[..., sample]`."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample, unreduced."""
        ...


# ---- shape of the space -------------------------------------------------------------------------


@dataclass(frozen=True)
class Unitarity:
    """(||z|| - 1)^2: states of length 1. For a layer before any normalisation."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        return (z.norm(dim=-1) - 1) ** 2


@dataclass(frozen=True)
class Subspace(Bounded):
    """Sum of z_d^2 over the dimensions outside `axes`: states in an axis-aligned subspace.

    With axes 0 and 1 this is the planarity of the colour wheel.
    """

    axes: tuple[int, ...] = (0, 1)
    """The dimensions that states may use."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        outside = [i for i in range(z.shape[-1]) if i not in _within(self.axes, z)]
        return (z[..., outside] ** 2).sum(-1)


@dataclass(frozen=True)
class AntiSubspace(Bounded):
    """Sum of z_d^2 over the dimensions `axes`: states out of dimensions that are reserved."""

    axes: tuple[int, ...] = (0,)
    """The reserved dimensions."""
    relative: bool = False
    """Of states divided by their length: for layers whose states have any."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        energy = (z[..., list(_within(self.axes, z))] ** 2).sum(-1)
        return energy / ((z**2).sum(-1) + EPS) if self.relative else energy


# ---- places for concepts ------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchor(Bounded):
    """||z - v||^2 with v the unit vector of `axis` (negative with `sign` -1)."""

    axis: int = 0
    """The concept's dimension."""
    sign: Literal[1, -1] = 1
    """Which end of the axis."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        (axis,) = _within((self.axis,), z)
        along = z[..., axis]
        return (z**2).sum(-1) - 2 * self.sign * along + 1


@dataclass(frozen=True)
class AngularAnchor(Bounded):
    """1 - cos(z, v), between 0 and 2; no more pull once the cosine is above `enough`."""

    axis: int = 0
    """The concept's dimension."""
    sign: Literal[1, -1] = 1
    """Which end of the axis."""
    enough: Annotated[float, Within(-1, 1, of="a cosine")] = 1.0
    """A hinge: samples this close are left alone, and their loss is 0."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        away = 1 - self.sign * cosine(z, self.axis)
        return away if self.enough >= 1 else (away - (1 - self.enough)).clamp(min=0)


@dataclass(frozen=True)
class AntiAnchor(Bounded):
    """max(0, cos(z, -v)): everything out of the half-space opposite to the anchor.

    Without `hemisphere`, (1 + cos(z, -v)) / 2, which pushes over the whole sphere.
    """

    axis: int = 0
    """The concept's dimension."""
    sign: Literal[1, -1] = 1
    """Which end of the axis is the anchor's."""
    hemisphere: bool = True
    """Only the opposite half-space is penalised."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        opposed = -self.sign * cosine(z, self.axis)
        return opposed.clamp(min=0) if self.hemisphere else (1 + opposed) / 2


@dataclass(frozen=True)
class ReferenceAnchor:
    """Mean over dimensions of (z - z_ref)^2, to places that were read earlier, sample by sample.

    0 as long as nothing was read.
    """

    places: Tensor | None = None
    """Where each sample was when the anchor was set, `[..., sample, d]`."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        if self.places is None:
            return torch.zeros_like(z[..., 0])
        return ((z - self.places) ** 2).mean(-1)


@dataclass(frozen=True)
class Fallback(Bounded):
    """Mean squared distance of an output `[..., sample, d]` from a harmless one.

    Applied to what the decoder makes of the direction that anti-anchoring keeps empty (-v), so that
    a concept reflected there ends at `target` in every seed.
    """

    target: tuple[float, ...] | float = 0.5
    """The output wanted there: one value for all entries, or a value each."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        return ((z - torch.as_tensor(self.target).to(z)) ** 2).mean(-1)


# ---- room between samples -----------------------------------------------------------------------


@dataclass(frozen=True)
class Separate(Bounded):
    """Sum over the batch of f(cos(z_i, z_j))^power: samples spread over the sphere.

    f(c) = (1 + c) / 2 with `shift`, else c (with an even power, opposite samples repel too). Pairs
    closer than about 4.5 mrad count as the same sample, drawn twice, and do not repel. The sum is
    over partners, so the term grows with the batch.
    """

    power: Positive = 100.0
    """Steepness: at 100 with shift the half-width is 9.5 degrees, at 10 without it 21."""
    shift: bool = True
    """Map cosines to 0..1 first."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        unit = z / (z.norm(dim=-1, keepdim=True) + EPS)
        c = unit @ unit.mT  # ... sample sample
        c = c.masked_fill(c.detach() >= 1 - 1e-5, 0.0)
        f = 0.5 * c + 0.5 if self.shift else c
        whole = float(self.power).is_integer() and self.power >= 1
        return (_WholePower.apply(f, int(self.power)) if whole else f**self.power).sum(-1)


class _WholePower(torch.autograd.Function):
    """x^n by repeated squaring, several times as fast as `pow`; x^(n - 1) is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        lower, square, rest = None, x, n - 1
        while rest:
            if rest & 1:
                lower = square if lower is None else lower * square
            rest >>= 1
            if rest:
                square = square * square
        lower = torch.ones_like(x) if lower is None else lower
        ctx.save_for_backward(lower)
        ctx.n = n
        return lower * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (lower,) = ctx.saved_tensors
        return grads[0] * lower * ctx.n, None


@dataclass(frozen=True)
class EuclideanSeparate(Bounded):
    """Mean over partners of 1 / (||p_i - p_j||^2 + 1e-6) in the dimensions `axes`.

    `sound` leaves a sample out of its own partners. `published` masks the distance instead, which
    leaves a constant 1e6 / batch, without gradient, in the value.
    """

    axes: tuple[int, ...] = (0, 1)
    """Dimensions in which distances are taken."""
    variant: Literal["sound", "published"] = "sound"
    """Whether a sample's distance to itself is left out."""

    def __call__(self, z: Float[Tensor, "... sample d"]) -> Float[Tensor, "... sample"]:
        """The loss of each sample."""
        p = z[..., list(_within(self.axes, z))]
        apart = ((p.unsqueeze(-2) - p.unsqueeze(-3)) ** 2).sum(-1)  # ... sample sample
        own = torch.eye(p.shape[-2], dtype=torch.bool, device=z.device)
        repel = 1 / (apart.masked_fill(own, 0.0) + 1e-6)
        if self.variant == "sound":
            repel = repel.masked_fill(own, 0.0)
        return repel.mean(-1)


# ---- terms --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A loss with its place in training.

    Raises:
        ConfigError: an affinity outside 0..1, or an unknown pooling.
    """

    name: str
    """The timeline's column that holds its weight."""
    loss: Loss
    """What is minimised."""
    layer: Site = "bottleneck"
    """Where states are read."""
    labels: Mapping[str, float] | None = None
    """Affinity with each label, 0..1; None: every sample alike."""
    pool: Literal["mean", "mellowmax", "last"] = "mean"
    """For sequences: how values of positions become one of the sequence."""
    tau: Positive = 0.1
    """Temperature of mellowmax."""

    def __post_init__(self) -> None:
        check(self, f"term {self.name!r}: {{}} is")
        for label, affinity in (self.labels or {}).items():
            if not 0 <= affinity <= 1:
                raise ConfigError(
                    f"term {self.name!r}: affinity {affinity} with label {label!r}: expected 0..1"
                )

    def __call__(
        self,
        z: Float[Tensor, "... sample d"] | Float[Tensor, "... sample position d"],
        labels: Mapping[str, Float[Tensor, "... sample"]] | None = None,
        mask: Bool[Tensor, "... sample position"] | None = None,
    ) -> Float[Tensor, "..."]:
        """The term's value, averaged over samples by their affinity.

        Args:
            z: states; with `mask`, a state a position.
            labels: labels of the samples, 0..1.
            mask: which positions are pooled.

        Raises:
            ConfigError: a label that the batch does not have, or one outside 0..1.
        """
        values = self.loss(z)
        if mask is not None:
            values = pooled(values, mask, self.pool, self.tau)
        return weighted(values, self.affinity(labels))

    def affinity(
        self, labels: Mapping[str, Float[Tensor, "... sample"]] | None
    ) -> Float[Tensor, "... sample"] | None:
        """Each sample's share in the term: the sum of its labels times the affinities, clipped to
        0..1; None where every sample counts alike."""
        if self.labels is None:
            return None
        total: Tensor | float = 0.0
        for label, strength in self.labels.items():
            if labels is None or label not in labels:
                raise ConfigError(
                    f"term {self.name!r}: no label {label!r} in the batch "
                    f"(it has {', '.join(labels or ()) or 'none'})"
                )
            total = total + strength * check_labels(label, labels[label])
        return torch.as_tensor(total).clamp(0, 1)


def weighted(
    values: Float[Tensor, "... sample"], affinity: Float[Tensor, "... sample"] | None
) -> Float[Tensor, "..."]:
    """Mean of values by affinity: sum(a l) / (sum(a) + 1e-8); the plain mean without any.

    So the pull of a term does not depend on how many samples of a batch are labelled, and is
    nothing where none is.
    """
    if affinity is None:
        return values.mean(-1)
    affinity = affinity.to(values)
    return (affinity * values).sum(-1) / (affinity.sum(-1) + EPS)


def pooled(
    values: Float[Tensor, "... position"],
    mask: Bool[Tensor, "... position"],
    how: Literal["mean", "mellowmax", "last"],
    tau: float = 0.1,
) -> Float[Tensor, "..."]:
    """Values of positions as one value.

    `mellowmax` is -tau log mean exp(-x / tau), a soft minimum: the positions that are nearest to
    their anchor already are pulled, so that a sequence need carry its concept in one place only.
    A sequence without any position gives 0.
    """
    count = mask.sum(-1)
    if how == "last":
        at = (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)
        found = values.gather(-1, at.unsqueeze(-1)).squeeze(-1)
    elif how == "mean":
        found = values.masked_fill(~mask, 0.0).sum(-1) / count.clamp(min=1)
    else:
        # An empty sequence would give log 0; it is masked out below, and so is its gradient.
        keep = mask | (count == 0).unsqueeze(-1)
        low = (-values / tau).masked_fill(~keep, -torch.inf).logsumexp(-1)
        found = -tau * (low - count.clamp(min=1).to(values).log())
    return torch.where(count > 0, found, torch.zeros_like(found))


def cosine(z: Float[Tensor, "... d"], axis: int) -> Float[Tensor, "..."]:
    """Cosine between states and the unit vector of a dimension."""
    (axis,) = _within((axis,), z)
    return z[..., axis] / (z.norm(dim=-1) + EPS)


def check_labels(name: str, labels: Tensor) -> Tensor:
    """The labels, if all of them lie in 0..1.

    Raises:
        ConfigError: one does not; it is named with its place.
    """
    # One reduction and one look: cheap enough for every step.
    if labels.numel():
        low, high = labels.aminmax()
        if not (float(low) >= 0 and float(high) <= 1):
            at = int((~((labels >= 0) & (labels <= 1))).flatten().nonzero()[0, 0])
            raise ConfigError(
                f"label {name!r} of sample {at} is {labels.flatten()[at].item():g}: expected 0..1"
            )
    return labels


def _within(axes: tuple[int, ...], z: Tensor) -> tuple[int, ...]:
    width = z.shape[-1]
    for axis in axes:
        if not -width <= axis < width:
            raise ConfigError(f"dimension {axis}: states have {width} (0 to {width - 1})")
    return tuple(axis % width for axis in axes)
