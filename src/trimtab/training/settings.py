"""The settings of a training run: the groups of flags that recipes are made of."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal

from trimtab.batching import Over
from trimtab.bounds import (
    BelowOne,
    Bounded,
    Count,
    Endless,
    NonNegative,
    Positive,
    Rate,
    Several,
    Share,
    Within,
)
from trimtab.dials.logits import Shape
from trimtab.dials.reward import Aggregate, Mix, Pooling
from trimtab.dials.rotation import Scaling
from trimtab.errors import ConfigError
from trimtab.objectives import Objective
from trimtab.spaces import TRAINABLE

WRITERS = r"(o_proj|down_proj|out_proj|fc2|c_proj|attention\.dense|dense_4h_to_h)$"
"""Layers that write to the residual stream."""


LATER = {"later": True}
"""Of a field that came after digests of settings were written down: see `plain`."""


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON values. What came later is left out at its default, so that digests and records
    of settings stay what they were."""
    found = {k: plain(v) if is_dataclass(v) else v for k, v in _kept(settings)}
    return json.loads(json.dumps(found))


def spelled(settings: Any) -> str:
    """Settings as `repr` writes them, likewise."""
    if not is_dataclass(settings):
        return repr(settings)
    each = ", ".join(f"{name}={spelled(value)}" for name, value in _kept(settings))
    return f"{type(settings).__qualname__}({each})"


def _kept(settings: Any) -> Iterator[tuple[str, Any]]:
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value != f.default or not f.metadata.get("later"):
            yield f.name, value


def bytes_of(text: str, what: str) -> int:
    """A size such as 2GiB or 500 MB in bytes. Raises ConfigError where it is none."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT])(i?)B", text.strip())
    if not found or not (size := float(found[1])):
        raise ConfigError(f"{what} is {text!r}; expected a size, such as 2GiB or 500MB")
    return round(size * (1024 if found[3] else 1000) ** (1 + "KMGT".index(found[2])))


@dataclass(frozen=True)
class TrainSettings(Bounded, group="train"):
    """How a training recipe is optimised (AdamW)."""

    pairs_per_step: Count = 16
    """Pairs of an optimizer step; the summed loss is divided by it, whatever the microbatches."""
    epochs: Positive = 2.0
    """Passes over the pairs."""
    max_steps: Count | None = None
    """Upper limit of optimizer steps."""
    learning_rate: Rate = 5e-4
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """The learning rate after warm-up."""
    warmup: Share = 0.1
    """Share of the steps over which the rate rises."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Endless = 1.0
    """The gradient's norm is clipped to this; at 0 it never is."""
    microbatch_tokens: Count = 2048
    """Padded positions of a microbatch: memory grows with it, the gradient stays the same."""
    memory: str | None = field(default=None, metadata=LATER)
    """What a step may take above what the process holds anyway, such as 2GiB: microbatches are made as
    large as fits by the bytes that they keep, and what is cheap to compute again is not kept."""
    checkpoint_seconds: Endless = 60.0
    """A checkpoint is written when this long has passed since the last."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    report_to: Literal["none", "wandb", "tensorboard", "trackio", "all"] = "none"
    """Who is told of every step. TensorBoard's files lie in `tensorboard/` beside the dial."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory is not None:
            bytes_of(self.memory, "train.memory")
        if self.report_to not in ("none", "all") and not importlib.util.find_spec(self.report_to):
            raise ConfigError(
                f"train.report_to={self.report_to}: install it (pip install {self.report_to})"
            )


