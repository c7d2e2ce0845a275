"""Pages of the anchoring experiments: one self-contained HTML page a run, one Markdown page over all
of them. Made from result files; nothing is computed but medians for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_hex
from safetensors import SafetensorError
from safetensors.numpy import load_file

from trimtab.config_files import read_yaml
from trimtab.errors import TrimtabError
from trimtab.report import anchoring_figures as drawings
from trimtab.report import wording
from trimtab.report.anchoring_canvas import Run
from trimtab.report.blocks import Block, Figure, Page, Section, Table, Text, code, listed, plain
from trimtab.report.looks import Look
from trimtab.study.records import read_json

Gate = Any
"""A bound and whether it was met: `studies.anchoring.gates`."""
NAMED: dict[str, dict[str, dict[str, float]]] = read_yaml(
    Path(__file__).with_name("anchoring_published.yaml")
)
"""The original series' errors, by experiment, cut and colour."""
Titled = tuple[str, Text, Table]
"""A table with its title and what it says."""


def _titled(
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: Sequence[int] = (),
) -> Titled:
    """`text` are columns of words."""
    first = next((i for i in range(1, len(header)) if i not in text), len(header))
    after = next((i for i in range(first, len(header)) if i in text), None)
    cells = [[plain(cell) for cell in row] for row in rows]
    return title, Text(plain(caption)), Table(header, cells, (first, after))


def read_run(folder: Path) -> Run:
    """An experiment's result files, those for figures alone where they are kept.

    Raises TrimtabError where the result is missing, or a file is damaged.
    """
    try:
        result = read_json(folder / "result.json")
        if (folder / "curves.json").is_file():
            result |= read_json(folder / "curves.json")
        if (folder / "costs.json").is_file():
            costs = read_json(folder / "costs.json")
            result["seconds"] = {"all": sum(cell["seconds"] for cell in costs.values())}
        arrays = folder / "arrays.safetensors"
        arrays = load_file(arrays) if arrays.is_file() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise TrimtabError(f"{folder}: not the result of an experiment: {error}") from error
    return Run(folder.name, result, arrays)


def page(run: Run, gates: Sequence[Gate]) -> Page:
    """A run, with every drawing for which its files are kept."""
    blocks: list[Block] = [
        Text(plain(run.result["about"]), lead=True),
        Text(plain(verdict(run, gates))),
    ]
    blocks += [Section(plain(title), parts) for title, *parts in tables(run, gates)]
    blocks += drawings.sections(run)
    missing = [name for name in ("arrays.safetensors", "curves.json") if not _kept(run, name)]
    if missing:
        files = wording.join([code(name) for name in missing])
        blocks.append(
            Text(
                f"Drawings that need {files} are left out: a run keeps these files, git does not; "
                f"`trimtab anchor run {run.name}` makes them again."
            )
        )
    ran = [
        f"{name}: {code(text) if name == 'command' else plain(text)}" for name, text in facts(run)
    ]
    blocks.append(Section("What was run", [listed(ran)]))
    title = f"{run.name}: {run.result['title']}"
    return Page(plain(title), blocks, "anchoring", _swatches(run))


def overview(judged: Sequence[tuple[Run, Sequence[Gate]]]) -> Page:
    """Every run in its tables."""
    about = Text(
        "Every experiment of the series and those that it left to do, over seeds, beside the "
        "published figures. How each works: [the guide](../anchoring.md). Rebuilt by "
        "`make results` from the files in `anchoring/`. The drawings of a run, of states, errors by "
        "colour and the way through training, need arrays that git does not keep: "
        "`trimtab anchor run NAME` makes them in `runs/anchoring/NAME`, and "
        "`trimtab anchor report NAME` a page of them."
    )
    rows = [
        [
            f"[{plain(r.name)}](#{_anchor(r)})",
            plain(r.result["title"]),
            str(len(r.result["seeds"])),
            *(_share([g for g in found if g.stretch is aim]) for aim in (False, True)),
        ]
        for r, found in judged
        if found
    ]
    drawn = Figure(
        drawings.overview([run for run, _ in judged]),
        "Selectivity of deletions over seeds",
        "Selectivity: the share of the error's variance, over colours, that likeness to what was "
        "removed explains. A dot a seed; the box spans the middle half, the line is the median.",
    )
    header = ["experiment", "what", "seeds", "gates passed", "aims reached"]
    blocks: list[Block] = [about, Table(header, rows, (2, None)), drawn]
    for run, gates in judged:
        parts: list[Block] = [Text(plain(run.result["about"]))]
        if gates or run.result.get("steps"):
            parts.append(Text(plain(verdict(run, gates))))
        for title, caption, table in tables(run, gates):
            parts += [Text(f"**{plain(title)}.** {caption.words}"), table]
        parts.append(Text(plain("; ".join(f"{k} {v}" for k, v in facts(run)))))
        blocks.append(Section(f"{plain(run.name)}: {plain(run.result['title'])}", parts))
    return Page("Anchoring: experiments", blocks)


