"""GGUF files, read through a dequantised copy in the cache folder that is proved to be complete."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from trimtab.errors import ModelError
from trimtab.files import staged
from trimtab.holding import held
from trimtab.models.copies import read_note, write_note
from trimtab.models.digests import cache_root, content_of_gguf, open_gguf
from trimtab.models.plain import strip_marks
from trimtab.models.quiet import quiet_transformers
from trimtab.progress import warn

FORMAT = 3
"""Of the conversion: rises when copies of earlier versions are not to be used any more."""
_SHAPES = re.compile(
    r"\.(vocab_size|block_count|context_length|rope\.dimension_count|tensor_data_layout"
    r"|attention\.(key|value)_length)$"
)
"""Metadata that says no more than the tensors' shapes do."""
_AS_GPT2 = frozenset(
    (
        *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat"),
        *("exaone4", "mellum", "a.x-4.0"),
    )
)
"""Names of splitting rules (`tokenizer.ggml.pre`) that mean GPT-2's (llama.cpp, llama-vocab.cpp)."""


def copy_of(file: Path, *, quiet: bool = False) -> Path:
    """The dequantised copy of a GGUF file, made on first use. Two files that differ in tensors or
    metadata have two copies. What of the file is not in the copy is said, unless `quiet`.

    Raises:
        ModelError: the file is damaged, or holds no whole model that transformers can read.
    """
    content = content_of_gguf(file)
    folder = copy_folder(file)
    if not (folder / "config.json").is_file():
        with held(folder, wait=True):  # another process makes the same
            if not (folder / "config.json").is_file():
                _convert(file, folder, content.digest, content.behaviour)
    for line in () if quiet else read_note(folder).get("said", ()):
        warn(f"{file}: {line}")
    return folder


def copy_folder(file: Path) -> Path:
    """Where the copy of a GGUF file is, or will be."""
    content = content_of_gguf(file)
    name = f"{content.digest[:24]}-{content.metadata[:12]}-{FORMAT}"
    return cache_root() / "models" / name


def _convert(file: Path, folder: Path, digest: str, metadata: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader = open_gguf(file)
    # The bar of the conversion heeds no setting.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()), _read_once(file, reader):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(file.parent),
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                trust_remote_code=False,
            )
            model, found = loaded
            tokenizer = AutoTokenizer.from_pretrained(
                str(file.parent), gguf_file=file.name, trust_remote_code=False
            )
        except Exception as error:  # of many kinds; each means that it cannot be read
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"{file}: transformers cannot read this GGUF file: {reason}"
            ) from error
    missing = sorted(found["missing_keys"]) or half_experts(t.name for t in reader.tensors)
    if missing:
        raise ModelError(
            f"{file}: lacks {len(missing)} of the weights that a {type(model).__name__} has, "
            f"{missing[0]} among them; a file in several parts has to be merged first"
        )
    said = _unread(reader, model) + _text_unread(reader.fields, tokenizer)
    strip_marks(model)  # the weights are plain float32 already
    with staged(folder) as stage:
        with quiet_transformers():
            model.save_pretrained(stage / "new")
            tokenizer.save_pretrained(stage / "new")
        write_note(stage / "new", digest, metadata, said)
        if folder.exists():
            folder.rename(stage / "old")
        (stage / "new").rename(folder)


@contextlib.contextmanager
def _read_once(file: Path, reader: Any) -> Iterator[None]:
    """Give transformers, which opens the file and maps its names anew for config, tokenizer and every
    layer, what was read of it before: half of a conversion's time with a large vocabulary."""
    import gguf

    opened, mapped = gguf.GGUFReader, functools.cache(gguf.get_tensor_name_map)

    def once(path: Any, *args: Any, **named: Any) -> Any:
        return reader if Path(path) == file else opened(path, *args, **named)

    with (
        mock.patch.object(gguf, "GGUFReader", once),
        mock.patch.object(gguf, "get_tensor_name_map", mapped),
    ):
        yield


def half_experts(names: Iterable[str]) -> list[str]:
    """Projections of experts that are missing beside others of their block: transformers fuses gate and
    up into one tensor, and leaves zeros where one of them is not there."""
    found: dict[str, set[str]] = {}
    for name in names:
        if match := re.fullmatch(r"(blk\.\d+)\.ffn_(gate|up|down)_exps\.weight", name):
            found.setdefault(match[1], set()).add(match[2])
    if not any("gate" in kinds for kinds in found.values()):  # experts without gates
        return []
    wanted = ("gate", "up", "down")
    return [
        f"{b}.ffn_{k}_exps.weight" for b, kinds in found.items() for k in wanted if k not in kinds
    ]


# ---- what transformers does not read -------------------------------------------------------------


