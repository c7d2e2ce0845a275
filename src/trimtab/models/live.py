"""What a forward pass depends on that neither weights nor config say: numbers on modules, buffers that
no file holds, functions that were put in a method's place, hooks.

A model as its class builds it from its config has no such state. One that was changed in memory has:
frequencies of rotary positions multiplied, an epsilon set, an adapter of PEFT's scaled or switched off,
a config edited after the model was built. Its readings are then kept apart. Where somebody's code acts
within the forward pass (a hook, a method of their own) nobody can tell what it will do next time, and
nothing is kept at all.
"""

from __future__ import annotations

import hashlib
import json
import types
import uuid
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.quiet import quiet_transformers
from trimtab.models.values import raw_bytes

LIVE = "live"
"""Begins the state of a model in which somebody's code acts."""
_PROCESS = uuid.uuid4().hex
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_LIBRARIES = frozenset(
    (
        *("accelerate", "bitsandbytes", "compressed_tensors", "gptqmodel", "hqq", "optimum"),
        *("peft", "torch", "torchao", "transformers", "trimtab"),
    )
)
"""Whose hooks and methods do what the rest of the state says."""
_PASSING = frozenset(
    (
        *("gradient_checkpointing", "is_loaded_in_4bit", "is_loaded_in_8bit", "name_or_path"),
        *("training", "_compiled_call_impl", "_is_hf_initialized"),
    )
)
"""Attributes that change no log-prob in eval mode."""

Described = dict[str, tuple[Any, ...]]
_trusted: weakref.WeakKeyDictionary[nn.Module, tuple[str, str]] = weakref.WeakKeyDictionary()
_judged: weakref.WeakKeyDictionary[nn.Module, tuple[str, str, str]] = weakref.WeakKeyDictionary()


def trust(model: nn.Module, config: str) -> None:
    """Note that a model stands as its files make it."""
    _trusted[model] = _digest(_described(model)), config


def state_of(model: nn.Module, config: str) -> str:
    """Digest of what is otherwise about a model than its class builds it from its config; empty where
    nothing is. It begins with LIVE where somebody's code acts in its forward pass.

    Args:
        config: the model's config as text.
    """
    if theirs := sorted(_theirs(model)):
        return f"{LIVE} {_PROCESS} {theirs}"
    mine = _described(model)
    signs = _digest(mine), config
    if _trusted.get(model) == signs:
        return ""
    known = _judged.get(model)
    if known is None or known[:2] != signs:
        known = _judged[model] = (*signs, _judge(model, mine))
    return known[2]


def _judge(model: nn.Module, mine: Described) -> str:
    there = _described(twin) if (twin := _twin(model)) is not None else {}
    changed = {path: said for path, said in mine.items() if there.get(path) != said}
    gone = sorted(there.keys() - mine.keys())
    return _digest({**changed, "": (gone,)}) if changed or gone else ""


def _twin(model: nn.Module) -> nn.Module | None:
    """The model as its class builds it from its config, without weights."""
    from accelerate import init_empty_weights

    try:
        with (
            quiet_transformers(),
            torch.random.fork_rng(devices=[]),
            init_empty_weights(include_buffers=False),
        ):
            return type(model)(model.config)
    except Exception:  # of many kinds: a wrapper, a model of no config
        return None


def _digest(described: Described) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


# ---- what is described ---------------------------------------------------------------------------


def _described(model: nn.Module) -> Described:
    """Kind, plain attributes and unsaved buffers of every module, by path."""
    return {
        path: (type(module).__module__, type(module).__qualname__, *_of(module))
        for path, module in model.named_modules(remove_duplicate=False)
    }


def _of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    own = vars(module)
    for name in sorted(own.keys() - _TORCH - _PASSING):
        if "cached" not in name and (value := _plain(own[name])) is not _OTHER:
            yield name, value
    moving = any(kind in str(own.get("rope_type")) for kind in ("dynamic", "longrope"))
    for name in sorted(module._non_persistent_buffers_set):
        buffer = module._buffers.get(name)
        if buffer is None or (moving and name.endswith("inv_freq") and "original" not in name):
            continue  # the latter is set anew by every pass
        if isinstance(buffer, Tensor) and not buffer.is_meta:
            about = [str(buffer.dtype), list(buffer.shape)]
            yield name, [*about, hashlib.sha256(raw_bytes(buffer).data).hexdigest()]


_TORCH = frozenset(vars(nn.Module()))
_OTHER = object()


def _plain(value: Any) -> Any:
    """A value as JSON, or `_OTHER` where it is no number, text, function or collection of them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        found = [
            _plain(v)
            for v in (value if isinstance(value, list | tuple) else sorted(value, key=str))
        ]
        return _OTHER if any(v is _OTHER for v in found) else found
    if isinstance(value, dict):
        found = [[str(k), _plain(v)] for k, v in value.items()]
        return _OTHER if any(v is _OTHER for _, v in found) else sorted(found, key=str)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return _OTHER


# ---- code of others ------------------------------------------------------------------------------


def _theirs(model: nn.Module) -> Iterator[str]:
    """Hooks, and functions in place of methods, that no library has put there."""
    every = torch.nn.modules.module
    for hooks in (every._global_forward_pre_hooks, every._global_forward_hooks):
        yield from (f"every module {n}" for n, hook in hooks.items() if _is_theirs(hook))
    for path, module in model.named_modules():
        own = vars(module)
        for kind in _HOOKS:
            yield from (f"{path}{kind} {n}" for n, hook in own[kind].items() if _is_theirs(hook))
        for name, value in own.items():
            if callable(value) and not isinstance(value, type) and _is_theirs(value):
                yield f"{path}.{name} {id(value)}"


def _is_theirs(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__wrapped__", function)
    if isinstance(owner := getattr(function, "__self__", None), nn.Module):
        function = type(owner)  # a method
    home = getattr(function, "__module__", None) or getattr(type(function), "__module__", "")
    return str(home).partition(".")[0] not in {*_LIBRARIES, "builtins", "_operator", "math"}
