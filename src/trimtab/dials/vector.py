"""The vector dial: a direction at each site, along which hidden states are changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.attach import VECTOR, Edit
from trimtab.dials.base import same_base
from trimtab.dials.dial import Dial
from trimtab.dials.linear import linear_shape
from trimtab.dials.numbers import length, number, unit
from trimtab.dials.trial import is_named, width_at
from trimtab.dials.where import Condition, Positions, check_positions
from trimtab.dials.writers import residual_writer
from trimtab.errors import DialError
from trimtab.interventions import vectors
from trimtab.progress import warn
from trimtab.sites import Site, block_index
from trimtab.states import module_at

STRENGTH = 0.1
"""At alpha = 1 a state is moved by this share of the mean length of states at its site."""

LOST = 0.2
"""Share of a step beyond which its rounding in half precision is told."""

Operator = Literal["add", "project_out", "suppress_above", "repel", "replace"]
"""What is done along the direction, see `interventions`."""

_LEVELS = ("suppress_above", "repel", "replace")
"""Operators with a level: a threshold, a cosine, a value."""


class VectorDial(Dial):
    """h + alpha s v at each site: v a unit direction, s = 0.1 x the mean norm of h over answer
    tokens, attention sinks left out. So alpha = 1 is the same nudge at any depth of any model.

    With another operator than `add`, h + alpha (op(h) - h): at 1 the whole of it.
    """

    kind = "vector"

    def __init__(
        self,
        directions: Mapping[Site, Float[Tensor, "d"]],
        scales: Mapping[Site, float],
        *,
        operator: Operator = "add",
        levels: Mapping[Site, float] | None = None,
        positions: Positions = "all",
        keep_norm: bool = False,
        condition: Condition | None = None,
    ):
        """
        Args:
            directions: a direction a site; normalised here.
            scales: s of each site.
            operator: what is done along the direction.
            levels: of each site, the threshold of `suppress_above` and the value of `replace`, in
                the states' units, or the cosine of `repel` (by default 0 everywhere).
            positions: the tokens at which it is done.
            keep_norm: bring each changed state back to its length before.
            condition: the rows in which it is done.

        Raises:
            DialError: a direction is zero or not finite, or the sites of the two differ; an
                operator, level or positions that do not exist.
        """
        super().__init__()
        if set(directions) != set(scales) or not directions:
            raise DialError(
                f"directions at {list(directions)}, scales at {list(scales)}: "
                "expected the same sites"
            )
        for site in directions:
            if isinstance(site, bool) or not isinstance(site, int | str):
                raise DialError(
                    f"site {site!r}: expected a block, 'embed', 'final' or a module's path"
                )
        units = {s: unit(v, f"the direction at site {s!r}") for s, v in directions.items()}
        if operator not in get_args(Operator):
            raise DialError(
                f"operator {operator!r}: expected one of {', '.join(get_args(Operator))}"
            )
        if levels is not None and (operator not in _LEVELS or set(levels) != set(directions)):
            raise DialError(
                f"levels at {list(levels)}, operator {operator!r}: expected one a site, for "
                f"{', '.join(_LEVELS)}"
            )
        self.sites: tuple[Site, ...] = tuple(directions)
        self.scales = {s: number(scales[s], f"the scale at site {s!r}") for s in self.sites}
        self.operator: Operator = operator
        self.levels = {s: number((levels or {}).get(s, 0.0), "a level") for s in self.sites}
        if operator == "repel" and not all(-1 < c < 1 for c in self.levels.values()):
            raise DialError(f"repel: levels {list(self.levels.values())}; expected cosines")
        self.positions: Positions = check_positions(positions)
        self.keep_norm, self.condition = keep_norm, condition
        for index, site in enumerate(self.sites):
            self.register_buffer(f"vector_{index}", units[site])

    def places(self) -> list[Site]:
        """Its sites."""
        return list(self.sites)

    def edits(self, model: nn.Module) -> list[Edit]:
        """One change of the states a site."""
        edits = []
        for site in self.sites:
            width, there = len(self.direction(site)), width_of(model, site)
            if there not in (width, None):
                raise DialError(
                    f"the dial's vectors have {width} entries, the model's hidden states {there} "
                    f"(site {site!r})"
                )
            if self.operator == "add" and not self.keep_norm:
                step = partial(self.step, site)  # taken anew at each pass: it may be trained
                said: set[str] = set()
                change, fused = partial(_add, step, said=said), partial(_add_fused, step, said=said)
            else:
                change, fused = partial(_change, self._operation(site), self.keep_norm), None
            edits.append(Edit(site, VECTOR, change, self.positions, self.condition, fused))
        return edits

    def _operation(self, site: Site) -> Callable[[Tensor], Tensor]:
        """op of a site, on float states."""
        v, level = self.direction(site), self.levels[site]
        match self.operator:
            case "add":
                return lambda h: vectors.add(h, self.scales[site] * v.to(h))
            case "project_out":
                return lambda h: vectors.project_out(h, v.to(h))
            case "suppress_above":
                return lambda h: vectors.suppress_above(h, v.to(h), level)
            case "repel":
                return lambda h: vectors.repel(h, v.to(h), level)
            case "replace":
                return lambda h: vectors.replace(h, v.to(h), level)

    def direction(self, site: Site) -> Float[Tensor, "d"]:
        """The unit vector at a site."""
        return self.get_buffer(f"vector_{self.sites.index(site)}")

    def step(self, site: Site) -> Float[Tensor, "d"]:
        """What an adding dial adds at alpha = 1."""
        return self.scales[site] * self.direction(site)

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """Biases of the layers that write to the residual stream last.

        Raises:
            DialError: the dial does not add at every position after blocks, or the model has no
                such layers.
        """
        if (
            self.operator != "add"
            or self.keep_norm
            or self.positions != "all"
            or self.condition is not None
            or not all(isinstance(site, int) for site in self.sites)
        ):
            raise DialError(
                "only a vector added after blocks, at every position and in every row, can be "
                "written into the model's weights"
            )
        changed: dict[str, Tensor] = {}
        for site in self.sites:
            assert isinstance(site, int)
            path = residual_writer(model, block_index(site, models.n_layers(model)))
            bias: Any = model.get_submodule(path).bias
            step = alpha * self.step(site)
            changed[f"{path}.bias"] = step if bias is None else step.to(bias.device) + bias.float()
        return changed

    # ---- arithmetic: of adding vectors at the same positions the sum is one vector again ----

    def plus(self, other: VectorDial, weight: float = 1.0) -> VectorDial:
        """The one vector dial that adds, at any alpha, what this one and `weight` times the other
        add together; over the union of their sites.

        Raises:
            DialError: they are no two adding dials of one width, base model, positions and
                condition, or nothing is left of their sum.
        """
        reason = self._unlike(other)
        if reason:
            raise DialError(f"no one vector is their sum: {reason}; compose them (a + b) instead")
        sums: dict[Site, Tensor] = {site: self.step(site) for site in self.sites}
        for site in other.sites:
            sums[site] = sums.get(site, 0.0) + weight * other.step(site)
        sums = {site: v for site, v in sums.items() if v.any()}
        if not sums:
            raise DialError("nothing is left of the sum of these vectors")
        dial = VectorDial(
            sums,
            {site: length(v) for site, v in sums.items()},
            positions=self.positions,
            condition=self.condition,
        )
        dial.info = dataclasses.replace(self.info, method="sum", seed=None, measured={}, dose={})
        dial.info.data = {**self.info.data, **other.info.data}
        return dial.eval()

    def times(self, weight: float) -> VectorDial:
        """The vector dial that does at 1 what this one does at `weight`.

        Raises:
            DialError: the weight is 0 or not finite, or the dial does not add.
        """
        if self.operator != "add" or self.keep_norm:
            raise DialError("only what an adding vector does grows with alpha")
        dial = VectorDial(
            {s: weight * self.direction(s) for s in self.sites},
            {s: abs(weight) * self.scales[s] for s in self.sites},
            positions=self.positions,
            condition=self.condition,
        )
        grown = {
            name: [abs(weight) ** (name != "raw_norm") * value for value in values]
            for name, values in self.info.dose.items()
        }
        dial.info = dataclasses.replace(self.info, measured={}, dose=grown)
        return dial.eval()

    def null_out(self) -> VectorDial:
        """The vector dial that takes away what lies along this one's direction, on its positive side
        alone: h - max(0, <h, v>) v (RePS's other pole). A dial of its own, for it is no -alpha.

        Raises:
            DialError: the dial does not add.
        """
        if self.operator != "add" or self.keep_norm:
            raise DialError("only of an adding vector the direction can be taken away")
        dial = VectorDial(
            {s: self.direction(s) for s in self.sites},
            self.scales,
            operator="suppress_above",
            positions=self.positions,
            condition=self.condition,
        )
        dial.info = dataclasses.replace(
            self.info, method=f"{self.info.method} null-out", measured={}, dose={}
        )
        return dial.eval()

    def _unlike(self, other: VectorDial) -> str:
        """Why the two have no sum; empty where they have one."""
        for dial in (self, other):
            if dial.operator != "add" or dial.keep_norm:
                return f"one of them is {dial.operator}" + (", norms kept" * dial.keep_norm)
        for site in set(self.sites) & set(other.sites):
            mine, theirs = len(self.direction(site)), len(other.direction(site))
            if mine != theirs:
                return f"their vectors at site {site!r} have {mine} and {theirs} entries"
        if self.positions != other.positions or self.condition is not other.condition:
            return "they act at other positions, or under another condition"
        return "" if same_base(self.info, other.info) else "they were made for two base models"

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """Sites and their scales, in order, and whatever is not the default."""
        note: dict[str, Any] = {
            "sites": list(self.sites),
            "scales": [self.scales[s] for s in self.sites],
        }
        if self.operator != "add":
            note["operator"] = self.operator
        if self.operator in _LEVELS:
            note["levels"] = [self.levels[s] for s in self.sites]
        if self.positions != "all":
            note["positions"] = (
                self.positions if isinstance(self.positions, str) else [*self.positions]
            )
        if self.keep_norm:
            note["keep_norm"] = True
        if self.condition is not None:
            note["condition"] = {
                name: getattr(self.condition, name)
                for name in ("site", "threshold", "over", "above", "prompt_style", "rendering")
            }
        return note

    def tensors(self) -> dict[str, Tensor]:
        """`vectors` [site, d] (`vectors.0`, `vectors.1`, … where widths differ), and `condition` [d]
        where there is one."""
        each = [self.direction(site) for site in self.sites]
        if len({len(v) for v in each}) == 1:
            tensors = {"vectors": torch.stack(each)}
        else:
            tensors = {f"vectors.{index}": v for index, v in enumerate(each)}
        if self.condition is not None:
            tensors["condition"] = self.condition.direction
        return tensors

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved sites, scales and vectors."""
        sites = settings["sites"]
        vectors = (
            list(tensors["vectors"])
            if "vectors" in tensors
            else [tensors[f"vectors.{index}"] for index in range(len(sites))]
        )
        if len(sites) != len(vectors):
            raise DialError(f"{len(sites)} sites, but {len(vectors)} vectors")
        levels, condition = settings.get("levels"), settings.get("condition")
        # One that does not say so is from before it was written down: found on plain text.
        condition = condition and {"prompt_style": "plain", **condition}
        dial = cls(
            dict(zip(sites, vectors, strict=True)),
            dict(zip(sites, settings["scales"], strict=True)),
            operator=settings.get("operator", "add"),
            levels=dict(zip(sites, levels, strict=True)) if levels else None,
            positions=settings.get("positions", "all"),
            keep_norm=bool(settings.get("keep_norm", False)),
            condition=Condition(direction=tensors["condition"], **condition) if condition else None,
        )
        for site, vector in zip(dial.sites, vectors, strict=True):
            dial.direction(site).copy_(vector)  # bit for bit, not normalised again
        return dial


def _add(
    step: Callable[[], Tensor],
    _: Tensor,
    y: Tensor,
    alpha: float | Tensor,
    said: set[str] | None = None,
) -> Tensor:
    # The product is taken in float32 and rounded once: small steps survive in half precision.
    moved = alpha * step().to(y.device)
    new = y + moved.to(y.dtype)
    if said is not None:
        _say_lost(moved, y, new, said)
    return new


def _say_lost(moved: Tensor, y: Tensor, new: Tensor, said: set[str]) -> None:
    """A line, once, where states in half precision are too coarse for what is added to them."""
    if y.dtype.itemsize >= 4 or said or y.is_meta:
        return
    said.add("lost")
    with torch.no_grad():
        wanted = moved.float().expand(y.shape)
        rounding = ((new.float() - y.float()) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        lost = float(rounding[rounding.isfinite()].median()) if rounding.isfinite().any() else 0.0
    if lost > LOST:
        warn(
            f"{str(y.dtype).removeprefix('torch.')} states are too coarse for the vector at this "
            f"alpha: {min(lost, 1):.0%} of its step is rounding; load the model in float32"
        )


def _add_fused(
    at: Callable[[], Tensor], alpha: float, said: set[str] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    moved: Tensor | None = None
    step = at()

    def run(_: Tensor, y: Tensor) -> Tensor:
        nonlocal moved
        if moved is None or moved.dtype != y.dtype or moved.device != y.device:
            moved = (alpha * step.to(y.device)).to(y.dtype)
        if said is not None and not said and y.dtype.itemsize < 4:
            _say_lost(alpha * step.to(y.device), y, y + moved, said)
        return y + moved

    return run


def _change(
    operation: Callable[[Tensor], Tensor],
    keep_norm: bool,
    _: Tensor,
    y: Tensor,
    alpha: float | Tensor,
) -> Tensor:
    h = y if y.dtype == torch.float64 else y.float()
    new = h + alpha * (operation(h) - h)
    return (vectors.keep_norm(new, h) if keep_norm else new).to(y.dtype)


def width_of(model: nn.Module, site: Site) -> int | None:
    """Entries of a state at a site; None where that cannot be told beforehand."""
    found = width_at(model, site, "a vector")
    shape = None if is_named(site) else linear_shape(module_at(model, site)[0])
    return shape[1] if shape else found
