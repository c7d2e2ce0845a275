#!/usr/bin/env bash
# transformers 5.23.0, CpmAntForCausalLM: a token's logits change with the tokens that come after it, in
# the class that is registered under AutoModelForCausalLM. Its loss shifts labels by one as for any causal
# model, so that loss, perplexity and log-probs of a given text read the answer before they score it;
# only generation, where nothing follows, is unaffected.
# Valid input: a random CpmAnt model in eval mode, two sequences that differ in their last token.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0
#   CpmAntForCausalLM: positions of 19 before the last whose log-probs move by more than 0.0001: 19
#   GPT2LMHeadModel: 0
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

torch.set_num_threads(1)
cpm = transformers.CpmAntConfig(
    vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, dim_head=16, dim_ff=96
)
gpt = transformers.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4)
print("torch", torch.__version__.partition("+")[0], "transformers", transformers.__version__)
moved = {}
for config in (cpm, gpt):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # CpmAnt leaves some of them as allocated
    ids = torch.randint(5, 300, (1, 20))
    other = ids.clone()
    other[0, -1] = ids[0, -1] + 1
    with torch.no_grad():
        a, b = (model(input_ids=x).logits.log_softmax(-1)[0, :-1] for x in (ids, other))
    name = type(model).__name__
    moved[name] = int(((a - b).abs().amax(-1) > 1e-4).sum())
    words = "positions of 19 before the last whose log-probs move by more than 0.0001: "
    print(f"{name}: {words if name.startswith('Cpm') else ''}{moved[name]}")
assert moved == {"CpmAntForCausalLM": 19, "GPT2LMHeadModel": 0}, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py"
