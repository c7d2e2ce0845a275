"""`trimtab generate`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import UseAppendAction

from trimtab.cli.parse import parse
from trimtab.cli.ready import check_model, read_dials
from trimtab.errors import ConfigError, DataError


def main(words: list[str]) -> None:
    """Continue prompts at several alphas and print them."""
    from trimtab.evaluate.generation import Sampling, generate
    from trimtab.evaluate.scores import check_alphas

    @dataclass(frozen=True)
    class Args:
        """Flags."""

        model: str = "smollm2-135m"
        """Hub id, folder, .gguf file, or smollm2-135m."""
        dial: Annotated[tuple[str, ...], UseAppendAction] = ()
        """A dial's folder or Hub id; repeat to use several at once."""
        alpha: tuple[float, ...] = (0.0, 1.0)
        """Strengths, all in one batch; 0 is the bare model."""
        prompt: Annotated[tuple[str, ...], UseAppendAction] = ()
        """A prompt; repeat for several."""
        prompts: Path | None = None
        """A text file with a prompt a line."""
        prompt_style: Literal["auto", "plain", "chat"] = "auto"
        """`chat`: in the model's chat template; `auto`: where there is one."""
        sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
        dtype: str = "auto"
        """float32, bfloat16, float16, or auto."""
        device: str = "auto"
        """A torch device, or auto."""
        force: bool = False
        """Go on although a dial was made for another base model."""

    args = parse(
        Args, words, verb="generate", about="Continue prompts at several strengths of a dial."
    )
    prompts = list(args.prompt)
    if args.prompts is not None:
        if not args.prompts.is_file():
            raise DataError(f"{args.prompts}: no such file")
        prompts += [
            line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    if not prompts:
        raise ConfigError("generate: give --prompt TEXT or --prompts FILE")
    if not all(prompt.strip() for prompt in prompts):
        raise DataError("a prompt is empty")
    check_alphas(args.alpha)
    check_model(args.model, args.dtype, args.device)
    dials = read_dials(args.dial, args.model, args.force)
    from trimtab.dials import Composed, conflicts

    together = Composed([(d, 1.0) for d in dials]) if len(dials) > 1 else None
    for found in conflicts(dials):
        first, second = args.dial[found.first], args.dial[found.second]
        print(f"{first} and {second}: {found}", file=sys.stderr)
    from rich.console import Console
    from rich.text import Text

    from trimtab import models

    model, tokenizer = models.load(args.model, dtype=args.dtype, device=args.device)
    dial = None
    if dials:
        dial = together or dials[0]
        dial.to(next(model.parameters()).device)
    done = generate(
        model,
        tokenizer,
        prompts,
        dial,
        args.alpha,
        sampling=args.sampling,
        prompt_style=args.prompt_style,
        force=args.force,
    )
    console = Console()
    last = None
    for g in done:
        if g.prompt != last:
            console.print(Text(f"\n{g.prompt}", style="bold"))
            last = g.prompt
        console.print(Text.assemble((f"alpha {g.alpha:g}: ", "dim"), g.text.strip()))
