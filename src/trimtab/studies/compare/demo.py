"""The demo: a persona's dial in seconds, then dials on the embedded data with verdicts, in minutes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from trimtab import models
from trimtab.dials import Dial
from trimtab.evaluation import Generation, Sampling, generate
from trimtab.files import write_json
from trimtab.pairs import read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.studies.compare.cell import Measuring
from trimtab.studies.compare.comparison import compare
from trimtab.studies.compare.grid import Comparison
from trimtab.study.files import free_folder
from trimtab.study.settings import varied
from trimtab.training import METHODS, fit

FULL = Comparison(
    suite="facts",
    methods=("dpo", "mean"),
    controls=(),
    limit=150,
    train_limit=96,
    measuring=Measuring(
        alphas=(-1.0, 0.0, 1.0),
        dose_items=20,
        train_items=20,
        passages=3,
        prompts=1,
        generate_alphas=(0.0, 1.0),
        new_tokens=24,
        equal_kl=("test",),
    ),
)
QUICK = replace(
    FULL,
    limit=4,
    train_limit=4,
    measuring=replace(FULL.measuring, dose_items=2, train_items=2, passages=1, new_tokens=4),
)
PERSONA, ALPHAS = "happiness", (-2.0, -1.0, 0.0, 1.0, 2.0)
QUESTIONS = ("How was your day?", "What do you think of Mondays?")


def first_look(
    out: str | Path, *, quick: bool = False, progress: Progress = SILENT
) -> tuple[Path, list[Generation]]:
    """A dial made of contrasts of a persona, and what the model answers at five strengths of it; kept in
    `out/first`, so that a second call only reads them.

    Raises:
        ConfigError: `out` holds something else.
    """
    folder = free_folder(out, "cells") / "first"
    (folder.parent / "cells").mkdir(parents=True, exist_ok=True)
    if (kept := folder / "answers.json").is_file():
        return folder, [Generation(**row) for row in json.loads(kept.read_text())]
    started = time.monotonic()
    progress.say(f"loading {FULL.model}")
    model, tokenizer = models.load(FULL.model, dtype="float32")
    pairs = read_pairs(f"personas:{PERSONA}").limit(8 if quick else 48)
    dial: Dial = fit("mean", model, tokenizer, pairs, out=folder, overwrite=True)
    fitted = time.monotonic()
    progress.say(f"a dial for {PERSONA}, made of {len(pairs)} contrasts: {fitted - started:.0f} s")
    questions, tokens = (QUESTIONS[:1], 8) if quick else (QUESTIONS, 32)
    sampling = Sampling(max_new_tokens=tokens)
    answers = generate(model, tokenizer, questions, dial, ALPHAS, sampling=sampling)
    progress.say(f"its answers at {len(ALPHAS)} alphas: {time.monotonic() - fitted:.0f} s")
    write_json(kept, [asdict(answer) for answer in answers])
    return folder, answers


def demo(
    out: str | Path, *, quick: bool = False, command: str = "", progress: Progress = SILENT
) -> Path:
    """Compare DPO and the mean difference on `smollm2-135m` and `facts`, one seed.

    `quick` is the same path cut short (a few items), for tests.
    """
    comparison = QUICK if quick else FULL
    epochs = {"train.epochs": 1 if quick else 2}
    methods = [
        varied(name, name, epochs if METHODS[name].trained else {}, "demo")
        for name in comparison.methods
    ]
    return compare(
        replace(comparison, threads=1 if quick else os.cpu_count() or 1),
        out,
        methods=methods,
        command=command,
        title="A first look" + (", cut short" if quick else ": two dials on a small model"),
        notes=["One seed and a small model: read this page as a tour, not as evidence."],
        progress=progress,
    )
