#!/usr/bin/env bash
# llm-steer 2.0.1 (version pinned below) keeps its steering data in a dict on the class `Steer`, so that all
# wrapped models share it. A second model of the same process lists the first one's vectors as its own, and
# as soon as anything is added at the same layer it computes that layer with the *first* model's weights:
# the stored "original forward" is the other model's. This holds at coefficient 0 (the first model's vector
# stays in the list, too), and `reset_all()` of the second does not bring its own layer back.
#
# Output seen:
#   llm-steer 2.0.1, transformers 5.23.0
#   second model, before anything was added to it, lists 1 vector
#   second model's logits, a vector of coefficient 0 added: off by more than 0.01: True
#   second model after reset_all(): equal to its own bare logits: False
#   ... equal to a model that has the first one's block 1: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet transformers==5.23.0 llm-steer==2.0.1
"$dir/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from llm_steer import Steer
from transformers import LlamaConfig, LlamaForCausalLM

print(f"llm-steer {version('llm-steer')}, transformers {version('transformers')}")


def made(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


class Letters:
    """A tokenizer: a letter a token."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [b % 60 + 1 for b in text.encode()]


@torch.no_grad()
def logits(model: LlamaForCausalLM) -> torch.Tensor:
    return model(torch.tensor([[5, 9, 2, 7]])).logits


first, second = made(1), made(2)
bare = logits(second)
mixed = made(2)
mixed.model.layers[1] = made(1).model.layers[1]

Steer(first, Letters()).add(layer_idx=1, coeff=0.5, text="calm")
steered = Steer(second, Letters())
listed = len(steered.get_all())
print(f"second model, before anything was added to it, lists {listed} vector")
steered.add(layer_idx=1, coeff=0.0, text="calm")
off = (logits(second) - bare).abs().max().item() > 0.01
print(f"second model's logits, a vector of coefficient 0 added: off by more than 0.01: {off}")
steered.reset_all()
after = logits(second)
back = torch.allclose(after, bare, atol=1e-5)
print(f"second model after reset_all(): equal to its own bare logits: {back}")
others = torch.allclose(after, logits(mixed), atol=1e-5)
print(f"... equal to a model that has the first one's block 1: {others}")
assert (listed, off, back, others) == (1, True, False, True), "the behaviour has changed"
PY
