"""Methods that make a vector without training: estimators on states, and on gradients of a loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.batching import Contrast, Encoded, PromptStyle, encode, encode_contrast, is_contrast
from trimtab.batching.poles import Stops, Thinking
from trimtab.bounds import Bounded, NonNegative
from trimtab.directions.gradient import Fisher, Poles
from trimtab.errors import ConfigError
from trimtab.objectives import DPO, NLL, Objective, ReprPOMargin, SimPO
from trimtab.pairs import PairSet
from trimtab.readout import Pool
from trimtab.rendering import USUAL, Rendering
from trimtab.training.settings import LATER


@dataclass(frozen=True)
class UnitSettings(Bounded, group="dial"):
    """What alpha = 1 of a vector in closed form is."""

    unit: Literal["norm", "kl"] = "norm"
    """norm: a tenth of the states' mean length; kl: as much as costs 0.05 nats a token on neutral text
    (mean KL from the bare model)."""


@dataclass(frozen=True)
class DirectionRecipe(Bounded):
    """A vector in closed form: one pass over the pairs, no training."""

    estimator: Literal["mean", "pca", "pca_center", "logistic", "umap", "random"] = "mean"
    """Mean of the differences; their first principal component; the same under repeng's name; a
    logistic regression; a UMAP embedding (an extra to install); a random direction: the control."""
    sites: str = "0.5"
    """Where the vector is read and added: one block in the middle, or several (see sites); auto: the block
    whose direction tells held-out halves of these pairs best apart."""
    pool: Pool = "completion"
    """Which answer positions are averaged. Pairs without a prompt are read at one token."""
    centred: bool = False
    """For pca: remove the mean difference first (repeng's `pca_diff`)."""
    truncations: bool = True
    """Pairs without a prompt: read the suffix after each of its tokens, not at its end alone."""
    thinking: Thinking = "template"
    """Pairs without a prompt, reasoning models: where the suffix stands in the answer."""
    variant: Literal["sound", "published"] = "sound"
    """For logistic: `published` leaves the penalty to the scale of each layer (steering-vectors)."""
    dial: UnitSettings = field(default=UnitSettings(), metadata=LATER)
    """What alpha = 1 is."""

    @property
    def stops(self) -> Stops:
        """Where a whole sequence is read."""
        return "every" if self.truncations else "last"


@dataclass(frozen=True)
class GradientRecipe(Bounded):
    """A vector from gradients of a loss with respect to hidden states: one backward pass a pair."""

    estimator: Literal["gradient_mean", "gradient_svd", "fisher"] = "fisher"
    """Mean of the gradients; their first singular vector; the mean times the inverse Fisher matrix."""
    sites: str = "0.5"
    """Where gradients are taken and the vector is added (see sites; auto: by the pairs' states)."""
    loss: Literal["reprpo_nll_margin", "dpo", "simpo", "nll"] = "reprpo_nll_margin"
    """The loss: states apart within a margin of likelihood, or one on log-probs alone."""
    fisher: Fisher = "covariance"
    """The Fisher matrix: covariance of the gradients, second moment, or that of scaled gradients."""
    damping: NonNegative | None = 0.1
    """What is added to the Fisher matrix's diagonal; None is the published 1 % of its mean eigenvalue."""
    relative: bool = True
    """Damping in units of the mean eigenvalue, tr F / d, instead of absolute."""
    poles: Poles = "both"
    """Gradients of both poles together, or each pole with a Fisher matrix of its own."""
    truncations: bool = False
    """Pairs without a prompt: take a gradient after each token of the suffix, not near its end alone."""
    thinking: Thinking = "template"
    """Pairs without a prompt, reasoning models: where the suffix stands in the answer."""
    variant: Literal["sound", "published"] = "sound"
    """Our formulas, or the published ones (loss, its scale, numerator, sign)."""
    dial: UnitSettings = field(default=UnitSettings(), metadata=LATER)
    """What alpha = 1 is."""

    @property
    def objective(self) -> Objective:
        """The loss, with its published settings where those are asked for."""
        if self.loss == "reprpo_nll_margin":
            return ReprPOMargin(variant=self.variant)
        return {"dpo": DPO(), "simpo": SimPO(), "nll": NLL()}[self.loss]

    @property
    def separating(self) -> bool:
        """Whether the loss moves the poles apart (else it moves both downhill)."""
        return self.loss == "reprpo_nll_margin"

    @property
    def stops(self) -> Stops:
        """Where a whole sequence is read: a token before its end, whose log-prob the loss takes."""
        return "every" if self.truncations else "known"


SteeringRecipe = DirectionRecipe | GradientRecipe

REGULARISATION = (0.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""What `_reg0` to `_reg5` add to the Fisher matrix's diagonal."""


def _published() -> dict[str, GradientRecipe]:
    """The grid of wassname/repeng's research branch, every name in it."""
    grid: dict[str, GradientRecipe] = {"svd_gradient": _recipe("gradient_svd")}
    kinds: dict[str, Fisher] = {"": "scaled", "_emp": "empirical", "_cov": "covariance"}
    sides: dict[str, Poles] = {
        "": "dual",
        "_pos": "positive",
        "_neg": "negative",
        "_diff": "difference",
    }
    for kind, fisher in kinds.items():
        for number, value in enumerate(REGULARISATION):
            made = _recipe("fisher", fisher=fisher, damping=value)
            grid[f"fisher_steer{kind}_reg{number}"] = made
            if number == 2:
                grid[f"fisher_steer{kind}"] = made
        for side, poles in sides.items():
            grid[f"fisher_steer{kind}_dual{side}"] = _recipe(
                "fisher", fisher=fisher, damping=None, poles=poles
            )
    return grid


def _recipe(estimator: Any, **settings: Any) -> GradientRecipe:
    return GradientRecipe(estimator, relative=False, variant="published", **settings)


PUBLISHED = _published()
"""Methods by their published names: not listed, but known."""


def encode_poles(
    recipe: SteeringRecipe,
    pairs: PairSet | Contrast,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
) -> Encoded | Contrast:
    """Pairs as a recipe reads them: whole sequences where there is no prompt.

    Raises:
        ConfigError: a contrast that was cut for another kind of recipe.
        DataError, ModelError: see `encode` and `encode_contrast`.
    """
    if isinstance(pairs, Contrast):
        if isinstance(recipe, GradientRecipe) and not pairs.known:
            raise ConfigError(
                f"{pairs.name}: {recipe.estimator} needs the token after each that is read; make the "
                "contrast with stops='known'"
            )
        return pairs
    if is_contrast(pairs):
        return encode_contrast(
            pairs,
            tokenizer,
            stops=recipe.stops,
            thinking=recipe.thinking,
            max_length=max_length,
            rendering=rendering,
        )
    return encode(
        pairs, tokenizer, max_length=max_length, prompt_style=prompt_style, rendering=rendering
    )
