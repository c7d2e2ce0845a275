"""Rewards of answers: of given ones in packed passes, and of candidates while they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.batching import (
    Encoded,
    PromptStyle,
    Row,
    Turn,
    answer_spans,
    collate,
    encode_answers,
    layout_for,
    plan_batches,
)
from trimtab.bounds import Bounded, Count, Strength, Whole, Within
from trimtab.dials import Dial, LogitsDial, RewardDial
from trimtab.dials.dial import members
from trimtab.errors import ConfigError
from trimtab.evaluation.decoding import Decoder
from trimtab.evaluation.formats import Style, format_for
from trimtab.evaluation.generation import PLAIN, Sampling, ends_of, next_ids, said, seeded
from trimtab.evaluation.items import ItemScores, item_scores, numbers
from trimtab.pairs.pair import Text
from trimtab.pairs.prompts import Prompt
from trimtab.progress import Update
from trimtab.rendering import Rendering
from trimtab.states import Readings, read_tokens
from trimtab.states import read as read_batch


def rewards_of(
    model: nn.Module,
    dial: RewardDial | None,
    encoded: Encoded,
    *,
    head: str | None = None,
    logps: bool = False,
    count_end: bool = True,
    budget: int = 2048,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, "answer"], Readings]:
    """Rewards of all answers of an encoded set (0 without a dial); with `logps` their log-probs from
    the same passes, that of the EOS included if `count_end`.

    Raises:
        ConfigError: no such head.
        DialError: the dial was made for another base model (`force` goes on).
        ModelError: a reward or log-prob is no number.
    """
    if dial is not None and not force:
        dial.check_base(model)
    index = 0 if dial is None else dial.head(head)
    where = answer_spans(encoded, "answer" if dial is None else dial.over)
    layout = layout_for(model, "answer" if dial is None else dial.where, encoded)
    device = next(model.parameters()).device
    found = torch.zeros(encoded.n_answers)
    total, tokens = torch.zeros(encoded.n_answers), torch.zeros(encoded.n_answers).long()
    done = 0
    with torch.no_grad(), nullcontext() if dial is None else dial(model, 1.0, force=True):
        for rows in plan_batches(encoded, budget, layout):
            batch = collate(encoded, rows, layout).to(device)
            if not count_end:
                scored = batch.token_scored & ~batch.token_marker
                batch = replace(batch, token_scored=scored)
            at = batch.answer_ids.cpu()
            if dial is None:
                read = read_batch(model, batch, logps=True)
            else:
                states, counts, read = read_tokens(
                    model, batch, dial.sites, dial.where, logps=logps
                )
                h = dial.from_tokens(states, counts, where, batch.answer_ids)
                found[at] = dial.rewards(h)[:, index].float().cpu()
            if read.logps is not None and read.tokens is not None:
                total[at], tokens[at] = read.logps.float().cpu(), read.tokens.cpu()
            done += batch.n_answers
            if isinstance(progress, Update):
                margin = found[at][batch.pair_chosen.cpu()] - found[at][batch.pair_rejected.cpu()]
                progress.tally(float((margin > 0).sum() + (margin == 0).sum() / 2), len(margin))
            if progress:
                progress(done, encoded.n_answers)
    return numbers(found, "rewards"), Readings(numbers(total, "log-probs"), tokens)


def reward_scores(encoded: Encoded, rewards: Float[Tensor, "answer"]) -> ItemScores:
    """Rewards as scores of items: accuracies of ranking by reward instead of by log-prob."""
    return item_scores(
        encoded, Readings(numbers(rewards, "rewards"), torch.ones(len(rewards), dtype=torch.long))
    )


def score_candidates(
    model: nn.Module,
    tokenizer: Any,
    dial: RewardDial,
    prompt: Text,
    candidates: Sequence[Text],
    *,
    head: str | None = None,
    prompt_style: PromptStyle | None = None,
    rendering: Rendering | None = None,
    max_length: int = 1024,
) -> Float[Tensor, "candidate"]:
    """Rewards of candidate answers to one prompt, which is computed once for all of them.

    Args:
        prompt_style: by default what the dial was fitted in, plain text where it does not say.
        rendering: the chat template's settings; by default those that the dial was fitted with.

    Raises:
        DataError: no candidate, or one without tokens, or longer than `max_length` with the prompt.
        ConfigError: no such head.
    """
    form = format_for([dial], prompt_style, rendering)
    encoded = encode_answers(
        prompt,
        candidates,
        tokenizer,
        max_length=max_length,
        prompt_style=form.style if form.style != "auto" else "plain",
        rendering=form.rendering,
    )
    whole = encoded.rows[0].packed_length
    return rewards_of(model, dial, encoded, head=head, budget=whole)[0]


@torch.no_grad()
def token_rewards(
    model: nn.Module, dial: RewardDial, encoded: Encoded, *, head: str | None = None
) -> list[Float[Tensor, "token"]]:
    """A reward at every token of every answer, of the text up to it.

    Raises:
        DialError: the dial's aggregation is not causal.
    """
    index, where = dial.head(head), answer_spans(encoded, dial.over)
    layout, device = layout_for(model, dial.where, encoded), next(model.parameters()).device
    found: list[Tensor] = [torch.empty(0)] * encoded.n_answers
    with dial(model, 1.0):
        for rows in plan_batches(encoded, 2048, layout):
            batch = collate(encoded, rows, layout).to(device)
            states, counts, _ = read_tokens(model, batch, dial.sites, dial.where)
            own = torch.bincount(batch.token_answer, minlength=batch.n_answers)
            h = dial.from_tokens(states, counts, where, batch.answer_ids, every=True)
            r = numbers(dial.rewards(h)[..., index].float().cpu(), "rewards")
            for place, answer in enumerate(batch.answer_ids.tolist()):
                end = int(counts[place])
                found[answer] = r[place, end - int(own[place]) : end]
    return found


# ---- candidates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing(Bounded):
    """How many candidates are drawn, and what becomes of them."""

    n: Annotated[Count, tyro.conf.arg(name="best_of", prefix_name=False)] = 8
    """Candidates a prompt, with --reward."""
    pick: Literal["best", "sample"] = "best"
    """`best`: the highest reward; `sample`: with weights softmax(alpha r), so that alpha 0 is a
    plain sample."""
    alpha: Strength = 1.0
    """Strength of the reward in `sample`."""
    reject_every: Whole = 0
    """Every so many tokens the worst candidates are given up, by their reward so far; 0 never."""
    keep: Annotated[float, Within(0, 1, "(]")] = 0.5
    """Share of them that goes on."""


@dataclass(frozen=True)
class Candidate:
    """One drawn answer.

    Attributes:
        tokens: its ids, the EOS that ends it included (put behind it where it was cut).
        reward: of the whole; of what there was, where it was rejected.
        finished: whether the model ended it.
        rejected: whether it was given up early.
    """

    text: str
    tokens: tuple[int, ...]
    reward: float
    finished: bool
    rejected: bool


def pick(found: Sequence[Candidate], drawing: Drawing, generator: torch.Generator) -> Candidate:
    """The candidate that is used."""
    whole = [c for c in found if not c.rejected]
    if drawing.pick == "best":
        return max(whole, key=lambda c: c.reward)
    weights = (drawing.alpha * torch.tensor([c.reward for c in whole], dtype=torch.double)).softmax(
        0
    )
    return whole[int(torch.multinomial(weights, 1, generator=generator))]


@torch.no_grad()
def draw(
    model: nn.Module,
    tokenizer: Any,
    prompt: Text | Prompt,
    reward: RewardDial,
    drawing: Drawing = Drawing(),
    *,
    dial: Dial | None = None,
    alpha: float = 1.0,
    sampling: Sampling = PLAIN,
    head: str | None = None,
    prompt_style: Style | None = None,
    rendering: Rendering | None = None,
    force: bool = False,
) -> list[Candidate]:
    """Draw n answers to a prompt and reward each: the prompt is computed once, and rewards come from
    the very passes that draw the tokens, where `dial` changes no hidden state and was fitted in the
    format of `reward`. Whatever token the model ends an answer with, the reward is read at the one
    that ended the answers it was learned from.

    Args:
        dial: leans the model while it draws, at `alpha` (an alignment head, for example).
        prompt_style, rendering: as of `generate`; by default each of the two dials has its own.

    Returns:
        Candidates in the order in which they were drawn.

    Raises:
        ConfigError: several candidates at temperature 0, which would all be the same.
        DialError: early rejection by a reward that there is only at the end.
    """
    if drawing.n > 1 and sampling.temperature == 0:
        raise ConfigError("candidates at temperature 0 would all be the same; raise --temperature")
    if not force:
        reward.check_base(model)
    reward.edits(model)  # refuses a model that it does not fit
    index = reward.head(head)
    form = format_for([dial, reward], prompt_style, rendering)
    read = format_for([reward, dial], prompt_style, rendering)
    drawn_after, read_after = form.ids(tokenizer, prompt), read.ids(tokenizer, prompt)
    one_pass = (
        reward.adapter is None
        and (dial is None or all(isinstance(d, LogitsDial) for d, _ in members(dial)))
        and drawn_after == read_after
    )
    if drawing.reject_every and not (one_pass and reward.causal):
        why = "is read at the end alone" if one_pass else "takes a pass of its own"
        raise ConfigError(f"early rejection: this reward {why}")
    ends = ends_of(model, tokenizer, form, [prompt])
    marker = read.marker(tokenizer, prompt)
    marker = min(ends) if marker is None else marker
    ends |= {marker}

    def candidate(
        drawn: list[int], reward: float, rejected: bool, finished: bool = False
    ) -> Candidate:
        text = said(tokenizer, drawn, ends, drawn_after)
        return Candidate(text, tuple(drawn), reward, finished, rejected)

    found: list[Candidate] = []
    drawn: list[list[int]] = [[] for _ in range(drawing.n)]
    leaning = nullcontext() if dial is None else dial(model, alpha, force=force)
    with seeded(sampling.seed, model), leaning:
        sites = reward.sites if one_pass else ()
        rows = Decoder(model, drawn_after, drawing.n, sites, room=sampling.max_new_tokens)
        alive = torch.ones(drawing.n, dtype=torch.bool)
        logits = rows.logits
        for step in range(1, sampling.max_new_tokens + 1):
            ids = next_ids(logits, rows.ids, sampling)
            ids[torch.isin(ids, torch.tensor(sorted(ends)))] = marker
            for row in alive.nonzero()[:, 0].tolist():
                drawn[row].append(int(ids[row]))
            ended = torch.tensor([bool(d) and d[-1] in ends for d in drawn])
            logits = rows.feed(ids)
            alive = ~ended
            if not alive.any():
                break
            if drawing.reject_every and step % drawing.reject_every == 0 and len(drawn) > 1:
                r = _rewards(rows, reward, index, drawn, ends)
                keep = r.argsort(descending=True)[: math.ceil(drawing.keep * len(drawn))]
                keep = keep.sort().values
                kept = set(keep.tolist())
                found += [
                    candidate(d, float(r[i]), True) for i, d in enumerate(drawn) if i not in kept
                ]
                rows.select(keep)
                drawn, alive = [drawn[i] for i in keep.tolist()], alive[keep]
                logits = logits[keep.to(logits.device)]
        if alive.any():  # what was cut is ended, so that its end has a state
            rows.feed(torch.full((len(drawn),), marker))
    whole = [d if d[-1] in ends else [*d, marker] for d in drawn]
    if one_pass:
        r = _rewards(rows, reward, index, whole, ends)
    else:
        turns = tuple((Turn(0, 0, len(d) - 1, len(d), len(d)),) for d in whole)
        row = Row("answers", tuple(read_after), tuple(map(tuple, whole)), (), (), turns)
        encoded = Encoded((row,), 0, marker, "answers")
        r, _ = rewards_of(model, reward, encoded, head=head, force=force)
    finished = [d[-1] in ends for d in drawn]
    return [
        *(
            candidate(d, float(v), False, done)
            for d, v, done in zip(whole, r, finished, strict=True)
        ),
        *found,
    ]


def _rewards(
    rows: Decoder, reward: RewardDial, index: int, drawn: list[list[int]], ends: set[int]
) -> Tensor:
    """Rewards of what was drawn so far, from the states that were seen."""
    states = rows.states(prompt=reward.over == "all")
    before = len(rows.prompt) if reward.over == "all" else 0
    counts = torch.tensor([before + len(d) for d in drawn])
    place = torch.arange(states.shape[1])
    mask = (place < counts[:, None]).to(states.device)
    marker = torch.tensor([before + len(d) - 1 if d[-1] in ends else -1 for d in drawn])
    is_marker = (place == marker[:, None]).to(states.device)
    h = reward.aggregated(states, mask, is_marker)
    return numbers(reward.rewards(h)[:, index].float().cpu(), "rewards")


def expected_kl(n: int) -> float:
    """The most that best-of-n moves the model: ln n - (n - 1) / n, in nats an answer (Beirami et
    al. 2024)."""
    return float(np.log(n) - (n - 1) / n)
