"""The ReFT dial: a low-rank edit of hidden states, learned (Wu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.dials.attach import VECTOR, Edit
from trimtab.dials.dial import Dial
from trimtab.dials.numbers import number, whole
from trimtab.dials.vector import width_of
from trimtab.dials.where import Positions, check_positions
from trimtab.errors import DialError
from trimtab.sites import Site

Form = Literal["loreft", "direft"]


class ReftDial(Dial):
    """h + alpha (op(h) - h) at each site, with R of r orthonormal rows (ReFT, Wu et al. 2024).

    `loreft`: op(h) = h + R^T (W h + b - R h), which at alpha = 1 *replaces* what of h lies in R's rows,
    and beyond overshoots with h itself; `direft`: op(h) = h + R^T (W h + b), odd in alpha. Both are
    the identity before training: W = R and b = 0, W = 0 and b = 0. It passes through no single weight
    of a model, so that nothing but hooks expresses it.
    """

    kind = "reft"

    def __init__(
        self,
        widths: Mapping[Site, int],
        *,
        form: Form = "direft",
        rank: int = 4,
        positions: Positions = "completion",
        scales: Mapping[Site, float] | None = None,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            widths: entries of a state at each site.
            rank: r, at most a state's entries.
            positions: the tokens at which it acts.
            scales: a tenth of the states' mean length a site, the unit in which it is trained (by
                default 1).
            generator: draws R.

        Raises:
            DialError: no site; a form, rank or positions that do not exist.
        """
        super().__init__()
        if form not in get_args(Form) or not widths:
            raise DialError(f"form {form!r} at {list(widths)}: expected loreft or direft, at sites")
        self.sites, self.form = tuple(widths), form
        self.rank = whole(rank, "rank", high=min(widths.values()))
        self.positions: Positions = check_positions(positions)
        self.scales = {
            s: number((scales or {}).get(s, 1.0), f"the scale at site {s!r}") for s in widths
        }
        self.settled = False
        self.R, self.W, self.b = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for width in widths.values():
            self.R.append(nn.Parameter(_rows(torch.randn(rank, width, generator=generator))))
            start = self.basis(len(self.R) - 1) if form == "loreft" else torch.zeros(rank, width)
            self.W.append(nn.Parameter(start.detach().clone()))
            self.b.append(nn.Parameter(torch.zeros(rank)))

    def basis(self, index: int) -> Float[Tensor, "r d"]:
        """R of a site: orthonormal rows, of a free matrix while it is trained."""
        return self.R[index] if self.settled else _rows(self.R[index])

    @torch.no_grad()
    def settle(self) -> Self:
        """Keep R as it is now, once training ends."""
        for index, R in enumerate(self.R):
            R.copy_(self.basis(index))
        self.settled = True
        return self

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """So that a step of rate 1 moves an edit by about `scales`, a tenth of a state: of R and W in
        units of a state's length, of b in its own."""
        found: list[tuple[nn.Parameter, float]] = []
        for site, R, W, b in zip(self.sites, self.R, self.W, self.b, strict=True):
            r, d = R.shape
            found += [(R, d**-0.5), (W, 0.1 * d**-0.5), (b, self.scales[site] * r**-0.5)]
        return found

    def places(self) -> list[Site]:
        """Its sites."""
        return list(self.sites)

    def edits(self, model: nn.Module) -> list[Edit]:
        """One change of the states a site."""
        for index, site in enumerate(self.sites):
            width, there = self.R[index].shape[1], width_of(model, site)
            if there not in (width, None):
                raise DialError(
                    f"the dial edits states of {width} entries, the model's have {there} (site {site!r})"
                )
        return [
            Edit(site, VECTOR, partial(self._edit, index), self.positions)
            for index, site in enumerate(self.sites)
        ]

    def _edit(self, index: int, _: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
        h = y if y.dtype == torch.float64 else y.float()
        R, W, b = (t.to(h) for t in (self.basis(index), self.W[index], self.b[index]))
        low = nn.functional.linear(h, W - R if self.form == "loreft" else W, b)
        return (h + alpha * (low @ R)).to(y.dtype)

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """Refused: the edit is of the residual stream, which no one weight writes or reads."""
        raise DialError(
            "a reft dial edits the residual stream itself, and no weight or bias does: it is used with "
            "its hooks; a vector (--dial.kind vector) can be exported"
        )

    low_rank: Any = weights_at

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha, exactly."""
        for index, (W, b) in enumerate(zip(self.W, self.b, strict=True)):
            W.copy_(2 * self.basis(index) - W if self.form == "loreft" else -W)
            b.neg_()

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """Sites, form and positions."""
        where = self.positions if isinstance(self.positions, str) else [*self.positions]
        return {"sites": list(self.sites), "form": self.form, "positions": where}

    def tensors(self) -> dict[str, Tensor]:
        """R, W and b of each site, by its number."""
        return {
            f"{index}.{name}": value
            for index in range(len(self.sites))
            for name, value in (
                ("R", self.basis(index)),
                ("W", self.W[index]),
                ("b", self.b[index]),
            )
        }

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and tensors."""
        sites = settings["sites"]
        first = tensors["0.R"]
        widths = {site: tensors[f"{index}.R"].shape[1] for index, site in enumerate(sites)}
        dial = cls(widths, form=settings["form"], rank=len(first), positions=settings["positions"])
        with torch.no_grad():
            for name, mine in (("R", dial.R), ("W", dial.W), ("b", dial.b)):
                for index, value in enumerate(mine):
                    if value.shape != tensors[f"{index}.{name}"].shape:
                        raise DialError(f"site {sites[index]!r}: {name} is of another shape than R")
                    value.copy_(tensors[f"{index}.{name}"])
        dial.settled = True
        return dial


def _rows(free: Tensor) -> Float[Tensor, "r d"]:
    """Orthonormal rows of a free matrix, by QR with a positive diagonal: one and the same for each."""
    Q, R = torch.linalg.qr(free.mT)
    return (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).mT
