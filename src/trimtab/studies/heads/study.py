"""An alignment head beside DPO, GenARM and ARGS at equal data: preference accuracy and KL over
alpha, tokens a second of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trimtab import models
from trimtab.batching import Encoded
from trimtab.dials import Dial
from trimtab.evaluation.decoding import decode, generate_args, generate_genarm
from trimtab.evaluation.generation import Sampling, end_ids
from trimtab.evaluation.rewards import token_rewards
from trimtab.models.heads import head_site
from trimtab.pairs import read_pairs
from trimtab.statistics import POSITIVE, SHARE
from trimtab.studies.heads.reading import Test
from trimtab.studies.heads.settings import HeadComparison
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.lines import Scores, compared, judged, measured
from trimtab.study.on_model import OnModel
from trimtab.study.results import ALPHA_1, BASE, Difference, Measurement, Run
from trimtab.study.settings import varied
from trimtab.training import Method
from trimtab.training.run import recipe_digest

ARMS = ("iav", "dpo", "genarm", "args")
AGAINST = (("iav", BASE), ("iav", "dpo"), ("iav", "genarm"), ("iav", "args"), ("dpo", BASE))
"""What is compared at alpha 1, and with what."""

Found = dict[str, dict[int, Any]]
"""What the arms' cells found, by arm and seed."""


