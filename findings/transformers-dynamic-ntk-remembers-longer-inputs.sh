#!/usr/bin/env bash
# transformers 5.23.0, rope_type "dynamic" (NTK by length): the logits of one sequence depend on what
# the model object has read before. A sequence longer than max_position_embeddings sets the rotary
# frequencies for its own length, and they stay: another sequence, still past the trained length but
# shorter than the longest so far, is read with the frequencies of the longest. Only an input below
# max_position_embeddings resets them. So scores depend on the order of the data set.
# Valid input: a random Llama of 64 trained positions, sequences of 90, 200 and 20 tokens, no cache, eval.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0
#   90 tokens, read twice in a row: largest difference of log-probs 0.0000
#   90 tokens, after 200 others: 8.1471
#   90 tokens, after 20 others: 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$work/check.py" <<'PYTHON'
import logging

logging.disable(logging.WARNING)

import torch
import transformers

torch.manual_seed(0)
torch.set_num_threads(1)
config = transformers.LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
)
model = transformers.LlamaForCausalLM(config).float().eval()
ids, longer, shorter = (torch.randint(320, (1, n)) for n in (90, 200, 20))


@torch.no_grad()
def read(tokens):
    return model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)


print("torch", torch.__version__.partition("+")[0], "transformers", transformers.__version__)
first = read(ids)
again = float((read(ids) - first).abs().max())
read(longer)
after_longer = float((read(ids) - first).abs().max())
read(shorter)
after_shorter = float((read(ids) - first).abs().max())
print(f"90 tokens, read twice in a row: largest difference of log-probs {again:.4f}")
print(f"90 tokens, after 200 others: {after_longer:.4f}")
print(f"90 tokens, after 20 others: {after_shorter:.4f}")
assert again < 1e-5 and after_shorter < 1e-5
assert after_longer > 1e-3, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py"
