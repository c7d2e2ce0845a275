"""Text in, text out, at several alphas in one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import spans
from trimtab.bounds import Bounded, Count, NonNegative, Positive, Seed, Within
from trimtab.dials import Dial
from trimtab.errors import ModelError
from trimtab.evaluation.cache_proof import Decoded, Way, plain_logits, way_of
from trimtab.evaluation.formats import Format, Style, format_for
from trimtab.evaluation.items import check_alphas, numbers
from trimtab.pairs.pair import Text
from trimtab.pairs.prompts import Prompt
from trimtab.rendering import USUAL, Rendering
from trimtab.rendering import end_ids as template_ends


@dataclass(frozen=True)
class Sampling(Bounded):
    """How text is drawn."""

    max_new_tokens: Count = 64
    """Longest continuation, in tokens."""
    temperature: NonNegative = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn."""
    top_p: Annotated[float, Within(0, 1, "(]")] = 1.0
    """Draw from the likeliest tokens that hold this probability."""
    num_beams: Count = 1
    """Beams of a beam search."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens that have occurred become less likely."""
    seed: Seed = 0
    """Seed of the draws."""


LIKELIEST, PLAIN = Sampling(), Sampling(temperature=1.0)
"""The likeliest token each time; draws from the model as it is."""


@dataclass(frozen=True)
class Generation:
    """A continuation of a prompt at a strength of the dial."""

    prompt: str
    alpha: float
    text: str
    before: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """Token ids of the prompt, as the model read it."""
    ids: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """Those of the continuation, what ended it included."""


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Text | Prompt | Sequence[Text | Prompt],
    dial: Dial | None = None,
    alphas: Sequence[float] = (1.0,),
    *,
    sampling: Sampling = Sampling(),
    prompt_style: Style | None = None,
    rendering: Rendering | None = None,
    batch_size: int = 16,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt at every alpha, rows of a batch at their own alpha.

    Args:
        prompts: texts, chats (each its messages), or prompts with a system text or tools.
        alphas: strengths of the dial; without one there is a single continuation, at alpha 0.
        prompt_style: `chat` puts the prompt into the model's chat template as a user message;
            `auto` does so where the tokenizer has one; by default what the dial was fitted in,
            `auto` without a dial.
        rendering: the chat template's settings; by default those that the dial was fitted with.

    Returns:
        Prompts in order, alphas in order within each.

    Raises:
        DataError: an empty prompt.
        ModelError: `chat` where the tokenizer has no chat template.
        ConfigError: no alpha, or one that is not finite.
        DialError: the dial was made for another base model (`force` goes on).
    """
    texts = prompts_of(prompts)
    strengths = [float(alpha) for alpha in alphas] if dial is not None else [0.0]
    check_alphas(strengths)
    form = format_for([dial], prompt_style, rendering)
    ids = [form.ids(tokenizer, text) for text in texts]
    ends = ends_of(model, tokenizer, form, texts)
    rows = [(number, alpha) for number in range(len(texts)) for alpha in strengths]
    done: list[Generation] = []
    with seeded(sampling.seed, model):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            prompt_ids, row_alphas = [ids[n] for n, _ in part], [a for _, a in part]
            answers = _continue(
                model, tokenizer, prompt_ids, dial, row_alphas, sampling, ends, force
            )
            done += [
                Generation(
                    *(texts[n].shown, a, said(tokenizer, answer, ends, ids[n])),
                    *(tuple(ids[n]), tuple(answer)),
                )
                for (n, a), answer in zip(part, answers, strict=True)
            ]
            if progress:
                progress(len(done), len(rows))
    return done


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Draws from a seed, the caller's own random state untouched."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def prompts_of(given: Text | Prompt | Sequence[Text | Prompt]) -> list[Prompt]:
    """One prompt or several; messages are one chat, and those of several each one."""
    one = isinstance(given, str | Prompt) or (bool(given) and isinstance(given[0], Mapping))
    return [Prompt.of(p) for p in ([given] if one else given)]  # type: ignore[list-item,arg-type]


@contextmanager
def own_settings(model: nn.Module) -> Iterator[None]:
    """Within it, what a checkpoint's `generation_config.json` asks for acts on nothing.

    `generate` fills what a call leaves open from there: cutoffs, penalties and forbidden tokens that
    nobody asked for, of which there are more with every version.
    """
    from transformers import GenerationConfig

    holders = [m for m in model.modules() if "generation_config" in vars(m)]
    kept = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            vars(holder)["generation_config"] = GenerationConfig()
        yield
    finally:
        for holder, config in zip(holders, kept, strict=True):
            vars(holder)["generation_config"] = config


def left_padded(model: nn.Module, rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Prompts `[row, token]`, padded on the left, with their mask."""
    device, width = next(model.parameters()).device, max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@torch.no_grad()
def way_to_generate(model: Any, reach: int) -> Way:
    """How the model's own `generate` is right for rows of up to `reach` tokens. Raises as `way_of`."""
    return way_of(model, "generate 2", reach, _forced)


