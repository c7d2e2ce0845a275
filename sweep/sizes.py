"""What makes a config tiny: values by the names that configs use, and kinds that need their own."""

from __future__ import annotations

from typing import Any

VOCABULARY, WIDTH, LAYERS = 320, 64, 4
WINDOW, BLOCK = 8, 8
"""Of sliding windows and chunks, and of the blocks of sparse attention: rows are longer."""

_NAMES: dict[int, str] = {
    VOCABULARY: "vocab_size n_vocab vocab_size_per_layer_input",
    WIDTH: "hidden_size d_model n_embd embedding_size word_embed_proj_dim dim_model model_dim emb_dim "
    "lru_width rnn_hidden_size attention_window_size",
    96: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_inner d_ff dim_ff dff "
    "ffn_hidden_size intermediate_size_mlp feed_forward_size",
    32: "shared_expert_intermediate_size moe_intermediate_size moe_shared_expert_intermediate_size "
    "shared_intermediate_size expert_ffn_hidden_size image_size num_buckets",
    24: "q_lora_rank qk_head_dim",
    16: "head_dim attention_head_dim dim_head d_kv swa_head_dim global_head_dim attention_head_size "
    "kv_lora_rank qk_nope_head_dim v_head_dim mamba_d_head mamba_head_dim mamba_headdim "
    "linear_key_head_dim linear_value_head_dim chunk_size mamba_chunk_size index_head_dim "
    "hidden_size_per_layer_input query_pre_attn_scalar",
    8: "sliding_window attention_chunk_size sliding_window_size window_size qk_rope_head_dim "
    "mamba_n_heads mamba_num_heads mamba_d_state ssm_state_size state_size rotary_dim patch_size "
    "laurel_rank index_block_size",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers "
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts mamba_d_conv mamba_dt_rank time_step_rank conv_kernel "
    "linear_num_value_heads",
    2: "num_key_value_heads num_kv_heads num_global_key_value_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_top_k moe_k top_k_experts encoder_layers num_encoder_layers "
    "mamba_expand n_mamba_heads linear_num_key_heads index_n_heads num_zero_experts zero_expert_num "
    "altup_num_inputs ngram index_topk_blocks",
    1: "n_group topk_group n_shared_experts num_shared_experts mamba_n_groups mamba_ngroups n_groups "
    "first_k_dense_replace pad_token_id",
    0: "eos_token_id sep_token_id max_window_layers num_kv_shared_layers num_lora",
    512: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions "
    "max_target_positions model_max_length index_topk",
    128: "mamba_d_ssm",
}
SIZES: dict[str, Any] = {name: size for size, names in _NAMES.items() for name in names.split()}
SIZES |= {
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
    "layer_dropout": 0.0,
    "dropout": 0.0,
    "use_mamba_kernels": False,
    "use_mambapy": False,
    "vision_feature_layer": -1,
}
SIZES |= {  # of special tokens, which the rows do not have
    name: 310 + n
    for n, name in enumerate(
        [
            "image_token_id",
            "boi_token_id",
            "eoi_token_id",
            "video_token_id",
            "audio_token_id",
            "boa_token_id",
            "eoa_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
            "vision_token_id",
        ]
    )
}
SIZES |= {
    "image_token_index": 310,
    "boi_token_index": 311,
    "eoi_token_index": 312,
    "audio_token_index": 314,
    "eoa_token_index": 316,
}

VISION: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 48),
    **dict.fromkeys(("depth", "num_hidden_layers", "num_layers"), 2),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("out_hidden_size", "projection_dim"), WIDTH),
    "conf_num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 32,
    "patch_size": 8,
    "temporal_patch_size": 2,
}
"""Of a vision or audio tower, over those above."""

KEPT_NONE = [
    "q_lora_rank",
    "num_key_value_heads",
    "head_dim",
    "n_inner",
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "lru_width",
    "qk_head_dim",
    "num_shared_experts",
    "n_shared_experts",
    "moe_topk",
    "moe_num_experts",
    "num_local_experts",
    "num_global_key_value_heads",
    "hidden_size_per_layer_input",
]
"""Values that mean something else where the default is None."""

