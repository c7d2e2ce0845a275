"""Token by token: a model with its cache in our hands, and decoders that compare at equal terms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab import models
from trimtab.batching.spans import prompts
from trimtab.dials import Dial, RewardDial
from trimtab.errors import ConfigError
from trimtab.evaluation.cache_proof import plain_logits, way_of
from trimtab.evaluation.formats import Style, format_for
from trimtab.evaluation.generation import (
    LIKELIEST,
    Generation,
    Sampling,
    checked_logits,
    ends_of,
    next_ids,
    prompts_of,
    said,
    seeded,
)
from trimtab.evaluation.items import numbers
from trimtab.pairs.pair import Text
from trimtab.pairs.prompts import Prompt
from trimtab.rendering import Rendering
from trimtab.sites import Site
from trimtab.states import seeing


class Decoder:
    """n rows that continue one prompt: keys and values cached, states at `sites` kept.

    `feed` takes a token a row and gives the logits of the next. The prompt is computed once. Where a
    model's cache is not right (`cache_proof`), each row is run whole at every token. Logits that are
    no numbers are a ModelError.
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        n: int = 1,
        sites: Sequence[Site] = (),
        *,
        way: Literal["batch", "plain"] | None = None,
        room: int = 64,
    ):
        """
        Args:
            way: with the cache, or without; by default what holds on the model.
            room: about how many tokens will be fed.
        """
        from transformers import DynamicCache

        self.model, self.prompt, self.sites = model, tuple(prompt), tuple(sites)
        self.device = next(model.parameters()).device
        self.way = way or way_to_decode(model, len(self.prompt) + room)
        self.cache: Any = None if self.way == "plain" else DynamicCache(config=model.config)
        self._seen: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        self.ids = torch.tensor([list(prompt)])
        first = self._run(self.ids)
        if n > 1:
            if self.cache is not None:
                self.cache.batch_repeat_interleave(n)
            self.ids = self.ids.repeat(n, 1)
        self.logits: Float[Tensor, "row vocab"] = first.expand(n, -1)

    def feed(self, ids: Tensor) -> Float[Tensor, "row vocab"]:
        """A token a row; the logits that follow it."""
        self.ids = torch.cat([self.ids, ids.cpu()[:, None]], 1)
        self.logits = self._run(ids.cpu()[:, None])
        return self.logits

    def expand(self, k: int) -> None:
        """Each row k times."""
        if self.cache is not None:
            self.cache.batch_repeat_interleave(k)
        self.ids = self.ids.repeat_interleave(k, 0)
        self._each(partial(torch.repeat_interleave, repeats=k, dim=0))

    def select(self, rows: Tensor) -> None:
        """Some of the rows."""
        if self.cache is not None:
            self.cache.batch_select_indices(rows.to(self.device))
        self.ids = self.ids[rows]
        self._each(lambda h: h[rows.to(h.device)])

    def states(self, *, prompt: bool = False) -> Float[Tensor, "row token site d"]:
        """States of the tokens that were fed, after the prompt's where it is wanted."""
        found = []
        for site in self.sites:
            first, *rest = self._seen[site]
            fed = torch.cat(rest, 1)
            found.append(torch.cat([first.expand(len(fed), -1, -1), fed], 1) if prompt else fed)
        return torch.stack(found, 2)

    def _each(self, change: Any) -> None:
        for site, (first, *rest) in self._seen.items():
            self._seen[site] = [first, *map(change, rest)]

    def _run(self, ids: Tensor) -> Tensor:
        """The logits after some new tokens a row, whose states are kept."""
        new: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        with ExitStack() as stack:
            stack.enter_context(models.reading(self.model))
            for site in self.sites:

                def see(h: Tensor, site: Site = site) -> None:
                    h = h[:, -ids.shape[1] :]
                    new[site].append(h if h.dtype == torch.float64 else h.float())

                stack.enter_context(seeing(self.model, site, see))
            if self.cache is None:
                with prompts([len(self.prompt)]):
                    rows = [plain_logits(self.model, row) for row in self.ids.tolist()]
                logits = torch.cat(rows)
            else:
                out = self.model(
                    input_ids=ids.to(self.device), past_key_values=self.cache, use_cache=True
                )
                self.cache, logits = out.past_key_values, out.logits[:, -1].float()
        for site, seen in new.items():
            self._seen[site].append(torch.cat(seen))
        return checked_logits(ids, logits)


def way_to_decode(model: Any, reach: int) -> Literal["batch", "plain"]:
    """How `Decoder` is right for rows of up to `reach` tokens, those of one length beside each other.
    Raises as `way_of`."""

    def decoded(rows: list[list[int]], forced: Tensor) -> Tensor:
        found = []
        for row, tokens in zip(rows, forced, strict=True):
            decoder = Decoder(model, row, way="batch")
            seen = [decoder.logits, decoder.feed(tokens[:1])]
            decoder.expand(2)  # the other row goes on with another token, and is then left out
            seen.append(decoder.feed(torch.stack([tokens[1] - 1, tokens[1]]))[1:])
            decoder.select(torch.tensor([1]))
            seen += [decoder.feed(token[None]) for token in tokens[2:-1]]
            found.append(torch.stack(seen, 1)[0])
        return torch.stack(found).log_softmax(-1).cpu()

    return "plain" if way_of(model, "decode 2", reach, lambda _: decoded) != "batch" else "batch"


