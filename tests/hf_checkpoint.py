"""A tiny Hugging Face checkpoint from a GGUF model, and llama.cpp's converter on it.

The way back from GGUF's conventions is oracle_hf.py's, which needs torch; nothing here is the package's own transform.
The tokenizer is a byte-level BPE of 256 bytes, which no pre-tokenizer hash knows: the converter is told its name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.gguf import open_gguf
from mtpref.quants import dequantize
from mtpref.tensor_files import write_safetensors

NEXTN = {
    "eh_proj.weight": "fc.weight",
    "enorm.weight": "pre_fc_norm_embedding.weight",
    "hnorm.weight": "pre_fc_norm_hidden.weight",
    "shared_head_norm.weight": "norm.weight",
}
CONVERT = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen35"
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_checkpoint(model: Path, folder: Path, *, own_output: bool = False) -> Path:
    """config.json, model.safetensors, tokenizer.json of a qwen35 model with a head; weights as float32."""
    from tests.oracle_hf import LAYER_NAMES, undo_layer_tensor

    folder.mkdir(parents=True, exist_ok=True)
    with open_gguf(model) as f:
        hparams = {
            k.split(".", 1)[1]: list(v) if hasattr(v := f.kv[k], "to_numpy") else v for k in f.kv if k[:7] == "qwen35."
        }
        weights = {t.name: dequantize(t.type_name, f.data(t), t.shape) for t in f.tensors.values()}
    n = hparams["block_count"] - hparams["nextn_predict_layers"]
    interval = hparams["full_attention_interval"]
    out = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"] - 1,
    }
    if own_output:
        out["lm_head.weight"] = weights["token_embd.weight"][::-1].copy()
    for name, x in weights.items():
        if not name.startswith("blk."):
            continue
        il, rest = int(name.split(".")[1]), name.split(".", 2)[2]
        if rest.startswith("nextn."):
            key = NEXTN[rest.removeprefix("nextn.")]
            out[f"mtp.{key}"] = x if key == "fc.weight" else x - 1
            continue
        recurrent = il < n and (il + 1) % interval != 0
        prefix = "mtp.layers.0." if il == n else f"model.layers.{il}."
        out[prefix + LAYER_NAMES[rest]] = undo_layer_tensor(rest, x, hparams, recurrent)
    write_safetensors(folder / "model.safetensors", {k: np.ascontiguousarray(out[k], np.float32) for k in sorted(out)})
    (folder / "config.json").write_text(
        json.dumps(_config(hparams, n, interval, len(weights["token_embd.weight"]), own_output))
    )
    _write_tokenizer(folder, len(weights["token_embd.weight"]))
    return folder


def _config(h: dict, n: int, interval: int, n_vocab: int, own_output: bool) -> dict:
    head_dim = h["attention.key_length"]
    return {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": n_vocab,
        "hidden_size": h["embedding_length"], "intermediate_size": h["feed_forward_length"], "num_hidden_layers": n,
        "mtp_num_hidden_layers": 1, "num_attention_heads": h["attention.head_count"],
        "num_key_value_heads": h["attention.head_count_kv"], "head_dim": head_dim,
        "rms_norm_eps": h["attention.layer_norm_rms_epsilon"], "tie_word_embeddings": not own_output,
        "max_position_embeddings": h["context_length"], "linear_conv_kernel_dim": h["ssm.conv_kernel"],
        "linear_key_head_dim": h["ssm.state_size"], "linear_value_head_dim": h["ssm.state_size"],
        "linear_num_key_heads": h["ssm.group_count"], "linear_num_value_heads": h["ssm.time_step_rank"],
        "full_attention_interval": interval,
        "layer_types": ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(n)],
        "rope_parameters": {"rope_type": "default", "rope_theta": h["rope.freq_base"],
                            "partial_rotary_factor": h["rope.dimension_count"] / head_dim,
                            "mrope_section": list(h["rope.dimension_sections"])[:3], "mrope_interleaved": True},
    }  # fmt: skip


def _write_tokenizer(folder: Path, n_vocab: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in alphabet[:50] for b in alphabet[:50]][: n_vocab - 256]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    Tokenizer(models.BPE(vocab, merges)).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def convert(folder: Path, out: Path, *flags: str) -> Path:
    """llama.cpp's convert_hf_to_gguf.py; skips without MTPREF_LLAMA_CPP or torch."""
    pytest.importorskip("torch", reason="llama.cpp's converter needs torch")
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree (convert_hf_to_gguf.py)")
    command = [
        sys.executable,
        "-c",
        CONVERT,
        root,
        f"{root}/convert_hf_to_gguf.py",
        str(folder),
        "--outfile",
        str(out),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out
