"""`trimtab fit METHOD`."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
from tyro.conf import UseAppendAction

from trimtab.bounds import Seed, Strength, Within
from trimtab.cli.flags import FromTrunk, OnModel, WithPairs
from trimtab.cli.parse import beside_flags, parse, with_settings
from trimtab.cli.ready import read_condition, read_dials, under
from trimtab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Personas:
    """A contrast of one's own."""

    persona_positive: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A persona that has the trait ("a pirate"), in place of --pairs; repeat for several."""
    persona_negative: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Its opposite ("a clerk"), one for each."""
    persona_template: str = "Act as if you were {persona}."
    """What the user asks of either."""

    def contrast(self) -> Any:
        """The personas before the built-in beginnings of answers; None without any.

        Raises:
            DataError: one without its opposite, or a template without a place for them.
        """
        if not self.persona_positive and not self.persona_negative:
            return None
        from trimtab.pairs import persona_pairs
        from trimtab.pairs.personas import suffixes

        couples = zip(self.persona_positive, self.persona_negative, strict=False)
        name = "; ".join(f"{a} | {b}" for a, b in couples)
        return persona_pairs(
            self.persona_template,
            self.persona_positive,
            self.persona_negative,
            suffixes(),
            f"personas: {self.persona_template} {name}",
        )


@dataclass(frozen=True, kw_only=True)
class Args(Personas, WithPairs, FromTrunk, OnModel):
    """Flags."""

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    out: Path
    """Folder to save the dial in. The same command goes on where it was stopped."""
    pairs: str = ""
    """Spec of the training pairs."""
    holdout: Annotated[float | None, Within(0, 1, "()")] = None
    """Keep this share of the items, such as 0.2, out of training, for `evaluate`."""
    condition: Path | None = None
    """A condition (`fit-condition`), in whose prompts alone the vector is to act."""
    held: Annotated[str | None, tyro.conf.arg(name="with")] = None
    """A dial that is on meanwhile, for policy and reference alike, and no part of what is made."""
    with_alpha: Strength = 1.0
    """Its strength."""
    seed: Seed = 0
    """Initialisation, data order, dropout."""
    store: Path | None = None
    """Folder of stored readings (`trimtab cache --out`; default: in TRIMTAB_CACHE)."""
    overwrite: bool = False
    """Replace what lies in --out."""
    measure: bool = True
    """At the end, measure what it does to neutral text at alpha -1 and 1: the dial's first measured range."""
    processes: str = "auto"
    """Processes to train in, through `accelerate launch`; auto: one a GPU."""
    dry_run: bool = False
    """Say what it would take (steps, minutes, memory, disk), and stop; nothing is written."""


def main(words: list[str]) -> None:
    """Make a dial and say what was saved."""
    if not words or words[0].startswith("-"):
        raise ConfigError("fit: expected a method first; trimtab methods lists them")
    from trimtab.training.methods import method

    named = method(words[0])
    args = _parse(named, words[1:])
    count = _processes(args, named)
    from trimtab.progress import Progress
    from trimtab.store import Store
    from trimtab.training import fit
    from trimtab.training.run import check_pairs

    others = int(os.environ.get("RANK", 0)) > 0
    progress = Progress(args.quiet or others)
    args.check_model()
    _check_depth(args)
    data, held = _pairs(args)
    condition = read_condition(args.condition, args.model, False)
    (beside,) = read_dials([args.held], args.model, False) if args.held else (None,)
    check_pairs(replace(named, recipe=args.recipe), data)
    progress.left_out(data.name, data.left_out)
    _check_out(args, named, data)
    store = Store(args.store, trunk=args.trunk == "auto")
    if args.store:
        store.check(f"trimtab cache --model {args.model} --pairs {args.pairs} --out DIR")
    if count > 1 and not args.dry_run:
        _launch(count, words)
    model, tokenizer = replace(args, quiet=progress.quiet).load(beside)
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
        **args.how,
        overwrite=args.overwrite,
        held=beside,
        held_alpha=args.with_alpha,
        measure=args.measure,
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
    from trimtab.dials.card import dosed

    for line in dosed(dial):
        print(line)
    print("alpha to try: 1, as fitted; 2 leans further, -1 leans away, 0 is the bare model. Next:")
    print(f'  trimtab generate {use} --alpha -1 0 1 --prompt "..."')
    test = shlex.quote(f"test={held}") if held else "test=SPEC"
    print(f"  trimtab evaluate {use} --pairs {test} --alpha -1 1 --out DIR")


def _pairs(args: Args) -> tuple[Any, str]:
    """What to train on, and the spec of what is held out."""
    if (contrast := args.contrast()) is not None:
        return contrast.limit(args.limit), ""
    from trimtab.pairs import read_pairs

    spec, held = args.spec(args.pairs), ""
    if args.holdout is not None:
        spec, held = (f"{spec}[{which} {args.holdout:g}]" for which in ("without", "holdout"))
    return read_pairs(spec, args.data_root, limit=args.limit), held


def _check_depth(args: Args) -> None:
    """Raise ConfigError where an objective on states would see nothing of the dial, before the model is
    loaded."""
    from trimtab.models import depth_of
    from trimtab.training.fits import check_fits

    if hasattr(getattr(args.recipe, "objective", None), "differences"):
        check_fits(args.recipe, depth_of(args.model))


def _agree(args: Args) -> None:
    """Raise ConfigError where there are no pairs, or pairs and personas, or the dial cannot be trained."""
    from trimtab.training.fits import check_fits

    check_fits(args.recipe)
    personas = args.persona_positive or args.persona_negative
    if bool(args.pairs) == bool(personas):
        raise ConfigError(
            "fit: give --pairs SPEC, or --persona-positive TEXT and --persona-negative TEXT"
        )
    if personas and (args.holdout is not None or args.columns or args.skip_bad):
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

    with tempfile.TemporaryDirectory() as aside, models.reading(model):
        before = os.environ.get("TRIMTAB_CACHE")
        os.environ["TRIMTAB_CACHE"] = aside
        try:
            if named.trained:
                encoded: Any = encode(data, tokenizer, **args.how)
            else:
                encoded = encode_poles(named.recipe, data, tokenizer, **args.how)
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
    words, kind = beside_flags(words, "dial.kind")
    if kind is not None:
        from trimtab.training.recipes import on_dial

        named = replace(named, recipe=on_dial(named.recipe, kind))
    typed = with_settings(Args, recipe=named.kind)
    default = typed(recipe=named.recipe, out=tyro.MISSING)
    verb = f"fit {named.name}"
    beside = ("dial.kind",)
    return parse(
        typed, words, verb=verb, about=named.what, default=default, beside=beside, agree=_agree
    )
