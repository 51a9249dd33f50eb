"""Checkpoint folders of architectures with experts: small random ones, in the forms that Hugging Face has.

Names and shapes come from the data sheets; what shows that they are right is that llama.cpp's converter takes them.
Values come from a generator of 64-bit integer mixing: the same bits everywhere.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from mtpref.architectures import ARCHITECTURES, gguf_to_hf_name, numbers, present_tensors
from mtpref.heads.hf import text_config
from mtpref.spec.config import Metadata
from tests.hf_folder import QWEN35_PATTERN, write_checkpoint
from tests.random_weights import normal

GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = GLM4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
HUNYUAN_PATTERN = QWEN2_PATTERN
# As llama.cpp cuts: the published tokenizer tells upper from lower case, llama.cpp's twin of it does not.
COHERE_PATTERNS = (
    r"\P{N}*+\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}++\z",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# pattern or patterns, ignore_merges, the name that llama.cpp has for it
TOKENIZERS: dict[str, tuple[str | tuple[str, ...], bool, str]] = {
    "qwen35moe": (QWEN35_PATTERN, False, "qwen35"),
    "qwen3next": (QWEN2_PATTERN, False, "qwen2"),
    "glm4moe": (GLM4_PATTERN, True, "glm4"),
    "hy_v3": (HUNYUAN_PATTERN, False, "qwen2"),
    "deepseek2": (GLM4_PATTERN, True, "llama-bpe"),
    "deepseek32": (GLM4_PATTERN, True, "llama-bpe"),
    "glm-dsa": (GLM4_PATTERN, True, "glm4"),
    "deepseek4": (GLM4_PATTERN, True, "llama-bpe"),
    "cohere2moe": (COHERE_PATTERNS, False, "cohere2moe"),
    "nemotron_h_moe": (QWEN2_PATTERN, False, "qwen2"),
    "bailingmoe3": (QWEN2_PATTERN, False, "bailingmoe2"),
}
# Their layers are named alike; files of llama.cpp's own converter are recorded of these and of the last two.
ARCHS = tuple(name for name in TOKENIZERS if name not in ("deepseek4", "nemotron_h_moe", "bailingmoe3"))
SPECIAL = ("<|endoftext|>", "<|user|>", "<|observation|>", "[gMASK]")
N_LAYER, N_EXPERT, N_VOCAB = 4, 6, 288

_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 262,
}
_DELTA: dict[str, Any] = {
    "num_experts": N_EXPERT,
    "shared_expert_intermediate_size": 80,  # no multiple of 32
    "rms_norm_eps": 1e-6,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen35moe": {
        **_COMMON, **_DELTA, "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5,
                            "mrope_section": [2, 1, 1]},
    },
    "qwen3next": {
        **_COMMON, **_DELTA, "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
        "intermediate_size": 128, "norm_topk_prob": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5},
    },
    "glm4moe": {
        **_COMMON, "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "intermediate_size": 160,
        "n_routed_experts": N_EXPERT, "n_shared_experts": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "use_qk_norm": True, "attention_bias": True,
        "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    },
    "hy_v3": {
        **_COMMON, "architectures": ["HYV3ForCausalLM"], "model_type": "hy_v3", "intermediate_size": 160,
        "num_experts": N_EXPERT, "num_shared_experts": 2, "first_k_dense_replace": 1, "router_scaling_factor": 1.5,
        "route_norm": True, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-5,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}  # fmt: skip
CONFIGS["deepseek2"] = {
    **{key: x for key, x in _COMMON.items() if key != "head_dim"},
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "intermediate_size": 160,
    "num_key_value_heads": 6, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 24, "n_routed_experts": N_EXPERT, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid",
    "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
}  # fmt: skip
# So many heads that no two cells have a score of 0: of equal scores transformers and mtpref take others.
_INDEXED = {"index_n_heads": 12, "index_head_dim": 64, "index_topk": 16}
CONFIGS["deepseek32"] = CONFIGS["deepseek2"] | _INDEXED | {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
}  # fmt: skip
CONFIGS["glm-dsa"] = {key: x for key, x in CONFIGS["deepseek2"].items() if not key.startswith("rope_")} | {
    **_INDEXED, "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "n_group": 1, "topk_group": 1,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "indexer_types": ["full", "shared", "shared", "full"],
}  # fmt: skip
CONFIGS["deepseek4"] = {
    **{key: x for key, x in _COMMON.items() if key != "tie_word_embeddings"},
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 32, "q_lora_rank": 64, "qk_rope_head_dim": 8, "sliding_window": 8,
    "o_groups": 2, "o_lora_rank": 32, "compress_ratios": [4, 128, 0, 4, 0], "compress_rope_theta": 5000.0,
    "index_n_heads": 8, "index_head_dim": 64, "index_topk": 3, "hc_mult": 4, "hc_sinkhorn_iters": 3, "hc_eps": 1e-6,
    "num_hash_layers": 1, "n_routed_experts": N_EXPERT, "n_shared_experts": 2, "routed_scaling_factor": 1.5,
    "norm_topk_prob": True, "scoring_func": "sqrtsoftplus", "swiglu_limit": 7.0, "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64},
}  # fmt: skip
CONFIGS["cohere2moe"] = {
    **{key: x for key, x in _COMMON.items() if key != "moe_intermediate_size"},
    "architectures": ["Cohere2MoeForCausalLM"], "model_type": "cohere2_moe", "intermediate_size": 32,
    "prefix_dense_intermediate_size": 160, "num_experts": N_EXPERT, "num_shared_experts": 2, "logit_scale": 0.5,
    "shared_expert_combination_strategy": "average", "expert_selection_fn": "sigmoid", "norm_topk_prob": True,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "prefix_dense_sliding_window_pattern": 1,
    "sliding_window": 8, "layer_norm_eps": 1e-5, "rms_norm_eps": None, "num_nextn_predict_layers": 1,
    "rope_theta": 50000.0, "attention_bias": False,
}  # fmt: skip
CONFIGS["nemotron_h_moe"] = {
    **{key: x for key, x in _COMMON.items() if key not in ("num_hidden_layers", "hidden_act")},
    "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hybrid_override_pattern": "M*EE",
    "conv_kernel": 4, "ssm_state_size": 16, "n_groups": 2, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "n_routed_experts": N_EXPERT, "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 80,
    "moe_latent_size": 32, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
    "num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E", "chunk_size": 64,
}  # fmt: skip
CONFIGS["bailingmoe3"] = {
    **_COMMON, "architectures": ["BailingMoeV3ForCausalLM"], "model_type": "bailing_moe_v3", "intermediate_size": 160,
    "num_key_value_heads": 6, "layer_group_size": 4, "first_k_dense_replace": 1, "short_conv_kernel_size": 4,
    "kda_safe_gate": True, "kda_lower_bound": -5.0, "no_kda_lora": True,
    "gated_attention_proj_granularity_type": "head_wise", "q_lora_rank": 64, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24, "num_experts": N_EXPERT, "n_group": 2,
    "topk_group": 1, "score_function": "sigmoid", "num_shared_experts": 1, "moe_shared_expert_intermediate_size": 80,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-6,
    "rope_theta": 6e6, "expert_swiglu_limit_list": [None, 4.0, 4.0, 3.5],
    "share_expert_swiglu_limit_list": [7.0, 5.0, None, 3.0, 2.5],
}  # fmt: skip
# What checkpoints of the architecture do not ship of their heads.
_SHARED_WITH_TRUNK = ("embed_tokens.weight", "shared_head_head.weight")


def shapes(arch: str, config: dict[str, Any], *, fused: bool = False) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape, as a config.json says; experts each by itself, or all in one tensor."""
    found = _templates(arch, config)
    out: dict[str, tuple[int, ...]] = {}
    for name, (n, *shape) in found.items():
        if "{e}" not in name:
            out[name] = (n, *shape)
        elif not fused:
            out |= {name.replace("{e}", str(e)): tuple(shape) for e in range(n)}
        elif "up_proj" not in name:
            is_gate = "gate_proj" in name
            one = name.replace("{e}.gate_proj.weight", "gate_up_proj").replace("{e}.down_proj.weight", "down_proj")
            out[one] = (n, 2 * shape[0] if is_gate else shape[0], shape[1])
    return out


