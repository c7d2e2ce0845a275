"""Which dial can be trained on which objective, told before the model is loaded where that can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.errors import ConfigError
from trimtab.objectives import ORPO, SimPO
from trimtab.objectives.heads import ARM, DPH, IAV
from trimtab.sites import Site, parse_sites
from trimtab.training.recipes import PolesRecipe, ProjectionRecipe, Recipe, RotationRecipe
from trimtab.training.settings import (
    AdapterSettings,
    LogitsSettings,
    ReftSettings,
    RotationSettings,
    VectorSettings,
)


def check_fits(recipe: Any, count: int | None = None) -> None:
    """Raise ConfigError where a recipe's dial cannot be trained on its objective, with what could.

    Args:
        count: decoder layers of the model, where they are known: then also where the objective reads
            nothing of what the dial does.
    """
    if not isinstance(recipe, Recipe):
        return
    objective: Any = recipe.objective
    dial: Any = recipe.dial
    said = f"{type(objective).__name__} on a {dial.kind} dial"
    own = {IAV: "logits", DPH: "reward", ARM: "adapter"}.get(type(objective))
    if own and own != dial.kind:
        raise ConfigError(
            f"{said}: a loss of its own kind of dial; expected {own}, or the method dpo"
        )
    if isinstance(recipe, ProjectionRecipe) and not isinstance(dial, AdapterSettings):
        raise ConfigError(
            f"{said}: a projection keeps gradients to the output of a weight, and it has none; expected "
            "--dial.kind adapter, or the method dpo"
        )
    if isinstance(recipe, RotationRecipe) and not isinstance(dial, RotationSettings):
        raise ConfigError(f"rotation on a {dial.kind} dial: expected the method contrastive")
    free = isinstance(objective, SimPO | ORPO) and not objective.weight_kl
    if isinstance(dial, VectorSettings) and free and dial.largest is None:
        raise ConfigError(
            f"{said}: no reference holds the vector's length; expected --objective.weight-kl above 0, or "
            "a bound such as --dial.largest 5 (half a state's length)"
        )
    if isinstance(dial, LogitsSettings) and (
        isinstance(recipe, PolesRecipe) or getattr(objective, "wpo", False)
    ):
        raise ConfigError(
            f"{said}: a head is trained from stored states, at alpha = 1 and without confidences; "
            "expected the method dpo, wpo off"
        )
    if not hasattr(objective, "differences"):
        return
    if isinstance(dial, LogitsSettings):
        raise ConfigError(
            f"{said}: what is done to logits reaches no hidden state; expected dpo, ipo, simpo or orpo"
        )
    where = getattr(dial, "blocks", None) or getattr(dial, "sites", "0..1")
    if count is not None and where != "auto":  # which is known, and checked, once states were read
        heights = {"embed": -1.0, "final": float(count)}
        check_reach(
            recipe,
            parse_sites(where, count),
            objective.needs(count).sites,
            lambda site: site + 0.5 if isinstance(site, int) else heights.get(site),
        )


def check_reach(
    recipe: Any,
    places: Sequence[Site],
    sites: Sequence[Site],
    reach: Callable[[Site], float | None],
) -> None:
    """Raise ConfigError where an objective on states reads nothing of what the dial does.

    Args:
        places: where the dial acts.
        sites: where the objective reads.
        reach: how far a pass has come at a site; None where that is not known yet.
    """
    objective, dial = recipe.objective, recipe.dial
    found = [
        [(h, site) for site in some if (h := reach(site)) is not None] for some in (places, sites)
    ]
    if [len(places), len(sites)] != [*map(len, found)] or not sites:
        return
    lowest, highest = min(found[0], key=_height), max(found[1], key=_height)
    of_states = isinstance(dial, VectorSettings | ReftSettings)
    shift = isinstance(dial, VectorSettings) and objective.differences
    above = of_states and (shift or dial.positions in ("prompt", "last"))
    if highest[0] > lowest[0] or (highest[0] == lowest[0] and not above):
        return
    raise ConfigError(
        f"{type(objective).__name__} reads states up to site {highest[1]!r}, and the dial acts from site "
        f"{lowest[1]!r} on: the loss does not see it"
        + (" (at its own site all states are shifted alike)" if shift else "")
        + f"; expected a lower --dial.{'sites' if of_states else 'blocks'}, or a higher --objective.sites"
    )


def _height(found: tuple[float, Site]) -> float:
    return found[0]
