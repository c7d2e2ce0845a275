"""Tiny random models of kinds that are unlike others: several residual streams, routers, state-space
layers, shared blocks, stacked experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers

from trimtab import models
from trimtab.dials import AdapterDial
from trimtab.dials.targets import linear_modules

VOCAB = 320
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SSM = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}

KINDS: dict[str, Callable[[], Any]] = {
    "gemma3n": lambda: transformers.Gemma3nTextConfig(
        **{**_COMMON, "num_hidden_layers": 4},
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0],
        altup_num_inputs=3,
        laurel_rank=4,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
    ),
    "deepseek_v4": lambda: transformers.DeepseekV4Config(
        **{k: v for k, v in _COMMON.items() if k not in ("head_dim", "num_key_value_heads")},
        **_EXPERTS,
        n_routed_experts=4,
        n_shared_experts=1,
        head_dim=16,
        num_key_value_heads=1,
        q_lora_rank=24,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=512,
        sliding_window=8,
    ),
    "qwen4_exp": lambda: transformers.Qwen4ExpTextConfig(
        **{**_COMMON, "head_dim": 16},
        **_EXPERTS,
        num_experts=4,
        layer_types=["linear_attention", "indexed_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=64,
        indexer_compress_ratio=4,
        hc_lowrank=8,
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_COMMON,
        intermediate_size_mlp=48,
        num_experts_per_tok=2,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        layer_types=["chunked_attention", "full_attention"],
        attention_chunk_size=8,
        no_rope_layers=[1, 0],
    ),
    "mamba": lambda: transformers.MambaConfig(**_SSM, time_step_rank=4),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**_SSM, time_step_rank=4),
    "jamba": lambda: transformers.JambaConfig(
        **{k: v for k, v in _COMMON.items() if k != "head_dim"},
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_dt_rank=4,
        mamba_d_state=4,
        use_mamba_kernels=False,
    ),
    "zamba": lambda: transformers.ZambaConfig(
        **{**_COMMON, "num_hidden_layers": 4, "head_dim": 16},
        attention_hidden_size=64,
        attention_head_dim=16,
        layers_block_type=["mamba", "hybrid"] * 2,
        mamba_dt_rank=4,
        mamba_d_state=4,
        use_mamba_kernels=False,
    ),
    "glm_moe_dsa": lambda: transformers.GlmMoeDsaConfig(
        **{k: v for k, v in _COMMON.items() if k not in ("head_dim", "num_key_value_heads")},
        **_EXPERTS,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=512,
        first_k_dense_replace=1,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **_COMMON, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_COMMON, **_EXPERTS, num_experts=4),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_COMMON,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "jetmoe": lambda: transformers.JetMoeConfig(
        **{k: v for k, v in _COMMON.items() if k not in ("num_attention_heads", "head_dim")},
        num_attention_heads=4,
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "openai_gpt": lambda: transformers.OpenAIGPTConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
}


def build(name: str) -> Any:
    """A tiny random causal LM of a kind, in eval mode, weights frozen."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(KINDS[name]()).float()
    generator = torch.Generator().manual_seed(0)
    kept = ("conv", "a_log", "dt_proj", "dt_bias", "hc_", "rotary")
    for parameter_name, p in model.named_parameters():
        low = parameter_name.lower()
        if p.ndim >= 2 and not any(word in low for word in kept):
            p.data = torch.randn(p.shape, generator=generator) * 1.2 / math.sqrt(min(p.shape[-2:]))
        elif not p.isfinite().all() or (p.ndim == 1 and "norm" not in low and "hc_" not in low):
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return model.eval().requires_grad_(False)


kind = cache(build)
"""The same, built once: leave it as it was found."""

IDS = torch.randint(2, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits of a plain pass."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def shaken(dial: Any, spread: float = 0.2, seed: int = 1) -> Any:
    """An adapter whose B is not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for B in dial.B:
            B.copy_(spread * torch.randn(B.shape, generator=generator))
    return dial.eval()


def lora(model: Any, targets: str = "all-linear") -> AdapterDial:
    """A LoRA that acts."""
    generator = torch.Generator().manual_seed(2)
    return shaken(AdapterDial(linear_modules(model, targets), rank=2, generator=generator))


def layer(model: Any, k: int) -> Any:
    """A decoder layer."""
    return models.layers(model)[k]
