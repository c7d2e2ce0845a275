"""Preference heads beside the bare model, SFT and DPO on multiple-choice tasks, with the pooling x
loss ablation: one table of shares, one of differences, both from cells that are resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from trimtab import models
from trimtab.batching import Encoded, answer_spans, encode
from trimtab.bounds import Bounded, Count, Several, Whole
from trimtab.dials import Dial, RewardDial
from trimtab.errors import ConfigError
from trimtab.evaluation.items import item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.objectives import ORPO
from trimtab.pairs import PairSet, read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.readings import features, reference
from trimtab.store import Store
from trimtab.study.about import described_by, sizes
from trimtab.study.cells import Cell, Host, planned, setting_of
from trimtab.study.files import free_folder
from trimtab.study.lines import Scores, averaged, check_seeds, compared, judged, measured
from trimtab.study.results import ALPHA_1, BASE, Difference, Measurement, Run, Split, write
from trimtab.study.workers import work_stage
from trimtab.training import Method, fit, method
from trimtab.training.recipes import ORPORecipe, TrainSettings
from trimtab.training.reward_head import aggregate_all
from trimtab.training.run import recipe_digest

IN_DOMAIN, HELD_OUT = "in-domain average", "held-out average"
LOGPROB, REWARD = "logprob", "reward"
POOLINGS = ("identity", "bert", "swiglu")
LOSSES = ("separable", "contrastive", "listwise")
ABLATED = "dph, "
"""How the methods of the ablation begin."""

Side = tuple[str, str]
"""Arm and read-out."""
Table = dict[Side, dict[str, Scores]]
"""Scores by side and task."""


@dataclass(frozen=True)
class RewardComparison(Bounded):
    """What is trained, on how much, and judged where."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    tasks: tuple[str, ...] = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq")
    """Tasks whose training split is trained on, and whose test split is in-domain."""
    held_out: tuple[str, ...] = ("piqa", "winogrande", "social_i_qa")
    """Tasks of which nothing is trained on."""
    train_items: Annotated[Count, tyro.conf.arg(name="train_limit")] = 1500
    """Items trained on, over all tasks, the first of each alike."""
    more_items: Whole = 0
    """Items for one more frozen head, whose training costs little; 0 for none."""
    test_items: Annotated[Several, tyro.conf.arg(name="test_limit")] = 500
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
    jobs: int = 1,
    ray: bool = False,
    command: str = "",
    title: str = "Preference heads on multiple choice",
    progress: Progress = SILENT,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    Args:
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster.

    Returns:
        The folder: `results.jsonl` (shares of items answered rightly), `verdicts.jsonl` (differences between
        arms); the ablation's methods are called `dph, POOLING × LOSS`.

    Raises:
        StudyError: cells failed; the text says which and why.
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or what
            stopped it. The same call goes on from there.
    """
    out = free_folder(out, "cells", "heads.json", "study.json").absolute()
    many: dict[str, Any] = {"jobs": jobs, "ray": ray, "progress": progress}
    return work_stage("rewards", Stage, settings, out, **many).write(command, title)


class Stage:
    """The model, the data, and the cells made of both."""

    @staticmethod
    def read(values: Any) -> RewardComparison:
        """The settings as JSON values had them."""
        return setting_of(RewardComparison, values)

    def __init__(self, settings: RewardComparison, out: Path, host: Host):
        self.settings, self.out, self.host, self.progress = settings, out, host, host.progress
        models.check(settings.model)
        device = models.resolve_device(settings.device)
        models.resolve_dtype(settings.dtype, device)
        self.train = _first(settings, settings.train_items)
        self.more = _first(settings, settings.more_items) if settings.more_items else None
        self.tests = {
            task: read_pairs(f"choices:{task}/test", settings.data_root).limit(settings.test_items)
            for task in (*settings.tasks, *settings.held_out)
        }
        self.common = {
            "format": 1,
            "model": models.identify(settings.model).whole,
            "dtype": settings.dtype,
            "device": device.type,
            "threads": settings.threads,
            "max_length": settings.max_length,
            "tests": {task: pairs.digest for task, pairs in self.tests.items()},
        }
        self.store = Store(out / "cells" / "states")

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return self.host.load(self.settings)

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded[0]

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """The tests as tokens."""
        return {task: self._encode(pairs) for task, pairs in self.tests.items()}

    @cached_property
    def adapters(self) -> dict[str, tuple[Method, PairSet]]:
        """What trains a LoRA, and on what, by arm."""
        return {arm: (named, pairs) for arm, named, pairs in self._adapters()}

    @cached_property
    def heads(self) -> dict[str, tuple[str, Method, bool]]:
        """Frozen heads by arm: the name of their cells, the method, whether on more data."""
        dph = method("dph")
        found = {"dph frozen": ("dph-frozen", dph, False)}
        if self.more is not None:
            found["dph frozen, more data"] = ("dph-more", dph, True)
        for pooling in POOLINGS if self.settings.ablation else ():
            for loss in LOSSES:
                named = _variant(pooling, loss)
                name = "dph-frozen" if named == dph else f"{pooling}-{loss}"
                found[f"{ABLATED}{pooling} × {loss}"] = (name, named, False)
        return found

    @property
    def waves(self) -> list[dict[str, Cell]]:
        """Cells by name; none needs another."""
        return [self.cells]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All cells by name."""
        s = self.settings
        found = {"base": self._cell("base", {"arm": "base"}, "base")}
        for arm, (named, pairs) in self.adapters.items():
            for seed in s.seeds:
                own = {"arm": arm, "recipe": recipe_digest(named.recipe), "seed": seed}
                name = f"{arm.replace(' ', '-')}-s{seed}"
                own["train"] = pairs.digest
                found[name] = self._cell(name, own, "adapter", arm=arm, seed=seed)
        for arm, (start, named, more) in self.heads.items():
            for seed in s.head_seeds:
                own = {"arm": "frozen", "recipe": recipe_digest(named.recipe)}
                own |= {"train": self._pairs(more).digest, "seed": seed}
                name = f"{start}-s{seed}"
                found.setdefault(name, self._cell(name, own, "frozen", arm=arm, seed=seed))
        own = {"arm": "untouched", "train": self.train.digest}
        found["untouched"] = self._cell("untouched", own, "untouched")
        return found

    def _cell(self, name: str, inputs: dict[str, Any], run: str, **own: Any) -> Cell:
        return planned(self, self.out, self.settings, name, inputs, run, **own)

    def _pairs(self, more: bool) -> PairSet:
        return self.more if more and self.more is not None else self.train

    def write(self, command: str, title: str) -> Path:
        """The result files, all cells being done."""
        s, found = self.settings, {name: cell.read() for name, cell in self.cells.items()}
        table: Table = {(BASE, LOGPROB): {task: {None: found["base"][task]} for task in self.tests}}
        for arm in self.adapters:
            own = [found[f"{arm.replace(' ', '-')}-s{seed}"] for seed in s.seeds]
            for read_out in own[0]:
                table[arm, read_out] = _by_task(s.seeds, [f[read_out] for f in own])
        ablation: Table = {}
        for arm, (start, _, _) in self.heads.items():
            own = [found[f"{start}-s{seed}"] for seed in s.head_seeds]
            side = ablation if arm.startswith(ABLATED) else table
            side[arm, REWARD] = _by_task(s.head_seeds, own)
        about = described_by(
            self,
            self.cells.values(),
            study="rewards",
            title=title,
            command=command,
            train=" + ".join(s.tasks),
            train_items=len(self.train.items()),
            train_pairs=len(self.train),
            splits={task: Split(task, **sizes(e)) for task, e in self.encoded.items()},
            more={
                "in_domain": list(s.tasks),
                "held_out": list(s.held_out),
                "largest_logit_change_by_a_frozen_head": found["untouched"]["largest"],
                **({} if self.more is None else {"more_items": len(self.more.items())}),
            },
        )
        common: dict[str, Any] = {"model": about.model, "suite": "", "metric": "accuracy"}
        common |= {"at": ALPHA_1, "alpha": None}
        lines = [
            line
            for (arm, read_out), scores in table.items()
            for line in _shares(s, scores, method=arm, read_out=read_out, **common)
        ]
        told = _differences(s, table, COMPARED, common)
        for name, (arm, read_out), scores, tasks in _averages(s, ablation):
            own = {"method": arm, "read_out": read_out, "split": name, **common}
            lines.append(measured(*averaged([scores[t] for t in tasks]), **own))
        first = next(iter(ablation), None)
        pairs = [(side, first) for side in ablation if first and side != first]
        told += _differences(s, ablation, pairs, common)
        return write(self.out, Run(about, tuple(lines), tuple(told)))

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

    def adapter(self, folder: Path, arm: str, seed: int) -> dict[str, Any]:
        """A LoRA's answers by log-prob, and by reward where it has one."""
        dial = self._fitted(*self.adapters[arm], seed, folder / "dial")
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

    def frozen(self, folder: Path, arm: str, seed: int) -> dict[str, list[float]]:
        """A head on the frozen model: trained and read from stored states."""
        _, named, more = self.heads[arm]
        dial: Any = self._fitted(named, self._pairs(more), seed, folder / "dial")
        device = next(self.model.parameters()).device
        found = {}
        for task, encoded in self.encoded.items():
            vectors = aggregate_all(dial.cpu(), self._states(task), answer_spans(encoded))
            with torch.no_grad():
                rewards = dial.to(device).rewards(vectors.to(device))[:, 0].float().cpu()
            found[task] = reward_scores(encoded, rewards).accuracy_choice.tolist()
        return found

    def base(self, folder: Path) -> dict[str, list[float]]:
        """The bare model's answers by log-prob."""
        return {
            task: item_scores(
                encoded, reference(self.model, encoded, logps=True, store=self.store)
            ).accuracy_choice.tolist()
            for task, encoded in self.encoded.items()
        }

    def untouched(self, folder: Path) -> dict[str, float]:
        """The largest change of a logit by an attached frozen head, on a few test items."""
        dial = self._fitted(method("dph"), self.train, self.settings.head_seeds[0], None)
        encoded = next(iter(self.encoded.values()))
        ids = torch.tensor([[*encoded.rows[0].prompt, *encoded.rows[0].answers[0]]])
        ids = ids.to(next(self.model.parameters()).device)
        with torch.no_grad():
            bare = self.model(input_ids=ids).logits
            with dial(self.model, 1.0):
                after = self.model(input_ids=ids).logits
        return {"largest": float((after - bare).abs().max())}

    # ---- parts ----

    def _fitted(self, named: Method, pairs: PairSet, seed: int, out: Path | None) -> Dial:
        return fit(
            named,
            *self.loaded,
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
        encoded = encode(pairs, self.loaded[1], max_length=self.settings.max_length)
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


def _averages(settings: RewardComparison, table: Table) -> Iterator[tuple[Any, ...]]:
    """Both averages of every side of a table: split, side, its scores, the tasks."""
    for side, scores in table.items():
        for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
            yield name, side, scores, tasks


def _shares(
    settings: RewardComparison, found: dict[str, Scores], **labels: Any
) -> list[Measurement]:
    """A line a task, and one for each of the two averages."""
    lines = [measured(scores, **labels, split=task) for task, scores in found.items()]
    for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
        lines.append(measured(*averaged([found[t] for t in tasks]), **labels, split=name))
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


def _differences(
    settings: RewardComparison,
    table: Table,
    pairs: Iterable[tuple[Side, Side]],
    common: dict[str, Any],
) -> list[Difference]:
    """One printed table: each of both averages of one side less those of another."""
    lines = []
    for mine, theirs in pairs:
        for name, tasks in ((IN_DOMAIN, settings.tasks), (HELD_OUT, settings.held_out)):
            if mine in table and theirs in table:
                sides = ([table[side][t] for t in tasks] for side in (mine, theirs))
                (a, weights), (b, _) = map(averaged, sides)
                labels = dict(zip(("method", "read_out"), mine, strict=True))
                labels |= dict(zip(("against", "against_read_out"), theirs, strict=True))
                lines.append(compared(a, b, weights, **labels, split=name, **common))
    return judged(lines)
