"""Records what stock llama.cpp makes of our multilingual text with small vocabularies of our own.

    python tools/record_vocab.py --llama-tokenize PATH/TO/llama-tokenize

Writes tests/data/vocab.json: the GGUF keys of each vocabulary, and for each run and each block of
tests/data/multilingual.txt the token ids with and without parsing of special tokens, BOS and EOS as the keys say.
Deterministic.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
PREFIX = "tokenizer.ggml."
SEPARATOR = "\n%%\n"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5
SPECIAL = {
    "<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<tool_call>": USER,
    "<think>": USER, "</think>": USER, "<|im_start|>user": CONTROL, "<spare>": UNUSED, "[UNK]": UNKNOWN,
}  # fmt: skip


def blocks() -> list[str]:
    """The texts of the corpus."""
    return (DATA / "multilingual.txt").read_bytes().decode("utf-8").removesuffix("\n").split(SEPARATOR)


def trained() -> dict[str, Any]:
    """A BPE vocabulary trained on the corpus, with special tokens behind."""
    tokenizer = Tokenizer(BPE())
    words = Split(Regex(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(blocks() * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    types = [NORMAL] * len(tokens) + list(SPECIAL.values())
    tokens += SPECIAL
    merges = [" ".join(pair) for pair in model["merges"]]
    eos = tokens.index("<|im_end|>")
    return {"tokens": tokens, "token_type": types, "merges": merges, "eos_token_id": eos}


def odd(base: dict[str, Any]) -> dict[str, Any]:
    """The same, damaged where llama.cpp does not mind: tokens cut that merges reach, bytes without token."""
    gone = {"z", "b", "\u00c3", "\u0120t", "in", "on", "st"}
    kept = [i for i, text in enumerate(base["tokens"]) if text not in gone]
    merges = [*base["merges"], *base["merges"][:3], "nospace", " x y", "a  b", "a c"]
    return {
        "tokens": [base["tokens"][i] for i in kept],
        "token_type": [base["token_type"][i] for i in kept],
        "merges": merges,
        "bos_token_id": 10**6,
        "add_bos_token": True,
        "add_eos_token": True,
    }


def hashed() -> dict[str, Any]:
    """A vocabulary of llama.cpp's model `test`, whose tokens count only where they are special."""
    tokens = [f"t{i}" for i in range(97)]
    types = [NORMAL] * len(tokens)
    for id, (text, kind) in enumerate(SPECIAL.items()):
        tokens[id], types[id] = text, kind
    return {"tokens": tokens, "token_type": types, "eos_token_id": 2, "bos_token_id": 0, "add_bos_token": True}


# run -> (vocabulary, pre-tokenizer)
RUNS = {
    "qwen35": ("trained", "qwen35"),
    "qwen2": ("trained", "qwen2"),
    "gpt-2": ("trained", "gpt-2"),
    "default": ("trained", "default"),
    "odd": ("odd", "qwen35"),
    "test": ("test", ""),
}


def vocabularies() -> dict[str, dict[str, Any]]:
    """name -> GGUF keys, less the pre-tokenizer."""
    base = trained()
    out = {"trained": {"model": "gpt2", **base}, "odd": {"model": "gpt2", **odd(base)}}
    out["test"] = {"model": "test", **hashed()}
    return {name: {PREFIX + key: value for key, value in kv.items()} for name, kv in out.items()}


def write(path: Path, kv: dict[str, Any]) -> None:
    """A GGUF that holds a tokenizer and the hyper-parameters without which llama.cpp reads none."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"qwen2.{key}", 32)
    for key in ("attention.head_count", "attention.head_count_kv"):
        writer.add_uint32(f"qwen2.{key}", 1)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    for key, value in kv.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def record(tool: str, path: Path, text: str, parse_special: bool) -> list[int]:
    """Token ids by llama-tokenize."""
    command = [tool, "-m", str(path), "--stdin", "--ids", "--no-escape", "--log-disable"]
    if not parse_special:
        command.append("--no-parse-special")
    done = subprocess.run(command, input=text.encode("utf-8"), capture_output=True, check=True)
    ids: list[int] = ast.literal_eval(done.stdout.decode("utf-8").strip())
    return ids


def main() -> None:
    """Writes tests/data/vocab.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-tokenize", required=True)
    tool = parser.parse_args().llama_tokenize
    out: dict[str, Any] = {"vocabularies": vocabularies(), "runs": {}}
    for run, (name, pre) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.gguf"
            write(path, out["vocabularies"][name] | ({PREFIX + "pre": pre} if pre else {}))
            out["runs"][run] = {
                "vocabulary": name,
                "pre": pre,
                "parsed": [record(tool, path, text, True) for text in blocks()],
                "plain": [record(tool, path, text, False) for text in blocks()],
            }
    # One list a line, so that a change of one text shows as one line.
    text = json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace("],", "],\n").replace("},", "},\n")
    (DATA / "vocab.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
