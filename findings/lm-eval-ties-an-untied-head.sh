#!/usr/bin/env bash
# lm-eval 0.4.13 (versions pinned below) given a model object calls tie_weights() on it. Where the LM head was untied
# and trained in memory, with the config still saying that it is tied, the head is thrown away without a word:
# another model is scored, and the caller's own object is changed.
#
# Output seen:
#   lm-eval 0.4.13, transformers 5.23.0
#   log-likelihood by the model itself: -23.11, by lm-eval: -6.71
#   the head after evaluation is the one that was trained: False
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet lm-eval==0.4.13 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

print(f"lm-eval {version('lm-eval')}, transformers {version('transformers')}")
words = {w: i for i, w in enumerate(["<eos>", *"abcdefghijklmnopqrstuvwxyz"])}
splits = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
splits.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=splits, eos_token="<eos>")

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
)
model = LlamaForCausalLM(config).eval()
trained = torch.randn(len(words), 32)
model.lm_head.weight = torch.nn.Parameter(trained.clone())  # untied, and trained

with torch.no_grad():
    ids = torch.tensor([[words[w] for w in "abcd"]])
    logps = model(ids).logits[0].log_softmax(-1)
    own = logps[1, words["c"]] + logps[2, words["d"]]
    request = Instance("loglikelihood", {}, ("a b", " c d"), 0)
    ((theirs, _),) = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood([request], disable_tqdm=True)
kept = torch.equal(model.lm_head.weight.data, trained)
print(f"log-likelihood by the model itself: {own:.2f}, by lm-eval: {theirs:.2f}")
print(f"the head after evaluation is the one that was trained: {kept}")
assert abs(own.item() - theirs) > 0.5 and not kept, "the behaviour has changed"
PY
