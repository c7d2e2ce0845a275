#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0, Mixtral: target_modules="all-linear" with r=4 and lora_alpha=8 does
# more than its name and numbers say. The experts, stacked in parameters since transformers 5, are no
# linear modules, and yet get adapters; the fused gate_up_proj gets rank 8 and alpha 16, by a rank_pattern
# and alpha_pattern that PEFT writes into the config by itself; and so does the router, whose choice of
# experts then moves with the adapter. Code that reads r and lora_alpha alone computes another delta.
# Valid input: a random one-layer Mixtral.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0 peft 0.21.2
#   asked: target_modules=all-linear r=4 alpha=8
#   written: target_parameters ['down_proj', 'gate.weight', 'gate_up_proj'] rank_pattern {'.*\\.gate_up_proj': 8} alpha_pattern {'.*\\.gate_up_proj': 16}
#   rows of lora_A: router 4; experts' gate_up_proj 8 each; experts' down_proj 4 each
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import logging
from importlib.metadata import version

logging.disable(logging.WARNING)

import torch
import transformers
from peft import LoraConfig, get_peft_model

EXPERTS = 4
torch.manual_seed(0)
torch.set_num_threads(1)
config = transformers.MixtralConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    num_local_experts=EXPERTS,
)
base = transformers.MixtralForCausalLM(config)
settings = LoraConfig(target_modules="all-linear", r=4, lora_alpha=8)
asked = f"target_modules={settings.target_modules} r={settings.r} alpha={settings.lora_alpha}"
model = get_peft_model(base, settings)
found = model.peft_config["default"]
rows = {
    name.split(".lora_A")[0].split("layers.0.")[1]: p.shape[0]
    for name, p in model.named_parameters()
    if ".lora_A." in name
}
router = rows["mlp.gate"]
gate_up = rows["mlp.experts.base_layer"] // EXPERTS
down = rows["mlp.experts"] // EXPERTS
print("torch", torch.__version__.partition("+")[0], end=" ")
print("transformers", transformers.__version__, "peft", version("peft"))
print("asked:", asked)
print("written: target_parameters", sorted(found.target_parameters), end=" ")
print("rank_pattern", found.rank_pattern, "alpha_pattern", found.alpha_pattern)
print(f"rows of lora_A: router {router}; experts' gate_up_proj {gate_up} each; experts' down_proj {down} each")
changed = "the behaviour has changed"
assert (router, gate_up, down) == (4, 8, 4), changed
assert "gate.weight" in found.target_parameters and list(found.rank_pattern.values()) == [8], changed
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py"
