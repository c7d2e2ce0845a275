#!/usr/bin/env bash
# transformers 5.23.0 (version pinned below): all decoders of text take their cache as `past_key_values`, and most
# fill and read it. MambaForCausalLM takes the argument, too, among its keyword arguments, and passes it on to
# nobody: its cache is called `cache_params`. A loop that decodes with `past_key_values` gets, without a word,
# the logits of a text of one token.
#
# Output seen:
#   transformers 5.23.0
#   llama, past_key_values: the last token's log-probs are off by 0.00, the cache was filled: True
#   mamba, past_key_values: the last token's log-probs are off by 0.48, the cache was filled: False
#   mamba, cache_params: the last token's log-probs are off by 0.00, the cache was filled: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet transformers==5.23.0
"$dir/venv/bin/python" - <<'PY' 2>/dev/null
import torch
import transformers

print(f"transformers {transformers.__version__}")
size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
configs = {
    "llama": transformers.LlamaConfig(**size, num_attention_heads=2, intermediate_size=32),
    "mamba": transformers.MambaConfig(**size, state_size=4),
}


@torch.no_grad()
def tried(kind: str, name: str) -> tuple[float, bool]:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[kind]).eval()
    ids = torch.randint(2, 64, (1, 9))
    whole = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    cache = transformers.DynamicCache(config=model.config)
    model(input_ids=ids[:, :-1], use_cache=True, **{name: cache})
    last = model(input_ids=ids[:, -1:], use_cache=True, **{name: cache}).logits[0, -1]
    layer = cache.layers[0]
    filled = layer.keys if kind == "llama" else layer.conv_states[0]
    return (last.log_softmax(-1) - whole).abs().max().item(), filled is not None


found = {}
for kind, name in (("llama", "past_key_values"), ("mamba", "past_key_values"), ("mamba", "cache_params")):
    off, filled = found[kind, name] = tried(kind, name)
    print(f"{kind}, {name}: the last token's log-probs are off by {off:.2f}, the cache was filled: {filled}")
assert found["llama", "past_key_values"][0] < 1e-3, "the behaviour has changed"
assert found["mamba", "past_key_values"][0] > 0.1, "the behaviour has changed"
assert found["mamba", "cache_params"][0] < 1e-3, "the behaviour has changed"
PY
