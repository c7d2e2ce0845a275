"""Result files of earlier versions, as the lines of this one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.study.records import read_json, read_lines
from trimtab.study.results import (
    ABOUT,
    COSTS,
    EQUAL_KL,
    INSTRUCTION,
    PERSONA,
    Row,
)

Placed = tuple[str, Any]
"""Where a line stands, and what it holds."""

LINES = {"ci_low": "low", "ci_high": "high"}
DIFFERENCES = {"baseline": "against", "difference": "value", **LINES}
HEADS = {"arm": "method", "difference": "value", "difference_low": "low", "difference_high": "high"}
METHODS = {"prompt": INSTRUCTION}
"""Names that meant two things."""


class OldRow(dict[str, Any]):
    """A line that answers to its old keys, too, and says so."""

    def __missing__(self, key: str) -> Any:
        if key not in LINES:
            raise KeyError(key)
        warnings.warn(f"the key {key!r} of a result line is now {LINES[key]!r}", stacklevel=2)
        return self[LINES[key]]


def is_old(run: Path) -> bool:
    """Whether a folder's files have an earlier spelling."""
    if (run / ABOUT).is_file():
        about = read_json(run / ABOUT)
        return isinstance(about, dict) and "study" not in about
    return (run / "heads.json").is_file() or (run / "dose.json").is_file()


