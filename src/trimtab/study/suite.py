"""A suite: one training spec and named evaluation specs, from a YAML file or by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from trimtab.config_files import read_yaml
from trimtab.errors import ConfigError, near
from trimtab.pairs import PairSet, check_disjoint, parse_spec, read_pairs, unseen
from trimtab.provenance import digest
from trimtab.study.results import Published

INSTRUCTION = "Answer truthfully and helpfully, and say only what is right."
"""Leads the prompts of the control `prompt` where a suite has no instruction of its own."""

KEYS = ("description", "train", "evaluate", "dose", "instruction", "validation", "published")


@dataclass(frozen=True)
class Suite:
    """What a comparison trains on and what it is judged on.

    Attributes:
        name: its file's name.
        description: one line for the report.
        train: spec of the training pairs.
        evaluate: specs of the evaluation splits by name, e.g. `test`, `oos`, `rnd`.
        dose: spec of the held-out pairs on whose first items dose–response is measured.
        instruction: leads the prompts of the control `prompt`.
        validation: spec of held-out pairs of the training distribution, for tuning; without one, a
            part of the training items is held out.
        published: rows of an earlier publication.
        capability: by split, the distribution on which a model is trained and tested to know what
            it could reach there (GENIES): specs of its training pairs and of its test.
        drop_seen: leave out of the splits what training holds, too, instead of refusing.
    """

    name: str
    description: str
    train: str
    evaluate: dict[str, str]
    dose: str
    instruction: str = INSTRUCTION
    validation: str | None = None
    published: Published | None = None
    capability: dict[str, tuple[str, str]] = field(default_factory=dict)
    drop_seen: bool = False

    @property
    def digest(self) -> str:
        """sha256 of the specs, whatever the suite is called."""
        specs: list[Any] = [self.train, self.evaluate, self.dose]
        if self.instruction != INSTRUCTION:
            specs.append(self.instruction)
        return digest(specs)


@dataclass(frozen=True)
class SuiteData:
    """A suite's pairs, read and checked."""

    suite: Suite
    train: PairSet
    splits: dict[str, PairSet]
    dose: PairSet


def suite_names() -> list[str]:
    """The built-in suites."""
    return sorted(
        f.name.removesuffix(".yaml") for f in _built_in().iterdir() if f.name.endswith(".yaml")
    )


def read_suite(name: str | Path) -> Suite:
    """A built-in suite by name, or one from a YAML file.

    Raises:
        ConfigError: no such suite or file, a key missing or unknown, a value of the wrong kind.
    """
    text = str(name)
    if text in suite_names():
        file, content = text, Path(str(_built_in() / f"{text}.yaml"))
    elif Path(text).is_file():
        file, content = text, Path(text)
        text = content.stem
    else:
        known = [*suite_names(), "genies"]
        raise ConfigError(
            f"no suite {text!r}{near(text, known)} (built in: {', '.join(known)}, "
            "genies:SOURCE->TARGET; or a YAML file)"
        )
    expected = (
        "expected the keys train (a spec), evaluate (name: spec), and optionally description, "
        "dose, instruction, validation, published"
    )
    values = read_yaml(content, expected)
    for key in ("train", "evaluate"):
        if key not in values:
            raise ConfigError(f"{file}: the key {key!r} is missing; {expected}")
    if extra := set(values) - set(KEYS):
        raise ConfigError(f"{file}: unknown key {min(extra, key=str)!r}; {expected}")
    splits = values["evaluate"]
    if (
        not isinstance(splits, dict)
        or not splits
        or not all(isinstance(v, str) for v in [values["train"], *splits, *splits.values()])
    ):
        raise ConfigError(f"{file}: {expected}")
    reserved = set(splits) & {"train", "dose", "neutral"}
    if reserved:
        raise ConfigError(f"{file}: a split cannot be called {sorted(reserved)[0]!r}")
    dose = values.get("dose", next(iter(splits.values())))
    if not isinstance(dose, str):
        raise ConfigError(f"{file}: dose: expected a spec")
    instruction = values.get("instruction", INSTRUCTION)
    if not isinstance(instruction, str) or not instruction.strip():
        raise ConfigError(f"{file}: instruction: expected a sentence")
    validation = values.get("validation")
    if validation is not None and not isinstance(validation, str):
        raise ConfigError(f"{file}: validation: expected a spec")
    if validation in splits.values():
        raise ConfigError(f"{file}: validation: {validation} is an evaluation split, too")
    return Suite(
        text,
        str(values.get("description") or ""),
        values["train"],
        dict(splits),
        dose,
        instruction.strip(),
        validation,
        _published(values.get("published"), file),
    )


def own_suite(spec: str, holdout: float) -> Suite:
    """Pairs of one's own as a suite: trained on without a share of the items, judged on that."""
    train, test = (f"{spec}[{which} {holdout:g}]" for which in ("without", "holdout"))
    parsed = parse_spec(spec)
    return Suite(
        Path(parsed.name).name.partition(".")[0] or parsed.kind,
        f"{spec}, {holdout:.0%} of its items held out",
        train,
        {"test": test},
        test,
    )


def _published(value: Any, file: str) -> Published | None:
    if value is None:
        return None
    rows = value.get("rows") if isinstance(value, Mapping) else None
    good = isinstance(rows, Mapping) and all(
        isinstance(row, Mapping) and all(isinstance(x, int | float) for x in row.values())
        for row in rows.values()
    )
    if not good or not isinstance(value.get("note"), str):
        raise ConfigError(
            f"{file}: published: expected note (a text) and rows (method: split: share)"
        )
    return Published(
        value["note"],
        {str(m): {str(s): float(x) for s, x in row.items()} for m, row in rows.items()},  # type: ignore[union-attr]
    )


def read_data(
    suite: Suite,
    data_root: str | Path | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
) -> SuiteData:
    """Read all of a suite's pairs, the first `limit` items of each, of training `train_limit`.

    Raises:
        DataError: a spec cannot be read, or a split shares items with training.
    """
    train = read_pairs(suite.train, data_root, limit=limit if train_limit is None else train_limit)
    splits = {name: read_pairs(s, data_root, limit=limit) for name, s in suite.evaluate.items()}
    dose = read_pairs(suite.dose, data_root, limit=limit)
    if suite.drop_seen:
        splits = {name: unseen(train, pairs) for name, pairs in splits.items()}
        dose = unseen(train, dose)
    else:
        check_disjoint(train, {**splits, "dose": dose})
    return SuiteData(suite, train, splits, dose)


def _built_in():  # type: ignore[no-untyped-def]
    return resources.files("trimtab.study") / "suites"
