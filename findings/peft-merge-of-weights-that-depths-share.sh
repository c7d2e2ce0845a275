#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0: Zamba2 runs one attention block at several depths, as modules of
# their own that share their weights. PEFT puts a LoRA of its own on each of them, and merge_and_unload()
# adds all of these to the one shared weight: the merged model computes something else than the adapter
# did, and nothing is said.
# Valid input: a random Zamba2 of six layers, LoRA on q_proj and v_proj, eval mode.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0 peft 0.21.2
#   Llama: LoRAs on q_proj: 6; merged differs from the adapter by 0.0000 of the logits' spread; warnings about it: 0
#   Zamba2: LoRAs on q_proj: 3; merged differs from the adapter by 0.1433 of the logits' spread; warnings about it: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import logging
import warnings
from importlib.metadata import version

logging.disable(logging.INFO)

import torch
import transformers
from peft import LoraConfig, get_peft_model

torch.set_num_threads(1)
llama = transformers.LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=4,
)
zamba = transformers.Zamba2Config(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    layers_block_type=["mamba", "hybrid"] * 3,
    num_mem_blocks=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    attention_hidden_size=128,
    attention_head_dim=32,
    mamba_d_state=16,
    mamba_headdim=16,
    n_mamba_heads=8,
    mamba_ngroups=1,
    use_mem_rope=False,
    use_shared_attention_adapter=False,
)
print("torch", torch.__version__.partition("+")[0], end=" ")
print("transformers", transformers.__version__, "peft", version("peft"))
ids = torch.arange(20)[None] * 7 % 320
off = {}
for name, config in (("Llama", llama), ("Zamba2", zamba)):
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config).float()
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = get_peft_model(base, settings).eval()
        loras = [n for n, _ in model.named_modules() if n.endswith('q_proj.lora_A')]
        with torch.no_grad():
            adapted = model(input_ids=ids, use_cache=False).logits
            merged = model.merge_and_unload()(input_ids=ids, use_cache=False).logits
    off[name] = float((merged - adapted).abs().max() / adapted.std())
    print(
        f"{name}: LoRAs on q_proj: {len(loras)}; merged differs from the adapter by {off[name]:.4f} of "
        f"the logits' spread; warnings about it: {sum('shar' in str(w.message) for w in said)}"
    )
assert off["Llama"] < 1e-3
assert off["Zamba2"] > 0.05, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" "$work/check.py"
