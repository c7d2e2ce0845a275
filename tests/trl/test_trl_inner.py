"""`trimtab.trl`: TRL's own numbers at weight 0, our objective's on top of them, and what a monitor sees."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import trl
from trimtab.batching import encode
from trimtab.errors import ConfigError
from trimtab.objectives import DPO, InnerDPO
from trimtab.objectives.inner import PrefVec
from trimtab.panel import Texts
from trimtab.readings import collect
from trimtab.readout import Readout
from trimtab.sites import parse_sites
from trimtab.trl import InnerDPOTrainer, InnerMonitor

os.environ["CI"] = "1"  # TRL then reports to nobody


def trainer(
    cls: Any,
    model: Any,
    tokenizer: Any,
    pairs: Any,
    folder: Any,
    *,
    spread: float = 0.3,
    **more: Any,
) -> Any:
    """A trainer of a LoRA whose reference is the bare model."""
    from datasets import Dataset

    callbacks = more.pop("callbacks", None)
    inner = {k: more.pop(k) for k in ("inner", "inner_weight") if k in more}
    args = trl.DPOConfig(
        output_dir=str(folder),
        report_to="none",
        max_length=None,
        per_device_train_batch_size=len(pairs),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        **more,
    )
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora)
    data = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    made = cls(
        model=wrapped,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        callbacks=callbacks,
        **inner,
    )
    # TRL takes the adapter that it is given for the reference: it gets other weights afterwards.
    with torch.no_grad():
        for name, p in made.model.named_parameters():
            if "lora_B" in name and ".ref." not in name:
                p.copy_(torch.randn_like(p) * spread)
    return made


def step(made: Any) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients on all pairs, in the order of the data."""
    made.model.train()
    (batch,) = made.get_eval_dataloader(made.train_dataset)
    loss = made.compute_loss(made.model, made._prepare_inputs(batch))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in made.model.parameters() if p.grad is not None]


def test_at_weight_0_it_is_trls_dpo(tiny, tokenizer, few_pairs, tmp_path):
    model = tiny("llama")
    theirs = step(trainer(trl.DPOTrainer, model, tokenizer, few_pairs, tmp_path))
    ours = step(trainer(InnerDPOTrainer, model, tokenizer, few_pairs, tmp_path, inner_weight=0.0))
    assert ours[0] == theirs[0]
    assert all(map(torch.equal, ours[1], theirs[1]))


@pytest.mark.parametrize(
    "inner",
    [
        InnerDPO(),
        InnerDPO(align="logodds"),
        PrefVec(),
        InnerDPO(pool="last:2", variant="published"),
    ],
    ids=["innerdpo", "over data", "prefvec", "published"],
)
def test_what_is_added_is_our_objective(inner, tiny, tokenizer, few_pairs, tmp_path):
    """Against states that our own readers find of the same model with and without the adapter."""
    model = tiny("llama")
    theirs, _ = step(trainer(trl.DPOTrainer, model, tokenizer, few_pairs, tmp_path))
    made = trainer(
        InnerDPOTrainer, model, tokenizer, few_pairs, tmp_path, inner=inner, inner_weight=0.7
    )
    found, grads = step(made)
    encoded = encode(few_pairs, tokenizer)
    inner = replace(inner, weight_outer=0.0)
    needs = inner.needs(4)
    asked = needs.asked()
    adapted = made.model
    policy = collect(adapted, encoded, **asked)
    with adapted.disable_adapter():
        reference = collect(adapted, encoded, **asked)

    def readout(of: Any) -> Readout:
        places = [
            (start + c, start + r)
            for start, row in zip(encoded.answer_offsets, encoded.rows, strict=False)
            for c, r in row.pairs
        ]
        c, r = (torch.tensor(side) for side in zip(*places, strict=True))
        states, logps, tokens = of.states, of.logps, of.tokens
        more = {}
        if needs.logps:
            more = {"chosen_logps": logps[c], "rejected_logps": logps[r]}
            more |= {"chosen_tokens": tokens[c], "rejected_tokens": tokens[r]}
        return Readout(
            **more,
            chosen={s: states[s][c] for s in needs.sites},
            rejected={s: states[s][r] for s in needs.sites},
        )

    bare = readout(reference)
    apart = {s: bare.chosen[s] - bare.rejected[s] for s in needs.sites}
    floor = {s: torch.quantile(d.norm(dim=-1), 0.1).item() for s, d in apart.items()}
    direction = {}
    if needs.direction == "data":
        direction = {s: d.mean(0) / d.mean(0).norm() for s, d in apart.items()}
    bare = replace(bare, floor=floor, direction=direction)
    loss, _ = inner(readout(policy), bare)
    assert found - theirs == pytest.approx(0.7 * loss.mean().item(), abs=2e-5)
    assert any(g.abs().sum() > 0 for g in grads)
    assert {"inner/loss"} <= set(made._metrics["train"])


