"""Every method by name: a frozen dataclass whose fields are the command line's flags."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints

from trimtab.errors import ConfigError, near
from trimtab.objectives import DPO, InnerDPO, Objective
from trimtab.readout import Pool


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA that a training recipe fits."""

    rank: int = 16
    """r: rank of each update."""
    lora_alpha: float = 32
    """Numerator of the scale lora_alpha / r."""
    dropout: float = 0.0
    """Probability of dropping an input in training."""
    rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    targets: str = "all-linear"
    """`all-linear`, or a regular expression searched in module paths."""


@dataclass(frozen=True)
class TrainSettings:
    """How a training recipe is optimised (AdamW)."""

    pairs_per_step: int = 16
    """Pairs of an optimizer step; the summed loss is divided by it, whatever the microbatches."""
    epochs: float = 2.0
    """Passes over the pairs."""
    max_steps: int | None = None
    """Upper limit of optimizer steps."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """The learning rate after warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""
    microbatch_tokens: int = 2048
    """Padded positions of a microbatch: memory grows with it, the gradient stays the same."""
    checkpoint_seconds: float = 60.0
    """A checkpoint is written when this long has passed since the last."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    report_to: Literal["none", "wandb", "tensorboard", "trackio", "all"] = "none"
    """Who is told of every step. TensorBoard's files lie in `tensorboard/` beside the dial."""

    def __post_init__(self) -> None:
        for name in ("pairs_per_step", "epochs", "learning_rate", "microbatch_tokens", "max_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"train.{name} is {value}; expected a number above 0")
        for name in ("scheduler", "report_to"):
            value, known = getattr(self, name), get_args(get_type_hints(TrainSettings)[name])
            if value not in known:
                raise ConfigError(f"train.{name} is {value!r}; expected one of {', '.join(known)}")
        if self.report_to not in ("none", "all") and not importlib.util.find_spec(self.report_to):
            raise ConfigError(
                f"train.report_to={self.report_to}: install it (pip install {self.report_to})"
            )


@dataclass(frozen=True)
class TrainingRecipe:
    """A method that trains an adapter on an objective."""

    objective: Objective
    """What is minimised."""
    dial: AdapterSettings = field(default_factory=AdapterSettings)
    """What is trained."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How."""


@dataclass(frozen=True)
class DPORecipe(TrainingRecipe):
    """Direct preference optimization of a LoRA adapter: the baseline."""

    objective: DPO = field(default_factory=DPO)
    """The loss on log-probs."""


@dataclass(frozen=True)
class InnerDPORecipe(TrainingRecipe):
    """Hidden states of a LoRA adapter's model, pulled apart along the reference's preference."""

    objective: InnerDPO = field(default_factory=InnerDPO)
    """The loss on hidden states, with an outer DPO term."""


@dataclass(frozen=True)
class DirectionRecipe:
    """A vector in closed form: one pass over the pairs, no training."""

    estimator: Literal["mean", "pca"] = "mean"
    """Mean of the differences, or their first principal component."""
    sites: str = "0.5"
    """Where the vector is read and added: one block in the middle, or several (see sites)."""
    pool: Pool = "completion"
    """Which answer positions are averaged."""
    centred: bool = False
    """For pca: remove the mean difference first (repeng's `pca_diff`)."""


Recipe = TrainingRecipe | DirectionRecipe


@dataclass(frozen=True)
class Method:
    """A named recipe."""

    name: str
    recipe: Recipe
    where: str
    """Where the dial sits."""
    what: str
    """What it optimises, in one line."""

    @property
    def trained(self) -> bool:
        """Whether it has a seed; closed-form methods run once."""
        return isinstance(self.recipe, TrainingRecipe)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "dpo",
            DPORecipe(),
            "LoRA on all linear layers",
            "direct preference optimization of log-probs: the baseline",
        ),
        Method(
            "innerdpo",
            InnerDPORecipe(),
            "LoRA on all linear layers",
            "hidden states apart along the reference's preference direction, plus DPO",
        ),
        Method(
            "mean",
            DirectionRecipe(),
            "vector at the middle block",
            "mean difference of hidden states, no training",
        ),
        Method(
            "pca",
            DirectionRecipe(estimator="pca"),
            "vector at the middle block",
            "first principal component of the differences, no training",
        ),
    )
}


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError with the near names."""
    if name not in METHODS:
        raise ConfigError(
            f"unknown method {name!r}{near(name, METHODS)} (known: {', '.join(METHODS)})"
        )
    return METHODS[name]


from trimtab.fit.head_recipes import HEADS  # noqa: E402 (it builds on what stands above)

METHODS |= HEADS
