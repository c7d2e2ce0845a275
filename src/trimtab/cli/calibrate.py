"""`trimtab calibrate --dial DIAL`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.bounds import Count, Positive
from trimtab.cli.flags import Forced, FromTrunk, OnModel
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trimtab.evaluation.calibration import End


@dataclass(frozen=True, kw_only=True)
class Args(Forced, FromTrunk, OnModel):
    """Flags."""

    dial: str
    """The dial's folder, into which the range is written."""
    budget: str = "kl=0.1"
    """Damage that is allowed: mean KL from the bare model, in nats a token."""
    text: Path | None = None
    """A text file of held-out passages, an empty line between (default: neutral passages that
    `evaluate` does not use)."""
    passages: Count | None = None
    """The first so many passages."""
    largest: Positive = 8.0
    """Alphas beyond this are not tried."""


def main(words: list[str]) -> None:
    """Find the range, write it into the dial, say it."""
    about = "How far a dial may be turned within a budget."
    args = parse(Args, words, verb="calibrate", about=about)
    from trimtab.evaluation import NeutralText, calibrate, parse_budget
    from trimtab.holding import held

    budget = parse_budget(args.budget)
    passages = _passages(args)
    args.check_model()
    with held(args.dial):  # two of them would each leave out what the other found
        (dial,) = args.read_dials(args.dial)
        if not (Path(args.dial) / "dial.json").is_file():
            raise ConfigError(
                f"{args.dial}: expected a saved dial's folder, to write the range into"
            )
        model, tokenizer = args.load(dial)
        text = NeutralText(model, tokenizer, passages, trunk=args.trunk == "auto")
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