def _unread(reader: Any, model: Any) -> list[str]:
    """Lines on what of the file is not in the model. The rotary scalings that transformers passes
    over are put into its config where they are known ones."""
    tensors = {t.name: t for t in reader.tensors}
    arch = str(reader.fields["general.architecture"].contents())
    left = set(tensors) - _mapped(model, set(tensors))
    metadata = _metadata_unread(reader, arch, model.config)
    rope = dict(getattr(model.config, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") == "default":
        scaling = {k: v for k, v in metadata.items() if k.startswith(f"{arch}.rope.scaling.")}
        if made := _scaling({k.rpartition(".")[2]: v for k, v in scaling.items()}):
            model.config.rope_parameters = {**rope, **made}
            metadata = {k: v for k, v in metadata.items() if k not in scaling}
        elif "rope_freqs.weight" in left:
            factors = np.array(tensors["rope_freqs.weight"].data, dtype=np.float64).ravel()
            made = llama3_scaling(factors, float(rope.get("rope_theta", 10000.0)))
            if made is not None:
                model.config.rope_parameters = {**rope, **made}
                left.discard("rope_freqs.weight")
    lines = []
    if left:
        lines.append(f"transformers does not read {_some(left)} of its tensors")
    if metadata:
        named = {f"{key} ({value})" for key, value in metadata.items()}
        lines.append(f"transformers does not read {_some(named)} of its metadata")
    return lines


def _text_unread(fields: Any, tokenizer: Any) -> list[str]:
    """Lines on what the file says of how text is cut, and its tokenizer does otherwise."""
    says = {
        name: fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("model", "pre", "add_space_prefix")
        if f"tokenizer.ggml.{name}" in fields
    }
    lines, rule = [], str(says.get("pre", "default"))
    done = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    as_gpt2 = done.get("type") == "ByteLevel" and done.get("use_regex")
    if says.get("model") == "gpt2" and as_gpt2 and rule not in _AS_GPT2:
        what = "names no rule" if rule == "default" else f"names a rule, {rule}, that is not known"
        lines.append(
            f"it {what} by which text is cut into words (tokenizer.ggml.pre): GPT-2's is taken, and "
            "tokens of numbers, blanks and other scripts can be others than llama.cpp's"
        )
    bare = says.get("model") == "llama" and says.get("add_space_prefix") is False
    if bare and "".join(tokenizer.tokenize("a")).startswith("▁"):
        lines.append(
            "it wants no blank before a text (tokenizer.ggml.add_space_prefix), and transformers "
            "puts one there: first tokens are others than llama.cpp's"
        )
    return lines


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _mapped(model: Any, names: set[str]) -> set[str]:
    """The tensors that transformers finds a place for."""
    from transformers import modeling_gguf_pytorch_utils as utils
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    kind = str(model.config.model_type)
    # One tensor a parameter and no parameter without: nothing can be left. (The map takes seconds.)
    if is_gguf_arch_supported(kind) or len(names) == len({id(p) for p in model.parameters()}):
        return names
    kinds = {kind, kind.replace("_", ""), kind.replace("_", "-")}
    processor = next(
        (p for k, p in utils.TENSOR_PROCESSORS.items() if k in kinds), utils.TensorProcessor
    )(config=model.config.to_dict())
    known = set(utils.get_gguf_hf_weights_map(model, processor))
    known |= {"output.weight"} if "output.weight" in names else set()
    packed = re.compile(r"ffn_(gate|up|down|gate_up)_(exps|projs)\.")
    return {
        n for n in names if n in known or n.removesuffix(".weight") in known or packed.search(n)
    }


def _metadata_unread(reader: Any, arch: str, config: Any) -> dict[str, Any]:
    """Settings of the architecture that have no counterpart in the config."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    read = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    names = next((read[a] for a in (arch, arch.replace("-", "_")) if a in read), {})
    values = {key: value for key, value in _flat(config.to_dict()) if _is_number(value)}
    found = {}
    for key, field in reader.fields.items():
        known = names.get(key.partition(".")[2]) or _SHAPES.search(key)
        if known or not key.startswith(f"{arch}."):
            continue
        value = field.contents()
        leaf = key.rpartition(".")[2]
        same = _is_number(value) and any(
            name.endswith(leaf) and math.isclose(held, value, rel_tol=1e-6)
            for name, held in values.items()
        )
        if not same and value not in (None, "", "none", False) and not isinstance(value, list):
            found[key] = value
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SCALINGS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor", "original_context_length": ""},
    "yarn": {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    },
}
"""Rotary scalings by their names in GGUF files, with transformers' names of their settings."""


def _scaling(given: dict[str, Any]) -> dict[str, Any] | None:
    """Rotary scaling of a file's metadata, as transformers' config has it; None for one that is not
    known whole."""
    names = _SCALINGS.get(str(given.get("type")), {})
    rest = {k: v for k, v in given.items() if k not in ("type", "finetuned")}
    if "factor" not in rest or set(rest) - set(names):
        return None
    made = {names[key]: value for key, value in rest.items() if names[key]}
    return {"rope_type": str(given["type"]), **made}


def llama3_scaling(factors: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The scaling of Llama 3.1 that gives these divisors of the rotary frequencies, `[d / 2]`; None
    where none does."""
    n, factor = len(factors), float(factors.max())
    if np.allclose(factors, 1.0):
        return {}
    lengths = 2 * math.pi * theta ** (np.arange(n) / n)  # of the waves, in tokens
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        for low, high in ((1.0, 4.0), (1.0, 8.0), (1.0, 2.0)):
            smooth = (original / lengths - low) / (high - low)
            between = 1 / ((1 - smooth) / factor + smooth)
            right = np.where(lengths < original / high, 1.0, between)
            right = np.where(lengths > original / low, factor, right)
            if np.allclose(right, factors, rtol=1e-4):
                made = {"rope_type": "llama3", "factor": float(f"{factor:.6g}")}
                made |= {"low_freq_factor": low, "high_freq_factor": high}
                return {**made, "original_max_position_embeddings": original}
    return None
