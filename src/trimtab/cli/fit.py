"""`trimtab fit METHOD`."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from trimtab.cli.parse import parse
from trimtab.cli.ready import check_model, read_pairs
from trimtab.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Flags."""

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    pairs: str
    """Spec of the training pairs."""
    out: Path
    """Folder to save the dial in. The same command goes on where it was stopped."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    seed: int = 0
    """Initialisation, data order, dropout."""
    limit: int | None = None
    """The first so many items."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 on a GPU."""
    device: str = "auto"
    """A torch device, or auto: the first GPU, else the CPU."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    max_length: int = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    overwrite: bool = False
    """Replace what lies in --out."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Make a dial and say what was saved."""
    from trimtab.fit.recipes import METHODS, method

    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            print("usage: trimtab fit METHOD --pairs SPEC --out DIR [flags]\n")
            print("  trimtab fit METHOD --help\n")
            for m in METHODS.values():
                print(textwrap.fill(f"  {m.name:<24} {m.what}", 100, subsequent_indent=" " * 27))
            return
        raise ConfigError("fit: expected a method first; trimtab methods lists them")
    named = method(words[0])
    args = _parse(named, words[1:])
    from trimtab import models
    from trimtab.fit import fit
    from trimtab.progress import Progress

    progress = Progress(args.quiet)
    check_model(args.model, args.dtype, args.device)
    data = read_pairs(args.pairs, args.data_root, args.limit)
    progress.left_out(data.name, data.left_out)
    _check_out(args, named, data)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(args.model, dtype=args.dtype, device=args.device)
    dial = fit(
        replace(named, recipe=args.recipe),
        model,
        tokenizer,
        data,
        out=args.out,
        seed=args.seed,
        limit=args.limit,
        max_length=args.max_length,
        prompt_style=args.prompt_style,
        overwrite=args.overwrite,
        progress=progress,
    )
    count = sum(t.numel() for t in dial.tensors().values())
    use = f"--model {shlex.quote(args.model)} --dial {shlex.quote(str(args.out))}"
    print(f"saved: {args.out} ({dial.kind} dial, {count:,} parameters)")
    print("alpha to try: 1, as fitted; 2 leans further, -1 leans away, 0 is the bare model. Next:")
    print(f'  trimtab generate {use} --alpha -1 0 1 --prompt "..."')
    print(f"  trimtab evaluate {use} --pairs test=SPEC --alpha -1 1 --out DIR")


def _check_out(args: Args, named: Any, data: Any) -> None:
    """Raise ConfigError where `fit` would find that --out is taken, but before the model loads."""
    out = args.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: a file; --out names a folder")
    if args.overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    remedy = "choose another --out, or --overwrite"
    if not (out / "dial.json").is_file():
        raise ConfigError(f"{out}: not empty, and no dial; {remedy}")
    from trimtab.dials import Dial

    info = Dial.from_pretrained(out).info
    same = info.method == named.name and info.data == {data.name: data.digest}
    if not same or info.seed not in (args.seed, None):
        raise ConfigError(f"{out}: holds a dial of another run; {remedy}")


def _parse(named: Any, words: list[str]) -> Args:
    kind = type(named.recipe)
    typed = dataclass(frozen=True)(
        type(
            "Args",
            (Args,),
            {
                "__annotations__": {"recipe": Annotated[kind, tyro.conf.arg(name="")]},
                "__doc__": Args.__doc__,
            },
        )
    )
    default = typed(recipe=named.recipe, pairs=tyro.MISSING, out=tyro.MISSING)
    return parse(typed, words, verb=f"fit {named.name}", about=named.what, default=default)
