"""Checkpoints whose tokenizer is a tiktoken file (Kimi): ranks as merges, special tokens, and what is refused.

The witnesses: the tiktoken package for ids, and llama.cpp's converter for what is written (its keys are recorded:
tools/record_tiktoken.py).
"""

import base64
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.vocab.load import load_vocab
from mtpref.heads import convert
from mtpref.heads.convert import tiktoken as ours
from mtpref.heads.hf import open_checkpoint
from tests.moe_folder import folder as moe_folder

RECORDED = Path(__file__).resolve().parent / "data" / "converted_tiktoken.json"
TEXT = (
    "the cat sat on the mat, and then the other cat sat there; 12 cats and 345 hats.\n"
    "def the_cat(hat):\n    return hat + the_hat  # the hat of the cat\n"
    "\u4f60\u597d\u4e16\u754c \u4f60\u597d and caf\u00e9, na\u00efve; \u041c\u043e\u0441\u043a\u0432\u0430"
)
SPECIAL = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>")


def make_ranks(n_merges: int = 90) -> dict[bytes, int]:
    """Bytes in another order than their values, then pairs that are frequent in TEXT; the last token is one that no
    two tokens make."""
    ranks = {bytes([(b * 7 + 3) % 256]): b for b in range(256)}
    words = [[bytes([b]) for b in word.encode()] for word in TEXT.replace(" ", "\0 ").split("\0")]
    for _ in range(n_merges):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[a + b] = len(ranks)
        for word in words:
            for i in range(len(word) - 2, -1, -1):
                if word[i : i + 2] == [a, b]:
                    word[i : i + 2] = [a + b]
    return ranks | {b"qzxjk": len(ranks)}


def write_tokenizer(path: Path, ranks: dict[bytes, int], **config: Any) -> None:
    """tiktoken.model and tokenizer_config.json in place of tokenizer.json."""
    (path / "tokenizer.json").unlink(missing_ok=True)
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (path / ours.FILE).write_bytes(b"\n".join(lines) + b"\n")
    added = {str(len(ranks) + 2 * i): {"content": text, "special": True} for i, text in enumerate(SPECIAL)}
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "added_tokens_decoder": added,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "chat_template": "{{ messages }}",
        **config,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def kimi(tmp_path: Path) -> Path:
    """A small checkpoint of the family with such a tokenizer, and a few more rows of embeddings than tokens."""
    return make_folder(tmp_path / "kimi")


def make_folder(path: Path, n_rows: int = 620) -> Path:
    ranks = make_ranks()
    moe_folder(path, "deepseek2", dtype="F32")
    widen(path, n_rows)
    write_tokenizer(path, ranks)
    return path


def widen(path: Path, n_rows: int) -> None:
    """More rows of the embeddings and the output: those that are there, again."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((path / "config.json").read_text())
    config |= {"vocab_size": n_rows, "bos_token_id": 347, "eos_token_id": 349}
    (path / "config.json").write_text(json.dumps(config))
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "embed_tokens" in name or "lm_head" in name or "shared_head.head" in name:
                old = tensors[name]
                tensors[name] = np.ascontiguousarray(old[np.arange(n_rows) % len(old)])
        save_file(tensors, file)


def keys_of(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(str(path))
    return {f.name: f.contents() for f in reader.fields.values() if f.name.startswith("tokenizer.")}


def digest(keys: dict[str, Any]) -> dict[str, str]:
    """The hash of each key's value."""
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for key, value in sorted(keys.items())}


def test_what_is_written_is_what_llama_cpp_writes(kimi: Path, tmp_path: Path) -> None:
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    assert digest(keys_of(tmp_path / "out.gguf")) == json.loads(RECORDED.read_text())["keys"]


