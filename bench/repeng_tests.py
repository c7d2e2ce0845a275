"""repeng's own tests with the import changed: `python -m bench.repeng_tests repeng-0.4.0-py3-none-any.whl`.

Tiny random models of as many layers stand in for the Hub's. An assertion that compares with one model's
literal text does not apply and is taken out; all the others are run as they stand. Nothing of the tests
is kept here: they are read from the wheel (`pip download --no-deps repeng==0.4.0`), or from a file.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trimtab.compat import repeng

SENTENCE = "the sky is blue, and we all say so"
SUFFIXES = [SENTENCE[:n] for n in range(3, 30, 3)]


def source_of(place: Path) -> str:
    """The text of `repeng/tests.py` in a wheel, or of a file."""
    if place.suffix == ".whl":
        return zipfile.ZipFile(place).read("repeng/tests.py").decode()
    return place.read_text()


class Changed(ast.NodeTransformer):
    """Imports taken out (`run` gives the names), and assertions on literal texts, which are counted."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        self.test = ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        outer, self.test = self.test, self.test or node.name
        self.generic_visit(node)
        self.test = outer
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        return None if node.level or node.module == "transformers" else node

    def visit_Assert(self, node: ast.Assert) -> Any:
        sides = node.test.comparators if isinstance(node.test, ast.Compare) else []
        literal = any(isinstance(s, ast.Constant) and isinstance(s.value, str) for s in sides)
        counts = self.left_out if literal else self.kept
        counts[self.test] = counts.get(self.test, 0) + 1
        return None if literal else node


class Tokenizers:
    """In place of AutoTokenizer: bytes as tokens, an end mark."""

    @staticmethod
    @cache
    def from_pretrained(_: str) -> Any:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {"<s>": 0, "</s>": 1, **{c: i for i, c in enumerate(letters, 2)}}
        raw = Tokenizer(models.BPE(vocabulary, []))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>"
        )


class Models:
    """In place of AutoModelForCausalLM: tiny, random, as deep as the tests expect."""

    @staticmethod
    def from_pretrained(name: str) -> Any:
        torch.manual_seed(0)
        size: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
        if "gpt2" in name:
            config: Any = transformers.GPT2Config(n_embd=32, n_layer=12, n_head=4, **size)
        else:
            wide = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
            config = transformers.LlamaConfig(num_hidden_layers=4, **wide, **size)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def run(text: str) -> Iterator[tuple[str, str, int, int]]:
    """Each test: its name, how it fared, assertions that were run, and those that do not apply."""
    changed = Changed()
    tree = ast.fix_missing_locations(changed.visit(ast.parse(text)))
    names = {name: getattr(repeng, name) for name in repeng.__all__}
    names |= {"AutoTokenizer": Tokenizers, "AutoModelForCausalLM": Models, "__name__": "theirs"}
    names["PreTrainedTokenizerBase"] = transformers.PreTrainedTokenizerBase
    exec(compile(tree, "repeng/tests.py", "exec"), names)  # their published tests, by their file
    names["load_suffixes"] = lambda: SUFFIXES
    for name in [n for n in names if n.startswith("test_")]:
        try:
            names[name]()
            fared = "passed"
        except Exception as error:  # whatever a test of theirs ends in
            fared = f"failed: {type(error).__name__}: {error}"
        yield name, fared, changed.kept.get(name, 0), changed.left_out.get(name, 0)


if __name__ == "__main__":
    print("| test | | assertions run | of one model's text, left out |\n|---|---|--:|--:|")
    for name, fared, kept, left in run(source_of(Path(sys.argv[1]))):
        print(f"| `{name}` | {fared} | {kept} | {left} |")
