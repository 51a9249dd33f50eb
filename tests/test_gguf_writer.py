"""The GGUF writer: what it writes reads back here and in the gguf package; the target is whole or untouched."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.spec import quants

WEIGHT = np.arange(64, dtype=np.float32).reshape(2, 32)
KV = [
    ("general.architecture", "qwen35", "str"),
    ("x.u8", 255, "u8"),
    ("x.i8", -128, "i8"),
    ("x.u16", 65535, "u16"),
    ("x.i16", -1, "i16"),
    ("x.u32", 2**32 - 1, "u32"),
    ("x.i32", -5, "i32"),
    ("x.f32", 0.5, "f32"),
    ("x.bool", True, "bool"),
    ("x.u64", 2**64 - 1, "u64"),
    ("x.i64", -(2**63), "i64"),
    ("x.f64", 0.1, "f64"),
    ("x.empty", "", "str"),
    ("x.texts", ["a", "", "\u00e9", b"\xff"], "arr:str"),
    ("x.ints", [11, 11, 10, 0], "arr:i32"),
    ("x.flags", [True, False], "arr:bool"),
    ("x.floats", np.array([0.25, -1.0]), "arr:f32"),
    ("x.none", [], "arr:u32"),
]
TENSORS = [
    ("a.weight", "F32", (2, 32), WEIGHT),
    ("b.weight", "Q8_0", (2, 32), quants.quantize("Q8_0", WEIGHT)),
    ("c.weight", "BF16", (3,), np.array([0x3F80, 0x4000, 0x4040], np.uint16)),
    ("d.ids", "I32", (1, 2, 1, 2), np.arange(4, dtype=np.int32)),
    ("e.weight", "F16", (3,), lambda: np.array([1, 2, 3], np.float16)),
]


def plain(value):
    """Arrays as lists, strings of arrays as bytes; scalars as they are."""
    if not hasattr(value, "element_type"):
        return value
    return value.to_bytes_list() if value.element_type == "str" else list(value)


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, KV, TENSORS)
    with open_gguf(path) as f:
        assert [(k, f.kv.kind(k)) for k in f.kv] == [(k, kind) for k, _, kind in KV]
        assert plain(f.kv["x.texts"]) == [b"a", b"", "\u00e9".encode(), b"\xff"]
        for key, value, kind in KV:
            if kind != "arr:str":
                assert plain(f.kv[key]) == (value.tolist() if isinstance(value, np.ndarray) else value), key
        assert [(t.name, t.type_name, t.shape) for t in f.tensors.values()] == [t[:3] for t in TENSORS]
        assert np.array_equal(f.data("a.weight").view("<f4").reshape(2, 32), WEIGHT)
        assert np.array_equal(f.data("b.weight"), quants.quantize("Q8_0", WEIGHT).reshape(-1))
        assert f.data("d.ids").view("<i4").tolist() == [0, 1, 2, 3]
        assert f.data("e.weight").view("<f2").tolist() == [1, 2, 3]
        assert all(t.offset % 32 == 0 for t in f.tensors.values())


def test_the_gguf_package_reads_it_alike(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    kv = [item for item in KV if item[0] not in ("x.texts", "x.none")]  # not UTF-8, and empty
    write_gguf(path, [*kv, ("x.texts", ["a", "\u00e9"], "arr:str")], TENSORS)
    reader = gguf.GGUFReader(path)
    assert reader.fields["x.texts"].contents() == ["a", "\u00e9"]
    assert reader.fields["x.ints"].contents() == [11, 11, 10, 0]
    assert reader.fields["x.u64"].contents() == 2**64 - 1
    with open_gguf(path) as f:
        for theirs, ours in zip(reader.tensors, f.tensors.values(), strict=True):
            assert (theirs.name, tuple(int(n) for n in theirs.shape)) == (ours.name, ours.ne)
            assert (theirs.tensor_type.name, theirs.data_offset) == (ours.type_name, ours.offset)
            assert theirs.data.tobytes() == f.data(ours).tobytes()


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_gguf(tmp_path / name, KV, TENSORS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_copy_of_a_file_is_the_file(tmp_path):
    write_gguf(tmp_path / "one", KV, TENSORS)
    with open_gguf(tmp_path / "one") as f:
        kv = [(k, f.kv.raw(k) if f.kv.kind(k) == "str" else f.kv[k], f.kv.kind(k)) for k in f.kv]
        write_gguf(tmp_path / "two", kv, [(t.name, t.type_name, t.shape, f.data(t)) for t in f.tensors.values()])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_alignment_key_is_obeyed(tmp_path):
    write_gguf(tmp_path / "m", [("general.alignment", 128, "u32")], TENSORS)
    with open_gguf(tmp_path / "m") as f:
        assert f.alignment == 128
        assert all(t.offset % 128 == 0 for t in f.tensors.values())
    with pytest.raises(MtprefError, match=r"general\.alignment: 48 of kind u32, expected a u32 power of two"):
        write_gguf(tmp_path / "m", [("general.alignment", 48, "u32")], [])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (256, "u8"), (-1, "u32"), (2**31, "i32"), (1.5, "u32"), ("1", "u32"), (1e39, "f32"), (1, "bool"), (7, "str"),
        (None, "u32"), (1, "nonsense"), (1, "arr"), ([300], "arr:u8"), ([-1], "arr:u64"), ([0.5], "arr:i32"),
        ([1, 0], "arr:bool"), ([[1]], "arr:i32"), (["a", 1], "arr:str"), ([[1]], "arr:arr"), (["a"], "arr:u32"),
        ([2**70], "arr:u64"),
    ],
)  # fmt: skip
def test_a_value_outside_its_kind_is_refused(tmp_path, value, kind):
    with pytest.raises(MtprefError, match=r"key k: .*expected|key k: .*does not fit kind"):
        write_gguf(tmp_path / "m", [("k", value, kind)], [])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        (
            [("a", "F32", (3,), np.zeros(2, np.float32))],
            r"tensor a: 8 bytes of data, expected 12 for F32 of shape \(3,\)",
        ),
        ([("a", "F32", (2,), np.zeros(2, np.int32))], "tensor a: data of dtype int32, expected uint8 or float32"),
        ([("a", "Q8_0", (33,), np.zeros(34, np.uint8))], "rows of 33 values, expected a multiple of 32 for type Q8_0"),
        ([("a", "Q9", (32,), np.zeros(34, np.uint8))], "type Q9, expected a ggml name"),
        ([("a", "F32", (), np.zeros(1, np.float32))], r"shape \(\), expected 1 to 4 positive dimensions"),
        ([("a", "F32", (0,), np.zeros(0, np.float32))], r"shape \(0,\), expected 1 to 4 positive dimensions"),
        ([("a", "F32", (1,), np.zeros(1, np.float32))] * 2, "tensor a: given twice"),
        ([("n" * 64, "F32", (1,), np.zeros(1, np.float32))], "name of 64 bytes, expected 1 to 63"),
        ([("a", "F32", (2,), lambda: np.zeros(3, np.float32))], "tensor a: 12 bytes of data, expected 8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, tensors, line):
    with pytest.raises(MtprefError, match=line):
        write_gguf(tmp_path / "m", [], tensors)
    assert os.listdir(tmp_path) == []


def test_repeated_and_empty_keys_are_refused(tmp_path):
    with pytest.raises(MtprefError, match="key k: given twice"):
        write_gguf(tmp_path / "m", [("k", 1, "u8"), ("k", 2, "u8")], [])
    with pytest.raises(MtprefError, match="key : 0 bytes, expected 1 to 65535"):
        write_gguf(tmp_path / "m", [("", 1, "u8")], [])


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, KV, TENSORS)
    before = path.read_bytes()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, KV, [*TENSORS, ("z", "F32", (1,), interrupt)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_target_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(MtprefError, match=r"absent.m: cannot be written: No such file.*expected a writable folder"):
        write_gguf(tmp_path / "absent" / "m", KV, [])
    with pytest.raises(MtprefError, match="exists and is not a regular file"):
        write_gguf(tmp_path, KV, [])


KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
VALUES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda v: (v, "u32")),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: (v, "i64")),
    st.booleans().map(lambda v: (v, "bool")),
    st.text(st.characters(codec="utf-8"), max_size=9).map(lambda v: (v, "str")),
    st.floats(width=32, allow_nan=False).map(lambda v: (v, "f32")),
    st.lists(st.binary(max_size=5), max_size=5).map(lambda v: (v, "arr:str")),
    st.lists(st.integers(-128, 127), max_size=5).map(lambda v: (v, "arr:i8")),
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(pairs=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_keys_and_values_round_trip(tmp_path_factory, pairs):
    path = tmp_path_factory.getbasetemp() / "round-trip.gguf"
    write_gguf(path, [(k, v, kind) for k, (v, kind) in pairs.items()], [])
    with open_gguf(path) as f:
        assert {k: (plain(f.kv[k]), f.kv.kind(k)) for k in f.kv} == pairs
