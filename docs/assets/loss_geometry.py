"""Draws docs/assets/loss_geometry.svg from the loss itself: python docs/assets/loss_geometry.py [FILE]"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from trimtab.objectives import ReprPOMargin
from trimtab.readout import Readout

BEFORE = -2.0
"""Mean log-prob a token of the reference, in nats."""
SOUND, PUBLISHED, POINT = "#2563a8", "#c2551b", "#222222"


def loss(objective: ReprPOMargin, separation: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """The loss where the reference has separation 1 and log-prob BEFORE."""
    apart, now = (torch.as_tensor(a, dtype=torch.float64).flatten() for a in (separation, logp))

    def at(d: torch.Tensor, l: torch.Tensor) -> Readout:  # noqa: E741
        one = torch.ones_like(l)
        return Readout(l, l, one, one, {0: d[:, None]}, {0: torch.zeros_like(d)[:, None]})

    reference = at(torch.ones_like(apart), torch.full_like(now, BEFORE))
    return objective(at(apart, now), reference)[0].numpy().reshape(np.shape(separation))


def main(file: Path) -> None:
    """Left, the barrier alone; right, the whole sound loss and the step that it wants."""
    sound, published = ReprPOMargin(), ReprPOMargin(variant="published")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")

    change = np.linspace(-0.35, 0.15, 400)
    one = np.ones_like(change)
    for objective, colour, name in (
        (sound, SOUND, "sound"),
        (published, PUBLISHED, "published / 500"),
    ):
        barrier = loss(objective, one, BEFORE + change) + 1
        barrier = barrier / (500 if objective is published else 1)
        left.plot(change, barrier, color=colour, label=name)
    start = [loss(sound, np.ones(1), np.full(1, BEFORE))[0] + 1]
    start.append((loss(published, np.ones(1), np.full(1, BEFORE))[0] + 1) / 500)
    left.plot([0, 0], start, "o", color=POINT, label="where the gradient is taken")
    left.axvline(-sound.margin, color=SOUND, linestyle=":", linewidth=1)
    left.axvline(-0.01 * BEFORE, color=PUBLISHED, linestyle=":", linewidth=1)
    left.set(xlabel="change of mean log-prob (nats a token)", ylabel="barrier")
    left.set_ylim(-0.1, 3.2)
    left.legend(frameon=False, fontsize=8)

    x, y = np.meshgrid(np.linspace(0.4, 2.2, 160), np.linspace(-0.4, 0.2, 160))
    z = loss(sound, x, BEFORE + y)
    lines = right.contour(x, y, z, levels=14, cmap="viridis", linewidths=0.9)
    right.clabel(lines, fontsize=6)
    slope = (
        1 / (1 + np.e) / sound.margin
    )  # of the loss down the log-prob; along the separation it is 1
    right.plot(1, 0, "o", color=POINT)
    arrow = {"arrowstyle": "->", "color": POINT}
    right.annotate("", (1 + 0.06, 0.06 * slope), (1, 0), arrowprops=arrow)
    right.axhline(-sound.margin, color=SOUND, linestyle=":", linewidth=1)
    right.set(
        xlabel="separation, in units of the reference's",
        ylabel="change of mean log-prob",
        title="sound",
    )
    left.set_title("the barrier")
    plt.rcParams.update({"svg.hashsalt": "trimtab", "svg.fonttype": "none"})
    figure.savefig(file, metadata={"Date": None})
    short = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", file.read_text("utf-8"))
    file.write_text(re.sub(r"\s*\n\s*", "\n", short), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
