#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0: loading a model and its tokenizer from one GGUF file parses the whole file three times
# (config, weights, tokenizer) and builds the table of all tensor names once for every module of the model: the search for names
# calls itself on each child, and makes the table anew there. Both grow with the file: a vocabulary of 49,152 tokens with its
# merges is cut into several hundred thousand arrays at each parse, and a table has rows for every block, so that the work on names
# grows with the square of the depth. What is loaded is right; a program that loads large vocabularies can hand both
# functions a memory meanwhile.
# Valid input: Llamas of 1, 2 and 4 blocks written by gguf's own writer. The two functions are counted and otherwise left as they are.
#
# Output seen:
#   transformers 5.23.0 gguf 0.19.0
#   1 block : the file is parsed 3 times for model and tokenizer; 20 modules, 20 tables of tensor names
#   2 blocks: the file is parsed 3 times for model and tokenizer; 33 modules, 33 tables of tensor names
#   4 blocks: the file is parsed 3 times for model and tokenizer; 59 modules, 59 tables of tensor names
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 numpy==2.4.6 accelerate==1.15.0
cat > "$work/check.py" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import numpy
import transformers
from tokenizers.pre_tokenizers import ByteLevel

folder = sys.argv[1]
WIDTH, INNER = 32, 48
vocabulary = [*sorted(ByteLevel.alphabet()), "12", "<|end|>"]
counts = {"parsed": 0, "tables": 0}


def write(path, blocks):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(256)
    w.add_embedding_length(WIDTH)
    w.add_block_count(blocks)
    w.add_feed_forward_length(INNER)
    w.add_head_count(4)
    w.add_head_count_kv(4)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(WIDTH // 4)
    w.add_vocab_size(len(vocabulary))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(vocabulary)
    w.add_token_merges(["1 2"])
    w.add_token_types([1] * (len(vocabulary) - 1) + [3])
    w.add_eos_token_id(len(vocabulary) - 1)
    shapes = {"token_embd": (len(vocabulary), WIDTH), "output": (len(vocabulary), WIDTH), "output_norm": (WIDTH,)}
    for n in range(blocks):
        shapes |= {f"blk.{n}.{norm}": (WIDTH,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{n}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{n}.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"blk.{n}.ffn_down"] = (WIDTH, INNER)
    for name, shape in shapes.items():
        w.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Counted(gguf.GGUFReader):
    def __init__(self, *args, **named):
        counts["parsed"] += 1
        super().__init__(*args, **named)


real = gguf.get_tensor_name_map


def counted(*args, **named):
    counts["tables"] += 1
    return real(*args, **named)


gguf.GGUFReader, gguf.get_tensor_name_map = Counted, counted
print(f"transformers {version('transformers')} gguf {version('gguf')}")
found = []
for blocks in (1, 2, 4):
    file = f"{blocks}.gguf"
    write(f"{folder}/{file}", blocks)
    counts.update(parsed=0, tables=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    modules = sum(1 for _ in model.modules())
    found.append((counts["parsed"], counts["tables"] == modules))
    said = f"the file is parsed {counts['parsed']} times for model and tokenizer"
    print(f"{blocks} block{'s' if blocks > 1 else ' '}: {said}; {modules} modules, {counts['tables']} tables of tensor names")
assert all(parsed == 3 and each for parsed, each in found), "the behaviour has changed"
PYTHON
"$work/venv/bin/python" -W ignore "$work/check.py" "$work" 2> "$work/log" || { tail -5 "$work/log"; exit 1; }
