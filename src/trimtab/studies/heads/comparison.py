"""An alignment head beside DPO, GenARM and ARGS at equal data: preference accuracy and KL over
alpha, tokens a second of each, from cells that are resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trimtab import models
from trimtab.batching import Encoded, collate, encode, layout_for, plan_batches
from trimtab.dials import Dial, LogitsDial
from trimtab.evaluation.decoding import (
    Decoder,
    args_rewards,
    decode,
    generate_args,
    generate_genarm,
)
from trimtab.evaluation.generation import Sampling, end_ids
from trimtab.evaluation.items import item_scores
from trimtab.evaluation.rewards import token_rewards
from trimtab.models.heads import after_head, head_site
from trimtab.objectives.heads import told_apart
from trimtab.pairs import read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.readings import Features, features
from trimtab.states import Readings, read_tokens
from trimtab.statistics import POSITIVE, SHARE
from trimtab.store import Store
from trimtab.studies.heads.settings import HeadComparison
from trimtab.study.about import described_by, sizes
from trimtab.study.cells import Cell, Host, planned, setting_of
from trimtab.study.files import free_folder
from trimtab.study.lines import Scores, compared, judged, measured
from trimtab.study.results import ALPHA_1, BASE, Difference, Measurement, Run, Split, write
from trimtab.study.workers import work_stage
from trimtab.training import Method, fit, method
from trimtab.training.run import recipe_digest

Lean = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(answers, states, bare logits, alpha) to logits."""
ARMS = ("iav", "dpo", "genarm", "args")
ANSWERS = 8
"""Answers whose logits are held at once."""