def _forced(model: Any) -> Decoded:
    """Continuing rows by given tokens with the model's own `generate`."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Force(LogitsProcessor):
        """Notes the logits and leaves one token possible."""

        def __init__(self, tokens: Tensor):
            self.tokens, self.seen = tokens, []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            at = len(self.seen)
            self.seen.append(scores.float().log_softmax(-1).cpu())
            only = torch.full_like(scores, torch.finfo(scores.dtype).min)
            return only.scatter(1, self.tokens[:, at : at + 1].to(scores.device), 0.0)

    def decoded(rows: list[list[int]], forced: Tensor) -> Tensor:
        force = Force(forced)
        with own_settings(model):
            model.generate(
                **left_padded(model, rows, pad=int(forced[0, 0])),
                generation_config=GenerationConfig(
                    max_new_tokens=forced.shape[1], do_sample=False, pad_token_id=0
                ),
                logits_processor=LogitsProcessorList([force]),
            )
        return torch.stack(force.seen, 1)

    return decoded


def _continue(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    dial: Dial | None,
    alphas: list[float],
    sampling: Sampling,
    ends: set[int],
    force: bool,
) -> list[list[int]]:
    """Token ids of the continuations of rows, each at its own alpha."""
    way = way_to_generate(model, max(map(len, prompts)) + sampling.max_new_tokens)
    if sampling.repetition_penalty != 1 and len(set(map(len, prompts))) > 1 and way == "batch":
        way = "rows"  # padding would count as tokens that have occurred
    if way == "plain" and sampling.num_beams > 1:
        raise ModelError(
            f"{type(model).__name__}: decoded without a cache, which knows no beams; give num_beams 1"
        )
    groups = [range(len(prompts))] if way == "batch" else [[i] for i in range(len(prompts))]
    found: list[list[int]] = []
    for group in groups:
        part, strengths = [prompts[i] for i in group], [alphas[i] for i in group]
        # One alpha for all is passed as a number: 0 then attaches nothing at all.
        alpha = strengths[0] if len(set(strengths)) == 1 else torch.tensor(strengths)
        with dial(model, alpha, force=force) if dial is not None else nullcontext():
            if way == "plain":
                found.append(_plainly(model, part[0], ends, sampling))
            else:
                found += _by_generate(model, tokenizer, part, ends, sampling)
    return found


def said(
    tokenizer: Any, ids: Sequence[int], ends: Collection[int], before: Sequence[int] = ()
) -> str:
    """An answer as the text that goes on behind its prompt, without the mark that ends it (which need
    not be a special token)."""
    marks = set(tokenizer.get_added_vocab().values())
    marked = len(ids) > 0 and ids[-1] in ends and ids[-1] in marks
    own = list(ids[:-1] if marked else ids)

    def text(tokens: list[int]) -> str:
        return tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    # The blank before a text's first word is lost in SentencePiece's way of writing.
    last = [t for t in before[-1:] if t not in tokenizer.all_special_ids]
    whole, known = text(last + own), text(last)
    return whole[len(known) :] if whole.startswith(known) else text(own)


def _by_generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], ends: set[int], sampling: Sampling
) -> list[list[int]]:
    from transformers import GenerationConfig

    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    given = left_padded(model, prompts, pad)
    draws = sampling.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_beams=sampling.num_beams,
        repetition_penalty=sampling.repetition_penalty,
        do_sample=draws,
        temperature=sampling.temperature if draws else None,
        top_p=sampling.top_p if draws else None,
        top_k=0 if draws else None,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )
    # Without versions and views to keep, a token of a small model takes a fortieth less.
    with models.inferring(model), models.reading(model), own_settings(model):
        out = model.generate(**given, generation_config=settings, logits_processor=[_Checked()])
    drawn = out[:, given["input_ids"].shape[1] :].tolist()
    stops = [next((i for i, t in enumerate(ids, 1) if t in ends), len(ids)) for ids in drawn]
    return [ids[:stop] for ids, stop in zip(drawn, stops, strict=True)]


def _plainly(model: Any, prompt: list[int], ends: set[int], sampling: Sampling) -> list[int]:
    """A row continued by a whole pass a token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + sampling.max_new_tokens:
        with spans.prompts([len(prompt)]):
            logits = plain_logits(model, ids)
        ids.append(int(next_ids(logits, torch.tensor([ids]), sampling)))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def end_ids(model: Any, tokenizer: Any, rendering: Rendering = USUAL) -> set[int]:
    """The ids that end an answer: the checkpoint's, the tokenizer's, and the chat template's own end
    of turn."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [] if found is None else found if isinstance(found, list) else [found]
    by_template = template_ends(tokenizer, rendering)
    return {int(t) for t in (*found, tokenizer.eos_token_id, *by_template) if t is not None}


def ends_of(model: Any, tokenizer: Any, form: Format, prompts: Sequence[Text | Prompt]) -> set[int]:
    """The ids that end an answer to some prompts, whose tools and variables a template may heed."""
    by_row = [form.ends(tokenizer, prompt) for prompt in prompts]
    return end_ids(model, tokenizer, form.rendering).union(*by_row)


def checked_logits(_: Any, logits: Tensor) -> Tensor:
    """The logits; raises ModelError where a row's largest is no number, so that no token can be told
    (single tokens may be ruled out by an infinity)."""
    numbers(logits.amax(-1), "logits")
    return logits


class _Checked:
    """`checked_logits` as a processor of logits: of a plain function `generate` parses the signature at each
    token, for a thirtieth of its time."""

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        return checked_logits(input_ids, scores)


def next_ids(logits: Tensor, ids: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row, drawn or the likeliest one."""
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    seen: Any = ids.to(logits.device)
    checked_logits(seen, logits)
    if sampling.repetition_penalty != 1:
        logits = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(seen, logits)  # type: ignore[arg-type]
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    logits = TemperatureLogitsWarper(sampling.temperature)(seen, logits)  # type: ignore[arg-type]
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(seen, logits)  # type: ignore[arg-type]
    return torch.multinomial(logits.softmax(-1), 1)[:, 0].cpu()
