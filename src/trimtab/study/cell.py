"""One cell of a comparison: a method at a seed, fitted, measured and kept in a folder of its own.

The folder's name is a digest of everything that the cell depends on, so that a finished cell is
never run twice and an unfinished one goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trimtab import models
from trimtab.batching import Encoded, PromptStyle, encode
from trimtab.cache import Store
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.evaluate import Damage, ItemScores, NeutralText, Sampling, alpha_at_kl, generate, score
from trimtab.fit import Method, fit
from trimtab.fit.run import HISTORY, SPACE, recipe_digest
from trimtab.pairs import PairSet
from trimtab.pairs.neutral import GENERATION_PROMPTS, NEUTRAL
from trimtab.progress import Progress
from trimtab.study.suite import SuiteData

FORMAT = 1
BASE = "base"
COSTS = "costs.json"
SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("at", pa.string()),
        ("alpha", pa.float64()),
        ("item", pa.string()),
        ("pairs", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_sum", pa.float64()),
        ("accuracy_choice", pa.float64()),
        ("margin", pa.float64()),
        ("kl", pa.float64()),
        ("nll_rise", pa.float64()),
    ]
)
"""Per-item scores. `at`: `alpha_1`, `equal_kl` or `dose`; items of split `neutral` are passages."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Measuring:
    """How every cell of a comparison is measured."""

    alphas: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    """Alphas of the dose–response curve."""
    dose_items: int = 60
    """Items of the dose–response curve: the first of the suite's `dose` pairs."""
    train_items: int = 60
    """Training items scored before and after: the first of the training set."""
    passages: int = 12
    """Neutral passages on which damage is measured."""
    prompts: int = 4
    """Prompts that are continued; 0 generates nothing."""
    generate_alphas: tuple[float, ...] = (-1.0, 0.0, 1.0)
    """Alphas of the generations."""
    new_tokens: int = 40
    """Longest continuation, in tokens."""
    max_length: int = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: PromptStyle = "plain"
    """`chat` wraps plain prompts in the model's chat template."""

    def __post_init__(self) -> None:
        for name in ("dose_items", "train_items", "passages", "new_tokens", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name, most in (("passages", len(NEUTRAL)), ("prompts", len(GENERATION_PROMPTS))):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; there are {most}")
        for name in ("alphas", "generate_alphas"):
            values = getattr(self, name)
            if not values or not np.isfinite(values).all() or len(set(values)) < len(values):
                raise ConfigError(f"{name}: expected finite numbers, at least one, each once")


@dataclass
class Stage:
    """The loaded model with everything that cells measure on; loaded when a cell first needs it."""

    model_name: str
    dtype: str
    device: str
    data: SuiteData
    measuring: Measuring
    progress: Progress
    store: Store = field(default_factory=Store)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        self.progress.say(f"loading {self.model_name}")
        return models.load(self.model_name, dtype=self.dtype, device=self.device)

    @cached_property
    def splits(self) -> dict[str, Encoded]:
        """Evaluation splits, and the part of the training set that is scored, as tokens."""
        return {name: self._encode(pairs) for name, pairs in self.data.splits.items()} | {
            "train": self._encode(self.data.train.limit(self.measuring.train_items))
        }

    @cached_property
    def dose(self) -> Encoded:
        """Items of the dose–response curve."""
        return self._encode(self.data.dose.limit(self.measuring.dose_items))

    @cached_property
    def neutral(self) -> NeutralText:
        """Neutral text with the bare model's log-probs."""
        return NeutralText(*self.loaded, NEUTRAL[: self.measuring.passages])

    def _encode(self, pairs: PairSet) -> Encoded:
        settings = self.measuring
        found = encode(
            pairs,
            self.loaded[1],
            max_length=settings.max_length,
            prompt_style=settings.prompt_style,
        )
        self.progress.over_long(pairs.name, len(pairs), found.dropped_pairs, settings.max_length)
        return found

    def score(
        self, encoded: Encoded, label: str, dial: Dial | None = None, alpha: float = 0.0
    ) -> ItemScores:
        """Scores of an encoded set, with progress."""
        with self.progress.bar(label, encoded.n_answers, "answers") as update:
            return score(self.loaded[0], encoded, dial, alpha, store=self.store, progress=update)


@dataclass(frozen=True)
class Cell:
    """A method at a seed. `method` None is the bare model."""

    method: Method | None
    seed: int | None
    key: str
    folder: Path

    @property
    def name(self) -> str:
        """The method's name, or `base`."""
        return self.method.name if self.method else BASE

    @property
    def label(self) -> str:
        """For progress: `dpo, seed 1`."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether the cell has been fitted and measured."""
        return (self.folder / "summary.json").is_file()


def plan_cells(
    out: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    data: SuiteData,
    digest: str,
    dtype: str,
    device: str,
    m: Measuring,
) -> list[Cell]:
    """The bare model first, then every method at every seed (closed-form methods once).

    A cell's key holds everything that its figures depend on, the content of the data among it, and
    nothing else: not the suite's name nor where its files lie.
    """
    shared = {
        "format": FORMAT,
        "model": digest,
        "dtype": dtype,
        "device": device,
        "train": data.train.digest,
        "splits": {name: pairs.digest for name, pairs in data.splits.items()},
        "dose": data.dose.digest,
        "measuring": json.loads(json.dumps(vars(m))),
        "neutral": hashlib.sha256(
            "\n".join((*NEUTRAL[: m.passages], *GENERATION_PROMPTS[: m.prompts])).encode()
        ).hexdigest(),
    }

    def cell(method: Method | None, seed: int | None) -> Cell:
        own = {**shared, "method": method.name if method else None, "seed": seed}
        own["recipe"] = recipe_digest(method.recipe) if method else None
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        name = "-".join(
            [method.name if method else BASE, *([] if seed is None else [f"s{seed}"]), key]
        )
        return Cell(method, seed, key, out / "cells" / name)

    cells = [cell(None, None)]
    for method in methods:
        cells += [cell(method, seed) for seed in (seeds if method.trained else [None])]
    return cells


def run_cell(cell: Cell, stage: Stage) -> None:
    """Fit and measure a cell; does nothing if it is done. `summary.json` is written last."""
    if cell.done:
        return
    cell.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    m = stage.measuring
    dial = _fitted(cell, stage) if cell.method else None
    fitted = time.monotonic()
    alpha = 1.0 if dial else 0.0
    rows: Rows = []
    for name, encoded in stage.splits.items():
        rows += score_rows(
            cell.name,
            cell.seed,
            name,
            "alpha_1",
            alpha,
            stage.score(encoded, f"{cell.label}: scoring {name}", dial, alpha),
        )
    for a in m.alphas if dial else (0.0,):
        if dial and a == 0:
            continue  # the bare model's cell has it
        rows += score_rows(
            cell.name,
            cell.seed,
            "dose",
            "dose",
            a,
            stage.score(stage.dose, f"{cell.label}: dose at alpha {a:g}", dial, a),
        )
        if dial:
            rows += damage_rows(cell.name, cell.seed, "dose", a, stage.neutral.damage(dial, a))
    if dial and 1.0 not in m.alphas:
        rows += damage_rows(cell.name, cell.seed, "alpha_1", 1.0, stage.neutral.damage(dial, 1.0))
    texts = _generations(cell, stage, dial)
    write_rows(cell.folder / "items.parquet", rows)
    if dial:
        _stamp(cell, dial, rows)
    costs = {
        **_fit_seconds(cell),
        "evaluate_seconds": round(time.monotonic() - fitted, 1),
        "parameters": sum(t.numel() for t in dial.tensors().values()) if dial else 0,
    }
    write_json(cell.folder / COSTS, costs)
    write_json(
        cell.folder / "summary.json",
        {"generations": texts, "pairs": {n: sizes(e) for n, e in stage.splits.items()}},
    )
    stage.progress.say(f"{cell.label}: done in {time.monotonic() - started:.0f} s")


def _fitted(cell: Cell, stage: Stage) -> Dial:
    """The cell's dial, fitted or found. The time is noted when it was fitted in one go."""
    assert cell.method is not None
    model, tokenizer = stage.loaded
    whole = not any(cell.folder.iterdir())

    def run(overwrite: bool) -> Dial:
        assert cell.method is not None
        return fit(
            cell.method,
            model,
            tokenizer,
            stage.data.train,
            out=cell.folder / "dial",
            seed=cell.seed or 0,
            max_length=stage.measuring.max_length,
            prompt_style=stage.measuring.prompt_style,
            overwrite=overwrite,
            store=stage.store,
            progress=stage.progress,
        )

    started = time.monotonic()
    try:
        dial = run(overwrite=False)
    except ConfigError:
        if whole:
            raise
        # Begun by another version, or under another name of the model or the data.
        stage.progress.say(
            f"{cell.label}: what was begun cannot be gone on with, starting it again"
        )
        dial, whole = run(overwrite=True), True
    if whole:
        write_json(cell.folder / COSTS, {"fit_seconds": round(time.monotonic() - started, 1)})
    return dial


def _fit_seconds(cell: Cell) -> dict[str, float]:
    """What `_fitted` noted; nothing for a fit that was interrupted and gone on with."""
    file = cell.folder / COSTS
    noted = json.loads(file.read_text()) if cell.method and file.is_file() else {}
    return {k: v for k, v in noted.items() if k == "fit_seconds"}


def _stamp(cell: Cell, dial: Dial, rows: Rows) -> None:
    """Write what was measured into the saved dial and its card."""
    kl: dict[float, list[float]] = {}
    for row in rows:
        if row["split"] == "neutral":
            kl.setdefault(row["alpha"], []).append(row["kl"])
    dial.info.measured = {
        "alphas": sorted(kl),
        "kl_nats_per_token": {f"{a:g}": float(f"{np.mean(kl[a]):.4g}") for a in sorted(kl)},
        "measured_on": f"{len(next(iter(kl.values())))} neutral passages",
    }
    folder = cell.folder / "dial"
    beside = [file for name in (HISTORY, SPACE) if (file := folder / name).is_file()]
    dial.save_pretrained(folder, {file.name: file.read_bytes() for file in beside})


def run_equal_kl(cell: Cell, stage: Stage, target: float) -> None:
    """Measure a done cell again at the alpha whose KL is `target`; does nothing if that is done."""
    file = equal_kl_file(cell, target)
    if file.is_file():
        return
    dial = Dial.from_pretrained(cell.folder / "dial")
    dial.to(next(stage.loaded[0].parameters()).device)
    known: dict[float, list[float]] = {}
    for row in read_rows(cell.folder / "items.parquet"):
        if row["split"] == "neutral":
            known.setdefault(row["alpha"], []).append(row["kl"])
    stage.progress.say(f"{cell.label}: searching the alpha of KL {target:.3g}")
    found = alpha_at_kl(
        stage.neutral, dial, target, {a: float(np.mean(k)) for a, k in known.items()}
    )
    rows: Rows = []
    if found is not None:
        alpha = float(f"{found[0]:.6g}")
        for name, encoded in stage.splits.items():
            if name != "train":
                label = f"{cell.label}: scoring {name} at equal KL"
                rows += score_rows(
                    cell.name,
                    cell.seed,
                    name,
                    "equal_kl",
                    alpha,
                    stage.score(encoded, label, dial, alpha),
                )
        rows += damage_rows(
            cell.name, cell.seed, "equal_kl", alpha, stage.neutral.damage(dial, alpha)
        )
    write_rows(file, rows)


def equal_kl_file(cell: Cell, target: float) -> Path:
    """Where a cell keeps its scores at equal KL."""
    return cell.folder / f"equal-kl-{target:.6g}.parquet"


def mean_kl(rows: Rows, alpha: float = 1.0) -> float:
    """Mean KL over passages and seeds at one alpha."""
    return float(
        np.mean([r["kl"] for r in rows if r["split"] == "neutral" and r["alpha"] == alpha])
    )


def read_history(cell: Cell) -> Rows:
    """A cell's training curve; empty for closed-form methods."""
    file = cell.folder / "dial" / HISTORY
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


# ---- rows ---------------------------------------------------------------------------------------


def score_rows(
    method: str, seed: int | None, split: str, at: str, alpha: float, scores: ItemScores
) -> Rows:
    """Rows of `items.parquet` for the scores of a split."""
    start = {"method": method, "split": split, "seed": seed, "at": at, "alpha": alpha}
    return [
        {
            **start,
            "item": item,
            "pairs": int(scores.pairs[i]),
            "accuracy": float(scores.accuracy[i]),
            "accuracy_sum": float(scores.accuracy_sum[i]),
            "accuracy_choice": float(scores.accuracy_choice[i]),
            "margin": float(scores.margin[i]),
        }
        for i, item in enumerate(scores.items)
    ]


def damage_rows(method: str, seed: int | None, at: str, alpha: float, damage: Damage) -> Rows:
    """Rows of `items.parquet` for the damage on neutral passages."""
    start = {"method": method, "split": "neutral", "seed": seed, "at": at, "alpha": alpha}
    return [
        {**start, "item": f"passage {i}", "kl": float(kl), "nll_rise": float(rise)}
        for i, (kl, rise) in enumerate(zip(damage.kl, damage.nll_rise, strict=True))
    ]


def _generations(cell: Cell, stage: Stage, dial: Dial | None) -> Rows:
    m = stage.measuring
    if not m.prompts or (cell.method is None and 0.0 not in m.generate_alphas):
        return []
    alphas = m.generate_alphas if dial else (0.0,)
    stage.progress.say(f"{cell.label}: generating")
    texts = generate(
        *stage.loaded,
        GENERATION_PROMPTS[: m.prompts],
        dial,
        alphas,
        sampling=Sampling(max_new_tokens=m.new_tokens),
    )
    return [
        {
            "method": cell.name,
            "seed": cell.seed,
            "alpha": g.alpha,
            "prompt": g.prompt,
            "text": g.text,
        }
        for g in texts
    ]


def sizes(encoded: Encoded) -> dict[str, int]:
    """Items, pairs and dropped pairs of a split."""
    return {"items": encoded.n_items, "pairs": encoded.n_pairs, "dropped": encoded.dropped_pairs}


# ---- files --------------------------------------------------------------------------------------


def write_rows(file: Path, rows: Rows) -> None:
    """Rows as parquet, all or nothing."""
    with _aside(file) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)


def read_rows(file: Path) -> Rows:
    """Rows of a parquet file."""
    return pq.read_table(file).to_pylist()


def write_json(file: Path, value: Any) -> None:
    """A JSON file, all or nothing."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """A text file, all or nothing."""
    with _aside(file) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """A path to write to, renamed to `file` at the end. An OSError names the file: those of a full
    disk do not say what was being written."""
    aside = file.with_name(f".{file.name}.writing")
    try:
        yield aside
        os.replace(aside, file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error