class Heads(OnModel[HeadComparison]):
    """The model, the data, and the cells made of both. Result files: `results.jsonl` (accuracy and KL by arm,
    test and alpha), `verdicts.jsonl` (differences at alpha 1), `costs.json` (tokens a second)."""

    name, title, Settings = "heads", "An alignment head", HeadComparison
    marks = ("cells", "heads.json", "study.json")

    def __init__(self, settings: HeadComparison, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        s = settings
        self.train = read_pairs(s.train, s.data_root, limit=s.train_limit)
        self.tests = {t: read_pairs(t, s.data_root, limit=s.test_limit) for t in s.tests}
        self.common |= {
            "train": self.train.digest,
            "tests": {test: p.digest for test, p in self.tests.items()},
            "alphas": list(s.alphas),
            "kl_items": s.kl_items,
        }

    @cached_property
    def encoded_train(self) -> Encoded:
        """The training pairs as tokens."""
        return self.encode(self.train)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The arms' methods; ARGS gets a reward that there is at every token."""
        s = self.settings
        passes = {"iav": s.head_epochs, "dpo": s.epochs, "genarm": s.epochs}
        made = {arm: varied(arm, arm, {"train.epochs": n}, arm) for arm, n in passes.items()}
        return {**made, "args": varied("dph", "dph", {"dial.aggregate": "last"}, "args")}

    def plan(self) -> Iterator[list[Cell]]:
        """What the arms need, the arms, what needs the arms."""
        s = self.settings
        yield [self.cell(name, {"arm": name}, name) for name in ("states", "base")]
        yield [self._of_arm(arm, seed) for arm in ARMS for seed in self._seeds(arm)]
        own = {"arm": "rates", "tokens": s.new_tokens, "rounds": s.rounds, "k": s.k}
        rates = [self.cell("rates", own, "rates")] if s.new_tokens else []
        yield [*rates, self.cell("zero", {"arm": "zero"}, "zero")]

    def _of_arm(self, arm: str, seed: int) -> Cell:
        s = self.settings
        inputs = {"arm": arm, "recipe": recipe_digest(self.methods[arm].recipe), "seed": seed}
        inputs |= {"k": s.k, "answers": s.args_answers} if arm == "args" else {}
        return self.cell(f"{arm}-s{seed}", inputs, "arm", arm=arm, seed=seed)

    def _seeds(self, arm: str) -> tuple[int, ...]:
        return self.settings.head_seeds if arm in ("iav", "args") else self.settings.seeds

    def load(self, cell: Cell) -> Load:
        """What a cell fits and reads."""
        s, arm = self.settings, cell.own.get("arm")
        if cell.label == "rates":
            return self.load_of(tokens=s.new_tokens * (s.rounds + 1) * (len(ARMS) + 2))
        if arm is None:
            read = {"states": [self.train], "base": list(self.tests.values())}
            return self.load_of(reads=[(p, 1) for p in read.get(cell.label, ())])
        passes = {"dpo": len(s.alphas), "args": s.k}.get(arm, 1)
        return self.load_of(
            [(self.methods[arm], self.train)], [(p, passes) for p in self.tests.values()]
        )

    # ---- cells ----

    def states(self, folder: Path) -> dict[str, float]:
        """The training pairs' states, as `fit iav` will look for them."""
        encoded, start = self.encoded_train, time.process_time()
        self.features(encoded, head_site(self.model), "predicting")
        return {"seconds": time.process_time() - start}

    def base(self, folder: Path) -> dict[str, Any]:
        """Log-probs and accuracy of the bare model by test."""
        found = {}
        for test, at in self.tested.items():
            logps, _ = at.leaned(lambda _answers, _h, z, _alpha: z, 0.0)
            found[test] = {"logps": logps.tolist(), "accuracy": at.accuracy(logps)}
        return found

    def arm(self, folder: Path, arm: str, seed: int) -> dict[str, Any]:
        """Scores by test and alpha, and what training took."""
        base = self.cells["base"].read()
        start = time.process_time()
        dial: Any = self.fit(self.methods[arm], self.train, seed, folder / "dial")
        took = time.process_time() - start
        tests = {}
        for test, at in self.tested.items():
            self.progress.say(f"{arm}, seed {seed}: {test}")
            if arm == "args":
                tests[test] = self._args(dial, at, torch.tensor(base[test]["logps"]))
            else:
                tests[test] = self._dialled(arm, dial, at)
        return {"fit_seconds": took, "tests": tests}

    def _dialled(self, arm: str, dial: Any, at: Test) -> dict[str, Any]:
        weight = models.head_weight(self.model)
        still = at.states_with(dial, 1.0) if arm == "genarm" else []
        found = {}
        for alpha in self.settings.alphas:
            moved = at.states_with(dial, alpha) if arm == "dpo" else still

            def lean(
                answers: Tensor, h: Tensor, z: Tensor, alpha: float, moved: Any = moved
            ) -> Tensor:
                if arm == "iav":
                    return at.finished(at.logits(h) + alpha * dial.vector(dial.hidden(h), weight))
                theirs = torch.cat([moved[i] for i in answers.tolist()]).to(z.device)
                theirs = at.finished(at.logits(theirs))
                return theirs if arm == "dpo" else z + alpha * theirs

            logps, kl = at.leaned(lean, alpha)
            found[f"{alpha:g}"] = {"accuracy": at.accuracy(logps), "kl": kl}
        return found

    def _args(self, dial: Any, at: Test, base: Tensor) -> dict[str, Any]:
        """The mean of ARGS's own score of a token: log-prob + alpha x reward of the text so far."""
        s, ends = self.settings, end_ids(self.model, self.tokenizer)
        rewards = token_rewards(self.model, dial, at.encoded)
        total = torch.tensor([float(r.sum()) for r in rewards])
        kl = at.args_kl(dial, s.alphas, s.k, s.args_answers, ends)
        return {
            f"{alpha:g}": {"accuracy": at.accuracy(base + alpha * total), "kl": kl[i]}
            for i, alpha in enumerate(s.alphas)
        }

    def zero(self, folder: Path) -> dict[str, bool]:
        """Whether the logits at alpha 0 are the bare model's, to the last bit."""
        return {"equal": torch.equal(*self.logits(self._dial("iav"), 0.0))}

    def rates(self, folder: Path) -> dict[str, list[float]]:
        """Seconds of each arm by round, one row at a time, arms in turn."""
        s = self.settings
        dials: dict[str, Any] = {arm: self._dial(arm) for arm in ARMS}
        row = next(iter(self.encoded.values())).rows[0]
        merged = dials["iav"].merged(self.model, 1.0).eval()

        def plain(model: Any, dial: Dial | None = None) -> None:
            with dial(model, 1.0) if dial else nullcontext():
                decode(model, row.prompt, s.new_tokens)

        how: dict[str, Any] = {"sampling": Sampling(max_new_tokens=s.new_tokens), "ends": ()}
        how["prompt_style"] = "plain"
        both = (*self.loaded, self.tokenizer.decode(row.prompt))
        work: dict[str, Callable[[], Any]] = {
            "base": partial(plain, self.model),
            "iav": partial(plain, self.model, dials["iav"]),
            "iav merged": partial(plain, merged),
            "dpo": partial(plain, self.model, dials["dpo"]),
            "genarm": partial(generate_genarm, *both, dials["genarm"], 1.0, **how),
            "args": partial(generate_args, *both, dials["args"], 1.0, k=s.k, **how),
        }
        found: dict[str, list[float]] = {arm: [] for arm in work}
        clock = time.process_time if self._one_thread else time.perf_counter
        for number in range(s.rounds + 1):  # the first round warms up
            for arm in work if number % 2 else reversed(work):
                start = clock()
                work[arm]()
                if number:
                    found[arm].append(clock() - start)
        return found

    @property
    def _one_thread(self) -> bool:
        """Whether processor time is time, whatever else the machine does."""
        return self.device.type == "cpu" and self.settings.threads == 1

    @cached_property
    def tested(self) -> dict[str, Test]:
        """The tests with the bare model's states."""
        model, items = self.model, self.settings.kl_items
        site = head_site(model)
        return {
            test: Test(model, encoded, self.features(encoded, site, "predicting"), items)
            for test, encoded in self.encoded.items()
        }

    def _dial(self, arm: str) -> Dial:
        """The dial of an arm's first seed, which is done."""
        seed = self._seeds(arm)[0]
        return self.fit(
            self.methods[arm], self.train, seed, self._of_arm(arm, seed).folder / "dial"
        )

    # ---- result files ----

    def compared(self, command: str, title: str) -> Run:
        """The result files, all cells being done."""
        s, cells = self.settings, self.cells
        found: Found = {
            arm: {seed: cells[f"{arm}-s{seed}"].read() for seed in self._seeds(arm)} for arm in ARMS
        }
        base, zero, stored = (cells[name].read() for name in ("base", "zero", "states"))
        rates = self._rates(cells["rates"].read()) if s.new_tokens else {}
        for arm, by_seed in found.items():
            rates.setdefault(arm, {})["fit_seconds"] = by_seed[min(by_seed)]["fit_seconds"]
        about = self.about(
            title=title,
            command=command,
            seeds=s.seeds,
            train=s.train,
            train_items=self.encoded_train.n_items,
            train_pairs=self.encoded_train.n_pairs,
            more={
                "alpha_0_is_the_bare_model": zero["equal"],
                "train_dropped": self.encoded_train.dropped_pairs,
                "seconds_to_store": stored["seconds"],
                "clock": "processor" if self._one_thread else "wall",
            },
        )
        lines, told = self._lines({"model": about.model, "suite": ""}, base, found)
        return Run(about, tuple(lines), tuple(judged(told)), costs=rates)

    def _rates(self, found: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
        """Tokens a second of each arm, and their ratios to the bare model's and to GenARM's."""
        rates, pair = {}, found["genarm"]
        for arm, seconds in found.items():
            ratios = sorted(b / a for a, b in zip(seconds, found["base"], strict=True))
            rates[arm] = {
                "tokens_per_second": self.settings.new_tokens / median(seconds),
                "of_base": median(ratios),
                "of_base_low": ratios[0],
                "of_base_high": ratios[-1],
                "of_genarm": median(b / a for a, b in zip(seconds, pair, strict=True)),
                "rounds": len(seconds),
            }
        return rates

    def _lines(
        self, common: dict[str, Any], base: Any, found: Found
    ) -> tuple[list[Measurement], list[Difference]]:
        """Figures; and of the head less every other arm at alpha 1, and DPO less the bare model."""
        lines: list[Measurement] = []
        told: list[Difference] = []
        alphas: tuple[float, ...] = self.settings.alphas
        for test in self.settings.tests:
            own = {**common, "split": test}
            at_1: dict[str, Any] = {**own, "metric": "accuracy", "at": ALPHA_1}
            sides: dict[str, Scores] = {BASE: {None: base[test]["accuracy"]}}
            lines.append(measured(sides[BASE], method=BASE, alpha=0.0, **at_1))
            for (arm, by_seed), alpha in product(found.items(), alphas):
                at = {"method": arm, "alpha": alpha, "at": ALPHA_1 if alpha == 1 else None}
                for metric, within in (("accuracy", SHARE), ("kl", POSITIVE)):
                    scores = _column(by_seed, test, alpha, metric)
                    lines.append(measured(scores, within=within, metric=metric, **at, **own))
            sides |= {arm: _column(by, test, 1.0, "accuracy") for arm, by in found.items()}
            told += [
                compared(sides[arm], sides[other], method=arm, against=other, alpha=1.0, **at_1)
                for arm, other in AGAINST
            ]
        return lines, told


def _column(by_seed: dict[int, Any], test: str, alpha: float, metric: str) -> Scores:
    return {seed: found["tests"][test][f"{alpha:g}"][metric] for seed, found in by_seed.items()}


compare_heads = Heads.run_at
