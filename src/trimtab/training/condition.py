"""A condition from examples: where a dial is to act, and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, PromptStyle, Row
from trimtab.dials import Condition
from trimtab.dials.contexts import check_bare
from trimtab.errors import DataError
from trimtab.pairs.pair import Text
from trimtab.pairs.prompts import Prompt
from trimtab.readings import collect
from trimtab.rendering import USUAL, Rendering, prompt_ids
from trimtab.sites import Site, parse_sites

LEAST = 4
"""Examples of each kind that it takes."""


class FoundCondition(NamedTuple):
    """A condition, and how well it tells texts apart that its direction was not made from."""

    condition: Condition
    balanced_accuracy: float


def fit_condition(
    model: nn.Module,
    tokenizer: Any,
    acting: Sequence[Text | Prompt],
    resting: Sequence[Text | Prompt],
    *,
    sites: str | Sequence[Site] = "0.1..0.5",
    over: Literal["prompt", "last"] = "prompt",
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
) -> FoundCondition:
    """Find the site, direction and threshold that tell prompts to act on from others.

    At each site the direction is the difference of the two means of unit-length states over every
    other prompt; the threshold is the one with the best balanced accuracy on the prompts left out.
    The site with the best one is taken, the first of equals: the earlier it is, the more of the
    model a dial may follow it in.

    Args:
        acting, resting: prompts, texts or chats; as `generate` will see them.
        over: average the prompt's tokens, or read its last.
        prompt_style: `chat` wraps them as user messages in the chat template.
        rendering: how the chat template is run.

    Raises:
        DataError: fewer than four of a kind, or an empty prompt.
    """
    check_bare(model, "fitting a condition")
    if min(len(acting), len(resting)) < LEAST:
        raise DataError(
            f"{len(acting)} prompts to act on and {len(resting)} others: expected {LEAST} or more "
            "of each"
        )
    texts = [Prompt.of(prompt) for prompt in (*acting, *resting)]
    rows = []
    for number, prompt in enumerate(texts, 1):
        if not prompt.shown.strip():
            raise DataError(f"prompt {number} of {len(texts)} is empty")
        ids = prompt_ids(
            prompt.text,
            tokenizer,
            prompt_style,
            rendering=rendering,
            system=prompt.system,
            tools=prompt.tools,
            template_kwargs=prompt.chat_template_kwargs,
            where=prompt.source,
        )
        rows.append(Row(f"prompt {number}", (), (ids,), (), ()))
    found = collect(
        model,
        Encoded(tuple(rows), 0, None, "condition"),
        sites=(where := parse_sites(sites, models.n_layers(model))),
        pool="completion" if over == "prompt" else "last",
        token_map="l2",
    )
    label = torch.arange(len(texts)) < len(acting)
    number = torch.cat([torch.arange(len(acting)), torch.arange(len(resting))])
    for_direction = number % 2 == 0
    best: FoundCondition | None = None
    for site in where:
        h = found.states[site]
        direction = h[for_direction & label].mean(0) - h[for_direction & ~label].mean(0)
        if not direction.norm() > 1e-5 * h.norm(dim=-1).mean():  # rounding alone
            continue
        scores = h[~for_direction] @ (direction / direction.norm())
        threshold, accuracy = best_threshold(scores, label[~for_direction])
        if best is None or accuracy > best.balanced_accuracy:
            condition = Condition(
                site,
                direction,
                threshold,
                over,
                prompt_style=prompt_style,
                rendering=rendering.record(),
            )
            best = FoundCondition(condition, accuracy)
    if best is None:
        raise DataError("the prompts to act on and the others have the same states")
    return best


def best_threshold(scores: Float[Tensor, "n"], label: Tensor) -> tuple[float, float]:
    """The cut between scores with the best balanced accuracy (the mean of both kinds' shares on
    their own side), in the middle of the widest gap where several are equally good."""
    values = scores.unique()
    gaps = values.diff()
    cuts = values[:-1] + gaps / 2
    if not len(cuts):
        return float(values[0]), 0.5
    above = scores[:, None] > cuts  # text cut
    right = (above[label].float().mean(0) + (~above[~label]).float().mean(0)) / 2
    ties = (right == right.max()).nonzero()[:, 0]
    at = ties[gaps[ties].argmax()]
    return float(cuts[at]), float(right[at])
