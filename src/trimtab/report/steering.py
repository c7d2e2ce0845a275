"""The page of `trimtab dose`: every way to steer, by trait, in tables, a figure, and words that the
dials made the model say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.report import wording
from trimtab.report.blocks import (
    Block,
    Figure,
    On,
    Page,
    Section,
    Table,
    Text,
    listed,
    plain,
    reading,
)
from trimtab.report.doses import RANDOM, Cell, Doses, name_of
from trimtab.report.looks import CONTROLS, looks_of
from trimtab.report.steering_figures import key, legend, panels
from trimtab.report.tables import versions
from trimtab.study.reading import runs_in
from trimtab.study.results import PERSONA, Difference

SHOWN = ("mean", "rotation", PERSONA)
"""Cells whose generations are on the page, beside the best one's."""


def page(folder: Path) -> Page | None:
    """The page over every trait in `folder`, or over the one that it is; None where there is none."""
    found = [Doses(each) for each in runs_in(folder, "steering")]
    return steering_page(found) if found else None


def steering_page(found: Sequence[Doses]) -> Page:
    """The page."""
    first = found[0].about
    splits = first.splits
    about = (
        f"`{plain(wording.model(first.model))}`; each method learns from {first.train_pairs} "
        "suffixes that a persona with the trait and one without it might say, and is measured on "
        f"{splits['test'].items} questions that share nothing with them. A question has an answer that "
        "shows the trait and one that does not; the log-ratio is the difference of their mean "
        f"log-probs, in nats a token. Damage is KL from the bare model on {splits['neutral'].items} "
        "neutral passages; every dial is turned to where it equals that of a system prompt with the "
        "persona, and measured there, at twice that α, and at the opposites. Intervals are 95 %, over "
        "questions and passages, each for itself: nothing is adjusted for the number of methods."
    )
    slopes = (
        "Nats a token of log-ratio for one root nat of damage, with 95 % intervals; bold where it lies "
        "above the random directions, each turned the way it leans. The last column: processor seconds "
        "of fitting, the mean over traits."
    )
    drawn, names = panels(found), legend(found)
    shown = "Shift of the log-ratio and rise of NLL over damage, by trait"
    caption = "Left of 0 is negative α, or the opposite persona. Grey: random directions."
    blocks: list[Block] = [
        Text(about),
        listed([_headline(d) for d in found]),
        Figure([*drawn, key(names)], shown, caption, 2, on=On.MARKDOWN),
        Figure(drawn, shown, caption, 2, list(names), On.HTML),
        Section("Slopes", [Text(slopes), _overview(found)]),
    ]
    for doses in found:
        parts = [Text(_about(doses)), _table(doses), *_said(doses)]
        blocks.append(Section(doses.trait.capitalize(), parts))
    blocks.append(Section("How to read the table", [reading("steering")]))
    blocks.append(Section("What was run", [Text(_ran(found))]))
    rows = {c.name: c.method for d in found for c in d.cells.values() if not c.half}
    methods = looks_of(rows) | {n: CONTROLS[m] for n, m in rows.items() if m in CONTROLS}
    title = "Steering: every method, at the damage of a prompt"
    return Page(title, blocks, "dose", methods | names)


# ---- parts --------------------------------------------------------------------------------------


def _headline(doses: Doses) -> str:
    """The answer for one trait."""
    best = doses.best
    if best is None:
        return f"**{doses.trait}**: nothing could be measured."
    names = [c.name for c in doses.methods if _clear(doses.against(c.name, RANDOM))]
    above = [c.name for c in doses.methods if _clear(doses.against(c.name, PERSONA, "swing"))]
    parts = [
        f"**{doses.trait}**: steepest is `{best.name}`, {_value(best, 'per_damage')} nats a "
        "token for a root nat of damage"
    ]
    if any(doses.against(c.name, RANDOM) for c in doses.methods):
        lie = "lies" if len(names) == 1 else "lie"
        parts.append(
            f"{len(names)} of {len(doses.methods)} methods {lie} clear of random directions"
            + (f" ({wording.join([f'`{n}`' for n in names])})" if 0 < len(names) < 5 else "")
        )
    if prompt := doses.cells.get(PERSONA):
        beat = wording.join([f"`{n}`" for n in above]) if above else "no method"
        parts.append(
            f"at its damage the prompt moves the log-ratio by {_value(prompt, 'swing')}, and {beat} "
            f"{'do' if len(above) > 1 else 'does'} clearly more"
        )
    return "; ".join(parts) + "."


