"""Byte-level BPE with the qwen35 pre-tokenizer, trained on the corpus.

Owns the vocabulary: 1 control token, 256 byte tokens, then merges. llama.cpp reads the same rules as
``tokenizer.ggml.model = gpt2`` and ``tokenizer.ggml.pre = qwen35``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mtpref.base.errors import MtprefError

END_OF_TEXT = "<|endoftext|>"
QWEN35_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """What the GGUF needs: tokens by id, merges by rank, and the id of the end-of-text token."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    eos_id: int


def _with_qwen35_rules(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN35_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: list[str], n_vocab: int) -> Tokenizer:
    """Train BPE to exactly ``n_vocab`` tokens; all 256 bytes are in the alphabet whatever the text holds."""
    tokenizer = _with_qwen35_rules(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a GGUF that was written from one of these, and its end-of-text id."""
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs)
    return _with_qwen35_rules(model), int(fields["tokenizer.ggml.eos_token_id"].contents())


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Tokens and merges of a trained tokenizer in GGUF's form (a merge is two tokens joined by a space)."""
    model = json.loads(tokenizer.to_str())["model"]
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    if [index for _, index in by_id] != list(range(len(by_id))):
        raise MtprefError("tokenizer: token ids are not contiguous, expected 0..n_vocab-1")
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    return Vocabulary(tuple(token for token, _ in by_id), merges, model["vocab"][END_OF_TEXT])
