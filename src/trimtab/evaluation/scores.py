"""Preference scores of a model, an entry an item."""

from __future__ import annotations

from typing import Any

from torch import nn

from trimtab.batching import Encoded
from trimtab.dials import Dial, RewardDial
from trimtab.evaluation.items import ItemScores, item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.models.places import before
from trimtab.progress import Update
from trimtab.readings import Progress, collect, reference
from trimtab.states import Readings
from trimtab.store import Store
from trimtab.trunk import trunk_of


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
    how: Any = {"budget": budget, "force": force, "progress": progress}
    if isinstance(dial, RewardDial) and alpha != 0:
        found = reward_scores(encoded, alpha * rewards_of(model, dial, encoded, **how)[0])
    else:
        found = item_scores(encoded, read_at(model, encoded, dial, alpha, store=store, **how))
    if isinstance(progress, Update):  # the mean over items stands at the end of a bar
        progress.said = f"accuracy {found.accuracy.mean():.3f}"
    return found


def read_at(
    model: nn.Module,
    encoded: Encoded,
    dial: Dial | None,
    alpha: float,
    *,
    force: bool = False,
    store: Store | None = None,
    budget: int = 2048,
    progress: Progress | None = None,
) -> Readings:
    """Log-probs of all answers with a dial at `alpha`. What the model is below the dial is computed
    once for all its alphas, and the bare model's log-probs once for all dials (see `Store`).

    Raises:
        DialError: the dial was made for another base model (`force` goes on).
    """
    how: Any = {"logps": True, "budget": budget, "progress": progress}
    store = store or Store()
    if dial is None or alpha == 0:
        block = before(model, dial.places()) if dial else -1
        return reference(model, encoded, store=store, block=block, **how)
    with dial(model, alpha, force=force):
        trunk = trunk_of(model, encoded, store, budget=budget)
        return collect(model, encoded, trunk=trunk, **how)
