"""`trimtab explain`."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.bounds import Count
from trimtab.cli.flags import Alpha, Forced, OnModel, WithPrompts
from trimtab.cli.parse import parse
from trimtab.cli.ready import warn_range
from trimtab.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Args(Forced, WithPrompts, OnModel):
    """Flags."""

    dial: str
    """The dial's folder or Hub id."""
    prompt: str
    """The prompt that is continued."""
    alpha: Alpha = 1.0
    """Strength: a number, or none, light, standard, strong, maximum."""
    max_new_tokens: Count = 12
    """Longest continuation, in tokens."""
    top: Count = 5
    """So many promoted and so many demoted tokens a step."""


def main(words: list[str]) -> None:
    """Show a table, a row a token."""
    about = "The tokens that a dial promotes and demotes at each step of its continuation."
    args = parse(Args, words, verb="explain", about=about)
    if not args.prompt.strip():
        raise DataError("a prompt is empty")
    args.check_model()
    (dial,) = args.read_dials(args.dial)
    if dial.kind == "reward":
        raise ConfigError(f"--dial {args.dial}: a reward dial ranks answers and moves no token")
    from rich.table import Table
    from rich.text import Text

    from trimtab import terminal
    from trimtab.evaluation.explain import explain
    from trimtab.pairs.prompts import Prompt

    warn_range([dial], [args.alpha], args.progress.say)
    form = args.form([dial], args.progress)
    model, tokenizer = args.load(dial)
    steps = explain(
        model,
        tokenizer,
        dial,
        Prompt(args.prompt, args.system),
        args.alpha,
        steps=args.max_new_tokens,
        top=args.top,
        prompt_style=form.style,
        rendering=form.rendering,
        force=args.force,
    )
    table = Table(title=f"{args.prompt}  (alpha {args.alpha:g})", title_justify="left", box=None)
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
    terminal.console().print(table)