def _overview(found: Sequence[Doses]) -> Table:
    """A row a method, a column a trait."""
    names = dict.fromkeys(c.name for d in found for c in d.cells.values() if not c.half)
    rows = []
    for name in names:
        cells = [d.cells.get(name) for d in found]
        took = [c.seconds for c in cells if c and c.seconds is not None]
        mean = sum(took) / len(took) if took else None
        slopes = [_slope(d, c) if c else wording.NOTHING for d, c in zip(found, cells, strict=True)]
        rows.append([plain(name), *slopes, wording.number(mean, 1)])
    return Table(["method", *(d.trait for d in found), "seconds"], rows)


def _slope(doses: Doses, cell: Cell) -> str:
    """The slope per unit damage, bold where it is clear of random directions."""
    text = _value(cell, "per_damage", value=wording.signed)
    return f"**{text}**" if _clear(doses.against(cell.name, RANDOM)) else text


def _about(doses: Doses) -> str:
    personas = doses.about.more["personas"]
    said = [
        f"Prompts: “{plain(personas['1.0'])}” and “{plain(personas['-1.0'])}”. Damage of the two, on "
        f"average: KL {wording.number(doses.about.equal_kl, 3)} nats a token."
    ]
    for d in doses.run.differences:
        if not d.against.endswith("-first") or d.metric != "per_damage":
            continue
        name = d.against.removesuffix("-first")
        said.append(
            f"Noise floor: `{name}` from one half of the suffixes and from the other differ by "
            f"{_difference(d)}."
        )
    return " ".join(said)


COLUMNS: dict[str, Callable[[Doses, Cell], str]] = {
    "method": lambda _, c: plain(c.name),
    "slope": lambda d, c: _slope(d, c),
    "swing": lambda _, c: _value(c, "swing", value=wording.signed),
    "− prompt's": lambda d, c: _difference(d.against(c.name, PERSONA, "swing")),
    "R²": lambda _, c: wording.number(c.value("r2")),
    "valid": lambda _, c: wording.number(c.value("valid")),
    "score": lambda _, c: _value(c, "score", value=wording.signed),
    "odd": lambda _, c: wording.number(c.value("antisymmetry")),
    "wrong way, %": lambda _, c: _value(c, "wrong_way", wording.share),
    "α": lambda _, c: (
        wording.alpha(c.figures["swing"].alpha) + ("" if c.reached else " (KL not met)")
    ),
    "published": lambda _, c: wording.number(c.value("published_score")),
    "seconds": lambda _, c: wording.number(c.seconds, 1),
}


def _table(doses: Doses) -> Table:
    cells = doses.cells.values()
    return Table([*COLUMNS], [[cell(doses, c) for cell in COLUMNS.values()] for c in cells])


def _said(doses: Doses) -> list[Block]:
    """Generations of a few cells at every dose; all of them lie in the folder."""
    best = doses.best
    names = list(dict.fromkeys([*([best.name] if best else []), *SHOWN]))
    rows = [g for n in names for g in doses.run.generations if name_of(g) == n]
    if not rows:
        return []
    prompt = rows[0].prompt
    body = [[name_of(g), wording.alpha(g.alpha), g.text] for g in rows if g.prompt == prompt]
    about = f"Asked “{plain(prompt)}”; the likeliest token each time. All: `generations.jsonl`."
    return [Text(about), Table(["method", "α", "answer"], body, (1, 2), words=True)]


def _ran(found: Sequence[Doses]) -> str:
    first = found[0].about
    lines = [
        f"- model `{plain(first.model)}`, digest `{first.model_digest}`",
        *(f"- `{d.about.train}`, `{d.about.splits['test'].spec}`" for d in found),
        f"- {versions(first)}; commit `{first.commit}`",
    ]
    commands = "\n".join(d.about.command for d in found if d.about.command)
    return "\n".join(lines) + (f"\n\n```\n{commands}\n```" if commands else "")


def _clear(difference: Difference | None) -> bool:
    """Whether a difference lies above 0 with its interval."""
    return difference is not None and difference.low > 0


def _value(cell: Cell, metric: str, form: wording.Form = wording.number, **how: Any) -> str:
    """A value with its interval."""
    return wording.figure(cell.figures[metric], form, ", ", **how)


def _difference(line: Difference | None) -> str:
    return wording.figure(line, wording.number, ", ", value=wording.signed)
