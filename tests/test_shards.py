"""Split models: what is opened together, what is refused, what is written."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, open_one, parse, shards, write_gguf, write_shards
from mtpref.front.api import tiny_path
from tests.gguf_copy import copy_of, llama_cpp, llama_speculative
from tests.samples import some_examples
from tests.test_gguf_reader import I32, U16, container, key, one_line_refusals

KV = [("general.architecture", "x", "str"), ("x.names", ["a", "b"], "arr:str")]
TENSORS = [(f"t{i}", "F32", (i + 1, 2), np.full((i + 1, 2), i, np.float32)) for i in range(5)]


def refusal(path: Path) -> str:
    with pytest.raises(MtprefError) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def three(tmp_path):
    """A model in three files of two tensors at most."""
    return write_shards(tmp_path / "m", KV, TENSORS, max_tensors=2)


def test_names_and_split_keys_are_those_of_llama_cpp(three):
    assert [p.name for p in three] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for no, path in enumerate(three):
        with open_one(path) as f:
            assert (f.kv["split.no"], f.kv["split.count"], f.kv["split.tensors.count"]) == (no, 3, 5)
            assert [f.kv.kind(k) for k in ("split.no", "split.count", "split.tensors.count")] == ["u16", "u16", "i32"]
            assert ("general.architecture" in f.kv) == (no == 0)


def test_the_first_file_opens_all_and_reads_like_one(three):
    with open_gguf(three[0]) as f:
        assert list(f.tensors) == [t[0] for t in TENSORS]
        assert [t.shard for t in f.tensors.values()] == [0, 0, 1, 1, 2]
        for name, _, shape, values in TENSORS:
            assert f.data(name).view("<f4").reshape(shape).tolist() == values.tolist()
        assert f.n_bytes == sum(p.stat().st_size for p in three)
        assert f.get("general.architecture") == "x"
        view = f.data("t4")
    assert view.view("<f4")[0] == 4
    with pytest.raises(MtprefError, match="the file was closed"):
        f.data("t4")


def test_the_first_file_may_hold_no_tensors(tmp_path):
    paths = write_shards(tmp_path / "m", KV, TENSORS, max_bytes=1 << 20, first_is_empty=True)
    assert len(paths) == 2
    with open_one(paths[0]) as f:
        assert (len(f.tensors), "x.names" in f.kv) == (0, True)
    with open_gguf(paths[0]) as f:
        assert list(f.tensors) == [t[0] for t in TENSORS]


def test_a_file_that_calls_itself_the_only_one_is_whole(tmp_path):
    write_gguf(tmp_path / "any-name.gguf", [*KV, ("split.count", 1, "u16")], TENSORS)
    with open_gguf(tmp_path / "any-name.gguf") as f:
        assert (len(f.tensors), f.others) == (5, ())


def test_a_later_file_names_the_one_to_give(three):
    line = refusal(three[1])
    assert "file 2 of 3 of a split model, expected the first; give " in line
    assert line.endswith(str(three[0]))


def test_a_missing_file_is_named(three):
    three[2].unlink()
    assert "1 of its 3 files missing beside it: m-00003-of-00003.gguf" in refusal(three[0])
    three[1].unlink()
    assert "2 of its 3 files missing beside it: m-00002-of-00003.gguf, m-00003-of-00003.gguf" in refusal(three[0])


def test_a_renamed_first_file_is_told_its_name(three):
    renamed = three[0].with_name("model.gguf")
    three[0].rename(renamed)
    assert "file 1 of 3 of a split model, expected a name that ends in -00001-of-00003.gguf" in refusal(renamed)


def test_files_under_each_others_names_are_refused(three, tmp_path):
    os.rename(three[1], tmp_path / "x")
    os.rename(three[2], three[1])
    os.rename(tmp_path / "x", three[2])
    assert "m-00002-of-00003.gguf: key split.no is 2, expected 1 as its name says" in refusal(three[0])


def test_a_tensor_in_two_files_is_refused(three):
    write_gguf(three[1], [("split.no", 1, "u16")], [TENSORS[0]])
    line = refusal(three[0])
    assert "m-00002-of-00003.gguf: tensor t0 is also in " in line
    assert "m-00001-of-00003.gguf, expected it in one file" in line


def test_a_file_of_another_model_is_noticed_by_the_count(three):
    write_gguf(three[2], [("split.no", 2, "u16")], [TENSORS[4], ("more", "F32", (1,), np.zeros(1, np.float32))])
    assert "6 tensors in its 3 files, expected 5 by key split.tensors.count" in refusal(three[0])


def test_metadata_of_later_files_is_ignored(three):
    keys = [("split.no", 2, "u16"), ("general.architecture", "other", "str"), ("x.names", 7, "u32")]
    write_gguf(three[2], [*keys, ("split.count", 9, "u16"), ("general.alignment", 64, "u32")], TENSORS[4:])
    with open_gguf(three[0]) as f:
        assert (f.kv["general.architecture"], list(f.kv["x.names"])) == ("x", ["a", "b"])
        assert f.data("t4").view("<f4")[0] == 4
        assert f.tensors["t4"].offset % 64 == 0


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


@pytest.mark.parametrize(
    ("keys", "name", "expected"),
    [
        ([key("split.count", I32, struct.pack("<i", 2))], "m-00001-of-00002.gguf", "split.count is of type i32"),
        (
            [key("split.count", U16, u16(2))],
            "m-00001-of-00002.gguf",
            "key split.no is missing, expected one of type u16",
        ),
        (
            [key("split.count", U16, u16(2)), key("split.no", U16, u16(2))],
            "m-00003-of-00002.gguf",
            "split.no is 2, expected 0 .. 1",
        ),
        (
            [key("split.count", U16, u16(65535)), key("split.no", U16, u16(0))],
            "m-00001-of-65535.gguf",
            "split.count is 65535, expected at most 4096",
        ),
        (
            [key("split.count", U16, u16(4096)), key("split.no", U16, u16(0))],
            "m-00001-of-04096.gguf",
            "4095 of its 4096 files missing beside it: m-00002-of-04096.gguf, ",
        ),
    ],
)
def test_split_keys_that_make_no_sense_are_refused(tmp_path, keys, name, expected):
    path = tmp_path / name
    path.write_bytes(container(keys))
    assert expected in refusal(path)


@pytest.mark.parametrize("keys", [[], [key("split.no", I32, struct.pack("<i", 1))]])
def test_a_later_file_without_its_number_is_refused(three, keys):
    three[1].write_bytes(container(keys))
    assert "m-00002-of-00003.gguf: key split.no " in refusal(three[0])
    three[1].write_bytes(b"GGUF")
    assert "m-00002-of-00003.gguf: the version needs 4 bytes" in refusal(three[0])
    three[1].unlink()
    three[1].mkdir()
    assert "m-00002-of-00003.gguf: not a regular file" in refusal(three[0])


def test_limits_hold_for_all_files_together(three, monkeypatch):
    monkeypatch.setattr(parse, "MAX_TENSORS", 4)
    assert "m-00003-of-00003.gguf: 1 tensors declared, expected at most 0" in refusal(three[0])
    monkeypatch.setattr(parse, "MAX_TENSORS", 5)
    monkeypatch.setattr(parse, "MAX_KEYS", 8)
    assert "m-00003-of-00003.gguf: 3 keys declared, expected at most 0" in refusal(three[0])
    monkeypatch.setattr(parse, "MAX_KEYS", 100)
    monkeypatch.setattr(parse, "MAX_NAME_BYTES", 80)
    assert "all names so far take" in refusal(three[0])


def test_a_refused_model_is_unmapped(three):
    three[2].unlink()
    opened = []
    real = shards.open_one

    def spy(*args):
        opened.append(real(*args))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "open_one", spy)
        refusal(three[0])
    with pytest.raises(MtprefError, match="the file was closed"):
        opened[0].buffer()


EDITS = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def raw_files(tmp_path_factory):
    paths = write_shards(tmp_path_factory.mktemp("fuzz") / "m", KV, TENSORS, max_tensors=2)
    return [(path, path.read_bytes()) for path in paths]


@settings(max_examples=some_examples(200))
@given(edits=EDITS, cut=st.none() | st.tuples(st.integers(0, 2), st.floats(0, 1)))
def test_mutated_files_raise_nothing_but_a_refusal(raw_files, edits, cut):
    raws = [bytearray(raw) for _, raw in raw_files]
    for no, where, new in edits:
        at = int(where * len(raws[no]))
        raws[no][at : at + len(new)] = new
    if cut is not None:
        del raws[cut[0]][int(cut[1] * len(raws[cut[0]])) :]
    for (path, _), raw in zip(raw_files, raws, strict=True):
        path.write_bytes(raw)
    with one_line_refusals(), open_gguf(raw_files[0][0]) as f:
        for info in f.tensors.values():
            if info.n_bytes is not None:
                assert f.data(info).size == info.n_bytes


# WRITING


@settings(max_examples=some_examples(60))
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    limit=st.integers(1, 300),
    by_bytes=st.booleans(),
    first_is_empty=st.booleans(),
)
def test_any_split_reads_back_and_keeps_its_limit(tmp_path_factory, sizes, limit, by_bytes, first_is_empty):
    folder = tmp_path_factory.mktemp("split")
    tensors = [(f"t{i}", "F32", (n,), np.arange(n, dtype=np.float32)) for i, n in enumerate(sizes)]
    most = {"max_bytes": limit} if by_bytes else {"max_tensors": limit}
    paths = write_shards(folder / "m", KV, tensors, **most, first_is_empty=first_is_empty)
    groups: list[list[int]] = [[] for _ in paths]
    with open_gguf(paths[0]) as f:
        assert list(f.tensors) == [t[0] for t in tensors]
        for name, _, _, values in tensors:
            assert f.data(name).view("<f4").tolist() == values.tolist()
        for t in f.tensors.values():
            groups[t.shard].append(-(-t.n_bytes // 32) * 32)
    assert not (first_is_empty and groups[0])
    for group in groups[first_is_empty:]:
        assert group
        assert len(group) <= limit if not by_bytes else sum(group) <= limit or len(group) == 1


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder / "m", KV, TENSORS, max_bytes=64)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_interrupted_write_leaves_no_file_and_the_old_ones(three, tmp_path):
    before = [p.read_bytes() for p in three]

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "n", [], [*TENSORS[:4], ("t4", "F32", (5, 2), interrupt)], max_tensors=2)
    with pytest.raises(MtprefError, match=r"m-00001-of-00003.gguf: exists, and a model in several files cannot be"):
        write_shards(tmp_path / "m", [], [*TENSORS[:4], ("t4", "F32", (5, 2), interrupt)], max_tensors=2)
    assert [p.read_bytes() for p in three] == before
    assert sorted(tmp_path.iterdir()) == three


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupt_between_the_renames_of_shards_leaves_none_of_them(tmp_path, monkeypatch, after):
    rename, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > after:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "m", KV, TENSORS, max_tensors=2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kv", "limits", "expected"),
    [
        (KV, {}, "expected one of them, 1 or more"),
        (KV, {"max_tensors": 2, "max_bytes": 3}, "expected one of them, 1 or more"),
        (KV, {"max_tensors": 0}, "max_tensors is 0"),
        (KV, {"max_bytes": -1}, "max_bytes is -1"),
        ([("split.no", 0, "u16")], {"max_tensors": 1}, "key split.no is given"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(tmp_path, kv, limits, expected):
    with pytest.raises(MtprefError, match=expected):
        write_shards(tmp_path / "m", kv, TENSORS, **limits)
    assert list(tmp_path.iterdir()) == []


def test_more_files_than_can_be_read_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARDS", 4)
    with pytest.raises(MtprefError, match="5 files, expected at most 4"):
        write_shards(tmp_path / "m", KV, TENSORS, max_tensors=1)


# WHOLE MODELS


def test_a_split_model_gives_the_bits_of_the_whole_one(tmp_path):
    paths = write_shards(tmp_path / "tiny", *copy_of(tiny_path()), max_tensors=17, first_is_empty=True)
    whole, split = mtpref.load(), mtpref.load(paths[0])
    ids = whole.encode("def f(x):\n")
    a = whole.core.trunk(whole.core.new_state(64), ids, n_logits=len(ids))
    b = split.core.trunk(split.core.new_state(64), ids, n_logits=len(ids))
    assert a.logits.tobytes() == b.logits.tobytes()
    runs = [model.generate(ids, n_ctx=96).finish() for model in (whole, split)]
    assert runs[0].ids == runs[1].ids
    assert runs[0].statistics.to_json()["n_accept"] == runs[1].statistics.to_json()["n_accept"] > 0


def test_llama_cpp_merges_our_shards_and_we_read_its_own(tmp_path):
    """llama-gguf-split both ways: tensors and keys come back as they were, but for its own three keys."""
    program = llama_cpp("llama-gguf-split")
    kv, tensors = copy_of(tiny_path())
    paths = write_shards(tmp_path / "ours", kv, tensors, max_bytes=1 << 20)
    merged = tmp_path / "merged.gguf"
    subprocess.run([program, "--merge", paths[0], merged], check=True, capture_output=True, timeout=120)
    command = [
        program,
        "--split",
        "--split-max-tensors",
        "20",
        "--no-tensor-first-split",
        tiny_path(),
        tmp_path / "theirs",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    theirs = next(tmp_path.glob("theirs-00001-of-*.gguf"))
    with open_gguf(tiny_path()) as original:
        for path in (merged, theirs):
            with open_gguf(path) as f:
                assert set(f.tensors) == set(original.tensors)
                assert {k for k in f.kv if not k.startswith("split.")} == set(original.kv)
                for name in original.tensors:
                    assert f.data(name).tobytes() == original.data(name).tobytes(), name


def test_llama_cpp_generates_the_same_text_from_our_shards(tmp_path):
    paths = write_shards(tmp_path / "tiny", *copy_of(tiny_path()), max_tensors=20, first_is_empty=True)
    options = ["-p", "Once upon a time", "-n", "24", "--temp", "0", "--spec-type", "draft-mtp", "-c", "256", "-t", "2"]
    counts, text = llama_speculative("-m", tiny_path(), *options)
    assert len(text) > 40
    assert llama_speculative("-m", paths[0], *options) == (counts, text)
