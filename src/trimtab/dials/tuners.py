"""Adapter dials that scale or turn outputs, (IA)³ and RoAd, each base + alpha (adapted - base).

Each is saved as an ordinary PEFT folder, and at alpha = 1 its logits are PEFT's own.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from trimtab.dials.linear import bare, dense_weight, linear_at
from trimtab.dials.numbers import whole
from trimtab.dials.peft import PREFIX, PeftDial
from trimtab.errors import DialError

FEEDFORWARD = r"(down_proj|fc2|w2|dense_4h_to_h|mlp\.c_proj)$"
"""Paths of the layers that end a feed-forward block."""


class IA3Dial(PeftDial):
    """(IA)³ (Liu et al. 2022): outputs times a learned vector l, in feed-forward layers the inputs.

    y + alpha (l - 1) y, or W (1 + alpha (l - 1)) x.
    """

    kind = "ia3"
    peft_type = "IA3"
    tuner = "IA3"
    own: ClassVar = {"ia3_l": "l"}
    known: ClassVar = {"feedforward_modules", "init_ia3_weights"}
    plain: ClassVar = {}

    def __init__(self, shapes: dict[str, tuple[int, int]], *, feedforward: str = FEEDFORWARD):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            feedforward: regular expression of the paths whose inputs are scaled.
        """
        super().__init__(shapes)
        self.feedforward = [p for p in self.paths if re.search(feedforward, p)]
        self.l = nn.ParameterList(
            nn.Parameter(torch.ones(n_in if path in self.feedforward else n_out))
            for path, (n_in, n_out) in shapes.items()
        )

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        more = (alpha * (self.l[index] - 1)).to(y.dtype)
        if self.paths[index] in self.feedforward:
            return y + bare(module, x * more)
        return y + y * more

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """Columns of feed-forward weights scaled; rows and biases of the others."""
        changed = {}
        for path, v in zip(self.paths, self.l, strict=True):
            module: Any = linear_at(model, path, self.shapes[path], "adapter")
            scale = 1 + alpha * (v.detach() - 1)
            weight = dense_weight(module)
            if path in self.feedforward:
                changed[f"{path}.weight"] = weight * scale.to(weight.device)
                continue
            changed[f"{path}.weight"] = weight * scale.to(weight.device)[:, None]
            if module.bias is not None:
                changed[f"{path}.bias"] = module.bias.float() * scale.to(weight.device)
        return changed

    @torch.no_grad()
    def flip(self) -> None:
        """Exchange alpha and -alpha: l - 1 negated."""
        for v in self.l:
            v.copy_(2 - v)

    def settings(self) -> dict[str, Any]:
        """Modules, and which of them are scaled at their input."""
        return {"modules": self.paths, "feedforward": self.feedforward}

    def tensors(self) -> dict[str, Tensor]:
        """Weights under PEFT's names: rows for inputs, columns for outputs."""
        return {
            name: v[None] if path in self.feedforward else v[:, None]
            for path, (name, v) in zip(self.paths, super().tensors().items(), strict=True)
        }

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and weights. What (IA)³ does not scale is of no width: 0."""
        shapes = {}
        for path in settings["modules"]:
            size = tensors[f"{PREFIX}{path}.ia3_l"].numel()
            shapes[path] = (size, 0) if path in settings["feedforward"] else (0, size)
        few = "|".join(re.escape(p) for p in settings["feedforward"])
        dial = cls(shapes, feedforward=f"^({few})$" if few else r"(?!)")
        return dial.filled(tensors)

    def peft_settings(self) -> dict[str, Any]:
        """Of IA3Config."""
        return {"feedforward_modules": self.feedforward}

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        modules = cls.modules_of(tensors)
        # PEFT stores a row for what it multiplies at the input, a column at the output.
        inputs = [p for p in modules if tensors[f"{PREFIX}{p}.ia3_l"].shape[0] == 1]
        return cls.build({"modules": modules, "feedforward": inputs}, tensors)


class RoadDial(PeftDial):
    """RoAd (Petrov et al. 2024): outputs turned and scaled in planes of two, y + alpha (R y - y).

    PEFT's variant road_1: an angle and a length a plane; within each group of outputs the i-th of
    the first half is paired with the i-th of the second.
    """

    kind = "road"
    peft_type = "ROAD"
    tuner = "RoAd (road_1)"
    own: ClassVar = {"road_theta": "theta", "road_alpha": "length"}
    known: ClassVar = {"group_size", "init_weights"}
    plain: ClassVar = {"variant": ("road_1",)}

    def __init__(self, shapes: dict[str, tuple[int, int]], *, group: int = 64):
        """
        Args:
            shapes: (in, out) features of each adapted module, by its path in the model.
            group: outputs of a group, even; halved until it divides every layer's outputs.
        """
        super().__init__(shapes)
        outs = [n for _, n in shapes.values()]
        whole(group, "group", 2)
        while group > 2 and any(n % group for n in outs):
            group //= 2
        if group < 2 or group % 2 or any(n % group for n in outs):
            raise DialError(f"RoAd: no even group of outputs divides {sorted(set(outs))}")
        self.group = group
        self.theta = nn.ParameterList(nn.Parameter(torch.zeros(n // 2)) for n in outs)
        self.length = nn.ParameterList(nn.Parameter(torch.ones(n // 2)) for n in outs)

    def _edit(
        self, index: int, module: nn.Module, x: Tensor, y: Tensor, alpha: float | Tensor
    ) -> Tensor:
        return y + (alpha * (self._turned(index, y) - y)).to(y.dtype)

    def _turned(self, index: int, y: Tensor) -> Tensor:
        """R y."""
        theta, length = (
            p[index].to(y.device).view(-1, self.group // 2) for p in (self.theta, self.length)
        )
        a, b = y.unflatten(-1, (-1, 2, self.group // 2)).unbind(-2)
        cos, sin = length * theta.cos(), length * theta.sin()
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3).to(y.dtype)

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """((1 - alpha) I + alpha R) W, and the same of the bias."""
        changed = {}
        for index, path in enumerate(self.paths):
            module: Any = linear_at(model, path, self.shapes[path], "adapter")
            columns = dense_weight(module).T  # in out
            turned = columns + alpha * (self._turned(index, columns).detach() - columns)
            changed[f"{path}.weight"] = turned.T
            if module.bias is not None:
                bias = module.bias.float()
                changed[f"{path}.bias"] = bias + alpha * (self._turned(index, bias).detach() - bias)
        return changed

    def settings(self) -> dict[str, Any]:
        """Modules with their shapes, and the group."""
        return {"modules": {p: list(s) for p, s in self.shapes.items()}, "group": self.group}

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and weights."""
        shapes = {p: (int(s[0]), int(s[1])) for p, s in settings["modules"].items()}
        dial = cls(shapes, group=settings["group"])
        if dial.group != settings["group"]:
            raise DialError(f"groups of {settings['group']} outputs do not divide the layers'")
        return dial.filled(tensors)

    def peft_settings(self) -> dict[str, Any]:
        """Of RoadConfig."""
        return {"variant": "road_1", "group_size": self.group}

    @classmethod
    def _from_config(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        modules = cls.modules_of(tensors)
        shapes = {p: [0, 2 * tensors[f"{PREFIX}{p}.road_theta"].numel()] for p in modules}
        return cls.build({"modules": shapes, "group": config["group_size"]}, tensors)
