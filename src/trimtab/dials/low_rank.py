"""Adapter dials of low rank beside LoRA: VeRA and DeLoRA, each base + alpha (adapted - base).

Each is saved as an ordinary PEFT folder, and at alpha = 1 its logits are PEFT's own.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.dials.linear import dense_weight, linear_at, linear_shape
from trimtab.dials.numbers import number, whole
from trimtab.dials.peft import PREFIX, PeftDial
from trimtab.errors import DialError


def _kaiming(shape: tuple[int, int], generator: torch.Generator | None, gain: float) -> Tensor:
    """Uniform within gain sqrt(3 / fan_in)."""
    bound = gain * math.sqrt(3 / max(shape[1], 1))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


class LowRankDial(PeftDial):
    """A tuner that adds alpha B A x, with a rule of its own for the two factors."""

    rank: int
    dropout: float

    def _factors(self, index: int, n_in: int) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of a module at alpha = 1."""
        raise NotImplementedError

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        A, B = self._factors(index, x.shape[-1])
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        change = F.linear(F.linear(x, A.to(x)), B.to(x))
        return y + change * (alpha.to(y.dtype) if isinstance(alpha, Tensor) else alpha)

    @torch.no_grad()
    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """Both factors of every module, alpha in B."""
        found = {}
        for index, path in enumerate(self.paths):
            module = linear_at(model, path, self.shapes[path], "adapter")
            A, B = self._factors(index, linear_shape(module)[0])  # type: ignore[index]
            found[path] = (A, alpha * B)
        return found


