"""`trimtab fit METHOD`."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from trimtab.bounds import Count, Seed, Within
from trimtab.cli.parse import parse
from trimtab.cli.ready import (
    AS_IT_IS,
    NO_PERSONAS,
    OwnTable,
    Personas,
    check_model,
    read_condition,
    read_pairs,
    under,
)
from trimtab.errors import ConfigError
from trimtab.rendering.settings import USUAL, Rendering


@dataclass(frozen=True)
class Args:
    """Flags."""

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    out: Path
    """Folder to save the dial in. The same command goes on where it was stopped."""
    pairs: str = ""
    """Spec of the training pairs."""
    holdout: Annotated[float | None, Within(0, 1, "()")] = None
    """Keep this share of the items, such as 0.2, out of training, for `evaluate`."""
    table: Annotated[OwnTable, tyro.conf.arg(name="")] = AS_IT_IS
    personas: Annotated[Personas, tyro.conf.arg(name="")] = NO_PERSONAS
    condition: Path | None = None
    """A condition (`fit-condition`), in whose prompts alone the vector is to act."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    seed: Seed = 0
    """Initialisation, data order, dropout."""
    limit: Count | None = None
    """The first so many items."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 on a GPU."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto: the first GPU, else the CPU."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    store: Path | None = None
    """Folder of stored readings (`trimtab cache --out`; default: in TRIMTAB_CACHE)."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    overwrite: bool = False
    """Replace what lies in --out."""
    processes: str = "auto"
    """Processes to train in, through `accelerate launch`; auto: one a GPU."""
    dry_run: bool = False
    """Say what it would take (steps, minutes, memory, disk), and stop; nothing is written."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Make a dial and say what was saved."""
    if not words or words[0].startswith("-"):
        raise ConfigError("fit: expected a method first; trimtab methods lists them")
    from trimtab.training.methods import method

    named = method(words[0])
    args = _parse(named, words[1:])
    count = _processes(args, named)
    from trimtab import models
    from trimtab.cache import Store
    from trimtab.progress import Progress
    from trimtab.training import fit

    others = int(os.environ.get("RANK", 0)) > 0
    progress = Progress(args.quiet or others)
    check_model(args.model, args.dtype, args.device, args.load_in)
    data, held = _pairs(args)
    condition = read_condition(args.condition, args.model, False)
    progress.left_out(data.name, data.left_out)
    _check_out(args, named, data)
    store = Store(args.store) if args.store else None
    if store:
        store.check(f"trimtab cache --model {args.model} --pairs {args.pairs} --out DIR")
    if count > 1 and not args.dry_run:
        _launch(count, words)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    if args.dry_run:
        print(_forecast(args, replace(named, recipe=args.recipe), model, tokenizer, data, progress))
        return
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
        rendering=args.rendering,
        overwrite=args.overwrite,
        store=store,
        progress=progress,
    )
    if condition is not None and not others:
        _put_under(dial, condition, args.out)
    if others:
        return
    count = sum(t.numel() for t in dial.tensors().values())
    base = shlex.quote(args.model) + (f" --load-in {args.load_in}" if args.load_in else "")
    use = f"--model {base} --dial {shlex.quote(str(args.out))}"
    print(f"saved: {args.out} ({dial.kind} dial, {count:,} parameters)")
    if dial.kind == "reward":
        drawn = f"--model {base} --reward {shlex.quote(str(args.out))}"
        print("it ranks answers and leaves the model as it is. Next:")
        print(f'  trimtab generate {drawn} --temperature 1 --best-of 8 --prompt "..."')
        return
    print("alpha to try: 1, as fitted; 2 leans further, -1 leans away, 0 is the bare model. Next:")
    print(f'  trimtab generate {use} --alpha -1 0 1 --prompt "..."')
    test = shlex.quote(f"test={held}") if held else "test=SPEC"
    print(f"  trimtab evaluate {use} --pairs {test} --alpha -1 1 --out DIR")


def _pairs(args: Args) -> tuple[Any, str]:
    """What to train on, and the spec of what is held out."""
    if (contrast := args.personas.pairs()) is not None:
        return contrast.limit(args.limit), ""
    spec, held = args.table.spec(args.pairs), ""
    if args.holdout is not None:
        spec, held = (f"{spec}[{which} {args.holdout:g}]" for which in ("without", "holdout"))
    return read_pairs(spec, args.data_root, args.limit), held


def _agree(args: Args) -> None:
    """Raise ConfigError where there are no pairs, or pairs and personas."""
    personas = args.personas.persona_positive or args.personas.persona_negative
    if bool(args.pairs) == bool(personas):
        raise ConfigError(
            "fit: give --pairs SPEC, or --persona-positive TEXT and --persona-negative TEXT"
        )
    if personas and (args.holdout is not None or args.table != AS_IT_IS):
        raise ConfigError("fit: --holdout, --columns and --skip-bad go with --pairs")


def _put_under(dial: Any, condition: Any, out: Path) -> None:
    """Put a dial that was made under a condition, and save it so; once it is, it stays as it is."""
    if getattr(dial, "condition", None) is not None:
        return
    under([dial], condition)
    own = {"dial.json", "README.md", dial.weights_file}
    extra = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file() and f.name not in own}
    dial.save_pretrained(out, extra)


def _forecast(args: Args, named: Any, model: Any, tokenizer: Any, data: Any, progress: Any) -> str:
    """What `fit` would take, one process assumed; what is proven of the model on the way is not
    kept."""
    from trimtab import models
    from trimtab.batching import encode
    from trimtab.training.forecast import forecast
    from trimtab.training.steering import encode_poles

    how: dict[str, Any] = {
        "max_length": args.max_length,
        "prompt_style": args.prompt_style,
        "rendering": args.rendering,
    }
    with tempfile.TemporaryDirectory() as aside, models.reading(model):
        before = os.environ.get("TRIMTAB_CACHE")
        os.environ["TRIMTAB_CACHE"] = aside
        try:
            if named.trained:
                encoded: Any = encode(data, tokenizer, **how)
            else:
                encoded = encode_poles(named.recipe, data, tokenizer, **how)
            return str(forecast(named, model, encoded, seed=args.seed, progress=progress))
        finally:
            if before is None:
                del os.environ["TRIMTAB_CACHE"]
            else:
                os.environ["TRIMTAB_CACHE"] = before


def _processes(args: Args, named: Any) -> int:
    """How many processes are to be started: 1 within one of them, and for methods that do not train.

    Raises:
        ConfigError: neither a number above 0 nor `auto`.
    """
    if args.processes != "auto" and not (args.processes.isdigit() and int(args.processes)):
        raise ConfigError(f"--processes {args.processes}: expected a number above 0, or auto")
    if "RANK" in os.environ or not named.trained:
        return 1
    if args.processes != "auto":
        return int(args.processes)
    import torch

    return max(1, torch.cuda.device_count()) if args.device in ("auto", "cuda") else 1


def _launch(count: int, words: list[str]) -> NoReturn:
    """The same command in so many processes, in place of this one."""
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    settings = ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no"]
    os.execv(sys.executable, [sys.executable, *launch, *settings, "-m", "trimtab", "fit", *words])


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
    typed = dataclass(frozen=True)(
        type(
            "Args",
            (Args,),
            {
                "__annotations__": {"recipe": Annotated[named.kind, tyro.conf.arg(name="")]},
                "__doc__": Args.__doc__,
            },
        )
    )
    default = typed(recipe=named.recipe, out=tyro.MISSING)
    return parse(
        typed, words, verb=f"fit {named.name}", about=named.what, default=default, agree=_agree
    )
