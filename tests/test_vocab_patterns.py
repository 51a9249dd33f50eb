"""Pre-tokenizers by what they cut: the cases in which they differ from each other and from the models' own patterns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.files.vocab import known_names, load_vocab
from mtpref.files.vocab.byte_texts import CHAR_TO_BYTE, lenient_text
from mtpref.files.vocab.clean import clean_spaces
from mtpref.files.vocab.patterns import RULES
from mtpref.files.vocab.pretokenizers import build_pre_tokenizer
from tests.samples import some_examples
from tests.vocab_cases import CONTROL, TEXTS, gpt2_kv

CUTTERS = {name: build_pre_tokenizer(RULES[name]) for name in known_names()}


def cut(name: str, text: str) -> list[str]:
    words = [word for word, _ in CUTTERS[name].pre_tokenize_str(text)]
    return [bytes([CHAR_TO_BYTE[char] for char in word]).decode("utf-8") for word in words]


@pytest.mark.parametrize("name", known_names())
def test_words_joined_are_the_text(name: str) -> None:
    for text in TEXTS:
        text = text.encode("utf-8", "replace").decode("utf-8")
        assert "".join(cut(name, text)) == text


CASES: list[tuple[str, str, str]] = [
    # Words are shown with | between them.
    ("llama-bpe", "I'LL don't 1234567", "I|'LL| don|'t| |123|456|7"),
    ("gpt-2", "I'LL don't 1234567", "I|'|LL| don|'t| 1234567"),
    ("deepseek-llm", "a1234 \u4f60\u597dab  ", "a|1234| |\u4f60\u597d|ab|  "),
    ("deepseek-llm", "\u3000\u3001\u4e00\u0e2a", "\u3000|\u3001|\u4e00\u0e2a"),
    ("deepseek-v3", "a1234 \u4f60\u597d\u3042ab #tag", "a|123|4| |\u4f60\u597d\u3042|ab| #|tag"),
    ("deepseek-v3", "x#tag e\u0301\u0301b", "x|#tag| e\u0301\u0301b"),
    ("kimi-k2", "\u4f60\u597d123\u4f60a\u597d's \u4f60", "\u4f60\u597d|123|\u4f60|a|\u597d|'s| |\u4f60"),
    ("kimi-k2", "ABCdef'LL Xy\u3005\u4f60 1234", "ABCdef'LL| Xy\u3005|\u4f60| |123|4"),
    ("kimi-k2", "a\u0301b", "a|\u0301b"),
    ("gpt-4o", "getHTTPResponse's X'S 1234", "get|HTTPResponse's| X'S| |123|4"),
    ("gpt-4o", "\u00c9COLE \u01c5abc a/\n\n", "\u00c9|COLE| \u01c5abc| a|/\n\n"),
    # Only ASCII has two cases in llama.cpp: the model's own pattern cuts before the second word's capital.
    ("gpt-4o", "\u0436\u0416\u0436 a\u00c9b", "\u0436\u0416\u0436| a\u00c9b"),
    ("tekken", "getHTTPResponse's 12", "get|HTTPResponse|'s| |1|2"),
    ("afmoe", "ab  1234567", "ab| | |1|234|567"),
    ("tiny_aya", "ab  1234567", "ab| | |1|234|567"),
    ("superbpe", "ab 1234567 cd", "ab |1|234|567| cd"),
    ("qwen35", "e\u0301\u0301b", "e\u0301\u0301b"),
    ("qwen2", "e\u0301\u0301b", "e|\u0301\u0301|b"),
    ("jais-2", "a" + " " * 7 + "b", "a|    |  | b"),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_cuts(name: str, text: str, expected: str) -> None:
    assert "|".join(cut(name, text)) == expected


@pytest.mark.parametrize("name", known_names())
def test_long_runs_take_no_quadratic_time(name: str) -> None:
    # A pattern that scans to the end from every character would need minutes for these.
    for char in ("a", "A", "\u00e9", "\u4f60", " ", "\n", "!", "\u0301"):
        assert "".join(cut(name, char * 30_000 + "b")) == char * 30_000 + "b"


# DEFAULTS THAT GO WITH A NAME


def test_whole_word_goes_before_merges_where_the_name_says_so() -> None:
    kv = {"extra": ["ab", "abc"], "pairs": ("a b",)}
    assert load_vocab(gpt2_kv(**kv, pre="tekken", bos_token_id=0)).encode("abc")[1:] == [257]
    assert load_vocab(gpt2_kv(**kv, pre="gpt-4o")).encode("abc") == [256, ord("c")]


def test_whole_word_that_merges_name_but_no_token_has_is_merged() -> None:
    vocab = load_vocab(gpt2_kv(["bc"], ("b c", "a bcd"), pre="glm4"))
    assert vocab.encode("bcd") == [256, ord("d")]
    assert vocab.encode("abcd bc") == [ord("a"), 256, ord("d"), 32 + 0, 256]


def test_bos_is_added_by_default_where_the_name_says_so() -> None:
    assert load_vocab(gpt2_kv([], pre="llama-bpe")).encode("a") == [11, ord("a")]
    assert load_vocab(gpt2_kv([], pre="llama-bpe", add_bos_token=False)).encode("a") == [ord("a")]
    assert load_vocab(gpt2_kv([], pre="gpt-4o")).encode("a") == [ord("a")]
    assert load_vocab(gpt2_kv([], pre="glm4")).bos_id is None
    assert load_vocab(gpt2_kv([], pre="glm4", bos_token_id=3)).bos_id == 3


def test_kimi_k2_needs_no_merges() -> None:
    vocab = load_vocab(gpt2_kv([], pre="kimi-k2", merges=None))
    assert vocab.encode("ab") == [97, 98]
    assert "merges: missing" in vocab.notes[0]


def test_mask_swallows_the_white_space_before_it() -> None:
    kv = {"extra": ["<mask>"], "types": {"<mask>": CONTROL}}
    text, mask = "a \n<mask> <mask>b", 256
    assert load_vocab(gpt2_kv(**kv, pre="jina-v2-code")).encode(text) == [97, mask, mask, 98]
    assert load_vocab(gpt2_kv(**kv, pre="jina-es")).encode(text) == [97, 32, 10, mask, 32, mask, 98]


def test_detokenizing_cleans_spaces_where_the_name_says_so() -> None:
    ids = list(b" a , b 's ' c")
    assert load_vocab(gpt2_kv([], pre="gpt-2")).detokenize(ids) == b" a, b's'c"
    assert load_vocab(gpt2_kv([], pre="gpt-2", add_space_prefix=True)).detokenize(ids) == b"a, b's'c"
    assert load_vocab(gpt2_kv([], pre="tekken")).detokenize(ids) == b" a , b 's ' c"


def naive_clean_spaces(text: bytes) -> bytes:
    """The three passes, byte by byte."""
    out = b""
    for i, byte in enumerate(text):
        if byte in b"?!.," and i and text[i - 1] == 32:
            out = out[:-1]
        out += bytes([byte])
    text, out, i = out, b"", 0
    while i < len(text):
        if text[i : i + 3] == b" ' ":
            out, i = out + b"'", i + 3
        else:
            out, i = out + text[i : i + 1], i + 1
    text, out = out, b""
    for i, byte in enumerate(text):
        tail = text[i + 1 : i + 4]
        if not (byte == 32 and tail.startswith((b"'s", b"'m", b"'re", b"'ve"))):
            out += bytes([byte])
    return out


@settings(derandomize=True, deadline=None, max_examples=some_examples(500))
@given(st.lists(st.sampled_from([*" '?!.,smtdrevlx", " '", " ' ", " 's", "\u00e9"]), max_size=30).map("".join))
def test_clean_spaces_equals_its_three_passes(text: str) -> None:
    assert clean_spaces(text.encode()) == naive_clean_spaces(text.encode())


def test_bytes_that_are_no_utf8_are_read_as_llama_cpp_does() -> None:
    assert lenient_text(b"a\xc0\x99\xe4\xbd\xff\xf8b") == "a\x19\ufffd\ufffd\ufffd\ufffdb"
    assert lenient_text(b"\xe0\x80\xa9\xf0\x80\x80\xaa\xc3\xa9") == ")*\u00e9"
    assert lenient_text(b"\xed\xa0\x80\xf4\x90\x80\x80") == "\ufffd\ufffd"
