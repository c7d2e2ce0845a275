"""The LoRA adapter dial, as edits of linear layers' outputs, saved as an ordinary PEFT folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.dials.attach import Edit
from trimtab.dials.experts import (
    WRAPPED,
    Shape,
    Stack,
    Swap,
    delta,
    nested,
    stack_at,
    stacked,
)
from trimtab.dials.linear import linear_shape
from trimtab.dials.numbers import number, whole
from trimtab.dials.peft import (
    PREFIX,
    PeftDial,
    is_target,
    matches,
    pattern_value,
)
from trimtab.dials.targets import EXPERTS, linear_modules
from trimtab.errors import DialError
from trimtab.sites import Site

__all__ = ["AdapterDial", "linear_modules", "linear_shape"]


class AdapterDial(PeftDial):
    """y + alpha (lora_alpha / r) B A x on every adapted linear layer (LoRA, Hu et al. 2021), and the
    same change of each expert in stacked parameters.

    With `rslora` the scale is lora_alpha / sqrt(r) (Kalajdzievski 2023). The parameters are
    float32, whatever the model's dtype, and are rounded to it for the product. Nothing in the
    model is replaced; PEFT is the file format, and its LoRA gives the same logits.
    """

    kind = "adapter"
    peft_type = "LORA"
    tuner = "LoRA and rsLoRA"
    own: ClassVar = {"lora_A.weight": "A", "lora_B.weight": "B"}
    odd = ("B", "stack_B")
    known: ClassVar = {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "megatron_config", "megatron_core"),
        *("eva_config", "qalora_group_size", "runtime_config", "loftq_config"),
        *("ensure_weight_tying", "target_parameters", "rank_pattern", "alpha_pattern"),
    }
    plain: ClassVar = {
        "bias": ("none",),
        "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    }

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        *,
        stacks: Mapping[str, Shape] | None = None,
        rank: int = 16,
        lora_alpha: float = 32,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            stacks: experts and their (in, out) features of each adapted parameter, by its path, in
                the model's order (`experts.stacked`).
            rank: r.
            lora_alpha: numerator of the scale.
            dropout: probability of dropping an input in training; not with stacks.
            rslora: divide by sqrt(r) instead of r.
            generator: draws A (Kaiming uniform, as PEFT does); B starts at 0.

        Raises:
            DialError: nothing to adapt; a rank, numerator or probability out of range.
        """
        stacks = dict(stacks or {})
        check_lora(rank, lora_alpha, dropout)
        if stacks and dropout:
            raise DialError(
                "dropout: not of the inputs of stacked experts, whose weights are changed"
            )
        super().__init__(shapes, elsewhere=bool(stacks))
        self.rank, self.lora_alpha, self.dropout, self.rslora = rank, lora_alpha, dropout, rslora
        self.rank_pattern: dict[str, int] = {}
        self.alpha_pattern: dict[str, float] = {}
        self.nests, self.parameters_of = nested(stacks), list(stacks)
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        self.stack_A, self.stack_B = nn.ParameterList(), nn.ParameterList()

        def drawn(rows: int, n_in: int) -> nn.Parameter:
            bound = math.sqrt(1 / n_in)  # kaiming_uniform_ with a = sqrt(5)
            return nn.Parameter((torch.rand(rows, n_in, generator=generator) * 2 - 1) * bound)

        for n_in, n_out in shapes.values():
            self.A.append(drawn(rank, n_in))
            self.B.append(nn.Parameter(torch.zeros(n_out, rank)))
        for experts, n_in, n_out in stacks.values():
            self.stack_A.append(drawn(rank * experts, n_in))
            self.stack_B.append(nn.Parameter(torch.zeros(n_out, rank * experts)))

    @classmethod
    def for_model(
        cls, model: nn.Module, targets: str, blocks: Collection[int] | None = None, **options: Any
    ) -> Self:
        """A LoRA that has not been trained yet.

        Args:
            targets: `experts` (stacked ones; where the model has none, as a regular expression), or
                what `linear_modules` takes.
            blocks: only these decoder layers.
            options: of the constructor.
        """
        if targets == EXPERTS and (stacks := stacked(model, blocks)):
            return cls({}, stacks=stacks, **options)
        return cls(linear_modules(model, targets, blocks), **options)

    def _scale(self, path: str, rank: int) -> float:
        """What B A is multiplied by at alpha = 1, by PEFT's rule.

        Raises:
            DialError: PEFT's rank for it is another.
        """
        wanted = pattern_value(self.rank_pattern, path, self.rank)
        if wanted != rank:
            raise DialError(f"{path}: rank {rank}, but its PEFT config says {wanted}")
        numerator = pattern_value(self.alpha_pattern, path, self.lora_alpha)
        return numerator / (math.sqrt(rank) if self.rslora else rank)

    # ---- what it changes ----

    def places(self) -> list[Site]:
        """The outputs of the adapted modules, those that hold stacked parameters among them."""
        holders = dict.fromkeys(n.removesuffix(WRAPPED * n.count(WRAPPED)) for n in self.nests)
        return [*super().places(), *(f"{path}:out" for path in holders)]

    def edits(self, model: nn.Module) -> list[Edit | Swap]:
        """One change of a linear layer's output each, and of the parameters of a module with experts."""
        edits: list[Edit | Swap] = [*super().edits(model)]
        swaps: dict[str, dict[str, Any]] = {}
        for stack, A, B, scale in self._stacks(model):
            change = partial(delta, stack, A, B, scale)
            swaps.setdefault(stack.path.rpartition(".")[0], {})[stack.name] = change
        return edits + [Swap(path, deltas) for path, deltas in swaps.items()]

    def _stacks(self, model: nn.Module) -> list[tuple[Stack, Tensor, Tensor, float]]:
        """Each stacked parameter with A, B and the scale."""
        found = []
        for nest, A, B in zip(self.nests, self.stack_A, self.stack_B, strict=True):
            stack = stack_at(model, nest, self.parameters_of, A, B)
            found.append((stack, A, B, self._scale(stack.path, len(A) // stack.experts)))
        return found

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(x, self.A[index].to(x))
        B = self.B[index].to(x)
        scale = self._scale(self.paths[index], B.shape[1])
        if isinstance(alpha, Tensor):
            return y + F.linear(low, B) * (alpha * scale).to(y.dtype)
        flat = torch.addmm(  # one fused product and sum
            y.reshape(-1, y.shape[-1]), low.reshape(-1, B.shape[1]), B.T, alpha=alpha * scale
        )
        return flat.view_as(y)

    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """A and alpha scale B of every module.

        Raises:
            DialError: it adapts stacked parameters, which are no modules.
        """
        if self.nests:
            raise DialError(
                "stacked experts are no linear layers: the dial's own folder loads in PEFT at alpha 1; "
                "for another alpha use --to merged"
            )
        return self._low_rank(alpha)

    def _low_rank(self, alpha: float) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            path: (A.detach(), alpha * self._scale(path, len(A)) * B.detach())
            for path, A, B in zip(self.paths, self.A, self.B, strict=True)
        }

    @torch.no_grad()
    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """The weights of linear layers and the stacked parameters, each with its change."""
        changed = self.low_rank_weights(model, self._low_rank(alpha))
        for stack, A, B, scale in self._stacks(model):
            old = stack.module.get_parameter(stack.name)
            changed[stack.path] = old.float() + alpha * delta(stack, A, B, scale).float()
        return changed

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """What PEFT's own config does not already say, and what it says in another order."""
        note: dict[str, Any] = {
            "rank": self.rank,
            "lora_alpha": self.lora_alpha,
            "dropout": self.dropout,
            "rslora": self.rslora,
            "modules": self.paths,
        }
        if self.nests:
            note |= {"stacks": self.nests, "parameters": self.parameters_of}
        for name in ("rank_pattern", "alpha_pattern"):
            if pattern := getattr(self, name):
                note[name] = [[k, v] for k, v in pattern.items()]
        return note

    def tensors(self) -> dict[str, Tensor]:
        """Weights under PEFT's names."""
        named = super().tensors()
        for nest, A, B in zip(self.nests, self.stack_A, self.stack_B, strict=True):
            named[f"{PREFIX}{nest}.lora_A.weight"] = A
            named[f"{PREFIX}{nest}.lora_B.weight"] = B
        return named

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and PEFT-named weights."""
        modules, nests = list(settings["modules"]), list(settings.get("stacks", ()))

        def factors(path: str) -> tuple[Tensor, Tensor]:
            try:
                A, B = (tensors[f"{PREFIX}{path}.lora_{k}.weight"] for k in "AB")
            except KeyError as error:
                raise DialError(f"the adapter's weights lack {error}") from error
            if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or not A.numel():
                raise DialError(f"{path}: A is {tuple(A.shape)} and B {tuple(B.shape)}")
            return A, B

        each = {path: factors(path) for path in [*modules, *nests]}
        dial = cls(
            {path: (each[path][0].shape[1], len(each[path][1])) for path in modules},
            stacks={f"{n}.": (1, each[n][0].shape[1], len(each[n][1])) for n in nests},
            rank=settings["rank"],
            lora_alpha=settings["lora_alpha"],
            dropout=settings["dropout"],
            rslora=settings["rslora"],
        )
        dial.parameters_of = [str(t) for t in settings.get("parameters", ())]
        dial.rank_pattern = {str(k): v for k, v in settings.get("rank_pattern", ())}
        dial.alpha_pattern = {str(k): v for k, v in settings.get("alpha_pattern", ())}
        for key, value in [*dial.rank_pattern.items(), *dial.alpha_pattern.items()]:
            check_lora(dial.rank, value, 0.0, f"{key!r} of a pattern")
        for path in modules:
            dial._scale(path, len(each[path][0]))  # refuses another rank than its config's
        for mine, theirs in (
            (dial.A, [each[p][0] for p in modules]),
            (dial.B, [each[p][1] for p in modules]),
            (dial.stack_A, [each[n][0] for n in nests]),
            (dial.stack_B, [each[n][1] for n in nests]),
        ):
            for index, tensor in enumerate(theirs):
                mine[index] = nn.Parameter(tensor.detach().float().clone())
        return dial

    def peft_settings(self) -> dict[str, Any]:
        """Of LoraConfig.

        Raises:
            DialError: its patterns mean something else once PEFT's file has sorted them.
        """
        for pattern in (self.rank_pattern, self.alpha_pattern):
            ordered = dict(sorted(pattern.items()))
            for path in [*self.paths, *self._named()]:
                if pattern_value(pattern, path, None) != pattern_value(ordered, path, None):
                    raise DialError(
                        f"{path}: several keys of {list(pattern)} match it, and PEFT's file keeps them "
                        "sorted, where another comes first; keep one that does"
                    )
        return {
            "r": self.rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "bias": "none",
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "target_parameters": list(self.parameters_of) or None,
        }

    def _named(self) -> list[str]:
        """What the stacked parameters may be called."""
        owners = dict.fromkeys(n.removesuffix(WRAPPED * n.count(WRAPPED)) for n in self.nests)
        leaves = dict.fromkeys(t.rpartition(".")[2] for t in self.parameters_of)
        return [f"{owner}.{leaf}" for owner in owners for leaf in leaves]

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        parameters = list(config.get("target_parameters") or ())
        places = cls.modules_of(tensors)
        targets = config.get("target_modules")
        # A linear layer is one that PEFT's targets name; what else there is, it found by parameter.
        modules = [p for p in places if not parameters or is_target(targets, p)]
        settings = {
            "rank": config["r"],
            "lora_alpha": config["lora_alpha"],
            "dropout": config.get("lora_dropout", 0.0),
            "rslora": bool(config.get("use_rslora")),
            "modules": modules,
            "stacks": [p for p in places if p not in set(modules)],
            "parameters": parameters,
            "rank_pattern": list(dict(config.get("rank_pattern") or {}).items()),
            "alpha_pattern": list(dict(config.get("alpha_pattern") or {}).items()),
        }
        dial = cls.build(settings, tensors)
        for path in [*dial.paths, *dial._named()]:
            values = {v for k, v in dial.alpha_pattern.items() if matches(k, path)}
            if len(values) > 1:
                warnings.warn(
                    f"{path}: several keys of alpha_pattern match it, of different values; the first "
                    "counts, as in PEFT, which sorts them when it saves: the adapter may have been "
                    "trained at another",
                    stacklevel=2,
                )
                break
        return dial


def check_lora(rank: Any, lora_alpha: Any, dropout: Any, what: str = "lora_alpha") -> None:
    """Raise DialError where a LoRA's settings are no numbers, or out of range."""
    whole(rank, "rank")
    number(lora_alpha, what)
    number(dropout, "dropout", 0, 1, below=True)