@dataclass(frozen=True)
class AdapterSettings(Bounded, group="dial"):
    """The adapter that a training recipe fits."""

    kind: ClassVar = "adapter"
    """Its name in `DIALS`; of the other dials likewise."""
    usual: ClassVar[TrainSettings] = TrainSettings()
    """How it is trained unless a recipe says otherwise; of the other dials likewise."""

    tuner: Literal["lora", "ia3", "road", "vera", "delora"] = "lora"
    """LoRA, or another tuner with a strength: (IA)³, RoAd, VeRA, DeLoRA."""
    rank: Count = 16
    """r: rank of each update (LoRA, VeRA, DeLoRA)."""
    lora_alpha: Positive = 32
    """Numerator of the scale lora_alpha / r."""
    dropout: BelowOne = 0.0
    """Probability of dropping an input in training."""
    rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    targets: str = "all-linear"
    """`all-linear`, `experts` (the stacked experts of a mixture; LoRA alone, without dropout), or a
    regular expression searched in module paths."""
    blocks: str = field(default="", metadata=LATER)
    """Only these decoder blocks, as `0.5..1`; none above the objective's deepest site."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets == "experts" and (self.tuner != "lora" or self.dropout):
            raise ConfigError(
                f"targets=experts, tuner={self.tuner}, dropout {self.dropout}: the stacked experts' "
                "weights are changed, not what goes into them: expected LoRA alone, dropout 0"
            )


Where = Literal["all", "completion", "prompt", "last"]
"""Positions at which an edit of states acts, in training as in use (`dials.where`)."""


@dataclass(frozen=True)
class VectorSettings(Bounded, group="dial"):
    """The vector that a training recipe fits: h + alpha s w at each site, s a tenth of the states' mean
    length there, w from 0."""

    kind: ClassVar = "vector"
    usual: ClassVar[TrainSettings] = TrainSettings(learning_rate=0.05)
    """The rate is that of w: one step changes its length by as much at most."""

    sites: str = "0.5"
    """Where it is added: one block in the middle, or several (see sites; auto: see `fit mean`)."""
    positions: Where = "all"
    """The tokens at which it is added, in training and in use: all, completion, prompt or last."""
    largest: Positive | None = None
    """w gets no longer than this."""
    unit: Literal["states", "raw"] = "states"
    """raw: the vector itself is trained, each entry at the learning rate (published)."""


@dataclass(frozen=True)
class ReftSettings(Bounded, group="dial"):
    """The low-rank edit of states that a training recipe fits (ReFT), from the identity."""

    kind: ClassVar = "reft"
    usual: ClassVar[TrainSettings] = TrainSettings(learning_rate=0.05)
    """The rate is in units of a tenth of the states' mean length, as a vector's."""

    form: Literal["loreft", "direft"] = "direft"
    """loreft: h + R^T (W h + b - R h), which replaces; direft: h + R^T (W h + b), which adds."""
    sites: str = "0.5"
    """Where states are edited: one block in the middle, or several (see sites; auto: see `fit mean`)."""
    rank: Count = 4
    """r, rows of R and W."""
    positions: Where = "completion"
    """The tokens at which states are edited, in training and in use: all, completion, prompt or last.
    Among all is BOS, whose state is many times as long as others, and so is what is done to it."""


@dataclass(frozen=True)
class RotationSettings(Bounded, group="dial"):
    """Which singular vectors are turned, and how far."""

    kind: ClassVar = "rotation"
    usual: ClassVar[TrainSettings] = TrainSettings(learning_rate=3e-3)
    """How it is trained."""

    rank: Several = 64
    """Singular vectors of each layer."""
    targets: str = WRITERS
    """Regular expression searched in the paths of linear layers."""
    blocks: str = "0.25..0.75"
    """Decoder blocks whose layers are turned; none above the objective's deepest site."""
    select: Literal["top", "data"] = "top"
    """The largest singular values, or those along which the layer writes chosen - rejected most."""
    scaling: Scaling = "multiplicative"
    """What alpha does to singular values: S exp(alpha l), S + alpha l, or nothing."""
    max_angle: Annotated[float, Within(0, 180, "()")] = 45.0
    """No plane turns farther at alpha = 1, in degrees."""


@dataclass(frozen=True)
class LogitsSettings(Bounded, group="dial"):
    """The alignment head that is fitted."""

    kind: ClassVar = "logits"
    usual: ClassVar[TrainSettings] = TrainSettings(learning_rate=1e-3)
    """How it is trained."""

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

    kind: ClassVar = "reward"
    usual: ClassVar[TrainSettings] = TrainSettings(pairs_per_step=64, epochs=10, learning_rate=1e-3)
    """How it is trained; three times the rate saturates most swiglu poolings."""

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


