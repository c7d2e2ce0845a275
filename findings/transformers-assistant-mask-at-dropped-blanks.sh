#!/usr/bin/env bash
# transformers 5.23.0: `return_assistant_tokens_mask` finds a turn's tokens by its first and its last
# character. Where the tokenizer drops blanks, those two have no token, and the mask is another one without
# a word: an answer that ends in a blank is marked up to the end of the chat, the user's turns with it; one
# that begins with a blank is not marked, nor is any turn after it. Where the end-of-turn token takes the
# blanks before it (`lstrip`), the end is marked for the answers that end in one, and for no others.
# Valid input: a chat of four messages, a template with generation tags around the content alone.
#
# Output seen:
#   transformers 5.23.0 tokenizers 0.23.3
#   dropped blanks, 'yes': yes | no
#   dropped blanks, 'yes ': yes <end> <user> and <end> <assistant> no <end>
#   dropped blanks, ' yes': nothing
#   lstrip, 'yes': yes | no
#   lstrip, 'yes ': yes <end> | no
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$work/check.py" <<'PYTHON'
import logging
from importlib.metadata import version
from itertools import groupby

logging.disable(logging.WARNING)

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = ["<user>", "<assistant>", "<end>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<end>"
    "{% endfor %}"
)


def tokenizer(lstrip):
    words = ["<unk>", *MARKS, "why", "yes", "and", "no"]
    core = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(
        [AddedToken(m, special=True, normalized=False, lstrip=lstrip and m == "<end>") for m in MARKS]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<end>")
    made.chat_template = TEMPLATE
    return made


def marked(made, answer):
    chat = [
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "no"},
    ]
    out = made.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    tokens = made.convert_ids_to_tokens(out["input_ids"])
    runs = groupby(zip(tokens, out["assistant_masks"]), key=lambda pair: pair[1])
    return " | ".join(" ".join(t for t, _ in run) for mask, run in runs if mask) or "nothing"


print("transformers", version("transformers"), "tokenizers", version("tokenizers"))
found = []
for name, lstrip, answers in (
    ("dropped blanks", False, ("yes", "yes ", " yes")),
    ("lstrip", True, ("yes", "yes ")),
):
    for answer in answers:
        found.append(marked(tokenizer(lstrip), answer))
        print(f"{name}, {answer!r}: {found[-1]}")
assert found == [
    "yes | no",
    "yes <end> <user> and <end> <assistant> no <end>",
    "nothing",
    "yes | no",
    "yes <end> | no",
], found
PYTHON
"$work/venv/bin/python" "$work/check.py"
