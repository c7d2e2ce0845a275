"""What a forward pass depends on that neither weights nor config say: numbers on modules, buffers that
no file holds, classes, functions in a method's place, hooks.

All but code is described, and so readings of a model whose rotary frequencies were multiplied, whose
epsilon was set, or whose adapter of PEFT's is scaled or off, are kept apart. Where code acts that no
library has put there nobody can tell what it will do next time, and nothing is kept at all.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import sysconfig
import types
import uuid
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.values import raw_bytes

LIVE = "live"
"""Begins the state of a model in which somebody's code acts."""
_PROCESS = uuid.uuid4().hex
_LIBRARIES = frozenset(
    (
        *("accelerate", "bitsandbytes", "compressed_tensors", "gptqmodel", "hqq", "optimum"),
        *("peft", "torch", "torchao", "transformers", "trimtab"),
        *("_operator", "builtins", "contextlib", "functools", "math", "typing"),
    )
)
"""Whose code does what the rest of the state says, as long as their versions last."""
_PASSING = frozenset(
    (
        *("gradient_checkpointing", "_gradient_checkpointing_func", "_compiled_call_impl"),
        *("name_or_path", "hf_device_map", "is_loaded_in_4bit", "is_loaded_in_8bit"),
        *("_is_hf_initialized", "_is_torch_compile", "_use_kernels", "_weight_conversions"),
        *("cpu", "cuda", "to"),
    )
)
"""Attributes that change no log-prob in eval mode."""
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
_TORCH = frozenset(vars(nn.Module()))
_OTHER = object()


def state_of(model: nn.Module) -> str:
    """Digest of kind, plain attributes and unsaved tensors of every module, by path. It begins with
    LIVE where somebody's code acts in the model's forward pass.
    """
    kinds = {type(module): None for module in model.modules()}
    sha = hashlib.sha256(json.dumps([_code(kind) for kind in kinds]).encode())
    for path, module in model.named_modules(remove_duplicate=False):
        about = [path, type(module).__qualname__, *_said(module)]
        sha.update(json.dumps(about).encode())
    theirs = [*_theirs(model), *(kind.__qualname__ for kind in kinds if _code(kind) is None)]
    theirs += _replaced(model, kinds)
    return f"{LIVE} {_PROCESS} {theirs}" if theirs else sha.hexdigest()


# ---- what is described ---------------------------------------------------------------------------


def _said(module: nn.Module) -> Iterator[tuple[str, Any]]:
    unsaved = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
    own = {k: v for k, v in vars(module).items() if k not in _TORCH and k not in _PASSING} | unsaved
    moving = own.get("rope_type") in ("dynamic", "longrope")
    for name in sorted(own):
        if (
            "cached" in name
            or "state" in name
            or (moving and name.endswith("inv_freq") and name[0] != "o")
        ):
            continue  # set anew by every pass
        if (value := _plain(own[name])) is not _OTHER:
            yield name, value


def _plain(value: Any) -> Any:
    """A value as JSON, or `_OTHER` where it is no number, text, tensor, function or collection of
    them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        data = b"" if value.is_meta else raw_bytes(value).data
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, dict):
        value = [[str(k), v] for k, v in value.items()]
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        found = [_plain(v) for v in value]
        return _OTHER if any(v is _OTHER for v in found) else found
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return _OTHER


# ---- code of others ------------------------------------------------------------------------------


@cache
def _code(kind: type) -> str | None:
    """What stands for the code of a class: its name for a library's, a digest of the files beside it
    for any other; None for one that has no file."""
    if _library(kind.__module__):
        return kind.__module__
    try:
        file = Path(inspect.getfile(kind))
        files = sorted(file.parent.glob("*.py")) if file.is_file() else []
        return (
            hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest() if files else None
        )
    except (OSError, TypeError):
        return None


def _theirs(model: nn.Module) -> Iterator[str]:
    """Hooks, and functions in place of methods, that no library has put there."""
    every = torch.nn.modules.module
    for hooks in (every._global_forward_pre_hooks, every._global_forward_hooks):
        yield from (f"every module {n}" for n, hook in hooks.items() if _is_theirs(hook))
    for path, module in model.named_modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            yield from (f"{path} hook {n}" for n, hook in hooks.items() if _is_theirs(hook))
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, type | nn.Module) and _is_theirs(value):
                yield f"{path}.{name} {id(value)}"


def _replaced(model: nn.Module, kinds: Any) -> Iterator[str]:
    """Functions of a library's classes and modules, and its attention kernel, that came from elsewhere."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    classes = {k: None for kind in kinds for k in kind.__mro__ if _library(k.__module__)}
    homes = {k.__module__: None for k in classes if k.__module__ in sys.modules}
    for space in (*classes, *(sys.modules[home] for home in homes)):
        for name, value in vars(space).items():
            if isinstance(value, types.FunctionType) and not _installed(value):
                yield f"{space}.{name} {id(value)}"
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    kernel = ALL_ATTENTION_FUNCTIONS.get(attention)
    if isinstance(kernel, types.FunctionType) and not _installed(kernel):
        yield f"{attention} {id(kernel)}"


def _installed(function: types.FunctionType) -> bool:
    file = function.__code__.co_filename
    return _library(function.__module__) or file.startswith((*_INSTALLED, "<"))


def _is_theirs(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__wrapped__", function)
    if isinstance(owner := getattr(function, "__self__", None), nn.Module):
        function = type(owner)  # a method: what its class is made of is described
        return _code(function) is None
    home = getattr(function, "__module__", None) or getattr(type(function), "__module__", "")
    return not _library(home)


def _library(home: Any) -> bool:
    return str(home).partition(".")[0] in _LIBRARIES
