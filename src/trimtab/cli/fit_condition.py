"""`trimtab fit-condition`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from trimtab.cli.flags import OnModel, WithTable
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError
from trimtab.rendering.settings import USUAL, Rendering

if TYPE_CHECKING:
    from trimtab.pairs.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Args(WithTable, OnModel):
    """Flags."""

    acting: str
    """Prompts in which a dial is to act: a file as for `generate --prompts`, or a spec of pairs, whose
    prompts are taken."""
    resting: str
    """Prompts in which it is to rest."""
    out: Path
    """Folder to save the condition in, for `--condition` of `fit`, `generate` and `evaluate`."""
    sites: str = "0.1..0.5"
    """Where it may read; the best of them is taken. It must come before where the dial acts."""
    over: Literal["prompt", "last"] = "prompt"
    """Average the prompt's tokens, or read its last."""
    prompt_style: Literal["auto", "plain", "chat"] = "auto"
    """`chat` wraps plain prompts in the model's chat template; `auto` does where there is one."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL


def main(words: list[str]) -> None:
    """Find a condition, save it, say how well it tells the prompts apart."""
    about = "Find in which prompts a dial is to act, from examples of both kinds."
    args = parse(Args, words, verb="fit-condition", about=about)
    from trimtab import models
    from trimtab.dials import DialInfo
    from trimtab.dials.conditions import NOTE, SavedCondition, save_condition
    from trimtab.provenance import versions
    from trimtab.training.condition import fit_condition

    acting, resting = (_prompts(args, name) for name in (args.acting, args.resting))
    if args.out.exists() and not (args.out / NOTE).is_file():
        raise ConfigError(f"{args.out}: exists and is no saved condition; choose another --out")
    args.check_model()
    model, tokenizer = args.load()
    auto = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    found = fit_condition(
        model,
        tokenizer,
        acting,
        resting,
        sites=args.sites,
        over=args.over,
        prompt_style=auto if args.prompt_style == "auto" else args.prompt_style,
        rendering=args.rendering,
    )
    source = models.source_of(model, tokenizer)
    info = DialInfo("condition", source.name, source.digest, source.parts, versions=versions())
    save_condition(args.out, SavedCondition(found.condition, info, found.balanced_accuracy))
    c = found.condition
    print(
        f"saved: {args.out}: acts where the cosine at site {c.site} is above {c.threshold:.3f}; of "
        f"{len(acting)} and {len(resting)} prompts, on the half it was not made from, balanced accuracy "
        f"{found.balanced_accuracy:.2f}"
    )
    use = f"--model {shlex.quote(args.model)} --dial DIR --condition {shlex.quote(str(args.out))}"
    print(f'Next:\n  trimtab generate {use} --prompt "..."')


def _prompts(args: Args, name: str) -> list[Prompt]:
    """Prompts of a file or of the pairs of a spec, each once."""
    from trimtab.errors import DataError
    from trimtab.pairs.prompts import prompts_of, read_prompts
    from trimtab.pairs.spec import parse_spec

    if Path(name).is_file():
        try:
            return read_prompts(Path(name))
        except DataError as error:
            try:
                parse_spec(name)
            except DataError:
                raise error from None
    return prompts_of(args.read_pairs(name))
