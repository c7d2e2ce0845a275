"""The reward dial: a scalar read off the hidden states, by which answers are ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Over, Spans, Where
from trimtab.dials.adapter import AdapterDial
from trimtab.dials.attach import Edit
from trimtab.dials.dial import Dial
from trimtab.dials.experts import Swap
from trimtab.errors import ConfigError, DialError
from trimtab.sites import Site, parse_sites

Aggregate = Literal["marker", "last", "mean", "max", "weighted", "attention"]
Mix = Literal["mean", "softmax"]
Pooling = Literal["identity", "bert", "t5", "swiglu"]


class RewardDial(Dial):
    """r = w . pool(aggregate(states)) (direct preference heads; Hadji-Kyriacou and Arandjelovic
    2024). It reads and edits nothing, so that logits stay as they are, unless it brings an adapter.

    States of several sites are averaged, or summed with softmax weights that are learned (at first
    alike). Then one vector a sequence: `marker` the state of the EOS that ends it, `last` that of the
    last token before, `mean`, `max`, `weighted` the mean with weights 1, 2, …, n over the n tokens,
    `attention` a softmax over tokens with learned queries, one a head (at first the mean). All but
    `marker` are causal: they give a reward at every token, of the text up to it. Then the pooling:
    nothing, Linear and tanh (`bert`; `t5` drops out before), or SwiGLU, Linear and tanh. Then w, one
    a named head.
    """

    kind = "reward"

    def __init__(
        self,
        width: int,
        *,
        sites: tuple[Site, ...] = ("final",),
        mix: Mix = "mean",
        aggregate: Aggregate = "marker",
        over: Over = "answer",
        pooling: Pooling = "identity",
        norm: bool = False,
        inner: int | None = None,
        attention_heads: int = 4,
        dropout: float = 0.0,
        heads: Sequence[str] = ("preference",),
        adapter: AdapterDial | None = None,
        generator: torch.Generator | None = None,
    ):
        """
        Args:
            width: d.
            sites: where states are read.
            mix: how those of several sites become one.
            over: which tokens: the answer's, those of its last turn, or the prompt's too.
            norm: RMSNorm before a `swiglu` pooling.
            inner: its inner width (8 d / 3).
            heads: names of the rewards.
            adapter: edits the model along, where both were trained together.
            generator: draws the poolings' weights, from N(0, 0.02).
        """
        super().__init__()
        for name, value, kind in (
            ("mix", mix, Mix),
            ("aggregate", aggregate, Aggregate),
            ("over", over, Over),
            ("pooling", pooling, Pooling),
        ):
            if value not in get_args(kind):
                raise ConfigError(f"{name} {value!r}: expected one of {', '.join(get_args(kind))}")
        if not sites or not heads or len(set(heads)) != len(heads):
            raise ConfigError("a reward dial needs a site, and heads of different names")
        if attention_heads < 1 or width % attention_heads:
            raise ConfigError(f"attention_heads {attention_heads}: expected a divisor of {width}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout {dropout}: expected 0 or more, below 1")
        self.width, self.sites, self.norm = width, tuple(sites), norm
        self.mix: Mix = mix
        self.aggregate: Aggregate = aggregate
        self.over: Over = over
        self.pooling: Pooling = pooling
        self.inner = inner or round(8 * width / 3)
        self.attention_heads, self.dropout = attention_heads, dropout
        self.heads, self.adapter = tuple(heads), adapter

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(*shape, generator=generator))

        self.weights = nn.ParameterDict()
        if mix == "softmax":
            self.weights["mix"] = nn.Parameter(torch.zeros(len(self.sites)))
        if aggregate == "attention":
            self.weights["query"] = nn.Parameter(torch.zeros(width))
            self.weights["key"] = drawn(width, width)
        if pooling in ("bert", "t5"):
            self.weights["pool"] = drawn(width, width)
            self.weights["pool_bias"] = nn.Parameter(torch.zeros(width))
        if pooling == "swiglu":
            if norm:
                self.weights["norm"] = nn.Parameter(torch.ones(width))
            self.weights["up"] = drawn(2 * self.inner, width)
            self.weights["up_bias"] = nn.Parameter(torch.zeros(2 * self.inner))
            self.weights["pool"] = drawn(width, self.inner)
            self.weights["pool_bias"] = nn.Parameter(torch.zeros(width))
        self.weights["reward"] = nn.Parameter(torch.zeros(len(self.heads), width))
        # Each entry of a state less its mean over training tokens, by its deviation: states have
        # entries a hundred times larger than others, which gradient descent does not get past.
        self.register_buffer("centre", torch.zeros(len(self.sites), width))
        self.register_buffer("spread", torch.ones(len(self.sites), width))

    @classmethod
    def for_model(cls, model: nn.Module, *, sites: str = "final", **options: Any) -> Self:
        """A dial that fits a model; `sites` in the notation of `parse_sites`."""
        width = models.text_config(model).hidden_size
        return cls(width, sites=parse_sites(sites, models.n_layers(model)), **options)

    def places(self) -> list[Site]:
        """Those of the adapter; without one it edits nothing, which is as if at the end."""
        return ["final"] if self.adapter is None else self.adapter.places()

    def edits(self, model: nn.Module) -> Sequence[Edit | Swap]:
        """Those of the adapter; none without."""
        if models.text_config(model).hidden_size != self.width:
            raise DialError(
                f"the dial reads states of width {self.width}, the model's have "
                f"{models.text_config(model).hidden_size}"
            )
        return [] if self.adapter is None else self.adapter.edits(model)

    # ---- states to rewards ----

    @property
    def causal(self) -> bool:
        """Whether there is a reward at every token."""
        return self.aggregate != "marker"

    @property
    def where(self) -> Where:
        """The tokens whose states are read."""
        return "all" if self.over == "all" else "answer"

    @property
    def learns_to_aggregate(self) -> bool:
        """Whether anything before the pooling is trained; if not, a vector a sequence suffices."""
        return self.aggregate == "attention" or self.mix == "softmax"

    def standardise(
        self, mean: Float[Tensor, "site d"], deviation: Float[Tensor, "site d"]
    ) -> None:
        """Set what states are centred and divided by."""
        self.get_buffer("centre").copy_(mean)
        self.get_buffer("spread").copy_(
            deviation.clamp(min=1e-3 * deviation.mean()).clamp(min=1e-6)
        )

    def mixed(self, states: Float[Tensor, "... site d"]) -> Float[Tensor, "... d"]:
        """States of the sites, standardised, as one."""
        states = (states - self.get_buffer("centre")) / self.get_buffer("spread")
        if self.mix == "mean":
            return states.mean(-2)
        return (self.weights["mix"].softmax(0)[:, None] * states).sum(-2)

    def aggregated(
        self,
        states: Float[Tensor, "sequence token site d"],
        mask: Bool[Tensor, "sequence token"],
        marker: Bool[Tensor, "sequence token"],
        *,
        every: bool = False,
    ) -> Float[Tensor, "sequence d"]:
        """One vector a sequence; with `every` one a token, of the text up to it (`[n, T, d]`).

        Args:
            mask: the tokens that count.
            marker: the EOS that ends each sequence, if it has one.

        Raises:
            DialError: `every` of an aggregation that is not causal.
        """
        if every and not self.causal:
            raise DialError("aggregate=marker reads the end alone: there is no reward a token")
        body = mask & ~marker
        if self.aggregate == "marker":  # where there is no marker, the last token
            keep = torch.where((mask & marker).any(1, keepdim=True), mask & marker, mask)
        else:  # a sequence of nothing but its marker has that
            keep = torch.where(body.any(1, keepdim=True), body, mask)
        h = self.mixed(states) * keep[..., None]
        if self.aggregate in ("marker", "last"):
            if every:
                return h
            last = (keep * torch.arange(1, keep.shape[1] + 1, device=keep.device)).argmax(1)
            return h[torch.arange(len(h), device=h.device), last]
        found = self._up_to(h, keep)
        return found if every else found[:, -1]

    def _up_to(self, h: Tensor, keep: Tensor) -> Tensor:
        """The aggregate of each prefix."""
        n, T, _ = h.shape
        if self.aggregate == "max":
            return h.masked_fill(~keep[..., None], -torch.inf).cummax(1).values
        if self.aggregate == "attention":
            parts = F.linear(h, self.weights["key"]).view(n, T, self.attention_heads, -1)
            scores = (parts * self.weights["query"].view(self.attention_heads, -1)).sum(-1)
            scores = scores / parts.shape[-1] ** 0.5
            weight = (scores - scores.detach().amax(1, keepdim=True)).exp() * keep[..., None]
            values = h.view(n, T, self.attention_heads, -1)
            total = (weight[..., None] * values).cumsum(1)
            return (total / weight.cumsum(1).clamp(min=1e-30)[..., None]).flatten(2)
        weight = keep.to(h)
        if self.aggregate == "weighted":
            weight = weight.cumsum(1) * weight
        weight = weight[..., None]
        return (weight * h).cumsum(1) / weight.cumsum(1).clamp(min=1)

    def pooled(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The pooling."""
        w = self.weights
        if self.pooling in ("identity", "t5"):
            h = F.dropout(h, self.dropout, self.training)
        if self.pooling == "swiglu":
            if self.norm:
                h = F.rms_norm(h, (self.width,), w["norm"], 1e-6)
            up, gate = F.linear(h, w["up"], w["up_bias"]).chunk(2, -1)
            h = up * F.silu(gate)
        if self.pooling != "identity":
            h = torch.tanh(F.linear(h, w["pool"], w["pool_bias"]))
        return (
            F.dropout(h, self.dropout, self.training) if self.pooling in ("bert", "swiglu") else h
        )

    def rewards(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "... head"]:
        """Rewards of aggregated states, one a named head."""
        return F.linear(self.pooled(h), self.weights["reward"])

    def head(self, name: str | None) -> int:
        """The index of a named head; the first without a name. Raises ConfigError."""
        if name is None:
            return 0
        if name not in self.heads:
            raise ConfigError(f"head {name!r}: the dial has {', '.join(self.heads)}")
        return self.heads.index(name)

    def from_tokens(
        self,
        states: Float[Tensor, "token site d"],
        counts: Int[Tensor, "answer"],
        spans: Spans,
        answers: Int[Tensor, "answer"],
        *,
        every: bool = False,
    ) -> Float[Tensor, "answer d"]:
        """`aggregated` of answers whose states stand one after the other.

        Args:
            counts: states of each answer.
            spans: which of them are read, of a whole encoded set.
            answers: the answers' places in that set.
        """
        width = int(counts.max())
        place = torch.arange(width, device=states.device)
        grid = states.new_zeros(len(counts), width, *states.shape[1:])
        grid[place < counts[:, None]] = states
        start, end, marker = (
            t[answers.cpu()].to(states.device)[:, None]
            for t in (spans.start, spans.end, spans.marker)
        )
        return self.aggregated(grid, (place >= start) & (place < end), place == marker, every=every)

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """What `__init__` takes."""
        return {
            **{k: getattr(self, k) for k in ("width", "mix", "aggregate", "over", "pooling")},
            **{k: getattr(self, k) for k in ("norm", "inner", "attention_heads", "dropout")},
            "sites": list(self.sites),
            "heads": list(self.heads),
            "adapter": None if self.adapter is None else self.adapter.settings(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, what states are standardised by, and the adapter's, under `adapter.`."""
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("adapter.")}
        theirs = {} if self.adapter is None else self.adapter.tensors()
        return own | {f"adapter.{k}": v for k, v in theirs.items()}

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """From saved settings and tensors."""
        values = {**settings, "sites": tuple(settings["sites"]), "heads": tuple(settings["heads"])}
        inner = {
            k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")
        }
        if values["adapter"] is not None:
            values["adapter"] = AdapterDial.build(values["adapter"], inner)
        dial = cls(**values)
        own = {k: v for k, v in tensors.items() if not k.startswith("adapter.")}
        missing = dial.load_state_dict(own, strict=False)
        if left := [*(k for k in missing.missing_keys if not k.startswith("adapter."))]:
            raise DialError(f"the reward dial's weights lack {left[0]}")
        if missing.unexpected_keys:
            raise DialError(f"the reward dial's weights hold {missing.unexpected_keys[0]}")
        return dial
