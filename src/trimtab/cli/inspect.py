"""`trimtab inspect (SPEC | DIAL_DIR)`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from trimtab.cli.flags import OnModel, WithPairs
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError, TrimtabError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.dials import Dial
    from trimtab.pairs import Pair, PairSet


@dataclass(frozen=True, kw_only=True)
class Args(WithPairs, OnModel):
    """Flags."""

    what: Annotated[str, Positional]
    """A spec of pairs, or a dial's folder."""
    other: str | None = None
    """Another spec, to count what both share."""
    bare: bool = False
    """Run the model on the pairs: one that has them all right leaves a dial nothing to gain."""
    layers: bool = False
    """Screen every block before fitting: do the pairs agree on a direction, does it tell other pairs apart,
    what does the logit lens read there."""
    pool: str = "completion"
    """With --layers, which positions of an answer are averaged: completion, last, last:K, predicting."""
    page: Path | None = None
    """With --layers, an HTML page of the table with a drawing."""


def main(words: list[str]) -> None:
    """Show pairs or a dial."""
    about = "Look at pairs, or at a saved dial."
    args = parse(Args, words, verb="inspect", about=about, agree=_agree)
    from rich.text import Text

    from trimtab import terminal

    if Path(args.what).is_dir():
        from trimtab.dials import Dial

        terminal.console().print(_table(Dial.from_pretrained(args.what)))
        return
    from trimtab import models
    from trimtab.pairs import read_pairs
    from trimtab.pairs.inspect import inspect_pairs, render
    from trimtab.rendering.show import rendered_pair
    from trimtab.terminal import visible

    pairs = args.read_pairs(args.what, args.limit)
    other = read_pairs(args.other, args.data_root) if args.other else None
    tokenizer = models.load_tokenizer(args.model)
    found = inspect_pairs(pairs, tokenizer, max_length=args.max_length, other=other)
    if args.bare:
        found["bare"] = _bare(args, pairs)
    console = terminal.console()
    console.print(render(found))
    if pairs:
        title = (
            f"the first pair as {args.model} is given it ({_style(pairs[0], args.prompt_style)})"
        )
        console.print("", Text(title, style="bold"), sep="\n")
        try:
            console.print(rendered_pair(pairs[0], tokenizer, args.prompt_style, args.rendering))
        except TrimtabError as error:  # what is wrong with it is what this verb is asked for
            console.print(Text(f"not rendered: {visible(str(error))}", style="red"))

    if args.layers:
        _layers(args, pairs, console)


def _agree(args: Args) -> None:
    """Raise ConfigError where flags of --layers stand without it, or the pool is none."""
    from trimtab.readout import last_tokens

    last_tokens(args.pool)
    if not args.layers and (args.page or args.pool != "completion"):
        raise ConfigError("inspect: --page and --pool go with --layers")


def _layers(args: Args, pairs: PairSet, console: Any) -> None:
    """The screens of every block, and the damage of the mean vector where it would sit."""
    from trimtab import models
    from trimtab.evaluation import NeutralText
    from trimtab.pairs.neutral import NEUTRAL
    from trimtab.report import render
    from trimtab.report.blocks import On
    from trimtab.report.screens import screens_page
    from trimtab.training.closed_form import fit_direction
    from trimtab.training.screens import best_site, screened
    from trimtab.training.steering import DirectionRecipe, encode_poles

    model, tokenizer = args.load()
    recipe = DirectionRecipe(pool=args.pool)
    encoded = encode_poles(recipe, pairs, tokenizer, **args.how)
    args.progress.rendered(pairs.name, len(pairs), encoded, args.max_length, models.context(model))
    screens, note = screened(model, encoded, pool=args.pool, progress=args.progress)
    said, neutral = [note] if note else [], NeutralText(model, tokenizer, NEUTRAL[:12])
    best = best_site(screens)
    for site in dict.fromkeys((best, models.n_layers(model) // 2)):
        dial = fit_direction(replace(recipe, sites=str(site)), model, encoded)
        kl = float(neutral.damage(dial, 1.0, force=True).kl.mean())
        said.append(
            f"the mean vector at block {site} costs {kl:.3f} nats a token of neutral text at alpha 1"
        )
    page = screens_page(pairs.name, args.model, screens, best, said)
    console.print("", render.console(page))
    if args.page:
        print(f"page: {render.write(page, args.page, On.HTML)}")


def _bare(args: Args, pairs: PairSet) -> str:
    """What the bare model makes of the pairs."""
    from trimtab.batching import encode
    from trimtab.evaluation import score
    from trimtab.pairs.inspect import ceiling

    model, tokenizer = args.load()
    encoded = encode(pairs, tokenizer, **args.how)
    found = score(model, encoded)
    return ceiling(float(found.accuracy.mean()), len(found.items))


def _style(pair: Pair, style: str) -> str:
    return "chat" if pair.conversational or style == "chat" else "plain"


def _table(dial: Dial) -> Table:
    """A saved dial: what it is, what it was made from and how, what it was measured to do."""
    from rich.table import Table

    info = dial.info
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def rows(name: str, values: Iterable[str]) -> None:
        for i, value in enumerate(values or ["–"]):
            table.add_row("" if i else name, value)

    count = sum(t.numel() for t in dial.tensors().values())
    rows("dial", [f"{info.method or 'unnamed'} ({dial.kind}, {count:,} parameters)"])
    digest = f" ({info.base_digest[:12]})" if info.base_digest else ""
    rows("base model", [f"{info.base_model or 'unnamed'}{digest}"])
    rows("pairs", [f"{spec} ({digest[:12]})" for spec, digest in info.data.items()])
    rows("seed", [str(info.seed)] if info.seed is not None else [])
    rows("settings", _settings(info.config))
    rows("measured", _settings(info.measured))
    rows("versions", [", ".join(f"{k} {v}" for k, v in info.versions.items())])
    return table


def _settings(values: dict[str, Any], prefix: str = "") -> list[str]:
    """`objective.beta 0.1` a line; what was not set is left out, figures by alpha go in a row."""
    lines: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and all(_is_number(k) for k in value):
            lines.append(f"{name}: " + ", ".join(f"{v} at {k}" for k, v in value.items()))
        elif isinstance(value, dict):
            lines += _settings(value, f"{name}.")
        elif isinstance(value, list):
            lines.append(f"{name} {', '.join(map(str, value))}")
        elif value is not None:
            lines.append(f"{name} {value}")
    return lines


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
