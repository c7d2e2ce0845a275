#!/usr/bin/env bash
# transformers 5.23.0, rope_type "longrope" (Phi-3's): whether a batch is read with the short or the long
# factors is decided by its longest row, for all rows. A short sequence that shares a padded batch with one
# past original_max_position_embeddings gets other logits than alone, far beyond rounding; beside padding
# of the same width that stays below the threshold it gets its own. The attention mask is right in all cases.
# Valid input: a random Phi-3 of 64 original positions, rows of 20 and 100 tokens, right padding, eval.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0
#   20 tokens, padded to 60: largest difference of log-probs from the row alone 0.0000
#   20 tokens, padded to 100, beside a row of 100: 8.4432
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
config = transformers.Phi3Config(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    original_max_position_embeddings=64,
    pad_token_id=0,
    initializer_range=0.2,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    },
)
model = transformers.Phi3ForCausalLM(config).float().eval()
short, long = (torch.randint(1, 320, (1, n)) for n in (20, 100))


@torch.no_grad()
def first_row(width, *others):
    """Log-probs of the short row, padded to a width, beside other rows."""
    rows = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in (short, *others)]
    mask = [torch.arange(width) < row.shape[1] for row in (short, *others)]
    out = model(input_ids=torch.cat(rows), attention_mask=torch.stack(mask).long(), use_cache=False)
    return out.logits[:1, :20].log_softmax(-1)


print("torch", torch.__version__.partition("+")[0], "transformers", transformers.__version__)
alone = first_row(20)
padded = float((first_row(60, short) - alone).abs().max())
beside = float((first_row(100, long) - alone).abs().max())
print(f"20 tokens, padded to 60: largest difference of log-probs from the row alone {padded:.4f}")
print(f"20 tokens, padded to 100, beside a row of 100: {beside:.4f}")
assert padded < 1e-4
assert beside > 0.1, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py"
