"""A trait's cells: the persona as a prompt, and each method's dial at doses of the prompt's damage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.batching import Encoded
from trimtab.dials import Dial
from trimtab.errors import StudyError
from trimtab.evaluation import Damage, NeutralText, Sampling, alpha_at_kl, generate
from trimtab.evaluation.dose import LogRatios, log_ratios, valid_answers
from trimtab.evaluation.scores import read_at
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.pairs.written import cells, written
from trimtab.rendering import lead_ids
from trimtab.store import Store
from trimtab.studies.steering import tables
from trimtab.studies.steering.plan import PAIRS_PER_STEP, PROMPT, Dosing, Way, ways
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.on_model import OnModel
from trimtab.study.records import read_json
from trimtab.study.results import Generation, Run, Split
from trimtab.training.rotation import ContrastiveRecipe

DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Doses, in units of the alpha whose damage is the prompt's."""
REQUEST = {"role": "user", "content": "Write a short paragraph about anything you like."}
"""What the neutral passages answer, where damage is measured."""
LARGEST = 32.0
"""Alphas beyond this are not tried."""
ATTEMPTS = 5
"""Alphas that are tried to meet the damage."""

Messages = tuple[dict[str, str], ...]


class Trait(OnModel[Dosing]):
    """What all cells of a trait share. A cell's result is `cells/NAME-KEY.json`, its dial
    `dials/NAME-KEY`."""

    name, title, Settings = "steering", "Steering", Dosing

    def __init__(self, settings: Dosing, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        (self.trait,) = settings.traits
        self.train = read_pairs(f"personas:{self.trait}").limit(settings.limit)
        self.test = read_pairs(f"traits:{self.trait}/test").limit(settings.items)
        couples = written("personas")["personas"][self.trait]["couples"]
        positive, negative = cells(couples)[0]
        self.personas = {1.0: f"You are {positive}.", -1.0: f"You are {negative}."}
        measured = ("items", "passages", "prompts", "new_tokens")
        self.common |= {k: getattr(settings, k) for k in measured} | {
            "device": settings.device.partition(":")[0],
            "train": self.train.digest,
            "test": self.test.digest,
            "neutral": sha256("\n".join(NEUTRAL[: settings.passages]).encode()).hexdigest(),
        }

    @cached_property
    def ways(self) -> dict[str, Way]:
        """The ways to steer by name, beside the prompt."""
        return {way.name: way for way in ways(self.settings)}

    def plan(self) -> Iterator[list[Cell]]:
        """The prompt, to whose damage the others are turned; then these."""
        yield [self._cell(PROMPT, {"method": None})]
        yield [self._cell(name, way.inputs(self.settings)) for name, way in self.ways.items()]

    def _cell(self, name: str, inputs: dict[str, Any]) -> Cell:
        cell = self.cell(name, inputs, name=name)
        result = cell.folder.with_name(f"{cell.folder.name}.json")
        return replace(cell, label=f"{self.trait}, {name}", result=result)

    @cached_property
    def by_name(self) -> dict[str, Cell]:
        """The cells by name, the prompt's first."""
        return {cell.own["name"]: cell for cell in self.cells.values()}

    def dial_of(self, name: str) -> Path:
        """Where a cell's dial is saved."""
        return self.out / "dials" / self.by_name[name].folder.name

    def load(self, cell: Cell) -> Load:
        """What a cell fits and reads."""
        way, s = self.ways.get(cell.own["name"]), self.settings
        words = s.new_tokens * s.prompts * (len(DOSES) if way else 3)
        passes = (self.test, len(DOSES) if way else 3)
        fits = [(way.method, self._train(way))] if way else []
        return self.load_of(fits, [passes], words)

    # ---- cells ----

    def measure(self, folder: Path, name: str) -> dict[str, Any]:
        """What a cell found, and what it is."""
        if way := self.ways.get(name):
            ends = found_by(self.by_name[PROMPT])["kl"]
            found = self._dial(name, self.settings.kl or (ends[0] + ends[-1]) / 2)
            own = {"method": way.method.name, "seed": way.seed, "half": way.half}
        else:
            found, own = self._prompt(), {"method": PROMPT, "seed": 0, "half": ""}
        return {**found, "name": name, **own, "items": [row.item for row in self.asked.rows]}

    def _prompt(self) -> dict[str, Any]:
        """The model with the persona as its system message: +1 has the trait, -1 lacks it."""
        read: dict[float, LogRatios] = {0.0: self.base}
        damage: dict[float, Damage] = {}
        answers: list[dict[str, Any]] = []
        for sign in (-1.0, 0.0, 1.0):
            asked = self.questions
            if system := self.personas.get(sign):
                led = [replace(p, prompt=_led(_messages(p.prompt), system)) for p in self.test]
                read[sign] = self.ratios(self.encode(PairSet(led, self.test.name)))
                damage[sign] = self.neutral.damage_of_lead(self.passages(_led((REQUEST,), system)))
                asked = [_led(q, system) for q in asked]
            answers += self._answers(asked, None, (sign,))
        return {
            "kind": PROMPT,
            "prompts": {str(k): v for k, v in self.personas.items()},
            **self._curve((-1.0, 0.0, 1.0), read, damage),
            "generations": answers,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
        }

    def _dial(self, name: str, target: float) -> dict[str, Any]:
        """A method's dial, at doses in units of the alpha at which its KL is `target`."""
        dial, took = self._fitted(name)
        others = (self.by_name[other] for other in self.ways if other != name)
        if twin := next((c for c in others if self._is_dial_of(c, dial)), None):
            return {**found_by(twin), **took}  # pca_center is pca
        tried = _Measured(self.neutral)
        how: Any = {"largest": LARGEST, "tolerance": 0.05, "attempts": ATTEMPTS}
        found = alpha_at_kl(tried, dial, target, {}, **how)
        one = found[0] if found else tried.nearest(target)
        alphas = tuple(dose * one for dose in DOSES)
        damage = {a: tried.damage(dial, a) for a in alphas if a}
        read = {a: self.ratios(self.asked, dial, a) if a else self.base for a in alphas}
        return {
            "kind": dial.kind,
            "kl_target": target,
            "reached": found is not None,
            **self._curve(alphas, read, damage),
            "generations": self._answers(self.questions, dial, alphas),
            **took,
        }

    def _train(self, way: Way) -> PairSet:
        """The suffixes that a method learns from."""
        if not way.half:
            return self.train
        start = 0 if way.half == "first" else 1
        return PairSet(list(self.train)[start::2], f"{self.train.name}, {way.half} half")

    def _fitted(self, name: str) -> tuple[Dial, dict[str, float | None]]:
        """The dial, and what fitting took; None where it was stopped in between."""
        way, out = self.ways[name], self.dial_of(name)
        whole = not out.exists() and not out.with_name(f".{out.name}.training").exists()
        _ = self.loaded  # which is no part of fitting
        wall, cpu = time.monotonic(), time.process_time()
        steps = isinstance(way.method.recipe, ContrastiveRecipe)
        how = {"limit": self.settings.steps * PAIRS_PER_STEP if steps else None}
        with tempfile.TemporaryDirectory() as scratch:  # what another method has read is not free
            store = Store(scratch)
            dial = self.fit(way.method, self._train(way), way.seed, out, store=store, **how)
        took = time.monotonic() - wall, time.process_time() - cpu
        keys = ("seconds", "cpu_seconds")
        return dial, {k: round(t, 2) if whole else None for k, t in zip(keys, took, strict=True)}

    def _is_dial_of(self, cell: Cell, dial: Dial) -> bool:
        """Whether a cell has been measured with this very dial."""
        folder = self.dial_of(cell.own["name"])
        if not (cell.done and folder.is_dir()):
            return False
        other = Dial.from_pretrained(folder)
        if (other.kind, other.settings()) != (dial.kind, dial.settings()):
            return False
        one, two = other.tensors(), dial.tensors()
        return all(torch.equal(t.cpu(), two[name].cpu()) for name, t in one.items())

    # ---- readings ----

    @cached_property
    def asked(self) -> Encoded:
        """The questions as tokens."""
        return self.encode(self.test)

    @cached_property
    def neutral(self) -> NeutralText:
        """Neutral passages as answers to a request."""
        return self.passages((REQUEST,))

    def passages(self, messages: Messages) -> NeutralText:
        """The neutral passages after a chat."""
        lead = lead_ids(messages, self.tokenizer, rendering=self.settings.rendering)
        return NeutralText(*self.loaded, NEUTRAL[: self.settings.passages], lead)

    def ratios(self, encoded: Encoded, dial: Dial | None = None, alpha: float = 0.0) -> LogRatios:
        """Log-ratios of the questions with a dial, or of the bare model."""
        return log_ratios(encoded, read_at(self.model, encoded, dial, alpha, store=self.store))

    @cached_property
    def base(self) -> LogRatios:
        """The bare model's."""
        return self.ratios(self.asked)

    @cached_property
    def questions(self) -> list[Messages]:
        """What is answered freely: questions that nothing is measured on."""
        pairs = read_pairs(f"traits:{self.trait}/dev")
        return [_messages(p.prompt) for p in pairs][: self.settings.prompts]

    def _curve(
        self,
        alphas: Sequence[float],
        read: dict[float, LogRatios],
        damage: dict[float, Damage],
    ) -> dict[str, Any]:
        """A cell's figures as lists: [dose][item] and [dose][passage]. `matched` are the places of the
        two doses whose damage is the prompt's."""
        still = Damage(*np.zeros((2, self.settings.passages)))
        done = [damage[a] if a else still for a in alphas]
        kl, rise = (np.stack([getattr(d, part) for d in done]) for part in ("kl", "nll_rise"))
        ratio, best = map(np.stack, zip(*(read[a] for a in alphas), strict=True))
        if not all(np.isfinite(x).all() for x in (kl, rise, ratio)):
            raise StudyError(
                f"log-probs are not finite within alpha {alphas[0]:.3g} to {alphas[-1]:.3g}"
            )
        middle = len(alphas) // 2
        return {
            "alphas": _short(alphas),
            "matched": [middle - 1, middle + 1],
            "kl": _short(kl.mean(1)),
            "ratio": [_short(row) for row in ratio],
            "valid": valid_answers(best, self.base.best).astype(int).tolist(),
            "kl_passages": [_short(row) for row in kl],
            "nll_rise_passages": [_short(row) for row in rise],
        }

    def _answers(
        self, questions: Sequence[Messages], dial: Dial | None, alphas: Sequence[float]
    ) -> list[dict[str, Any]]:
        if not questions:
            return []
        s = self.settings
        how: Any = {"sampling": Sampling(max_new_tokens=s.new_tokens), "rendering": s.rendering}
        found = generate(*self.loaded, list(questions), dial, alphas, **how)
        asked = product((q[-1]["content"] for q in self.questions), _short(alphas))
        return [
            {"prompt": prompt, "alpha": alpha, "text": g.text}
            for (prompt, alpha), g in zip(asked, found, strict=True)
        ]

    # ---- result files ----

    def compared(self, command: str, title: str) -> Run:
        """The trait's result files, from its cells'."""
        s, found = self.settings, [found_by(cell) for cell in self.by_name.values()]
        items, passages = len(found[0]["items"]), len(found[0]["kl_passages"][0])
        about = self.about(
            title=f"{title}: {self.trait}",
            command=command,
            suite=self.trait,
            seeds=s.random_seeds,
            train=self.train.name,
            train_items=len(self.train),
            train_pairs=len(self.train),
            splits={
                "test": Split(self.test.name, items, len(self.test), 0),
                "neutral": Split("neutral passages", passages, 0, 0),
            },
            methods={tables.named(c)["method"]: c["kind"] for c in found},
            equal_kl=s.kl or next((c["kl_target"] for c in found[1:]), None),
            more={
                "personas": {str(k): v for k, v in self.personas.items()},
                "not_reached": [c["name"] for c in found if not c.get("reached", True)],
            },
        )
        common: Any = {"model": about.model, "suite": self.trait}
        said = [
            Generation(about.model, **tables.named(c), **g) for c in found for g in c["generations"]
        ]
        costs = {
            c["name"]: {f"fit_{k}": c[k] for k in ("seconds", "cpu_seconds")}
            for c in found
            if c["method"] != PROMPT
        }
        lines, differences = tables.results(found, common), tables.comparisons(found, common)
        return Run(about, tuple(lines), tuple(differences), (), tuple(said), costs)


def found_by(cell: Cell) -> dict[str, Any]:
    """What a cell that is done has found; cells of earlier versions hold nothing else."""
    content = read_json(cell.result)
    return content.get("found", content)


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


def _led(messages: Messages, system: str) -> Messages:
    """A chat with a system message."""
    return ({"role": "system", "content": system}, *messages)


def _messages(prompt: Any) -> Messages:
    """A prompt as chat messages."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def _short(values: Any) -> list[float]:
    return [float(f"{x:.6g}") for x in values]
