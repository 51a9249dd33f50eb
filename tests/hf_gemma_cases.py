"""Small Gemma 4 models in transformers' names and shapes, and the GGUF of each by the data sheet's names.

Weights are made of their names, so that tools/record_hf_gemma.py (torch) and tests/test_hf_gemma.py have the same.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES
from tests.micro_moe import tensor_of, write_gguf
from tests.random_weights import normal

IDS = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77, 5, 91, 3, 3, 8, 100, 42, 250, 7]
N_DRAFT = 3
FIRST = 33  # the token that a draft goes on from
N_SHORT = 5  # of a text within the window
SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = {FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}  # fmt: skip
COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "global_head_dim": 32, "max_position_embeddings": 512, "sliding_window": 6, "rms_norm_eps": 1e-6,
    "rope_parameters": ROPE, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0, "attention_k_eq_v": False, "vocab_size_per_layer_input": 256, "enable_moe_block": False,
    "use_double_wide_mlp": False, "tie_word_embeddings": True,
}  # fmt: skip
_ONE = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "31B": {**COMMON, **_ONE, "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL]},
    "E2B": {**COMMON, "layer_types": [FULL, SLIDING, SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True, "hidden_size_per_layer_input": 32},
    "26B": {**COMMON, **_ONE, "layer_types": [SLIDING, FULL] * 2, "enable_moe_block": True, "num_experts": 8,
            "top_k_experts": 3, "moe_intermediate_size": 32},
}  # fmt: skip
CONFIGS = {name: {**config, "num_hidden_layers": len(config["layer_types"])} for name, config in CONFIGS.items()}


def assistant_of(config: dict[str, Any]) -> dict[str, Any]:
    """The text part of the configuration of an assistant of such a target."""
    kept = {k: config[k] for k in ("num_global_key_value_heads",) if k in config}
    return {**COMMON, **kept, "attention_k_eq_v": config["attention_k_eq_v"], "hidden_size": 96,
            "layer_types": [SLIDING, SLIDING, FULL], "num_hidden_layers": 3, "num_kv_shared_layers": 3,
            "vocab_size_per_layer_input": 0}  # fmt: skip


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor: norms and scales near 1, those of queries and keys near a half, matrices small."""
    x = normal(7, name, int(np.prod(shape, dtype=np.int64))).reshape(shape)
    if len(shape) == 1:
        return np.asarray((0.5 + 0.1 * x) if "q_norm" in name or "k_norm" in name else 1 + 0.2 * x, np.float32)
    return np.asarray(0.15 * x, np.float32)


def _keys(name: str, c: dict[str, Any]) -> dict[str, Any]:
    n, windowed = c["num_hidden_layers"], [kind == SLIDING for kind in c["layer_types"]]
    n_full = c.get("num_global_key_value_heads") or c["num_key_value_heads"]
    first = n - c["num_kv_shared_layers"] if c["use_double_wide_mlp"] else n
    keys = {
        "block_count": n, "context_length": 512, "embedding_length": c["hidden_size"],
        "feed_forward_length": [np.int32(c["intermediate_size"] * (1 + (il >= first))) for il in range(n)],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": [np.int32(c["num_key_value_heads"] if w else n_full) for w in windowed],
        "attention.key_length": c["global_head_dim"], "attention.value_length": c["global_head_dim"],
        "attention.key_length_swa": c["head_dim"], "attention.value_length_swa": c["head_dim"],
        "attention.sliding_window": c["sliding_window"], "attention.sliding_window_pattern": windowed,
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"], "rope.dimension_count": c["global_head_dim"],
        "rope.dimension_count_swa": c["head_dim"], "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0,
        "attention.shared_kv_layers": c["num_kv_shared_layers"],
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
    }  # fmt: skip
    if c["enable_moe_block"]:
        keys |= {"expert_count": c["num_experts"], "expert_used_count": c["top_k_experts"],
                 "expert_feed_forward_length": c["moe_intermediate_size"]}  # fmt: skip
    made = {"general.architecture": name, "general.alignment": 32} | {f"{name}.{key}": x for key, x in keys.items()}
    return made | {"tokenizer.ggml.model": "test", "tokenizer.ggml.tokens": [f"{i:x}" for i in range(256)]}


def write(path: Path, arch: str, config: dict[str, Any], shapes: dict[str, list[int]], seed: str) -> Path:
    """The GGUF of transformers' tensors of these names and shapes. seed: what their names begin with"""
    sheet = ARCHITECTURES[arch]
    names = {t.hf: t.name for t in sheet.tensors if t.hf}
    blocks = {t.hf: t.name for block in sheet.layers.all_blocks() for t in block.all_tensors() if t.hf}
    tensors = {}
    for name, shape in shapes.items():
        il, _, rest = name.removeprefix("model.layers.").partition(".")
        own = f"blk.{il}.{blocks[rest]}" if name.startswith("model.layers.") else names[name]
        tensors[own] = values(seed + name, tuple(shape))
    half = config["global_head_dim"] // 2
    n_turned = int(config["global_head_dim"] * 0.25 / 2)
    tensors["rope_freqs.weight"] = np.array([1.0] * n_turned + [1e30] * (half - n_turned), np.float32)
    keys = _keys(arch, config)
    if sheet.target:
        keys |= {f"{arch}.nextn_predict_layers": config["num_hidden_layers"], f"{arch}.embedding_length_out": 64}
    else:
        keys[f"{arch}.final_logit_softcapping"] = config["final_logit_softcapping"]
    write_gguf(path, keys, [tensor_of(name, x, "F32") for name, x in tensors.items()])
    return path
