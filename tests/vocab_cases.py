"""Vocabularies and texts that several tests use."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mtpref.files.vocab.byte_texts import BYTE_TO_CHAR

DATA = Path(__file__).parent / "data"
BLOCKS = (DATA / "multilingual.txt").read_bytes().decode("utf-8").removesuffix("\n").split("\n%%\n")
ADVERSARIAL = json.loads((DATA / "adversarial.json").read_text(encoding="ascii"))
TEXTS = BLOCKS + ADVERSARIAL
RECORDED = json.loads((DATA / "vocab.json").read_text(encoding="ascii"))
PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def run_kv(run: str) -> dict[str, Any]:
    """The keys of a recorded run."""
    spec = RECORDED["runs"][run]
    return RECORDED["vocabularies"][spec["vocabulary"]] | spec["keys"]


def gpt2_kv(
    extra: list[str], pairs: tuple[str, ...] = (), *, types: dict[str, int] | None = None, **keys: Any
) -> dict[str, Any]:
    """Keys of a gpt2 vocabulary: the 256 bytes (id = byte), then `extra`; `types` by text, normal otherwise."""
    texts = [*BYTE_TO_CHAR, *extra]
    kv: dict[str, Any] = {"model": "gpt2", "pre": "qwen35", "tokens": texts, "merges": list(pairs)}
    kv["token_type"] = [(types or {}).get(text, NORMAL) for text in texts]
    return {PREFIX + key: value for key, value in (kv | keys).items() if value is not None}


def llama_kv(extra: dict[str, float], *, types: dict[str, int] | None = None, **keys: Any) -> dict[str, Any]:
    """Keys of a llama vocabulary: <unk>, <s>, </s>, the 256 bytes (id = byte + 3), then `extra`, text -> score."""
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    texts = [*kinds, *extra]
    kinds |= types or {}
    kv: dict[str, Any] = {"model": "llama", "tokens": texts, "scores": [0.0] * 259 + [*extra.values()]}
    kv["token_type"] = [kinds.get(text, NORMAL) for text in texts]
    return {PREFIX + key: value for key, value in (kv | keys).items() if value is not None}


def digest(value: object) -> str:
    """As tools/record_vocab.py has it: 16 digits of the SHA-256 of bytes, or of the JSON of anything else."""
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()[:16]
