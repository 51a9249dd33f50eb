"""Records what stock llama.cpp makes of our texts with small vocabularies of our own.

    python tools/record_vocab.py --llama-cpp PATH/TO/llama.cpp

The tree must be built (build/bin/libllama.so); tools/vocab_probe.c is compiled against it with cc.
Writes tests/data/vocab.json: the GGUF keys of each vocabulary, and for each run what the vocabulary says about itself
and, for each text (the blocks of tests/data/multilingual.txt, then tests/data/adversarial.json), the token ids with
special tokens parsed and not, BOS and EOS as the keys say, and what llama_detokenize makes of the former. In runs
that are only there to be complete, a digest stands for the ids. Deterministic.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from mtpref.files.vocab.patterns import RULES  # noqa: E402

DATA = ROOT / "tests" / "data"
PREFIX = "tokenizer.ggml."
SEPARATOR = "\n%%\n"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = {
    "<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<tool_call>": USER,
    "<think>": USER, "</think>": USER, "<|im_start|>user": CONTROL, "<spare>": UNUSED, "[UNK]": UNKNOWN,
}  # fmt: skip


# What pre-tokenizers disagree on: a merge of each.
JOINTS = [f"{i}" for i in range(10, 100)]
JOINTS += [
    "tH",
    "eC",
    "lC",
    "Pi",
    "n'",
    "I'",
    "'s",
    "'S",
    "'t",
    "'l",
    "'r",
    "'v",
    "'d",
    *["me"] * 4,
    "/\n",
    "?/",
    "/b",
    "!\n",
]
JOINTS += ["\n\n", " \n", "\n ", "\r\n", "\n\t", "  ", "\t\t", "a1", "c1", "1b", "x.", "._", "(d", ".x", "->", "$x"]


def blocks() -> list[str]:
    """The blocks of the multilingual text."""
    return (DATA / "multilingual.txt").read_bytes().decode("utf-8").removesuffix("\n").split(SEPARATOR)


def texts() -> list[bytes]:
    """All texts; lone surrogates in the file stand for bytes that are no UTF-8."""
    odd: list[str] = json.loads((DATA / "adversarial.json").read_text(encoding="ascii"))
    return [text.encode("utf-8", "surrogateescape") for text in blocks() + odd]


def trained() -> dict[str, Any]:
    """A BPE vocabulary trained on all texts, special tokens last.

    Trained without a pre-tokenizer, so that merges cross every boundary that one may draw.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=1500, max_token_length=5, show_progress=False, initial_alphabet=alphabet)
    lines = [text.decode("utf-8", "replace") for text in texts() if b"[UNK]" not in text]
    tokenizer.train_from_iterator(lines * 2 + JOINTS * 50, trainer)
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