@torch.no_grad()
def decode(model: nn.Module, prompt: Sequence[int], n: int) -> list[int]:
    """The n likeliest tokens, one after the other, whatever ends an answer: plain decoding as the
    decoders below do it, so that rates can be compared."""
    rows, drawn = Decoder(model, prompt, room=n), []
    for _ in range(n):
        token = rows.logits.argmax(-1).cpu()
        drawn.append(int(token))
        if len(drawn) < n:
            rows.feed(token)
    return drawn


# ---- decoders to compare with -------------------------------------------------------------------


@torch.no_grad()
def generate_genarm(
    model: nn.Module,
    tokenizer: Any,
    prompts: Text | Prompt | Sequence[Text | Prompt],
    arm: Dial,
    alpha: float = 1.0,
    *,
    sampling: Sampling = LIKELIEST,
    prompt_style: Style | None = None,
    rendering: Rendering | None = None,
    ends: Collection[int] | None = None,
    force: bool = False,
) -> list[Generation]:
    """GenARM (Xu et al. 2024, eq. 9): log pi_base + alpha log pi_arm, normalised; at a temperature t
    the sum is divided by t (1 + alpha). The reward model, `arm` at 1 on the same base (`fit
    genarm`), is run as a forward pass of its own with its own cache.

    At alpha = 0 it is the bare model, and costs the same as at any other.

    Args:
        ends: ids that end an answer (by default the model's).
    """
    done = []
    form = format_for([arm], prompt_style, rendering)
    texts = prompts_of(prompts)
    ends = ends_of(model, tokenizer, form, texts) if ends is None else ends
    with seeded(sampling.seed, model):
        for prompt in texts:
            ids = form.ids(tokenizer, prompt)
            base = Decoder(model, ids, room=sampling.max_new_tokens)
            with arm(model, 1.0, force=force):
                other = Decoder(model, ids, room=sampling.max_new_tokens)
            drawn: list[int] = []
            while len(drawn) < sampling.max_new_tokens:
                both = base.logits.log_softmax(-1) + alpha * other.logits.log_softmax(-1)
                token = next_ids(both / (1 + max(alpha, 0.0)), base.ids, sampling)
                drawn.append(int(token))
                if drawn[-1] in ends or len(drawn) == sampling.max_new_tokens:
                    break
                base.feed(token)
                with arm(model, 1.0, force=True):  # checked above
                    other.feed(token)
            done.append(Generation(prompt.shown, alpha, said(tokenizer, drawn, ends, ids)))
    return done


@torch.no_grad()
def generate_args(
    model: nn.Module,
    tokenizer: Any,
    prompts: Text | Prompt | Sequence[Text | Prompt],
    reward: RewardDial,
    alpha: float = 1.0,
    *,
    k: int = 10,
    sampling: Sampling = LIKELIEST,
    prompt_style: Style | None = None,
    rendering: Rendering | None = None,
    ends: Collection[int] | None = None,
    force: bool = False,
) -> list[Generation]:
    """ARGS-greedy (Khanov et al. 2024, section 2.2): of the k likeliest next tokens the one with the
    highest log-prob + alpha x reward of the text that it ends. The k tokens are k rows of one
    batch. A reward meant for whole answers is thereby asked about unfinished ones.

    Args:
        ends: ids that end an answer (by default the model's).

    Raises:
        ConfigError: the reward brings an adapter, which would lean the model too.
    """
    if reward.adapter is not None:
        raise ConfigError(
            "ARGS reads rewards while it decodes; this dial's adapter would lean it too"
        )
    if not force:
        reward.check_base(model)
    reward.edits(model)  # refuses a model that it does not fit
    done = []
    form = format_for([reward], prompt_style, rendering)
    texts = prompts_of(prompts)
    ends = ends_of(model, tokenizer, form, texts) if ends is None else ends
    for prompt in texts:
        ids = form.ids(tokenizer, prompt)
        rows = Decoder(model, ids, 1, reward.sites, room=sampling.max_new_tokens)
        drawn: list[int] = []
        while len(drawn) < sampling.max_new_tokens and not (drawn and drawn[-1] in ends):
            logps, tokens = rows.logits[0].log_softmax(-1).topk(k)
            r = args_rewards(rows, reward, tokens, ends)
            best = int((logps + alpha * r).argmax())
            logits = rows.logits
            rows.select(torch.tensor([best]))
            rows.logits = logits[best : best + 1]
            drawn.append(int(tokens[best]))
        done.append(Generation(prompt.shown, alpha, said(tokenizer, drawn, ends, ids)))
    return done


def args_rewards(
    rows: Decoder, reward: RewardDial, tokens: Tensor, ends: Collection[int]
) -> Float[Tensor, "row"]:
    """Rewards of the text that each of some next tokens of the one row ends. Afterwards there is a
    row for each token, which it was fed."""
    rows.expand(len(tokens))
    rows.feed(tokens)
    states = rows.states(prompt=reward.over == "all")
    mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    marker = torch.zeros_like(mask)
    marker[:, -1] = torch.tensor([int(t) in ends for t in tokens], device=mask.device)
    found = reward.rewards(reward.aggregated(states, mask, marker))[:, 0]
    return numbers(found, "rewards").to(rows.logits)
