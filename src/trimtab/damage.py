"""What a dial costs: how far the model moves on text that has nothing to do with the preference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, Row, Trunk
from trimtab.batching.spans import first_edited
from trimtab.dials import Dial, VectorDial
from trimtab.errors import TrainingError
from trimtab.pairs.neutral import NEUTRAL
from trimtab.progress import SILENT, Progress
from trimtab.trunk import trunk_of

KEEP_BYTES = 1 << 30
"""The bare model's log-probs are kept up to this size, and computed again beyond it."""


@dataclass(frozen=True)
class Damage:
    """Damage on N passages of neutral text, each a mean over its tokens, in nats a token.

    Attributes:
        kl: KL(base || dialled) of the next-token distributions.
        nll_rise: negative log-likelihood of the text, dialled minus base.
    """

    kl: np.ndarray
    nll_rise: np.ndarray


class NeutralText:
    """Passages on which damage is measured, with what the bare model says of them."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        passages: Sequence[str],
        lead: Sequence[int] = (),
        *,
        trunk: bool = True,
    ):
        """
        Args:
            lead: ids that stand before every passage and are not measured, such as the prompt that
                it answers. The passage is then tokenised without special tokens.
            trunk: what the passages are below a dial is computed once for all its alphas.
        """
        self.model = model
        self.lead = len(lead)
        device = next(model.parameters()).device
        special = {"add_special_tokens": False} if lead else {}
        self.ids = [
            torch.tensor([[*lead, *tokenizer(text, **special)["input_ids"]]], device=device)
            for text in passages
        ]
        self.kept: dict[int, Tensor] = {}
        self._readings = ""
        rows = (Row("", (), (tuple(ids[0].tolist()),), (), ()) for ids in self.ids)
        self._rows = Encoded(tuple(rows), 0, None, "neutral text")
        self.trunk = trunk
        self._trunks: dict[int, list[Trunk | None]] = {}  # an entry each time, by where they end

    @torch.no_grad()
    def log_probs(self, index: int, trunk: Trunk | None = None) -> Tensor:
        """Log-probs of every token of the passage that has one before it: [T, V]."""
        places = torch.arange(*self._rows.places[index : index + 2], device=self.ids[index].device)
        below = trunk.below(self.model, places[None]) if trunk else nullcontext()
        with models.reading(self.model), below:
            logits = self.model(input_ids=self.ids[index], use_cache=False).logits
        return torch.log_softmax(logits[0, self._first : -1].float(), -1)

    @property
    def _first(self) -> int:
        """The position from which the first measured token is predicted."""
        return max(self.lead - 1, 0)

    def _base(self, index: int) -> Tensor:
        if index not in self.kept:
            logps = self.log_probs(index)
            held = sum(t.numel() * t.element_size() for t in self.kept.values())
            if held + logps.numel() * logps.element_size() > KEEP_BYTES:
                return logps
            self.kept[index] = logps
        return self.kept[index]

    def damage(self, dial: Dial, alpha: float, *, force: bool = False) -> Damage:
        """Damage of a dial at one alpha."""
        trunk: Trunk | None = None

        def dialled(index: int) -> Tensor:
            nonlocal trunk
            with dial(self.model, alpha, force=force):
                trunk = trunk if index else self._trunk()
                return self.log_probs(index, trunk)

        return self._against(dialled)

    def _trunk(self) -> Trunk | None:
        """The passages below what is attached, in memory; for one alpha alone it would not pay."""
        block = first_edited(self.model)
        if block is None or not self.trunk:
            return None
        known = self._trunks.setdefault(block, [])
        if len(known) == 1:
            known.append(trunk_of(self.model, self._rows, None, layout="alone"))
        elif not known:
            known.append(None)
        return known[-1]

    def damage_of_lead(self, other: NeutralText) -> Damage:
        """Damage that another lead does to the same passages: the dial of a prompt."""
        return self._against(other.log_probs)

    def _against(self, logps: Callable[[int], Tensor]) -> Damage:
        source = models.source_of(self.model)
        if source.in_memory != self._readings or not source.lasting:
            self._readings, self.kept = source.in_memory, {}  # the model was changed since
            self._trunks = {}
        kl, rise = [], []
        for index, ids in enumerate(self.ids):
            base = self._base(index)  # before a dial is attached
            new = logps(index)
            targets = ids[0, self._first + 1 :, None]
            kl.append(divergence(base, new))
            rise.append((base.gather(-1, targets) - new.gather(-1, targets)).mean().item())
        return Damage(np.array(kl), np.array(rise))


FIRST = 12
"""Passages on which a new dial is measured: those with which `calibrate` begins."""
DEAR, MILD, UNIT = 0.3, 0.1, 0.05
"""KL at alpha = 1, in nats a token: above the first the alpha of the second is told; the third is that of
a vector in the unit `kl`."""


def neutral(model: nn.Module, tokenizer: Any) -> NeutralText:
    """The text on which a new dial is measured."""
    return NeutralText(model, tokenizer, NEUTRAL[len(NEUTRAL) // 2 :][:FIRST])


def in_kl(dial: VectorDial, text: NeutralText) -> VectorDial:
    """The vector dial at whose alpha = 1 the mean KL on a text is `UNIT`.

    Raises:
        TrainingError: it is met nowhere, from a hundredth of the strength to a hundred times it.
    """
    found = alpha_at_kl(text, dial, UNIT, {}, largest=100.0, attempts=12)
    if found is None or found[0] < 0.01:
        raise TrainingError(f"unit kl: no alpha up to 100 has a KL of {UNIT}; use --dial.unit norm")
    return dial.times(found[0])


def first_range(dial: Dial, text: NeutralText, progress: Progress = SILENT) -> None:
    """Measure a new dial on neutral text at alpha = -1 and 1, keep it as its range, and say it."""
    with progress.bar("measuring on neutral text", 2 * len(text.ids), "passages") as update:
        kl = {}
        for done, alpha in enumerate((-1.0, 1.0), 1):
            kl[alpha] = float(np.mean(text.damage(dial, alpha, force=True).kl))
            update(done * len(text.ids), 2 * len(text.ids))
    dial.info.measured = {
        **dial.info.measured,
        "alphas": sorted({*kl, *dial.info.measured.get("alphas", ())}),
        "kl_nats_per_token": {f"{alpha:g}": float(f"{v:.4g}") for alpha, v in kl.items()},
    }
    said = f"neutral text: KL {kl[1.0]:.3g} nats a token at alpha 1, {kl[-1.0]:.3g} at -1"
    if not kl[1.0] <= DEAR:
        mild = alpha_at_kl(text, dial, MILD, {1.0: kl[1.0]})
        said += f": dear; alpha {mild[0]:.2g} costs {MILD:g}" if mild else ": dear"
    progress.say(said)


def divergence(base: Tensor, new: Tensor) -> float:
    """Mean KL(base || new) over tokens of log-probs `[T, V]`, in nats."""
    return token_kl(base, new).mean().item()


def token_kl(base: Float[Tensor, "T V"], new: Float[Tensor, "T V"]) -> Float[Tensor, "T"]:
    """KL(base || new) at every token of log-probs, in nats."""
    return (base.exp() * (base - new)).sum(-1)


def alpha_at_kl(
    text: NeutralText,
    dial: Dial,
    target: float,
    known: dict[float, float],
    *,
    largest: float = 8.0,
    tolerance: float = 0.02,
    attempts: int = 6,
) -> tuple[float, float] | None:
    """The alpha > 0 at which the dial's mean KL is `target`, and the KL measured there.

    KL grows about as alpha squared, so that its root is interpolated, between measured points where
    there are some on both sides. A KL that is not finite counts as beyond the target.

    Args:
        target: in nats a token, above 0.
        known: mean KL at alphas already measured.
        largest: alphas beyond this are not tried.
        tolerance: relative distance from the target at which to stop.

    Returns:
        None where the target is not reached within `largest`, or not met within five tolerances.
    """
    points = {a: _finite(k) for a, k in known.items() if a > 0}
    for _ in range(attempts):
        if points and abs(_nearest(points, target)[1] - target) <= tolerance * target:
            break
        alpha = _guess(points, target)
        if alpha > largest:
            if max(points, default=0.0) >= largest:
                return None
            alpha = largest
        points[alpha] = _finite(float(np.mean(text.damage(dial, alpha).kl)))
    best = _nearest(points, target)
    return best if abs(best[1] - target) <= 5 * tolerance * target else None


def _finite(kl: float) -> float:
    return kl if math.isfinite(kl) else math.inf


def _nearest(points: dict[float, float], target: float) -> tuple[float, float]:
    """The measured point whose KL is nearest to the target."""
    return min(points.items(), key=lambda point: (abs(point[1] - target), point[0]))


def _guess(points: dict[float, float], target: float) -> float:
    """Where the root of KL, piecewise linear through 0 and points, reaches the target's root."""
    root = math.sqrt(target)
    at, below = 0.0, 0.0
    for alpha, kl in sorted(points.items()):
        if kl == math.inf:  # nothing to interpolate with
            return (at + alpha) / 2
        here = math.sqrt(max(kl, 0.0))
        if here >= root:
            return at + (root - below) / (here - below) * (alpha - at)
        at, below = alpha, here
    return at * root / below if below > 0 else max(1.0, 2 * at)
