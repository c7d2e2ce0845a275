"""`trimtab evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction

from trimtab.bounds import Count, OptionalFile, Positive
from trimtab.cli.flags import Alpha, FromTrunk, OnModel, WithCondition, WithPairs, place_of
from trimtab.cli.parse import command, parse
from trimtab.cli.study import show
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.dials import Dial


@dataclass(frozen=True, kw_only=True)
class Args(WithCondition, WithPairs, FromTrunk, OnModel):
    """Flags."""

    out: Path
    """Folder for the result files and the page."""
    suite: str | None = None
    """A built-in suite or a YAML file, whose evaluation splits are used."""
    pairs: Annotated[tuple[str, ...], UseAppendAction] = ()
    """name=SPEC; repeat for several splits."""
    alpha: tuple[Alpha, ...] = (1.0,)
    """Strengths: numbers, or none, light, standard, strong, maximum; 0, the bare model, is always
    measured."""
    panel: OptionalFile = None
    """Measure what else each dial changes, at α = 1 and at equal damage, beside a random direction: a YAML
    file of properties, by default the built-in panel."""
    panel_items: Count = 300
    """At most so many items of a property."""
    panel_kl: Positive = 0.1
    """Damage at which dials are compared on the panel: mean KL on neutral text, in nats a token."""


def main(words: list[str]) -> None:
    """Measure, write the files, show the tables."""
    about = "Accuracy and damage of dials, each on its own, beside the bare model."
    args = parse(Args, words, verb="evaluate", about=about)
    from trimtab.evaluation.items import check_alphas
    from trimtab.pairs import read_pairs
    from trimtab.store import Store
    from trimtab.studies.compare.evaluation import check_names, evaluate
    from trimtab.study.files import free_folder
    from trimtab.study.results import RUN
    from trimtab.study.suite import read_suite

    suite = read_suite(args.suite) if args.suite else None
    specs = dict(suite.evaluate) if suite else {}
    for name, spec in map(_named, args.pairs):
        if name in specs:
            raise ConfigError(f"--pairs {name}={spec}: there is a split {name!r} already")
        specs[name] = args.spec(spec)
    if not specs and args.panel is None:
        raise ConfigError("evaluate: give --suite NAME or --pairs name=SPEC, or --panel")
    if specs:
        check_names(specs)
    check_alphas(args.alpha)
    out = free_folder(args.out, *RUN)
    sets = {n: read_pairs(spec, args.data_root, limit=args.limit) for n, spec in specs.items()}
    panel = None
    if args.panel is not None:
        if not args.dial:
            raise ConfigError(
                "evaluate --panel: give --dial DIR, whose side effects are to be measured"
            )
        from trimtab.panel import read_items, read_panel

        panel = read_items(read_panel(args.panel), args.panel_items, args.data_root)
    args.check_model()
    dials: dict[str, Dial] = {}
    for text, dial in zip(args.dial, args.conditioned(), strict=True):
        name, place = place_of(text)
        method = name if place != text else dial.info.method or dial.kind
        count = sum(n.partition("-")[0] == method for n in dials)
        dials[method if not count else f"{method}-{count + 1}"] = dial
    model, tokenizer = args.load(*dials.values())
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
        **args.how,
        panel=panel,
        panel_kl=args.panel_kl,
        command=command("evaluate", words),
        force=args.force,
        store=Store(trunk=args.trunk == "auto"),
        progress=args.progress,
    )
    if specs and dials and any(alpha not in (0.0, 1.0) for alpha in args.alpha):
        _print_alphas(lines, list(specs))
    show(out)


def _print_alphas(lines: list[dict[str, Any]], splits: list[str]) -> None:
    """Accuracy and damage at every alpha; the tables of a run show alpha 1."""
    from rich import box
    from rich.table import Table

    from trimtab import terminal

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
    places = {key[:2] for key in found if key[3] == "accuracy" and key[2] in splits}
    for method, alpha in sorted(places, key=lambda place: (place[0] != "base", *place)):
        damage = [found.get((method, alpha, "neutral", m)) for m in ("kl", "nll_rise")]
        table.add_row(
            "bare model" if method == "base" else method,
            f"{alpha:g}",
            *(f"{100 * found[method, alpha, split, 'accuracy']:.1f}" for split in splits),
            *("–" if value is None else f"{value:.3f}" for value in damage),
        )
    terminal.console().print(table)


def _named(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not equals or not name or not spec:
        raise ConfigError(f"--pairs {text}: expected name=SPEC, for example test=facts:test")
    return name, spec
