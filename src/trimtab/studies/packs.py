"""A pack: one JSON file from which a study's figures are made again elsewhere, and what then differs.

It holds the study's settings with the YAML files that these name, digests of the model and the data,
versions, and every figure with a tolerance; no model, no data.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, TrimtabError
from trimtab.files import write_json, write_text
from trimtab.foreign import Malformed, parse_json
from trimtab.progress import SILENT, Progress
from trimtab.provenance import digest, versions
from trimtab.study.cells import PLAN, Host
from trimtab.study.files import free_folder
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.reading import read
from trimtab.study.records import fields_of, one, read_json
from trimtab.study.results import Difference
from trimtab.study.study import Study, run

FORMAT = 1
SHARE = 0.1
"""Of half a figure's 95 % interval: how far it may be off. Other machines round otherwise, which training
makes larger; a tenth is far below what the figure claims to know."""
RELATIVE = 1e-3
"""The same of a figure without an interval, of its size."""
LARGEST = 1_000_000
"""Bytes of a file of settings that is taken along."""
CODE = ("format", "made", "recipe")
"""Inputs of cells that say how, not of what: another version of trimtab has others."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Pack:
    """What a pack holds, beside `format` and `sha256`, the digest of these.

    Attributes:
        study: its name, or its package's.
        title: heading of the page.
        settings: of the study, as JSON values.
        files: texts of the YAML files that these name.
        inputs: what each cell depends on, by label.
        versions: of what the cells were made with.
        expected: by part, figures and verdicts with their tolerances.
    """

    study: str
    title: str
    settings: dict[str, Any]
    files: dict[str, str]
    inputs: dict[str, dict[str, Any]]
    versions: dict[str, str]
    expected: dict[str, dict[str, tuple[Any, ...]]]


def pack(run_folder: Path, out: Path, kind: type[Study[Any]], share: float = SHARE) -> Pack:
    """Write the pack of a finished run.

    Args:
        run_folder: of the run, its cells among it.
        kind: the study's class.
        share: of half an interval, as `SHARE`.

    Raises:
        TrimtabError: the run is not finished, is of an earlier version, or was made from Python with what no
            settings say; its data are not there any more. Nothing is written.
    """
    plan = plan_of(run_folder)
    asked, place = kind.read(plan["settings"]), run_folder.absolute()
    for _ in kind.folders(asked, ".")[0].parts:  # an experiment's lies in the study's
        place = place.parent
    study = kind(asked, place, Host())
    left = [cell for _, cell in _cells(study) if not cell.done]
    if left:
        raise ConfigError(
            f"{run_folder}: {len(left)} cells are not done with the data, model and version that are here, "
            f"the first of them {left[0].label}; run the study again over the same folder"
        )
    made = ((c.label, read_json(c.result)) for _, c in _cells(study) if c.result.suffix == ".json")
    found = [(label, file.get(VERSIONS, {})) for label, file in made if isinstance(file, dict)]
    settings = {
        **plan["settings"],
        **({"data_root": None} if "data_root" in plan["settings"] else {}),
    }
    content = {
        **{"study": plan["study"], "title": plan["title"], "settings": settings},
        "files": {name: Path(name).read_text("utf-8") for name in _named(settings)},
        "inputs": _inputs(study),
        VERSIONS: made_with(found)[0] or plan[VERSIONS],
        "expected": {
            part: {key: [v, _tolerance(v, ends, share)] for key, (v, *ends) in figures.items()}
            for part, figures in _figures(study).items()
        },
    }
    write_json(out, {"format": FORMAT, "sha256": digest(content), **content})
    return Pack(**content)


def plan_of(run_folder: Path) -> Json:
    """What a study wrote beside its cells.

    Raises:
        ConfigError: nothing.
    """
    file = run_folder / "cells" / PLAN
    if inner := sorted(f.parents[2] for f in run_folder.glob(f"*/cells/{PLAN}")):
        said = ", ".join(map(str, inner[:5]))
        raise ConfigError(f"{run_folder}: holds several runs, each with a pack of its own: {said}")
    if not file.is_file():
        raise ConfigError(
            f"{file}: missing. A study's run is packed from the folder that holds its cells, not from "
            "committed results; one made by an earlier version gets the file when the same command is given "
            "again (its cells are found), one made from Python with methods of its own cannot be packed"
        )
    return read_json(file)


