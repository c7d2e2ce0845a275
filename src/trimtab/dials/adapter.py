"""The LoRA adapter dial, as edits of linear layers' outputs, saved as an ordinary PEFT folder."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.dials.linear import linear_shape
from trimtab.dials.peft import PREFIX, PeftDial, refuse_beyond
from trimtab.dials.targets import linear_modules
from trimtab.errors import DialError

__all__ = ["AdapterDial", "linear_modules", "linear_shape"]


class AdapterDial(PeftDial):
    """y + alpha (lora_alpha / r) B A x on every adapted linear layer (LoRA, Hu et al. 2021).

    With `rslora` the scale is lora_alpha / sqrt(r) (Kalajdzievski 2023). The parameters are
    float32, whatever the model's dtype, and are rounded to it for the product. Nothing in the
    model is replaced; PEFT is the file format, and its LoRA gives the same logits.
    """

    kind = "adapter"
    peft_type = "LORA"
    tuner = "LoRA and rsLoRA"

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        *,
        rank: int = 16,
        lora_alpha: float = 32,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            rank: r.
            lora_alpha: numerator of the scale.
            dropout: probability of dropping an input in training.
            rslora: divide by sqrt(r) instead of r.
            generator: draws A (Kaiming uniform, as PEFT does); B starts at 0.
        """
        super().__init__(shapes)
        self.rank, self.lora_alpha, self.dropout, self.rslora = rank, lora_alpha, dropout, rslora
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in shapes.values():
            bound = math.sqrt(1 / n_in)  # kaiming_uniform_ with a = sqrt(5)
            self.A.append(
                nn.Parameter((torch.rand(rank, n_in, generator=generator) * 2 - 1) * bound)
            )
            self.B.append(nn.Parameter(torch.zeros(n_out, rank)))

    @property
    def scale(self) -> float:
        """What B A x is multiplied by at alpha = 1."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(x, self.A[index].to(x))
        B = self.B[index].to(x)
        if isinstance(alpha, Tensor):
            return y + F.linear(low, B) * (alpha * self.scale).to(y.dtype)
        flat = torch.addmm(  # one fused product and sum
            y.reshape(-1, y.shape[-1]),
            low.reshape(-1, self.rank),
            B.T,
            alpha=alpha * self.scale,
        )
        return flat.view_as(y)

    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """A and alpha scale B of every module."""
        return {
            path: (A.detach(), alpha * self.scale * B.detach())
            for path, A, B in zip(self.paths, self.A, self.B, strict=True)
        }

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha: B negated."""
        for B in self.B:
            B.neg_()

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """What PEFT's own config does not already say: nothing but the dropout in training."""
        return {
            "rank": self.rank,
            "lora_alpha": self.lora_alpha,
            "dropout": self.dropout,
            "rslora": self.rslora,
            "modules": self.paths,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights under PEFT's names."""
        named = {}
        for path, A, B in zip(self.paths, self.A, self.B, strict=True):
            named[f"{PREFIX}{path}.lora_A.weight"] = A
            named[f"{PREFIX}{path}.lora_B.weight"] = B
        return named

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and PEFT-named weights."""
        try:
            pairs = [
                (tensors[f"{PREFIX}{p}.lora_A.weight"], tensors[f"{PREFIX}{p}.lora_B.weight"])
                for p in settings["modules"]
            ]
        except KeyError as error:
            raise DialError(f"the adapter's weights lack {error}") from error
        dial = cls(
            {
                p: (A.shape[1], B.shape[0])
                for p, (A, B) in zip(settings["modules"], pairs, strict=True)
            },
            rank=settings["rank"],
            lora_alpha=settings["lora_alpha"],
            dropout=settings["dropout"],
            rslora=settings["rslora"],
        )
        with torch.no_grad():
            for mine, theirs in zip(
                [*dial.A, *dial.B], [*(a for a, _ in pairs), *(b for _, b in pairs)], strict=True
            ):
                if mine.shape != theirs.shape:
                    raise DialError(
                        f"an adapter weight is {tuple(theirs.shape)}, expected {tuple(mine.shape)}"
                    )
                mine.copy_(theirs)
        return dial

    def peft_config(self) -> Any:
        """PEFT's LoraConfig."""
        from peft import LoraConfig

        return self._config_of(
            LoraConfig,
            r=self.rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            bias="none",
        )

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        refuse_beyond(config, cls.tuner, _KNOWN, _PLAIN)
        settings = {
            "rank": config["r"],
            "lora_alpha": config["lora_alpha"],
            "dropout": config.get("lora_dropout", 0.0),
            "rslora": bool(config.get("use_rslora")),
            "modules": cls.modules_of(tensors, r"lora_[AB]\.weight"),
        }
        return cls.build(settings, tensors)


_KNOWN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "megatron_config", "megatron_core"),
    *("eva_config", "qalora_group_size", "runtime_config", "loftq_config", "ensure_weight_tying"),
}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
