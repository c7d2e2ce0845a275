"""What a comparison of heads trains, on how much, and where it judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from trimtab import models
from trimtab.bounds import Bounded, Count, Positive, Several, Strength, Whole
from trimtab.errors import ConfigError
from trimtab.evaluation.items import check_alphas
from trimtab.rendering import USUAL, Rendering
from trimtab.study.lines import check_seeds


@dataclass(frozen=True)
class HeadComparison(Bounded):
    """What is trained, on how much, and judged where."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    train: str = "hh:harmless-base/test[1500:]"
    """Pairs that every arm is trained on."""
    tests: tuple[str, ...] = ("hh:harmless-base/test[:1500]",)
    """Pairs to be judged on."""
    train_limit: Count | None = None
    """The first so many training items."""
    test_limit: Several | None = None
    """The first so many items of each test."""
    alphas: Annotated[tuple[Strength, ...], tyro.conf.arg(name="alpha")] = (0.5, 1.0, 1.5, 2.0)
    """Strengths, 1 among them."""
    kl_items: Several = 50
    """Items of each test on whose answers the KL is measured, the first ones."""
    args_answers: Several = 6
    """Answers on which that of ARGS is, which takes a pass a token."""
    k: Several = 10
    """Tokens among which ARGS chooses."""
    epochs: Positive = 2.0
    """Passes of DPO and of GenARM over the pairs."""
    head_epochs: Positive = 5.0
    """Passes of the head, which a store makes cheap."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of what trains an adapter."""
    head_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of what trains a head on the frozen model."""
    new_tokens: Annotated[Whole, tyro.conf.arg(name="max_new_tokens")] = 32
    """Tokens that are generated to take the time; 0 takes none."""
    rounds: Count = 5
    """How often each arm generates them, the arms in turn."""
    max_length: Count = 256
    """Pairs longer than this many tokens are dropped and counted."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads; the last bits of the figures depend on them."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alphas(self.alphas)
        if 1.0 not in self.alphas or 0.0 in self.alphas or len(set(self.alphas)) < len(self.alphas):
            raise ConfigError(
                "alphas: expected each once, 1 among them and not 0, which is the base"
            )
        if not self.tests or len(set(self.tests)) < len(self.tests):
            raise ConfigError("tests: expected at least one, each once")
        check_seeds("seeds", self.seeds)
        check_seeds("head_seeds", self.head_seeds)
