"""`dose`: every way to steer towards a trait, at the damage that a persona prompt does.

From `personas:TRAIT` each method makes a dial. The damage of a prompt with the trait's persona is
measured first; each dial is then turned to where its damage on the same passages is that of the
prompt, and read there, at twice that alpha and at the opposites, on questions that share nothing with
the personas (`traits:TRAIT/test`). One cell is one file, written when it is done.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trimtab import models
from trimtab.batching import Encoded, encode
from trimtab.cache import Store, collect
from trimtab.dials import Dial
from trimtab.errors import ConfigError, StudyError, TrimtabError, near
from trimtab.evaluate import Damage, NeutralText, Sampling, alpha_at_kl, generate
from trimtab.evaluate.dose import LogRatios, log_ratios, valid_answers
from trimtab.evaluate.generation import encode_prompt
from trimtab.fit import Method, fit
from trimtab.fit.recipes import method
from trimtab.fit.rotation import ContrastiveRecipe, RotationRecipe
from trimtab.fit.run import recipe_digest, versions
from trimtab.fit.settings import TrainSettings
from trimtab.fit.steering import SteeringRecipe
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.pairs.personas_tables import PERSONAS
from trimtab.pairs.traits_tables import TRAITS
from trimtab.progress import SILENT, Progress
from trimtab.study import steering_tables
from trimtab.study.files import free_folder, write_json, write_lines
from trimtab.study.measure import threads
from trimtab.study.output import commit

FORMAT = 1
PROMPT = "prompt"
"""The control that leaves the model alone and makes the persona the system message."""
ESTIMATORS = (
    "mean",
    "pca",
    "pca_center",
    "logistic",
    "gradient_mean",
    "gradient_svd",
    "fisher",
)
ADAPTERS = ("rotation", "contrastive")
DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Doses, in units of the alpha whose damage is the prompt's."""
REQUEST = "Write a short paragraph about anything you like."
"""What the neutral passages answer, where damage is measured."""
PAIRS_PER_STEP = 8
LARGEST = 32.0
"""Alphas beyond this are not tried."""

Half = Literal["", "first", "second"]


