"""`trimtab evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import UseAppendAction

from trimtab.bounds import Count, Strength
from trimtab.cli.parse import command, parse
from trimtab.cli.ready import (
    AS_IT_IS,
    OwnTable,
    check_model,
    read_condition,
    read_dials,
    read_pairs,
    under,
)
from trimtab.cli.study import show
from trimtab.errors import ConfigError
from trimtab.rendering.settings import USUAL, Rendering

if TYPE_CHECKING:
    from trimtab.dials import Dial


@dataclass(frozen=True)
class Args:
    """Flags."""

    out: Path
    """Folder for the result files and the page."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    dial: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A dial's folder or Hub id; repeat for several, each is evaluated on its own."""
    condition: Path | None = None
    """A condition (`fit-condition`), in whose prompts alone the vector dials are to act."""
    suite: str | None = None
    """A built-in suite or a YAML file, whose evaluation splits are used."""
    pairs: Annotated[tuple[str, ...], UseAppendAction] = ()
    """name=SPEC; repeat for several splits."""
    alpha: tuple[Strength, ...] = (1.0,)
    """Strengths; 0, the bare model, is always measured."""
    limit: Count | None = None
    """The first so many items of every split."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    table: Annotated[OwnTable, tyro.conf.arg(name="")] = AS_IT_IS
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    force: bool = False
    """Go on although a dial was made for another base model."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Measure, write the files, show the tables."""
    args = parse(
        Args, words, verb="evaluate", about="Accuracy and damage of dials, beside the bare model."
    )
    from trimtab import models
    from trimtab.evaluation.items import check_alphas
    from trimtab.progress import Progress
    from trimtab.report import write_page
    from trimtab.studies.compare.evaluation import check_names, evaluate
    from trimtab.study.files import free_folder
    from trimtab.study.suite import read_suite

    suite = read_suite(args.suite) if args.suite else None
    specs = dict(suite.evaluate) if suite else {}
    for name, spec in map(_named, args.pairs):
        if name in specs:
            raise ConfigError(f"--pairs {name}={spec}: there is a split {name!r} already")
        specs[name] = args.table.spec(spec)
    if not specs:
        raise ConfigError("evaluate: give --suite NAME or --pairs name=SPEC")
    check_names(specs)
    check_alphas(args.alpha)
    out = free_folder(args.out, "study.json")
    sets = {name: read_pairs(spec, args.data_root, args.limit) for name, spec in specs.items()}
    check_model(args.model, args.dtype, args.device, args.load_in)
    dials: dict[str, Dial] = {}
    given = read_dials(args.dial, args.model, args.force)
    under(given, read_condition(args.condition, args.model, args.force))
    for dial in given:
        method = dial.info.method or dial.kind
        count = sum(n.partition("-")[0] == method for n in dials)
        dials[method if not count else f"{method}-{count + 1}"] = dial
    progress = Progress(args.quiet)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    for dial in dials.values():
        dial.to(next(model.parameters()).device)
    lines = evaluate(
        model,
        tokenizer,
        dials,
        sets,
        alphas=args.alpha,
        out=out,
        suite=suite.name if suite else "",
        suite_digest=suite.digest if suite else "",
        limit=args.limit,
        max_length=args.max_length,
        prompt_style=args.prompt_style,
        rendering=args.rendering,
        command=command("evaluate", words),
        force=args.force,
        progress=progress,
    )
    if dials and any(alpha not in (0.0, 1.0) for alpha in args.alpha):
        _print_alphas(lines, list(specs))
    if not dials or 1.0 in args.alpha:
        show(out)
    else:
        print(f"page: {write_page(out)}")


def _print_alphas(lines: list[dict[str, Any]], splits: list[str]) -> None:
    """Accuracy and damage at every alpha; the tables of a run show alpha 1."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Accuracy, %, and damage on neutral text (nats a token) by α",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="",
        min_width=60,
    )
    table.add_column("method", no_wrap=True)
    for column in ("α", *splits, "KL", "NLL rise"):
        table.add_column(column, justify="right")
    found = {(r["method"], r["alpha"], r["split"], r["metric"]): r["value"] for r in lines}
    places = {key[:2] for key in found if key[3] == "accuracy"}
    for method, alpha in sorted(places, key=lambda place: (place[0] != "base", *place)):
        damage = [found.get((method, alpha, "neutral", m)) for m in ("kl", "nll_rise")]
        table.add_row(
            "bare model" if method == "base" else method,
            f"{alpha:g}",
            *(f"{100 * found[method, alpha, split, 'accuracy']:.1f}" for split in splits),
            *("–" if value is None else f"{value:.3f}" for value in damage),
        )
    Console().print(table)


def _named(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not equals or not name or not spec:
        raise ConfigError(f"--pairs {text}: expected name=SPEC, for example test=facts:test")
    return name, spec
