"""Which model a figure belongs to: a record of parts.

*Weights* are the digest of a file's tensors as they are stored, and that of their values, which a
copy in another precision or in other files shares. *Config* is what a forward pass reads of it.
*Tokenizer*, *template* and *quantisation* are what turns text into tokens and weights into numbers;
of a GGUF file there is the *metadata*. Stored readings depend on weights, config, quantisation and
token ids; cells and runs on tokenizer and template too.

A model in memory that says which files it is from is compared with them once, entry by entry, and is
then that checkpoint, whatever its dtype. One that is none, or was changed, is named by its values.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.errors import ModelError
from trimtab.models import config as configs
from trimtab.models import live, tensors
from trimtab.models.compiled import unwrapped
from trimtab.models.copies import believe, carried
from trimtab.models.digests import Content, content_of, digest_of_folder
from trimtab.models.quantised import quantisation_digest, quantisation_name, settle
from trimtab.models.recognition import files_named, is_of
from trimtab.models.tokenizer import end_ids, template_digest, tokenizer_digest
from trimtab.models.values import joined

PARTS = ("values", "config", "quantisation", "tokenizer", "template", "metadata")
NONE = "none"


@dataclass(frozen=True)
class Source:
    """Where a model came from and what it is. A part that is not known is empty."""

    name: str
    """As it was asked for."""
    digest: str
    """Of its weights as their file stores them."""
    values: str = ""
    """Of its weights' values."""
    config: str = ""
    """What a forward pass reads of its config, as JSON."""
    quantisation: str = ""
    """What holds its weights in fewer bits; `none` where nothing does."""
    tokenizer: str = ""
    """Digest of how its tokenizer cuts text."""
    template: str = ""
    """Digest of its chat template; `none` without one."""
    metadata: str = ""
    """Of a GGUF file, digest of its metadata."""
    state: str = field(default="", compare=False)
    """Of a model in memory, what neither weights nor config say (`live.state_of`)."""

    @property
    def readings(self) -> str:
        """Digest of all that a forward pass on given token ids depends on, as its files say."""
        return _digest([self.values or self.digest, self.config, self.quantisation])

    @property
    def in_memory(self) -> str:
        """`readings` with what no file says: what is read of a model now is kept under this."""
        return _digest([self.readings, self.state])

    @property
    def lasting(self) -> bool:
        """Whether what is read of it now may be kept: no code of others acts in its forward pass."""
        return not self.state.startswith(live.LIVE)

    @property
    def whole(self) -> str:
        """Digest of all that figures on given texts depend on."""
        return _digest([self.readings, self.tokenizer, self.template])

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that are known, as a saved dial keeps them: JSON values by name."""
        known = {name: value for name in PARTS if (value := getattr(self, name))}
        if self.config:
            known["config"] = json.loads(self.config)
        return known


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# ---- comparing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Differences:
    """How two models differ, part by part."""

    refused: list[str]
    """Parts that make another model: weights, config."""
    warned: list[str]
    """Parts that make other figures on the same model: tokenizer, template, quantisation."""
    missing: list[str]
    """Parts that one of the two does not name."""


def differences(digest: str, parts: Mapping[str, Any], source: Source) -> Differences:
    """How a model differs from one that was recorded by digest and parts."""
    mine = source.parts
    refused, warned = [], []
    same = source.values and parts.get("values") == source.values
    if digest != source.digest and not same:
        refused.append(f"weights ({digest[:12]} and {source.digest[:12]})")
    if isinstance(there := parts.get("config"), dict) and "config" in mine:
        lines = configs.differing(there, mine["config"])
        if lines:
            refused.append(f"config ({'; '.join(lines[:3])}{'; …' if len(lines) > 3 else ''})")
    for name in ("quantisation", "tokenizer", "template", "metadata"):
        a, b = parts.get(name), mine.get(name)
        if a and b and a != b:
            said = f" ({str(a)[:60]} and {str(b)[:60]})" if name == "quantisation" else ""
            warned.append(("GGUF " if name == "metadata" else "") + name + said)
    wanted = [name for name in PARTS if name != "metadata"]
    missing = [name for name in wanted if name not in parts and name != "values"]
    return Differences(refused, warned, missing)


# ---- models in memory ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What is known of a model in memory, and the signs under which it holds."""

    source: Source
    weights: str
    config: str


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def source_of(model: nn.Module, tokenizer: Any = None) -> Source:
    """Name and identity of a model, as it is now. It is compared with its files, or hashed, once, and
    again when its weights have changed; asking again costs milliseconds.

    Args:
        tokenizer: the one in use, whose parts then stand in the record. Without it they are those of
            the tokenizer that `load` gave with the model, where it did.

    Raises:
        ModelError: a weight is not finite, or offloaded.
    """
    model = unwrapped(model)
    settle(model)  # bitsandbytes' layers repack their weights when they first run
    weights, config = tensors.mark(model), _config_text(model)
    known = _known.get(model)
    if known is None or (known.weights, known.config) != (weights, config):
        known = _Known(_identified(model, known, weights), weights, config)
        _known[model] = known
    source = replace(known.source, state=live.state_of(model))
    if tokenizer is None:
        return source
    generation = getattr(model, "generation_config", None)
    return with_tokenizer(source, tokenizer, generation, getattr(model, "config", None))


