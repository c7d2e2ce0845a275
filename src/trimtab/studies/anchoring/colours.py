"""Colours as data: grids, labels, names, similarity to a colour. RGB and HSV values lie in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from torch import Tensor

HUES = (
    *("red", "orange", "yellow", "lime", "green", "teal"),
    *("cyan", "azure", "blue", "purple", "magenta", "pink"),
)
"""Twelve hues, 30 degrees apart."""
GREYS = {"black": 0.0, "dark grey": 0.25, "grey": 0.5, "light grey": 0.75, "white": 1.0}
NAMES = (*HUES, *GREYS)
"""Colours of the named tables, in order."""
UNLIKE_RED = ("lime", "purple", "cyan", *GREYS)
"""Colours that lose nothing with red."""
RED_HSV = (0.0, 1.0, 1.0)


def named() -> Float[Tensor, "17 3"]:
    """RGB of the colours in `NAMES`."""
    hues = from_hsv(np.stack([np.arange(12) / 12, np.ones(12), np.ones(12)], -1))
    greys = torch.tensor(list(GREYS.values()))[:, None].expand(-1, 3)
    return torch.cat([hues, greys])


def rgb_grid(n: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "n**3 3"]:
    """All combinations of n evenly spaced values of the channels."""
    axis = torch.linspace(low, high, n)
    return torch.cartesian_prod(axis, axis, axis)


def hsv_grid(hues: int, saturations: int, values: int) -> Float[Tensor, "n 3"]:
    """HSV of all combinations of evenly spaced hues (a circle), saturations and values."""
    h = torch.arange(hues) / hues
    return torch.cartesian_prod(h, torch.linspace(0, 1, saturations), torch.linspace(0, 1, values))


def validation_grid() -> Float[Tensor, "351 3"]:
    """7 x 7 x 7 colours between those of the 8 x 8 x 8 grid, and its 8 corners."""
    return torch.cat([rgb_grid(7, 1 / 16, 15 / 16), rgb_grid(2)])


def from_hsv(hsv: Float[Tensor, "n 3"] | np.ndarray) -> Float[Tensor, "n 3"]:
    """HSV to RGB."""
    return torch.as_tensor(hsv_to_rgb(np.asarray(hsv, dtype=np.float64)), dtype=torch.float32)


def to_hsv(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """RGB to HSV."""
    return torch.as_tensor(
        rgb_to_hsv(rgb.clamp(0, 1).numpy().astype(np.float64)), dtype=torch.float32
    )


def grid_weights(hsv: Float[Tensor, "n 3"], saturations: int, hues: int) -> Float[Tensor, "n"]:
    """Sampling weights of an HSV grid: all of black, and all of white, as heavy as one vivid cell.

    w = (1 - v) / (n_s n_h) + (1 - s) v / n_h + s v.
    """
    _, s, v = hsv.unbind(-1)
    return (1 - v) / (saturations * hues) + (1 - s) * v / hues + s * v


# ---- labels -------------------------------------------------------------------------------------


def redness(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """r (1 - g / 2 - b / 2): 1 at pure red."""
    r, g, b = rgb.unbind(-1)
    return r * (1 - g / 2 - b / 2)


def vibrancy(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """Saturation times value: 1 at every pure hue."""
    _, s, v = to_hsv(rgb).unbind(-1)
    return s * v


def dullness(rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    """1 less vibrancy: 1 at every grey."""
    return 1 - vibrancy(rgb)


QUALITIES = {"redness": redness, "vibrancy": vibrancy, "dullness": dullness}


@dataclass(frozen=True)
class NoisyLabel:
    """A label drawn anew at every visit of a sample, with probability scale x quality^power."""

    quality: str
    """redness, vibrancy or dullness."""
    power: float
    """Sharpness: the higher, the fewer colours beside the purest are ever labelled."""
    scale: float
    """Probability for the purest colour."""

    def probability(self, rgb: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """Chance of the label for each colour."""
        return self.scale * QUALITIES[self.quality](rgb) ** self.power


# ---- evaluation ---------------------------------------------------------------------------------


def similarity(
    rgb: Float[Tensor, "n 3"], anchor: tuple[float, float, float] = RED_HSV
) -> Float[Tensor, "n"]:
    """Similarity to a colour (HSV), 0..1, in which hue counts only as far as it can be seen.

    [rho hs + 1 - rho] (1 - |s - s_a|) (1 - |v - v_a|), hs = max(0, (90 - delta) / 90) with delta
    the hues' distance in degrees, rho the mean vibrancy of the two (SCA, section on selectivity).
    """
    h, s, v = to_hsv(rgb).unbind(-1)
    ha, sa, va = anchor
    apart = (h - ha).abs()
    delta = 360 * torch.minimum(apart, 1 - apart)
    hue = ((90 - delta) / 90).clamp(min=0)
    seen = (s * v + sa * va) / 2
    return (seen * hue + 1 - seen) * (1 - (s - sa).abs()) * (1 - (v - va).abs())


def squared_error(output: Float[Tensor, "... 3"], rgb: Float[Tensor, "... 3"]) -> Tensor:
    """Mean squared error of each colour, outputs clipped to what can be shown."""
    return ((output.clamp(0, 1) - rgb) ** 2).mean(-1)


def r_squared(x: Float[Tensor, "... n"], y: Float[Tensor, "n"]) -> Float[Tensor, "..."]:
    """Squared Pearson correlation along the last dimension; 0 where either is constant."""
    a, b = x.double() - x.double().mean(-1, keepdim=True), y.double() - y.double().mean()
    size = (a**2).sum(-1) * (b**2).sum()
    return torch.where(size > 0, (a @ b) ** 2 / size.clamp(min=1e-300), 0.0)


def linear_r2(x: Float[Tensor, "n d"], y: Tensor, fit: Tensor, test: Tensor, ridge: float) -> float:
    """R2 with which y, `[n]` or `[n, k]`, is read linearly from x: fitted on some rows (indices or a
    mask) with a ridge, scored on others; in float64."""
    x, y = torch.cat([x, torch.ones(len(x), 1)], -1).double(), y.double()
    gram = x[fit].T @ x[fit] + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    left = y[test] - x[test] @ torch.linalg.solve(gram, x[fit].T @ y[fit])
    return float(1 - (left**2).sum() / ((y[test] - y[test].mean(0)) ** 2).sum())


def hues(t: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """Vivid colours at shares of the way around the circle of hues."""
    return from_hsv(torch.stack([t * 0.9999, torch.ones_like(t), torch.ones_like(t)], -1))
