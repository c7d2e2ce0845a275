"""Measuring a cell of `dose`: a method's dial, or the persona as a prompt, at its doses."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab import models
from trimtab.batching import Encoded, encode
from trimtab.dials import Dial
from trimtab.errors import StudyError
from trimtab.evaluation import Damage, NeutralText, Sampling, alpha_at_kl, generate
from trimtab.evaluation.dose import LogRatios, log_ratios, valid_answers
from trimtab.files import write_json
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.pairs.personas_tables import PERSONAS
from trimtab.provenance import versions
from trimtab.readings import collect
from trimtab.rendering import lead_ids
from trimtab.store import Store
from trimtab.studies.steering.plan import PAIRS_PER_STEP, PROMPT, Cell, Dosing, common_of, plan
from trimtab.study.cells import Host, setting_of
from trimtab.study.made import VERSIONS
from trimtab.training import fit
from trimtab.training.rotation import ContrastiveRecipe

DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Doses, in units of the alpha whose damage is the prompt's."""
REQUEST = "Write a short paragraph about anything you like."
"""What the neutral passages answer, where damage is measured."""
LARGEST = 32.0
"""Alphas beyond this are not tried."""


class Stage:
    """What all cells of a trait share; the model is loaded when one first needs it."""

    @staticmethod
    def read(values: Any) -> Dosing:
        """The settings, of one trait, as JSON values had them."""
        return setting_of(Dosing, values)

    def __init__(self, dosing: Dosing, out: Path, host: Host):
        (trait,) = dosing.traits
        self.dosing, self.trait, self.out = dosing, trait, out
        self.host, self.progress = host, host.progress
        self.train = read_pairs(f"personas:{trait}").limit(dosing.limit)
        self.test = read_pairs(f"traits:{trait}/test").limit(dosing.items)
        personas = next(p for p in PERSONAS if p.trait == trait)
        positive, negative = personas.couples.strip().splitlines()[0].strip().split(" | ")
        self.personas = {1.0: f"You are {positive}.", -1.0: f"You are {negative}."}

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all cells depend on."""
        return common_of(
            self.dosing, self.train, self.test, models.identify(self.dosing.model).whole
        )

    @cached_property
    def cells(self) -> list[Cell]:
        """The trait's cells, the prompt first."""
        return plan(self.dosing, self.common, self.out)

    def measure(self, folder: Path, name: str) -> None:
        """Measure a cell and write its file."""
        run_cell(next(c for c in self.cells if c.name == name), self.cells, self)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return self.host.load(self.dosing)

    @cached_property
    def encoded(self) -> Encoded:
        """The questions as tokens."""
        return encode(self.test, self.loaded[1], rendering=self.dosing.rendering)

    @cached_property
    def neutral(self) -> NeutralText:
        """Neutral passages as answers to a request."""
        return self.passages(({"role": "user", "content": REQUEST},))

    def passages(self, messages: Sequence[dict[str, str]]) -> NeutralText:
        """The neutral passages after a chat."""
        model, tokenizer = self.loaded
        lead = lead_ids(tuple(messages), tokenizer, rendering=self.dosing.rendering)
        return NeutralText(model, tokenizer, NEUTRAL[: self.dosing.passages], lead)

    def ratios(self, encoded: Encoded, dial: Dial | None = None, alpha: float = 0.0) -> LogRatios:
        """Log-ratios of the questions with a dial, or of the bare model."""
        model = self.loaded[0]
        if dial is None or alpha == 0:
            return log_ratios(encoded, collect(model, encoded, logps=True))
        with dial(model, alpha):
            return log_ratios(encoded, collect(model, encoded, logps=True))

    @cached_property
    def base(self) -> LogRatios:
        """The bare model's."""
        return self.ratios(self.encoded)

    @cached_property
    def questions(self) -> list[tuple[dict[str, str], ...]]:
        """What is answered freely: questions that nothing is measured on."""
        return [_messages(p.prompt) for p in read_pairs(f"traits:{self.trait}/dev")][
            : self.dosing.prompts
        ]


