"""The rotation dial: linear layers' own singular vectors, turned and rescaled by alpha."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.dials.attach import ADAPTER, Edit
from trimtab.dials.dial import Dial
from trimtab.dials.linear import dense_weight, linear_at
from trimtab.dials.trial import refuse_unfit
from trimtab.errors import DialError
from trimtab.sites import Site

Scaling = Literal["multiplicative", "additive", "none"]
"""What alpha does to singular values: S exp(alpha l), S + alpha l, S."""


class Basis(NamedTuple):
    """Singular vectors of a weight W = U diag(S) V^T that a rotation works on."""

    U: Float[Tensor, "out r"]
    S: Float[Tensor, "r"]
    V: Float[Tensor, "in r"]


class RotationDial(Dial):
    """y + ((x V) M(alpha)) U^T on linear layers, with M(alpha) = R(alpha) diag(S_alpha) - diag(S).

    U, S, V are r singular vectors and values of the layer's weight, fixed. R(alpha) =
    (I - alpha A / 2)^-1 (I + alpha A / 2) is the Cayley transform of a learned skew-symmetric A,
    so R(-alpha) = R(alpha)^T. A is bounded so that no plane turns by more than `max_angle` at
    |alpha| = 1; by 2 atan(alpha tan(angle / 2)) beyond. M(0) is exactly 0, and at any one alpha
    the layer has a change of rank r. wassname's contrastive SVD steering (`svft`, AntiPaSTO),
    written so that nothing is left over at 0 and the base weight may be quantised.
    """

    kind = "rotation"

    def __init__(
        self,
        bases: dict[str, Basis],
        *,
        scaling: Scaling = "multiplicative",
        max_angle: float = math.pi / 4,
        spread: float = 2e-3,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            bases: singular vectors and values of each adapted module, by its path in the model.
            scaling: what alpha does to the singular values.
            max_angle: largest angle at alpha = 1, in radians, below pi.
            spread: standard deviation of the parameters at the start. Not 0: at 0 the two
                directions of training are the same point, a saddle.
            generator: draws them.

        Raises:
            DialError: no modules; a scaling that does not exist; an angle out of range.
        """
        super().__init__()
        if not bases:
            raise DialError("a rotation needs at least one module")
        if scaling not in get_args(Scaling):
            raise DialError(f"scaling {scaling!r}: expected one of {', '.join(get_args(Scaling))}")
        if not 0 < max_angle < math.pi:
            raise DialError(f"max_angle is {max_angle}; expected radians between 0 and pi")
        self.paths = list(bases)
        self.scaling: Scaling = scaling
        self.max_angle = float(max_angle)
        self.turn, self.gain = nn.ParameterList(), nn.ParameterList()
        for index, basis in enumerate(bases.values()):
            r = len(basis.S)
            for name, value in basis._asdict().items():
                self.register_buffer(f"{name}_{index}", value.detach().float().contiguous())
            self.turn.append(nn.Parameter(spread * torch.randn(r, r, generator=generator)))
            self.gain.append(nn.Parameter(spread * torch.randn(r, generator=generator)))

    def basis(self, index: int) -> Basis:
        """U, S, V of the index-th module."""
        return Basis(*(self.get_buffer(f"{name}_{index}") for name in "USV"))

    def skew(self, index: int) -> Float[Tensor, "r r"]:
        """A: skew-symmetric, its largest singular value below 2 tan(max_angle / 2)."""
        P = self.turn[index]
        A = P - P.mT
        bound = 2 * math.tan(self.max_angle / 2)
        size = torch.linalg.matrix_norm(A, 2)
        some = size.clamp(min=1e-6)  # at 0, too, it has a gradient
        return A * torch.where(size > 1e-6, bound * torch.tanh(some / bound) / some, 1.0)

    def rotation(self, index: int, alpha: float) -> Float[Tensor, "r r"]:
        """R(alpha), orthogonal."""
        A = self.skew(index)
        one = torch.eye(len(A), dtype=A.dtype, device=A.device)
        return torch.linalg.solve(one - alpha / 2 * A, one + alpha / 2 * A)

    def change(self, index: int, alpha: float) -> Float[Tensor, "r r"]:
        """M(alpha)."""
        S, gain = self.basis(index).S, self.gain[index]
        match self.scaling:
            case "multiplicative":
                scaled = S * torch.exp(alpha * gain)
            case "additive":
                scaled = S + alpha * gain
            case "none":
                scaled = S
        return self.rotation(index, alpha) * scaled - torch.diag(S)

    def places(self) -> list[Site]:
        """The outputs of the adapted modules."""
        return [f"{path}:out" for path in self.paths]

    def edits(self, model: nn.Module) -> list[Edit]:
        """One low-rank change of a module's output each."""
        edits = []
        refuse_unfit(model, self.paths)
        for index, path in enumerate(self.paths):
            U, _, V = self.basis(index)
            linear_at(model, path, (len(V), len(U)), "rotation")
            fused = None if self.training else partial(self._fused, index)
            edits.append(Edit(f"{path}:out", ADAPTER, partial(self._edit, index), fused=fused))
        return edits

    def _edit(self, index: int, x: Tensor, y: Tensor, alpha: float | Tensor) -> Tensor:
        U, _, V = self.basis(index)
        low = F.linear(x, V.T.to(x))
        if isinstance(alpha, Tensor):  # as many products as there are strengths
            turned = torch.zeros_like(low)
            for a in alpha.unique().tolist():
                if a:
                    turned = torch.where(alpha == a, low @ self.change(index, a).to(x), turned)
        else:
            turned = low @ self.change(index, alpha).to(x)
        return y + F.linear(turned, U.to(x))

    def _fused(self, index: int, alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
        U, _, V = self.basis(index)
        with torch.no_grad():
            A, B = (V @ self.change(index, alpha)).contiguous(), U.T.contiguous()  # in r, r out
        cast: list[Tensor] = []

        def run(x: Tensor, y: Tensor) -> Tensor:
            if not cast or cast[0].dtype != x.dtype or cast[0].device != x.device:
                cast[:] = A.to(x), B.to(x)
            low = x.reshape(-1, x.shape[-1]) @ cast[0]
            return torch.addmm(y.reshape(-1, y.shape[-1]), low, cast[1]).view_as(y)

        return run

    @torch.no_grad()
    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """(V M(alpha))^T and U of every module: at one alpha a rotation is exactly a LoRA."""
        found = {}
        for index, path in enumerate(self.paths):
            U, _, V = self.basis(index)
            found[path] = ((V @ self.change(index, alpha)).T, U)
        return found

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha, exactly: A and the gains are odd in their parameters."""
        for p in self.parameters():
            p.neg_()

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """Modules, scaling and the largest angle."""
        return {"modules": self.paths, "scaling": self.scaling, "max_angle": self.max_angle}

    def tensors(self) -> dict[str, Tensor]:
        """U, S, V and the parameters of every module."""
        named = {}
        for index, path in enumerate(self.paths):
            each = {
                **self.basis(index)._asdict(),
                "turn": self.turn[index],
                "gain": self.gain[index],
            }
            named |= {f"{path}.{name}": tensor for name, tensor in each.items()}
        return named

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and tensors."""
        bases = {
            path: Basis(*(tensors[f"{path}.{name}"] for name in "USV"))
            for path in settings["modules"]
        }
        dial = cls(bases, scaling=settings["scaling"], max_angle=settings["max_angle"])
        with torch.no_grad():
            for index, path in enumerate(dial.paths):
                U, S, V = dial.basis(index)
                if not len(S) == U.shape[1] == V.shape[1]:
                    raise DialError(f"{path}: U, S and V of different ranks")
                for mine, name in ((dial.turn[index], "turn"), (dial.gain[index], "gain")):
                    if mine.shape != tensors[f"{path}.{name}"].shape:
                        raise DialError(f"{path}: {name} is not of the rank of its singular values")
                    mine.copy_(tensors[f"{path}.{name}"])
        return dial


@torch.no_grad()
def singular_basis(
    module: nn.Module, rank: int, differences: Float[Tensor, "pair in"] | None = None
) -> Basis:
    """The singular vectors of a linear layer's weight to rotate, at most `rank` of them.

    Those of the largest singular values; or, given differences of the layer's inputs (chosen -
    rejected), those along which the layer writes most of them: the largest S_i^2 mean <d, v_i>^2.
    """
    U, S, Vt = torch.linalg.svd(dense_weight(module), full_matrices=False)
    score = S
    if differences is not None:
        score = S.square() * (differences.to(S) @ Vt.T).square().mean(0)
    keep = score.argsort(descending=True)[:rank].sort().values
    return Basis(U[:, keep].clone(), S[keep].clone(), Vt[keep].T.clone())