_MIXED = ["sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "full_attention"] * 2
_GEMMA = {
    "layer_types": _MIXED * 3,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": WINDOW,
}
_DECODER = {"is_decoder": True}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_BYTES = {
    "hidden_size_global": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}

OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        [
            "BertConfig",
            "BertGenerationConfig",
            "CamembertConfig",
            "Data2VecTextConfig",
            "ElectraConfig",
            "ErnieConfig",
            "MegatronBertConfig",
            "RemBertConfig",
            "RobertaConfig",
            "RobertaPreLayerNormConfig",
            "RoFormerConfig",
            "XLMRobertaConfig",
            "XLMRobertaXLConfig",
            "ProphetNetConfig",
        ],
        _DECODER,
    ),
    "BailingHybridConfig": {"n_group": 1, "topk_group": 1, "num_local_experts": 4, "head_dim": 8},
    "BambaConfig": {"attn_layer_indices": [1, 3], "attn_rotary_emb": 8},
    "BartConfig": {"encoder_layers": 4, "decoder_layers": 4},
    "BigBirdConfig": {**_DECODER, "attention_type": "original_full"},
    "BigBirdPegasusConfig": {"attention_type": "original_full"},
    "BltConfig": {"encoder_hash_byte_group_vocab": 500},
    "BltGlobalTransformerConfig": {"hidden_size": 64, "num_attention_heads": 4},
    "BltLocalDecoderConfig": _BYTES,
    "BltLocalEncoderConfig": _BYTES,
    "CohereCompassTextConfig": {
        "layer_types": _MIXED * 2,
        "rope_parameters": dict.fromkeys(_MIXED, _PLAIN_ROPE),
    },
    "CpmAntConfig": {"segment_types": 8, "prompt_types": 8, "prompt_length": 4},
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 64,
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "Dots1Config": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "max_window_layers": 4,
    },
    "Dots3NoteAudioConfig": {"adapter_input_size": 32, "adapter_out_dim": WIDTH},
    "Dots3NoteVisionConfig": {"adapter_in_dim": 32, "adapter_out_dim": WIDTH},
    "GPTNeoConfig": {
        "attention_types": [[["global", "local"], 2]],
        "num_layers": 4,
        "window_size": WINDOW,
    },
    "Gemma3nTextConfig": {
        **_GEMMA,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        "altup_num_inputs": 3,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "Gemma4TextConfig": {
        **_GEMMA,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "Gemma4UnifiedTextConfig": _GEMMA,
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"] * 2},
    "HunYuanDenseV1Config": {"head_dim": 16},
    "HunYuanMoEV1Config": {"head_dim": 16},
    "JambaConfig": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "KimiLinearConfig": {"linear_head_dim": 16, "linear_num_heads": 4, "num_local_experts": 4},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"] * 2},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "Llama4TextConfig": {
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "attention_chunk_size": WINDOW,
        "interleave_moe_layer_step": 2,
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 0, 1, 0],
    },
    "LongcatFlashConfig": {
        "head_dim": 8,
        "num_key_value_heads": 4,
        "num_layers": 2,
        "expert_ffn_hidden_size": 32,
    },
    "Mamba2Config": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 8},
    "MinistralConfig": {"head_dim": 16, "layer_types": _MIXED * 2},
    "MllamaTextConfig": {"cross_attention_layers": [1], "num_hidden_layers": 4},
    "MusicgenDecoderConfig": {"num_codebooks": 1},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
    "NemotronConfig": {"num_key_value_heads": 2},
    "Phi4MultimodalAudioConfig": {
        "nemo_conv_channels": 16,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_blocks": 1,
        "num_attention_heads": 2,
    },
    "PhimoeConfig": {"rope_parameters": None},
    "Qwen3NextConfig": {"layer_types": _LINEAR},
    "Qwen3_5MoeTextConfig": {"layer_types": _LINEAR},
    "Qwen3_5TextConfig": {"layer_types": _LINEAR},
    "Qwen4ExpTextConfig": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    "ReformerConfig": {
        **_DECODER,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_embds": False,
        "hash_seed": 1,
        "num_hidden_layers": 4,
        "feed_forward_size": 96,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "RoCBertConfig": {
        **_DECODER,
        "shape_embed_dim": 16,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": VOCABULARY,
    },
    "WhisperConfig": {"encoder_layers": 4, "decoder_layers": 4},
    "XLMConfig": {**_DECODER, "emb_dim": 64, "n_layers": 4, "n_heads": 4, "causal": True},
    "XLNetConfig": {
        "n_layer": 4,
        "d_model": 64,
        "n_head": 4,
        "d_inner": 96,
        "untie_r": True,
        "attn_type": "uni",
    },
    "XmodConfig": {**_DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "Zamba2Config": {
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_expand": 2,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_hidden_layers": 4,
    },
    "ZayaConfig": {"num_experts_per_tok": 1, "router_hidden_size": 32},
}
"""Settings of single config classes, over the table."""

_NTK = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8,
    "long_factor": [8.0, 6.0, 4.0, 3.0, 2.0, 2.0, 1.5, 1.0],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama +ntk": {"rope_parameters": _NTK, "max_position_embeddings": 64},
    "qwen3 +ntk": {"rope_parameters": _NTK, "max_position_embeddings": 64},
    "llama +longrope": {"rope_parameters": _LONG},
    "phi3 +longrope": {"rope_parameters": _LONG, "original_max_position_embeddings": 64},
    "bert +encoder": {"is_decoder": False},
    "roberta +encoder": {"is_decoder": False},
    "gpt2 +short": {"n_positions": 96},
}
"""The same kinds with settings that checkpoints have: `KIND +NAME`."""