def _templates(arch: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Checkpoint name, with {e} for an expert's number, -> shape of it or of its stack."""
    if arch == "nemotron_h_moe":
        return _nemotron(config)
    sheet, read = ARCHITECTURES[arch], text_config(config, arch)
    n_layer = read.n_layer
    kv = {f"{arch}.{h.key}": h.of_checkpoint(read.found) for h in sheet.hypers if h.type != "bool"}
    kv |= {f"{arch}.{key}": value for key, value, _ in sheet.layers.keys_of(read.found, n_layer, 1)}
    meta = Metadata({key: x for key, x in kv.items() if x is not None} | {"general.architecture": arch}, arch)
    blocks = sheet.layers.of_checkpoint(read.found, n_layer) or sheet.layers.blocks(meta, n_layer, frozenset())
    tensors = list(sheet.tensors)
    assert sheet.head is not None
    for il, block in enumerate((*blocks, sheet.head.block)):
        # A layer that shares has no indexer; that of a head is there, read or not.
        has_none = "sharing" in block.name
        present = present_tensors(block.tensors, il, frozenset())
        tensors += [t.at(il) for t in present if not (has_none and t.group == "indexer")]
    ships_all = arch in ("glm4moe", "deepseek2", "deepseek32")
    tensors += [t.at(n_layer) for t in sheet.head.tensors if ships_all or not t.name.endswith(_SHARED_WITH_TRUNK)]
    out: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        shape = numbers(tensor.shape, read.values)
        assert shape is not None, tensor.name
        shape = (shape[0], 1, shape[1]) if tensor.change.squeeze else shape
        shape = shape[:1] if tensor.change.as_column else shape[1:] if tensor.change.as_taps else shape
        out[gguf_to_hf_name(sheet, tensor.name, n_layer, read.blocks)] = shape
    return out


def _nemotron(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """As Nemotron 3's checkpoints have it: blocks of one part, and an MTP head as two of them."""
    n, n_inner, n_shared = c["hidden_size"], c["mamba_num_heads"] * c["mamba_head_dim"], c["n_groups"] * 16
    heads, kv, low, width = c["num_attention_heads"] * 16, c["num_key_value_heads"] * 16, c["moe_latent_size"], 32
    parts: dict[str, dict[str, tuple[int, ...]]] = {
        "M": {
            "in_proj.weight": (2 * n_inner + 2 * n_shared + 4, n), "conv1d.weight": (n_inner + 2 * n_shared, 1, 4),
            "conv1d.bias": (n_inner + 2 * n_shared,), "A_log": (4,), "D": (4,), "dt_bias": (4,),
            "norm.weight": (n_inner,), "out_proj.weight": (n, n_inner),
        },
        "*": {"q_proj.weight": (heads, n), "k_proj.weight": (kv, n), "v_proj.weight": (kv, n),
              "o_proj.weight": (n, heads)},
        "E": {
            "gate.weight": (N_EXPERT, n), "gate.e_score_correction_bias": (N_EXPERT,),
            "fc1_latent_proj.weight": (low, n), "fc2_latent_proj.weight": (n, low),
            "experts.{e}.up_proj.weight": (N_EXPERT, width, low),
            "experts.{e}.down_proj.weight": (N_EXPERT, low, width),
            "shared_experts.up_proj.weight": (80, n), "shared_experts.down_proj.weight": (n, 80),
        },
    }  # fmt: skip
    out: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (N_VOCAB, n)}
    blocks = [(f"backbone.layers.{il}.", one) for il, one in enumerate(c["hybrid_override_pattern"])]
    for prefix, one in [*blocks, ("mtp.layers.0.", "*"), ("mtp.layers.1.", "E")]:
        out[f"{prefix}norm.weight"] = (n,)
        out |= {f"{prefix}mixer.{name}": shape for name, shape in parts[one].items()}
    out |= {f"mtp.layers.0.{x}.weight": (n,) for x in ("enorm", "hnorm")}
    out |= {"mtp.layers.0.eh_proj.weight": (n, 2 * n), "mtp.layers.1.final_layernorm.weight": (n,)}
    return out | {"backbone.norm_f.weight": (n,), "lm_head.weight": (N_VOCAB, n)}


def state(
    arch: str, seed: int = 1, *, fused: bool = False, config: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """All tensors by checkpoint name; experts each by itself, or all in one tensor. config: default `CONFIGS[arch]`"""
    out: dict[str, np.ndarray] = {}
    for name, shape in _templates(arch, config or CONFIGS[arch]).items():
        x = (normal(seed, name, math.prod(shape)).reshape(shape) * 0.2).astype(np.float32)
        if "{e}" in name:
            out |= {name.replace("{e}", str(e)): matrix for e, matrix in enumerate(x)}
        else:
            out[name] = x
    out = _qwen3next(out) if arch == "qwen3next" else out
    out = kv_b_proj(out) if "kv_lora_rank" in CONFIGS[arch] else out
    out = _deepseek4(out) if arch == "deepseek4" else out
    return _all_in_one(out) if fused else out


def _qwen3next(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """q, k, v and z in one tensor, as Qwen3-Next's own checkpoints have them; any values will do."""
    out = dict(named)
    for name in [n for n in named if n.endswith("in_proj_qkv.weight")]:
        z = out.pop(name.replace("in_proj_qkv", "in_proj_z"))
        out[name.replace("in_proj_qkv", "in_proj_qkvz")] = np.concatenate([out.pop(name), z])
    return out


def kv_b_proj(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys' and values' expansions in one tensor, a head's rows of both after the other's."""
    out = dict(named)
    for name in [n for n in named if n.endswith("k_b_proj.weight")]:
        k, v = out.pop(name), out.pop(name.replace("k_b_proj", "v_b_proj"))
        both = np.concatenate([k.transpose(0, 2, 1), v], axis=1)
        out[name.replace("k_b_proj", "kv_b_proj")] = np.ascontiguousarray(both.reshape(-1, both.shape[-1]))
    return out


def _deepseek4(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published names: no `model.`, e_proj and h_proj apart, a table of int64, a head's own streams (the trunk's),
    and biases of layers that are routed by token."""
    out = {name.removeprefix("model."): x for name, x in named.items()}
    both = out.pop("mtp.0.eh_proj.weight")
    out["mtp.0.e_proj.weight"], out["mtp.0.h_proj.weight"] = np.split(both, 2, axis=1)
    n_used = CONFIGS["deepseek4"]["num_experts_per_tok"]
    for name in [n for n in out if n.endswith("tid2eid")]:
        order = np.argsort(normal(7, name, N_VOCAB * N_EXPERT).reshape(N_VOCAB, N_EXPERT), axis=1, kind="stable")
        out[name] = order[:, :n_used].astype(np.int64)
        out[name.replace("tid2eid", "bias")] = np.zeros(N_EXPERT, np.float32)
    return out | {f"mtp.0.{name}": x for name, x in out.items() if name.startswith("hc_head_")}


def _all_in_one(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = dict(named)
    for first in [n for n in named if n.endswith("mlp.experts.0.gate_proj.weight")]:
        prefix = first.removesuffix("0.gate_proj.weight")
        names = ("gate", "up", "down")
        parts = {part: [out.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(N_EXPERT)] for part in names}
        both = [np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        out[f"{prefix}gate_up_proj"], out[f"{prefix}down_proj"] = np.stack(both), np.stack(parts["down"])
    return out


def tokenizer(arch: str) -> dict[str, Any]:
    """A byte-level BPE of bytes, some merges and the special tokens."""
    pattern, ignore_merges, _ = TOKENIZERS[arch]
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    splits = [{"type": "Split", "pattern": {"Regex": x}, "behavior": "Isolated", "invert": False} for x in patterns]
    alphabet = sorted(ByteLevel.alphabet())
    merges = [["t", "h"], ["th", "e"], ["i", "n"], ["e", "r"], ["\u0120", "the"], ["a", "n"]]
    texts = [*alphabet, *(a + b for a, b in merges)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(texts) + i, "content": text, **plain} for i, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            *splits,
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
            "vocab": {text: i for i, text in enumerate(texts)}, "merges": merges,
        },
    }  # fmt: skip


def folder(path: Path, arch: str, *, fused: bool = False, dtype: str = "BF16", **options: Any) -> Path:
    """The folder of a small model. options: as write_checkpoint"""
    return write_checkpoint(path, state(arch, fused=fused), CONFIGS[arch], tokenizer(arch), dtype=dtype, **options)
