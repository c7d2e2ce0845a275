"""`trimtab explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.bounds import Count
from trimtab.cli.parse import parse
from trimtab.cli.ready import alpha_of, check_model, read_dials, warn_range
from trimtab.errors import ConfigError, DataError


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
    prompt_style: Literal["auto", "plain", "chat"] = "auto"
    """`chat`: in the model's chat template; `auto`: where there is one."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
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
    check_model(args.model, args.dtype, args.device)
    (dial,) = read_dials([args.dial], args.model, args.force)
    if dial.kind == "reward":
        raise ConfigError(f"--dial {args.dial}: a reward dial ranks answers and moves no token")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trimtab import models
    from trimtab.evaluate.explain import explain
    from trimtab.progress import Progress

    warn_range([dial], [alpha], Progress().say)
    model, tokenizer = models.load(args.model, dtype=args.dtype, device=args.device)
    dial.to(next(model.parameters()).device)
    steps = explain(
        model,
        tokenizer,
        dial,
        args.prompt,
        alpha,
        steps=args.steps,
        top=args.top,
        prompt_style=args.prompt_style,
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
