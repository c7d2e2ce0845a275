"""The vectors of a dial by layer, as safetensors, for the package steering-vectors."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from trimtab.dials import Dial
from trimtab.export.gguf import added_steps

FILE = "layer_activations.safetensors"

README = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def export_steering_vectors(dial: Dial, model: nn.Module, alpha: float, folder: Path) -> list[str]:
    """Write `layer_activations` by layer for multiplier 1. Returns what is not carried over.

    The package has no file format of its own; its users pickle the object, which we do not.

    Raises:
        DialError: the dial does anything else than add vectors after blocks.
    """
    steps = added_steps(dial, model, "a steering vector")
    folder.mkdir(parents=True)
    save_file(
        {str(k): (alpha * v).detach().cpu().float().contiguous() for k, v in steps.items()},
        folder / FILE,
    )
    (folder / "README.md").write_text(README)
    return [
        f"alpha: multiplier 1 is the dial at {alpha:g}, multiplier m the dial at m x {alpha:g}",
        "alphas of their own for the rows of a batch",
        "data, seed and measured range of the dial",
    ]
