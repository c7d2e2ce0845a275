"""A tiny random model of any kind that transformers knows, and a tokenizer of bytes for it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from sweep.sizes import KEPT_NONE, LAYERS, OWN, SIZES, VARIANTS, VISION

TYPES = ("mlp_layer_types", "layers_block_type", "hybrid_layer_pattern", "block_types")
"""Settings that are a kind a layer."""


def build(kind: str, image_text: bool, seed: int = 0) -> Any:
    """A model of a kind, whose logits differ from token to token, in eval mode and float32."""
    name, _, _ = kind.partition(" +")
    config = tiny_config(CONFIG_MAPPING[name], VARIANTS.get(kind, {}))
    auto = transformers.AutoModelForImageTextToText if image_text else None
    torch.manual_seed(seed)
    model = (auto or transformers.AutoModelForCausalLM).from_config(config).float()
    draw = torch.Generator().manual_seed(seed)
    left = ("conv", "a_log", "dt_proj", "dt_bias", "hc_", "rotary", "vision", "visual", "audio")
    with torch.no_grad():
        for path, p in model.named_parameters():
            low = path.lower()
            if not torch.isfinite(p).all():
                p.data = torch.randn(p.shape, generator=draw) * 0.02
            if p.ndim >= 2 and not any(part in low for part in left):
                p.data = torch.randn(p.shape, generator=draw) * 1.2 / math.sqrt(min(p.shape[-2:]))
            elif p.ndim == 1 and ("norm" in low or "ln_" in low) and "weight" in low:
                p.data = p.data + 0.15 * torch.randn(p.shape, generator=draw)
            elif p.ndim == 1 and low.endswith("bias") and "dt_bias" not in low:
                p.data = p.data + 0.1 * torch.randn(p.shape, generator=draw)
    return model.eval().requires_grad_(False)


def tiny_config(kind: Any, more: dict[str, Any] | None = None, vision: bool = False) -> Any:
    """The config of a class with all its sizes small, those of its parts, too."""
    base = _default(kind)
    parts = getattr(kind, "sub_configs", None) or {}
    renamed = getattr(kind, "attribute_map", None) or {}
    own = set(inspect.signature(kind.__init__).parameters)
    own |= {name for c in kind.__mro__ for name in getattr(c, "__annotations__", {})}
    names = own | set(vars(base) if base is not None else ())
    given: dict[str, Any] = {}
    for name, size in (SIZES | VISION if vision else SIZES).items():
        if name in names and name not in parts and name not in renamed and _takes(base, name, size):
            given[name] = size
    if base is not None:
        given |= _layer_types(kind, base, names, given)
    for name, part in parts.items():
        part = type(getattr(base, name, None)) if part is AutoConfig else part
        if isinstance(part, type) and issubclass(part, transformers.PreTrainedConfig):
            tower = not any(word in name for word in ("text", "decoder", "llm", "language"))
            given[name] = tiny_config(part, vision=tower).to_dict()
    if {"kv_lora_rank", "qk_rope_head_dim"} <= names:  # latent attention has a key a head
        given["num_key_value_heads"] = 4
        given.pop("head_dim", None)
    given |= OWN.get(kind.__name__, {}) | (more or {})
    latent = "qk_rope_head_dim" in names  # whose rotary part has a size of its own
    return kind(**({} if latent else _sections(_get(base, "rope_parameters"), given)), **given)


def _sections(rope: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters whose sections of time, height and width share a small head; kinds without
    sections do not look at them."""
    if "rope_parameters" in given or "rope_type" not in (rope or {}):
        return {}
    heads = {"hidden_size", "num_attention_heads"} <= given.keys()
    if not heads and "head_dim" not in given:
        return {}
    head = given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
    half = int(head * rope.get("partial_rotary_factor", 1)) // 2
    first, second = half // 4, (half - half // 4) // 2
    return {"rope_parameters": {**rope, "mrope_section": [first, second, half - first - second]}}


def _default(kind: Any) -> Any:
    try:
        return kind()
    except Exception:  # a few cannot be made without arguments
        return None


def _get(base: Any, name: str) -> Any:
    try:
        return getattr(base, name, None)
    except Exception:  # properties that do not hold for the default
        return None


def _takes(base: Any, name: str, size: Any) -> bool:
    """Whether a value of this type is in place there."""
    now = _get(base, name)
    if base is None:
        return True
    if now is None and name in KEPT_NONE:
        return False
    if isinstance(now, list | tuple) and name != "eos_token_id":
        return False
    return isinstance(now, bool) == isinstance(size, bool)


def _layer_types(kind: Any, base: Any, names: set[str], given: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers cut to a few that show all of the default's, in order."""
    found: dict[str, Any] = {}
    renamed = getattr(kind, "attribute_map", None) or {}
    for name in ("layer_types", *TYPES):
        now = _get(base, name)
        fixed = inspect.getattr_static(kind, renamed.get(name, name), None)
        if name not in names or isinstance(fixed, property) or not isinstance(now, list | tuple):
            continue
        kinds = list(dict.fromkeys(now))
        if not kinds:
            continue
        count = max(found.get("num_hidden_layers", LAYERS), len(kinds))
        found[name] = [kinds[n % len(kinds)] for n in range(count)]
        found["num_hidden_layers"] = count
    return found


def tokenizer() -> Any:
    """Bytes, and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<eos>", "<pad>", "<bos>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.Fuse()  # a character a token, also where bytes make none
    made.add_special_tokens(special)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<eos>",
        pad_token="<pad>",
        bos_token="<bos>",
        clean_up_tokenization_spaces=False,
    )
