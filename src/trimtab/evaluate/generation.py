"""Text in, text out, at several alphas in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from trimtab.bounds import Bounded, Count, NonNegative, Positive, Seed, Within
from trimtab.dials import Dial
from trimtab.evaluate.items import check_alphas
from trimtab.pairs.pair import Text
from trimtab.rendering import USUAL, Rendering, prompt_ids


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


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Text | Sequence[Text],
    dial: Dial | None = None,
    alphas: Sequence[float] = (1.0,),
    *,
    sampling: Sampling = Sampling(),
    prompt_style: Literal["auto", "plain", "chat"] = "auto",
    batch_size: int = 16,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt at every alpha, rows of a batch at their own alpha.

    Args:
        prompts: texts, or chats, each a tuple of messages.
        alphas: strengths of the dial; without one there is a single continuation, at alpha 0.
        prompt_style: `chat` puts the prompt into the model's chat template as a user message;
            `auto` does so where the tokenizer has one.

    Returns:
        Prompts in order, alphas in order within each.

    Raises:
        DataError: an empty prompt.
        ModelError: `chat` where the tokenizer has no chat template.
        ConfigError: no alpha, or one that is not finite.
        DialError: the dial was made for another base model (`force` goes on).
    """
    texts: list[Text] = [prompts] if isinstance(prompts, str) else list(prompts)  # type: ignore[arg-type]
    strengths = [float(alpha) for alpha in alphas] if dial is not None else [0.0]
    check_alphas(strengths)
    ids = [encode_prompt(tokenizer, text, prompt_style) for text in texts]
    rows = [(number, alpha) for number in range(len(texts)) for alpha in strengths]
    done: list[Generation] = []
    with seeded(sampling.seed, model):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            prompt_ids, row_alphas = [ids[n] for n, _ in part], [a for _, a in part]
            answers = _continue(model, tokenizer, prompt_ids, dial, row_alphas, sampling, force)
            done += [
                Generation(shown(texts[n]), a, answer)
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


def encode_prompt(
    tokenizer: Any,
    prompt: Text,
    style: Literal["auto", "plain", "chat"] = "auto",
    rendering: Rendering = USUAL,
) -> list[int]:
    """Token ids of what is to be continued (see `rendering.prompt_ids`).

    Raises:
        DataError: the prompt is empty, or the chat template leaves a message out.
        ModelError: `chat`, or a chat, where the tokenizer has no chat template, or it does not take
            the messages.
    """
    return list(prompt_ids(prompt, tokenizer, style, rendering=rendering))


def shown(prompt: Text) -> str:
    """A prompt as text: of a chat its only turn, or all turns with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)


@torch.no_grad()
def _continue(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    dial: Dial | None,
    alphas: list[float],
    sampling: Sampling,
    force: bool,
) -> list[str]:
    width = max(map(len, prompts))
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    device = next(model.parameters()).device
    left = [[pad] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    draw = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }
    likeliest = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    # One alpha for all is passed as a number: 0 then attaches nothing at all.
    alpha = alphas[0] if len(set(alphas)) == 1 else torch.tensor(alphas)
    with dial(model, alpha, force=force) if dial is not None else nullcontext():
        out = model.generate(
            input_ids=torch.tensor(left, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=sampling.max_new_tokens,
            num_beams=sampling.num_beams,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=pad,
            **(draw if sampling.temperature > 0 else likeliest),
        )
    return tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