def test_training_widens_the_separation_and_the_log_says_so(tiny, tokenizer, few_pairs, tmp_path):
    class Tracker(TrainerCallback):
        """What a tracker gets."""

        seen: ClassVar[list[dict[str, float]]] = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    monitor = InnerMonitor(
        few_pairs,
        sites="0.5",
        every=2,
        passages=1,
        panel=[Texts("t", table="Say a word. | words 1 1", new_tokens=3)],
    )
    made = trainer(
        InnerDPOTrainer,
        tiny("llama"),
        tokenizer,
        few_pairs,
        tmp_path,
        inner="innerdpo",
        spread=0.0,
        max_steps=6,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        callbacks=[Tracker()],
    )
    monitor.attach(made)
    made.train()
    (site,) = parse_sites("0.5", 4)
    first, last = monitor.history[0], monitor.history[-1]
    assert [h["step"] for h in monitor.history] == [0, 2, 4, 6]
    assert first[f"inner/separation@{site}"] == pytest.approx(1, abs=1e-5)
    assert first[f"inner/drift@{site}"] == pytest.approx(0, abs=1e-5)
    assert first["inner/kl"] == pytest.approx(0, abs=1e-6)
    assert last[f"inner/separation@{site}"] > 1.05
    assert last[f"inner/drift@{site}"] > 0.01
    assert last["inner/kl"] > 1e-4
    assert "panel/t/followed" in last
    logged = [h for h in made.state.log_history if "inner/kl" in h]
    assert [h["step"] for h in logged] == [2, 4, 6]
    assert logged[-1]["inner/kl"] == last["inner/kl"]
    assert logged[-1]["inner/loss"] > 0
    assert sum("inner/kl" in logs for logs in Tracker.seen) == 3


def test_a_monitor_alone_on_any_trainer(tiny, tokenizer, few_pairs, tmp_path):
    ids = [tokenizer(p.prompt + p.chosen)["input_ids"] for p in few_pairs]
    rows = [{"input_ids": i[:6], "labels": i[:6]} for i in ids if len(i) >= 6]
    monitor = InnerMonitor(few_pairs, every=1, passages=1)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=100,
        dataloader_pin_memory=False,
    )
    made = Trainer(
        model=tiny("llama", fresh=True).requires_grad_(),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[monitor],
    )
    made.train()
    assert len(monitor.history) == 3
    assert any("inner/kl" in h for h in made.state.log_history)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inner": "innerdop"}, "unknown method 'innerdop'; did you mean 'innerdpo'"),
        ({"inner": "dpo"}, "DPO is no objective on hidden states"),
        ({"inner": DPO()}, "DPO is no objective on hidden states"),
        ({"inner": "hs-suppressed-prefvec"}, "reads states in a space"),
        ({"inner_weight": -1.0}, "inner_weight: expected a number of 0 or more"),
    ],
)
def test_what_cannot_be_is_said_before_anything_loads(given, said):
    with pytest.raises(ConfigError, match=said):
        InnerDPOTrainer(model="nowhere", **given)


def test_precomputed_references_are_refused(tiny, tokenizer, few_pairs, tmp_path):
    with pytest.raises(ConfigError, match="keeps no hidden states"):
        trainer(
            InnerDPOTrainer,
            tiny("llama"),
            tokenizer,
            few_pairs,
            tmp_path,
            precompute_ref_log_probs=True,
        )
    with pytest.raises(ConfigError, match="every: expected"):
        InnerMonitor(few_pairs, every=0)


def test_the_documented_script(tiny, tokenizer, few_pairs, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")
    script = page.split("```python\n")[1].split("```")[0]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in few_pairs]
    script = script.replace(
        "max_steps=4", "max_steps=4, use_cpu=True, bf16=False, save_strategy='no'"
    )
    given = {"model": copy.deepcopy(tiny("llama")), "tokenizer": tokenizer, "rows": rows}
    exec(script, names := {**given, "out": str(tmp_path), "held_out": few_pairs})
    logged = names["trainer"].state.log_history
    assert sum("inner/kl" in line for line in logged) == 2
    assert "inner/separation" in logged[0]
