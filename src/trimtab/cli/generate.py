"""`trimtab generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import UseAppendAction

from trimtab import models
from trimtab.bounds import Count
from trimtab.cli.flags import Alpha, OnModel, WithCondition, WithPrompts, WithTable, together
from trimtab.cli.parse import parse
from trimtab.cli.ready import warn_range
from trimtab.dials.saved import digest_of
from trimtab.errors import ConfigError, DataError
from trimtab.evaluation.generation import Generation, Sampling
from trimtab.evaluation.items import check_alphas
from trimtab.evaluation.rewards import Drawing
from trimtab.files import write_json
from trimtab.holding import held
from trimtab.provenance import digest
from trimtab.study.records import read_json

GENERATIONS, ASKED = "generations.jsonl", "asked.json"


@dataclass(frozen=True, kw_only=True)
class Args(WithCondition, WithPrompts, WithTable, OnModel):
    """Flags."""

    alpha: tuple[Alpha, ...] = (0.0, 1.0)
    """Strengths: numbers, or none, light, standard, strong, maximum; 0 is the bare model."""
    prompt: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A prompt; repeat for several."""
    prompts: Path | None = None
    """A text file with a prompt a line, or JSON (lines) with `prompt`, `instruction`, …, as texts
    or chats."""
    pairs: str | None = None
    """A spec of pairs, whose prompts are continued."""
    limit: Count | None = None
    """The first so many prompts."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    reward: str | None = None
    """A reward dial's folder: --best-of candidates are drawn a prompt, and one is taken."""
    drawing: Drawing = field(default_factory=Drawing)
    """How one of them is taken, and when the others are given up."""
    decoder: Literal["plain", "genarm", "args"] = "plain"
    """`genarm`: --dial is a second model (`fit genarm`) beside the bare one; `args`: --reward
    scores the likeliest next tokens. Both to compare with."""
    out: Path | None = None
    """Folder for evaluation files: AlpacaEval and Arena-Hard, one of each a strength."""
    name: str | None = None
    """The generator's name in them (default: model and dial)."""


def main(words: list[str]) -> None:
    """Continue prompts at several alphas; print them, or write them as evaluation files."""
    about = "Continue prompts at several strengths of a dial."
    args = parse(Args, words, verb="generate", about=about)
    prompts = _prompts(args)
    check_alphas(args.alpha)
    taken = args.out is not None and (args.out / GENERATIONS).exists()
    if args.out is not None and taken and not (args.out / ASKED).is_file():  # of an earlier version
        raise ConfigError(f"{args.out}: holds generations already; choose another --out")
    if args.decoder == "genarm" and len(args.dial) != 1:
        raise ConfigError("--decoder genarm: give one --dial, the second model")
    if args.decoder == "args" and args.reward is None:
        raise ConfigError("--decoder args: give --reward DIR")
    args.check_model()
    dials = args.conditioned()
    if ranks := [n for n, d in zip(args.dial, dials, strict=True) if d.kind == "reward"]:
        raise ConfigError(f"--dial {ranks[0]}: a reward dial ranks answers; give it as --reward")
    reward = args.read_reward(args.reward)
    asked = _asked(args, prompts, [*dials, *filter(None, [reward])]) if args.out else {}
    if args.out is not None and taken:
        if read_json(args.out / ASKED) != asked:
            raise ConfigError(f"{args.out}: holds other generations; choose another --out")
        with held(args.out):  # what a killed run left of its lock goes
            print(f"{args.out / GENERATIONS} holds these very generations already: nothing to do")
        return
    several = reward is not None and args.decoder == "plain" and args.drawing.n > 1
    if several and args.sampling.temperature == 0:
        raise ConfigError(
            "--best-of: candidates at temperature 0 would all be the same; add --temperature 1"
        )
    from trimtab.dials import conflicts

    progress = args.progress
    for found in conflicts(dials):
        first, second = args.dial[found.first], args.dial[found.second]
        print(f"{first} and {second}: {found}", file=sys.stderr)
    warn_range(dials, args.alpha, progress.say)
    dial = together(dials)
    args.form([dial, reward], progress)
    model, tokenizer = args.load(dial, reward)
    draws = _draws(args, model, tokenizer, dial, reward)
    with progress.bar("generating", len(prompts) * len(args.alpha), "answers") as update:
        done = draws(prompts, update)
    if args.out is None:
        _show(done)
    else:
        dial_name = "+".join(d.info.method or d.kind for d in dials)
        name = args.name or "-".join(filter(None, (args.model, dial_name)))
        each = len(done) // len(prompts)  # without a dial a prompt is answered once
        uids = [prompt.uid or "" for prompt in prompts for _ in range(each)]
        with held(args.out):
            write_json(args.out / ASKED, asked)
            _write(args.out, name, done, uids, tokenizer)