@dataclass(frozen=True)
class Dosing:
    """What is compared, and on how much."""

    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    traits: tuple[str, ...] = ("honesty",)
    """Traits that have personas and questions: honesty, happiness, formality, spanish, …"""
    methods: tuple[str, ...] = (*ESTIMATORS, *ADAPTERS)
    """Methods (see trimtab methods); vectors in closed form, `rotation`, `contrastive`."""
    halves: tuple[str, ...] = ("mean",)
    """Methods fitted to each half of the suffixes, too: how far two such fits differ is the noise
    floor."""
    random_seeds: tuple[int, ...] = (0, 1)
    """Random directions, turned to the same damage."""
    kl: float | None = None
    """Damage at dose 1, mean KL in nats a token (default: that of the persona prompt)."""
    steps: int = 8
    """Training steps of `rotation` and `contrastive`, of 8 pairs each."""
    limit: int | None = None
    """The first so many suffixes."""
    items: int = 60
    """Questions that are measured on."""
    passages: int = 6
    """Neutral passages on which damage is measured."""
    prompts: int = 1
    """Questions that are answered freely at every dose; 0 generates nothing."""
    new_tokens: int = 24
    """Longest answer, in tokens."""
    seed: int = 0
    """Of what is trained."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: int = 1
    """Of torch: the last bits of a sum depend on them."""

    def __post_init__(self) -> None:
        known = [p.trait for p in PERSONAS if p.trait in TRAITS]
        for trait in self.traits:
            if trait not in known:
                raise ConfigError(
                    f"trait {trait!r}{near(trait, known)} (known: {', '.join(known)})"
                )
        for name in ("traits", "methods", "halves", "random_seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: each is to be given once, given {values}")
        if not self.traits or not (self.methods or self.random_seeds):
            raise ConfigError("expected a trait and a method at least")
        for name, least in (("steps", 1), ("items", 2), ("passages", 2), ("new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.passages > len(NEUTRAL):
            raise ConfigError(f"passages is {self.passages}; there are {len(NEUTRAL)}")
        if self.limit is not None and self.limit < 2:
            raise ConfigError(f"limit is {self.limit}; expected 2 or more")
        if self.kl is not None and not 0 < self.kl < float("inf"):
            raise ConfigError(f"kl is {self.kl}; expected nats a token, above 0")
        for name in (*self.methods, *self.halves):
            recipe = method(name).recipe
            if not isinstance(recipe, SteeringRecipe | ContrastiveRecipe):
                raise ConfigError(
                    f"{name}: does not learn from personas in contrast; expected a vector in closed "
                    "form, rotation or contrastive"
                )
        if "random" in self.methods:
            raise ConfigError("random: say how many with random_seeds")


@dataclass(frozen=True)
class Cell:
    """One way to steer: a method, or the prompt (`method` None)."""

    method: Method | None
    seed: int
    half: Half
    key: str
    folder: Path

    @property
    def name(self) -> str:
        """`mean`, `random-1`, `mean-first`, `prompt`."""
        if self.method is None:
            return PROMPT
        if self.method.name == "random":
            return f"random-{self.seed}"
        return f"{self.method.name}-{self.half}" if self.half else self.method.name

    @property
    def file(self) -> Path:
        """Where its result lies, once it is done."""
        return self.folder / "cells" / f"{self.name}-{self.key}.json"

    @property
    def dial(self) -> Path:
        """Where its dial is saved."""
        return self.folder / "dials" / f"{self.name}-{self.key}"


def dose(
    dosing: Dosing,
    out: str | Path,
    *,
    command: str = "",
    progress: Progress = SILENT,
) -> list[Path]:
    """Fit and measure what is not done yet; write the result files of every trait.

    A cell that fails is reported at the end; the others are run all the same.

    Args:
        out: the trait's folder, of several traits one in it for each: `cells/` (a file each,
            written when it is done), `dials/`, `dose.json`, `results.jsonl`, `comparisons.jsonl`,
            `curves.jsonl`, `generations.jsonl`.
        command: what was typed, for the record.

    Returns:
        The traits' folders.

    Raises:
        ConfigError: settings that make no sense, an `out` that holds something else.
        StudyError: cells failed; the text says which and why.
    """
    several = len(dosing.traits) > 1
    places = [Path(out) / t if several else Path(out) for t in dosing.traits]
    folders = [free_folder(place, "cells", "dose.json") for place in places]
    digest = models.digest_of(dosing.model)
    failed: dict[str, str] = {}
    loaded: list[Any] = []
    for trait, folder in zip(dosing.traits, folders, strict=True):
        stage = Stage(dosing, trait, loaded, progress)
        cells = plan(dosing, stage, folder, digest)
        todo = [cell for cell in cells if not cell.file.is_file()]
        progress.say(f"{trait}: {len(cells)} cells, {len(cells) - len(todo)} of them done already")
        for number, cell in enumerate(todo, 1):
            try:
                with threads(dosing.threads):
                    _run(cell, cells[0], stage)
            except TrimtabError as error:
                failed[f"{trait}, {cell.name}"] = str(error)
                progress.say(f"{trait}, {cell.name}: failed: {error}")
                if cell.method is None:
                    break  # the others are turned to its damage
            else:
                progress.say(f"{trait}, {cell.name}: {number} of {len(todo)}")
        if all(cell.file.is_file() for cell in cells):
            _write(folder, stage, cells, digest, command)
    if failed:
        said = "; ".join(f"{cell}: {error}" for cell, error in failed.items())
        raise StudyError(f"failed: {said}; the others are kept, the same command tries again")
    return folders


def plan(dosing: Dosing, stage: Stage, folder: Path, digest: str) -> list[Cell]:
    """The cells of a trait, the prompt first."""
    measured = {k: getattr(dosing, k) for k in ("items", "passages", "prompts", "new_tokens")}
    common = {
        "format": FORMAT,
        "model": digest,
        "dtype": dosing.dtype,
        "device": dosing.device.partition(":")[0],
        "threads": dosing.threads,
        "train": stage.train.digest,
        "test": stage.test.digest,
        "neutral": hashlib.sha256("\n".join(NEUTRAL[: dosing.passages]).encode()).hexdigest(),
        **measured,
    }

    def cell(chosen: Method | None, seed: int = 0, half: Half = "") -> Cell:
        own = {**common, "method": None}
        if chosen is not None:
            own |= {"method": chosen.name, "recipe": recipe_digest(chosen.recipe)}
            own |= {"seed": seed, "half": half, "kl": dosing.kl}
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
        return Cell(chosen, seed, half, key, folder)

    halves: tuple[Half, Half] = ("first", "second")
    chosen = [for_personas(method(name), dosing.steps) for name in dosing.methods]
    return [
        cell(None),
        *(cell(m, dosing.seed if m.seeded else 0) for m in chosen),
        *(cell(for_personas(method(n), dosing.steps), 0, h) for n in dosing.halves for h in halves),
        *(cell(method("random"), seed) for seed in dosing.random_seeds),
    ]


def for_personas(named: Method, steps: int) -> Method:
    """The method as it learns from whole sequences that differ in a persona: adapters read the last
    token, and train for a minute or two."""
    recipe = named.recipe
    if not isinstance(recipe, ContrastiveRecipe):
        return named
    rate = 2e-2 if isinstance(recipe, RotationRecipe) else 2e-3
    train = TrainSettings(pairs_per_step=PAIRS_PER_STEP, max_steps=steps, learning_rate=rate)
    recipe = replace(recipe, train=train, objective=replace(recipe.objective, pool="last"))
    if isinstance(recipe, RotationRecipe):
        recipe = replace(recipe, dial=replace(recipe.dial, rank=16))
    return replace(named, recipe=recipe)


class Stage:
    """What all cells of a trait share; the model is loaded when one first needs it."""

    def __init__(self, dosing: Dosing, trait: str, loaded: list[Any], progress: Progress):
        self.dosing, self.trait, self.progress = dosing, trait, progress
        self._loaded = loaded
        self.train = read_pairs(f"personas:{trait}").limit(dosing.limit)
        self.test = read_pairs(f"traits:{trait}/test").limit(dosing.items)
        personas = next(p for p in PERSONAS if p.trait == trait)
        positive, negative = personas.couples.strip().splitlines()[0].strip().split(" | ")
        self.personas = {1.0: f"You are {positive}.", -1.0: f"You are {negative}."}

    @property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        if not self._loaded:
            self.progress.say(f"loading {self.dosing.model}")
            d = self.dosing
            self._loaded.extend(models.load(d.model, dtype=d.dtype, device=d.device))
        return self._loaded[0], self._loaded[1]

    @cached_property
    def encoded(self) -> Encoded:
        """The questions as tokens."""
        return encode(self.test, self.loaded[1])

    @cached_property
    def neutral(self) -> NeutralText:
        """Neutral passages as answers to a request."""
        return self.passages(({"role": "user", "content": REQUEST},))

    def passages(self, messages: Sequence[dict[str, str]]) -> NeutralText:
        """The neutral passages after a chat."""
        model, tokenizer = self.loaded
        lead = encode_prompt(tokenizer, tuple(messages), "chat")
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

    def led(self, messages: Sequence[dict[str, str]], system: str) -> tuple[dict[str, str], ...]:
        """A chat with a system message, within the first message where the template takes none."""
        led = ({"role": "system", "content": system}, *messages)
        try:
            text = self.loaded[1].apply_chat_template(list(led), tokenize=False)
        except Exception:  # whatever a template raises
            text = ""
        if system in text:
            return led
        first, *rest = messages
        return ({**first, "content": f"{system}\n\n{first['content']}"}, *rest)


def _run(cell: Cell, prompt: Cell, stage: Stage) -> None:
    """Measure a cell and write its file."""
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    cpu = time.process_time()
    if cell.method is None:
        found = _prompt(stage)
    else:
        ends = _read(prompt)["kl"]
        found = _dial(cell, stage, stage.dosing.kl or (ends[0] + ends[-1]) / 2)
    note = {
        "name": cell.name,
        "method": cell.method.name if cell.method else PROMPT,
        "seed": cell.seed,
        "half": cell.half,
        "items": [row.item for row in stage.encoded.rows],
        "cpu_seconds_in_all": round(time.process_time() - cpu, 1),
    }
    write_json(cell.file, {**note, **found})


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
                [replace(p, prompt=stage.led(_messages(p.prompt), system)) for p in stage.test],
                stage.test.name,
            )
            read[sign] = stage.ratios(encode(led, stage.loaded[1]))
            other = stage.passages(stage.led(user, system))
            damage[sign] = stage.neutral.damage_of_lead(other)
        asked = [stage.led(q, system) if system else q for q in stage.questions]
        answers += _answers(stage, asked, None, (sign,))
    return {
        "kind": PROMPT,
        "prompts": {str(k): v for k, v in stage.personas.items()},
        **_curve((-1.0, 0.0, 1.0), read, damage, stage),
        "generations": answers,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }


def _dial(cell: Cell, stage: Stage, target: float) -> dict[str, Any]:
    """A method's dial, at doses up to where its KL is `target`."""
    dial, took = _fitted(cell, stage)
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
            store=Store(scratch),
            progress=stage.progress,
        )
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    took = (round(wall, 2), round(cpu, 2)) if whole else (None, None)
    return dial, {"seconds": took[0], "cpu_seconds": took[1]}


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