def read(run: Path) -> dict[str, Any]:
    """What `reading.read` makes lines of: `study.json` with its place, and by file the lines."""
    try:
        if (run / "heads.json").is_file():
            return _heads(run)
        if (run / "dose.json").is_file():
            return _steering(run)
        return _compare(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise TrimtabError(
            f"{run}: its result files, of an earlier version, cannot be read ({type(error).__name__}: "
            f"{error}); the same command writes them again"
        ) from error


def _compare(run: Path) -> dict[str, Any]:
    file = run / ABOUT
    about = read_json(file)
    evaluated = not about.get("seeds") and "description" not in about
    about = {"study": "evaluate" if evaluated else "compare", **about}
    methods = about.get("methods")
    if isinstance(methods, dict):
        about["methods"] = {METHODS.get(k, k): v for k, v in methods.items()}
    common = {"model": about.get("model")}

    def lines(name: str, spelling: dict[str, str], **more: Any) -> Iterator[Placed]:
        for where, line in read_lines(run / name, needed=name == "results.jsonl"):
            yield where, _spelled(line, spelling, {**common, **more})

    first = next((line for _, line in read_lines(run / "results.jsonl")), None)
    if isinstance(first, dict):  # which said so on every line
        about = {**{k: first[k] for k in ("suite_digest", "commit") if k in first}, **about}
    several = _several(run / "results.jsonl")

    def results() -> Iterator[Placed]:
        for where, line in lines("results.jsonl", LINES):
            if isinstance(line, dict):
                line.setdefault("aggregate", line.get("seed") is None and _place(line) in several)
                line.setdefault("at", None)
                _within(line)
            yield where, line

    def differences() -> Iterator[Placed]:
        for name in ("verdicts.jsonl", "gains.jsonl"):
            own = {"seed": None, "metric": "accuracy", "suite": about.get("suite")}
            for where, line in lines(name, DIFFERENCES, **own):
                if isinstance(line, dict):
                    line.setdefault("aggregate", (line.get("seeds") or 1) > 1)
                yield where, line

    return {
        ABOUT: (str(file), about),
        "results.jsonl": results(),
        "verdicts.jsonl": differences(),
        "curves.jsonl": lines("curves.jsonl", {}),
        "generations.jsonl": lines("generations.jsonl", {}),
        COSTS: {
            METHODS.get(k, k): v
            for k, v in (read_json(run / COSTS) if (run / COSTS).is_file() else {}).items()
        },
    }


def _spelled(line: Any, spelling: dict[str, str], common: Row) -> Any:
    if not isinstance(line, dict):
        return line
    found = {**common, **{spelling.get(k, k): v for k, v in line.items()}}
    for key in ("method", "against"):
        if isinstance(found.get(key), str):
            found[key] = METHODS.get(found[key], found[key])
    return found


def _several(file: Path) -> set[tuple[Any, ...]]:
    """Places that have lines of seeds."""
    rows = [_spelled(line, {}, {}) for _, line in read_lines(file) if isinstance(line, dict)]
    return {_place(row) for row in rows if row.get("seed") is not None}


def _place(row: Row) -> tuple[Any, ...]:
    where = row.get("at") or row.get("alpha")
    return (row.get("method"), row.get("split"), row.get("metric"), where)


def _within(line: Row) -> None:
    """A t interval knew of no 0 and 1."""
    low, high = line.get("low"), line.get("high")
    if not str(line.get("metric")).startswith("accuracy"):
        return
    if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
        line["low"], line["high"] = max(low, 0.0), min(high, 1.0)


# ---- heads and rewards --------------------------------------------------------------------------


def _heads(run: Path) -> dict[str, Any]:
    about = read_json(run / "heads.json")
    kind, train, settings = about["kind"], about["train"], about["settings"]
    if kind not in ("rewards", "heads"):
        raise TrimtabError(f"{run / 'heads.json'}: its kind is {kind!r}, no known one")
    tests = {}
    for name, n in about["tests"].items():
        sizes = n if isinstance(n, dict) else {"items": n, "pairs": n, "dropped": 0}
        tests[name] = {"spec": name, **sizes}
    shared = ("title", "model", "model_digest", "dtype", "device", "threads", "settings", "commit")
    more = ("in_domain", "held_out", "largest_logit_change_by_a_frozen_head", "clock")
    more = (*more, "alpha_0_is_the_bare_model", "seconds_to_store", "cpu_seconds")
    made = {
        "study": kind,
        **{k: about[k] for k in (*shared, "versions", "command")},
        "suite": "",
        "train": settings.get("train", " + ".join(about.get("in_domain", ()))),
        "train_items": train["items"],
        "train_pairs": train["pairs"],
        "splits": tests,
        "methods": {},
        "seeds": settings["seeds"],
        "more": {k: about[k] for k in more if k in about},
    }
    made["more"] |= {"train_dropped": train["dropped"]} if "dropped" in train else {}
    made["more"] |= {"more_items": train["more items"]} if "more items" in train else {}
    common = {
        "model": about["model"],
        "suite": "",
        "alpha": None,
        "metric": "accuracy",
        "seed": None,
    }

    def placed(line: dict[Any, Any]) -> Row:
        line["at"] = "alpha_1" if line.get("alpha") in (None, 1.0, 0.0) else None
        line["aggregate"] = line.get("aggregate", line["seeds"] > 1)
        return line

    def lines(name: str, needed: bool = False) -> Iterator[tuple[str, Row]]:
        for where, line in read_lines(run / name, needed=needed):
            old = {**HEADS, **LINES} if "ci_low" not in line else {"arm": "method", **LINES}
            if name != "ablation.jsonl":
                yield where, placed({**common, **{old.get(k, k): v for k, v in line.items()}})
                continue
            yield where, {**line, "method": f"dph, {line['pooling']} × {line['loss']}"}

    def results() -> Iterator[Placed]:
        yield from lines("results.jsonl", needed=True)
        for where, line in lines("ablation.jsonl"):
            own = {k: line[k] for k in ("method", "split", "value", "seeds", "items")}
            ends = {"low": line["ci_low"], "high": line["ci_high"], "read_out": "reward"}
            yield where, placed({**common, **own, **ends})

    def differences() -> Iterator[Placed]:
        yield from lines("verdicts.jsonl")
        first = ""
        for where, line in lines("ablation.jsonl"):
            first = first or line["method"]
            if "p" in line:
                old = {k: v for k, v in line.items() if k not in ("value", "ci_low", "ci_high")}
                found = {HEADS.get(k, k): v for k, v in old.items()}
                both = {"against": first, "read_out": "reward", "against_read_out": "reward"}
                yield where, placed({**common, **found, **both})

    costs: dict[str, Row] = {}
    for _, line in read_lines(
        run / "rates.jsonl", needed=kind == "heads" and settings["new_tokens"]
    ):
        old = {"low": "of_base_low", "high": "of_base_high"}
        arm = line.pop("arm")
        costs[arm] = {old.get(str(k), str(k)): v for k, v in line.items()}
    for arm, seconds in about.get("seconds_to_train", {}).items():
        costs.setdefault(arm, {})["fit_seconds"] = seconds
    return {
        ABOUT: (str(run / "heads.json"), made),
        "results.jsonl": results(),
        "verdicts.jsonl": differences(),
        "curves.jsonl": (),
        "generations.jsonl": (),
        COSTS: costs,
    }


# ---- steering -----------------------------------------------------------------------------------

SUMMARIES = ("slope", "per_damage", "r2", "valid", "score", "antisymmetry", "wrong_way")
PUBLISHED = ("published_slope", "published_r2", "published_valid_fraction", "published_score")
POINTS = {
    "shift": "test",
    "kl": "neutral",
    "nll_rise": "neutral",
    "valid": "test",
    "dose": "neutral",
}
"""What a curve of steering has at every alpha, and where it was measured."""


def _steering(run: Path) -> dict[str, Any]:
    about = read_json(run / "dose.json")
    rows = [line for _, line in read_lines(run / "results.jsonl", needed=True)]
    trait, settings = about["trait"], about.get("settings", {})
    names = {r["name"]: (_method(r), _seed(r)) for r in rows}
    common = {"model": about["model"], "suite": trait}
    sizes = {"test": rows[0]["items"], "neutral": rows[0]["passages"]}

    def named(line: Row, key: str = "name") -> Row:
        method, seed = names[line[key]]
        return {**common, "method": method, "seed": seed, "aggregate": False}

    def figure(line: Row, metric: str, split: str = "test") -> Row:
        ends = {end: line.get(f"{metric}_{end}") for end in ("low", "high")}
        return {
            "split": split,
            "metric": metric,
            "value": line[metric],
            **ends,
            "items": sizes[split],
        }

    def results() -> Iterator[Placed]:
        for where, line in read_lines(run / "results.jsonl"):
            at = {"alpha": line["alpha"], "at": EQUAL_KL}
            yield where, {**named(line), **at, **figure(line, "swing")}
            none = {"alpha": None, "at": None}
            for metric in (*SUMMARIES, *PUBLISHED):
                yield where, {**named(line), **none, **figure(line, metric)}
        for where, line in read_lines(run / "curves.jsonl", needed=True):
            for metric, split in POINTS.items():
                at = {"alpha": line["alpha"], "at": None}
                yield where, {**named(line), **at, **figure(line, metric, split)}

    untested = {**dict.fromkeys(("p", "p_holm", "mde")), "verdict": "not judged"}
    untested |= {"in_this_run": True, "underpowered": True}

    def differences() -> Iterator[Placed]:
        for where, line in read_lines(run / "comparisons.jsonl", needed=True):
            rival = names.get(line["against"], (line["against"], None))[0]
            for metric, old in (("per_damage", "difference"), ("swing", "swing")):
                found = {
                    f"{metric}{k.removeprefix(old)}": v
                    for k, v in line.items()
                    if k.startswith(old)
                }
                at = {
                    "alpha": None,
                    "at": EQUAL_KL if metric == "swing" else None,
                    "against": rival,
                }
                yield where, {**named(line), **at, **figure(found, metric), "seeds": 1, **untested}

    def generations() -> Iterator[Placed]:
        for where, line in read_lines(run / "generations.jsonl", needed=True):
            rest = {k: v for k, v in line.items() if k != "name"}
            yield where, {**{k: v for k, v in named(line).items() if k != "suite"}, **rest}

    splits = {
        "test": {
            "spec": about["test"]["spec"],
            "items": sizes["test"],
            "pairs": sizes["test"],
            "dropped": 0,
        },
        "neutral": {
            "spec": "neutral passages",
            "items": sizes["neutral"],
            "pairs": 0,
            "dropped": 0,
        },
    }
    keys = ("seconds", "cpu_seconds")
    made = {
        "study": "steering",
        "title": f"Steering: {trait}",
        **{k: about[k] for k in ("model", "model_digest", "versions", "commit", "command")},
        "settings": settings,
        "suite": trait,
        "train": about["train"]["spec"],
        "train_items": about["train"]["pairs"],
        "train_pairs": about["train"]["pairs"],
        "splits": splits,
        "methods": {names[r["name"]][0]: r["kind"] for r in rows},
        "seeds": settings.get("random_seeds", []),
        "dtype": settings.get("dtype", "auto"),
        "device": settings.get("device", "auto"),
        "threads": settings.get("threads"),
        "notes": about.get("notes", []),
        "equal_kl": about["kl"],
        "more": {
            "personas": about["personas"],
            "not_reached": [r["name"] for r in rows if not r["reached"]],
        },
    }
    return {
        ABOUT: (str(run / "dose.json"), made),
        "results.jsonl": results(),
        "verdicts.jsonl": differences(),
        "curves.jsonl": (),
        "generations.jsonl": generations(),
        COSTS: {r["name"]: {f"fit_{k}": r[k] for k in keys} for r in rows if r["kind"] != "prompt"},
    }


def _method(row: Row) -> str:
    """The method as lines have it: a half has a name of its own, a random direction a seed."""
    if row["method"] in ("prompt", "random"):
        return {"prompt": PERSONA}.get(row["method"], row["method"])
    return row["name"]


def _seed(row: Row) -> int | None:
    trained = row["method"] in ("random", "rotation", "contrastive")
    return row["seed"] if trained else None
