"""Preference heads beside the bare model, SFT and DPO on multiple-choice tasks, with the pooling x
loss ablation: one table of shares, one of differences, both from cells that are resumed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trimtab import models
from trimtab.batching import Encoded, answer_spans, encode
from trimtab.bounds import Bounded, Count, Several, Whole
from trimtab.cache import Store, features, reference
from trimtab.dials import Dial, RewardDial
from trimtab.errors import ConfigError
from trimtab.evaluation.items import item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.files import write_json, write_lines
from trimtab.objectives import ORPO
from trimtab.pairs import PairSet, read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.studies.heads.cells import (
    STUDY,
    Cells,
    Scores,
    averaged,
    check_seeds,
    described,
    difference_line,
    identified,
    judged,
    mean_line,
    threads_of,
)
from trimtab.study import results
from trimtab.study.files import Rows
from trimtab.training import Method, fit, method
from trimtab.training.heads import aggregate_all
from trimtab.training.recipes import ORPORecipe, TrainSettings
from trimtab.training.run import recipe_digest

IN_DOMAIN, HELD_OUT = "in-domain average", "held-out average"
LOGPROB, REWARD = "logprob", "reward"
POOLINGS = ("identity", "bert", "swiglu")
LOSSES = ("separable", "contrastive", "listwise")


@dataclass(frozen=True)
class RewardComparison(Bounded):
    """What is trained, on how much, and judged where."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    tasks: tuple[str, ...] = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
    """Tasks whose training split is trained on, and whose test split is in-domain."""
    held_out: tuple[str, ...] = ("piqa", "winogrande", "social_i_qa")
    """Tasks of which nothing is trained on."""
    train_items: Count = 1500
    """Items trained on, over all tasks, the first of each alike."""
    more_items: Whole = 0
    """Items for one more frozen head, whose training costs little; 0 for none."""
    test_items: Several = 500
    """Items of each test split, the first ones."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of what trains an adapter."""
    head_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the frozen heads."""
    ablation: bool = True
    """Every pooling with every loss on the frozen model."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads; the last bits of the figures depend on them."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        every = (*self.tasks, *self.held_out)
        if not self.tasks or not self.held_out or len(set(every)) < len(every):
            raise ConfigError("tasks, held_out: expected at least one of each, each task once")
        check_seeds("seeds", self.seeds)
        check_seeds("head_seeds", self.head_seeds)