def _write(folder: Path, stage: Stage, cells: list[Cell], digest: str, command: str) -> None:
    """The trait's result files, from its cells'."""
    found = [_read(cell) for cell in cells]
    results = steering_tables.results(found)
    write_lines(folder / "results.jsonl", results)
    write_lines(folder / "comparisons.jsonl", steering_tables.comparisons(found))
    write_lines(folder / "curves.jsonl", steering_tables.curves(found))
    generations = [{"name": c["name"], **g} for c in found for g in c["generations"]]
    write_lines(folder / "generations.jsonl", generations)
    write_json(
        folder / "dose.json",
        {
            "trait": stage.trait,
            "model": stage.dosing.model,
            "model_digest": digest,
            "train": {"spec": stage.train.name, "pairs": len(stage.train)},
            "test": {"spec": stage.test.name, "items": len(stage.test)},
            "personas": {str(k): v for k, v in stage.personas.items()},
            "kl": stage.dosing.kl or next((c["kl_target"] for c in found[1:]), None),
            "settings": json.loads(json.dumps(asdict(stage.dosing))),
            "versions": versions(),
            "commit": commit(),
            "command": command,
        },
    )


def _read(cell: Cell) -> dict[str, Any]:
    return json.loads(cell.file.read_text(encoding="utf-8"))


def _messages(prompt: Any) -> tuple[dict[str, str], ...]:
    """A prompt as chat messages."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def _short(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.6g}") for x in row] for row in values]