class VeraDial(LowRankDial):
    """VeRA (Kopiczko et al. 2024): y + alpha b ⊙ B (d ⊙ A x), A and B random and shared."""

    kind = "vera"
    peft_type = "VERA"
    tuner = "VeRA"
    own: ClassVar = {"vera_lambda_b": "b", "vera_lambda_d": "d"}
    odd = ("b",)
    known: ClassVar = {
        "r",
        "vera_dropout",
        "projection_prng_key",
        "save_projection",
        "d_initial",
        "init_weights",
    }

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        *,
        rank: int = 256,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            rank: rows of A and columns of B.
            dropout: probability of dropping an input in training.
            generator: draws A and B (Kaiming uniform); d starts at 0.1, b at 0.
        """
        super().__init__(shapes)
        self.rank = whole(rank, "rank")
        self.dropout = number(dropout, "dropout", 0, 1, below=True)
        n_in, n_out = (max(s[i] for s in shapes.values()) for i in (0, 1))
        self.register_buffer("A", _kaiming((rank, n_in), generator, math.sqrt(2)))
        self.register_buffer("B", _kaiming((n_out, rank), generator, math.sqrt(2)))
        self.d = nn.ParameterList(nn.Parameter(torch.full((rank,), 0.1)) for _ in shapes)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(n)) for _, n in shapes.values())

    def _factors(self, index: int, n_in: int) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of a module at alpha = 1."""
        n_out = len(self.b[index])
        A, B = self.get_buffer("A")[:, :n_in], self.get_buffer("B")[:n_out]
        if (A.shape[1], len(B)) != (n_in, n_out):
            raise DialError(
                f"{self.paths[index]}: wider than the projections that all layers share"
            )
        return A * self.d[index][:, None], B * self.b[index][:, None]

    def settings(self) -> dict[str, Any]:
        """Modules with their shapes, rank and dropout."""
        return {
            "modules": {p: list(s) for p, s in self.shapes.items()},
            "rank": self.rank,
            "dropout": self.dropout,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights under PEFT's names, the shared projections included."""
        shared = {f"base_model.vera_{name}": self.get_buffer(name) for name in "AB"}
        return shared | super().tensors()

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and weights."""
        shapes = {p: (int(s[0]), int(s[1])) for p, s in settings["modules"].items()}
        dial = cls(shapes, rank=settings["rank"], dropout=settings["dropout"])
        A, B = (tensors[f"base_model.vera_{name}"] for name in "AB")
        if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (dial.rank, dial.rank):
            raise DialError(
                f"projections of {tuple(A.shape)} and {tuple(B.shape)}, rank {dial.rank}"
            )
        dial.register_buffer("A", A.clone())
        dial.register_buffer("B", B.clone())
        return dial.filled(tensors)

    def peft_settings(self) -> dict[str, Any]:
        """Of VeraConfig, with the projections saved."""
        return {"r": self.rank, "vera_dropout": self.dropout}

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        if "base_model.vera_A" not in tensors:
            raise DialError("VeRA without its projections (save_projection=False)")
        modules = cls.modules_of(k for k in tensors if not k.startswith("base_model.vera_"))
        shapes = {  # of the inputs PEFT tells the widest alone
            p: [0, tensors[f"{PREFIX}{p}.vera_lambda_b"].numel()] for p in modules
        }
        settings = {"rank": config["r"], "dropout": config.get("vera_dropout", 0.0)}
        return cls.build({"modules": shapes, **settings}, tensors)


class DeloraDial(LowRankDial):
    """DeLoRA (Bini et al. 2025): y + alpha B diag(lambda / (r |a_i| |b_i|)) A (w ⊙ x), w the norms
    of the base weight's columns: each of the r directions has a length of its own to learn."""

    kind = "delora"
    peft_type = "DELORA"
    tuner = "DeLoRA"
    own: ClassVar = {
        "delora_A": "A",
        "delora_B": "B",
        "delora_lambda": "strength",
        "delora_w_norm": "norms",
    }
    odd = ("strength",)
    known: ClassVar = {"r", "delora_lambda", "module_dropout", "init_weights"}

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        *,
        rank: int = 8,
        strength: float = 15.0,
        dropout: float = 0.0,
        norms: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            rank: r.
            strength: lambda at the start.
            dropout: probability of dropping an input in training.
            norms: w of each module (by default 1).
            generator: draws A (Kaiming uniform, as PEFT does); B starts at 0.
        """
        super().__init__(shapes)
        self.rank = whole(rank, "rank")
        self.dropout = number(dropout, "dropout", 0, 1, below=True)
        number(strength, "strength")
        self.A, self.B, self.strength = (nn.ParameterList() for _ in range(3))
        for index, (path, (n_in, n_out)) in enumerate(shapes.items()):
            self.A.append(nn.Parameter(_kaiming((rank, n_in), generator, math.sqrt(1 / 3))))
            self.B.append(nn.Parameter(torch.zeros(n_out, rank)))
            self.strength.append(nn.Parameter(torch.full((1,), float(strength))))
            w = torch.ones(n_in) if norms is None else norms[path].float()
            self.register_buffer(f"norm_{index}", w)

    @property
    def norms(self) -> list[Tensor]:
        """w of each module."""
        return [self.get_buffer(f"norm_{index}") for index in range(len(self.paths))]

    def _factors(self, index: int, n_in: int) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of a module at alpha = 1."""
        A, B = self.A[index], self.B[index]
        sizes = A.norm(dim=1).clamp(min=1e-4) * B.norm(dim=0).clamp(min=1e-4)
        return A * self.norms[index], B * (self.strength[index] / self.rank / sizes)

    def settings(self) -> dict[str, Any]:
        """Modules, rank and dropout."""
        return {"modules": self.paths, "rank": self.rank, "dropout": self.dropout}

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and weights."""
        shapes = {}
        for path in settings["modules"]:
            A, B = (tensors[f"{PREFIX}{path}.delora_{k}"] for k in "AB")
            shapes[path] = (A.shape[1], B.shape[0])
        return cls(shapes, rank=settings["rank"], dropout=settings["dropout"]).filled(tensors)

    def peft_settings(self) -> dict[str, Any]:
        """Of DeloraConfig."""
        return {"r": self.rank, "module_dropout": self.dropout}

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        modules = cls.modules_of(tensors)
        settings = {"rank": config["r"], "dropout": config.get("module_dropout", 0.0)}
        return cls.build({"modules": modules, **settings}, tensors)


def column_norms(model: nn.Module, shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Norms of the columns of modules' weights, which DeLoRA scales inputs by."""
    return {path: dense_weight(model.get_submodule(path)).norm(dim=0) for path in shapes}
