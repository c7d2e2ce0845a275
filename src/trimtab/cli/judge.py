"""`trimtab judge`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimtab.bounds import Count
from trimtab.cli.parse import parse
from trimtab.cli.ready import check_model, read_dials
from trimtab.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Flags."""

    first: Positional[Path]
    """Answers of the first side, in AlpacaEval's or Arena-Hard's format."""
    second: Positional[Path]
    """Answers of the second side, to the same prompts."""
    endpoint: str | None = None
    """An OpenAI-compatible address, such as http://localhost:8000/v1."""
    judge_model: str = "judge"
    """Name of the judging model there."""
    key: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    reward: str | None = None
    """A reward dial's folder: the judge instead of an endpoint."""
    model: str = "smollm2-135m"
    """The reward dial's model."""
    chat: bool | None = None
    """The reward dial reads prompt and answer in the chat template (--chat), or as plain text
    (--no-chat); by default as it was fitted."""
    n: Count | None = None
    """The first so many prompts."""
    out: Path | None = None
    """A file for the judgements, a JSON line a prompt."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    force: bool = False
    """Go on although the reward dial was made for another base model."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Judge, and print the first side's win rate."""
    args = parse(Args, words, verb="judge", about="Compare two files of answers, in both orders.")
    if (args.endpoint is None) == (args.reward is None):
        raise ConfigError("judge: give --endpoint URL or --reward DIR, one of the two")
    import json

    from trimtab.evaluation.answers import read_answers
    from trimtab.evaluation.judge import compare_answers, endpoint_judge, reward_judge, win_rate
    from trimtab.files import write_text
    from trimtab.progress import Progress

    progress = Progress(args.quiet)
    first, second = read_answers(args.first), read_answers(args.second)
    if args.n is not None:
        first = first[: args.n]
    if args.endpoint is not None:
        key = os.environ.get(args.key, "")
        judge = endpoint_judge(args.endpoint, args.judge_model, key=key)
    else:
        assert args.reward is not None
        check_model(args.model, args.dtype, args.device, args.load_in)
        (dial,) = read_dials([args.reward], args.model, args.force)
        from trimtab import models
        from trimtab.dials import RewardDial
        from trimtab.evaluation.formats import format_for

        if not isinstance(dial, RewardDial):
            raise ConfigError(f"--reward {args.reward}: a {dial.kind} dial; expected a reward dial")
        model, tokenizer = models.load(
            args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
        )
        dial.to(next(model.parameters()).device)
        form = format_for([dial])
        if args.chat is None and form.said:
            progress.say(form.said.replace("--prompt-style", "--chat, --no-chat"))
        judge = reward_judge(model, tokenizer, dial, chat=args.chat)
    with progress.bar("judging", len(first), "prompts") as update:
        found = compare_answers(first, second, judge, update)
    if args.out is not None:
        lines = [
            {"prompt": j.prompt, "forward": j.forward, "backward": j.backward, "win": j.win}
            for j in found
        ]
        write_text(args.out, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    rate = win_rate(found)
    files = (args.first, args.second)
    names = [s[0].generator or file.stem for s, file in zip((first, second), files, strict=True)]
    interval = f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate.prompts > 1 else ""
    print(
        f"{names[0]} against {names[1]}: win rate {100 * rate.value:.1f} %{interval} on "
        f"{rate.prompts} prompts, ties one half; "
        f"the same verdict in both orders on {100 * rate.consistency:.0f} %"
    )
