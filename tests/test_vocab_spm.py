"""The tokenizer model `llama`: its own rules, and `tokenizers` with merges derived from the scores beside it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from mtpref.base.errors import MtprefError
from mtpref.files.vocab import Vocab, load_vocab
from tests.samples import some_examples
from tests.vocab_cases import CONTROL, NORMAL, PREFIX, TEXTS, UNUSED, USER, llama_kv, run_kv

SPM = load_vocab(run_kv("llama"))
FIRST_BYTE = 3


def bytes_of(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode("utf-8")]


# AGAINST TOKENIZERS


def by_tokenizers(run: str) -> Tokenizer:
    """Every way to cut a token in two tokens is a merge; the token with the higher score merges first."""
    kv = run_kv(run)
    tokens = kv[PREFIX + "tokens"]
    ids = {text: id for id, text in enumerate(tokens)}
    score = dict(zip(tokens, kv[PREFIX + "scores"], strict=True))
    merges = [
        (text[:at], text[at:])
        for text in sorted(tokens, key=lambda text: -score[text])
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    return Tokenizer(BPE(ids, merges, byte_fallback=True))


def same_by_tokenizers(oracle: Tokenizer, text: str) -> None:
    front = "\u2581" if text else ""
    ids = oracle.encode(front + text.replace(" ", "\u2581"), add_special_tokens=False).ids
    assert SPM.encode(text, add_special=False, parse_special=False) == ids, ascii(text)


ORACLE = by_tokenizers("llama")
# User-defined tokens are cut out first, which the oracle does not know of.
USER_DEFINED = ("\u2581\u2581\u2581\u2581", "<user>", " <mask>", "\n\n")


@pytest.mark.parametrize("text", [text for text in TEXTS if not any(user in text for user in USER_DEFINED)])
def test_ids_equal_those_of_tokenizers(text: str) -> None:
    same_by_tokenizers(ORACLE, "".join([char if not "\ud800" <= char <= "\udfff" else "\ufffd" for char in text]))


WORDS = [
    "the ",
    "ing",
    " of",
    "\u4e2d",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "  ",
    "\n",
    "\t",
    "<s>",
    "</s>",
    "<0x41>",
    "12",
]
PROSE = st.lists(st.sampled_from(WORDS) | st.characters(exclude_categories=["Cs"]), max_size=20).map("".join)


@settings(derandomize=True, deadline=None, max_examples=some_examples(300))
@given(PROSE.filter(lambda text: not any(user in text for user in USER_DEFINED)))
def test_any_text_gives_the_ids_of_tokenizers(text: str) -> None:
    same_by_tokenizers(ORACLE, text)


# ROUND TRIPS


def invertible(run: str) -> Vocab:
    """Merges reach unused tokens, which have no piece, and user-defined ones, whose piece keeps U+2581: normal here."""
    kv = run_kv(run)
    kinds = zip(kv[PREFIX + "tokens"], kv[PREFIX + "token_type"], strict=True)
    kv[PREFIX + "token_type"] = [NORMAL if kind == UNUSED or "\u2581" in text else kind for text, kind in kinds]
    return load_vocab(kv)


FRONT, BARE = invertible("llama"), invertible("llama, no space in front")


@settings(derandomize=True, deadline=None, max_examples=some_examples(300))
@given(PROSE | st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape")), st.booleans())
def test_any_bytes_come_back(text: str, parse_special: bool) -> None:
    text = text.replace("\u2581", "_")
    raw = text.encode("utf-8", "surrogateescape")
    ids = BARE.encode(text, add_special=False, parse_special=parse_special)
    assert BARE.detokenize(ids, unparse_special=True) == BARE.decode(ids, special=True) == raw
    # With the space in front, text behind a user-defined token comes back with one more.
    if not any(user in text for user in USER_DEFINED):
        ids = FRONT.encode(text, add_special=False, parse_special=False)
        assert FRONT.detokenize(ids, unparse_special=True) == raw


# THE SPACE IN FRONT


def test_space_goes_in_front_at_the_start_and_behind_special_tokens_only() -> None:
    vocab = load_vocab(llama_kv({"\u2581": -1.0, "a": -2.0, "<u>": 0.0}, types={"<u>": USER}))
    space, a, user = 259, 260, 261
    assert vocab.encode("a") == [1, space, a]
    assert vocab.encode(" a", add_special=False) == [space, space, a]
    assert vocab.encode("a<u>a</s>", add_special=False) == [space, a, user, space, a, 2]
    assert vocab.encode("</s> ", add_special=False) == [2, space, space]
    assert vocab.encode("") == [1]
    bare = load_vocab(llama_kv({"\u2581": -1.0, "a": -2.0}, add_space_prefix=False))
    assert bare.encode("a</s>a", add_special=False) == [a, 2, a]


def test_detokenizing_drops_one_space_in_front_unless_bos_went() -> None:
    vocab = load_vocab(llama_kv({"\u2581": -1.0, "a": -2.0, "\u2581\u2581": -3.0}))
    a, two = 260, 261
    assert vocab.detokenize([two, a]) == b" a"
    assert vocab.decode([two, a]) == b"  a"
    assert vocab.detokenize([1, two, a]) == b"  a"
    assert vocab.detokenize([1, two, a], remove_special=True) == b"  a"
    assert vocab.detokenize([1, two, a], unparse_special=True) == b"<s>  a"
    assert vocab.detokenize([two, a, 2], remove_special=True, unparse_special=True) == b" a</s>"
    both = load_vocab(llama_kv({"\u2581": -1.0, "a": -2.0}, add_eos_token=True))
    assert both.detokenize([1, a, 2], remove_special=True, unparse_special=True) == b"a"
    assert vocab.detokenize([]) == b""


# SCORES AND TYPES


def test_highest_score_merges_first_and_the_leftmost_among_equals() -> None:
    texts = {"\u2581": 0.0, "a": 0.0, "b": 0.0, "c": 0.0, "ab": -2.0, "bc": -1.0}
    assert SpmIds(texts)("abc") == ["a", "bc"]
    assert SpmIds(texts | {"ab": -1.0})("abc") == ["ab", "c"]
    assert SpmIds(texts | {"aa": -5.0})("aaa") == ["aa", "a"]


class SpmIds:
    """text -> token texts, in a vocabulary without the space in front."""

    def __init__(self, texts: dict[str, float], **keys: Any) -> None:
        kv = llama_kv(texts, add_space_prefix=False, **keys)
        self.vocab, self.tokens = load_vocab(kv), kv[PREFIX + "tokens"]

    def __call__(self, text: str) -> list[str]:
        return [self.tokens[id] for id in self.vocab.encode(text, add_special=False, parse_special=False)]


def test_type_of_a_token_does_not_keep_merges_from_it() -> None:
    texts = dict.fromkeys(["a", "b", "c", "ab", "bc"], -1.0)
    assert SpmIds(texts, types={"ab": CONTROL})("ab") == ["ab"]
    assert SpmIds(texts, types={"ab": UNUSED})("ab") == ["ab"]
    reached = dict.fromkeys(["<", "s", ">", "<s", "0", "x", "4", "1", "<0", "<0x", "<0x4", "1>"], -1.0)
    assert SpmIds(reached)("<s>") == ["<s>"]
    assert SpmIds(reached)("<0x41>") == ["<0x41>"]


def test_missing_scores_count_as_equal_with_a_note() -> None:
    kv = llama_kv({"a": 5.0, "ab": 1.0, "bc": 9.0}, add_space_prefix=False)
    del kv[PREFIX + "scores"]
    vocab = load_vocab(kv)
    assert vocab.encode("abc", add_special=False) == [260, *bytes_of("c")]
    assert any("scores: missing" in note for note in vocab.notes)


def test_keys_of_normalisation_have_no_effect_and_are_named() -> None:
    vocab = load_vocab(run_kv("llama, keys without effect"))
    assert vocab.encode("a   \uff21") == SPM.encode("a   \uff21")
    assert sum("ignored, as llama.cpp does" in note for note in vocab.notes) == 2


# BYTES


def test_text_that_is_no_token_is_its_bytes() -> None:
    vocab = load_vocab(llama_kv({"a": -1.0}, add_space_prefix=False))
    assert vocab.encode("a\u20ac\u00e9a", add_special=False) == [259, *bytes_of("\u20ac\u00e9"), 259]
    assert vocab.encode(" ", add_special=False) == bytes_of("\u2581")
    assert vocab.piece(FIRST_BYTE + 0xE2) == b"\xe2"


def test_bytes_that_are_no_utf8_stay_what_they_are() -> None:
    vocab = load_vocab(llama_kv({"a": -1.0, b"\xff": -1.0}, add_space_prefix=False))  # type: ignore[dict-item]
    assert vocab.encode("a\udcfe\udce4\udcbda\udcff", add_special=False) == [
        *[259, FIRST_BYTE + 0xFE, FIRST_BYTE + 0xE4, FIRST_BYTE + 0xBD],
        # The lead byte E4 claims the two bytes after it, a letter or not.
        *[FIRST_BYTE + ord("a"), 260],
    ]


def test_plain_text_of_a_byte_stands_in_for_its_token() -> None:
    kv = llama_kv({}, add_space_prefix=False)
    kv[PREFIX + "tokens"] = [text if text != "<0x41>" else "A" for text in kv[PREFIX + "tokens"]]
    kv[PREFIX + "token_type"][FIRST_BYTE + 0x41] = NORMAL
    assert load_vocab(kv).encode("AB", add_special=False) == bytes_of("AB")


def test_byte_without_any_token_is_refused_when_it_is_met() -> None:
    kv = llama_kv({"a": -1.0}, add_space_prefix=False)
    kv[PREFIX + "tokens"] = [text if text != "<0xC3>" else "<gone>" for text in kv[PREFIX + "tokens"]]
    kv[PREFIX + "token_type"][FIRST_BYTE + 0xC3] = NORMAL
    vocab = load_vocab(kv)
    assert vocab.encode("a", add_special=False) == [259]
    with pytest.raises(MtprefError, match=r"no token for byte 0xC3 of .*expected <0xC3>"):
        vocab.encode("a\u00e9")


def test_odd_token_texts_are_kept() -> None:
    extra: dict[Any, float] = {"<unknown>": 0.0, "<unknown>>": 0.0, "\n\t": -2.0, "\t": -1.0, "x" * 5000: 0.0}
    extra |= {b"<264>\xff": 0.0, "<264>": 0.0, "\u2585": 0.0, "\ufffd": 0.0}
    vocab = load_vocab(llama_kv(extra, add_space_prefix=False))
    for id, text in enumerate(extra, 259):
        assert vocab.piece(id) == (text if isinstance(text, bytes) else text.encode("utf-8"))
    assert vocab.encode("\n\t\u2585\ufffdq", add_special=False) == [261, 266, 267, *bytes_of("q")]


def test_token_text_ends_at_its_first_nul() -> None:
    vocab = load_vocab(llama_kv({"\0": 0.0, "b\0c": 0.0}, add_space_prefix=False))
    assert [vocab.piece(259), vocab.piece(260)] == [b"[EMPTY_259]", b"b"]
    assert vocab.encode("b\0", add_special=False) == [260, FIRST_BYTE]


def test_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(MtprefError, match=r"scores\[260\]: nan, expected a number"):
        load_vocab(llama_kv({"a": 1.0, "b": float("nan"), "c": float("inf")}))
    assert load_vocab(llama_kv({"a": -1.0, "aa": float("-inf")}, add_space_prefix=False)).encode("aa") == [1, 260]


# SPECIAL TOKENS


def test_bos_1_and_eos_2_are_the_defaults_and_only_bos_is_added() -> None:
    vocab = load_vocab(llama_kv({}))
    assert (vocab.bos_id, vocab.eos_id, vocab.add_bos, vocab.add_eos, vocab.eog_ids) == (1, 2, True, False, {2})


def test_phi_3_models_drop_white_space_behind_special_tokens() -> None:
    extra = {"\u2581": -1.0, "a": -1.0, "<u>": 0.0, "<|endoftext|>": 0.0}
    types = {"<u>": USER, "<|endoftext|>": CONTROL}
    kv = llama_kv(extra, types=types, add_space_prefix=False)
    space, a, user, end = range(259, 263)
    text = "<u> \n\v a </s>\ta<s> a<|endoftext|> a"
    plain = [user, space, *bytes_of("\n\v"), space, a, space, 2, *bytes_of("\t"), a, 1, space, a, end, space, a]
    assert load_vocab(kv).encode(text, add_special=False) == plain
    stripped = [user, a, space, 2, a, 1, space, a, end, space, a]
    named: Vocab = load_vocab(kv | {"general.name": "My Phi-3-mini"})
    assert named.encode(text, add_special=False) == stripped
    assert named.encode("a<u>   ", add_special=False) == [a, user]
