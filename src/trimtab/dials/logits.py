"""The logits dial: an alignment vector, a function of the last hidden state, added to the logits."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.attach import Edit, as_alpha
from trimtab.dials.contexts import check_bare
from trimtab.dials.dial import Dial
from trimtab.dials.merging import verify
from trimtab.errors import ConfigError, DialError, ModelError
from trimtab.models.heads import head_site
from trimtab.sites import Site, parse_sites
from trimtab.states import at_head

HEAD, LISTEN = 20, -10
"""Orders: the head adds to its logits after all other edits, states are listened to before any."""

Shape = Literal["low_rank", "full", "hidden", "mlp"]


class LogitsDial(Dial):
    """z + alpha a(h), h what the LM head reads (IAV; s4n9hyun/IAV).

    a(h) by shape: `low_rank` B A h, `full` W h, `hidden` W0 U A h (a change of the hidden state as the
    base head W0 reads it), `mlp` B silu(A h + b). B, W and U start at 0. With `sites`, h is followed
    by the states there, each divided by its root mean square. `base_head="trainable"` adds a matrix D
    as large as the LM head, what training has moved an untied copy of it: z + D h + alpha a(h). Then
    alpha = 0 bypasses both, and the dial is not continuous there.
    """

    kind = "logits"

    def __init__(
        self,
        width: int,
        vocabulary: int,
        *,
        shape: Shape = "low_rank",
        rank: int = 64,
        sites: tuple[Site, ...] = (),
        base_head: Literal["frozen", "trainable"] = "frozen",
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            width: d, of hidden states.
            vocabulary: V, rows of the LM head.
            rank: r of `low_rank` and `hidden`, hidden units of `mlp`.
            sites: further sites whose states the head reads.
            generator: draws A (Kaiming uniform).
        """
        super().__init__()
        if shape not in ("low_rank", "full", "hidden", "mlp"):
            raise ConfigError(f"shape {shape!r}: expected low_rank, full, hidden or mlp")
        if base_head not in ("frozen", "trainable"):
            raise ConfigError(f"base_head {base_head!r}: expected frozen or trainable")
        if rank < 1:
            raise ConfigError(f"rank {rank}: expected 1 or more")
        self.width, self.vocabulary, self.rank = width, vocabulary, rank
        self.shape: Shape = shape
        self.sites, self.base_head = tuple(sites), base_head
        n_in = width * (1 + len(self.sites))
        self.A = self.b = self.D = None
        if shape == "full":
            self.B = nn.Parameter(torch.zeros(vocabulary, n_in))
        else:
            bound = math.sqrt(1 / n_in)
            self.A = nn.Parameter((torch.rand(rank, n_in, generator=generator) * 2 - 1) * bound)
            self.B = nn.Parameter(torch.zeros(width if shape == "hidden" else vocabulary, rank))
        if shape == "mlp":
            self.b = nn.Parameter(torch.zeros(rank))
        if base_head == "trainable":
            self.D = nn.Parameter(torch.zeros(vocabulary, width))

    @classmethod
    def for_model(cls, model: nn.Module, *, sites: str = "", **options: Any) -> Self:
        """A dial that fits a model; `sites` in the notation of `parse_sites`."""
        vocabulary, width = head_shape(model)
        more = parse_sites(sites, models.n_layers(model)) if sites else ()
        if more and models.text_config(model).hidden_size != width:
            raise DialError("the LM head reads states of another width than the blocks': no sites")
        return cls(width, vocabulary, sites=more, **options)

    # ---- what it computes ----

    def hidden(self, states: Float[Tensor, "token site d"]) -> Float[Tensor, "token n"]:
        """h from states: what the LM head reads first, then those of `sites`."""
        first, others = states[..., 0, :], states[..., 1:, :]
        others = others * others.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        return torch.cat([first, others.flatten(-2)], -1) if self.sites else first

    def vector(self, h: Tensor, base: Tensor) -> Float[Tensor, "... vocab"]:
        """a(h). `base` is W0, the weight of the LM head."""
        if self.A is None:
            return F.linear(h, self.B.to(h))
        low = F.linear(h, self.A.to(h))
        if self.b is not None:
            low = F.silu(low + self.b.to(h))
        out = F.linear(low, self.B.to(h))
        return F.linear(out, base.to(h)) if self.shape == "hidden" else out

    def moved(self, h: Tensor) -> Float[Tensor, "... vocab"] | None:
        """D h, of a trained base head; None where it is frozen."""
        return None if self.D is None else F.linear(h[..., : self.width], self.D.to(h))

    def places(self) -> list[Site]:
        """The sites it listens at, and where it adds."""
        return [*self.sites, "final"]

    def edits(self, model: nn.Module) -> list[Edit]:
        """The addition at the LM head, and listeners at `sites`."""
        shape = head_shape(model)
        if shape != (self.vocabulary, self.width):
            raise DialError(
                f"the dial's head maps {self.width} to {self.vocabulary} values, "
                f"the model's LM head {shape[1]} to {shape[0]}"
            )
        heard = threading.local()  # states of the pass that a thread is in
        add = partial(self._add, model, models.head_weight(model), heard)
        listeners = [Edit(site, LISTEN, partial(_listen, heard, site)) for site in self.sites]
        return [*listeners, Edit(head_site(model).removesuffix(":in") + ":out", HEAD, add)]

    def _add(
        self,
        model: nn.Module,
        base: Tensor,
        heard: threading.local,
        x: Tensor,
        y: Tensor,
        alpha: float | Tensor,
    ) -> Tensor:
        h = x
        if self.sites:
            h = self.hidden(
                torch.stack([x, *(at_head(model, vars(heard)[str(s)], x) for s in self.sites)], -2)
            )
        if isinstance(alpha, float | int) and self.shape == "low_rank" and self.D is None:
            assert self.A is not None
            low = F.linear(h, self.A.to(h)).flatten(0, -2)  # one fused product and sum
            return torch.addmm(y.flatten(0, -2), low, self.B.to(h).T, alpha=alpha).view_as(y)
        a = self.vector(h, base)
        moved = self.moved(h)
        y = y if moved is None else y + moved.to(y.dtype)
        return y + (alpha * a).to(y.dtype)

    def matrix(self, base: Tensor) -> Float[Tensor, "vocab d"]:
        """W with a(h) = W h, in float32.

        Raises:
            DialError: the head is not linear, or reads other sites.
        """
        if self.shape == "mlp" or self.sites:
            what = "an mlp" if self.shape == "mlp" else "a head over several sites"
            raise DialError(f"{what} cannot be written into the LM head's weights")
        if self.A is None:
            return self.B.detach().float()
        W = self.B.detach().float() @ self.A.detach().float()
        return base.detach().float() @ W.to(base.device) if self.shape == "hidden" else W

    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """The dial at `alpha` as W0 + B A: A `[r, d]` and B `[V, r]`, by the LM head's path.

        Raises:
            DialError: it has no low rank, or brings a trained base head.
        """
        self.edits(model)  # refuses a model that it does not fit
        base = models.head_weight(model)
        if self.D is not None or self.A is None:
            what = "a trained base head" if self.D is not None else "a full head"
            raise DialError(f"{what} has no low rank: merge it into a checkpoint instead")
        self.matrix(base)  # refuses what is not linear
        B = self.B.detach().float()
        B = base.detach().float() @ B.to(base.device) if self.shape == "hidden" else B
        return {head_site(model).removesuffix(":in"): (self.A.detach().float(), alpha * B)}

    def merged(self, model: nn.Module, alpha: float = 1.0, *, force: bool = False) -> nn.Module:
        """A copy of the model whose LM head is W0 + D + alpha W, untied from the embedding."""
        model = models.unwrapped(model)
        if not force:
            self.check_base(model)
        check_bare(model, "merging")
        self.edits(model)  # refuses a model that it does not fit
        strength = as_alpha(alpha)
        if not isinstance(strength, float):
            raise ConfigError("a model is merged at one alpha: expected a number")
        result = models.plain_copy(model)
        base = models.head_weight(result).detach()
        weight = base.float()
        if strength != 0:
            weight = weight + strength * self.matrix(base).to(base.device)
            weight = weight if self.D is None else weight + self.D.detach().to(weight)
        untie(result, weight.to(base.dtype))
        verify(model, self(model, strength, force=True), result, "the head")
        return result

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """What `__init__` takes."""
        return {
            "width": self.width,
            "vocabulary": self.vocabulary,
            "shape": self.shape,
            "rank": self.rank,
            "sites": list(self.sites),
            "base_head": self.base_head,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(self.named_parameters())

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and parameters."""
        dial = cls(**{**settings, "sites": tuple(settings["sites"])})
        dial.load_state_dict(tensors)
        return dial


def head_shape(model: nn.Module) -> tuple[int, int]:
    """(vocabulary, width) of the LM head. Raises DialError where it is no linear layer."""
    try:
        return models.head_shape(model)
    except ModelError as error:
        raise DialError(str(error)) from error


def untie(model: Any, weight: Tensor) -> None:
    """Give the LM head a weight of its own; the embedding stays as it is, saved and loaded too."""
    models.head(model).weight = nn.Parameter(weight.clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, models.text_config(model))}.values():
        config.tie_word_embeddings = False


def _listen(heard: threading.local, site: Site, _: Tensor, y: Tensor, __: Any) -> Tensor:
    vars(heard)[str(site)] = y
    return y
