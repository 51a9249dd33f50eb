"""Checkpoint folders of architectures with a chain of heads: small random ones, as Step-3.5 and MiMo-V2 ship.

What shows that names and shapes are right is that llama.cpp's converter takes them (tools/record_converted.py).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.hf_folder import write_checkpoint
from tests.moe_folder import N_VOCAB, tokenizer
from tests.random_weights import normal

PRE = "qwen2"  # the name that llama.cpp has for the tokenizer's pattern
N_LAYER, N_HEADS, N_EXPERT = 4, 3, 6
_SLIDING = (0, 1, 1, 0, 1, 0, 1)
_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": N_LAYER,
    "num_attention_heads": 4, "head_dim": 16, "max_position_embeddings": 512, "moe_intermediate_size": 32,
    "sliding_window": 8, "tie_word_embeddings": False, "eos_token_id": 262,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "step35": {
        **_COMMON, "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "num_attention_groups": 2,
        "attention_other_setting": {"attention_type": "sliding_attention", "num_attention_heads": 6,
                                    "num_attention_groups": 3, "head_dim": 16},
        "moe_num_experts": N_EXPERT, "moe_top_k": 2, "share_expert_dim": 48, "moe_layers_enum": "1,2,3",
        "moe_router_scaling_factor": 3.0, "norm_expert_weight": True, "moe_every_n_layer": 1,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in _SLIDING],
        "partial_rotary_factors": [1.0 if s else 0.5 for s in _SLIDING],
        "rope_theta": [1e4 if s else 5e6 for s in _SLIDING],
        "num_nextn_predict_layers": N_HEADS, "rms_norm_eps": 1e-5,
        "swiglu_limits": [0.0, 0.0, 7.0, 0.0], "swiglu_limits_shared": [0.0, 16.0, 0.0, 5.0],
        "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64,
                         "low_freq_factor": 1.0, "high_freq_factor": 32.0},
    },
    "mimo2": {
        **_COMMON, "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash",
        "num_key_value_heads": 1, "swa_num_key_value_heads": 2, "swa_num_attention_heads": 4, "swa_head_dim": 16,
        "v_head_dim": 8, "swa_v_head_dim": 8, "hybrid_layer_pattern": [0, 1, 1, 0], "n_routed_experts": N_EXPERT,
        "num_experts_per_tok": 2, "partial_rotary_factor": 0.375, "rope_theta": 5e6, "swa_rope_theta": 1e4,
        "layernorm_epsilon": 1e-5, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "moe_layer_freq": [0, 1, 1, 0], "attention_value_scale": 0.707,
    },
}  # fmt: skip


def shapes(arch: str, config: dict[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape. config: of mimo2, in other widths than CONFIGS has"""
    return _step35() if arch == "step35" else _mimo2(config or CONFIGS[arch])


def _step35() -> dict[str, tuple[int, ...]]:
    n = 64
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, n)}
    for il, sliding in enumerate(_SLIDING):
        p, heads, groups = f"model.layers.{il}.", (6 if sliding else 4), (3 if sliding else 2)
        out |= {f"{p}input_layernorm.weight": (n,), f"{p}post_attention_layernorm.weight": (n,)}
        out |= {f"{p}self_attn.q_proj.weight": (16 * heads, n), f"{p}self_attn.k_proj.weight": (16 * groups, n)}
        out |= {f"{p}self_attn.v_proj.weight": (16 * groups, n), f"{p}self_attn.o_proj.weight": (n, 16 * heads)}
        out |= {f"{p}self_attn.{x}_norm.weight": (16,) for x in "qk"} | {f"{p}self_attn.g_proj.weight": (heads, n)}
        if il in (1, 2, 3):
            out |= {f"{p}moe.gate.weight": (N_EXPERT, n), f"{p}moe.router_bias": (N_EXPERT,)}
            out |= {f"{p}moe.{x}_proj.weight": (N_EXPERT, 32, n) for x in ("gate", "up")}
            out |= {f"{p}moe.down_proj.weight": (N_EXPERT, n, 32)}
            out |= {f"{p}share_expert.{x}_proj.weight": (48, n) for x in ("gate", "up")}
            out |= {f"{p}share_expert.down_proj.weight": (n, 48)}
        else:
            out |= {f"{p}mlp.{x}_proj.weight": (96, n) for x in ("gate", "up")}
            out |= {f"{p}mlp.down_proj.weight": (n, 96)}
        if il >= N_LAYER:
            out |= {f"{p}enorm.weight": (n,), f"{p}hnorm.weight": (n,), f"{p}eh_proj.weight": (n, 2 * n)}
            out |= {f"{p}transformer.shared_head.norm.weight": (n,)}
            out |= {f"{p}transformer.shared_head.output.weight": (N_VOCAB, n)}
    return out | {"model.norm.weight": (n,), "lm_head.weight": (N_VOCAB, n)}


def _mimo2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    n, n_key, n_value = config["hidden_size"], config["head_dim"], config["v_head_dim"]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, n)}
    for il in range(N_LAYER + N_HEADS):
        is_head = il >= N_LAYER
        p = f"model.mtp.layers.{il - N_LAYER}." if is_head else f"model.layers.{il}."
        sliding = is_head or il in (1, 2)
        groups = config["swa_num_key_value_heads" if sliding else "num_key_value_heads"]
        out |= {f"{p}input_layernorm.weight": (n,)}
        out |= {
            f"{p}self_attn.qkv_proj.weight": (config["num_attention_heads"] * n_key + groups * (n_key + n_value), n)
        }
        out |= {f"{p}self_attn.o_proj.weight": (n, config["num_attention_heads"] * n_value)}
        if sliding:
            out |= {f"{p}self_attn.attention_sink_bias": (config["num_attention_heads"],)}
        out |= {f"{p}post_attention_layernorm.weight": (n,)}
        if il in (1, 2):
            out |= {f"{p}mlp.gate.weight": (N_EXPERT, n), f"{p}mlp.gate.e_score_correction_bias": (N_EXPERT,)}
            for e in range(N_EXPERT):
                out |= {f"{p}mlp.experts.{e}.{x}_proj.weight": (32, n) for x in ("gate", "up")}
                out |= {f"{p}mlp.experts.{e}.down_proj.weight": (n, 32)}
        else:
            out |= {f"{p}mlp.{x}_proj.weight": (96, n) for x in ("gate", "up")}
            out |= {f"{p}mlp.down_proj.weight": (n, 96)}
        if is_head:
            out |= {f"{p}enorm.weight": (n,), f"{p}hnorm.weight": (n,), f"{p}eh_proj.weight": (n, 2 * n)}
            out |= {f"{p}final_layernorm.weight": (n,)}
    return out | {"model.norm.weight": (n,), "lm_head.weight": (N_VOCAB, n)}


def state(arch: str, seed: int = 1, *, config: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """All tensors by checkpoint name. config: as `shapes`"""
    return {
        name: (normal(seed, name, math.prod(shape)).reshape(shape) * 0.2).astype(np.float32)
        for name, shape in shapes(arch, config).items()
    }


def folder(path: Path, arch: str, *, dtype: str = "BF16", **options: Any) -> Path:
    """The folder of a small model. options: as write_checkpoint"""
    config = CONFIGS[arch]
    return write_checkpoint(path, state(arch), config, tokenizer("hy_v3"), dtype=dtype, **options)
