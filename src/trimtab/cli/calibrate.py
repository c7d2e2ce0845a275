"""`trimtab calibrate --dial DIAL`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.bounds import Count, OptionalFile, Positive
from trimtab.cli.flags import Forced, FromTrunk, OnModel
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trimtab.dials import Dial
    from trimtab.evaluation.calibration import End


@dataclass(frozen=True, kw_only=True)
class Args(Forced, FromTrunk, OnModel):
    """Flags."""

    dial: str
    """The dial's folder, into which the range is written."""
    budget: str = "kl=0.1"
    """What is allowed. kl=NATS: mean KL from the bare model on neutral text. kl_p95_rollout=NATS: its 95th
    percentile over tokens of the dialled model's own answers. panel.PROPERTY=-POINTS: what a property of a
    panel may lose at most, by the lower end of its interval."""
    panel: OptionalFile = None
    """A YAML file of properties, for budgets of panel.PROPERTY (default: the built-in panel)."""
    panel_items: Count = 300
    """At most so many items of the property."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
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
    from trimtab.panel.budgets import parse_budget as parse_other

    if found := parse_other(args.budget):
        return _of_panel(args, *found)
    budget = parse_budget(args.budget)
    passages = _passages(args)
    args.check_model()
    with held(args.dial):  # two of them would each leave out what the other found
        dial = _saved(args)
        model, tokenizer = args.load(dial)
        text = NeutralText(model, tokenizer, passages, trunk=args.trunk == "auto")
        found = calibrate(text, dial, budget, largest=args.largest, force=args.force)
        dial.info.measured = {**dial.info.measured, "range": found.note()}
        dial.save_measured(args.dial)
    print(f"{args.dial}: alpha {found.down.alpha:.3g} to {found.up.alpha:.3g} within {args.budget}")
    for name, end in (("down", found.down), ("up", found.up)):
        print(f"  {name}: {_line(end, args.largest)}")


def _of_panel(args: Args, name: str, most: float) -> None:
    """Budgets that have to hold at every alpha that is measured."""
    from trimtab.holding import held
    from trimtab.panel import PanelOn, read_items, read_panel
    from trimtab.panel.budgets import ROLLOUT, panel_range, property_of, rollout_range
    from trimtab.panel.run import of_any_base

    if args.text is not None or args.passages is not None:
        raise ConfigError("calibrate: --text and --passages go with a budget of kl=NATS")
    one, metric, panel = None, "", None
    if name != ROLLOUT:
        one, metric = property_of(read_panel(args.panel), name)
        panel = read_items([one], args.panel_items, args.data_root)
    args.check_model()
    with held(args.dial):
        dial = _saved(args)
        model, tokenizer = args.load(dial)
        turned = of_any_base(dial) if args.force else dial
        if one is None or panel is None:
            found = rollout_range(model, tokenizer, turned, most, largest=args.largest)
        else:
            on = PanelOn(model, tokenizer, panel, progress=args.progress)
            found = panel_range(on, turned, one.name, most, metric=metric, largest=args.largest)
        budgets = {**dial.info.measured.get("budgets", {}), name: found.note()}
        dial.info.measured = {**dial.info.measured, "budgets": budgets}
        dial.save_measured(args.dial)
    down, up = found.alpha
    print(f"{args.dial}: alpha {down:.3g} to {up:.3g} within {found.budget} ({found.measured_on})")
    for side, alpha, reached in zip(("down", "up"), found.alpha, found.reached, strict=True):
        point = found.at(alpha)
        beyond = "" if reached else f"; held up to {args.largest:g}, beyond which none was tried"
        print(
            f"  {side}: {alpha:.3g}, {point.value:.3g} [{point.low:.3g}, {point.high:.3g}]{beyond}"
        )


def _saved(args: Args) -> Dial:
    """The dial, which is in a folder of its own."""
    (dial,) = args.read_dials(args.dial)
    if not (Path(args.dial) / "dial.json").is_file():
        raise ConfigError(f"{args.dial}: expected a saved dial's folder, to write the range into")
    return dial


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
