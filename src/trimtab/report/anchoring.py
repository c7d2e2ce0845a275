"""Pages of the anchoring experiments: one self-contained HTML page a run, one Markdown page over all
of them. Made from result files; nothing is computed but medians for tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex
from safetensors import SafetensorError
from safetensors.numpy import load_file

from trimtab.errors import TrimtabError
from trimtab.report import anchoring_figures as drawings
from trimtab.report import figures, wording
from trimtab.report.anchoring_canvas import Run
from trimtab.report.anchoring_published import NAMED
from trimtab.report.files import write_text
from trimtab.report.html import render
from trimtab.report.markdown import _plain, _table


class Gate(Protocol):
    """A bound that a run was held against."""

    @property
    def what(self) -> str:
        """What is measured."""
        ...

    @property
    def value(self) -> Any:
        """The number."""
        ...

    @property
    def bound(self) -> str:
        """The bound as text."""
        ...

    @property
    def published(self) -> str:
        """The figure of the original series."""
        ...

    @property
    def stretch(self) -> bool:
        """Aimed for; missing it fails nothing."""
        ...

    @property
    def over(self) -> Sequence[float]:
        """A value a seed, where the value is their median."""
        ...

    @property
    def passed(self) -> bool:
        """Whether the value is within the bound."""
        ...


@dataclass(frozen=True)
class Table:
    """A table of text."""

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = ()
    """Columns that are words, not figures."""


def read_run(folder: Path) -> Run:
    """An experiment's result files, those for figures alone where they are kept.

    Raises TrimtabError where the result is missing, or a file is damaged.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if (folder / "curves.json").is_file():
            result |= json.loads((folder / "curves.json").read_text(encoding="utf-8"))
        arrays = folder / "arrays.safetensors"
        arrays = load_file(arrays) if arrays.is_file() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise TrimtabError(f"{folder}: not the result of an experiment: {error}") from error
    return Run(folder.name, result, arrays)


def write_anchoring_page(folder: Path, gates: Sequence[Gate]) -> Path:
    """Write a run's page, `report.html` in its folder; gives its path."""
    run = read_run(folder)
    path = folder / "report.html"
    write_text(path, page(run, gates))
    return path


def page(run: Run, gates: Sequence[Gate]) -> str:
    """A run as one HTML page."""
    return render(
        "anchoring.html",
        name=run.name,
        title=run.result["title"],
        about=run.result["about"],
        verdict=verdict(run, gates),
        tables=tables(run, gates),
        sections=drawings.sections(run),
        moving=drawings.animation(run),
        swatches=_swatches(run),
        facts=facts(run),
    )


def write_anchoring(
    root: Path, names: Sequence[str], gates: Mapping[str, Sequence[Gate]], out: Path
) -> Path:
    """Write the Markdown page over all runs, with one figure beside it; gives its path."""
    parts = [
        "# Anchoring: experiments",
        "Every experiment of the series and those that it left to do, over seeds, beside the "
        "published figures. How each works: [the guide](../anchoring.md). Rebuilt by "
        "`make results` from the files in `anchoring/`. The drawings of a run, of states, errors by "
        "colour and the way through training, need arrays that git does not keep: "
        "`trimtab anchor run NAME` makes them in `runs/anchoring/NAME`, and "
        "`trimtab anchor report NAME` a page of them.",
    ]
    runs = [read_run(root / name) for name in names]
    held = [(r, gates[r.name]) for r in runs if gates[r.name]]
    rows = [
        [
            f"[{_plain(r.name)}](#{_anchor(r)})",
            _plain(r.result["title"]),
            str(len(r.result["seeds"])),
            *(_share([g for g in found if g.stretch is aim]) for aim in (False, True)),
        ]
        for r, found in held
    ]
    parts.append(_table(["experiment", "what", "seeds", "gates passed", "aims reached"], rows, 2))
    panels = drawings.overview(runs)
    if panels:
        figure = out.with_suffix(".svg")
        write_text(figure, figures.sheet(panels))
        parts += [
            f"![Selectivity of deletions over seeds]({figure.name})",
            "Selectivity: the share of the error's variance, over colours, that likeness to what was "
            "removed explains. A dot a seed; the box spans the middle half, the line is the median.",
        ]
    for run in runs:
        parts += [
            f"## {_plain(run.name)}: {_plain(run.result['title'])}",
            _plain(run.result["about"]),
        ]
        if gates[run.name]:
            parts.append(_plain(verdict(run, gates[run.name])))
        for table in tables(run, gates[run.name]):
            numeric = [i for i in range(1, len(table.header)) if i not in table.text]
            parts += [
                f"**{_plain(table.title)}.** {_plain(table.caption)}",
                _table(
                    table.header,
                    [[_plain(c) for c in row] for row in table.rows],
                    min(numeric, default=len(table.header)),
                ),
            ]
        parts.append(_plain("; ".join(f"{k} {v}" for k, v in facts(run))))
    write_text(out, "\n\n".join(parts) + "\n")
    return out


def _share(gates: Sequence[Gate]) -> str:
    return f"{sum(g.passed for g in gates)} of {len(gates)}" if gates else "–"


def verdict(run: Run, gates: Sequence[Gate]) -> str:
    """How many gates a run passed, in a sentence."""
    if not gates:
        return "A figure: nothing is held against a bound."
    must, aims = ([g for g in gates if g.stretch is which] for which in (False, True))
    said = []
    for found, done, not_done in (
        (must, "gates passed", "missed"),
        (aims, "aims reached", "not reached"),
    ):
        missed = [g.what for g in found if not g.passed]
        if found:
            said.append(f"{len(found) - len(missed)} of {len(found)} {done}")
        if missed:
            said.append(f"{not_done}: {'; '.join(missed)}")
    return "; ".join(said) + "."


