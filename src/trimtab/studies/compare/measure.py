"""Running one cell: fit, score, dose, damage, generations, written into the cell's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trimtab import models
from trimtab.batching import Encoded
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.evaluation import (
    Damage,
    ItemScores,
    NeutralText,
    Sampling,
    alpha_at_kl,
    generate,
    score,
)
from trimtab.files import write_json
from trimtab.pairs import Pair, PairSet
from trimtab.pairs.neutral import GENERATION_PROMPTS, NEUTRAL
from trimtab.panel import Arm, Panel, PanelOn, read_items, read_panel
from trimtab.provenance import versions
from trimtab.store import Store
from trimtab.studies.compare.cell import COSTS, SUMMARY, Cell, Setting, cell_of, setting_of
from trimtab.studies.panel.lines import read_arms
from trimtab.study import cells
from trimtab.study.cells import JOB, Host
from trimtab.study.files import Rows, read_rows, write_rows
from trimtab.study.forecast import Load
from trimtab.study.made import VERSIONS
from trimtab.study.on_model import OnModel
from trimtab.study.records import read_json, read_lines
from trimtab.study.results import BASE, EQUAL_KL
from trimtab.study.settings import from_json
from trimtab.training.plan import HISTORY, SPACE


class Stage(OnModel[Setting]):
    """The loaded model with everything that cells measure on; loaded when a cell first needs it."""

    name = "compare"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Setting:
        """The setting as JSON values had it; its pairs are read."""
        return setting_of(values)

    def __init__(self, setting: Setting, out: Path, host: Host):
        super().__init__(setting, out, host)
        self.common, self.store = setting.key, Store()
        self.data, self.measuring = setting.data, setting.measuring
        m = setting.measuring
        train = self.data.train.limit(m.train_items)  # scored before and after
        self.tests = {**self.data.splits, "train": train}
        self.options |= {"max_length": m.max_length, "prompt_style": m.prompt_style}

    def load(self, cell: cells.Cell) -> Load:
        """What a cell fits and reads."""
        m, own = self.measuring, cell.own
        splits = list(self.tests.values())
        if "panel" in own:
            times = 1 if own["target"] is None else 2
            return self.load_of(reads=[(self.panel.pairs, times)])
        if "target" in own:
            return self.load_of(reads=[(p, 1) for p in splits])
        method = from_json(own["method"]) if own["method"] else None
        times, alphas = (2, len(m.alphas)) if method else (1, 1)  # at equal KL again
        reads = [*((p, times) for p in splits), (self.data.dose.limit(m.dose_items), alphas)]
        words = m.prompts * m.new_tokens * (len(m.generate_alphas) if method else 1)
        return self.load_of([(method, self.data.train)] if method else [], reads, words)

    def measure(self, folder: Path, method: Any, seed: int | None, instruction: str | None) -> None:
        """Fit and measure a method at a seed, or the bare model."""
        named = from_json(method) if method else None
        run_cell(cell_of(self.out, self.settings, named, seed, instruction), self)

    def equal_kl(self, folder: Path, method: Any, seed: int | None, target: float) -> None:
        """Measure a method that is done again at the alpha of that KL."""
        cell = cell_of(self.out, self.settings, from_json(method), seed)
        write_rows(cell.again(target).result, _rows_at_kl(cell, self, target))

    def side_effects(
        self, folder: Path, method: Any, seed: int | None, panel: str, target: float | None
    ) -> list[Any]:
        """A method that is done, or the bare model, on the panel."""
        if self.panel.digest != panel:
            raise ConfigError(f"{folder}: planned with another panel than is here")
        arms = [Arm(BASE)]
        if method:
            cell = cell_of(self.out, self.settings, from_json(method), seed)
            dial = Dial.from_pretrained(folder / "dial")
            dial.to(next(self.model.parameters()).device)
            arms = [Arm(cell.name, dial, 1.0)]
            if target is not None:
                alphas = {row["alpha"] for row in read_rows(cell.again(target).result)}
                arms += [Arm(cell.name, dial, alpha, EQUAL_KL) for alpha in alphas]
        return [read.as_json() for read in read_arms(self.panel_on, arms, seed)]

    @cached_property
    def panel(self) -> Panel:
        """The properties, with their items."""
        s = self.settings
        return read_items(read_panel(s.panel), s.panel_items, s.data_root)

    @cached_property
    def panel_on(self) -> PanelOn:
        """The panel on the model."""
        how: Any = {"store": self.store, "progress": self.progress}
        return PanelOn(*self.loaded, self.panel, max_length=self.options["max_length"], **how)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer.

        Raises:
            ConfigError: another model than was planned with.
        """
        found, setting = self.host.load(self.settings), self.settings
        here = models.differences(setting.digest, setting.parts, models.source_of(*found))
        if differs := here.refused + here.warned:
            raise ConfigError(
                f"{setting.model}: is not here what the comparison was planned with: another "
                f"{', another '.join(differs)}"
            )
        return found

    def led(self, instruction: str) -> dict[str, Encoded]:
        """The same, every prompt led by an instruction."""
        return {name: self.encode(led(pairs, instruction)) for name, pairs in self.tests.items()}

    @cached_property
    def dose(self) -> Encoded:
        """Items of the dose–response curve."""
        return self.encode(self.data.dose.limit(self.measuring.dose_items))

    @cached_property
    def neutral(self) -> NeutralText:
        """Neutral text with the bare model's log-probs."""
        return NeutralText(*self.loaded, NEUTRAL[: self.measuring.passages])

    def score(
        self, encoded: Encoded, label: str, dial: Dial | None = None, alpha: float = 0.0
    ) -> ItemScores:
        """Scores of an encoded set, with progress."""
        with self.progress.bar(label, encoded.n_answers, "answers") as update:
            return score(self.model, encoded, dial, alpha, store=self.store, progress=update)


