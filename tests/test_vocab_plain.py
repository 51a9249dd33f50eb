"""Tokenizer model `gemma4` against llama-tokenize's ids, and its pieces."""

import json
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.vocab import load_vocab
from tests.plain_bpe_cases import TEXTS, vocabulary

RECORDED = json.loads((Path(__file__).parent / "data" / "plain_bpe.json").read_text())


def keys_of(has_all_bytes=True, **others):
    keys = {key: value for key, value, _ in vocabulary(has_all_bytes)}
    return {k: v for k, v in (keys | {f"tokenizer.ggml.{k}": v for k, v in others.items()}).items() if v is not None}


@pytest.mark.parametrize("form", ["all bytes", "few bytes"])
def test_ids_are_llama_tokenizes(form):
    """Recorded: llama-tokenize -f TEXT --ids of 0c1e57098 on a planted gemma4 with this vocabulary."""
    vocab = load_vocab(keys_of(form == "all bytes"))
    found = {f"{form} {i}": vocab.encode(text) for i, text in enumerate(TEXTS)}
    assert found == {name: ids for name, ids in RECORDED.items() if name.startswith(form)}


def test_a_text_comes_back_from_its_tokens():
    vocab = load_vocab(keys_of())
    for text in TEXTS:
        ids = vocab.encode(text)
        assert vocab.decode(ids[1:], special=True).decode() == text.replace("\u2581", " ")
    assert vocab.piece(vocab.encode(" the", add_special=False)[0]) == b" the"
    assert vocab.piece(vocab.encode("\U0001f600", add_special=False)[0]) == b"\xf0"
    assert {vocab.piece(id) for id in vocab.eog_ids} == {b""}
    assert len(vocab.eog_ids) == 2  # <eos> and <turn|>


def test_bos_is_added_whatever_the_key_says():
    vocab = load_vocab(keys_of(add_bos_token=False))
    assert vocab.encode("the")[0] == 2
    assert any("BOS is added all the same" in note for note in vocab.notes)


def test_merges_are_required():
    with pytest.raises(MtprefError, match=r"tokenizer\.ggml\.merges: missing"):
        load_vocab(keys_of(merges=None))


def test_a_token_that_is_no_utf8_is_no_piece_of_a_text():
    keys = keys_of()
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], b"\xff"]
    keys["tokenizer.ggml.scores"] = [*keys["tokenizer.ggml.scores"], 0.0]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], 1]
    vocab = load_vocab(keys)
    assert vocab.piece(vocab.n_vocab - 1) == b"\xff"
    assert vocab.encode("the", add_special=False) == load_vocab(keys_of()).encode("the", add_special=False)
