"""Preference scores of a model, an entry an item."""

from __future__ import annotations

from typing import Any

from torch import nn

from trimtab.batching import Encoded
from trimtab.dials import Dial, RewardDial
from trimtab.evaluation.items import ItemScores, item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.progress import Update
from trimtab.readings import Progress, collect, reference
from trimtab.states import Readings
from trimtab.store import Store


def score(
    model: nn.Module,
    encoded: Encoded,
    dial: Dial | None = None,
    alpha: float = 1.0,
    *,
    force: bool = False,
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress | None = None,
) -> ItemScores:
    """Score every item with the dial at `alpha`. The bare model's log-probs come from the store. A
    reward dial ranks by alpha x reward: `margin` is then one of rewards.

    Raises:
        DialError: the dial was made for another base model (`force` goes on).
    """
    how: dict[str, Any] = {"force": force, "budget": budget, "progress": progress}
    if isinstance(dial, RewardDial) and alpha != 0:
        found = reward_scores(encoded, alpha * rewards_of(model, dial, encoded, **how)[0])
    else:
        found = item_scores(encoded, logps(model, encoded, dial, alpha, store=store, **how))
    if isinstance(progress, Update):  # the mean over items stands at the end of a bar
        progress.said = f"accuracy {found.accuracy.mean():.3f}"
    return found


def logps(
    model: nn.Module,
    encoded: Encoded,
    dial: Dial | None,
    alpha: float,
    *,
    force: bool = False,
    store: Store | None = None,
    **how: Any,
) -> Readings:
    """Log-probs of all answers with a dial at `alpha`; those of the bare model come from the store."""
    if dial is None or alpha == 0:
        return reference(model, encoded, logps=True, store=store, **how)
    with dial(model, alpha, force=force):
        return collect(model, encoded, logps=True, **how)
