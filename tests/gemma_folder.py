"""Checkpoint folders of Gemma 4 and its assistants: small random ones in the names and nesting that are published.

Names and shapes are transformers' own (tests/data/hf_gemma.npz, recorded); what shows that the rest is right is that
llama.cpp's converter takes the folders (tools/record_converted.py --gemma).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.hf_folder import write_checkpoint
from tests.hf_gemma_cases import CONFIGS, ROPE, assistant_of, values

SHAPES = np.load(Path(__file__).parent / "data" / "hf_gemma.npz")
N_VOCAB = 336
NAMES = ("31B", "31B-text", "E2B", "26B", "31B-assistant", "E2B-assistant")
# In ids: what tokenizer_config.json names, in roles or as extra; added and special but not named; added and plain.
_NAMED = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|image|>"]
_UNNAMED = ["<|channel>", "<channel|>", "<unused0>"]
_PLAIN = ["[multimodal]", "\n", "\n\n", "\u2581\u2581", "<b>"]
_CHARS = "\u2581abcdehlnorstuwxyz.,!\u00e9\u4e2d"
_MERGES = [["\u2581", "t"], ["h", "e"], ["\u2581t", "he"], ["e", "r"], ["l", "l"], ["ll", "o"],
           ["he", "llo"], ["o", "r"], ["l", "d"], ["\n", "\n"]]  # fmt: skip


def tokenizer(name: str = "") -> dict[str, Any]:
    """A BPE over characters with byte tokens, as Gemma has it. In 31B-text three tokens are added to the model's."""
    merged = list(dict.fromkeys(a + b for a, b in _MERGES))
    texts = [*_NAMED, *_UNNAMED, *_PLAIN, *(f"<0x{b:02X}>" for b in range(256)), *_CHARS, *merged]
    texts = list(dict.fromkeys(texts))
    texts += [f"<unused{i}>" for i in range(1, N_VOCAB - len(texts) + 1)]
    later = ["<|audio|>", "<|tool_call>", "<extra>"] if name == "31B-text" else []
    texts[len(texts) - len(later) :] = later
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {*_NAMED, *_UNNAMED, *later[:1]}
    added = [text for text in texts if text in special or text in _PLAIN or text in later or text.startswith("<unused")]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": texts.index(t), "content": t, **plain, "special": t in special} for t in added],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(texts) if text not in later}, "merges": _MERGES,
        },
    }  # fmt: skip


TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>", "sot_token": "<|turn>", "eot_token": "<turn|>",
    "image_token": "<|image|>", "padding_side": "left",
    "extra_special_tokens": ["<|image|>"],
    "model_specific_special_tokens": {"sot_token": "<|turn>", "eot_token": "<turn|>", "image_token": "<|image|>"},
    "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}  # fmt: skip


def tokenizer_config(name: str) -> dict[str, Any]:
    """As TOKENIZER_CONFIG; that of 31B-text names tokens in the older ways."""
    if name != "31B-text":
        return TOKENIZER_CONFIG
    kept = {key: x for key, x in TOKENIZER_CONFIG.items() if key not in ("extra_special_tokens", "mask_token")}
    kept.pop("model_specific_special_tokens")
    bos = {"content": "<bos>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
           "__type": "AddedToken"}  # fmt: skip
    return {**kept, "bos_token": bos, "add_bos_token": True, "additional_special_tokens": ["<|audio|>", "<|channel>"]}


def config(name: str) -> dict[str, Any]:
    """config.json of a case."""
    base, _, form = name.partition("-")
    is_own = form == "assistant"
    text = {**(assistant_of(CONFIGS[base]) if is_own else CONFIGS[base]), "vocab_size": N_VOCAB,
            "vocab_size_per_layer_input": 0 if is_own else N_VOCAB, "model_type": "gemma4_text", "dtype": "bfloat16",
            "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            "rope_parameters": ROPE}  # fmt: skip
    if is_own:
        return {"architectures": ["Gemma4AssistantForCausalLM"], "model_type": "gemma4_assistant",
                "backbone_hidden_size": CONFIGS[base]["hidden_size"], "text_config": text,
                "use_ordered_embeddings": base == "E2B", "tie_word_embeddings": True}  # fmt: skip
    if form:
        return {"architectures": ["Gemma4ForCausalLM"], **text}
    return {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text,
            "eos_token_id": [1, 6], "tie_word_embeddings": True}  # fmt: skip


def state(name: str) -> dict[str, np.ndarray]:
    """All tensors by published name: a target's beside some of its vision part."""
    base, _, form = name.partition("-")
    is_own = form == "assistant"
    shapes = json.loads(str(SHAPES[f"{base}.shapes"]))["assistant" if is_own else "target"]
    out = {}
    for key, shape in shapes.items():
        rows = [N_VOCAB, *shape[1:]] if "embed_tokens" in key else shape
        published = key if form else key.replace("model.", "model.language_model.", 1)
        out[published] = values(name + key, tuple(rows))
    if form:
        ordered = {"masked_embedding.centroids.weight": values("centroids", (8, 96)),
                   "masked_embedding.token_ordering": np.arange(N_VOCAB)[::-1].astype(np.int64)}  # fmt: skip
        return out | (ordered if name == "E2B-assistant" else {})
    aside = {"model.vision_tower.patch_embedder.input_proj.weight": (8, 12),
             "model.embed_vision.embedding_projection.weight": (64, 8)}  # fmt: skip
    return out | {key: values(key, shape) for key, shape in aside.items()}


def folder(path: Path, name: str, *, dtype: str = "BF16", **options: Any) -> Path:
    """The folder of a small model. options: as write_checkpoint"""
    write_checkpoint(path, state(name), config(name), tokenizer(name), dtype=dtype, **options)
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(name)), encoding="utf-8")
    return path
