"""What is known of tools that take our exports: where they leave something out, and since which version.

One table, so that receipts can say it. Facts marked `refused` make an export pointless and are refused;
the others are told under `not_carried_over`. Versions are those in which it was seen; sources name the
place in the tool's own code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from torch import nn

from trimtab import models
from trimtab.errors import DialError

LLAMA_CPP = "llama.cpp (llama-cpp-python 0.3.36)"
CONVERTER = "llama.cpp's convert_lora_to_gguf.py (of llama-cpp-python 0.3.36's commit)"


@dataclass(frozen=True)
class Fact:
    """One thing that one tool does to one kind of export."""

    tool: str
    """With the version in which it was seen."""
    source: str
    """Where it stands."""
    what: str
    formats: tuple[str, ...]
    """Formats of `export` that it concerns."""
    architectures: tuple[str, ...] = ()
    """`model_type`s; empty: all."""
    when: Literal["always", "head", "bias", "paths"] = "always"
    """Whether the LM head is changed, a vector is a LoRA bias, or a module is that matches `paths`."""
    paths: str = ""
    refused: bool = False


ATTENTION_BY_PRODUCTS = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "kimi_k2",
    "glm_moe_dsa",
    "hy_v4",
)

FACTS = (
    Fact(
        LLAMA_CPP,
        "src/models: no call of build_cvec in the graph",
        "llama.cpp never applies control vectors to this architecture",
        ("gguf",),
        ("hy_v4", "plamo2", "plamo_2"),
        refused=True,
    ),
    Fact(
        LLAMA_CPP,
        "src/models/deci.cpp",
        "llama.cpp leaves the vector out in blocks without a feed-forward part",
        ("gguf",),
        ("nemotron-nas", "nemotron_nas", "deci"),
    ),
    Fact(
        LLAMA_CPP,
        "src/models: build_cvec after the layer's scalar, on every stream, or after mixing",
        "llama.cpp adds the vector at another place of the block than transformers' output",
        ("gguf",),
        ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "deepseek_v4", "qwen4_exp_text"),
    ),
    Fact(
        LLAMA_CPP,
        "src/llama-adapter.cpp, llama_adapter_cvec::apply",
        "llama.cpp keeps the deeper layers of a vector that was set before on the same context; "
        "set them to zero or take a new context",
        ("gguf",),
    ),
    Fact(
        "llama.cpp's convert_hf_to_gguf.py (of llama-cpp-python 0.3.36's commit)",
        "Gemma's and Gemma 2's modify_tensors drops lm_head.weight",
        "the conversion to GGUF drops an LM head of its own for Gemma 1 and 2, and turns a LoRA on "
        "it into zeros, both without an error: the head does not reach llama.cpp",
        ("peft", "merged"),
        ("gemma", "gemma2"),
        "head",
    ),
    Fact(
        "llama.cpp's converters (of llama-cpp-python 0.3.36's commit)",
        "conversion of tied heads",
        "the conversion to GGUF stops at an LM head of its own for this architecture",
        ("peft", "merged"),
        ("cohere", "cohere2", "lfm2_moe"),
        "head",
    ),
    Fact(
        LLAMA_CPP,
        "src/models/deepseek2.cpp: plain products, without build_lora_mm",
        "llama.cpp ignores a LoRA on the LM head and on q_a, q_b and kv_a projections here",
        ("peft", "gguf-lora"),
        ATTENTION_BY_PRODUCTS,
        "paths",
        r"(lm_head|q_a_proj|q_b_proj|kv_a_proj\w*)$",
    ),
    Fact(
        LLAMA_CPP,
        "src/models/minicpm3.cpp: plain products, without build_lora_mm",
        "llama.cpp ignores a LoRA on q_a, q_b, kv_a and kv_b projections here",
        ("peft", "gguf-lora"),
        ("minicpm3",),
        "paths",
        r"(q_a_proj|q_b_proj|kv_a_proj\w*|kv_b_proj)$",
    ),
    Fact(
        CONVERTER,
        "transposed weights (Conv1D)",
        "the converter of LoRAs to GGUF refuses this architecture",
        ("peft",),
        ("gpt2",),
    ),
    Fact(
        CONVERTER,
        "tensors other than lora_A and lora_B",
        "the converter of LoRAs to GGUF refuses a LoRA bias, which the vector is: use --to gguf",
        ("peft",),
        (),
        "bias",
    ),
    Fact(
        "vLLM (commit 02143692ba86)",
        "vllm/lora/peft_helper.py knows no lora_bias",
        "servers that know no LoRA bias (lora_bias) refuse it or leave it out: vLLM for one",
        ("peft",),
        (),
        "bias",
    ),
)

SAME = {
    **dict.fromkeys(("mistral", "mixtral", "ministral"), "llama"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"), "deepseek2"),
    **{"gpt_neox": "gptneox", "phi": "phi2", "cohere": "command-r", "gpt_bigcode": "starcoder"},
    **{"granitemoehybrid": "granitehybrid", "hunyuan_v1_dense": "hunyuan-dense"},
    **{"hunyuan_v1_moe": "hunyuan-moe", "nemotron-nas": "deci", "nemotron_nas": "deci"},
    **{"qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe"},
}
"""Model types whose name in llama.cpp is not theirs without marks."""


def facts_on(
    to: str, model_type: str, paths: frozenset[str] = frozenset(), *, head: bool, bias: bool
) -> list[Fact]:
    """The facts that concern an export.

    Args:
        paths: modules that it changes.
        head: whether the LM head is among them.
        bias: whether a vector is written as a bias.
    """

    def holds(fact: Fact) -> bool:
        return (
            to in fact.formats
            and (not fact.architectures or model_type in fact.architectures)
            and {
                "always": True,
                "head": head,
                "bias": bias,
                "paths": any(re.search(fact.paths, path) for path in paths),
            }[fact.when]
        )

    return [fact for fact in FACTS if holds(fact)]


def known_to_llama_cpp(model_type: str) -> bool:
    """Whether the installed `gguf` package has a name for an architecture."""
    import gguf

    def bare(name: str) -> str:
        return re.sub(r"[-_]|_text$", "", name.removesuffix("_text"))

    names = {bare(name) for name in gguf.MODEL_ARCH_NAMES.values()}
    return bare(SAME.get(model_type, model_type)) in names


def told_on(
    to: str, model: nn.Module, paths: frozenset[str], *, head: bool, bias: bool
) -> list[str]:
    """Lines for a receipt: what is known to get lost of an export of this model.

    Raises:
        DialError: a fact that makes the export pointless.
    """
    model_type = models.text_config(model).model_type
    lines = []
    for fact in facts_on(to, model_type, paths, head=head, bias=bias):
        line = f"{fact.what} ({fact.tool}: {fact.source})"
        if fact.refused:
            raise DialError(f"--to {to} for {model_type}: {line}")
        lines.append(line)
    if to == "gguf" and not known_to_llama_cpp(model_type):
        lines.append(
            f"whether llama.cpp opens {model_type} at all is not known: the gguf package "
            f"{version('gguf')} has no architecture of that name"
        )
    return lines
