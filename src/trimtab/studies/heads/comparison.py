"""An alignment head beside DPO, GenARM and ARGS at equal data: preference accuracy and KL over
alpha, tokens a second of each, from cells that are resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from trimtab import models
from trimtab.batching import Encoded, collate, encode, layout_for, plan_batches
from trimtab.bounds import Bounded, Count, Positive, Several, Strength, Whole
from trimtab.cache import Features, Store, features
from trimtab.dials import Dial, LogitsDial
from trimtab.errors import ConfigError
from trimtab.evaluation.decoding import (
    Decoder,
    args_rewards,
    decode,
    generate_args,
    generate_genarm,
)
from trimtab.evaluation.generation import Sampling, end_ids
from trimtab.evaluation.items import check_alphas, item_scores
from trimtab.evaluation.rewards import token_rewards
from trimtab.files import write_json, write_lines
from trimtab.objectives.heads import told_apart
from trimtab.pairs import read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.rendering import USUAL, Rendering
from trimtab.states import Readings, head_site, read_tokens
from trimtab.statistics import POSITIVE, SHARE
from trimtab.studies.heads.cells import (
    STUDY,
    Cells,
    Scores,
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
from trimtab.training.heads import after_head
from trimtab.training.run import recipe_digest

Lean = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(answers, states, bare logits, alpha) to logits."""
ARMS = ("iav", "dpo", "genarm", "args")
ANSWERS = 8
"""Answers whose logits are held at once."""


@dataclass(frozen=True)
class HeadComparison(Bounded):
    """What is trained, on how much, and judged where."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    train: str = "hh:harmless-base/test[1500:]"
    """Pairs that every arm is trained on."""
    tests: tuple[str, ...] = ("hh:harmless-base/test[:1500]",)
    """Pairs to be judged on."""
    train_limit: Count | None = None
    """The first so many training items."""
    test_limit: Several | None = None
    """The first so many items of each test."""
    alphas: tuple[Strength, ...] = (0.5, 1.0, 1.5, 2.0)
    """Strengths, 1 among them."""
    kl_items: Several = 50
    """Items of each test on whose answers the KL is measured, the first ones."""
    args_answers: Several = 6
    """Answers on which that of ARGS is, which takes a pass a token."""
    k: Several = 10
    """Tokens among which ARGS chooses."""
    epochs: Positive = 2.0
    """Passes of DPO and of GenARM over the pairs."""
    head_epochs: Positive = 5.0
    """Passes of the head, which a store makes cheap."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of what trains an adapter."""
    head_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of what trains a head on the frozen model."""
    new_tokens: Whole = 32
    """Tokens that are generated to take the time; 0 takes none."""
    rounds: Count = 5
    """How often each arm generates them, the arms in turn."""
    max_length: Count = 256
    """Pairs longer than this many tokens are dropped and counted."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads; the last bits of the figures depend on them."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alphas(self.alphas)
        if 1.0 not in self.alphas or 0.0 in self.alphas or len(set(self.alphas)) < len(self.alphas):
            raise ConfigError(
                "alphas: expected each once, 1 among them and not 0, which is the base"
            )
        if not self.tests or len(set(self.tests)) < len(self.tests):
            raise ConfigError("tests: expected at least one, each once")
        check_seeds("seeds", self.seeds)
        check_seeds("head_seeds", self.head_seeds)


def compare_heads(
    settings: HeadComparison,
    out: str | Path,
    *,
    command: str = "",
    title: str = "An alignment head",
    progress: Progress = SILENT,
) -> Path:
    """Run every cell that is not done yet and write the result files.

    Returns:
        The folder: `heads.json`, `results.jsonl` (accuracy and KL by arm, test and alpha),
        `verdicts.jsonl` (differences at alpha 1), `rates.jsonl` (tokens a second).

    Raises:
        TrimtabError: anything that keeps the run from starting, before the model is loaded; or what
            stopped it. The same call goes on from there.
    """
    with threads_of(settings.threads):
        return _Run(settings, out, progress).run(command, title)


@dataclass(frozen=True)
class _Test:
    """A test as token rows, with the bare model's states at the head."""

    encoded: Encoded
    states: Features
    ids: list[Tensor]


