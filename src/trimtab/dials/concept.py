"""The concept dial: less (or more) of a concept whose direction is known, at any depth of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.dials.attach import VECTOR, Edit
from trimtab.dials.dial import Dial
from trimtab.dials.numbers import number, unit
from trimtab.dials.trial import width_at
from trimtab.errors import DialError
from trimtab.interventions import (
    Bezier,
    Falloff,
    Linear,
    project,
    redirect,
    reflect,
    repel,
    suppress,
)
from trimtab.interventions.falloffs import Mapper
from trimtab.sites import Site

Operation = Literal["suppress", "repel", "project", "reflect", "redirect"]
_SHAPES: dict[str, Any] = {"power": Falloff, "linear": Linear, "bezier": Bezier}


class ConceptDial(Dial):
    """h + alpha (op(h) - h) at each site, op one of the interventions on the concept's direction.

    At alpha = 1 the operation is done as it is written, in between in part; below 0 states are moved
    the other way, towards the concept where `project` and `suppress` take it out.
    """

    kind = "concept"

    def __init__(
        self,
        directions: dict[Site, Float[Tensor, "d"]],
        operation: Operation = "project",
        *,
        falloff: Falloff | Mapper | None = None,
        mapper: Mapper | None = None,
        gamma: float = 1.0,
    ):
        """
        Args:
            directions: the concept's direction at each site; normalised here.
            operation: `project` takes it out of every state, `suppress` out of those that point
                along it, as strongly as `falloff` says; `repel` turns those away until `mapper` is
                satisfied, `reflect` sends it to the opposite direction, `redirect` to -`gamma` times
                it, whatever a state held.
            falloff: for `suppress`; a hard gate by default.
            mapper: for `repel`; to a right angle by default.
            gamma: for `redirect`, in units of the hidden states.

        Raises:
            DialError: no site, a direction that is zero or not finite, an unknown operation, a gamma
                that is not finite.
        """
        super().__init__()
        if not directions:
            raise DialError("a concept dial needs a direction at one site at least")
        if operation not in get_args(Operation):
            raise DialError(
                f"operation {operation!r}: expected one of {', '.join(get_args(Operation))}"
            )
        units = [unit(v, f"the direction at site {site!r}") for site, v in directions.items()]
        number(gamma, "gamma")
        self.sites: tuple[Site, ...] = tuple(directions)
        self.operation: Operation = operation
        self.falloff, self.mapper = falloff or Falloff(0, 1, 0), mapper or Linear()
        self.gamma = gamma
        self.register_buffer("vectors", torch.stack(units))

    @classmethod
    def at_axis(
        cls,
        axis: int,
        width: int,
        sites: Sequence[Site],
        operation: Operation = "project",
        **kwargs: Any,
    ) -> Self:
        """A dial on one dimension of the hidden states, where a concept was anchored.

        Args:
            axis: the dimension.
            width: how many there are.
            sites: where.

        Raises:
            DialError: no such dimension; as the constructor does.
        """
        if not 0 <= axis < width:
            raise DialError(f"dimension {axis}: the model's hidden states have {width}")
        v = torch.zeros(width)
        v[axis] = 1
        return cls(dict.fromkeys(sites, v), operation, **kwargs)

    def places(self) -> list[Site]:
        """The sites it edits."""
        return list(self.sites)

    def edits(self, model: nn.Module) -> list[Edit]:
        """One operation a site."""
        vectors = self.get_buffer("vectors")
        for site in self.sites:
            if (width := width_at(model, site, "a concept")) not in (vectors.shape[1], None):
                raise DialError(
                    f"the dial's directions have {vectors.shape[1]} entries, the model's hidden states "
                    f"{width} (site {site!r})"
                )
        return [
            Edit(site, VECTOR, partial(self._edit, v))
            for site, v in zip(self.sites, vectors, strict=True)
        ]

    def _edit(self, v: Tensor, _: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
        h = y if y.dtype == torch.float64 else y.float()
        return (h + alpha * (self._operate(h, v.to(h)) - h)).to(y.dtype)

    def _operate(self, h: Tensor, v: Tensor) -> Tensor:
        if self.operation == "suppress":
            return suppress(h, v, self.falloff)
        if self.operation == "repel":
            return repel(h, v, self.mapper)
        if self.operation == "redirect":
            return redirect(h, v, self.gamma)
        return project(h, v) if self.operation == "project" else reflect(h, v)

    def settings(self) -> dict[str, Any]:
        """Sites, the operation and its shape."""
        return {
            "sites": list(self.sites),
            "operation": self.operation,
            "falloff": _shape(self.falloff),
            "mapper": _shape(self.mapper),
            "gamma": self.gamma,
        }

    def tensors(self) -> dict[str, Tensor]:
        """`vectors` [site, d]."""
        return {"vectors": self.get_buffer("vectors")}

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and directions."""
        sites = settings["sites"]
        if len(sites) != len(tensors["vectors"]):
            raise DialError(f"{len(sites)} sites, but {len(tensors['vectors'])} directions")
        dial = cls(
            dict(zip(sites, tensors["vectors"], strict=True)),
            settings["operation"],
            falloff=_shaped(settings["falloff"]),
            mapper=_shaped(settings["mapper"]),
            gamma=settings.get("gamma", 1.0),
        )
        dial.get_buffer("vectors").copy_(tensors["vectors"])  # bit for bit, not normalised again
        return dial


def _shape(shape: Any) -> dict[str, Any]:
    kind = next(name for name, t in _SHAPES.items() if isinstance(shape, t))
    return {"kind": kind, **vars(shape)}


def _shaped(settings: dict[str, Any]) -> Any:
    given = dict(settings)
    return _SHAPES[given.pop("kind", "power")](**given)