DIALS: dict[str, Any] = {
    d.kind: d
    for d in (AdapterSettings, VectorSettings, ReftSettings, RotationSettings, LogitsSettings)
}
"""What `--dial.kind` names: the dials that any objective trains which can reach them."""


@dataclass(frozen=True)
class SpaceSettings(Bounded, group="space"):
    """The space in which states are compared."""

    kind: Literal["none", "svd", "ortho", "hra", "ether", "etherplus", "suppressed"] = "none"
    """none, svd, ortho, hra, ether, etherplus or suppressed."""
    rank: Count | None = None
    """hra: reflections (38); suppressed: tokens whose unembedding rows span the space (64)."""
    share: Annotated[float, Within(0, 1, "()")] = 0.5
    """svd: the squared energy of embedding and unembedding that is left out."""
    learning_rate: Rate | None = None
    """Of a trainable space (by default the dial's)."""
    weight_norm: NonNegative = 1.0
    """Weight of the penalty on changed lengths, for trainable spaces that are no isometry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "hra" and self.rank is not None and self.rank % 2:
            raise ConfigError(f"space.rank is {self.rank}; expected an even number for hra")


def no_effect(kind: str, objective: Objective) -> str | None:
    """Why a space cannot change what an objective trains, with what could; None where it can."""
    isometric = kind in TRAINABLE and TRAINABLE[kind].isometric
    if not isometric or not getattr(objective, "rotation_invariant", False):
        return None
    return (
        f"space {kind} turns all states alike, and {type(objective).__name__} sees only lengths and "
        "angles: provably no effect, left out. svd, suppressed and etherplus are no isometries; the "
        "rank objective depends on the basis"
    )


def check_space(kind: str, objective: object) -> None:
    """Raise ConfigError where an objective has no states to map."""
    if kind != "none" and not hasattr(objective, "rotation_invariant"):
        raise ConfigError(
            f"space {kind}: {type(objective).__name__} reads no hidden states; expected an "
            "objective on states (mse, prefvec, rank, innerdpo)"
        )


@dataclass(frozen=True)
class ProjectionSettings(Bounded, group="projection"):
    """What of the gradient is let through."""

    of: Literal["weights", "signal"] = "weights"
    """weights: ProjGrad, the gradient of the adapter at each step; signal: ProjBP, what is
    propagated back through the modules' outputs."""
    keep: Share | None = None
    """Share of what is off the direction that is kept all the same (by default 0; published: 0.8
    for weights, 0.2 for the signal)."""
    clip: NonNegative | None = None
    """A gradient whose norm is beyond clip |p| is scaled down to it (published: 0.6 for the signal)."""
    on: Literal["gradient", "update"] = "gradient"
    """For weights: project the gradient, as published, or the change that AdamW makes of it, whose
    rescaling of single entries leaves the direction again. A change has no clip and no published
    variant."""
    variant: Literal["sound", "published"] = "sound"
    """Ours, or bd9ae63's: an elementwise leaky ReLU after the projection, and for weights the input
    axis of A in square modules alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on == "update" and self.of == "signal":
            raise ConfigError(
                "projection.on=update: AdamW changes weights, not the signal; expected of=weights"
            )
        if self.on == "update" and self.variant == "published":
            raise ConfigError(
                "projection.variant=published: it projects gradients; expected on=gradient"
            )
        if self.on == "update" and self.clip is not None:
            raise ConfigError(
                f"projection.clip is {self.clip}: it limits gradients, and AdamW's change does not "
                "grow with them; expected on=gradient"
            )

    @property
    def kept(self) -> float:
        """Share of the rest that is kept."""
        if self.keep is not None:
            return self.keep
        return 0.0 if self.variant == "sound" else 0.8 if self.of == "weights" else 0.2

    @property
    def clipped(self) -> float | None:
        """The clip in force."""
        published = self.variant == "published" and self.of == "signal"
        return 0.6 if self.clip is None and published else self.clip