def test_ids_are_those_of_the_tiktoken_package(kimi: Path, tmp_path: Path) -> None:
    """Of a text without upper case and combining marks, where llama.cpp's pattern is another (docs/tokenizer.md)."""
    tiktoken = pytest.importorskip("tiktoken", reason="pip install tiktoken: not here")
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    vocab = load_vocab(keys_of(tmp_path / "out.gguf"))
    ranks = make_ranks()
    special = {text: id for id, text in ours.special_tokens(open_checkpoint(kimi), len(ranks)).items()}
    words = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|\p{N}{1,3}"
    pattern = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("made", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    for text in (TEXT.lower(), "the<|im_end|> [EOS]cat<|reserved_token_348|>"):
        ids = encoding.encode(text, allowed_special="all")
        assert vocab.encode(text, add_special=False, parse_special=True) == ids
        assert vocab.decode(ids, special=True) == text.encode()


def test_a_word_that_is_a_token_without_merges_is_taken_apart(kimi: Path, tmp_path: Path) -> None:
    """As llama.cpp does it, which has the merges alone; the tiktoken package looks for whole words first."""
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    vocab, ranks = load_vocab(keys_of(tmp_path / "out.gguf")), make_ranks()
    assert vocab.encode("qzxjk", add_special=False) == [ranks[bytes([b])] for b in b"qzxjk"]


def test_ids_are_those_of_byte_pair_encoding_by_ranks(kimi: Path, tmp_path: Path) -> None:
    """Word by word, the lowest rank first: written once more, without merges."""
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    vocab, ranks = load_vocab(keys_of(tmp_path / "out.gguf")), make_ranks()
    for word in ("the", " there", "sat", " hat", "hathathat", " cats", "\u4f60\u597d", "zzzz"):
        parts = [bytes([b]) for b in word.encode()]
        while True:
            pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
            if not pairs:
                break
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        assert vocab.encode(word, add_special=False) == [ranks[part] for part in parts], word


def test_a_token_that_no_two_tokens_make_has_no_merge() -> None:
    ranks = make_ranks()
    merges = ours.merges_of(ranks)
    assert len(merges) == len(ranks) - 257
    assert len(set(merges)) == len(merges)


def lines(path: Path) -> list[bytes]:
    return (path / ours.FILE).read_bytes().splitlines()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"dGhl", "line 9 is 'dGhl', expected a base64 text and a rank"),
        (b"!!! 8", "line 9 is '!!! 8', expected a base64 text"),
        (b"dGhl x", "line 9 is"),
        (b"Aw== 8", "line 9 has the text of an earlier one"),
        (b" ", "line 9 is"),
        (b"dGhlb3RoZXI= 7", "347 ranks, expected each of 0 to n - 1 once"),
        (b"dGhlb3RoZXI= 8", "byte 59 has no rank"),
        (base64.b64encode(b"x" * 20000) + b" 8", "texts of up to 20000 bytes, expected words"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(kimi: Path, tmp_path: Path, line: bytes, words: str) -> None:
    given = lines(kimi)
    given[8] = line
    (kimi / ours.FILE).write_bytes(b"\n".join(given))
    with pytest.raises(MtprefError) as error:
        convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"tokenizer_class": "OtherTokenizer"}, "tokenizer_class is 'OtherTokenizer', expected TikTokenTokenizer"),
        ({"tokenizer_class": None}, "tokenizer_class is None"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "an entry has another form"),
        ({"added_tokens_decoder": {"347": {"content": 1}}}, "an entry has another form"),
        ({"added_tokens_decoder": {"5": {"content": "a"}}}, "ids 5 to 5, expected 347 to 604"),
        ({"added_tokens_decoder": {"347": {"content": "a"}, "348": {"content": "a"}}}, "a text twice"),
    ],
)
def test_what_the_configuration_must_say(kimi: Path, tmp_path: Path, config: dict[str, Any], words: str) -> None:
    write_tokenizer(kimi, make_ranks(), **config)
    with pytest.raises(MtprefError) as error:
        convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    assert words in str(error.value)


def test_tokens_need_rows_of_the_embeddings(tmp_path: Path) -> None:
    kimi = make_folder(tmp_path / "kimi", n_rows=352)
    with pytest.raises(MtprefError, match=r"tokens up to id 353, expected all below config\.json's vocab_size, 352"):
        convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    widen(kimi, 354)
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings())
    assert len(keys_of(tmp_path / "out.gguf")["tokenizer.ggml.tokens"]) == 354


def test_a_pre_tokenizer_can_be_given(kimi: Path, tmp_path: Path) -> None:
    write_tokenizer(kimi, make_ranks(), tokenizer_class="OtherTokenizer")
    convert.convert(kimi, tmp_path / "out.gguf", convert.Settings(pre="gpt-4o"))
    assert keys_of(tmp_path / "out.gguf")["tokenizer.ggml.pre"] == "gpt-4o"
