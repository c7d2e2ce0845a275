"""One cell of a comparison: a method at a seed on a model and a suite, in a folder of its own.

The folder's name is a digest of everything that the cell depends on (`Setting.key`, the method, the seed).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from trimtab import models
from trimtab.batching import PromptStyle
from trimtab.bounds import Bounded, Count, Strength, Whole
from trimtab.errors import ConfigError
from trimtab.pairs.neutral import GENERATION_PROMPTS, NEUTRAL
from trimtab.panel.properties import ITEMS
from trimtab.provenance import digest
from trimtab.rendering import USUAL, Rendering
from trimtab.study import cells
from trimtab.study.results import BASE, INSTRUCTION
from trimtab.study.settings import as_json, from_json
from trimtab.study.suite import Suite, SuiteData, read_data
from trimtab.training import Method
from trimtab.training.run import recipe_digest

FORMAT = 2
OLD_INSTRUCTION = "prompt"
"""What `instruction` was called; folders of cells, and the rows within, go on being called so."""
SUMMARY, COSTS = "summary.json", "costs.json"


_Strengths = Annotated[tuple[Strength, ...], tyro.conf.arg(name="alpha")]


@dataclass(frozen=True)
class Measuring(Bounded, group="measuring"):
    """How every cell of a comparison is measured."""

    alphas: _Strengths = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """Alphas of the dose–response curve."""
    dose_items: Count = 60
    """Items of the dose–response curve: the first of the suite's `dose` pairs."""
    train_items: Count = 60
    """Training items scored before and after: the first of the training set."""
    passages: Count = 12
    """Neutral passages on which damage is measured."""
    prompts: Whole = 4
    """Prompts that are continued; 0 generates nothing."""
    generate_alphas: tuple[Strength, ...] = (-1.0, 0.0, 1.0)
    """Alphas of the generations."""
    new_tokens: Annotated[Count, tyro.conf.arg(name="max_new_tokens")] = 40
    """Longest continuation, in tokens."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: PromptStyle = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    equal_kl: tuple[str, ...] = ()
    """Splits that are measured again where a dial's KL equals DPO's (by default all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("passages", len(NEUTRAL)), ("prompts", len(GENERATION_PROMPTS))):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; there are {most}")
        for name in ("alphas", "generate_alphas"):
            values = getattr(self, name)
            if not values or not np.isfinite(values).all() or len(set(values)) < len(values):
                raise ConfigError(f"{name}: expected finite numbers, at least one, each once")


@dataclass(frozen=True)
class Setting:
    """What all cells of one model on one suite share."""

    model: str
    """Hub id, folder, .gguf file, or smollm2-135m."""
    digest: str
    """Of the model's weights."""
    dtype: str
    device: str
    threads: int
    """Of torch on a CPU: the last bits of a sum depend on them."""
    data: SuiteData
    measuring: Measuring
    data_root: str | None = None
    limit: int | None = None
    train_limit: int | None = None
    rendering: Rendering = USUAL
    parts: dict[str, Any] = field(default_factory=dict)
    """What else the model is known by (`models.Source.parts`)."""
    panel: str | None = None
    """File of a panel of side effects, `""` the built-in one; a cell of its own measures it."""
    panel_items: int = ITEMS

    @property
    def source(self) -> models.Source:
        """The model's identity."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.parts.items()}
        return models.Source(self.model, self.digest, **texts)

    @property
    def key(self) -> dict[str, Any]:
        """Everything that figures depend on, the content of the data among it, and nothing else:
        not the suite's name nor where its files lie."""
        data, m = self.data, self.measuring
        given = json.loads(json.dumps(vars(m)))
        kind = self.device.partition(":")[0]
        return {
            "format": FORMAT,
            "model": self.source.whole,
            "dtype": self.dtype,
            "device": kind,
            "threads": self.threads if kind == "cpu" else None,
            "train": data.train.digest,
            "splits": {name: pairs.digest for name, pairs in data.splits.items()},
            "dose": data.dose.digest,
            "measuring": {k: v for k, v in given.items() if k != "equal_kl" or v},
            **({"rendering": record} if (record := self.rendering.record()) else {}),
            "neutral": hashlib.sha256(
                "\n".join((*NEUTRAL[: m.passages], *GENERATION_PROMPTS[: m.prompts])).encode()
            ).hexdigest(),
        }

    def as_json(self) -> dict[str, Any]:
        """JSON values from which `setting_of` makes it again."""
        suite = {k: v for k, v in asdict(self.data.suite).items() if k != "published"}
        rest = {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "data"}
        plain = {"measuring": vars(self.measuring), "rendering": self.rendering.record()}
        return json.loads(json.dumps({**rest, **plain, "suite": suite}))