def run_cell(cell: Cell, cells: Sequence[Cell], stage: Stage) -> None:
    """Measure a cell and write its file.

    Args:
        cells: all of the trait, the prompt first, which is done before the others.
    """
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    if cell.method is None:
        found = _prompt(stage)
    else:
        ends = read_cell(cells[0])["kl"]
        found = _dial(cell, cells, stage, stage.dosing.kl or (ends[0] + ends[-1]) / 2)
    note = {
        "name": cell.name,
        "method": cell.method.name if cell.method else PROMPT,
        "seed": cell.seed,
        "half": cell.half,
        "items": [row.item for row in stage.encoded.rows],
        VERSIONS: versions(),
        "cpu_seconds_in_all": round(time.process_time() - cpu, 1),
    }
    write_json(cell.file, {**found, **note})


def _prompt(stage: Stage) -> dict[str, Any]:
    """The model with the persona as its system message: +1 has the trait, -1 lacks it."""
    user = ({"role": "user", "content": REQUEST},)
    read: dict[float, LogRatios] = {0.0: stage.base}
    damage: dict[float, Damage] = {}
    answers: list[dict[str, Any]] = []
    for sign in (-1.0, 0.0, 1.0):
        system = stage.personas.get(sign)
        if system is not None:
            led = PairSet(
                [replace(p, prompt=_led(_messages(p.prompt), system)) for p in stage.test],
                stage.test.name,
            )
            encoded = encode(led, stage.loaded[1], rendering=stage.dosing.rendering)
            read[sign] = stage.ratios(encoded)
            other = stage.passages(_led(user, system))
            damage[sign] = stage.neutral.damage_of_lead(other)
        asked = [_led(q, system) if system else q for q in stage.questions]
        answers += _answers(stage, asked, None, (sign,))
    return {
        "kind": PROMPT,
        "prompts": {str(k): v for k, v in stage.personas.items()},
        **_curve((-1.0, 0.0, 1.0), read, damage, stage),
        "generations": answers,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }


def _dial(cell: Cell, cells: Sequence[Cell], stage: Stage, target: float) -> dict[str, Any]:
    """A method's dial, at doses in units of the alpha at which its KL is `target`."""
    dial, took = _fitted(cell, stage)
    if twin := next((c for c in cells if c != cell and _is_dial_of(c, dial)), None):
        return {**read_cell(twin), **took}  # pca_center is pca
    measured = _Measured(stage.neutral)
    found = alpha_at_kl(measured, dial, target, {}, largest=LARGEST, tolerance=0.05, attempts=5)
    one = found[0] if found else measured.nearest(target)
    alphas = tuple(dose * one for dose in DOSES)
    damage = {a: measured.damage(dial, a) for a in alphas if a}
    read = {a: stage.ratios(stage.encoded, dial, a) if a else stage.base for a in alphas}
    return {
        "kind": dial.kind,
        "kl_target": target,
        "reached": found is not None,
        **_curve(alphas, read, damage, stage),
        "generations": _answers(stage, stage.questions, dial, alphas),
        **took,
    }


def _fitted(cell: Cell, stage: Stage) -> tuple[Dial, dict[str, float | None]]:
    """The dial, and what fitting took; None where it was stopped in between."""
    assert cell.method is not None
    train, steps = stage.train, isinstance(cell.method.recipe, ContrastiveRecipe)
    if cell.half:
        start = 0 if cell.half == "first" else 1
        train = PairSet(list(train)[start::2], f"{train.name}, {cell.half} half")
    work = cell.dial.with_name(f".{cell.dial.name}.training")
    whole = not cell.dial.exists() and not work.exists()
    model, tokenizer = stage.loaded
    wall, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:  # what another method has read is not free
        dial = fit(
            cell.method,
            model,
            tokenizer,
            train,
            out=cell.dial,
            seed=cell.seed,
            limit=stage.dosing.steps * PAIRS_PER_STEP if steps else None,
            rendering=stage.dosing.rendering,
            store=Store(scratch),
            progress=stage.progress,
        )
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    took = (round(wall, 2), round(cpu, 2)) if whole else (None, None)
    return dial, {"seconds": took[0], "cpu_seconds": took[1]}


