"""Our DPO step is TRL's: the same loss and the same gradients of the same adapter.

TRL is driven through its public entry points: the trainer tokenises and collates, `compute_loss`
gives the loss, and autograd the gradients.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_fit import adapter, fit_module, gradients, relative
from trimtab.batching import encode
from trimtab.dials import AdapterDial
from trimtab.objectives import DPO
from trimtab.pairs import PairSet, read_pairs
from trimtab.store import Store

os.environ["CI"] = "1"  # TRL then reports to nobody
trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")


def trl_step(
    model: Any, tokenizer: Any, pairs: PairSet, dial: AdapterDial, folder: Path
) -> tuple[float, list[torch.Tensor]]:
    """TRL's loss on all pairs in one batch, and its gradient of A and B in the dial's order.

    TRL takes the adapter that it is given for the reference, so it is given the dial with B = 0 (the
    bare model) and gets the trained weights afterwards.
    """
    from datasets import Dataset

    empty = copy.deepcopy(dial)
    for B in empty.B:
        B.data.zero_()
    empty.save_pretrained(folder / "empty")
    wrapped = peft.PeftModel.from_pretrained(
        copy.deepcopy(model), folder / "empty", is_trainable=True, autocast_adapter_dtype=False
    )
    args = trl.DPOConfig(
        output_dir=str(folder / "trl"),
        report_to="none",
        max_length=None,
        beta=DPO().beta,
        per_device_train_batch_size=len(pairs),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    trainer = trl.DPOTrainer(
        model=wrapped, args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    assert trainer.model.training or trainer.model.train()
    weights = []
    for path, A, B in zip(dial.paths, dial.A, dial.B, strict=True):
        module = trainer.model.base_model.model.get_submodule(path)
        weights.append((module.lora_A["default"].weight, module.lora_B["default"].weight))
        for mine, theirs in zip((A, B), weights[-1], strict=True):
            assert theirs.dtype == mine.dtype
            theirs.data.copy_(mine.data)
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), [a.grad for a, _ in weights] + [b.grad for _, b in weights]


def our_step(
    model: Any, tokenizer: Any, pairs: PairSet, dial: AdapterDial, store: Store
) -> tuple[float, list[torch.Tensor]]:
    """Our loss a pair, and its gradient."""
    encoded = encode(pairs, tokenizer, max_length=4096)
    assert encoded.n_pairs == len(pairs)
    total, found = gradients(fit_module(model, dial, DPO(), encoded, store), encoded)
    return total / len(pairs), [g / len(pairs) for g in found]


class ExactHead:
    """TRL's fused LM head keeps float32 whatever the model's dtype. This is the same in float64."""

    @staticmethod
    def apply(hidden: Any, weight: Any, bias: Any, labels: Any, *_: Any) -> tuple[Any, ...]:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        logps = logits.log_softmax(-1)
        token = logps.gather(-1, labels[:, None])[:, 0]
        zeros = torch.zeros_like(token)
        return token, zeros, zeros, logits.mean(-1), logits.argmax(-1) == labels


def exact_norm(self: Any, h: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm without its detour through float32."""
    return self.weight * h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_float64(
    name: str,
    tiny: Any,
    tokenizer: Any,
    few_pairs: PairSet,
    store: Store,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """TRL as it is to the rounding of its float32 log-softmax; to 1e-9 once that is in float64."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    model = tiny(name, dtype=torch.float64)
    dial = adapter(model, std=0.02)
    loss, grads = our_step(model, tokenizer, few_pairs, dial, store)
    assert abs(loss - 0.6931471805599453) > 1e-3  # the policy is not the reference

    theirs, wanted = trl_step(model, tokenizer, few_pairs, dial, tmp_path / "as-is")
    assert abs(loss - theirs) < 2e-6
    assert relative(grads, wanted) < 2e-6

    if not hasattr(trl.trainer.utils, "_ChunkedLogProbFunction"):
        pytest.skip("this TRL has another LM head: give ExactHead its place")
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", ExactHead)
    theirs, wanted = trl_step(model, tokenizer, few_pairs, dial, tmp_path / "exact")
    assert abs(loss - theirs) < 1e-9
    assert relative(grads, wanted) < 1e-9


def test_real_model(smollm2: Any, data_root: Path, store: Store, tmp_path: Path) -> None:
    """SmolLM2 in float32 on GENIES pairs, two of them of one item."""
    model, tokenizer = smollm2
    pairs = read_pairs("genies:truthful_qa/train", data_root)
    short = sorted(pairs.items().values(), key=lambda ps: sum(len(p.prompt) for p in ps))
    chosen = [*short[0][:2], short[1][0], short[2][0]]
    few = PairSet(chosen, "few")
    dial = adapter(model, std=0.01)
    loss, grads = our_step(model, tokenizer, few, dial, store)
    theirs, wanted = trl_step(model, tokenizer, few, dial, tmp_path)
    print(f"loss {loss:.7f} {theirs:.7f}, gradients differ by {relative(grads, wanted):.2e}")
    assert abs(loss - 0.6931471805599453) > 1e-3
    assert abs(loss - theirs) < 2e-5
    assert relative(grads, wanted) < 2e-5