def setting_of(value: Mapping[str, Any]) -> Setting:
    """The setting that `Setting.as_json` wrote; its pairs are read.

    Raises:
        DataError: they cannot be.
    """
    rest = {k: v for k, v in value.items() if k not in ("suite", "measuring", "rendering")}
    rendering = Rendering(**value.get("rendering", {}))
    suite = Suite(**{**value["suite"], "capability": {}})
    lists: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in value["measuring"].items()
    }
    root = Path(rest["data_root"]) if rest["data_root"] else None
    data = read_data(suite, root, rest["limit"], rest["train_limit"])
    return Setting(**rest, data=data, measuring=Measuring(**lists), rendering=rendering)


@dataclass(frozen=True)
class Cell:
    """A method at a seed. `method` None is the bare model, with an `instruction` its control."""

    method: Method | None
    seed: int | None
    key: str
    folder: Path
    instruction: str | None = None

    @property
    def name(self) -> str:
        """The method's name, `base` or `instruction`."""
        if self.method:
            return self.method.name
        return INSTRUCTION if self.instruction else BASE

    @property
    def label(self) -> str:
        """For progress: `dpo, seed 1`."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether the cell has been fitted and measured."""
        return (self.folder / SUMMARY).is_file()


def cell_of(
    out: Path, setting: Setting, method: Method | None, seed: int | None, instruction: str | None
) -> Cell:
    """A cell with its key and folder."""
    own = {**setting.key, "method": method.name if method else None, "seed": seed}
    own["recipe"] = recipe_digest(method.recipe) if method else None
    own |= {"instruction": instruction} if instruction else {}
    key = digest(own)[:16]
    name = method.name if method else OLD_INSTRUCTION if instruction else BASE
    words = [name, *([] if seed is None else [f"s{seed}"]), key]
    return Cell(method, seed, key, out / "cells" / "-".join(words), instruction)


def plan_cells(
    out: Path,
    setting: Setting,
    methods: Sequence[Method],
    seeds: Sequence[int],
    *,
    prompt: bool = False,
) -> list[Cell]:
    """The bare model first, then every method at every seed (closed-form methods once), then, where
    it is wanted, the bare model with led prompts."""
    found = [cell_of(out, setting, None, None, None)]
    for method in methods:
        method = from_json(as_json(method))  # as the workers make it again: 1 epoch is 1.0 there
        own = seeds if method.seeded else [None]
        found += [cell_of(out, setting, method, seed, None) for seed in own]
    if prompt:
        found.append(cell_of(out, setting, None, None, setting.data.suite.instruction))
    return found


def task(cell: Cell, out: Path, setting: Setting, target: float | None = None) -> cells.Cell:
    """A cell as the engine runs it; with a `target` a done one to measure at the alpha of that KL."""
    own = {"method": as_json(cell.method) if cell.method else None, "seed": cell.seed}
    own |= {"instruction": cell.instruction} if target is None else {"target": target}
    result = cell.folder / SUMMARY if target is None else equal_kl_file(cell, target)
    return cells.Cell(
        out,
        cell.folder,
        f"trimtab.studies.compare.measure:Stage.{'measure' if target is None else 'equal_kl'}",
        setting,
        own,
        f"{setting.data.suite.name}: {cell.label}{'' if target is None else ', at equal KL'}",
        digest(setting.key),
        result,
        cells.JOB if target is None else f"job-{result.stem}.json",
    )


def side_task(
    cell: Cell, out: Path, setting: Setting, panel: str, target: float | None
) -> cells.Cell:
    """What a panel says of a cell that is done, at α = 1 and, with a `target`, at the alpha of that KL.

    Args:
        panel: its digest.
    """
    own = {"method": as_json(cell.method) if cell.method else None, "seed": cell.seed}
    at = "" if target is None else f"-{target:.6g}"
    return replace(
        task(cell, out, setting),
        run="trimtab.studies.compare.measure:Stage.side_effects",
        own={**own, "panel": panel, "target": target},
        label=f"{setting.data.suite.name}: {cell.label}, side effects",
        result=cell.folder / f"panel-{panel[:12]}{at}.json",
        job=f"job-panel-{panel[:12]}{at}.json",
    )


def equal_kl_file(cell: Cell, target: float) -> Path:
    """Where a cell keeps its scores at equal KL."""
    return cell.folder / f"equal-kl-{target:.6g}.parquet"


def check_model(setting: Setting, model: Any, tokenizer: Any) -> None:
    """Raise ConfigError unless the loaded model is the one that was planned with."""
    found = models.differences(setting.digest, setting.parts, models.source_of(model, tokenizer))
    if differs := found.refused + found.warned:
        raise ConfigError(
            f"{setting.model}: is not here what the comparison was planned with: another "
            f"{', another '.join(differs)}"
        )