def compare_rewards(
    settings: RewardComparison,
    out: str | Path,
    *,
    command: str = "",
    title: str = "Preference heads on multiple choice",
    progress: Progress = SILENT,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    Returns:
        The folder: `heads.json`, `results.jsonl` (shares of items answered rightly), `verdicts.jsonl`
        (differences between arms), `ablation.jsonl`.

    Raises:
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or what
            stopped it. The same call goes on from there.
    """
    with threads_of(settings.threads):
        return _Run(settings, out, progress).run(command, title)


class _Run:
    """The model, the data, and the cells made of both."""

    def __init__(self, settings: RewardComparison, out: str | Path, progress: Progress):
        self.settings, self.progress = settings, progress
        models.check(settings.model)
        device = models.resolve_device(settings.device)
        models.resolve_dtype(settings.dtype, device)
        self.train = _first(settings, settings.train_items)
        self.more = _first(settings, settings.more_items) if settings.more_items else None
        self.tests = {
            task: read_pairs(f"choices:{task}/test", settings.data_root).limit(settings.test_items)
            for task in (*settings.tasks, *settings.held_out)
        }
        common = {
            "model": models.identify(settings.model).whole,
            "dtype": settings.dtype,
            "device": device.type,
            "threads": settings.threads,
            "max_length": settings.max_length,
            "tests": {task: pairs.digest for task, pairs in self.tests.items()},
        }
        self.cells = Cells(out, common, progress)
        progress.say(f"loading {settings.model}")
        self.model, self.tokenizer = models.load(
            settings.model, dtype=settings.dtype, device=settings.device
        )
        self.encoded = {task: self._encode(pairs) for task, pairs in self.tests.items()}
        self.store = Store(self.cells.out / "cells" / "states")

    def run(self, command: str, title: str) -> Path:
        """Everything."""
        s, table = self.settings, {}
        base = self.cells.get("base", {"arm": "base"}, lambda _: self._base())
        table["base", LOGPROB] = {task: {None: base[task]} for task in self.tests}
        for arm, named, pairs in self._adapters():
            found = [self._adapter(arm, named, pairs, seed) for seed in s.seeds]
            for read_out in found[0]:
                table[arm, read_out] = _by_task(s.seeds, [f[read_out] for f in found])
        frozen = method("dph")
        table["dph frozen", REWARD] = self._frozen("dph-frozen", frozen, self.train)
        if self.more is not None:
            table["dph frozen, more data", REWARD] = self._frozen("dph-more", frozen, self.more)
        ablation: dict[tuple[str, str], dict[str, Scores]] = {}
        for pooling in POOLINGS if s.ablation else ():
            for loss in LOSSES:
                named = _variant(pooling, loss)
                name = "dph-frozen" if named == frozen else f"{pooling}-{loss}"
                ablation[pooling, loss] = self._frozen(name, named, self.train)
        own = {"arm": "untouched", "train": self.train.digest}
        untouched = self.cells.get("untouched", own, lambda _: {"largest": self._moved(frozen)})
        out = self.cells.out
        lines = [
            line
            for (arm, read_out), found in table.items()
            for line in _shares(s, found, arm=arm, read_out=read_out)
        ]
        write_lines(out / "results.jsonl", identified(self.model, lines))
        write_lines(out / "verdicts.jsonl", _differences(s, table))
        write_lines(out / "ablation.jsonl", _ablated(s, ablation))
        more = {} if self.more is None else {"more items": len(self.more.items())}
        what = described(
            self.model,
            s,
            command,
            s.threads,
            versions=self.cells.versions(),
            kind="rewards",
            title=title,
            train={"items": len(self.train.items()), "pairs": len(self.train), **more},
            tests={task: e.n_items for task, e in self.encoded.items()},
            in_domain=list(s.tasks),
            held_out=list(s.held_out),
            largest_logit_change_by_a_frozen_head=untouched["largest"],
            cpu_seconds=self.cells.seconds(),
        )
        (out / "study.json").unlink(missing_ok=True)
        write_json(out / STUDY, what)
        return results.write(out, results.read(out))

    # ---- arms ----

    def _adapters(self) -> list[tuple[str, Method, PairSet]]:
        """What trains a LoRA: once through the data."""
        dpo, dph = method("dpo"), method("dph")
        train = replace(dpo.recipe.train, epochs=1.0)  # type: ignore[union-attr]
        once: Any = {"train": train}
        sft = ORPORecipe(ORPO(weight_ratio=0.0), train=train)
        recipe: Any = dph.recipe
        joint = replace(
            recipe,
            objective=replace(recipe.objective, weight_dpo=1.0),
            dial=replace(recipe.dial, adapter="lora"),
            train=TrainSettings(epochs=1.0, learning_rate=train.learning_rate),
        )
        # An item's wrong answers are nothing to SFT: one pair an item, so that items count alike.
        each = PairSet([pairs[0] for pairs in self.train.items().values()], self.train.name)
        return [
            ("sft", Method("sft", sft, dpo.where, "likelihood of the right answer"), each),
            ("dpo", replace(dpo, recipe=replace(dpo.recipe, **once)), self.train),
            ("dph joint", replace(dph, recipe=joint), self.train),
        ]

    def _adapter(self, arm: str, named: Method, pairs: PairSet, seed: int) -> dict[str, Any]:
        def make(folder: Path) -> dict[str, Any]:
            dial = self._fitted(named, pairs, seed, folder / "dial")
            found: dict[str, Any] = {LOGPROB: {}}
            for task, encoded in self.encoded.items():
                reward = dial if isinstance(dial, RewardDial) else None
                with nullcontext() if reward else dial(self.model, 1.0):
                    rewards, read = rewards_of(self.model, reward, encoded, logps=True)
                found[LOGPROB][task] = item_scores(encoded, read).accuracy_choice.tolist()
                if reward:
                    right = reward_scores(encoded, rewards).accuracy_choice.tolist()
                    found.setdefault(REWARD, {})[task] = right
            return found

        own = {"arm": arm, "recipe": recipe_digest(named.recipe), "seed": seed}
        name = f"{arm.replace(' ', '-')}-s{seed}"
        return self.cells.get(name, {**own, "train": pairs.digest}, make)

    def _frozen(self, name: str, named: Method, pairs: PairSet) -> dict[str, Scores]:
        """A head on the frozen model: trained and read from stored states."""

        def make(folder: Path, seed: int) -> dict[str, list[float]]:
            dial: Any = self._fitted(named, pairs, seed, folder / "dial")
            device = next(self.model.parameters()).device
            found = {}
            for task, encoded in self.encoded.items():
                vectors = aggregate_all(dial.cpu(), self._states(task), answer_spans(encoded))
                with torch.no_grad():
                    rewards = dial.to(device).rewards(vectors.to(device))[:, 0].float().cpu()
                found[task] = reward_scores(encoded, rewards).accuracy_choice.tolist()
            return found

        own = {"arm": "frozen", "recipe": recipe_digest(named.recipe), "train": pairs.digest}
        seeds = self.settings.head_seeds
        return _by_task(
            seeds,
            [
                self.cells.get(
                    f"{name}-s{seed}", {**own, "seed": seed}, lambda f, s=seed: make(f, s)
                )
                for seed in seeds
            ],
        )

    def _base(self) -> dict[str, list[float]]:
        return {
            task: item_scores(
                encoded, reference(self.model, encoded, logps=True, store=self.store)
            ).accuracy_choice.tolist()
            for task, encoded in self.encoded.items()
        }

    def _moved(self, named: Method) -> float:
        """The largest change of a logit by an attached frozen head, on a few test items."""
        dial = self._fitted(named, self.train, self.settings.head_seeds[0], None)
        encoded = next(iter(self.encoded.values()))
        ids = torch.tensor([[*encoded.rows[0].prompt, *encoded.rows[0].answers[0]]])
        ids = ids.to(next(self.model.parameters()).device)
        with torch.no_grad():
            bare = self.model(input_ids=ids).logits
            with dial(self.model, 1.0):
                after = self.model(input_ids=ids).logits
        return float((after - bare).abs().max())

    # ---- parts ----

    def _fitted(self, named: Method, pairs: PairSet, seed: int, out: Path | None) -> Dial:
        return fit(
            named,
            self.model,
            self.tokenizer,
            pairs,
            out=out,
            seed=seed,
            max_length=self.settings.max_length,
            store=self.store,
            progress=self.progress,
        )

    def _states(self, task: str) -> Any:
        encoded = self.encoded[task]
        with self.progress.bar(f"storing states of {task}", encoded.n_answers, "answers") as update:
            return features(
                self.model, encoded, ("final",), "answer", store=self.store, progress=update
            )

    def _encode(self, pairs: PairSet) -> Encoded:
        encoded = encode(pairs, self.tokenizer, max_length=self.settings.max_length)
        most = self.settings.max_length
        self.progress.rendered(pairs.name, len(pairs), encoded, most, models.context(self.model))
        return encoded


def _first(settings: RewardComparison, items: int) -> PairSet:
    """The first items of every task's training split, as many of each as there are."""
    found, left = [], items
    for place, task in enumerate(settings.tasks):
        share = -(-left // (len(settings.tasks) - place))
        pairs = read_pairs(f"choices:{task}/train", settings.data_root).limit(max(share, 1))
        left -= len(pairs.items())
        found += list(pairs)
    return PairSet(found, f"{' + '.join(settings.tasks)} ({items} items)")


def _variant(pooling: str, loss: str) -> Method:
    named = method("dph")
    recipe: Any = named.recipe
    return replace(
        named,
        recipe=replace(
            recipe,
            dial=replace(recipe.dial, pooling=pooling),
            objective=replace(recipe.objective, loss=loss),
        ),
    )


def _by_task(seeds: Sequence[int], found: Sequence[dict[str, list[float]]]) -> dict[str, Scores]:
    return {
        task: {seed: f[task] for seed, f in zip(seeds, found, strict=True)} for task in found[0]
    }


def _shares(settings: RewardComparison, found: dict[str, Scores], **labels: Any) -> Rows:
    """A line a task, and one for each of the two averages."""
    lines = [mean_line(scores, **labels, split=task) for task, scores in found.items()]
    for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
        lines.append(mean_line(*averaged([found[t] for t in tasks]), **labels, split=name))
    return lines


COMPARED = (
    (("dph frozen", REWARD), ("base", LOGPROB)),
    (("dph frozen", REWARD), ("sft", LOGPROB)),
    (("dph frozen", REWARD), ("dpo", LOGPROB)),
    (("dph frozen, more data", REWARD), ("dpo", LOGPROB)),
    (("dph joint", REWARD), ("base", LOGPROB)),
    (("dph joint", REWARD), ("sft", LOGPROB)),
    (("dph joint", REWARD), ("dpo", LOGPROB)),
    (("dph joint", REWARD), ("dph joint", LOGPROB)),
    (("dph joint", LOGPROB), ("dpo", LOGPROB)),
    (("dpo", LOGPROB), ("sft", LOGPROB)),
)
"""Arm and read-out, and what it is set against: the claims of the seed, and what explains them."""


def _ablated(settings: RewardComparison, table: dict[tuple[str, str], dict[str, Scores]]) -> Rows:
    """A line each of both averages, beside its difference from the first pooling and loss."""
    lines, against = [], next(iter(table.values()), {})
    for (pooling, loss), found in table.items():
        for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
            (a, weights), (b, _) = (averaged([side[t] for t in tasks]) for side in (found, against))
            labels: dict[str, Any] = {"pooling": pooling, "loss": loss, "split": name}
            first = found is against
            more = difference_line(a, b, weights) if not first else {}
            lines.append(mean_line(a, weights, **labels) | more)
    told = iter(judged([line for line in lines if "p" in line]))
    return [next(told) if "p" in line else line for line in lines]


def _differences(
    settings: RewardComparison, table: dict[tuple[str, str], dict[str, Scores]]
) -> Rows:
    lines = []
    for mine, theirs in COMPARED:
        for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
            if mine in table and theirs in table:
                sides = ([table[side][t] for t in tasks] for side in (mine, theirs))
                (a, weights), (b, _) = map(averaged, sides)
                labels = dict(zip(("arm", "read_out"), mine, strict=True))
                labels |= dict(zip(("against", "against_read_out"), theirs, strict=True))
                lines.append(difference_line(a, b, weights, **labels, split=name))
    return judged(lines)