def spm() -> dict[str, Any]:
    """A SentencePiece BPE vocabulary trained on the corpus; special tokens after the bytes, some of them traps."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for block in blocks() for line in block.splitlines()] * 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=1100,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        num_threads=1,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = processor.get_piece_size()
    tokens, scores = [processor.id_to_piece(i) for i in range(n)], [processor.get_score(i) for i in range(n)]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (n - 259)
    # A control token that merges reach, runs of spaces, user-defined and unused tokens, a space in front of one.
    extra = {"<s": NORMAL, "</s": NORMAL, "\u2581\u2581": NORMAL, "\u2581\u2581\u2581\u2581": USER, "<user>": USER}
    extra |= {
        "<|endoftext|>": CONTROL,
        "<spare>": UNUSED,
        " <mask>": USER,
        "<mask>": CONTROL,
        "<|im_end|>": CONTROL,
        "\n\n": USER,
        "th": UNUSED,
    }
    for rank, (text, kind) in enumerate(extra.items()):
        if text in tokens:
            types[tokens.index(text)] = kind
        else:
            tokens, types, scores = [*tokens, text], [*types, kind], [*scores, -0.5 - rank // 3]
    keys = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {"tokens": tokens, "token_type": types, "scores": scores, **keys}


def tied(base: dict[str, Any]) -> dict[str, Any]:
    """The same with integer scores, so that most merges tie, and with plain texts for some bytes."""
    gone = {f"<0x{ord(char):02X}>" for char in "Aaz \n"}
    kept = [i for i, text in enumerate(base["tokens"]) if text not in gone]
    out = {key: [base[key][i] for i in kept] for key in ("tokens", "token_type", "scores")}
    out["scores"] = [int(score) // 100 for score in out["scores"]]
    for text in "Aaz \n":
        if text not in out["tokens"]:
            out["tokens"].append(text)
            out["token_type"].append(NORMAL)
            out["scores"].append(-9)
    return out


def masked(base: dict[str, Any]) -> dict[str, Any]:
    """With a <mask>, before which some pre-tokenizers drop white space."""
    return base | {"tokens": [*base["tokens"], "<mask>"], "token_type": [*base["token_type"], CONTROL]}


FULL = (
    "qwen35", "qwen2", "gpt-2", "default", "llama-bpe", "deepseek-llm", "deepseek-v3", "kimi-k2", "gpt-4o", "tekken",
)  # fmt: skip


def runs() -> dict[str, tuple[str, dict[str, Any], bool]]:
    """run -> (vocabulary, keys beside it, whether ids are written out)."""
    out: dict[str, tuple[str, dict[str, Any], bool]] = {name: ("trained", {"pre": name}, True) for name in FULL}
    out["odd"] = ("odd", {"pre": "qwen35"}, True)
    out["odd, whole words first"] = ("odd", {"pre": "llama-bpe"}, False)
    out["test"] = ("test", {}, True)
    out["llama"] = ("spm", {}, True)
    out["llama, no space in front"] = (
        "spm",
        {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True},
        True,
    )
    ignored = {"remove_extra_whitespaces": True, "precompiled_charsmap": [1, 0, 0, 0, 0, 0, 0, 0]}
    out["llama, keys without effect"] = ("spm", ignored, False)
    out["llama, phi-3"] = ("spm", {"general.name": "Phi-3 mini"}, True)
    out["llama, ties"] = ("tied", {}, True)
    out["jina-v2-de"] = ("masked", {"pre": "jina-v2-de"}, False)
    out["gpt-2, modern-bert"] = ("masked", {"pre": "gpt-2", "general.name": "x-Modern-BERT"}, False)
    seen = {RULES[name] for name in (*FULL, "jina-v2-de")}
    for name, rules in RULES.items():
        if rules not in seen:
            seen.add(rules)
            out[name] = ("trained", {"pre": name}, False)
    return out


def vocabularies() -> dict[str, dict[str, Any]]:
    """name -> GGUF keys that all runs share."""
    base, pieces = trained(), spm()
    out = {"trained": {"model": "gpt2", **base}, "odd": {"model": "gpt2", **odd(base)}}
    out["masked"] = {"model": "gpt2", **masked(base)}
    out["test"] = {"model": "test", **hashed()}
    out["spm"], out["tied"] = {"model": "llama", **pieces}, {"model": "llama", **tied(pieces)}
    return {name: full_keys(kv) for name, kv in out.items()}


def full_keys(kv: dict[str, Any]) -> dict[str, Any]:
    """Keys of the tokenizer with their prefix."""
    return {key if "." in key else PREFIX + key: value for key, value in kv.items()}


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


def compile_probe(tree: Path, folder: Path) -> Path:
    """tools/vocab_probe.c against the libraries of a built tree."""
    probe, libraries = folder / "vocab_probe", tree / "build" / "bin"
    command = ["cc", "-O1", f"-I{tree / 'include'}", f"-I{tree / 'ggml' / 'include'}"]
    command += [str(ROOT / "tools" / "vocab_probe.c"), "-o", str(probe), f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    subprocess.run([*command, "-lllama", "-lggml", "-lggml-base"], check=True)
    return probe


def digest(value: object) -> str:
    """16 hexadecimal digits of the SHA-256 of bytes, or of the JSON of anything else."""
    data = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def ask(probe: Path, path: Path, n_vocab: int, about: list[bytes]) -> dict[str, Any]:
    """What llama.cpp says of the vocabulary in `path` and of these texts."""
    questions = [(parse, text) for parse in (1, 0) for text in about]
    lines = "".join([f"{parse} {text.hex()}\n" for parse, text in questions])
    done = subprocess.run([str(probe), str(path)], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    info, *answers = done.stdout.decode("ascii").splitlines()
    pieces = [bytes.fromhex(word[1:]) for line in answers[:n_vocab] for word in line.split()]
    bos, eos, add_bos, add_eos, *eog = [int(word) for word in info.split()[1:]]
    ids, detokenized = [], []
    for line in answers[n_vocab:]:
        words = line.split()
        ids.append([int(word) for word in words if word[0] != "="])
        detokenized.append(digest(b"\0".join([bytes.fromhex(word[1:]) for word in words if word[0] == "="])))
    half = len(about)
    assert len(ids) == 2 * half
    return {
        "bos": bos,
        "eos": eos,
        "add": [add_bos, add_eos],
        "eog": eog,
        "pieces": digest(b"\0".join(pieces)),
        "parsed": ids[:half],
        # Only where it differs.
        "plain": {str(i): ids[half + i] for i in range(half) if ids[half + i] != ids[i]},
        "detokenized": detokenized[:half],
    }


def main() -> None:
    """Writes tests/data/vocab.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", required=True, type=Path)
    tree = parser.parse_args().llama_cpp
    out: dict[str, Any] = {"vocabularies": vocabularies(), "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        probe, path = compile_probe(tree, Path(folder)), Path(folder) / "vocab.gguf"
        for run, (name, keys, written_out) in runs().items():
            kv = full_keys(keys)
            write(path, out["vocabularies"][name] | kv)
            answer = ask(probe, path, len(out["vocabularies"][name][PREFIX + "tokens"]), texts())
            if not written_out:
                answer["parsed"] = [digest(ids) for ids in answer["parsed"]]
                answer["plain"] = {i: digest(ids) for i, ids in answer["plain"].items()}
            out["runs"][run] = {"vocabulary": name, "keys": kv, **answer}
    # One list a line, so that a change of one text shows as one line.
    text = json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace("],", "],\n").replace("},", "},\n")
    (DATA / "vocab.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
