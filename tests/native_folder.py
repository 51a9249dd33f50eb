"""Checkpoint folders in the number formats that their makers ship: DeepSeek-V4's FP8 and FP4 with E8M0 scales,
DeepSeek-V3's FP8, MiMo-V2.5's FP8 of tensor-parallel ranks with FP4 experts. Random weights; sizes that blocks of 128
do not divide, and blocks whose scales differ.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.files.tensor_files.safetensors import write_safetensors
from tests import chain_folder, moe_folder
from tests.hf_folder import bf16_bits, write_checkpoint
from tests.moe_folder import CONFIGS, tokenizer
from tests.quantised_folder import FP4, Parts, fp8, mxfp4, rounded, spread

Array = np.ndarray
N_RANKS = 4

DEEPSEEK4: dict[str, Any] = {
    **CONFIGS["deepseek4"], "hidden_size": 160, "head_dim": 48, "q_lora_rank": 136, "o_lora_rank": 72,
    "moe_intermediate_size": 96,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128]},
}  # fmt: skip
_DEEPSEEK4_FP8 = re.compile(
    r"\.(attn\.(wq_a|wq_b|wkv|wo_a|wo_b)|attn\.indexer\.wq_b|ffn\.shared_experts\.w\d|e_proj|h_proj)\.weight$"
)
_DEEPSEEK4_F32 = re.compile(r"(hc_.*|attn_sink|\.ape|gate\.bias)$")
DEEPSEEK3: dict[str, Any] = {
    **CONFIGS["deepseek2"], "hidden_size": 160, "kv_lora_rank": 136, "q_lora_rank": 72,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128]},
}  # fmt: skip
# Each rank's share of the rows is 80 in layers without a window, where the scales tell 4 ranks, and 112 in the others,
# where they might be those of the whole matrix too.
MIMO2: dict[str, Any] = {
    **chain_folder.CONFIGS["mimo2"], "hidden_size": 160, "head_dim": 24, "swa_head_dim": 24, "v_head_dim": 8,
    "swa_v_head_dim": 8, "num_attention_heads": 8, "swa_num_attention_heads": 8, "num_key_value_heads": 4,
    "swa_num_key_value_heads": 8, "partial_rotary_factor": 0.334,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                            "weight_block_size": [128, 128], "store_dtype": "mxfp4", "mxfp4_block_size": 32},
}  # fmt: skip
_MIMO2_LEFT = re.compile(r"(embed_tokens|lm_head|norm|mlp\.gate|eh_proj|o_proj)\.")
_DEEPSEEK3_LEFT = re.compile(r"(embed_tokens|lm_head|norm|eh_proj|mlp\.gate|shared_head\.head)\.")


def uneven(x: Array) -> Array:
    """The values with another power of 2 in each block of 128 x 128, so that no scale stands for its neighbour."""
    down, across = (np.arange(n) // 128 for n in x.shape)
    return (x * np.exp2(-((down[:, None] + 2 * across) % 4)).astype(np.float32)).astype(np.float32)


def deepseek4(name: str, x: Array) -> Parts | None:
    """As DeepSeek-V4 is shipped; None: BF16."""
    if ".ffn.experts." in name:
        return mxfp4(x)
    if _DEEPSEEK4_FP8.search(name):
        return fp8(uneven(x), part="scale", dtype="F8_E8M0")
    if _DEEPSEEK4_F32.search(name) or x.dtype.kind == "i":
        return Parts({name.rpartition(".")[2]: x})
    return None


def deepseek3(name: str, x: Array) -> Parts | None:
    """As DeepSeek-V3 is shipped; None: BF16."""
    if name.endswith("e_score_correction_bias"):
        return Parts({"e_score_correction_bias": x})
    return None if x.ndim < 2 or _DEEPSEEK3_LEFT.search(name) else fp8(uneven(x))


def mimo2(name: str, x: Array) -> Parts | None:
    """As MiMo-V2.5 is shipped; None: BF16."""
    if name.endswith("e_score_correction_bias"):
        return Parts({"e_score_correction_bias": x})
    if ".mlp.experts." in name:
        return mxfp4(x, part="weight_scale", dtype="U8")
    if name.endswith("qkv_proj.weight"):
        return _cut(x)
    return None if x.ndim < 2 or _MIMO2_LEFT.search(name) else fp8(uneven(x))


def _rank_rows(n_row: int) -> list[Array]:
    """Of each rank the rows of queries, keys and values that it has, of [Q | K | V]."""
    q = 8 * 24
    n_kv = (n_row - q) // (24 + 8)
    starts = np.cumsum([0, q, n_kv * 24, n_kv * 8])
    parts = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    return [np.concatenate([np.split(part, N_RANKS)[r] for part in parts]) for r in range(N_RANKS)]


def _cut(x: Array) -> Parts:
    shares = [fp8(uneven(x[rows]) / np.float32(r + 1)) for r, rows in enumerate(_rank_rows(len(x)))]
    arrays = {part: np.concatenate([one.arrays[part] for one in shares]) for part in shares[0].arrays}
    return Parts(arrays, shares[0].types)


def value_of(name: str, parts: Parts | None, x: Array) -> Array:
    """What a tensor's codes stand for, float32; of plain ones what BF16 keeps."""
    if parts is None:
        return rounded(x, "BF16")
    if "weight" not in parts.arrays:
        return x
    (scale_name,) = (part for part in parts.arrays if part != "weight")
    codes, scale = parts.arrays["weight"], parts.arrays[scale_name]
    if scale.dtype == np.uint8:
        scale = np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
    if parts.types.get("weight") != "F8_E4M3":
        both = codes.view(np.uint8)
        values = FP4[np.stack([both & 15, both >> 4], axis=-1).reshape(x.shape)]
        return values * spread(scale, x.shape, 1, 32)
    values = FLOAT8["F8_E4M3"][codes]
    if not name.endswith("qkv_proj.weight"):
        return values * spread(scale, x.shape, 128, 128)
    out, all_rows = np.empty_like(x), _rank_rows(len(x))
    n, n_block = len(all_rows[0]), len(scale) // N_RANKS
    for r, rows in enumerate(all_rows):
        own = scale[r * n_block : (r + 1) * n_block]
        out[rows] = values[r * n : (r + 1) * n] * spread(own, (n, x.shape[1]), 128, 128)
    return out


