#!/usr/bin/env bash
# transformers 5.23.0 beside llama.cpp (wheel xllamacpp 2026.10.11549): `tokenizer.ggml.pre` of a GGUF file names the rule
# by which text is cut into words before the merges. transformers knows some names; for the others it takes GPT-2's rule
# without a word, so that one file gives two sequences of tokens for the same text, in the two programs that read it.
# Numbers show it: smollm, starcoder, refact, command-r, deepseek-coder cut every digit, deepseek-v3, kimi-k2 and glm4 at three.
# Valid input: one-block Llamas written by gguf's own writer, with the same vocabulary and merges, apart from that name.
#
# Output seen:
#   transformers 5.23.0 tokenizers 0.23.3 gguf 0.19.0 xllamacpp 2026.10.11549
#   gpt-2           transformers ['1234', 'Ġ', 'x']  llama.cpp ['1234', 'Ġ', 'x']  same
#   llama-bpe       transformers ['123', '4', 'Ġ', 'x']  llama.cpp ['123', '4', 'Ġ', 'x']  same
#   qwen2           transformers ['1', '2', '3', '4', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  same
#   smollm          transformers ['1234', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  other
#   starcoder       transformers ['1234', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  other
#   refact          transformers ['1234', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  other
#   command-r       transformers ['1234', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  other
#   deepseek-coder  transformers ['1234', 'Ġ', 'x']  llama.cpp ['1', '2', '3', '4', 'Ġ', 'x']  other
#   deepseek-v3     transformers ['1234', 'Ġ', 'x']  llama.cpp ['123', '4', 'Ġ', 'x']  other
#   kimi-k2         transformers ['1234', 'Ġ', 'x']  llama.cpp ['123', '4', 'Ġ', 'x']  other
#   glm4            transformers ['1234', 'Ġ', 'x']  llama.cpp ['123', '4', 'Ġ', 'x']  other
#   warnings of transformers: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 numpy==2.4.6 xllamacpp==2026.10.11549
cat > "$work/check.py" <<'PYTHON'
import json
import logging
import sys
import urllib.request
from importlib.metadata import version

import gguf
import numpy
import transformers
import xllamacpp
from tokenizers.pre_tokenizers import ByteLevel

folder, out = sys.argv[1], open(sys.argv[2], "w")  # llama.cpp writes to the terminal itself
WIDTH, INNER = 32, 48
vocabulary = [*sorted(ByteLevel.alphabet()), "12", "123", "1234", "<|end|>"]
warned = []
keep = logging.Handler(logging.WARNING)
keep.emit = lambda record: warned.append(record.getMessage())
transformers.utils.logging.get_logger().addHandler(keep)


def write(path, rule):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(256)
    w.add_embedding_length(WIDTH)
    w.add_block_count(1)
    w.add_feed_forward_length(INNER)
    w.add_head_count(4)
    w.add_head_count_kv(4)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(WIDTH // 4)
    w.add_vocab_size(len(vocabulary))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(rule)
    w.add_token_list(vocabulary)
    w.add_token_merges(["1 2", "12 3", "123 4"])
    w.add_token_types([1] * (len(vocabulary) - 1) + [3])
    w.add_eos_token_id(len(vocabulary) - 1)
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
        w.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def by_llama_cpp(path, text):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = path, 64
    server = xllamacpp.Server(params)
    body = json.dumps({"content": text, "with_pieces": True}).encode()
    asked = urllib.request.Request(server.listening_address + "/tokenize", body)
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked) as reply:
        return [token["piece"].replace(" ", "Ġ") for token in json.load(reply)["tokens"]]


names = ("transformers", "tokenizers", "gguf", "xllamacpp")
print(" ".join(f"{name} {version(name)}" for name in names), file=out)
same = []
rules = "gpt-2 llama-bpe qwen2 smollm starcoder refact command-r deepseek-coder deepseek-v3 kimi-k2 glm4".split()
for rule in rules:
    file = f"{rule}.gguf"
    write(f"{folder}/{file}", rule)
    ours = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).tokenize("1234 x")
    theirs = by_llama_cpp(f"{folder}/{file}", "1234 x")
    same.append(ours == theirs)
    word = "same" if same[-1] else "other"
    print(f"{rule:15s} transformers {ours}  llama.cpp {theirs}  {word}", file=out)
print(f"warnings of transformers: {len(warned)}", file=out)
out.close()
assert same == [True] * 3 + [False] * 8 and not warned, "the behaviour has changed"
PYTHON
code=0
"$work/venv/bin/python" -W ignore "$work/check.py" "$work" "$work/said" > "$work/log" 2>&1 || code=$?
cat "$work/said"
[ "$code" = 0 ] || { tail -5 "$work/log"; exit 1; }
