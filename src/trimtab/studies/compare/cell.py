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
from trimtab.bounds import Bounded, Count, OptionalFile, Strength, Whole, Within
from trimtab.errors import ConfigError
from trimtab.pairs.neutral import GENERATION_PROMPTS, NEUTRAL
from trimtab.panel.properties import ITEMS
from trimtab.provenance import digest
from trimtab.rendering import USUAL, Rendering
from trimtab.studies.compare import tables
from trimtab.study import cells
from trimtab.study.results import BASE, INSTRUCTION
from trimtab.study.settings import as_json, from_json
from trimtab.study.suite import Suite, read_data
from trimtab.training import Method
from trimtab.training.run import recipe_digest

FORMAT = 2
OLD_INSTRUCTION = "prompt"
"""What `instruction` was called; folders of cells, and the rows within, go on being called so."""
SUMMARY, COSTS = "summary.json", "costs.json"
STAGE = "trimtab.studies.compare.measure:Stage"

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


CONTROLS = (tables.BASELINE, "random", INSTRUCTION)
"""What every table holds beside the bare model, asked for or not."""


@dataclass(frozen=True)
class Comparison(Bounded):
    """A grid of models, suites, methods and seeds."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    models: tuple[str, ...] = ()
    """Several models, in place of --model."""
    suite: str = "facts"
    """A built-in suite, a YAML file, genies (its 15 shifts), or genies:SOURCE->TARGET."""
    suites: tuple[str, ...] = ()
    """Several suites, in place of --suite."""
    pairs: str = ""
    """Pairs of your own (a spec), in place of --suite: a part is trained on, the rest judged on."""
    holdout: Annotated[float, Within(0, 1, "()")] = 0.2
    """The share of the items of --pairs that is kept out of training and judged on."""
    columns: str = ""
    """Of a table of your own, which columns are meant: prompt=COLUMN,chosen=COLUMN,…"""
    skip_bad: bool = False
    """Leave out rows of it that cannot be read, count and list them."""
    methods: tuple[str, ...] = ("dpo", "innerdpo", "mean", "pca")
    """Methods to compare."""
    controls: tuple[str, ...] = CONTROLS
    """Added to the methods: the baseline of all verdicts, a random direction, led prompts. The bare
    model is always there."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the methods that have one."""
    recipes: tuple[str, ...] = ()
    """YAML files with other settings of methods, such as `trimtab tune` writes."""
    limit: Count | None = None
    """The first so many items of every split and of the training set."""
    train_limit: Count | None = None
    """The first so many training items, where that differs."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 on a GPU."""
    device: str = "auto"
    """A torch device, or auto: the first GPU, else the CPU."""
    threads: Count = 1
    """CPU threads of a cell. The last bits of the figures depend on them, so they do not follow
    --jobs or the machine. For one cell at a time on an idle machine, give as many as it has cores."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    skip_missing: bool = False
    """Leave out the shifts of suite genies whose data are not there."""
    panel: OptionalFile = None
    """Measure what else every dial changes: a YAML file of properties, by default the built-in panel."""
    panel_items: Count = ITEMS
    """At most so many items of a property."""
    measuring: Measuring = field(default_factory=Measuring)
    """What is measured, and on how much."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL


@dataclass(frozen=True)
class Setting(Comparison):
    """A comparison as all cells of one model on one suite have it: the model's place, dtype and device as
    they are here."""

    digest: str = ""
    """Of the model's weights."""
    parts: dict[str, Any] = field(default_factory=dict)
    """What else the model is known by (`models.Source.parts`)."""
    data: Any = None
    """The pairs of the suite: `SuiteData`."""

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
        rest = {k: cells.plain(v) for k, v in vars(self).items() if k != "data"}
        suite = replace(self.data.suite, published=None, capability={})
        return json.loads(json.dumps({**rest, "data": asdict(suite)}))


def setting_of(value: Mapping[str, Any]) -> Setting:
    """The setting that `Setting.as_json` wrote; its pairs are read.

    Raises:
        DataError: they cannot be.
    """
    suite = cells.setting_of(Suite, value["data"])
    data = read_data(suite, value["data_root"], value["limit"], value["train_limit"])
    return replace(cells.setting_of(Setting, {**value, "data": None}), data=data)


class Cell(cells.Cell):
    """A method at a seed. Without a method it is the bare model, with an `instruction` its control."""

    @property
    def method(self) -> Method | None:
        """What is fitted."""
        given = self.own["method"]
        return from_json(given) if given else None

    @property
    def seed(self) -> int | None:
        """None where nothing is drawn."""
        return self.own["seed"]

    @property
    def instruction(self) -> str | None:
        """What leads every prompt."""
        return self.own.get("instruction")

    @property
    def name(self) -> str:
        """The method's name, `base` or `instruction`."""
        if given := self.own["method"]:
            return given["name"]
        return INSTRUCTION if self.instruction else BASE

    @property
    def said(self) -> str:
        """For progress: `dpo, seed 1`."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    def again(self, target: float) -> cells.Cell:
        """The cell, once it is done, to be measured at the alpha of a KL."""
        file = self.folder / f"equal-kl-{target:.6g}.parquet"
        own = {"method": self.own["method"], "seed": self.seed, "target": target}
        run, _, _ = self.run.rpartition(".")
        more: Any = {"run": f"{run}.equal_kl", "label": f"{self.label}, at equal KL"}
        return replace(self, own=own, result=file, job=f"job-{file.stem}.json", **more)

    def sides(self, panel: str, target: float | None) -> cells.Cell:
        """The cell, once it is done, on a panel of that digest: at α = 1, and where a KL is a target."""
        own = {"method": self.own["method"], "seed": self.seed, "panel": panel, "target": target}
        file = f"panel-{panel[:12]}{'' if target is None else f'-{target:.6g}'}.json"
        run, _, _ = self.run.rpartition(".")
        more: Any = {"run": f"{run}.side_effects", "label": f"{self.label}, side effects"}
        more["inputs"] = {**self.inputs, "panel": panel}
        return replace(self, own=own, result=self.folder / file, job=f"job-{file}", **more)


def cell_of(
    out: Path,
    setting: Setting,
    method: Method | None = None,
    seed: int | None = None,
    instruction: str | None = None,
) -> Cell:
    """A cell in the folder that is named by what it depends on."""
    own = {"method": as_json(method) if method else None, "seed": seed, "instruction": instruction}
    inputs = {**setting.key, "method": method.name if method else None, "seed": seed}
    inputs["recipe"] = recipe_digest(method.recipe) if method else None
    inputs |= {"instruction": instruction} if instruction else {}
    name = method.name if method else OLD_INSTRUCTION if instruction else BASE
    words = [name, *([] if seed is None else [f"s{seed}"]), digest(inputs)[:16]]
    folder = out / "cells" / "-".join(words)
    common = digest(setting.key)
    made = Cell(out, folder, f"{STAGE}.measure", setting, own, "", common, folder / SUMMARY)
    return replace(made, label=f"{setting.data.suite.name}: {made.said}", inputs=inputs)


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
    found = [cell_of(out, setting)]
    for method in methods:
        method = from_json(as_json(method))  # as the workers make it again: 1 epoch is 1.0 there
        found += [cell_of(out, setting, method, s) for s in (seeds if method.seeded else [None])]
    if prompt:
        found.append(cell_of(out, setting, instruction=setting.data.suite.instruction))
    return found