def run_cell(cell: Cell, stage: Stage) -> None:
    """Fit and measure a cell. `summary.json` is written last."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    dial = _fitted(cell, stage) if cell.method else None
    fitted = time.monotonic()
    splits = stage.led(cell.instruction) if cell.instruction else stage.encoded
    rows = _rows(cell, stage, dial, splits)
    texts = _generations(cell, stage, dial)
    write_rows(cell.folder / "items.parquet", rows)
    if dial:
        _stamp(cell.folder / "dial", dial, rows)
    costs = {
        **_fit_seconds(cell),
        "evaluate_seconds": round(time.monotonic() - fitted, 1),
        "parameters": sum(t.numel() for t in dial.tensors().values()) if dial else 0,
    }
    write_json(cell.folder / COSTS, costs)
    write_json(
        cell.folder / SUMMARY,
        {
            "generations": texts,
            "pairs": {n: sizes(e) for n, e in splits.items()},
            VERSIONS: versions(),
        },
    )
    stage.progress.say(f"{cell.said}: done in {time.monotonic() - started:.0f} s")


def _rows(cell: Cell, stage: Stage, dial: Dial | None, splits: dict[str, Encoded]) -> Rows:
    """Scores on every split; of a dial also the dose–response and the damage, of the bare model the
    dose–response at 0. Led prompts are measured on the splits alone: they have no strength."""
    m = stage.measuring
    led = cell.instruction is not None
    alpha = 1.0 if dial or led else 0.0
    rows: Rows = []
    for name, encoded in splits.items():
        found = stage.score(encoded, f"{cell.said}: scoring {name}", dial, alpha)
        rows += score_rows(cell.name, cell.seed, name, "alpha_1", alpha, found)
    if led:
        return rows
    for a in m.alphas if dial else (0.0,):
        if dial and a == 0:
            continue  # the bare model's cell has it
        found = stage.score(stage.dose, f"{cell.said}: dose at alpha {a:g}", dial, a)
        rows += score_rows(cell.name, cell.seed, "dose", "dose", a, found)
        if dial:
            rows += damage_rows(cell.name, cell.seed, "dose", a, stage.neutral.damage(dial, a))
    if dial and 1.0 not in m.alphas:
        rows += damage_rows(cell.name, cell.seed, "alpha_1", 1.0, stage.neutral.damage(dial, 1.0))
    return rows


def _fitted(cell: Cell, stage: Stage) -> Dial:
    """The cell's dial, fitted or found. The time is noted when it was fitted in one go."""
    assert cell.method is not None
    _ = stage.loaded  # which is no part of fitting
    whole = all(file.name in (JOB, "cell.json") for file in cell.folder.iterdir())

    def run(overwrite: bool) -> Dial:
        assert cell.method is not None
        out, seed = cell.folder / "dial", cell.seed or 0
        return stage.fit(cell.method, stage.data.train, seed, out, overwrite=overwrite)

    started, used = time.monotonic(), time.process_time()
    try:
        dial = run(overwrite=False)
    except ConfigError:
        if whole:
            raise
        # Begun by another version, or under another name of the model or the data.
        stage.progress.say(f"{cell.said}: what was begun cannot be gone on with, starting it again")
        dial, whole = run(overwrite=True), True
    if whole:
        took = {
            "fit_seconds": round(time.monotonic() - started, 1),
            "fit_cpu_seconds": round(time.process_time() - used, 1),
        }
        write_json(cell.folder / COSTS, took)
    return dial


