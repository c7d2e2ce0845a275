"""`trimtab calibrate DIAL`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from trimtab.bounds import Count, Positive
from trimtab.cli.parse import parse
from trimtab.cli.ready import check_model, read_dials
from trimtab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trimtab.evaluation.calibration import End


@dataclass(frozen=True)
class Args:
    """Flags."""

    dial: Annotated[str, Positional]
    """The dial's folder, into which the range is written."""
    budget: str = "kl=0.1"
    """Damage that is allowed: mean KL from the bare model, in nats a token."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    text: Path | None = None
    """A text file of held-out passages, an empty line between (default: neutral passages that
    `evaluate` does not use)."""
    passages: Count | None = None
    """The first so many passages."""
    largest: Positive = 8.0
    """Alphas beyond this are not tried."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    force: bool = False
    """Go on although the dial was made for another base model."""
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Find the range, write it into the dial, say it."""
    args = parse(
        Args, words, verb="calibrate", about="How far a dial may be turned within a budget."
    )
    from trimtab import models
    from trimtab.evaluation import NeutralText, calibrate, parse_budget
    from trimtab.progress import Progress

    budget = parse_budget(args.budget)
    passages = _passages(args)
    check_model(args.model, args.dtype, args.device, args.load_in)
    (dial,) = read_dials([args.dial], args.model, args.force)
    if not (Path(args.dial) / "dial.json").is_file():
        raise ConfigError(f"{args.dial}: expected a saved dial's folder, to write the range into")
    progress = Progress(args.quiet)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    dial.to(next(model.parameters()).device)
    text = NeutralText(model, tokenizer, passages)
    found = calibrate(text, dial, budget, largest=args.largest, force=args.force)
    dial.info.measured = {**dial.info.measured, "range": found.note()}
    dial.save_measured(args.dial)
    print(f"{args.dial}: alpha {found.down.alpha:.3g} to {found.up.alpha:.3g} within {args.budget}")
    for name, end in (("down", found.down), ("up", found.up)):
        print(f"  {name}: {_line(end, args.largest)}")


def _line(end: End, largest: float) -> str:
    if not end.reached:
        return f"the budget is not met up to {largest:g} (KL {end.kl:.3g} there)"
    return f"{end.alpha:.3g} [{end.low:.3g}, {end.high:.3g}], KL {end.kl:.3g}"


def _passages(args: Args) -> list[str]:
    from trimtab.evaluation.calibration import passages_of
    from trimtab.pairs.neutral import NEUTRAL

    if args.text is None:
        found = list(NEUTRAL[len(NEUTRAL) // 2 :])
    else:
        try:
            found = list(passages_of(args.text.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{args.text}: cannot be read as text ({error})") from error
    found = found[: args.passages] if args.passages is not None else found
    if len(found) < 2:
        raise DataError(
            f"{args.text or 'neutral text'}: {len(found)} passages; two or more are needed, with "
            "an empty line between"
        )
    return found
