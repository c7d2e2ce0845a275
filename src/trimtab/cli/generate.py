"""`trimtab generate`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import UseAppendAction

from trimtab.cli.parse import parse
from trimtab.cli.ready import (
    AS_IT_IS,
    OwnTable,
    alpha_of,
    check_model,
    read_condition,
    read_dials,
    read_pairs,
    under,
    warn_range,
)
from trimtab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trimtab.evaluation.generation import Generation


def main(words: list[str]) -> None:
    """Continue prompts at several alphas; print them, or write them as evaluation files."""
    from trimtab.evaluation.generation import Sampling
    from trimtab.evaluation.items import check_alphas
    from trimtab.evaluation.rewards import Drawing
    from trimtab.rendering import Rendering

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        model: str = "smollm2-135m"
        """Hub id, folder, .gguf file, or smollm2-135m."""
        dial: Annotated[tuple[str, ...], UseAppendAction] = ()
        """A dial's folder or Hub id; repeat to use several at once."""
        condition: Path | None = None
        """A condition (`fit-condition`), in whose prompts alone the vector dials are to act."""
        alpha: tuple[str, ...] = ("0", "1")
        """Strengths: numbers, or none, light, standard, strong, maximum; 0 is the bare model."""
        prompt: Annotated[tuple[str, ...], UseAppendAction] = ()
        """A prompt; repeat for several."""
        prompts: Path | None = None
        """A text file with a prompt a line, or JSON (lines) with `prompt`, `instruction`, …, as texts
        or chats."""
        pairs: str | None = None
        """A spec of pairs, whose prompts are continued."""
        n: int | None = None
        """The first so many prompts."""
        system: str | None = None
        """A system text before prompts that have none of their own."""
        prompt_style: Literal["auto", "plain", "chat"] | None = None
        """`chat`: in the model's chat template; `auto`: where there is one. By default as the dial
        was fitted, `auto` without one."""
        rendering: Annotated[Rendering, tyro.conf.arg(name="")] = field(default_factory=Rendering)
        sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
        reward: str | None = None
        """A reward dial's folder: --best-of candidates are drawn a prompt, and one is taken."""
        best_of: int = 8
        """Candidates a prompt, with --reward."""
        drawing: Drawing = field(default_factory=Drawing)
        """How one of them is taken, and when the others are given up."""
        decoder: Literal["plain", "genarm", "args"] = "plain"
        """`genarm`: --dial is a second model (`fit genarm`) beside the bare one; `args`: --reward
        scores the likeliest next tokens. Both to compare with."""
        out: Path | None = None
        """Folder for evaluation files: AlpacaEval and Arena-Hard, one of each a strength."""
        name: str | None = None
        """The generator's name in them (default: model and dial)."""
        dtype: str = "auto"
        """float32, bfloat16, float16, or auto."""
        load_in: Literal["4bit", "8bit"] | None = None
        """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
        device: str = "auto"
        """A torch device, or auto."""
        data_root: str | None = None
        """Folder of local data sources (default: TRIMTAB_DATA)."""
        table: Annotated[OwnTable, tyro.conf.arg(name="")] = AS_IT_IS
        force: bool = False
        """Go on although a dial was made for another base model."""
        quiet: bool = False
        """No progress."""

    args: Any = parse(
        Args, words, verb="generate", about="Continue prompts at several strengths of a dial."
    )
    prompts = _prompts(args)
    alphas = [alpha_of(text) for text in args.alpha]
    check_alphas(alphas)
    if args.out is not None and (args.out / GENERATIONS).exists():
        raise ConfigError(f"{args.out}: holds generations already; choose another --out")
    if args.decoder == "genarm" and len(args.dial) != 1:
        raise ConfigError("--decoder genarm: give one --dial, the second model")
    if args.decoder == "args" and args.reward is None:
        raise ConfigError("--decoder args: give --reward DIR")
    check_model(args.model, args.dtype, args.device, args.load_in)
    dials = read_dials(args.dial, args.model, args.force)
    under(dials, read_condition(args.condition, args.model, args.force))
    if ranks := [n for n, d in zip(args.dial, dials, strict=True) if d.kind == "reward"]:
        raise ConfigError(f"--dial {ranks[0]}: a reward dial ranks answers; give it as --reward")
    reward = _reward(args)
    from trimtab import models
    from trimtab.dials import Composed, conflicts
    from trimtab.evaluation.formats import format_for
    from trimtab.progress import Progress

    progress = Progress(args.quiet)
    for found in conflicts(dials):
        first, second = args.dial[found.first], args.dial[found.second]
        print(f"{first} and {second}: {found}", file=sys.stderr)
    warn_range(dials, alphas, progress.say)
    dial = None
    if dials:
        dial = dials[0] if len(dials) == 1 else Composed([(d, 1.0) for d in dials])
    rendering = args.rendering if args.rendering != Rendering() else None
    form = format_for([dial, reward], args.prompt_style, rendering)
    if form.said:
        progress.say(form.said)
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    for part in (dial, reward):
        if part is not None:
            part.to(next(model.parameters()).device)
    common = {"sampling": args.sampling, "prompt_style": args.prompt_style, "force": args.force}
    common["rendering"] = rendering
    done = _generated(args, model, tokenizer, prompts, dial, reward, alphas, progress, common)
    if args.out is None:
        _show(done)
    else:
        dial_name = "+".join(d.info.method or d.kind for d in dials)
        name = args.name or "-".join(filter(None, (args.model, dial_name)))
        uids = [prompt.uid or "" for prompt in prompts for _ in alphas]
        _write(args.out, name, done, uids, tokenizer)


GENERATIONS = "generations.jsonl"


def _prompts(args: Any) -> list[Any]:
    from trimtab.pairs.prompts import Prompt, read_prompts

    prompts = [Prompt(text) for text in args.prompt]
    if args.prompts is not None:
        prompts += read_prompts(args.prompts)
    if args.pairs is not None:
        pairs = read_pairs(args.pairs, args.data_root, None, args.table)
        prompts += {(repr(p.prompt), p.setting): Prompt.of(p) for p in pairs}.values()
    if not prompts:
        raise ConfigError("generate: give --prompt TEXT, --prompts FILE or --pairs SPEC")
    if not all(p.text.strip() if isinstance(p.text, str) else p.text for p in prompts):
        raise DataError("a prompt is empty")
    prompts = [p.with_system(args.system) for p in prompts]
    if args.n is not None and args.n < 1:
        raise ConfigError(f"--n {args.n}: expected 1 or more")
    return prompts[: args.n]


def _reward(args: Any) -> Any:
    if args.reward is None:
        return None
    (reward,) = read_dials([args.reward], args.model, args.force)
    if reward.kind != "reward":
        raise ConfigError(f"--reward {args.reward}: a {reward.kind} dial; expected a reward dial")
    if args.decoder == "plain" and args.best_of > 1 and args.sampling.temperature == 0:
        raise ConfigError(
            "--best-of: candidates at temperature 0 would all be the same; add --temperature 1"
        )
    return reward


def _generated(
    args: Any,
    model: Any,
    tokenizer: Any,
    prompts: list[Any],
    dial: Any,
    reward: Any,
    alphas: list[float],
    progress: Any,
    common: dict[str, Any],
) -> "list[Generation]":
    """Generations, prompts in order, strengths in order within each."""
    from trimtab.evaluation.decoding import generate_args, generate_genarm
    from trimtab.evaluation.generation import generate

    with progress.bar("generating", len(prompts) * len(alphas), "answers") as update:
        if args.decoder == "plain" and reward is None:
            return generate(model, tokenizer, prompts, dial, alphas, progress=update, **common)
        done = []
        for prompt in prompts:
            for alpha in alphas:
                if args.decoder == "genarm":
                    done += generate_genarm(model, tokenizer, [prompt], dial, alpha, **common)
                elif args.decoder == "args":
                    done += generate_args(model, tokenizer, [prompt], reward, alpha, **common)
                else:
                    done.append(_best(args, model, tokenizer, prompt, dial, reward, alpha, common))
                update(len(done), len(prompts) * len(alphas))
        return done


def _best(
    args: Any,
    model: Any,
    tokenizer: Any,
    prompt: Any,
    dial: Any,
    reward: Any,
    alpha: float,
    common: Any,
) -> "Generation":
    """One of several candidates; alpha is that of the dial, or of the reward where there is none."""
    from dataclasses import replace

    import torch

    from trimtab.evaluation.generation import Generation
    from trimtab.evaluation.rewards import draw, pick

    drawing = replace(args.drawing, n=args.best_of)
    if dial is None and drawing.pick == "sample":
        drawing = replace(drawing, alpha=alpha)
    found = draw(model, tokenizer, prompt, reward, drawing, dial=dial, alpha=alpha, **common)
    generator = torch.Generator().manual_seed(args.sampling.seed)
    return Generation(prompt.shown, alpha, pick(found, drawing, generator).text)


def _show(done: "list[Generation]") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    last = None
    for g in done:
        if g.prompt != last:
            console.print(Text(f"\n{g.prompt}", style="bold"))
            last = g.prompt
        console.print(Text.assemble((f"alpha {g.alpha:g}: ", "dim"), g.text.strip()))


def _write(out: Path, name: str, done: "list[Generation]", uids: list[str], tokenizer: Any) -> None:
    """The evaluation files of each strength, and all generations in one."""
    import json

    from trimtab.evaluation.answers import Answer, write_alpaca_eval, write_arena_hard
    from trimtab.files import write_text

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
    lines = [
        {**({"uid": uid} if uid else {}), "prompt": g.prompt, "alpha": g.alpha, "text": g.text}
        for g, uid in zip(done, uids, strict=True)
    ]
    print(
        write_text(
            out / GENERATIONS,
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
        )
    )
