"""`trimtab judge`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimtab.bounds import Count
from trimtab.cli.flags import Forced, OnModel
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Args(Forced, OnModel):
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
    prompt_style: Literal["plain", "chat"] | None = None
    """The reward dial reads prompt and answer in the chat template, or as plain text; by default as
    it was fitted."""
    limit: Count | None = None
    """The first so many prompts."""
    out: Path | None = None
    """A file for the judgements, a JSON line a prompt."""


def main(words: list[str]) -> None:
    """Judge, and print the first side's win rate."""
    args = parse(Args, words, verb="judge", about="Compare two files of answers, in both orders.")
    if (args.endpoint is None) == (args.reward is None):
        raise ConfigError("judge: give --endpoint URL or --reward DIR, one of the two")
    from trimtab.evaluation.answers import read_answers
    from trimtab.evaluation.endpoint import Endpoint
    from trimtab.evaluation.judge import compare_answers, endpoint_judge, reward_judge, win_rate
    from trimtab.files import write_lines

    progress = args.progress
    first, second = read_answers(args.first), read_answers(args.second)
    first = first[: args.limit]
    if args.endpoint is not None:
        endpoint = Endpoint(args.endpoint, os.environ.get(args.key, ""))
        judge = endpoint_judge(endpoint, args.judge_model)
    else:
        args.check_model()
        dial = args.read_reward(args.reward)
        from trimtab.evaluation.formats import format_for

        model, tokenizer = args.load(dial)
        form = format_for([dial], args.prompt_style)
        if form.said:
            progress.say(form.said)
        chat = None if args.prompt_style is None else args.prompt_style == "chat"
        judge = reward_judge(model, tokenizer, dial, chat=chat)
    with progress.bar("judging", len(first), "prompts") as update:
        found = compare_answers(first, second, judge, update)
    if args.out is not None:
        keys = ("prompt", "forward", "backward", "win")
        write_lines(args.out, [{key: getattr(j, key) for key in keys} for j in found])
    rate = win_rate(found)
    files = (args.first, args.second)
    names = [s[0].generator or file.stem for s, file in zip((first, second), files, strict=True)]
    interval = f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate.prompts > 1 else ""
    print(
        f"{names[0]} against {names[1]}: win rate {100 * rate.value:.1f} %{interval} on "
        f"{rate.prompts} prompt{'s' * (rate.prompts > 1)}, ties one half; "
        f"the same verdict in both orders on {100 * rate.consistency:.0f} %"
    )
