#!/usr/bin/env bash
# transformers 5.23.0 saves the base of the rotary frequencies in config.json as `rope_parameters` alone;
# transformers 4.57.1 looks for `rope_theta`, finds none and takes 10000 without a word, so that a checkpoint of
# base 1e6 gives other logits there although every tensor is loaded. With `rope_theta` written beside
# `rope_parameters` 4.57.1 gives the same logits, and 5.23.0 goes on reading the same base.
#
# Output seen:
#   5.23.0: saved with base 1000000.0, "rope_theta" in config.json: False
#   4.57.1: reads base 10000.0, logits differ: True
#   4.57.1, rope_theta written beside: reads base 1000000.0, logits differ: False
#   5.23.0, rope_theta written beside: reads base 1000000.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
python3 -m venv "$dir/old"
"$dir/old/bin/pip" install --quiet torch==2.13.0 transformers==4.57.1
cat > "$dir/common.py" <<'PY'
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder, what = sys.argv[1], sys.argv[2]
ids = torch.arange(2, 40)[None]


def differ(model):
    return bool((model.eval()(ids).logits - torch.load(f"{folder}/logits.pt")).abs().max() > 1e-5)


if what == "save":
    torch.manual_seed(0)
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    sizes = dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    config = LlamaConfig(**sizes, num_attention_heads=4, rope_parameters=rope, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    with torch.no_grad():
        torch.save(model(ids).logits, f"{folder}/logits.pt")
    saved = json.load(open(f"{folder}/config.json"))
    base, there = saved["rope_parameters"]["rope_theta"], "rope_theta" in saved
    print(f'{transformers.__version__}: saved with base {base}, "rope_theta" in config.json: {there}')
    assert base == 1e6 and not there, "the behaviour has changed"
elif what == "beside":
    saved = json.load(open(f"{folder}/config.json"))
    json.dump({**saved, "rope_theta": 1e6}, open(f"{folder}/config.json", "w"))
else:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    old = transformers.__version__.startswith("4.")
    base = config.rope_theta if old else config.rope_parameters["rope_theta"]
    beside = ", rope_theta written beside" if what == "again" else ""
    tail = f", logits differ: {differ(model)}" if old else ""
    print(f"{transformers.__version__}{beside}: reads base {base}{tail}")
    expected = 1e4 if what == "load" else 1e6
    assert base == expected and differ(model) is (what == "load"), "the behaviour has changed"
PY
"$dir/venv/bin/python" "$dir/common.py" "$dir/model" save
"$dir/old/bin/python" "$dir/common.py" "$dir/model" load
"$dir/venv/bin/python" "$dir/common.py" "$dir/model" beside
"$dir/old/bin/python" "$dir/common.py" "$dir/model" again
"$dir/venv/bin/python" "$dir/common.py" "$dir/model" again
