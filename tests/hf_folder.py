"""Checkpoint folders for the tests: a GGUF model turned back into what Hugging Face would hold, in every spelling."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.architectures import ARCHITECTURES, state_from_gguf
from mtpref.files.gguf import open_gguf
from mtpref.files.tensor_files.safetensors import write_safetensors
from mtpref.spec.quants import dequantize, quantize

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref" / "data" / "tiny.gguf"


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Round to nearest even, as uint16."""
    return quantize("BF16", x.reshape(-1)).view(np.uint16).reshape(x.shape)


def read_state(path: Path = TINY) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """(tensors under HF names, config.json, tokenizer.json) of a GGUF with a byte-level BPE vocabulary."""
    with open_gguf(path) as file:
        take = {key: file.kv[key] for key in file.kv}
        n_layer = take["qwen35.block_count"] - take["qwen35.nextn_predict_layers"]
        sheet = ARCHITECTURES["qwen35"]
        values = {name: take[f"qwen35.{key}"] for name, key in sheet.symbols.items()} | {"n_layer": n_layer}
        tensors = {name: dequantize(info.type_name, file.data(info), info.shape) for name, info in file.tensors.items()}
        state = state_from_gguf(sheet, tensors, values)
        return state, _config(take, n_layer), _tokenizer(take)


def _config(kv: dict[str, Any], n_layer: int) -> dict[str, Any]:
    flags = kv["qwen35.attention.recurrent_layers"].to_numpy()[:n_layer]
    width = kv["qwen35.attention.key_length"]
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "vocab_size": len(kv["tokenizer.ggml.tokens"]),
        "hidden_size": kv["qwen35.embedding_length"],
        "intermediate_size": kv["qwen35.feed_forward_length"],
        "num_hidden_layers": n_layer,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": kv["qwen35.attention.head_count"],
        "num_key_value_heads": kv["qwen35.attention.head_count_kv"],
        "head_dim": width,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": kv["qwen35.context_length"],
        "linear_conv_kernel_dim": kv["qwen35.ssm.conv_kernel"],
        "linear_key_head_dim": kv["qwen35.ssm.state_size"],
        "linear_value_head_dim": kv["qwen35.ssm.state_size"],
        "linear_num_key_heads": kv["qwen35.ssm.group_count"],
        "linear_num_value_heads": kv["qwen35.ssm.time_step_rank"],
        "layer_types": ["linear_attention" if flag else "full_attention" for flag in flags],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(kv["qwen35.rope.freq_base"]),
            "partial_rotary_factor": kv["qwen35.rope.dimension_count"] / width,
            "mrope_section": [int(n) for n in kv["qwen35.rope.dimension_sections"].to_numpy()[:3]],
        },
        "tie_word_embeddings": True,
        "eos_token_id": int(kv["tokenizer.ggml.eos_token_id"]),
    }


QWEN35_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _tokenizer(kv: dict[str, Any]) -> dict[str, Any]:
    texts = [raw.decode() for raw in kv["tokenizer.ggml.tokens"].to_bytes_list()]
    merges = [raw.decode().split(" ") for raw in kv["tokenizer.ggml.merges"].to_bytes_list()]
    types = kv["tokenizer.ggml.token_type"].to_numpy()
    special = [i for i, kind in enumerate(types) if kind == 3]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": texts[i], **plain, "special": True} for i in special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN35_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": merges,
        },
    }


def write_checkpoint(
    folder: Path,
    state: dict[str, np.ndarray],
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    *,
    dtype: str = "BF16",
    n_files: int = 1,
) -> Path:
    """A checkpoint folder; A_log and dt_bias stay float32 where the matrices are not, as in Qwen's own."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: _stored(name, x, dtype) for name, x in state.items()}
    bf16 = frozenset(name for name, x in arrays.items() if x.dtype == np.uint16)
    names = list(arrays)
    files = {f"model-{i + 1:05d}-of-{n_files:05d}.safetensors": names[i::n_files] for i in range(n_files)}
    if n_files == 1:
        files = {"model.safetensors": names}
    else:
        weight_map = {name: file for file, held in files.items() for name in held}
        _json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    for file, held in files.items():
        write_safetensors(folder / file, {name: arrays[name] for name in held}, bf16 & set(held))
    _json(folder / "config.json", config)
    _json(folder / "tokenizer.json", tokenizer)
    eos = tokenizer["added_tokens"][0]["content"]
    has_bos = config.get("model_type") == "deepseek_v32"  # llama.cpp's converter takes no other
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    _json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": eos,
            "pad_token": eos,
            "add_bos_token": has_bos,
            **({"bos_token": eos} if has_bos else {}),
            "chat_template": template,
        },
    )
    return folder


def _stored(name: str, x: np.ndarray, dtype: str) -> np.ndarray:
    if x.dtype.kind in "iu":
        return np.ascontiguousarray(x)
    if dtype == "F32" or (dtype == "BF16" and name.endswith(("A_log", "dt_bias"))):
        return np.ascontiguousarray(x, np.float32)
    return bf16_bits(x) if dtype == "BF16" else x.astype(np.float16)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