class _Run:
    """The model, the data, and the cells made of both."""

    def __init__(self, settings: HeadComparison, out: str | Path, progress: Progress):
        self.settings, self.progress = settings, progress
        models.check(settings.model)
        device = models.resolve_device(settings.device)
        models.resolve_dtype(settings.dtype, device)
        root = settings.data_root
        self.train = read_pairs(settings.train, root, limit=settings.train_limit)
        pairs = {t: read_pairs(t, root, limit=settings.test_limit) for t in settings.tests}
        common = {
            "model": models.identify(settings.model).whole,
            "dtype": settings.dtype,
            "device": device.type,
            "threads": settings.threads,
            "max_length": settings.max_length,
            "train": self.train.digest,
            "tests": {test: p.digest for test, p in pairs.items()},
            "alphas": list(settings.alphas),
            "kl_items": settings.kl_items,
            **({"rendering": record} if (record := settings.rendering.record()) else {}),
        }
        self.cells = Cells(out, common, progress)
        progress.say(f"loading {settings.model}")
        self.model, self.tokenizer = models.load(
            settings.model, dtype=settings.dtype, device=settings.device
        )
        self.store = Store(self.cells.out / "cells" / "states")
        self.after = after_head(self.model)
        self.encoded_train = self._encode(self.train)
        self.encoded = {test: self._encode(p) for test, p in pairs.items()}
        self.read: dict[str, _Test] = {}

    def run(self, command: str, title: str) -> Path:
        """Everything."""
        s, out = self.settings, self.cells.out
        stored = self.cells.get("states", {"arm": "states"}, lambda _: self._stored())
        base = self.cells.get("base", {"arm": "base"}, lambda _: self._base())
        found: dict[str, dict[int, Any]] = {}
        methods = self._methods()
        for arm in ARMS:
            seeds = s.head_seeds if arm in ("iav", "args") else s.seeds
            found[arm] = {seed: self._arm(arm, methods[arm], seed, base) for seed in seeds}
        rates = self._rates(methods) if s.new_tokens else []
        zero = self.cells.get(
            "zero", {"arm": "zero"}, lambda _: {"equal": self._equal_at_zero(methods["iav"])}
        )
        write_lines(out / "results.jsonl", identified(self.model, self._lines(base, found)))
        write_lines(out / "verdicts.jsonl", self._differences(base, found))
        write_lines(out / "rates.jsonl", rates)
        sizes = {"items": self.encoded_train.n_items, "pairs": self.encoded_train.n_pairs}
        what = described(
            self.model,
            s,
            command,
            s.threads,
            versions=self.cells.versions(),
            kind="heads",
            title=title,
            train=sizes | {"dropped": self.encoded_train.dropped_pairs},
            tests={
                test: {"items": e.n_items, "pairs": e.n_pairs, "dropped": e.dropped_pairs}
                for test, e in self.encoded.items()
            },
            alpha_0_is_the_bare_model=zero["equal"],
            clock="processor" if self._one_thread else "wall",
            seconds_to_store=stored["seconds"],
            seconds_to_train={arm: by[min(by)]["fit_seconds"] for arm, by in found.items()},
            cpu_seconds=self.cells.seconds(),
        )
        (out / "study.json").unlink(missing_ok=True)
        write_json(out / STUDY, what)
        return results.write(out, results.read(out))

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

    def _stored(self) -> dict[str, float]:
        """The training pairs' states, as `fit iav` will look for them."""
        start = time.process_time()
        self._features(self.encoded_train)
        return {"seconds": time.process_time() - start}

    def _base(self) -> dict[str, Any]:
        found = {}
        for test in self.settings.tests:
            logps, _ = self._leaned(test, lambda _answers, _h, z, _alpha: z, 0.0)
            found[test] = {
                "logps": logps.tolist(),
                "accuracy": self._accuracy(test, logps),
            }
        return found

    def _arm(self, arm: str, named: Method, seed: int, base: Any) -> dict[str, Any]:
        """Scores by test and alpha, and what training took."""
        s = self.settings
        own = {"arm": arm, "recipe": recipe_digest(named.recipe), "seed": seed}
        own |= {"k": s.k, "answers": s.args_answers} if arm == "args" else {}

        def make(folder: Path) -> dict[str, Any]:
            start = time.process_time()
            dial: Any = self._fitted(named, seed, folder / "dial")
            took = time.process_time() - start
            tests = {}
            for test in s.tests:
                self.progress.say(f"{arm}, seed {seed}: {test}")
                read = self._args if arm == "args" else self._dialled
                tests[test] = read(arm, dial, test, torch.tensor(base[test]["logps"]))
            return {"fit_seconds": took, "tests": tests}

        return self.cells.get(f"{arm}-s{seed}", own, make)

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

    def _equal_at_zero(self, iav: Method) -> bool:
        """Whether the logits at alpha 0 are the bare model's, to the last bit."""
        dial = self._dial("iav", iav, self.settings.head_seeds[0])
        row = next(iter(self.encoded.values())).rows[0]
        ids = torch.tensor([[*row.prompt, *row.answers[0]]])
        ids = ids.to(next(self.model.parameters()).device)
        with torch.no_grad():
            bare = self.model(input_ids=ids).logits
            with dial(self.model, 0.0):
                return bool(torch.equal(self.model(input_ids=ids).logits, bare))

    # ---- rates ----

    def _rates(self, methods: dict[str, Method]) -> Rows:
        """Tokens a second of each arm, one row at a time, arms in turn."""
        s = self.settings
        own = {"arm": "rates", "tokens": s.new_tokens, "rounds": s.rounds, "k": s.k}
        found = self.cells.get("rates", own, lambda _: self._timed(methods))
        lines, pair = [], found["genarm"]
        for arm, seconds in found.items():
            ratios = sorted(b / a for a, b in zip(seconds, found["base"], strict=True))
            lines.append(
                {
                    "arm": arm,
                    "tokens_per_second": s.new_tokens / median(seconds),
                    "of_base": median(ratios),
                    "low": ratios[0],
                    "high": ratios[-1],
                    "of_genarm": median(b / a for a, b in zip(seconds, pair, strict=True)),
                    "rounds": len(seconds),
                }
            )
        return lines

    def _timed(self, methods: dict[str, Method]) -> dict[str, list[float]]:
        s = self.settings
        dials: dict[str, Any] = {
            arm: self._dial(
                arm, methods[arm], (s.head_seeds if arm in ("iav", "args") else s.seeds)[0]
            )
            for arm in ARMS
        }
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
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return on_cpu and self.settings.threads == 1

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
        if test not in self.read:
            encoded = self.encoded[test]
            ids = [
                torch.tensor(a[0 if row.prompt else 1 :])
                for row in encoded.rows
                for a in row.answers
            ]
            self.read[test] = _Test(encoded, self._features(encoded), ids)
        return self.read[test]

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

    def _dial(self, arm: str, named: Method, seed: int) -> Dial:
        """The dial of a cell that is done."""
        own = {"arm": arm, "recipe": recipe_digest(named.recipe), "seed": seed}
        own |= (
            {"k": self.settings.k, "answers": self.settings.args_answers} if arm == "args" else {}
        )
        return self._fitted(named, seed, self.cells.folder(f"{arm}-s{seed}", own) / "dial")

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

    def _lines(self, base: Any, found: dict[str, dict[int, Any]]) -> Rows:
        lines = []
        for test in self.settings.tests:
            own: dict[str, Any] = {"split": test, "metric": "accuracy"}
            scores: Scores = {None: base[test]["accuracy"]}
            lines.append(mean_line(scores, arm="base", alpha=0.0, **own))
            for arm, by_seed in found.items():
                for alpha in self.settings.alphas:
                    for metric in ("accuracy", "kl"):
                        scores = _column(by_seed, test, alpha, metric)
                        own = {"arm": arm, "alpha": alpha, "split": test, "metric": metric}
                        within = SHARE if metric == "accuracy" else POSITIVE
                        lines.append(mean_line(scores, within=within, **own))
        return lines

    def _differences(self, base: Any, found: dict[str, dict[int, Any]]) -> Rows:
        """The head less every other arm at alpha 1, and DPO less the bare model."""
        lines = []
        for test in self.settings.tests:
            at_1: dict[str, Scores] = {
                arm: _column(by_seed, test, 1.0, "accuracy") for arm, by_seed in found.items()
            }
            at_1["base"] = {None: base[test]["accuracy"]}
            for arm, against in (
                ("iav", "base"),
                ("iav", "dpo"),
                ("iav", "genarm"),
                ("iav", "args"),
                ("dpo", "base"),
            ):
                own = {"arm": arm, "against": against, "alpha": 1.0, "split": test}
                lines.append(difference_line(at_1[arm], at_1[against], **own))
        return judged(lines)


def _column(by_seed: dict[int, Any], test: str, alpha: float, metric: str) -> Scores:
    return {seed: found["tests"][test][f"{alpha:g}"][metric] for seed, found in by_seed.items()}
