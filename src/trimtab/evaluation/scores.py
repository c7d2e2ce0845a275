"""Preference scores of a model, an entry an item."""

from __future__ import annotations

from contextlib import nullcontext

from torch import nn

from trimtab.batching import Encoded
from trimtab.dials import Dial, RewardDial
from trimtab.evaluation.items import ItemScores, item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.progress import Update
from trimtab.readings import Progress, collect, reference
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
    if dial is None or alpha == 0:
        found = reference(model, encoded, logps=True, store=store, budget=budget, progress=progress)
    elif isinstance(dial, RewardDial):
        rewards, _ = rewards_of(model, dial, encoded, budget=budget, force=force, progress=progress)
        return _told(reward_scores(encoded, alpha * rewards), progress)
    else:
        with dial(model, alpha, force=force) if dial else nullcontext():
            found = collect(model, encoded, logps=True, budget=budget, progress=progress)
    return _told(item_scores(encoded, found), progress)


def _told(found: ItemScores, progress: Progress | None) -> ItemScores:
    """Scores whose accuracy, the mean over items, stands at the end of a bar."""
    if isinstance(progress, Update):
        progress.said = f"accuracy {found.accuracy.mean():.3f}"
    return found
