"""The tokenizer of a checkpoint as GGUF keys where it is a BPE over characters, with byte tokens: Gemma's.

Owns token types, which here do not come from tokenizer.json's `special` but from what tokenizer_config.json names, as
transformers has it. Facts: llama.cpp conversion/gemma.py (Gemma4Model.set_vocab), gguf-py vocab.py (LlamaHfVocab);
transformers tokenization_utils_base.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.heads.convert.general import recorded
from mtpref.heads.convert.keys import Keys
from mtpref.heads.convert.pre import PROBE as ALL
from mtpref.heads.hf import Checkpoint

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
SCORE = -1000.0  # of every token; nothing reads it
# Tags of HTML are tokens that are added as they stand, and in a GGUF ones that merges make or do not make.
PROBE = ALL.replace("</s> ", "")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What transformers takes them for where tokenizer_config.json is silent.
_ROLES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
# Control tokens that a run must show, so that a reply can be taken apart.
_SHOWN = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')


def keys_of(
    checkpoint: Checkpoint, tokenizer: Tokenizer, found: dict[str, Any], n_vocab: int | None, model: str
) -> Keys:
    """The tokenizer.* keys.

    found    tokenizer.json                   n_vocab   rows of the embedding
    model    tokenizer.ggml.model
    Errors   MtprefError: no byte tokens to fall back to; another count of tokens than rows; ids without a token
    """
    label = f"{checkpoint.label}: tokenizer.json"
    decoder = found.get("decoder")
    steps = decoder.get("type") if isinstance(decoder, dict) else None
    if not found["model"].get("byte_fallback") or steps != "Sequence":
        raise MtprefError(
            f"{label}: a BPE without byte_fallback and a sequence of decoders, expected Gemma's: characters, and byte "
            "tokens for those that are no tokens"
        )
    texts, types = _tokens(tokenizer, _special(checkpoint), n_vocab, label)
    keys: Keys = [
        ("tokenizer.ggml.model", model, "str"),
        ("tokenizer.ggml.tokens", texts, "arr:str"),
        ("tokenizer.ggml.scores", [SCORE] * len(texts), "arr:f32"),
        ("tokenizer.ggml.token_type", types, "arr:i32"),
    ]

    def fill(writer: Any) -> None:
        import gguf

        gguf.SpecialVocab(checkpoint.folder, load_merges=True).add_to_gguf(writer, quiet=True)

    more = {key: (value, kind) for key, value, kind in recorded(fill, "", f"{checkpoint.label}: tokenizer files")}
    more.pop("general.architecture", None)
    # A key that is there keeps its place.
    more |= {"tokenizer.ggml.add_space_prefix": (False, "bool"), "tokenizer.ggml.add_bos_token": (True, "bool")}
    return [*keys, *((key, value, kind) for key, (value, kind) in more.items())]


def _tokens(tokenizer: Tokenizer, special: set[str], n_vocab: int | None, label: str) -> tuple[list[str], list[int]]:
    """Texts and types by id: those of the model first, then those that are added to it."""
    by_id = {id: text for text, id in tokenizer.get_vocab(with_added_tokens=True).items()}
    n_model = tokenizer.get_vocab_size(with_added_tokens=False)
    n = len(by_id)
    if sorted(by_id) != list(range(n)) or (n_vocab is not None and n_vocab != n):
        raise MtprefError(
            f"{label}: {n} tokens with ids up to {max(by_id, default=-1)}, expected one for each of the rows of the "
            f"embeddings (config.json's vocab_size {n_vocab}); resize the embeddings to {n} rows before saving"
        )
    texts = [by_id[id] for id in range(n)]
    return texts, [_type(text, text in special, is_added=id >= n_model) for id, text in enumerate(texts)]


def _type(text: str, is_special: bool, *, is_added: bool) -> int:
    if text in _SHOWN:
        return USER_DEFINED
    if not is_added and _BYTE.fullmatch(text):
        return BYTE
    if is_special:
        return CONTROL
    return USER_DEFINED if is_added else NORMAL


def _special(checkpoint: Checkpoint) -> set[str]:
    """The texts of the special tokens: by role, named for the model, and extra ones."""
    config = {**_ROLES, **(checkpoint.json("tokenizer_config.json") or {})}
    named = [value for key, value in config.items() if key.endswith("_token")]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    own = config.get("model_specific_special_tokens") or {}
    named += [*_items(extra), *_items(own)]
    return {text for value in named for text in _texts(value, checkpoint)}


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []


def _texts(value: Any, checkpoint: Checkpoint) -> Iterator[str]:
    """The text of a token, as a string or as an object with its content; nothing for flags such as add_bos_token."""
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str):
        yield text
    elif text is not None and not isinstance(text, bool):
        raise MtprefError(
            f"{checkpoint.label}: tokenizer_config.json names the special token {printable(repr(text))}, expected text"
        )
