#!/usr/bin/env bash
# transformers 5.23.0 with gguf: a GGUF file of a Llama whose rotary scaling stands in the tensor
# `rope_freqs.weight` (that is how converters for llama.cpp store Llama 3.1's; no metadata key says it)
# loads without that scaling. The tensor is not among the unexpected keys of the loading report either,
# and the config says "default": two files that differ in the divisors give the same logits.
# Valid input: a one-block Llama written by gguf's own writer, with the divisors 1, 1, 4, 8 and without.
#
# Output seen:
#   torch 2.13.0 transformers 5.23.0 gguf 0.19.0
#   without rope_freqs: tensors in the file: 12; unexpected: []; rope_type: default
#   with rope_freqs: tensors in the file: 13; unexpected: []; rope_type: default
#   largest difference of the logits: 0.0; by hand, with the divisors: 0.173
set -euo pipefail
export TQDM_DISABLE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0
cat > "$work/check.py" <<'PYTHON'
import logging
import sys
from importlib.metadata import version

logging.disable(logging.WARNING)

import gguf
import numpy
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

folder = sys.argv[1]
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
WIDTH, INNER, HEADS = 32, 48, 4
vocabulary = [*sorted(ByteLevel.alphabet()), "<|end|>"]
DIVISORS = numpy.array([1, 1, 4, 8], numpy.float32)


def write(path, divisors):
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(vocabulary))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(vocabulary)
    out.add_token_merges([])
    out.add_token_types([1] * 256 + [3])
    out.add_eos_token_id(256)
    draw = numpy.random.default_rng(0)
    shapes = {
        "token_embd": (len(vocabulary), WIDTH),
        "output": (len(vocabulary), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        **{f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(numpy.float32) / 3)
    if divisors is not None:
        out.add_tensor("rope_freqs.weight", divisors)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


print("torch", torch.__version__.partition("+")[0], end=" ")
print("transformers", transformers.__version__, "gguf", version("gguf"))
ids = torch.arange(60)[None] * 5 % 250
logits = {}
for name, divisors in (("without", None), ("with", DIVISORS)):
    file = f"{name}.gguf"
    write(f"{folder}/{file}", divisors)
    tensors = len(gguf.GGUFReader(f"{folder}/{file}").tensors)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, output_loading_info=True, dtype=torch.float32
    )
    kind = model.config.rope_parameters["rope_type"]
    unexpected = sorted(report["unexpected_keys"])
    print(f"{name} rope_freqs: tensors in the file: {tensors}; unexpected: {unexpected}; rope_type: {kind}")
    with torch.no_grad():
        logits[name] = model.eval()(input_ids=ids).logits
        if divisors is not None:  # what the file means
            model.model.rotary_emb.inv_freq /= torch.from_numpy(divisors)
            logits["by hand"] = model(input_ids=ids).logits
as_loaded, meant = (float((logits["without"] - logits[n]).abs().max()) for n in ("with", "by hand"))
print(f"largest difference of the logits: {as_loaded:.1f}; by hand, with the divisors: {meant:.3f}")
assert meant > 0.01
assert as_loaded == 0 and not unexpected and kind == "default", "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py" "$work"