def tables(run: Run, gates: Sequence[Gate]) -> list[Table]:
    """Gates, distributions over seeds, errors of named colours; what else a run has to tell."""
    found = []
    if gates:
        found.append(
            Table(
                "Gates",
                "Bounds written down before the run, but where the log says otherwise; the published "
                "figure, where there is one.",
                ["gate", "value", "bound", "published", ""],
                [
                    [g.what, _value(g), g.bound, g.published or wording.NOTHING, _mark(g)]
                    for g in gates
                ],
                (4,),
            )
        )
    kind = run.result["kind"]
    if kind == "colour":
        found += _colour_tables(run)
    elif kind == "healing":
        found.append(_healing_table(run))
    for table in run.result.get("tables", []):
        found.append(
            Table(
                table["title"],
                table["caption"],
                table["header"],
                [[row[0], *map(_cell, row[1:])] for row in table["rows"]],
                table.get("text", ()),
            )
        )
    return found


def _colour_tables(run: Run) -> list[Table]:
    found, arms = [], run.result["arms"]
    if len(arms) <= 2:
        rows = []
        for arm, entry in arms.items():
            for key, s in entry["summary"].items():
                if key.startswith(("r2/", "recon", "geometry/red_cosine", "labelled/")) and s["n"]:
                    name = key if len(arms) == 1 else f"{arm}: {key}"
                    columns = ("mean", "sd", "min", "p10", "median", "p90", "max")
                    rows.append([name, *(_number(s[c]) for c in columns)])
        found.append(
            Table(
                "Over seeds",
                "Distributions; r2 is selectivity, labelled/… the samples that a label was drawn for.",
                ["", "mean", "sd", "min", "10 %", "median", "90 %", "max"],
                rows,
            )
        )
    cuts = [c for c in run.result["cuts"] if "pruning" not in c]
    if len(cuts) > 1 and len(arms) <= 2:
        first, best = run.result["best"]["arm"], run.result["best"]["index"]
        values, known = arms[first]["values"], NAMED.get(run.name, {})
        rows = []
        for i, colour in enumerate(run.result["colours"]):
            cells = [colour]
            for cut in cuts:
                column = np.asarray(values[f"named/{cut}"], float)[:, i]
                said = f"{np.median(column):.3f} ({column[best]:.3f})"
                theirs = known.get(cut, {}).get(colour)
                cells.append(said if theirs is None else f"{said}; {theirs:.3f}")
            rows.append(cells)
        found.append(
            Table(
                "Errors of named colours",
                "Mean squared error after each cut: median over seeds, and in brackets the best seed"
                + ("; then the published best seed's." if known else "."),
                ["colour", *cuts],
                rows,
            )
        )
    return found


def _healing_table(run: Run) -> Table:
    rows = []
    for kind, entry in run.result["kinds"].items():
        row = [kind, _number(float(np.median(entry["all colours"]["before"])))]
        for data in ("all colours", "reds alone"):
            steps = [np.inf if s is None else s for s in entry[data]["steps"]]
            middle = float(np.median(steps))
            row.append(
                f"{middle:.0f}"
                if np.isfinite(middle)
                else f"over {run.result['settings']['steps']}"
            )
            share = entry[data]["red_samples"]
            reds = float(np.median([np.inf if s is None else s for s in share]))
            row.append(f"{reds:.0f}" if np.isfinite(reds) else wording.NOTHING)
            row.append(f"{100 * entry[data]['recovered']:.0f} %")
        row.append(_number(float(np.median(entry["probe"]))))
        rows.append(row)
    return Table(
        "Coming back",
        "Error of red before any further training; then, by what is trained on, the median steps and "
        "samples of reds until its error stays below .01, and the share of seeds that get there; at "
        "last the R² of redness read linearly from the states that are left.",
        [
            "deletion",
            "red, before",
            *("all: steps", "reds seen", "back"),
            *("reds: steps", "reds seen", "back"),
            "probe R²",
        ],
        rows,
    )


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    r = run.result
    found = [("seeds", str(len(r["seeds"])) if r["seeds"] else wording.NOTHING)]
    if "samples" in r:
        found.append(("samples a seed", f"{r['samples']:,}"))
    if r.get("seconds"):
        found.append(("time", f"{r['seconds']['all']:.0f} s"))
    found.append(("versions", ", ".join(f"{k} {v}" for k, v in r["versions"].items())))
    found.append(("command", f"trimtab anchor run {run.name}"))
    return found


def _swatches(run: Run) -> dict[str, str]:
    names = run.result.get("colours", [])
    if len(names) != 17:
        return {}
    hues = [to_hex(tuple(hsv_to_rgb((i / 12, 1, 1)))) for i in range(12)]
    greys = [to_hex((v, v, v)) for v in (0, 0.25, 0.5, 0.75, 1)]
    return dict(zip(names, [*hues, *greys], strict=True))


def _mark(gate: Gate) -> str:
    return "pass" if gate.passed else "missed" if gate.stretch else "fail"


def _value(gate: Gate) -> str:
    """The number, and its range over seeds."""
    found = _number(gate.value)
    if len(gate.over) > 1:
        found += f" ({_number(min(gate.over))} to {_number(max(gate.over))})"
    return found


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return wording.NOTHING
    if value != value:
        return wording.NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}".replace("-", "−")
    return f"{value:.1e}".replace("-", "−")


def _anchor(run: Run) -> str:
    text = f"{run.name}: {run.result['title']}".lower()
    return "".join(c if c.isalnum() or c == "-" else "-" if c == " " else "" for c in text)
