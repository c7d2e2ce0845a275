"""What a comparison of preference heads trains, on how much, and where it judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from trimtab import models
from trimtab.bounds import Bounded, Count, Several, Whole
from trimtab.errors import ConfigError
from trimtab.study.lines import check_seeds


@dataclass(frozen=True)
class RewardComparison(Bounded):
    """What is trained, on how much, and judged where."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    tasks: tuple[str, ...] = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
    """Tasks whose training split is trained on, and whose test split is in-domain."""
    held_out: tuple[str, ...] = ("piqa", "winogrande", "social_i_qa")
    """Tasks of which nothing is trained on."""
    train_items: Annotated[Count, tyro.conf.arg(name="train_limit")] = 1500
    """Items trained on, over all tasks, the first of each alike."""
    more_items: Whole = 0
    """Items for one more frozen head, whose training costs little; 0 for none."""
    test_items: Annotated[Several, tyro.conf.arg(name="test_limit")] = 500
    """Items of each test split, the first ones."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of what trains an adapter."""
    head_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the frozen heads."""
    ablation: bool = True
    """Every pooling with every loss on the frozen model."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads; the last bits of the figures depend on them."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        every = (*self.tasks, *self.held_out)
        if not self.tasks or not self.held_out or len(set(every)) < len(every):
            raise ConfigError("tasks, held_out: expected at least one of each, each task once")
        check_seeds("seeds", self.seeds)
        check_seeds("head_seeds", self.head_seeds)
