"""What is too much is refused before the work is done, not after it."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MICRO, cli_outcome
from fuzzing.judge import limited_memory

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.tensor_files import write_npz
from mtpref.files.vocab.base import Vocab
from mtpref.look.compare import compare_files
from mtpref.look.compare.files import Difference

MB = 1 << 20
TEXTS = {
    "words": b"a few words and 12345 digits, " * (8 * MB // 30),
    "one word": b"a" * (8 * MB),
    "no UTF-8": b"\xff" * (8 * MB),
    "wide": "\U0001f600".encode() * (2 * MB),
    "special tokens": b"<|endoftext|>" * (8 * MB // 13),
}


@pytest.fixture(scope="module")
def tiny():
    model = mtpref.load()
    model.encode("warm")
    return model


@pytest.mark.parametrize("name", TEXTS)
def test_a_long_prompt_is_not_tokenized_whole(tiny, name, monkeypatch):
    text = TEXTS[name].decode("utf-8", "surrogateescape")
    n_bytes = 0
    kind = type(tiny.core.vocab)
    encode = kind._encode_fragment

    def counted(self, fragment, after_special):
        nonlocal n_bytes
        n_bytes += len(fragment)
        return encode(self, fragment, after_special)

    monkeypatch.setattr(kind, "_encode_fragment", counted)
    with (
        limited_memory(200 * MB),
        pytest.raises(MtprefError, match=r"prompt: \d+ tokens in the first \d+ of its \d+ bytes"),
    ):
        tiny.generate(text)
    assert n_bytes <= 1 * MB


VERBS = [["generate", "-n", "2"], ["generate", "--chat", "-n", "2"], ["dump", "-o", "out.gguf"], ["story", "-n", "12"]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_it_early(tmp_path, verb):
    (tmp_path / "text").write_bytes(TEXTS["words"][:8000000])
    template = ["--chat-template", "chatml"] if "--chat" in verb else []
    started = time.monotonic()
    code, _, err = cli_outcome([*verb, *template, "-m", str(MICRO), "-f", "text"], tmp_path)
    assert (code, "bytes, expected at most 4096;" in err.splitlines()[-1]) == (2, True)
    assert time.monotonic() - started < 10  # 2 s on a machine with nothing else to do


def test_a_prompt_that_fits_is_tokenized_as_ever(tiny):
    vocab = tiny.core.vocab
    for text in ("words " * 300, " " * 5000, "1" * 900, "\u00e4" * 700):
        assert vocab.encode(text, limit=2048) == vocab.encode(text)
    for n in (900, 2048, 3000):  # at most twice the limit: the caller counts
        assert len(vocab.encode("1" * n, limit=2048)) == n


def test_vocabularies_whose_tokens_swallow_spaces_are_not_judged_by_pieces(tiny, monkeypatch):
    vocab: Vocab = tiny.core.vocab
    monkeypatch.setattr(vocab, "_rstrip", frozenset({0}))
    assert len(vocab.encode("1" * 20000, limit=100)) == 20000


def test_the_time_of_a_comparison_grows_with_its_tensors_not_with_their_square(tmp_path, monkeypatch):
    calls = 0
    exceeds = Difference.exceeds

    def counted(self, limit):
        nonlocal calls
        calls += 1
        return exceeds(self, limit)

    monkeypatch.setattr(Difference, "exceeds", counted)
    n = 2000
    for name, factor in (("a.npz", 1), ("b.npz", 2)):
        write_npz(tmp_path / name, {f"t.{i}": np.full(1, factor * (i + 1), np.float32) for i in range(n)})
    found = compare_files(tmp_path / "a.npz", tmp_path / "b.npz")
    assert len(found.differences) == n
    assert calls <= 4 * n


LOG = (
    """# run
# prompt_ids: {ids}
# n_max: 3
# p_min: 0
"""
    + "draft candidate   0, pos   0:     11 (   0.900) 'a'\naccepted 1/1 draft tokens, the last target token is: (12)\n"
)


@pytest.mark.parametrize("verb", [["compare-log", "run.log"], ["diagnose", "--log", "run.log"]])
def test_a_recording_longer_than_the_context_is_not_run(tmp_path, verb, monkeypatch):
    def never(*_args, **_settings):
        raise AssertionError("it is run")

    monkeypatch.setattr("mtpref.engine.model.model.Model.new_state", never)
    for n in (4096, 4 * 4096):
        (tmp_path / "run.log").write_text(LOG.format(ids=[1] * n))
        code, _, err = cli_outcome([*verb, "-m", str(MICRO)], tmp_path)
        assert code == 2
        assert "within the" in err.splitlines()[-1]
        assert "context of 4096" in err.splitlines()[-1]
