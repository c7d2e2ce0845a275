"""The gradient of a step: what it is the sum of, and what it must not depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from conftest import count_calls, random_rows
from helpers_fit import (
    adapter,
    fit_module,
    gradients,
    parameters,
    random_pairs,
    recipe,
    relative,
)
from trimtab import models
from trimtab.batching import Encoded, encode, layout_of, plan_training
from trimtab.errors import TrainingError
from trimtab.objectives import DPO, InnerDPO
from trimtab.pairs import PairSet
from trimtab.progress import Progress
from trimtab.readout import Needs, Readout
from trimtab.store import Store
from trimtab.training import adapters, fit, plan
from trimtab.training.recipes import Method, TrainSettings
from trimtab.training.trainer import DialTrainer, FitModule, checkpoints, recomputing


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pairs() -> PairSet:
    return random_pairs(12, items=8)


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


# ---- one step -----------------------------------------------------------------------------------


def trainer_gradient(
    module: FitModule, encoded: Encoded, budget: int, folder: Path, processes: int = 1
) -> tuple[list[torch.Tensor], int]:
    """The gradient of the first step as the Trainer is about to use it, and its microbatches."""
    schedule = plan_training(encoded, pairs_per_step=12, epochs=1, seed=0, budget=budget)
    found: list[torch.Tensor] = []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.extend(p.grad.clone() for p in module.dial.parameters() if p.grad is not None)

    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=schedule.per_step,
        max_steps=1,
        max_grad_norm=math.inf,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = DialTrainer(module, args, schedule, encoded, layout_of(module.model, encoded))
    trainer.add_callback(Spy())
    with module.dial(module.model, 1.0, training=True):
        trainer.train()
    return found, schedule.per_step


@pytest.mark.parametrize("objective", [DPO(), InnerDPO()], ids=["dpo", "innerdpo"])
def test_gradient_is_the_sum_over_pairs(
    objective: Any, tiny: Any, tokenizer: Any, pairs: PairSet, store: Store, tmp_path: Path
) -> None:
    """Each pair alone, added up and divided by pairs_per_step; whatever the microbatches."""
    model = tiny("llama", dtype=torch.float64)
    whole = encode(pairs, tokenizer)
    floor = fit_module(model, adapter(model), objective, whole, store).reference.floor
    parts = []
    for pair in pairs:
        alone = encode(PairSet([pair], "one"), tokenizer)
        module = fit_module(model, adapter(model), objective, alone, store)
        module.reference.floor = floor  # a property of the data set, not of the pair
        parts.append(gradients(module, alone)[1])
    wanted = [torch.stack(same).sum(0) / len(pairs) for same in zip(*parts, strict=True)]
    counts = []
    for budget in (1, 200, 10_000):
        module = fit_module(model, adapter(model), objective, whole, store)
        found, count = trainer_gradient(module, whole, budget, tmp_path / str(budget))
        assert relative(found, wanted) < 1e-6
        counts.append(count)
    assert counts[0] == len(whole.rows) > counts[1] > counts[2]


def test_microbatches_do_not_reach_the_result(
    tiny: Any, tokenizer: Any, pairs: PairSet, tmp_path: Path
) -> None:
    """The same parameters after some steps of `fit`, and the same curve."""
    found, curves = [], []
    for tokens in (1, 150, 5000):
        out = tmp_path / str(tokens)
        fit(
            recipe(microbatch_tokens=tokens, epochs=1.5, learning_rate=1e-3),
            tiny("llama"),
            tokenizer,
            pairs,
            out=out,
        )
        found.append(parameters(out))
        curves.append([json.loads(line) for line in (out / "training.jsonl").open()])
    for other, curve in zip(found[1:], curves[1:], strict=True):
        assert relative(other, found[0]) < 1e-6
        for a, b in zip(curve, curves[0], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", [DPO(), InnerDPO(weight_outer=0)], ids=["dpo", "states"])
def test_activation_checkpointing(
    name: str, objective: Any, tiny: Any, tokenizer: Any, pairs: PairSet, store: Store
) -> None:
    """Layers run again in the backward pass; the gradient is the same, and GPT-2's dropout stays off."""
    model = tiny(name)
    encoded = encode(pairs, tokenizer)
    module = fit_module(model, adapter(model), objective, encoded, store).train()
    runs, done = count_calls(*[layer.mlp for layer in models.layers(model)])
    _, plain = gradients(module, encoded)
    before = list(runs)
    with recomputing(model):
        _, found = gradients(module, encoded)
    done()
    assert relative(found, plain) < 1e-6
    again = [(n - b) / b for n, b in zip(runs, before, strict=True) if b]
    assert again
    assert set(again) == {2.0}
    assert not any("forward" in vars(layer) for layer in models.layers(model))


