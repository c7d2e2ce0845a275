"""Methods whose dial sits on top of a frozen model: alignment and preference heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trimtab.batching import Over
from trimtab.bounds import BelowOne, Bounded, Count
from trimtab.dials.logits import Shape
from trimtab.dials.reward import Aggregate, Mix, Pooling
from trimtab.errors import ConfigError
from trimtab.objectives.heads import ARM, DPH, IAV
from trimtab.training.recipes import AdapterSettings, Method, TrainingRecipe, TrainSettings


@dataclass(frozen=True)
class LogitsSettings(Bounded, group="dial"):
    """The alignment head that is fitted."""

    shape: Shape = "low_rank"
    """low_rank B A h, full W h, hidden W0 U A h, mlp B silu(A h + b)."""
    rank: Count = 64
    """Rank, or hidden units."""
    sites: str = ""
    """Further sites whose states the head reads, as `0.3,0.6`."""
    base_head: Literal["frozen", "trainable"] = "frozen"
    """`trainable`: an untied copy of the LM head is trained along, and bypassed at alpha 0."""
    features: Literal["store", "live"] = "store"
    """Train from stored hidden states, or run the backbone at every step."""


@dataclass(frozen=True)
class RewardSettings(Bounded, group="dial"):
    """The preference head that is fitted."""

    sites: str = "final"
    """Where states are read; several are mixed."""
    mix: Mix = "mean"
    """States of several sites: their mean, or a softmax-weighted sum that is learned."""
    aggregate: Aggregate = "marker"
    """One vector a sequence: the state of its EOS, of its last token, mean, max, position-weighted
    mean, or learned attention."""
    over: Over = "answer"
    """Which tokens count: the answer's, its last turn's, or the prompt's too."""
    pooling: Pooling = "identity"
    """What the vector goes through."""
    norm: bool = False
    """RMSNorm before a swiglu pooling."""
    inner: Count | None = None
    """Inner width of swiglu (default: 8 d / 3)."""
    attention_heads: Count = 4
    """Heads of the attention aggregation."""
    dropout: BelowOne = 0.0
    """Probability of dropping an entry in training."""
    heads: tuple[str, ...] = ("preference",)
    """Names of the rewards. With several, a pair trains the head that its `concept` names."""
    adapter: Literal["none", "lora"] = "none"
    """`lora`: an adapter of the model is trained along."""
    lora: AdapterSettings = field(default_factory=AdapterSettings)
    """That adapter."""
    features: Literal["store", "live"] = "store"
    """Train from stored hidden states, or run the backbone at every step."""


@dataclass(frozen=True)
class HeadRecipe(TrainingRecipe):
    """A method that trains a head on a frozen model."""


@dataclass(frozen=True)
class IAVRecipe(HeadRecipe):
    """An alignment head on the frozen model's last hidden states."""

    objective: IAV = field(default_factory=IAV)  # type: ignore[assignment]
    """What is minimised."""
    dial: LogitsSettings = field(default_factory=LogitsSettings)  # type: ignore[assignment]
    """What is trained."""
    train: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=1e-3))
    """How."""


@dataclass(frozen=True)
class DPHRecipe(HeadRecipe):
    """A preference head on the frozen model's hidden states."""

    objective: DPH = field(default_factory=DPH)  # type: ignore[assignment]
    """What is minimised."""
    dial: RewardSettings = field(default_factory=RewardSettings)  # type: ignore[assignment]
    """What is trained."""
    train: TrainSettings = field(  # three times the rate saturates most swiglu poolings
        default_factory=lambda: TrainSettings(pairs_per_step=64, epochs=10, learning_rate=1e-3)
    )
    """How."""

    def __post_init__(self) -> None:
        if self.objective.logps and self.dial.adapter == "none":
            raise ConfigError(
                "objective.weight_dpo and weight_sft train an adapter: add --dial.adapter lora"
            )


@dataclass(frozen=True)
class GenARMRecipe(TrainingRecipe):
    """An autoregressive reward model: a second model, run beside the bare one."""

    objective: ARM = field(default_factory=ARM)
    """What is minimised."""


HEADS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            "iav",
            IAVRecipe(),
            "low-rank head beside the LM head",
            "alignment vectors added to the logits, by exact DPO from stored hidden states",
        ),
        Method(
            "dph",
            DPHRecipe(),
            "reward head on the last hidden state",
            "a reward by which answers are ranked; the model itself stays as it is",
        ),
        Method(
            "genarm",
            GenARMRecipe(),
            "LoRA on all linear layers",
            "an autoregressive reward model that decodes beside the bare model: a baseline",
        ),
    )
}