def _kept(run: Run, name: str) -> bool:
    """Whether a file for drawings is there, or there is nothing that it could hold."""
    kind = run.result["kind"]
    if name == "arrays.safetensors":
        return bool(run.arrays) or kind in drawings.CELLS
    drawn = {"colour": "schedule", "mixing": "cosines"}
    return kind not in drawn or drawn[kind] in run.result


def _share(gates: Sequence[Gate]) -> str:
    return f"{sum(g.passed for g in gates)} of {len(gates)}" if gates else "–"


def verdict(run: Run, gates: Sequence[Gate]) -> str:
    """How many gates a run passed, in a sentence."""
    if not gates:
        steps = run.result.get("steps")
        short = f"A short run of {steps} steps: it proves nothing."
        return short if steps else "A figure: nothing is held against a bound."
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


def tables(run: Run, gates: Sequence[Gate]) -> list[Titled]:
    """Gates, distributions over seeds, errors of named colours; what else a run has to tell."""
    found = []
    if gates:
        found.append(
            _titled(
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
            _titled(
                table["title"],
                table["caption"],
                table["header"],
                [
                    [row[0], *(c if isinstance(c, str) else _number(c) for c in row[1:])]
                    for row in table["rows"]
                ],
                table.get("text", ()),
            )
        )
    return found


def _colour_tables(run: Run) -> list[Titled]:
    found, arms = [], run.result["arms"]
    if len(arms) <= 2:
        rows = []
        for arm, entry in arms.items():
            for key, values in entry["values"].items():
                if key.startswith(("r2/", "recon", "geometry/red_cosine", "labelled/")):
                    name = key if len(arms) == 1 else f"{arm}: {key}"
                    rows.append([name, *map(_number, spread(values))])
        found.append(
            _titled(
                "Over seeds",
                "Distributions; r2 is selectivity, labelled/… the samples that a label was drawn for.",
                ["", "mean", "sd", "min", "10 %", "median", "90 %", "max"],
                rows,
            )
        )
    named, known = run.result["named"], NAMED.get(run.name, {})
    if len(named) > 1 and len(arms) <= 2:
        rows = []
        for i, colour in enumerate(run.result["colours"]):
            cells = [colour]
            for cut, (median, best) in named.items():
                said = f"{median[i]:.3f} ({best[i]:.3f})"
                theirs = known.get(cut, {}).get(colour)
                cells.append(said if theirs is None else f"{said}; {theirs:.3f}")
            rows.append(cells)
        found.append(
            _titled(
                "Errors of named colours",
                "Mean squared error after each cut: median over seeds, and in brackets the best seed"
                + ("; then the published best seed's." if known else "."),
                ["colour", *named],
                rows,
            )
        )
    return found


def spread(values: Sequence[float | None]) -> list[float]:
    """Mean, standard deviation, least, 10 %, median, 90 % and largest of values over seeds."""
    x = np.array([v for v in values if v is not None], float)
    if not len(x):
        return 7 * [math.nan]
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9])
    return [x.mean(), x.std(ddof=1) if len(x) > 1 else 0.0, x.min(), low, middle, high, x.max()]


def _healing_table(run: Run) -> Titled:
    rows = []
    for kind, entry in run.result["kinds"].items():
        row = [kind, _number(float(np.median(entry["all colours"]["before"])))]
        for data in ("all colours", "reds alone"):
            steps = [np.inf if s is None else s for s in entry[data]["steps"]]
            middle = float(np.median(steps))
            beyond = f"over {run.result['settings']['steps']}"
            row.append(f"{middle:.0f}" if np.isfinite(middle) else beyond)
            share = entry[data]["red_samples"]
            reds = float(np.median([np.inf if s is None else s for s in share]))
            row.append(f"{reds:.0f}" if np.isfinite(reds) else wording.NOTHING)
            row.append(f"{100 * entry[data]['recovered']:.0f} %")
        row.append(_number(float(np.median(entry["probe"]))))
        rows.append(row)
    return _titled(
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


def _swatches(run: Run) -> dict[str, Look]:
    """The named colours themselves, before their names."""
    names = run.result.get("colours", [])
    if len(names) != 17:
        return {}
    hues = [to_hex(tuple(hsv_to_rgb((i / 12, 1, 1)))) for i in range(12)]
    greys = [to_hex((v, v, v)) for v in (0, 0.25, 0.5, 0.75, 1)]
    return {name: Look(colour, "s") for name, colour in zip(names, [*hues, *greys], strict=True)}


def _mark(gate: Gate) -> str:
    return "pass" if gate.passed else "missed" if gate.stretch else "fail"


def _value(gate: Gate) -> str:
    """The number, and its range over seeds."""
    found = _number(float(gate.value))
    if len(gate.over) > 1:
        found += f" ({_number(min(gate.over))} to {_number(max(gate.over))})"
    return found


def _number(value: float | None) -> str:
    if value is None or value != value:
        return wording.NOTHING
    form = ".4g" if value == 0 or 1e-3 <= abs(value) < 1e5 else ".1e"
    return f"{value:{form}}".replace("-", "−")


def _anchor(run: Run) -> str:
    text = f"{run.name}: {run.result['title']}".lower()
    return "".join(c if c.isalnum() or c == "-" else "-" if c == " " else "" for c in text)