def with_tokenizer(source: Source, tokenizer: Any, generation: Any, config: Any) -> Source:
    """A source with its tokenizer's parts, and what ends a text by two configs of the model."""
    digest = tokenizer_digest(tokenizer, end_ids(generation, config))
    return replace(source, tokenizer=digest, template=template_digest(tokenizer))


def known_source(model: nn.Module) -> Source | None:
    """Identity of a model that `load` made or `source_of` has looked at; else None."""
    known = _known.get(unwrapped(model))
    return known.source if known else None


def remember(model: nn.Module, source: Source) -> None:
    """Note what a model is that has just been loaded."""
    source = replace(
        source,
        config=config_text(model.config),
        quantisation=source.quantisation or _quantisation(model),
    )
    _known[model] = _Known(source, tensors.mark(model), _config_text(model))


def old_digest_of(model: nn.Module) -> str:
    """The digest that dials and cells of earlier versions have for a model made in memory."""
    return tensors.old_digest(unwrapped(model))


def _identified(model: nn.Module, known: _Known | None, mark: str) -> Source:
    config = getattr(model, "config", None)
    before = known.source if known else None
    name = before.name if before else str(getattr(config, "_name_or_path", "") or "unnamed")
    found = Source(name, "")
    if before and known and known.weights == mark:
        found = before  # the config alone was changed
    elif (folder := files_named(model)) is not None and is_of(model, folder):
        there = of_files(folder, name, type(model))
        found = replace(there, name=name)
    else:
        digest, values = tensors.digests(model)
        found = replace(found, digest=digest, values=values)
    if before:
        found = replace(found, tokenizer=before.tokenizer, template=before.template)
    return replace(
        found,
        config=config_text(config) if config is not None else "",
        quantisation=found.quantisation or _quantisation(model),
    )


def _config_text(model: nn.Module) -> str:
    config: Any = getattr(model, "config", None)
    return json.dumps(config.to_dict(), default=str) if hasattr(config, "to_dict") else ""


def config_text(config: Any) -> str:
    """What a forward pass reads of a config, as JSON."""
    return json.dumps(configs.read_of(config), sort_keys=True)


def _quantisation(model: nn.Module) -> str:
    """What holds a model's weights in fewer bits, in words; `none` where nothing does."""
    found = quantisation_digest(model)
    return f"{quantisation_name(model)} ({found[:12]})" if found else NONE


# ---- files ---------------------------------------------------------------------------------------


def of_files(folder: Path, name: str, kind: Any = None) -> Source:
    """The weights of a folder of safetensors files, and what its note says of where they are from.

    Args:
        kind: the class of the model, by which tied and unread tensors are known (by default the one
            that the folder's config names).
    """
    contents = contents_of(folder)
    if not contents:
        return Source(name, "")
    if kind is None:
        try:
            _, kind = class_in(folder, trust=False)
        except Exception:  # no config that transformers knows: all names as they are
            kind = None
    every = {k: v for content in contents for k, v in content.tensors.items()}
    values = joined(tensors.canonical_lines(kind, every))
    note = carried(folder, lambda: values)
    if "files" in note:
        believe(note["source_digest"], values)
    digest = note.get("source_digest") or digest_of_folder(folder) or ""
    stored = _stored_quantisation(folder)
    return Source(name, digest, values, quantisation=stored, metadata=note.get("metadata", ""))


def _stored_quantisation(folder: Path) -> str:
    """How the files of a folder are quantised by their config; empty where they are not."""
    try:
        given = json.loads((folder / "config.json").read_text()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return ""
    if not isinstance(given, dict):
        return ""
    return f"{given.get('quant_method', 'files')} ({_digest(sorted(given.items(), key=str))[:12]})"


def contents_of(folder: Path) -> list[Content]:
    """What each safetensors file of a folder holds."""
    return [content_of(file) for file in sorted(folder.glob("*.safetensors"))]


def check_finite(folder: Path, name: str) -> None:
    """Raise ModelError where weights in a folder's files are not finite."""
    if strange := [tensor for content in contents_of(folder) for tensor in content.strange]:
        raise ModelError(f"{name}: {strange[0]} has weights that are not finite")


def class_in(folder: Path, trust: bool) -> tuple[Any, Any]:
    """The config that a model of this folder will have, and its class; None for one that brings code
    of its own that is not trusted."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    known: Any = AutoModelForCausalLM._model_mapping
    if type(config) in known:
        kind: Any = known[type(config)]
        kind = kind[0] if isinstance(kind, tuple | list) else kind
        if kind.config_class is config.sub_configs.get("text_config"):
            config = config.get_text_config()
        return config, kind
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference and trust:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return config, get_class_from_dynamic_module(reference, str(folder))
    return config, None
