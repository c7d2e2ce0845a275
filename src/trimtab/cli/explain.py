"""`trimtab explain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from trimtab.bounds import Count
from trimtab.cli.parse import parse
from trimtab.cli.ready import alpha_of, check_model, read_dials, warn_range
from trimtab.errors import ConfigError, DataError
from trimtab.rendering import Rendering


@dataclass(frozen=True)
class Args:
    """Flags."""

    dial: str
    """The dial's folder or Hub id."""
    prompt: str
    """The prompt that is continued."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    alpha: str = "1"
    """Strength: a number, or none, light, standard, strong, maximum."""
    steps: Count = 12
    """At most so many tokens."""
    top: Count = 5
    """So many promoted and so many demoted tokens a step."""
    system: str | None = None
    """A system text before it."""
    prompt_style: Literal["auto", "plain", "chat"] | None = None
    """`chat`: in the model's chat template; `auto`: where there is one. By default as the dial was
    fitted, `auto` where it does not say."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = field(default_factory=Rendering)
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    force: bool = False
    """Go on although the dial was made for another base model."""


def main(words: list[str]) -> None:
    """Show a table, a row a token."""
    about = "The tokens that a dial promotes and demotes at each step of its continuation."
    args = parse(Args, words, verb="explain", about=about)
    alpha = alpha_of(args.alpha)
    if args.steps < 1 or args.top < 1:
        raise ConfigError("explain: expected --steps and --top of 1 or more")
    if not args.prompt.strip():
        raise DataError("a prompt is empty")
    check_model(args.model, args.dtype, args.device, args.load_in)
    (dial,) = read_dials([args.dial], args.model, args.force)
    if dial.kind == "reward":
        raise ConfigError(f"--dial {args.dial}: a reward dial ranks answers and moves no token")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trimtab import models
    from trimtab.evaluation.explain import explain
    from trimtab.evaluation.formats import format_for
    from trimtab.pairs.prompts import Prompt
    from trimtab.progress import Progress

    progress = Progress()
    warn_range([dial], [alpha], progress.say)
    rendering = args.rendering if args.rendering != Rendering() else None
    form = format_for([dial], args.prompt_style, rendering)
    if form.said:
        progress.say(form.said)
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    dial.to(next(model.parameters()).device)
    steps = explain(
        model,
        tokenizer,
        dial,
        Prompt(args.prompt, args.system),
        alpha,
        steps=args.steps,
        top=args.top,
        prompt_style=form.style,
        rendering=form.rendering,
        force=args.force,
    )
    table = Table(title=f"{args.prompt}  (alpha {alpha:g})", title_justify="left", box=None)
    for column in ("token", "bare model", "KL", "promoted (nats)", "demoted"):
        table.add_column(column)
    for step in steps:
        moved = (
            Text(" ".join(f"{s.token.strip() or repr(s.token)} {s.change:+.2f}" for s in shifts))
            for shifts in (step.promoted, step.demoted)
        )
        table.add_row(
            Text(repr(step.token)[1:-1]), Text(repr(step.bare)[1:-1]), f"{step.kl:.3f}", *moved
        )
    Console().print(table)