def test_activation_checkpointing_in_fit(
    tiny: Any, tokenizer: Any, pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with dropout in the adapter, whose random state is restored for the second run. In one
    layout: dropout is drawn for its shapes, and checkpointing shares no prefix."""
    monkeypatch.setattr(adapters, "layout_of", lambda *_: "packed")
    found = []
    for name, on in (("off", False), ("on", True)):
        settings = recipe(dropout=0.2, activation_checkpointing=on, epochs=1)
        fit(settings, tiny("gpt2"), tokenizer, pairs, out=tmp_path / name)
        found.append(parameters(tmp_path / name))
    assert relative(*found) < 1e-6


# ---- the first step, and dropout ----------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_policy_starts_at_the_reference(
    checkpointing: bool, tiny: Any, tokenizer: Any, pairs: PairSet, tmp_path: Path
) -> None:
    """GPT-2 has dropout of 0.1 in attention, residual and embedding: off while a dial is trained."""
    model = tiny("gpt2")
    assert model.config.attn_pdrop == model.config.resid_pdrop == model.config.embd_pdrop == 0.1
    settings = recipe(activation_checkpointing=checkpointing, max_steps=3)
    fit(settings, model, tokenizer, pairs, out=tmp_path / "dial")
    first, *_, last = [json.loads(line) for line in (tmp_path / "dial/training.jsonl").open()]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] != pytest.approx(math.log(2), abs=1e-4)
    assert not model.training


# ---- objectives on states -----------------------------------------------------------------------


def test_states_only(tiny: Any, tokenizer: Any, pairs: PairSet, tmp_path: Path) -> None:
    """Without an outer term nothing above the deepest site is run or adapted, and it is said."""
    model = tiny("llama")
    stack = models.layers(model)
    objective = InnerDPO(sites="0..0.5", weight_outer=0)
    runs, done = count_calls(models.head(model), *stack)
    heard = Heard()
    dial: Any = fit(recipe(objective, epochs=1), model, tokenizer, pairs, progress=heard)
    done()
    assert runs[0] == 0
    assert runs[1:3] == [runs[1]] * 2
    assert runs[1] > 0
    assert runs[3:] == [0, 0]
    assert {path.split(".")[2] for path in dial.paths} == {"0", "1"}
    assert any("no deeper than block 1" in line for line in heard.lines)
    # Sites and targets that do not meet are refused before anything runs.
    objective = InnerDPO(sites="0..1", weight_outer=0)
    dial = fit(recipe(objective, max_steps=1), model, tokenizer, pairs)
    assert {path.split(".")[2] for path in dial.paths} == {"0", "1", "2", "3"}


# ---- what is not finite -------------------------------------------------------------------------


@dataclass(frozen=True)
class Poisoned(DPO):
    """DPO whose loss or gradient is spoilt at the first pair of one forward pass."""

    at: int = 3
    what: str = "loss"
    calls: Any = None

    def needs(self, n_layers: int) -> Needs:
        return super().needs(n_layers)

    def __call__(self, policy: Readout, reference: Readout | None) -> Any:
        loss, metrics = super().__call__(policy, reference)
        self.calls.append(1)
        if len(self.calls) == self.at:
            bad = torch.zeros_like(loss)
            bad[-1] = math.nan
            if self.what == "loss":
                loss = loss + bad
            else:
                loss.register_hook(lambda g: g + bad)
        return loss, metrics


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite(
    what: str, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops before the step, names step and item, keeps the last checkpoint, and goes on
    from there to the same weights once the cause is gone."""
    pairs = random_pairs(12)
    settings = recipe(pairs_per_step=4, epochs=2, checkpoint_seconds=0, microbatch_tokens=10_000)
    arguments: Any = (tiny("llama"), tokenizer, pairs)
    fit(settings, *arguments, out=tmp_path / "whole")
    real = DPO.__call__
    poison = Poisoned(what=what, calls=[])
    monkeypatch.setattr(
        DPO,
        "__call__",
        lambda self, p, r: real(self, p, r) if self is poison else Poisoned.__call__(poison, p, r),
    )
    with pytest.raises(TrainingError, match=r"at step 3") as error:
        fit(settings, *arguments, out=tmp_path / "dial")
    assert "item" in str(error.value)
    assert ("nan" in str(error.value)) == (what == "loss")
    assert not (tmp_path / "dial").exists()
    assert checkpoints(tmp_path / ".dial.training")[-1].name == "checkpoint-2"
    monkeypatch.setattr(DPO, "__call__", real)
    fit(settings, *arguments, out=tmp_path / "dial")
    for a, b in zip(parameters(tmp_path / "dial"), parameters(tmp_path / "whole"), strict=True):
        assert torch.equal(a, b)


def test_the_item_that_is_not_finite(
    tiny: Any, tokenizer: Any, store: Store, tmp_path: Path
) -> None:
    """Of a microbatch of many items, the one whose loss is NaN is named."""
    model = tiny("llama")
    encoded = encode(random_pairs(12), tokenizer)
    module = fit_module(model, adapter(model), DPO(), encoded, store)
    assert module.reference.readings.logps is not None
    module.reference.readings.logps[encoded.answer_offsets[7]] = math.nan
    with pytest.raises(TrainingError, match=rf"item {encoded.rows[7].item};"):
        trainer_gradient(module, encoded, 10_000, tmp_path)


# ---- trackers -----------------------------------------------------------------------------------


def test_trackers_hear_every_step(
    tiny: Any,
    tokenizer: Any,
    pairs: PairSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loss and metrics reach TensorBoard, whose files outlive the run's own folder."""
    from transformers.integrations import integration_utils

    written: dict[str, list[tuple[str, float, int]]] = {}

    class Writer:
        def __init__(self, log_dir: str) -> None:
            self.lines = written.setdefault(log_dir, [])

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.lines.append((name, value, step))

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    def start(self: Any, tb_writer: Any = None) -> None:
        self.tb_writer, self.logging_dir, self._SummaryWriter = None, None, Writer

    monkeypatch.setattr(integration_utils.TensorBoardCallback, "__init__", start)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    fit(
        recipe(report_to="tensorboard", max_steps=2),
        tiny("llama"),
        tokenizer,
        pairs,
        out=tmp_path / "dial",
    )
    (folder,) = written
    assert folder == str(tmp_path / "tensorboard" / "dial")
    seen = {(name, step) for name, _, step in written[folder]}
    assert {(f"train/{n}", s) for n in ("loss", "margin", "accuracy") for s in (1, 2)} <= seen


def test_microbatches_of_a_gpu_are_those_that_the_run_began_with(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position keeps 4 blocks x (12 x 32 + 5 x 48) float32 = 9,984 bytes; seven tenths of the memory."""
    free = {"bytes": 5 * 2**30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free["bytes"], 80 * 2**30))
    model = tiny("llama")
    assert plan.room(model, 10 * 1024 * 9984, 2048) == 7 * 1024
    assert plan.room(model, 10**12, 2048) == 65_536
    assert plan.room(model, 10**6, 2048) == 2048

    def run(device: str, **settings: Any) -> int:
        here = torch.device(device)
        at: Any = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=here)]))
        named = Method("dpo", replace(recipe(), train=TrainSettings(**settings)), "", "")
        return plan.Run(named, at, random_rows(), 0, tmp_path).microbatch()

    monkeypatch.setattr(plan, "room", lambda _, free, least: free)
    assert run("cpu") == 2048
    assert run("cuda", microbatch_tokens=512) == 512
    assert run("cuda") == 5 * 2**30
    free["bytes"] = 2**20
    assert run("cuda") == 5 * 2**30
