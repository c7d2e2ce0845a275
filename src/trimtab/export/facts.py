"""What is known of tools that take our exports: where they leave something out, and since which version.

One table, `facts.yaml`, so that receipts can say it. Facts marked `refused` make an export pointless and
are refused; the others are told under `not_carried_over`. Versions are those in which it was seen;
sources name the place in the tool's own code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trimtab import models
from trimtab.config_files import read_yaml
from trimtab.errors import DialError


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


_KNOWN = read_yaml(Path(__file__).with_name("facts.yaml"))
_ROWS: Any = [
    {k: tuple(v) if isinstance(v, list) else v for k, v in f.items()} for f in _KNOWN["facts"]
]
FACTS = tuple(Fact(**row) for row in _ROWS)
SAME: dict[str, str] = _KNOWN["names"]
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
    happens = {"always": True, "head": head, "bias": bias}

    def holds(fact: Fact) -> bool:
        changed = fact.when == "paths" and any(re.search(fact.paths, path) for path in paths)
        return changed or happens.get(fact.when, False)

    known = [fact for fact in FACTS if not fact.architectures or model_type in fact.architectures]
    return [fact for fact in known if to in fact.formats and holds(fact)]


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