def read_pack(file: Path) -> Pack:
    """A pack, checked.

    Raises:
        ConfigError: it cannot be read, is damaged, or was made by a newer version.
    """
    try:
        value = parse_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except Malformed as error:
        raise ConfigError(f"{error.at(file)}: no pack, or a damaged one ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise ConfigError(f"{file}: no pack; expected a file that trimtab pack wrote")
    if value["format"] > FORMAT:
        raise ConfigError(
            f"{file}: made by a newer version of trimtab ({_made_by(value)}): format {value['format']}, and "
            f"this version reads up to {FORMAT}; update trimtab"
        )
    content = {key: value[key] for key in fields_of(Pack) if key in value}
    if digest(content) != value.get("sha256"):
        raise ConfigError(f"{file}: damaged: its content is not what was written; fetch it again")
    return one(Pack, str(file), content)


def _made_by(value: Json) -> str:
    known = value.get(VERSIONS)
    return str(known.get("trimtab", "?"))[:40] if isinstance(known, dict) else "?"


@dataclass(frozen=True)
class Differs:
    """What is not as the pack has it: `data`, `model`, `version`, `setting` or `number`."""

    what: str
    where: str
    said: str


@dataclass(frozen=True)
class Reproduced:
    """What became of a pack.

    Attributes:
        differences: all of them.
        same, near, of: figures that are equal, others within their tolerance, all.
    """

    differences: list[Differs]
    same: int = 0
    near: int = 0
    of: int = 0


def reproduce(
    file: Path,
    out: Path,
    kind: type[Study[Any]],
    *,
    given: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    **how: Any,
) -> Reproduced:
    """Run a pack's study and hold its figures to the pack's. Where model or data are others, nothing is run:
    the figures would be of something else.

    Args:
        out: folder of the run, as of any study; a stopped one goes on.
        given: settings that are this machine's own: `model`, `data_root`, `device`.
        force: run all the same.
        how: as of `trimtab.study.study.run`.

    Raises:
        TrimtabError: as `read_pack`; data or model are not there (the text says where they were looked for);
            what stops a study.
    """
    content = read_pack(file)
    own = {k: v for k, v in (given or {}).items() if v is not None}
    if foreign := set(own) - set(content.settings):
        raise ConfigError(f"reproduce: {content.study} has no setting {min(foreign)!r}")
    fresh, stopped, out, here = not out.exists(), True, out.absolute(), versions()
    settings, texts = _here(content, out / "cells" / "settings")
    try:
        asked = kind.read({**settings, **own})
    except (TypeError, ValueError, AttributeError, LookupError, TrimtabError) as error:
        raise ConfigError(
            f"{file}: made by trimtab {_made_by(vars(content))}, whose settings this version does not "
            f"take: {error}"
        ) from error
    for folder in kind.folders(asked, out):
        free_folder(folder, *kind.marks)
    try:
        for name, text in texts.items():
            write_text(name, text)
        study = kind(asked, out, Host(progress))
        mine = _compared(content.inputs, _inputs(study), done=False)
        mine += [
            Differs("version", name, f"{theirs} in the pack, {here[name]} here")
            for name, theirs in content.versions.items()
            if here.get(name, theirs) != theirs
        ]
        stopped = bool({d.what for d in mine} & {"data", "model"}) and not force
    except TrimtabError as error:
        raise type(error)(f"{file}: {error}") from error
    finally:
        if fresh and stopped:
            shutil.rmtree(out, ignore_errors=True)
    if stopped:
        return Reproduced(mine)
    run(study, command=f"trimtab reproduce {file.name}", title=content.title, **how)
    later = _compared(content.inputs, _inputs(study), done=True)
    found = list(dict.fromkeys([*mine, *later]))
    same = near = of = 0
    figures = _figures(study)
    for part, expected in content.expected.items():
        got = figures.get(part, {})
        for key, (value, *tolerance) in expected.items():
            of += 1
            new = got[key][0] if key in got else "nothing"
            if new == value:
                same += 1
            elif _close(new, value, *tolerance):
                near += 1
            else:
                name = f"{part}: {key}" if part else key
                found.append(
                    Differs("number", name, f"{_shown(value, *tolerance[:1])}, here {_shown(new)}")
                )
    return Reproduced(found, same, near, of)


# ---- what a study is made of, and what it found --------------------------------------------------


def _cells(study: Study[Any]) -> Iterator[tuple[Any, Any]]:
    """The cells that are known by now, with their parts; later waves are known when these are done."""
    for part in study.parts:
        for wave in part.plan():
            yield from ((part, cell) for cell in wave)
            if not all(cell.done for cell in wave):
                break


def _inputs(study: Study[Any]) -> Json:
    """What cells depend on, by part and label; long values as digests."""
    found: Json = {}
    for part, cell in _cells(study):
        own = {
            k: v if len(json.dumps(v)) < 100 else f"sha256 {digest(v)}"
            for k, v in cell.inputs.items()
        }
        found[": ".join(filter(None, (_name(study, part), cell.label)))] = json.loads(
            json.dumps(own)
        )
    return found


def _name(study: Study[Any], part: Any) -> str:
    """A part by its folder in the study's."""
    place = getattr(part, "folder", part.out).relative_to(study.out)
    return "" if place == Path() else str(place)


def _compared(theirs: Json, mine: Json, *, done: bool) -> list[Differs]:
    """Inputs that are not the pack's, each said once.

    Args:
        done: every cell of the study is known.
    """
    found = []
    for label in dict.fromkeys([*theirs, *mine]):
        a, b = theirs.get(label), mine.get(label)
        if a is None or b is None:
            if done or a is None:
                where = "not in the pack" if a is None else "in the pack, not here"
                found.append(Differs("version", label, f"this cell is {where}"))
            continue
        for key in dict.fromkeys([*a, *b]):
            old, new = a.get(key), b.get(key)
            if old != new:
                digests = re.search(r"[0-9a-f]{64}", json.dumps([old, new]))
                what = "model" if key == "model" else "version" if key in CODE else ""
                what = what or ("data" if digests else "setting")
                found.append(Differs(what, key, f"{_shown(old)} in the pack, {_shown(new)} here"))
    return list(dict.fromkeys(found))


def _figures(study: Study[Any]) -> dict[str, dict[str, tuple[Any, float, float]]]:
    """Figures, differences and verdicts by part and place, each with the ends of its interval."""
    found: dict[str, dict[str, tuple[Any, float, float]]] = {}
    for part in study.parts:
        done = read(getattr(part, "folder", part.out))
        mine = found[_name(study, part)] = {}
        for line in (*done.measurements, *done.differences):
            against = getattr(line, "against", "")
            place = [
                f"{line.method} − {against}" if against else line.method,
                line.split,
                line.metric,
            ]
            place += [
                line.read_out or "",
                getattr(line, "against_read_out", None) or "",
                line.at or "",
            ]
            place += ["" if line.alpha is None or line.at else f"α {line.alpha:g}"]
            place += ["" if line.seed is None else f"seed {line.seed}"]
            key = ", ".join(filter(None, place))
            value = line.value if math.isfinite(line.value) else None
            mine[key] = (value, line.low, line.high)
            if isinstance(line, Difference) and line.verdict != "not judged":
                mine[f"{key}, verdict"] = (line.verdict, math.nan, math.nan)
    return found


def _tolerance(value: Any, ends: list[float], share: float) -> float | None:
    """How far a figure may be off; None for a word."""
    if not isinstance(value, float):
        return None
    half = (ends[1] - ends[0]) / 2
    return float(
        f"{max(share * half if math.isfinite(half) else 0, RELATIVE * abs(value), 1e-9):.3g}"
    )


def _close(new: Any, old: Any, tolerance: Any = None, *_: Any) -> bool:
    numbers = all(isinstance(x, float | int) for x in (new, old, tolerance))
    return numbers and abs(new - old) <= tolerance


def _shown(value: Any, tolerance: float | None = None) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.6g}" + (f" ± {tolerance:.3g}" if tolerance is not None else "")
    text = value if isinstance(value, str) else json.dumps(value)
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", text)
    return text if len(text) < 120 else f"{text[:117]}…"


# ---- files that settings name --------------------------------------------------------------------


def _named(value: Any) -> Iterator[str]:
    """YAML files among the values of settings."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _named(inner)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")):
        file = Path(value)
        if file.is_file() and file.stat().st_size <= LARGEST:
            yield value


def _here(content: Pack, folder: Path) -> tuple[Json, dict[Path, str]]:
    """The settings with the pack's files in a folder, each under its own name, and what to write there."""
    places = {
        name: folder / str(number) / (re.sub(r".*[/\\]|[^\w.-]", "", name).lstrip(".") or "file")
        for number, name in enumerate(content.files)
    }

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: moved(v) for k, v in value.items()}
        if isinstance(value, list):
            return [moved(v) for v in value]
        return str(places[value]) if isinstance(value, str) and value in places else value

    return moved(content.settings), {places[n]: text for n, text in content.files.items()}