ENCODERS = {"deepseek4": (DEEPSEEK4, deepseek4), "deepseek2": (DEEPSEEK3, deepseek3), "mimo2": (MIMO2, mimo2)}
PRE = {"deepseek4": "llama-bpe", "deepseek2": "llama-bpe", "mimo2": chain_folder.PRE}  # of the tokenizers' patterns


def _given(arch: str) -> tuple[dict[str, Array], dict[str, Any], Any, dict[str, Any]]:
    config, encode = ENCODERS[arch]
    if arch == "mimo2":
        return chain_folder.state(arch, config=config), config, encode, tokenizer("hy_v3")
    return moe_folder.state(arch, config=config), config, encode, tokenizer(arch)


def folder(path: Path, arch: str) -> Path:
    """The folder of one of ENCODERS."""
    return write_folder(path, *_given(arch))


def floats(path: Path, arch: str) -> Path:
    """A folder of the same values in float32."""
    state, config, encode, words = _given(arch)
    values = {name: value_of(name, encode(name, x), x) for name, x in state.items()}
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return write_checkpoint(path, values, plain, words, dtype="F32")


def write_folder(path: Path, state: dict[str, Array], config: dict[str, Any], encode: Any, words: Any) -> Path:
    """Each tensor as its maker's encoder has it."""
    write_checkpoint(path, {"lm_head.weight": np.zeros((1, 1), np.float32)}, config, words)
    arrays: dict[str, Array] = {}
    bf16: set[str] = set()
    small: dict[str, str] = {}
    for name, x in state.items():
        parts = encode(name, x)
        module, _, last = name.rpartition(".")
        parts = Parts({last: bf16_bits(x)}, {last: "BF16"}) if parts is None else parts
        for part, array in parts.arrays.items():
            full, kind = f"{module}.{part}" if module else part, parts.types.get(part, "")
            arrays[full] = array
            bf16 |= {full} if kind == "BF16" else set()
            small |= {full: kind} if kind.startswith("F8") else {}
    write_safetensors(path / "model.safetensors", arrays, frozenset(bf16), small)
    return path
