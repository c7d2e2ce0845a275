"""What a forward pass reads of a model's config, in one form however the config is spelled."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from functools import lru_cache
from typing import Any

from trimtab.models.quiet import quiet_transformers

UNREAD = frozenset(
    (
        *("_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward"),
        *("dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label"),
        *("label2id", "name_or_path", "num_labels", "output_attentions", "output_hidden_states"),
        *("output_router_logits", "pretraining_tp", "problem_type", "quantization_config"),
        *("return_dict", "task_specific_params", "tie_word_embeddings", "torch_dtype"),
        *("transformers_version", "use_cache", "use_return_dict"),
    )
)
"""Keys that change no log-prob. Whether weights are tied is seen in the weights."""
_UNREAD = re.compile(r"^_|^initializer_|dropout|_pdrop$|layerdrop|_jitter_noise$|_aux_loss")
"""More of them: private keys, how weights were first drawn, noise of training."""
_READS_PAD = re.compile(
    r"(ne\(|!= ?|== ?)(self\.)?(config\.)?(padding_idx|pad_token_id)|padding_idx \+"
)
_CLASSIFIER = re.compile(
    r"^class \w*Classification\w*\(.*?(?=^class |\Z)", re.DOTALL | re.MULTILINE
)
"""The pad token decides positions or masks there; elsewhere it is a row that gets no gradient, and
the end of the text for a classifier."""


def read_of(config: Any) -> dict[str, Any]:
    """The part of a config that a forward pass reads, as JSON values: no defaults and nothing that
    follows from the rest, so that neither spelling them out nor another version's new default
    changes it."""
    text = json.dumps(plain(config), sort_keys=True)
    return json.loads(_reduced(type(config), text))


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON values, with its defaults, without what no forward pass reads."""
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    given = _named(json.loads(json.dumps(given, default=str)))
    source, kind = _source(type(config)), type(config)
    declared = set(getattr(kind, "__dataclass_fields__", ()))
    if source and declared:  # what the class neither declares nor its model mentions is a remark
        declared |= set(getattr(kind, "attribute_map", {}).values()) | {"model_type"}
        for key in set(given) - declared:
            if not re.search(rf"\b{re.escape(key)}\b", source):
                del given[key]
    if source and not _READS_PAD.search(_CLASSIFIER.sub("", source)):
        given.pop("pad_token_id", None)
    return given


def _named(given: dict[str, Any]) -> dict[str, Any]:
    """Without unread keys, in nested configs too."""
    kept = {}
    for key, value in given.items():
        if key in UNREAD or _UNREAD.search(key):
            continue
        kept[key] = _named(value) if isinstance(value, dict) and "model_type" in value else value
    return kept


@lru_cache(maxsize=64)
def _reduced(kind: Any, text: str) -> str:
    """Without every key that the config's class fills in again as it was."""
    whole = json.loads(text)
    if not hasattr(kind, "from_dict"):
        return text

    def refilled(given: dict[str, Any]) -> dict[str, Any] | None:
        try:
            with quiet_transformers():
                return plain(kind.from_dict(copy.deepcopy(given)))
        except Exception:  # of many kinds: the class needs what was taken out
            return None

    kept = copy.deepcopy(whole)
    if refilled(kept) != whole:
        return text
    for path in _paths(whole):
        *above, key = path
        place = kept
        for part in above:
            place = place.get(part, {})
        if key not in place or path == ("model_type",):
            continue
        value = place.pop(key)
        if refilled(kept) != whole:
            place[key] = value
    return json.dumps(kept, sort_keys=True)


def _paths(given: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys, nested configs before what they hold."""
    found = []
    for key in sorted(given):
        found.append((*above, key))
        if isinstance(given[key], dict) and "model_type" in given[key]:
            found += _paths(given[key], (*above, key))
    return found


@lru_cache(maxsize=64)
def _source(kind: Any) -> str:
    """Source of the module that models of this config are defined in; empty where there is none."""
    module = kind.__module__.replace("configuration_", "modeling_")
    try:
        __import__(module)
        return inspect.getsource(sys.modules[module])
    except Exception:  # optional dependencies, code of a checkpoint: then every key counts
        return ""


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys in which two configs differ, with their values, nested ones by dotted path."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += [f"{key}.{line}" for line in differing(x, y)]
        elif x != y:
            found.append(f"{key} {_short(x)} and {_short(y)}")
    return found


def _short(value: Any) -> str:
    text = "its default" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
