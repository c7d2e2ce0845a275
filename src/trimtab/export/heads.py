"""What an alignment head needs to leave the house: a base model whose LM head is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from trimtab import models
from trimtab.dials import Dial, RewardDial
from trimtab.dials.dial import members
from trimtab.dials.logits import untie
from trimtab.errors import DialError
from trimtab.export.handing_over import for_older, save_tokenizer

BASE = "base"
"""Folder of the untied base model, within a LoRA's."""


def refuse_rewards(dial: Dial) -> None:
    """Raise DialError where a part of a dial ranks answers, which no other tool can do with it."""
    if any(isinstance(part, RewardDial) for part, _ in members(dial)):
        raise DialError(
            "a reward dial ranks answers and moves no logit: no other tool can use it as a change "
            "of the model (trimtab generate --reward, bench-tasks --reward)"
        )


def is_tied(model: nn.Module) -> bool:
    """Whether the LM head's weight is the embedding's."""
    return getattr(models.head(model), "weight", None) is getattr(models.embed(model), "weight", 0)


def save_untied(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """The base model with an LM head of its own: a LoRA that is merged into a tied one would change
    what the model reads."""
    base = models.plain_copy(model)
    untie(base, models.head_weight(base).detach())
    base.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    for_older(folder)