def _is_dial_of(cell: Cell, dial: Dial) -> bool:
    """Whether a cell has been measured with this very dial."""
    if cell.method is None or not (cell.file.is_file() and cell.dial.is_dir()):
        return False
    other = Dial.from_pretrained(cell.dial)
    if (other.kind, other.settings()) != (dial.kind, dial.settings()):
        return False
    one, two = other.tensors(), dial.tensors()
    return all(torch.equal(t.cpu(), two[name].cpu()) for name, t in one.items())


class _Measured(NeutralText):
    """Neutral text that measures no alpha twice."""

    def __init__(self, text: NeutralText):
        self.text = text
        self.found: dict[float, Damage] = {}

    def damage(self, dial: Dial, alpha: float, *, force: bool = False) -> Damage:
        """Damage at an alpha."""
        if alpha not in self.found:
            self.found[alpha] = self.text.damage(dial, alpha, force=force)
        return self.found[alpha]

    def nearest(self, target: float) -> float:
        """Of the alphas measured, that whose KL is nearest."""
        kl = {a: float(np.mean(d.kl)) for a, d in self.found.items()}
        return min(kl, key=lambda a: abs(kl[a] - target) if np.isfinite(kl[a]) else np.inf)


def _curve(
    alphas: Sequence[float],
    read: dict[float, LogRatios],
    damage: dict[float, Damage],
    stage: Stage,
) -> dict[str, Any]:
    """A cell's figures as lists: [dose][item] and [dose][passage]. `matched` are the places of the two
    doses whose damage is the prompt's."""
    none = np.zeros(stage.dosing.passages)
    best = np.stack([read[a].best for a in alphas])
    kl = np.stack([damage[a].kl if a else none for a in alphas])
    rise = np.stack([damage[a].nll_rise if a else none for a in alphas])
    ratio = np.stack([read[a].ratio for a in alphas])
    if not all(np.isfinite(x).all() for x in (kl, rise, ratio)):
        raise StudyError(
            f"log-probs are not finite within alpha {alphas[0]:.3g} to {alphas[-1]:.3g}"
        )
    middle = len(alphas) // 2
    return {
        "alphas": [float(f"{a:.6g}") for a in alphas],
        "matched": [middle - 1, middle + 1],
        "kl": [float(f"{x:.6g}") for x in kl.mean(1)],
        "ratio": _short(ratio),
        "valid": valid_answers(best, stage.base.best).astype(int).tolist(),
        "kl_passages": _short(kl),
        "nll_rise_passages": _short(rise),
    }


def _answers(
    stage: Stage,
    questions: Sequence[tuple[dict[str, str], ...]],
    dial: Dial | None,
    alphas: Sequence[float],
) -> list[dict[str, Any]]:
    if not questions:
        return []
    found = generate(
        *stage.loaded,
        list(questions),
        dial,
        alphas,
        sampling=Sampling(max_new_tokens=stage.dosing.new_tokens),
        rendering=stage.dosing.rendering,
    )
    asked = [q[-1]["content"] for q in stage.questions]
    return [
        {
            "prompt": asked[index // len(alphas)],
            "alpha": float(f"{alphas[index % len(alphas)]:.6g}"),
            "text": g.text,
        }
        for index, g in enumerate(found)
    ]


def read_cell(cell: Cell) -> dict[str, Any]:
    """What a cell that is done has found."""
    return json.loads(cell.file.read_text(encoding="utf-8"))


def _led(messages: Sequence[dict[str, str]], system: str) -> tuple[dict[str, str], ...]:
    """A chat with a system message."""
    return ({"role": "system", "content": system}, *messages)


def _messages(prompt: Any) -> tuple[dict[str, str], ...]:
    """A prompt as chat messages."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def _short(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.6g}") for x in row] for row in values]