def _asked(args: Args, prompts: list[Any], dials: list[Any]) -> dict[str, str]:
    """What generations are of, so that the same command finds them."""
    flags = repr(replace(args, out=None, quiet=False))
    made_of = [flags, [repr(p) for p in prompts], [digest_of(dial) for dial in dials]]
    return {"asked": digest([*made_of, models.identify(args.model).whole])}


def _prompts(args: Args) -> list[Any]:
    from trimtab.pairs.prompts import Prompt, prompts_of, read_prompts

    prompts = [Prompt(text) for text in args.prompt]
    if args.prompts is not None:
        prompts += read_prompts(args.prompts)
    if args.pairs is not None:
        prompts += prompts_of(args.read_pairs(args.pairs))
    if not prompts:
        raise ConfigError("generate: give --prompt TEXT, --prompts FILE or --pairs SPEC")
    if not all(p.text.strip() if isinstance(p.text, str) else p.text for p in prompts):
        raise DataError("a prompt is empty")
    return [p.with_system(args.system) for p in prompts][: args.limit]


def _draws(
    args: Args, model: Any, tokenizer: Any, dial: Any, reward: Any
) -> Callable[[list[Any], Any], list[Generation]]:
    """What makes generations of prompts, the prompts in order, strengths in order within each."""
    import torch

    from trimtab.evaluation.decoding import generate_args, generate_genarm
    from trimtab.evaluation.generation import generate
    from trimtab.evaluation.rewards import draw, pick

    common: dict[str, Any] = {
        "sampling": args.sampling,
        "prompt_style": args.prompt_style,
        "rendering": args.asked,
        "force": args.force,
    }

    def one(prompt: Any, alpha: float) -> Generation:
        """With a decoder to compare with; else one of several candidates, where alpha is the dial's, or
        the reward's where there is none."""
        if args.decoder == "genarm":
            return generate_genarm(model, tokenizer, [prompt], dial, alpha, **common)[0]
        if args.decoder == "args":
            return generate_args(model, tokenizer, [prompt], reward, alpha, **common)[0]
        drawing = args.drawing
        if dial is None and drawing.pick == "sample":
            drawing = replace(drawing, alpha=alpha)
        found = draw(model, tokenizer, prompt, reward, drawing, dial=dial, alpha=alpha, **common)
        generator = torch.Generator().manual_seed(args.sampling.seed)
        return Generation(prompt.shown, alpha, pick(found, drawing, generator).text)

    def each(prompts: list[Any], update: Any) -> list[Generation]:
        done: list[Generation] = []
        for prompt in prompts:
            for alpha in args.alpha:
                done.append(one(prompt, alpha))
                update(len(done), len(prompts) * len(args.alpha))
        return done

    def batched(prompts: list[Any], update: Any) -> list[Generation]:
        return generate(model, tokenizer, prompts, dial, args.alpha, progress=update, **common)

    return batched if args.decoder == "plain" and reward is None else each


def _show(done: list[Generation]) -> None:
    from rich.text import Text

    from trimtab import terminal

    console = terminal.console()
    last = None
    for g in done:
        if g.prompt != last:
            console.print(Text(f"\n{g.prompt}", style="bold"))
            last = g.prompt
        console.print(Text.assemble((f"alpha {g.alpha:g}: ", "dim"), g.text.strip()))


def _write(out: Path, name: str, done: list[Generation], uids: list[str], tokenizer: Any) -> None:
    """The evaluation files of each strength, and all generations in one."""
    from trimtab.evaluation.answers import Answer, write_alpaca_eval, write_arena_hard
    from trimtab.files import write_lines

    for alpha in dict.fromkeys(g.alpha for g in done):
        generator = f"{name.replace('/', '_')}-alpha-{alpha:g}"
        part = [
            Answer(g.prompt, g.text, generator, uid)
            for g, uid in zip(done, uids, strict=True)
            if g.alpha == alpha
        ]
        lengths = [len(tokenizer(a.text)["input_ids"]) for a in part]
        print(write_alpaca_eval(out / "alpaca_eval" / f"{generator}.json", part))
        print(write_arena_hard(out / "arena_hard" / f"{generator}.jsonl", part, lengths))
    rows = [
        {**({"uid": uid} if uid else {}), "prompt": g.prompt, "alpha": g.alpha, "text": g.text}
        for g, uid in zip(done, uids, strict=True)
    ]
    print(write_lines(out / GENERATIONS, rows))
