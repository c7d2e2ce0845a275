#!/usr/bin/env bash
# steering-vectors 0.12.2 (version pinned below; it asks for transformers < 5): `min_token_index` counts
# positions of the pass, not of the sequence. While text is generated with a KV cache, every pass after the
# first holds one token at index 0, so that with min_token_index = k >= 1 no generated token is steered, and
# only what the prompt has from position k on is. Without a cache every token from k on is steered in every
# step: the same call gives other text. With min_token_index = 0 the two agree.
#
# Consequence for users: a vector applied "from the answer on" acts on no token of the answer.
#
# Output seen:
#   transformers 4.57.6, steering-vectors 0.12.2
#   min_token_index 0: tokens with a cache == without: True; steered passes 12 of 12
#   min_token_index 3: tokens with a cache == without: False; steered passes 1 of 12
#   min_token_index 5: tokens with a cache == without: False; steered passes 1 of 12
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet transformers==4.57.6 steering-vectors==0.12.2
"$dir/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

print(f"transformers {version('transformers')}, steering-vectors {version('steering-vectors')}")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
)
model = LlamaForCausalLM(config).eval()
vector = SteeringVector({1: 50 * torch.randn(32)})
prompt = torch.randint(1, 64, (1, 6))
states = []
model.model.layers[1].register_forward_hook(lambda _m, _i, out: states.append(out[0].clone()))


def continued(first: int, cache: bool) -> tuple[list[int], int]:
    """Tokens generated with the vector from position `first` on; passes in which it moved a state."""
    states.clear()
    with vector.apply(model, min_token_index=first):  # its hook runs after the one that copies
        after = []
        handle = model.model.layers[1].register_forward_hook(
            lambda _m, _i, out: after.append(out[0].clone())
        )
        made = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
            eos_token_id=None,
        )[0, 6:]
        handle.remove()
    moved = sum(not torch.equal(a, b) for a, b in zip(states, after, strict=True))
    return made.tolist(), moved


seen = {}
for first in (0, 3, 5):
    cached, passes = continued(first, True)
    plain, _ = continued(first, False)
    seen[first] = (cached == plain, passes)
    print(
        f"min_token_index {first}: tokens with a cache == without: {cached == plain}; "
        f"steered passes {passes} of 12"
    )
assert seen == {0: (True, 12), 3: (False, 1), 5: (False, 1)}, "the behaviour has changed"
PY
