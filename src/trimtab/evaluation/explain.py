"""What a dial does to the next token, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.evaluation.decoding import Decoder
from trimtab.evaluation.formats import Style, format_for
from trimtab.evaluation.generation import (
    LIKELIEST,
    Sampling,
    ends_of,
    next_ids,
    seeded,
)
from trimtab.pairs.pair import Text
from trimtab.pairs.prompts import Prompt
from trimtab.rendering import Rendering


@dataclass(frozen=True)
class Shift:
    """A token that a dial moves: by `change` nats of log-prob, from `before` to `after`
    (probabilities)."""

    token: str
    change: float
    before: float
    after: float


@dataclass(frozen=True)
class Step:
    """One step of a continuation with the dial.

    Attributes:
        token: what was taken.
        bare: what the bare model finds likeliest there.
        kl: KL(dialled || bare) of the step, in nats.
        promoted, demoted: the tokens that gain and lose most.
    """

    token: str
    bare: str
    kl: float
    promoted: tuple[Shift, ...]
    demoted: tuple[Shift, ...]


@torch.no_grad()
def explain(
    model: nn.Module,
    tokenizer: Any,
    dial: Dial,
    prompt: Text | Prompt,
    alpha: float = 1.0,
    *,
    steps: int = 12,
    top: int = 5,
    likely: float = 1e-4,
    sampling: Sampling = LIKELIEST,
    prompt_style: Style | None = None,
    rendering: Rendering | None = None,
    force: bool = False,
) -> list[Step]:
    """The tokens that a dial promotes and demotes at each step of its own continuation.

    Args:
        steps: at most so many tokens.
        top: so many tokens of either kind.
        likely: tokens that neither model gives this probability are passed over: among tens of
            thousands that nobody would say, the largest change means nothing.
        prompt_style, rendering: as of `generate`.

    Raises:
        ConfigError: `steps` or `top` below 1.
    """
    if steps < 1 or top < 1:
        raise ConfigError(f"explain: expected steps and top of 1 or more, given {steps} and {top}")
    form = format_for([dial], prompt_style, rendering)
    ids = form.ids(tokenizer, prompt)
    ends = ends_of(model, tokenizer, form, [prompt])
    found: list[Step] = []
    with seeded(sampling.seed, model):
        bare = Decoder(model, ids, room=steps)
        with dial(model, alpha, force=force):
            lean = Decoder(model, ids, room=steps)
        while True:
            old, new = bare.logits[0].log_softmax(-1), lean.logits[0].log_softmax(-1)
            token = next_ids(lean.logits, lean.ids, sampling)
            change = (new - old).masked_fill(torch.maximum(old, new).exp() < likely, 0.0)
            promoted, demoted = (
                tuple(
                    Shift(
                        tokenizer.decode([i]),
                        float(change[i]),
                        *(float(p[i].exp()) for p in (old, new)),
                    )
                    for i in (sign * change).topk(top).indices.tolist()
                    if sign * float(change[i]) > 0
                )
                for sign in (1, -1)
            )
            bare_token = tokenizer.decode([int(old.argmax())])
            kl = float((new.exp() * (new - old)).sum())
            found.append(Step(tokenizer.decode(token.tolist()), bare_token, kl, promoted, demoted))
            if int(token) in ends or len(found) == steps:
                return found
            bare.feed(token)
            with dial(model, alpha, force=force):
                lean.feed(token)