def _fit_seconds(cell: Cell) -> dict[str, float]:
    """What `_fitted` noted; nothing for a fit that was interrupted and gone on with."""
    file = cell.folder / COSTS
    noted = read_json(file) if cell.method and file.is_file() else {}
    return {k: v for k, v in noted.items() if k in ("fit_seconds", "fit_cpu_seconds")}


def _stamp(folder: Path, dial: Dial, rows: Rows) -> None:
    """Write what was measured into the saved dial and its card."""
    kl = _kl_by_alpha(rows)
    dial.info.measured = {
        "alphas": sorted(kl),
        "kl_nats_per_token": {f"{a:g}": float(f"{np.mean(kl[a]):.4g}") for a in sorted(kl)},
        "measured_on": f"{len(next(iter(kl.values())))} neutral passages",
    }
    beside = [file for name in (HISTORY, SPACE) if (file := folder / name).is_file()]
    dial.save_pretrained(folder, {file.name: file.read_bytes() for file in beside})


def _rows_at_kl(cell: Cell, stage: Stage, target: float) -> Rows:
    dial = Dial.from_pretrained(cell.folder / "dial")
    dial.to(next(stage.model.parameters()).device)
    known = _kl_by_alpha(read_rows(cell.folder / "items.parquet"))
    stage.progress.say(f"{cell.said}: searching the alpha of KL {target:.3g}")
    means = {a: float(np.mean(kl)) for a, kl in known.items()}
    found = alpha_at_kl(stage.neutral, dial, target, means)
    if found is None:
        return []
    alpha = float(f"{found[0]:.6g}")
    own = cell.name, cell.seed
    rows: Rows = []
    for name, encoded in stage.encoded.items():
        if name != "train" and name in (stage.measuring.equal_kl or stage.encoded):
            label = f"{cell.said}: scoring {name} at equal KL"
            scores = stage.score(encoded, label, dial, alpha)
            rows += score_rows(*own, name, "equal_kl", alpha, scores)
    return rows + damage_rows(*own, "equal_kl", alpha, stage.neutral.damage(dial, alpha))


def _kl_by_alpha(rows: Rows) -> dict[float, list[float]]:
    """KL of the passages, of all seeds, by alpha."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["split"] == "neutral":
            found.setdefault(row["alpha"], []).append(row["kl"])
    return found


def mean_kl(rows: Rows, alpha: float = 1.0) -> float:
    """Mean KL over passages and seeds at one alpha."""
    return float(np.mean(_kl_by_alpha(rows)[alpha]))


def read_history(cell: Cell) -> Rows:
    """A cell's training curve; empty for closed-form methods."""
    file = cell.folder / "dial" / HISTORY
    return [row for _, row in read_lines(file)]


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
            "preference": float(scores.preference[i]),
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
    prompts = GENERATION_PROMPTS[: m.prompts]
    lead = f"{cell.instruction}\n\n" if cell.instruction else ""
    stage.progress.say(f"{cell.said}: generating")
    texts = generate(
        *stage.loaded,
        [lead + prompt for prompt in prompts],
        dial,
        alphas,
        sampling=Sampling(max_new_tokens=m.new_tokens),
        prompt_style="auto",  # the same for all that are compared
    )
    return [
        {
            "method": cell.name,
            "seed": cell.seed,
            "alpha": 1.0 if lead else g.alpha,
            "prompt": g.prompt.removeprefix(lead),
            "text": g.text,
        }
        for g in texts
    ]


def led(pairs: PairSet, instruction: str) -> PairSet:
    """The same pairs, every prompt led by an instruction: before plain text, within the first
    message of a chat (not every chat template takes a system message)."""

    def lead(pair: Pair) -> Pair:
        if isinstance(pair.prompt, str):
            if not pair.conversational:
                return replace(pair, prompt=f"{instruction}\n\n{pair.prompt}")
            return replace(pair, prompt=({"role": "user", "content": instruction},))
        first, *rest = pair.prompt or ({"role": "user", "content": ""},)
        content = f"{instruction}\n\n{first['content']}".strip()
        return replace(pair, prompt=({**first, "content": content}, *rest))

    return PairSet([lead(pair) for pair in pairs], pairs.name, pairs.left_out, pairs.notes)


def sizes(encoded: Encoded) -> dict[str, int]:
    """Items, pairs and dropped pairs of a split."""
    return {"items": encoded.n_items, "pairs": encoded.n_pairs, "dropped": encoded.dropped_pairs}
