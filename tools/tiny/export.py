"""Write the trained model as GGUF: arch qwen35 with one MTP block, Q8_0 or F32.

Nothing that varies by machine or day goes into the file. It is written beside its final name and renamed.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np

from mtpref.architectures import ARCHITECTURES, state_from_gguf, state_to_gguf

from .model import RMS_EPS, TinyConfig, TinyModel
from .tokenizer import Vocabulary

ARCH = "qwen35"
NAME = "mtpref-tiny"


def convert_values(cfg: TinyConfig) -> dict[str, int]:
    """The sizes that the conversion asks for, by the data sheet's names."""
    heads = {"n_k_head": cfg.ssm_group_count, "n_v_head": cfg.ssm_time_step_rank, "d_state": cfg.ssm_state_size}
    return {"n_layer": cfg.n_layer, **heads}


def gguf_tensors(model: TinyModel) -> dict[str, np.ndarray]:
    """float32 tensors under GGUF names and conventions."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return state_to_gguf(ARCHITECTURES[ARCH], state, convert_values(model.cfg))


def is_matrix(name: str, x: np.ndarray) -> bool:
    """What a converter quantises: 2-D weights, save the convolution kernel."""
    return x.ndim == 2 and not name.endswith("ssm_conv1d.weight")


def add_metadata(writer: gguf.GGUFWriter, cfg: TinyConfig, python_version: str, quantised: bool) -> None:
    """Hyper-parameters; block_count includes the MTP block."""
    n_block = cfg.n_layer + 1
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_license("MIT")
    writer.add_description(
        f"Trained on stories of its own grammar and the standard library of CPython {python_version} (PSF-2.0)"
    )
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantised else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(n_block)
    writer.add_nextn_predict_layers(1)
    writer.add_context_length(cfg.context_length)
    writer.add_embedding_length(cfg.n_embd)
    writer.add_feed_forward_length(cfg.n_ff)
    writer.add_head_count(cfg.n_head)
    writer.add_head_count_kv(cfg.n_head_kv)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_full_attention_interval(cfg.full_attention_interval)
    recurrent = [i < cfg.n_layer and (i + 1) % cfg.full_attention_interval != 0 for i in range(n_block)]
    writer.add_array(f"{ARCH}.attention.recurrent_layers", recurrent)
    writer.add_rope_dimension_count(cfg.n_rot)
    writer.add_rope_dimension_sections(list(cfg.rope_sections))
    writer.add_rope_freq_base(cfg.rope_freq_base)
    writer.add_ssm_conv_kernel(cfg.ssm_conv_kernel)
    writer.add_ssm_state_size(cfg.ssm_state_size)
    writer.add_ssm_group_count(cfg.ssm_group_count)
    writer.add_ssm_time_step_rank(cfg.ssm_time_step_rank)
    writer.add_ssm_inner_size(cfg.ssm_time_step_rank * cfg.ssm_state_size)


def add_tokenizer(writer: gguf.GGUFWriter, vocab: Vocabulary) -> None:
    """Byte-level BPE as llama.cpp reads it; no token is put before a prompt."""
    types = [gguf.TokenType.CONTROL if i == vocab.eos_id else gguf.TokenType.NORMAL for i in range(len(vocab.tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(list(vocab.tokens))
    writer.add_token_types(types)
    writer.add_token_merges(list(vocab.merges))
    writer.add_bos_token_id(vocab.eos_id)
    writer.add_eos_token_id(vocab.eos_id)
    writer.add_eot_token_id(vocab.eos_id)
    writer.add_pad_token_id(vocab.eos_id)
    writer.add_add_bos_token(False)


def write_gguf(path: Path, model: TinyModel, vocab: Vocabulary, python_version: str, quantised: bool) -> None:
    """Write the model; ``quantised`` gives Q8_0 matrices, otherwise all is F32."""
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, ARCH)
    add_metadata(writer, model.cfg, python_version, quantised)
    add_tokenizer(writer, vocab)
    for name, x in gguf_tensors(model).items():
        x = np.ascontiguousarray(x, dtype=np.float32)
        if quantised and is_matrix(name, x):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)


def read_gguf_state(path: Path, cfg: TinyConfig) -> dict[str, np.ndarray]:
    """Dequantised tensors of a file this module wrote, back under HF names and conventions."""
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in gguf.GGUFReader(path).tensors
    }
    return state_from_gguf(ARCHITECTURES[ARCH], tensors, convert_values(cfg))
