"""Targets that are the files of a checkpoint folder: config.json and its like, the tokenizer, the model card.

Owns a small folder and what is made of it: the keys of a GGUF, written.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.edits import Edit
from fuzzing.models import put
from fuzzing.readers import WORDS, json_or_text, written
from fuzzing.targets import Random, Target
from fuzzing.texts import random_text_edit
from mtpref.files import gguf
from mtpref.files.tensor_files import write_safetensors
from mtpref.files.vocab.byte_texts import BYTE_TO_CHAR
from mtpref.files.vocab.patterns import RULES
from mtpref.heads.convert.general import description
from mtpref.heads.convert.keys import hyper_parameters
from mtpref.heads.convert.vocabulary import vocabulary
from mtpref.heads.hf import gguf_tensors, open_checkpoint, text_config

CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 300, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "mtp_num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "max_position_embeddings": 512,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 4,
    "tie_word_embeddings": True, "eos_token_id": 1,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "partial_rotary_factor": 0.25, "factor": 2.0,
                        "mrope_section": [1, 1, 0], "original_max_position_embeddings": 256, "beta_fast": 32.0},
}  # fmt: skip
GENERATION = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "eos_token_id": [1, 2]}
INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": {"model.embed_tokens.weight": "model.safetensors", "lm_head.weight": "model.safetensors"},
}
CARD = b"""---
license: apache-2.0
language:
- en
- no
tags: [text-generation, code]
base_model: example/Base-1B
datasets:
- example/set
model_name: A Model 1B
author: someone
---
# A model
"""
TEMPLATE = {"chat_template": "{{ messages[0].content }}"}


def _tokenizer() -> dict[str, Any]:
    """A byte-level BPE of 256 bytes, two merges and two added tokens."""
    texts = [*BYTE_TO_CHAR, "ab", "abc"]
    regex = {"Regex": RULES["qwen35"].patterns[0]}
    pattern = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [
        {"id": len(texts) + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": i == 0}
        for i, text in enumerate(("<|endoftext|>", "<tool>"))
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, level]}, "post_processor": level,
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "ignore_merges": False,
                  "vocab": {text: i for i, text in enumerate(texts)}, "merges": [["a", "b"], ["ab", "c"]]},
    }  # fmt: skip


def _files() -> dict[str, bytes]:
    """A checkpoint folder."""
    shapes = {"model.embed_tokens.weight": (300, 64), "lm_head.weight": (300, 64)}
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    texts = {"config.json": CONFIG, "generation_config.json": GENERATION, "model.safetensors.index.json": INDEX,
             "tokenizer.json": _tokenizer(),
             "tokenizer_config.json": {"eos_token": "<|endoftext|>", "add_bos_token": False, **TEMPLATE}}  # fmt: skip
    files = {name: json.dumps(value).encode() for name, value in texts.items()}
    return {**files, "model.safetensors": written(lambda path: write_safetensors(path, tensors)), "README.md": CARD}


def _folder_target(
    name: str, edited: tuple[str, ...], share: int, with_vocabulary: bool, edit: Callable[[Random, bytes], Edit]
) -> Target:
    """A checkpoint whose files of these names are damaged, as far as its keys are made of them and written."""
    files = _files()

    def run(case: bytes, folder: Path, i: int) -> None:
        at = folder / "hf"
        at.mkdir(exist_ok=True)
        for other, raw in files.items():
            put(at, other, case if other == edited[i] else raw)
        with open_checkpoint(at) as checkpoint:
            config = text_config(checkpoint.config, checkpoint.label)
            found = gguf_tensors(checkpoint, config)
            keys = [*description(at, config.sheet.name, [("x", (1000,))]), *hyper_parameters(config, found.n_mtp, 1)]
            if with_vocabulary:
                keys += vocabulary(checkpoint, config.vocab_size, config.sheet)
        gguf.write_gguf(folder / "out.gguf", keys, [])

    return Target(name, [files[other] for other in edited], run, share, edit)


CARD_WORDS = (
    *WORDS, b"- ", b": ", b"&a [x, x]", b"*a", b"[[x], [y]]", b"{a: b}", b"---\n", b"!!python/object:x", b"2026-01-01",
    b"\t", b"? ", b"| ", b"base_models", b"url: 7\n", b"tags: [[a]]\n", b'"\\uD800"',
)  # fmt: skip


def _card_edit(rng: Random, raw: bytes) -> Edit:
    return random_text_edit(rng, len(raw), CARD_WORDS)


CONFIGS = ("config.json", "generation_config.json", "model.safetensors.index.json")
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json")
CHECKPOINTS: dict[str, Callable[[], Target]] = {
    "config": lambda: _folder_target("config", CONFIGS, 300, False, json_or_text),
    "tokenizer": lambda: _folder_target("tokenizer", TOKENIZERS, 50, True, json_or_text),
    "card": lambda: _folder_target("card", ("README.md",), 200, False, _card_edit),
}
