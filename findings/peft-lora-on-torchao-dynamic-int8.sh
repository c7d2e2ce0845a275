#!/usr/bin/env bash
# peft 0.21.2 puts LoRA on layers that torchao 0.18.0 has quantised with
# Int8DynamicActivationInt8WeightConfig, and trains it, without a word, on gradients that are not
# those of the model: such a layer hands no gradient to its input (its output does not even require
# one), so that every LoRA learns through the residual stream and later LoRAs alone. With
# Int8WeightOnlyConfig the gradient is that on the dequantised weights.
# Valid input: a random Llama, LoRA on all linear layers, one backward pass of transformers' own loss.
#
# Output seen:
#   torch 2.13.0 peft 0.21.2 torchao 0.18.0
#   Int8WeightOnlyConfig: a layer's output requires a gradient: True; cosine of LoRA's gradient with that on the dequantised weights 1.00
#   Int8DynamicActivationInt8WeightConfig: a layer's output requires a gradient: False; cosine of LoRA's gradient with that on the dequantised weights 0.75
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 torchao==0.18.0 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import copy
import logging
from importlib.metadata import version

logging.disable(logging.WARNING)

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

torch.manual_seed(0)
torch.set_num_threads(1)
config = transformers.LlamaConfig(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
plain = transformers.LlamaForCausalLM(config).float().eval()
ids = torch.randint(320, (2, 16))


def lora_gradient(base):
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, settings)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    return torch.cat([p.grad.flatten() for p in trained])


def dequantised(model):
    model = copy.deepcopy(model)
    for layer in model.model.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return model


print("torch", torch.__version__.partition("+")[0], "peft", version("peft"), "torchao", version("torchao"))
cosines = {}
for scheme in (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig):
    model = copy.deepcopy(plain)
    quantize_(model.model.layers, scheme())
    x = torch.randn(3, 128, requires_grad=True)
    handed = model.model.layers[0].self_attn.q_proj(x).requires_grad
    a, b = lora_gradient(dequantised(model)), lora_gradient(model)
    cosines[scheme] = float(torch.cosine_similarity(a, b, dim=0))
    print(
        f"{scheme.__name__}: a layer's output requires a gradient: {handed}; "
        f"cosine of LoRA's gradient with that on the dequantised weights {cosines[scheme]:.2f}"
    )
assert cosines[Int8WeightOnlyConfig] > 0.999
assert cosines[Int8DynamicActivationInt8WeightConfig] < 0.9, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py"
