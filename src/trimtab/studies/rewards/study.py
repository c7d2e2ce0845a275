"""Preference heads beside the bare model, SFT and DPO on multiple-choice tasks, with the pooling x
loss ablation: one table of shares, one of differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from trimtab.batching import answer_spans
from trimtab.dials import RewardDial
from trimtab.evaluation.items import item_scores
from trimtab.evaluation.rewards import reward_scores, rewards_of
from trimtab.objectives import ORPO
from trimtab.pairs import PairSet, read_pairs
from trimtab.readings import reference
from trimtab.studies.rewards.settings import RewardComparison
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.lines import Scores, averaged, compared, judged, measured
from trimtab.study.on_model import OnModel
from trimtab.study.results import ALPHA_1, BASE, Difference, Run
from trimtab.study.settings import varied
from trimtab.training import Method, method
from trimtab.training.recipes import ORPORecipe, TrainSettings
from trimtab.training.reward_head import aggregate_all
from trimtab.training.run import recipe_digest

IN_DOMAIN, HELD_OUT = "in-domain average", "held-out average"
LOGPROB, REWARD = "logprob", "reward"
POOLINGS = ("identity", "bert", "swiglu")
LOSSES = ("separable", "contrastive", "listwise")
ABLATED = "dph, "
"""How the methods of the ablation begin."""

Arms = dict[str, tuple[str, Method, PairSet]]
"""By arm the name of its cells, the method, what it is trained on."""
Side = tuple[str, str]
"""Arm and read-out."""
Table = dict[Side, dict[str, Scores]]
"""Scores by side and task."""

FROZEN, JOINT = ("dph frozen", REWARD), ("dph joint", REWARD)
SFT, DPO, JOINT_LOGPROB = (("sft", LOGPROB), ("dpo", LOGPROB), ("dph joint", LOGPROB))
COMPARED = (
    *((FROZEN, side) for side in ((BASE, LOGPROB), SFT, DPO)),
    (("dph frozen, more data", REWARD), DPO),
    *((JOINT, side) for side in ((BASE, LOGPROB), SFT, DPO, JOINT_LOGPROB)),
    (JOINT_LOGPROB, DPO),
    (DPO, SFT),
)
"""Arm and read-out, and what it is set against: the claims of the seed, and what explains them."""


class Rewards(OnModel[RewardComparison]):
    """The model, the data, and the cells made of both. Result files: `results.jsonl` (items answered
    rightly), `verdicts.jsonl` (differences of arms); the ablation's methods are `dph, POOLING × LOSS`."""

    name, title, Settings = "rewards", "Preference heads on multiple choice", RewardComparison
    marks = ("cells", "heads.json", "study.json")

    def __init__(self, settings: RewardComparison, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        s = settings
        self.train = _first(s, s.train_items)
        self.more = _first(s, s.more_items) if s.more_items else None
        self.tests = {
            task: read_pairs(f"choices:{task}/test", s.data_root).limit(s.test_items)
            for task in (*s.tasks, *s.held_out)
        }
        self.common |= {"tests": {task: pairs.digest for task, pairs in self.tests.items()}}

    @cached_property
    def adapters(self) -> Arms:
        """What trains a LoRA, once through the data."""
        dpo = varied("dpo", "dpo", {"train.epochs": 1.0}, "dpo")
        once: Any = dpo.recipe
        sft = ORPORecipe(ORPO(weight_ratio=0.0), train=once.train)
        both = {"objective.weight_dpo": 1.0, "dial.adapter": "lora"}
        joint = varied("dph", "dph", both, "dph joint")
        train = TrainSettings(epochs=1.0, learning_rate=once.train.learning_rate)
        joint = replace(joint, recipe=replace(joint.recipe, train=train))
        # An item's wrong answers are nothing to SFT: one pair an item, so that items count alike.
        each = PairSet([pairs[0] for pairs in self.train.items().values()], self.train.name)
        return {
            "sft": ("sft", Method("sft", sft, dpo.where, "likelihood of the right answer"), each),
            "dpo": ("dpo", dpo, self.train),
            "dph joint": ("dph-joint", joint, self.train),
        }

    @cached_property
    def heads(self) -> Arms:
        """Frozen heads."""
        dph = method("dph")
        found = {"dph frozen": ("dph-frozen", dph, self.train)}
        if self.more is not None:
            found["dph frozen, more data"] = ("dph-more", dph, self.more)
        for pooling, loss in product(POOLINGS, LOSSES) if self.settings.ablation else ():
            named = varied("dph", "dph", {"dial.pooling": pooling, "objective.loss": loss}, "dph")
            name = "dph-frozen" if named == dph else f"{pooling}-{loss}"
            found[f"{ABLATED}{pooling} × {loss}"] = (name, named, self.train)
        return found

    @property
    def _kinds(self) -> tuple[tuple[str, Arms, Sequence[int]], ...]:
        """What runs the cells of the arms, and their seeds."""
        s = self.settings
        return ("adapter", self.adapters, s.seeds), ("frozen", self.heads, s.head_seeds)

    def plan(self) -> Iterator[list[Cell]]:
        """One wave: no cell needs another."""
        found = {"base": self.cell("base", {"arm": "base"}, "base")}
        for run, arms, seeds in self._kinds:
            for (arm, (start, named, pairs)), seed in product(arms.items(), seeds):
                own = {"arm": arm if run == "adapter" else run, "seed": seed}
                own |= {"recipe": recipe_digest(named.recipe), "train": pairs.digest}
                name = f"{start}-s{seed}"
                found.setdefault(name, self.cell(name, own, run, arm=arm, seed=seed))
        own = {"arm": "untouched", "train": self.train.digest}
        found["untouched"] = self.cell("untouched", own, "untouched")
        yield list(found.values())

    def load(self, cell: Cell) -> Load:
        """What a cell fits and reads."""
        arm = cell.own.get("arm", "")
        if cell.label in ("base", "untouched"):
            return self.load_of(reads=[(p, cell.label == "base") for p in self.tests.values()])
        _, named, pairs = self.adapters.get(arm) or self.heads[arm]
        return self.load_of([(named, pairs)], [(p, 1) for p in self.tests.values()])

    # ---- cells ----

    def adapter(self, folder: Path, arm: str, seed: int) -> dict[str, Any]:
        """A LoRA's answers by log-prob, and by reward where it has one."""
        _, named, pairs = self.adapters[arm]
        dial = self.fit(named, pairs, seed, folder / "dial")
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
        _, named, pairs = self.heads[arm]
        dial: Any = self.fit(named, pairs, seed, folder / "dial")
        device = next(self.model.parameters()).device
        found = {}
        for task, encoded in self.encoded.items():
            states = self.features(encoded, "final", "answer")
            vectors = aggregate_all(dial.cpu(), states, answer_spans(encoded))
            with torch.no_grad():
                rewards = dial.to(device).rewards(vectors.to(device))[:, 0].float().cpu()
            found[task] = reward_scores(encoded, rewards).accuracy_choice.tolist()
        return found

    def base(self, folder: Path) -> dict[str, list[float]]:
        """The bare model's answers by log-prob."""
        found = {}
        for task, encoded in self.encoded.items():
            read = reference(self.model, encoded, logps=True, store=self.store)
            found[task] = item_scores(encoded, read).accuracy_choice.tolist()
        return found

    def untouched(self, folder: Path) -> dict[str, float]:
        """The largest change of a logit by an attached frozen head, on a few test items."""
        dial = self.fit(method("dph"), self.train, self.settings.head_seeds[0], None)
        bare, after = self.logits(dial, 1.0)
        return {"largest": float((after - bare).abs().max())}

    # ---- result files ----

    def compared(self, command: str, title: str) -> Run:
        """The result files, all cells being done."""
        s, found = self.settings, {name: cell.read() for name, cell in self.cells.items()}
        table: Table = {(BASE, LOGPROB): {task: {None: found["base"][task]} for task in self.tests}}
        ablation: Table = {}
        for run, arms, seeds in self._kinds:
            for arm, (start, _, _) in arms.items():
                side = ablation if arm.startswith(ABLATED) else table
                own = {seed: found[f"{start}-s{seed}"] for seed in seeds}
                if run == "frozen":
                    own = {seed: {REWARD: shares} for seed, shares in own.items()}
                for read_out in own[seeds[0]]:
                    by = {seed: shares[read_out] for seed, shares in own.items()}
                    side[arm, read_out] = {
                        task: {seed: shares[task] for seed, shares in by.items()}
                        for task in self.tests
                    }
        about = self.about(
            title=title,
            command=command,
            seeds=s.seeds,
            train=" + ".join(s.tasks),
            train_items=len(self.train.items()),
            train_pairs=len(self.train),
            more={
                "in_domain": list(s.tasks),
                "held_out": list(s.held_out),
                "largest_logit_change_by_a_frozen_head": found["untouched"]["largest"],
                **({} if self.more is None else {"more_items": len(self.more.items())}),
            },
        )
        common: dict[str, Any] = {"model": about.model, "suite": "", "metric": "accuracy"}
        common |= {"at": ALPHA_1, "alpha": None}
        lines, first = [], next(iter(ablation), None)
        for (arm, read_out), scores in (table | ablation).items():
            own = {"method": arm, "read_out": read_out, **common}
            if not arm.startswith(ABLATED):
                lines += [measured(scores[task], **own, split=task) for task in scores]
            lines += [
                measured(*averaged([scores[t] for t in tasks]), **own, split=name)
                for name, tasks in self._averages
            ]
        pairs = [(side, first) for side in ablation if first and side != first]
        told = self._differences(table, COMPARED, common)
        told += self._differences(ablation, pairs, common)
        return Run(about, tuple(lines), tuple(told))

    @property
    def _averages(self) -> Sequence[tuple[str, Sequence[str]]]:
        return (IN_DOMAIN, self.settings.tasks), (HELD_OUT, self.settings.held_out)

    def _differences(
        self, table: Table, pairs: Iterable[tuple[Side, Side]], common: dict[str, Any]
    ) -> list[Difference]:
        """One printed table: each of both averages of one side less those of another."""
        lines = []
        for mine, theirs in pairs:
            for name, tasks in self._averages if {mine, theirs} <= set(table) else ():
                sides = ([table[side][t] for t in tasks] for side in (mine, theirs))
                (a, weights), (b, _) = map(averaged, sides)
                labels = dict(zip(("method", "read_out"), mine, strict=True))
                labels |= dict(zip(("against", "against_read_out"), theirs, strict=True))
                lines.append(compared(a, b, weights, **labels, split=name, **common))
        return judged(lines)


def _first(settings: RewardComparison, items: int) -> PairSet:
    """The first items of every task's training split, as many of each as there are."""
    found, left = [], items
    for place, task in enumerate(settings.tasks):
        share = -(-left // (len(settings.tasks) - place))
        pairs = read_pairs(f"choices:{task}/train", settings.data_root).limit(max(share, 1))
        left -= len(pairs.items())
        found += list(pairs)
    return PairSet(found, f"{' + '.join(settings.tasks)} ({items} items)")


compare_rewards = Rewards.run_at
