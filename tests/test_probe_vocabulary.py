"""Draft vocabularies: ranking, the held-out split, files that --spec-draft-vocab reads, and what a list costs."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.draft_vocab import read_draft_ids
from mtpref.front.cli import main
from mtpref.measure.probe import Settings, Text, probe
from mtpref.measure.probe import vocabulary as room
from mtpref.measure.probe.vocabulary import Domain, always_ids, held_out_texts, rank_ids, read_corpus, write_ids
from mtpref.measure.probe.vocabulary_report import FIRST, FULL, LIST, measure
from tests.head_files import write_pair
from tests.models import MICRO, StubVocab, micro, prompt_of

MODEL = str(MICRO / "micro-60-q8_0.gguf")


class ByteVocab(StubVocab):
    """A token a byte; 0 ends the text, 1 and 2 are control tokens; a BOS where asked."""

    def __init__(self):
        super().__init__(256, frozenset({0}))

    def encode(self, text, *, add_special=True):
        return ([1] if add_special else []) + list(text.encode("utf-8", "surrogateescape"))

    def is_control(self, id):
        return id in (1, 2)


def domain_of(ids, label="x"):
    held = np.bincount(ids, minlength=256)
    return Domain(label, np.zeros(256, np.int64), held, [np.array(ids, np.int32)])


def test_most_frequent_first_equal_counts_by_lower_id_and_what_must_be_there_before_them():
    counts = np.zeros(256, np.int64)
    counts[[9, 4, 200, 7]] = [5, 5, 8, 1]
    assert rank_ids(counts, 6, []) == [200, 4, 9, 7, 0, 1]
    assert rank_ids(counts, 4, [2, 9]) == [2, 9, 200, 4]
    assert rank_ids(counts, 3, [2, 9], named=np.array([4, 7, 9])) == [9, 4, 7]
    assert sorted(rank_ids(counts, 256, [5])) == list(range(256))


@pytest.mark.parametrize(("n", "expected"), [(0, "1 .. 256"), (257, "size of the vocabulary"), (1, "always listed")])
def test_a_size_that_no_list_can_have_is_refused(n, expected):
    with pytest.raises(MtprefError) as refused:
        rank_ids(np.zeros(256, np.int64), n, [0, 3])
    assert expected in str(refused.value)


def test_what_must_be_there():
    vocab = ByteVocab()
    assert always_ids(vocab, 256, "none") == []
    assert always_ids(vocab, 256, "eog") == [0]
    assert always_ids(vocab, 256, "control") == [0, 1, 2]


def test_every_fifth_block_is_held_out_and_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 8)
    raw = bytes(prompt_of(99, seed=1))
    (tmp_path / "a").write_bytes(raw)
    ids = [1, *raw]
    (domain,) = read_corpus([str(tmp_path / "a")], ByteVocab(), 256)
    assert [block.tolist() for block in domain.held] == [ids[32:40], ids[72:80]]
    counted = ids[:32] + ids[40:72] + ids[80:]
    assert domain.counts.tolist() == np.bincount(counted, minlength=256).tolist()
    assert domain.held_counts.tolist() == np.bincount(ids[32:40] + ids[72:80], minlength=256).tolist()


def test_a_short_text_is_cut_in_fifths_and_pieces_of_a_long_one_change_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"abcdefghi\n" * 4)
    (short,) = read_corpus([str(path)], ByteVocab(), 256)
    assert [len(block) for block in short.held] == [8]
    monkeypatch.setattr(room, "BLOCK", 4)
    (whole,) = read_corpus([str(path)], ByteVocab(), 256)
    monkeypatch.setattr(room, "PIECE_BYTES", 7)
    (pieces,) = read_corpus([str(path)], ByteVocab(), 256)
    assert pieces.counts.tolist() == whole.counts.tolist()
    assert [b.tolist() for b in pieces.held] == [b.tolist() for b in whole.held]


def test_texts_named_as_held_out_are_measured_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (domain,) = held_out_texts([f"d={tmp_path / 'a'}"], ByteVocab(), 256)
    assert domain.label == "d"
    assert np.concatenate(domain.held).tolist() == [1, *b"abc"]
    assert domain.counts.sum() == 0
    assert domain.held_counts.sum() == 4


def test_no_token_at_all_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(MtprefError, match="no token"):
        read_corpus([str(tmp_path / "a")], ByteVocab(), 256)


@pytest.mark.parametrize("name", ["ids.txt", "ids.gguf"])
def test_both_files_are_read_back_and_are_the_same_bytes_again(tmp_path, name):
    ids = [0, 200, 4, 9]
    write_ids(tmp_path / name, ids, micro(60))
    first = (tmp_path / name).read_bytes()
    assert read_draft_ids(tmp_path / name, 256) == (0, 4, 9, 200)
    write_ids(tmp_path / name, ids, micro(60))
    assert (tmp_path / name).read_bytes() == first
    if name == "ids.txt":
        assert first == b"0\n200\n4\n9\n"


def test_what_a_list_costs_is_the_probe_with_a_trimmed_head():
    model, ids = micro(60), prompt_of(80, seed=3)
    chosen = sorted(set(ids))[::2]
    report = measure(model, chosen, [domain_of(ids), domain_of(ids[:40], "y")], Settings(n_draft=2, n_positions=0))
    assert [name for name, _ in report.domains] == ["x", "y", "all"]
    heads = {line.head: line for line in report.domains[0][1]}
    trimmed = {FULL: model, FIRST: model.with_draft_ids(range(len(chosen))), LIST: model.with_draft_ids(chosen)}
    for name, head in trimmed.items():
        alone = probe(head, [Text("x", tuple(ids))], Settings(n_draft=2, n_positions=0, with_controls=False))
        assert heads[name].group.conditional == alone.trunk.conditional
    lost = heads[FULL].group.unconditional[0].value - heads[LIST].group.unconditional[0].value
    assert heads[LIST].a1_lost.value == pytest.approx(lost)
    assert heads[LIST].text_coverage == pytest.approx(np.isin(ids, chosen).mean())
    assert heads[FIRST].text_coverage == pytest.approx((np.array(ids) < len(chosen)).mean())
    assert heads[FULL].text_coverage == heads[FULL].target_coverage == 1
    for line in heads.values():
        assert line.group.unconditional[0].value <= line.target_coverage


# ------------------------------------------------------------------------------------------- command line


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(prompt_of(400, seed=4)))
    return str(path)


def refused(capsys, *arguments):
    assert main(["draft-vocab", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("compiling ")]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("mtpref draft-vocab: error: ")
    return lines[0]


def test_a_list_that_generate_takes(capsys, tmp_path, text):
    out = str(tmp_path / "ids.gguf")
    assert main(["draft-vocab", "-m", MODEL, "-f", text, "-n", "64", "-o", out, "--json", "--positions", "20"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "mtpref-draft-vocab-1"
    assert record["n_ids"] == 64
    assert record["n_held_out"] > 0
    assert [head["head"] for head in record["domains"][0]["heads"]] == [FULL, FIRST, LIST]
    assert len(read_draft_ids(out, 256)) == 64
    assert main(["generate", "-m", MODEL, "-p", "x", "-n", "4", "--spec-draft-vocab", out]) == 0
    assert "drafts name 64 of 256 ids" in capsys.readouterr().err


def test_held_out_texts_and_counting_alone(capsys, tmp_path, text):
    other, out = tmp_path / "other", str(tmp_path / "ids")
    other.write_bytes(bytes(prompt_of(90, seed=5)))
    arguments = ["draft-vocab", "-m", MODEL, "-f", text, "-n", "99", "-o", out]
    assert main([*arguments, "--held-out", str(other)]) == 0
    assert "list" in capsys.readouterr().out
    whole = Path(out).read_bytes()
    assert main([*arguments, "--no-measure"]) == 0
    assert capsys.readouterr().out == ""
    assert Path(out).read_bytes() == whole
    assert main(arguments) == 0
    assert Path(out).read_bytes() != whole  # a fifth of the text was not counted


def test_bad_input_is_one_line_and_leaves_no_file(capsys, tmp_path, text):
    out = tmp_path / "ids"
    base = ["-m", MODEL, "-o", str(out)]
    assert "expected 1 .. 256" in refused(capsys, *base, "-f", text)
    assert "-n: 0" in refused(capsys, *base, "-f", text, "-n", "0")
    assert "is given with -f too" in refused(capsys, *base, "-f", text, "-n", "9", "--held-out", text)
    assert "No such file" in refused(capsys, *base, "-f", "none", "-n", "9")
    assert "a folder, not" in refused(capsys, *base, "-f", str(tmp_path), "-n", "9")
    missing = str(tmp_path / "no" / "ids")
    assert "folder does not exist" in refused(capsys, "-m", MODEL, "-o", missing, "-f", text, "-n", "9")
    trunk, _ = write_pair(Path(MODEL), tmp_path)
    assert "no MTP head" in refused(capsys, "-m", str(trunk), "-o", str(out), "-f", text, "-n", "9")
    assert not out.exists()