def compare_heads(
    settings: HeadComparison,
    out: str | Path,
    *,
    jobs: int = 1,
    ray: bool = False,
    command: str = "",
    title: str = "An alignment head",
    progress: Progress = SILENT,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    Args:
        jobs: cells at once, each in a process of its own.
        ray: spread the cells over a Ray cluster.

    Returns:
        The folder: `results.jsonl` (accuracy and KL by arm, test and alpha), `verdicts.jsonl` (differences
        at alpha 1), `costs.json` (tokens a second).

    Raises:
        StudyError: cells failed; the text says which and why.
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or what
            stopped it. The same call goes on from there.
    """
    out = free_folder(out, "cells", "heads.json", "study.json").absolute()
    many: dict[str, Any] = {"jobs": jobs, "ray": ray, "progress": progress}
    return work_stage("heads", Stage, settings, out, **many).write(command, title)


@dataclass(frozen=True)
class _Test:
    """A test as token rows, with the bare model's states at the head."""

    encoded: Encoded
    states: Features
    ids: list[Tensor]


class Stage:
    """The model, the data, and the cells made of both."""

    @staticmethod
    def read(values: Any) -> HeadComparison:
        """The settings as JSON values had them."""
        return setting_of(HeadComparison, values)

    def __init__(self, settings: HeadComparison, out: Path, host: Host):
        self.settings, self.out, self.host, self.progress = settings, out, host, host.progress
        models.check(settings.model)
        self.device = models.resolve_device(settings.device)
        models.resolve_dtype(settings.dtype, self.device)
        root = settings.data_root
        self.train = read_pairs(settings.train, root, limit=settings.train_limit)
        self.pairs = {t: read_pairs(t, root, limit=settings.test_limit) for t in settings.tests}
        self.common = {
            "format": 1,
            "model": models.identify(settings.model).whole,
            "dtype": settings.dtype,
            "device": self.device.type,
            "threads": settings.threads,
            "max_length": settings.max_length,
            "train": self.train.digest,
            "tests": {test: p.digest for test, p in self.pairs.items()},
            "alphas": list(settings.alphas),
            "kl_items": settings.kl_items,
            **({"rendering": record} if (record := settings.rendering.record()) else {}),
        }
        self.store = Store(out / "cells" / "states")
        self.kept: dict[str, _Test] = {}

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return self.host.load(self.settings)

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.loaded[1]

    @cached_property
    def after(self) -> Any:
        """What the model does to its head's output."""
        return after_head(self.model)

    @cached_property
    def encoded_train(self) -> Encoded:
        """The training pairs as tokens."""
        return self._encode(self.train)

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """The tests as tokens."""
        return {test: self._encode(p) for test, p in self.pairs.items()}

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The arms' methods."""
        return self._methods()

    @cached_property
    def waves(self) -> list[dict[str, Cell]]:
        """Cells by name: what the arms need, the arms, what needs the arms."""
        s = self.settings
        own = {"arm": "rates", "tokens": s.new_tokens, "rounds": s.rounds, "k": s.k}
        rates = {"rates": self._cell("rates", own, "rates")} if s.new_tokens else {}
        return [
            {name: self._cell(name, {"arm": name}, name) for name in ("states", "base")},
            {
                f"{arm}-s{seed}": self._of_arm(arm, seed)
                for arm in ARMS
                for seed in self._seeds(arm)
            },
            {**rates, "zero": self._cell("zero", {"arm": "zero"}, "zero")},
        ]

    def _cell(self, name: str, inputs: dict[str, Any], run: str, **own: Any) -> Cell:
        return planned(self, self.out, self.settings, name, inputs, run, **own)

    def _of_arm(self, arm: str, seed: int) -> Cell:
        s = self.settings
        inputs = {"arm": arm, "recipe": recipe_digest(self.methods[arm].recipe), "seed": seed}
        inputs |= {"k": s.k, "answers": s.args_answers} if arm == "args" else {}
        return self._cell(f"{arm}-s{seed}", inputs, "arm", arm=arm, seed=seed)

    def _seeds(self, arm: str) -> tuple[int, ...]:
        return self.settings.head_seeds if arm in ("iav", "args") else self.settings.seeds

    def write(self, command: str, title: str) -> Path:
        """The result files, all cells being done."""
        s = self.settings
        cells = {name: cell for wave in self.waves for name, cell in wave.items()}
        found: dict[str, dict[int, Any]] = {
            arm: {seed: cells[f"{arm}-s{seed}"].read() for seed in self._seeds(arm)} for arm in ARMS
        }
        base, zero, stored = (cells[name].read() for name in ("base", "zero", "states"))
        rates = self._rates(cells["rates"].read()) if s.new_tokens else {}
        for arm, by_seed in found.items():
            rates.setdefault(arm, {})["fit_seconds"] = by_seed[min(by_seed)]["fit_seconds"]
        about = described_by(
            self,
            cells.values(),
            study="heads",
            title=title,
            command=command,
            train=s.train,
            train_items=self.encoded_train.n_items,
            train_pairs=self.encoded_train.n_pairs,
            splits={test: Split(test, **sizes(e)) for test, e in self.encoded.items()},
            more={
                "alpha_0_is_the_bare_model": zero["equal"],
                "train_dropped": self.encoded_train.dropped_pairs,
                "seconds_to_store": stored["seconds"],
                "clock": "processor" if self._one_thread else "wall",
            },
        )
        lines = self._lines(about.model, base, found)
        told = self._differences(about.model, base, found)
        return write(self.out, Run(about, tuple(lines), tuple(told), costs=rates))

    # ---- cells ----

    def _methods(self) -> dict[str, Method]:
        """The arms' methods; ARGS gets a reward that there is at every token."""
        made = {}
        for arm in ("iav", "dpo", "genarm"):
            named = method(arm)
            recipe: Any = named.recipe
            epochs = self.settings.head_epochs if arm == "iav" else self.settings.epochs
            train = replace(recipe.train, epochs=epochs)
            made[arm] = replace(named, recipe=replace(recipe, train=train))
        dph = method("dph")
        recipe = dph.recipe
        last = replace(dph, recipe=replace(recipe, dial=replace(recipe.dial, aggregate="last")))  # type: ignore[arg-type]
        return {**made, "args": last}

    def states(self, folder: Path) -> dict[str, float]:
        """The training pairs' states, as `fit iav` will look for them."""
        encoded = self.encoded_train
        start = time.process_time()
        self._features(encoded)
        return {"seconds": time.process_time() - start}

    def base(self, folder: Path) -> dict[str, Any]:
        """Log-probs and accuracy of the bare model by test."""
        found = {}
        for test in self.settings.tests:
            logps, _ = self._leaned(test, lambda _answers, _h, z, _alpha: z, 0.0)
            found[test] = {
                "logps": logps.tolist(),
                "accuracy": self._accuracy(test, logps),
            }
        return found

    def arm(self, folder: Path, arm: str, seed: int) -> dict[str, Any]:
        """Scores by test and alpha, and what training took."""
        base = self.waves[0]["base"].read()
        start = time.process_time()
        dial: Any = self._fitted(self.methods[arm], seed, folder / "dial")
        took = time.process_time() - start
        tests = {}
        for test in self.settings.tests:
            self.progress.say(f"{arm}, seed {seed}: {test}")
            read = self._args if arm == "args" else self._dialled
            tests[test] = read(arm, dial, test, torch.tensor(base[test]["logps"]))
        return {"fit_seconds": took, "tests": tests}

    def _dialled(self, arm: str, dial: Any, test: str, _: Tensor) -> dict[str, Any]:
        weight = models.head_weight(self.model)
        still = self._with(dial, 1.0, test) if arm == "genarm" else []
        found = {}
        for alpha in self.settings.alphas:
            moved = self._with(dial, alpha, test) if arm == "dpo" else still

            def lean(
                answers: Tensor, h: Tensor, z: Tensor, alpha: float, moved: Any = moved
            ) -> Tensor:
                if arm == "iav":
                    return self._finished(
                        self._logits(h) + alpha * dial.vector(dial.hidden(h), weight)
                    )
                theirs = torch.cat([moved[i] for i in answers.tolist()]).to(z.device)
                theirs = self._finished(self._logits(theirs))
                return theirs if arm == "dpo" else z + alpha * theirs

            logps, kl = self._leaned(test, lean, alpha)
            found[f"{alpha:g}"] = {"accuracy": self._accuracy(test, logps), "kl": kl}
        return found

    def _args(self, _: str, dial: Any, test: str, base: Tensor) -> dict[str, Any]:
        """The mean of ARGS's own score of a token: log-prob + alpha x reward of the text so far."""
        rewards = token_rewards(self.model, dial, self.encoded[test])
        total = torch.tensor([float(r.sum()) for r in rewards])
        kl = self._args_kl(dial, test)
        return {
            f"{alpha:g}": {"accuracy": self._accuracy(test, base + alpha * total), "kl": kl[i]}
            for i, alpha in enumerate(self.settings.alphas)
        }

    @torch.no_grad()
    def _args_kl(self, dial: Any, test: str) -> list[list[float]]:
        """By alpha, KL(softmax over the k likeliest of log-prob + alpha r || bare) of a few answers,
        in nats a token."""
        s, ends = self.settings, end_ids(self.model, self.tokenizer)
        found: list[list[float]] = [[] for _ in s.alphas]
        answers = [(row.prompt, a) for row in self.encoded[test].rows for a in row.answers]
        for prompt, answer in answers[: s.args_answers]:
            if not prompt:
                continue
            rows = Decoder(self.model, prompt, 1, dial.sites, room=len(answer))
            total = torch.zeros(len(s.alphas))
            for token in answer:
                logps, likely = rows.logits[0].log_softmax(-1).topk(s.k)
                fed = torch.cat([likely.cpu(), torch.tensor([token])])  # the answer's own one too
                r = args_rewards(rows, dial, fed, ends)[: s.k]
                for i, alpha in enumerate(s.alphas):
                    q = (logps + alpha * r).log_softmax(-1)
                    total[i] += float((q.exp() * (q - logps)).sum())
                logits = rows.logits
                rows.select(torch.tensor([s.k]))
                rows.logits = logits[s.k :]
            for i in range(len(s.alphas)):
                found[i].append(float(total[i]) / len(answer))
        return found

    def zero(self, folder: Path) -> dict[str, bool]:
        """Whether the logits at alpha 0 are the bare model's, to the last bit."""
        dial = self._dial("iav")
        row = next(iter(self.encoded.values())).rows[0]
        ids = torch.tensor([[*row.prompt, *row.answers[0]]])
        ids = ids.to(next(self.model.parameters()).device)
        with torch.no_grad():
            bare = self.model(input_ids=ids).logits
            with dial(self.model, 0.0):
                return {"equal": bool(torch.equal(self.model(input_ids=ids).logits, bare))}

    # ---- rates ----

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

    def rates(self, folder: Path) -> dict[str, list[float]]:
        """Seconds of each arm by round, one row at a time, arms in turn."""
        s = self.settings
        dials: dict[str, Any] = {arm: self._dial(arm) for arm in ARMS}
        row = next(iter(self.encoded.values())).rows[0]
        text = self.tokenizer.decode(row.prompt)
        iav: LogitsDial = dials["iav"]
        merged = iav.merged(self.model, 1.0).eval()
        sampling = Sampling(max_new_tokens=s.new_tokens)

        def plain(model: Any, dial: Dial | None = None) -> None:
            if dial is None:
                decode(model, row.prompt, s.new_tokens)
                return
            with dial(self.model, 1.0):
                decode(model, row.prompt, s.new_tokens)

        how: dict[str, Any] = {"sampling": sampling, "prompt_style": "plain", "ends": ()}
        both = (self.model, self.tokenizer, text)
        work: dict[str, Callable[[], Any]] = {
            "base": lambda: plain(self.model),
            "iav": lambda: plain(self.model, iav),
            "iav merged": lambda: plain(merged),
            "dpo": lambda: plain(self.model, dials["dpo"]),
            "genarm": lambda: generate_genarm(*both, dials["genarm"], 1.0, **how),
            "args": lambda: generate_args(*both, dials["args"], 1.0, k=s.k, **how),
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

    # ---- reading ----

    @torch.no_grad()
    def _leaned(self, test: str, lean: Lean, alpha: float) -> tuple[Tensor, list[float]]:
        """Log-probs of every answer, and KL to the bare model a token of the first items' answers."""
        at = self._test(test)
        n, rows = at.encoded.n_answers, at.encoded.rows
        first = list(dict.fromkeys(row.item for row in rows))[: self.settings.kl_items]
        item_of = [row.item for row in rows for _ in row.answers]
        device = next(self.model.parameters()).device
        logps, away = torch.zeros(n), torch.zeros(n)
        for answers in torch.arange(n).split(ANSWERS):
            h, counts = at.states.take(answers)
            h = h.to(device)
            ids = torch.cat([at.ids[i] for i in answers.tolist()]).to(device)
            z = self._finished(self._logits(h))
            u = lean(answers, h, z, alpha)
            of = torch.arange(len(counts)).repeat_interleave(counts)
            if any(item_of[i] in first for i in answers.tolist()):
                token, _, kl = told_apart(u, z, ids)
                away[answers] = torch.zeros(len(counts)).index_add(0, of, kl.float().cpu())
            else:
                token = u.gather(-1, ids[:, None])[:, 0] - u.logsumexp(-1)
            logps[answers] = torch.zeros(len(counts)).index_add(0, of, token.float().cpu())
        by_item = []
        for item in first:
            mine = [i for i, other in enumerate(item_of) if other == item]
            by_item.append(float(away[mine].sum() / at.states.counts[mine].sum()))
        return logps, by_item

    def _logits(self, h: Tensor) -> Tensor:
        """What the base head makes of states `[token, 1, d]`."""
        return models.head_logits(self.model, h[:, 0]).float()

    def _finished(self, z: Tensor) -> Tensor:
        """What the model does to its head's output."""
        return z if self.after is None else self.after(z)

    @torch.no_grad()
    def _with(self, dial: Dial, alpha: float, test: str) -> list[Tensor]:
        """States at the head of every answer with a dial attached."""
        encoded, site = self.encoded[test], head_site(self.model)
        layout = layout_for(self.model, "predicting", encoded)
        device = next(self.model.parameters()).device
        found: list[Tensor] = [torch.empty(0)] * encoded.n_answers
        with dial(self.model, alpha):
            for rows in plan_batches(encoded, 2048, layout):
                batch = collate(encoded, rows, layout).to(device)
                states, counts, _ = read_tokens(self.model, batch, (site,), "predicting")
                parts = states.cpu().split(counts.tolist())
                for answer, part in zip(batch.answer_ids.tolist(), parts, strict=True):
                    found[answer] = part
        return found

    def _test(self, test: str) -> _Test:
        if test not in self.kept:
            encoded = self.encoded[test]
            ids = [
                torch.tensor(a[0 if row.prompt else 1 :])
                for row in encoded.rows
                for a in row.answers
            ]
            self.kept[test] = _Test(encoded, self._features(encoded), ids)
        return self.kept[test]

    def _accuracy(self, test: str, logps: Tensor) -> list[float]:
        found = Readings(logps, self._test(test).states.counts)
        return item_scores(self.encoded[test], found).accuracy.tolist()

    def _features(self, encoded: Encoded) -> Features:
        label = f"storing states of {encoded.name}"
        with self.progress.bar(label, encoded.n_answers, "answers") as update:
            return features(
                self.model,
                encoded,
                (head_site(self.model),),
                "predicting",
                store=self.store,
                progress=update,
            )

    def _encode(self, pairs: Any) -> Encoded:
        most = self.settings.max_length
        encoded = encode(pairs, self.tokenizer, max_length=most, rendering=self.settings.rendering)
        self.progress.rendered(pairs.name, len(pairs), encoded, most, models.context(self.model))
        return encoded

    def _dial(self, arm: str) -> Dial:
        """The dial of an arm's first seed, which is done."""
        seed = self._seeds(arm)[0]
        return self._fitted(self.methods[arm], seed, self._of_arm(arm, seed).folder / "dial")

    def _fitted(self, named: Method, seed: int, out: Path) -> Dial:
        return fit(
            named,
            self.model,
            self.tokenizer,
            self.train,
            out=out,
            seed=seed,
            max_length=self.settings.max_length,
            rendering=self.settings.rendering,
            store=self.store,
            progress=self.progress,
        )

    # ---- lines ----

    def _lines(self, model: str, base: Any, found: dict[str, dict[int, Any]]) -> list[Measurement]:
        lines = []
        common: dict[str, Any] = {"model": model, "suite": ""}
        for test in self.settings.tests:
            own = {**common, "split": test, "metric": "accuracy"}
            scores: Scores = {None: base[test]["accuracy"]}
            lines.append(measured(scores, method=BASE, alpha=0.0, at=ALPHA_1, **own))
            for arm, by_seed in found.items():
                for alpha in self.settings.alphas:
                    for metric in ("accuracy", "kl"):
                        scores = _column(by_seed, test, alpha, metric)
                        own |= {"metric": metric, "at": ALPHA_1 if alpha == 1 else None}
                        within = SHARE if metric == "accuracy" else POSITIVE
                        lines.append(
                            measured(scores, within=within, method=arm, alpha=alpha, **own)
                        )
        return lines

    def _differences(
        self, model: str, base: Any, found: dict[str, dict[int, Any]]
    ) -> list[Difference]:
        """The head less every other arm at alpha 1, and DPO less the bare model."""
        lines = []
        common: dict[str, Any] = {"model": model, "suite": "", "metric": "accuracy"}
        for test in self.settings.tests:
            at_1: dict[str, Scores] = {
                arm: _column(by_seed, test, 1.0, "accuracy") for arm, by_seed in found.items()
            }
            at_1[BASE] = {None: base[test]["accuracy"]}
            for arm, against in (
                ("iav", BASE),
                ("iav", "dpo"),
                ("iav", "genarm"),
                ("iav", "args"),
                ("dpo", BASE),
            ):
                own = {
                    "method": arm,
                    "against": against,
                    "alpha": 1.0,
                    "at": ALPHA_1,
                    "split": test,
                }
                lines.append(compared(at_1[arm], at_1[against], **own, **common))
        return judged(lines)


def _column(by_seed: dict[int, Any], test: str, alpha: float, metric: str) -> Scores:
    return {seed: found["tests"][test][f"{alpha:g}"][metric] for seed, found in by_seed.items()}
