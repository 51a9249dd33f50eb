"""The GGUF reader: every value kind, both versions, laziness, and one clear line for anything malformed."""

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpref.base.errors import MtprefError
from mtpref.files import doors
from mtpref.files.gguf import GgufArray, open_gguf, parse, printable
from tests.samples import some_examples

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def arr(kind: int, n: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, n) + payload


def tensor(name: str | bytes, ne: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, type_id, offset)


def container(keys=(), tensors=(), data=b"", version=3, alignment=32, n_kv=None, n_tensors=None) -> bytes:
    n_kv = len(keys) if n_kv is None else n_kv
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data if data else head


SMALL = container(
    keys=[
        key("general.architecture", STR, text("qwen35")),
        key("x.count", U32, struct.pack("<I", 7)),
        key("x.names", ARR, arr(STR, 3, text("a") + text("") + text("\u00e9"))),
        key("x.sections", ARR, arr(I32, 4, struct.pack("<4i", 11, 11, 10, 0))),
        key("x.nested", ARR, arr(ARR, 2, arr(U8, 2, b"\x01\x02") + arr(STR, 1, text("in")))),
        key("x.flag", BOOL, b"\x01"),
    ],
    tensors=[tensor("a.weight", (4, 2)), tensor("b.weight", (32, 1), 8, 32)],
    data=np.arange(8, dtype="<f4").tobytes() + bytes(range(34)),
)


@pytest.fixture
def write(tmp_path):
    def put(raw: bytes, name: str = "m.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(raw)
        return path

    return put


def refusal(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(MtprefError) as caught:
        open_gguf(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    return line


@pytest.mark.parametrize("version", [2, 3])
def test_reads_scalars_of_every_kind(write, version):
    keys = [
        key("u8", U8, b"\xff"),
        key("i8", I8, b"\xff"),
        key("u16", U16, b"\xff\xff"),
        key("i16", I16, b"\xfe\xff"),
        key("u32", U32, struct.pack("<I", 2**32 - 1)),
        key("i32", I32, struct.pack("<i", -3)),
        key("f32", F32, struct.pack("<f", 0.1)),
        key("bool", BOOL, b"\x00"),
        key("str", STR, text("h\u00e9")),
        key("u64", U64, struct.pack("<Q", 2**64 - 1)),
        key("i64", I64, struct.pack("<q", -(2**63))),
        key("f64", F64, struct.pack("<d", 0.1)),
    ]
    with open_gguf(write(container(keys, version=version))) as f:
        assert f.version == version
        assert dict(f.kv) == {
            "u8": 255, "i8": -1, "u16": 65535, "i16": -2, "u32": 2**32 - 1, "i32": -3,
            "f32": float(np.float32(0.1)), "bool": False, "str": "h\u00e9",
            "u64": 2**64 - 1, "i64": -(2**63), "f64": 0.1,
        }  # fmt: skip
        assert f.kv["bool"] is False
        assert all(f.kv.kind(name) == name for name in f.kv)


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        (U8, np.uint8, [0, 255]), (I8, np.int8, [-128, 5]), (U16, np.uint16, [65535]),
        (I16, np.int16, [-2, 3]), (U32, np.uint32, [2**32 - 1]), (I32, np.int32, [-7, 0, 7]),
        (F32, np.float32, [0.5, -0.25]),
        (BOOL, np.bool_, [True, False, True]), (U64, np.uint64, [2**64 - 1]), (I64, np.int64, [-(2**63)]),
        (F64, np.float64, [0.1]), (I32, np.int32, []),
    ],
)  # fmt: skip
def test_reads_numeric_arrays_of_every_kind(write, kind, dtype, values):
    payload = np.array(values, dtype).tobytes()
    with open_gguf(write(container([key("k", ARR, arr(kind, len(values), payload))]))) as f:
        found = f.kv["k"]
        assert isinstance(found, GgufArray)
        assert found.to_numpy().dtype == dtype
        assert found.to_numpy().tolist() == values
        assert list(found) == values
        assert [found[i] for i in range(len(found))] == values


def test_string_arrays_decode_in_bulk_by_index_and_as_bytes(write):
    with open_gguf(write(SMALL)) as f:
        names = f.kv["x.names"]
        assert (len(names), names.element_type) == (3, "str")
        assert names.to_bytes_list() == [b"a", b"", "\u00e9".encode()]
        assert names.to_strings() == list(names) == ["a", "", "\u00e9"]
        assert (names[2], names[-3], names[1:]) == ("\u00e9", "a", ["", "\u00e9"])
        with pytest.raises(IndexError, match="index 3, the array has 3 elements"):
            names[3]
        with pytest.raises(MtprefError, match=r"x\.names: array of str, expected numbers"):
            names.to_numpy()
        with pytest.raises(MtprefError, match=r"x\.sections: array of i32, expected strings"):
            f.kv["x.sections"].to_strings()


def test_nested_arrays_decode_to_a_depth(write):
    with open_gguf(write(SMALL)) as f:
        nested = f.kv["x.nested"]
        assert nested.element_type == "arr"
        assert [list(inner) for inner in nested] == [[1, 2], ["in"]]
    deep = arr(U8, 1, b"\x00")
    for _ in range(parse.MAX_DEPTH):
        deep = arr(ARR, 1, deep)
    assert "nests arrays more than 4 deep" in refusal(write(container([key("k", ARR, deep)])))


def test_tensors_have_shape_offset_and_exactly_their_bytes(write):
    with open_gguf(write(SMALL)) as f:
        assert list(f.tensors) == ["a.weight", "b.weight"]
        a, b = f.tensors.values()
        assert (a.type_name, a.ne, a.shape, a.n_bytes, a.offset) == ("F32", (4, 2), (2, 4), 32, f.data_offset)
        assert (b.type_name, b.n_bytes, b.offset) == ("Q8_0", 34, f.data_offset + 32)
        assert f.data_offset % f.alignment == 0
        assert f.n_bytes == len(SMALL)
        assert f.data("a.weight").view("<f4").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        data = f.data(b)
        assert (data.dtype, data.shape, data.flags.writeable) == (np.uint8, (34,), False)
        assert data.tolist() == list(range(34))


def test_a_custom_alignment_places_the_data(write):
    keys = [key("general.alignment", U32, struct.pack("<I", 256))]
    raw = container(keys, [tensor("a", (1,)), tensor("b", (1,), 0, 256)], b"AAAA" + bytes(252) + b"BBBB", alignment=256)
    with open_gguf(write(raw)) as f:
        assert (f.alignment, f.data_offset % 256) == (256, 0)
        assert f.data("b").tobytes() == b"BBBB"


def test_an_unknown_tensor_type_is_opaque_and_the_rest_still_opens(write):
    raw = container((), [tensor("odd", (5,), 142), tensor("f", (2,), 0, 32)], bytes(32) + struct.pack("<2f", 1, 2))
    with open_gguf(write(raw)) as f:
        odd = f.tensors["odd"]
        assert (odd.type_id, odd.type_name, odd.n_bytes, odd.ne) == (142, "type-142", 32, (5,))
        assert f.data("f").view("<f4").tolist() == [1, 2]
        assert f.data("odd").tobytes() == bytes(32)
        with pytest.raises(MtprefError, match="tensor type type-142: unknown, expected a ggml name"):
            next(f.decoded(odd))


def test_views_outlive_close_and_everything_else_is_refused_after_it(write):
    f = open_gguf(write(SMALL))
    view, names = f.data("a.weight"), f.kv["x.names"]
    f.close()
    f.close()
    assert view.view("<f4")[7] == 7
    for late in (lambda: f.data("a.weight"), names.to_strings, lambda: f.kv["general.architecture"]):
        with pytest.raises(MtprefError, match="the file was closed"):
            late()


def test_get_and_require(write):
    with open_gguf(write(SMALL)) as f:
        assert f.get("x.count") == 7
        assert f.get("x.absent", 5) == 5
        assert f.require("x.count", "u32") == f.require("x.count", "int") == 7
        assert list(f.require("x.sections", "arr:i32")) == list(f.require("x.sections", "arr")) == [11, 11, 10, 0]
        for name, kind, line in (
            ("x.absent", "u32", "key x.absent is missing, expected one of type u32"),
            ("x.count", "f32", "key x.count is of type u32, expected f32"),
            ("x.flag", "int", "key x.flag is of type bool, expected int"),
            ("x.sections", "arr:str", "key x.sections is of type arr:i32, expected arr:str"),
        ):
            with pytest.raises(MtprefError, match=line):
                f.require(name, kind)


def test_text_that_is_not_utf8_is_refused_when_asked_for_and_stays_readable_as_bytes(write):
    keys = [key("bad", STR, text(b"a\xff\x1b")), key("list", ARR, arr(STR, 2, text("ok") + text(b"\xc3")))]
    with open_gguf(write(container(keys))) as f:
        assert f.kv.raw("bad") == b"a\xff\x1b"
        with pytest.raises(MtprefError, match=r"key bad: byte 0xff at 1 is not UTF-8 in 'a\\xff\\x1b', expected UTF-8"):
            f.kv["bad"]
        with pytest.raises(MtprefError, match=r"key list\[1\]: byte 0xc3 at 0 is not UTF-8"):
            f.kv["list"].to_strings()


F32_PAIR = [tensor("a", (2,)), tensor("b", (2,), 0, 32)]
BAD_FILES = {
    "magic": (b"GGML" + SMALL[4:], "begins with 'GGML', expected 'GGUF': not a GGUF file"),
    "safetensors": (struct.pack("<Q", 30) + b'{"a":' + bytes(30), "perhaps a safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "html": (b"<!DOCTYPE html>", "an HTML page"),
    "byte-swapped": (b"FUGG" + bytes(20), "big-endian"),
    "ggml": (b"lmgg" + bytes(20), "a pre-GGUF ggml file"),
    "ggmf": (b"fmgg" + bytes(20), "a pre-GGUF ggmf file"),
    "ggjt": (b"tjgg" + bytes(20), "a pre-GGUF ggjt file"),
    "ggla": (b"algg" + bytes(20), "a pre-GGUF LoRA adapter"),
    "session": (b"nsgg" + bytes(20), "a saved llama.cpp session"),
    "zip": (b"PK\x03\x04" + bytes(20), "a zip archive, perhaps a PyTorch checkpoint; convert it"),
    "pickle": (b"\x80\x02}q" + bytes(20), "a Python pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "a gzip archive; unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "a zstd archive"),
    "download error": (b"Entry not found", "the error text of a download"),
    "json": (b'{"architectures": ["Q"]}', "a JSON text"),
    "zeros": (bytes(64), "zeros, perhaps an unfinished download"),
    "version 1": (container(version=1), "GGUF version 1, expected 2 or 3"),
    "version 4": (container(version=4), "GGUF version 4, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian GGUF, expected little-endian"),
    "empty": (b"", "the file is empty"),
    "only magic": (b"GGUF", "the version needs 4 bytes at byte 4, 0 are left"),
    "key count": (container(n_kv=2**63), "9223372036854775808 keys declared, expected at most 0"),
    "tensor count": (container(n_tensors=2**40), "tensors declared, expected at most 0"),
    "value type": (container([key("k", 13, bytes(8))]), "key k has value type 13, expected 0 to 12"),
    "element type": (container([key("k", ARR, arr(99, 0))]), "the elements of key k has value type 99"),
    "bool": (container([key("k", BOOL, b"\x02")]), "key k: bool is 2, expected 0 or 1"),
    "same key": (container([key("k", U8, b"\x00")] * 2), "key k appears twice"),
    "key not utf-8": (container([key(b"\xff", U8, b"\x00")]), "the name of key 0 of 1: byte 0xff at 0 is not UTF-8"),
    "key length": (container([text(bytes(70000)) + bytes(5)]), "is 70000 bytes long, expected at most 65535"),
    "string length": (container([key("k", STR, struct.pack("<Q", 2**64 - 1))]), "key k needs 18446744073709551615"),
    "array length": (container([key("k", ARR, arr(F64, 2**61))]), "key k (2305843009213693952 elements) needs"),
    "array string": (
        container([key("k", ARR, arr(STR, 2, text("a") + struct.pack("<Q", 2**64 - 1)))]),
        "key k: string 1 of 2 runs past the end of the file",
    ),
    "alignment 0": (container([key("general.alignment", U32, bytes(4))]), "general.alignment is 0, expected a power"),
    "alignment 48": (container([key("general.alignment", U32, struct.pack("<I", 48))]), "general.alignment is 48"),
    "alignment 4": (container([key("general.alignment", U32, struct.pack("<I", 4))]), "general.alignment is 4"),
    "alignment kind": (container([key("general.alignment", U64, struct.pack("<Q", 32))]), "is of type u64, expected"),
    "no dimensions": (container((), [tensor("a", ()) + bytes(8)]), "tensor a has 0 dimensions, expected 1 to 4"),
    "five dimensions": (container((), [tensor("a", (1,) * 5)]), "tensor a has 5 dimensions"),
    "dimension 0": (container((), [tensor("a", (4, 0))]), "tensor a has dimensions (4, 0), expected positive"),
    "overflow": (container((), [tensor("a", (2**32, 2**32))]), "with a product below 2**63"),
    "row": (container((), [tensor("a", (33,), 8)], bytes(99)), "tensor a has rows of 33 values, expected a multiple"),
    "unaligned": (
        container((), [tensor("a", (1,), 0, 8)], bytes(99)),
        "offset 8, expected a multiple of the alignment",
    ),
    "data cut": (container((), F32_PAIR, bytes(36)), "tensor b ends at byte"),
    "offset": (container((), [tensor("a", (2,), 0, 2**64 - 32)], bytes(64)), "tensor a ends at byte 18446744073"),
    "opaque offset": (container((), [tensor("a", (2,), 77, 2**40)], bytes(64)), "tensor a ends at byte"),
    "same tensor": (container((), [F32_PAIR[0], tensor("a", (2,), 0, 32)], bytes(64)), "tensor a appears twice"),
    "overlap": (container((), [tensor("a", (9,)), F32_PAIR[1]], bytes(64)), "tensors a and b overlap at byte"),
    "fall": (
        container((), [tensor("a", (2,)), tensor("c", (2,), 0, 32), tensor("b", (2,))], bytes(96)),
        "tensor b begins at byte 128, before tensor c at 160, expected tensors in the order",
    ),
    "gap": (container((), [tensor("a", (2,)), tensor("b", (2,), 0, 64)], bytes(96)), "belong to no tensor"),
    "gap at the start": (container((), [tensor("a", (2,), 0, 32)], bytes(96)), "tensor a, the first, begins at"),
    "gap before an unknown type": (
        container((), [tensor("a", (2,)), tensor("b", (2,), 77, 64)], bytes(96)),
        "belong to no tensor",
    ),
    "unknown types on each other": (
        container((), [tensor("a", (2,), 77), tensor("b", (2,), 78)], bytes(96)),
        "tensors a and b overlap",
    ),
    "fall after an unknown type": (
        container((), [tensor("a", (2,)), tensor("b", (2,), 77, 32), tensor("c", (2,))], bytes(96)),
        "tensor c begins at byte 128, before tensor b at 160",
    ),
    "unknown type past the end": (
        container((), [tensor("a", (2,)), tensor("b", (2,), 77, 32)], bytes(32)),
        "tensor b ends at byte",
    ),
    "same offset": (container((), [tensor("a", (2,)), tensor("b", (2,))], bytes(64)), "tensors a and b overlap"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_malformed_files_end_in_one_line(write, case):
    raw, expected = BAD_FILES[case]
    assert expected in refusal(write(raw))


def test_a_directory_says_what_to_give_instead(tmp_path):
    assert refusal(tmp_path).endswith("not a regular file: a directory without config.json, expected a GGUF file")
    (tmp_path / "config.json").write_text("{}")
    line = refusal(tmp_path)
    assert "a Hugging Face model, expected a GGUF file; convert it first: mtpref convert " in line
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert f"a directory with 2 GGUF files, expected one file; give for example {tmp_path / 'a.gguf'}" in refusal(
        tmp_path
    )


def test_what_is_no_file_is_refused(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "absent.gguf")
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_names_from_the_file_cannot_steer_the_terminal(write):
    line = refusal(write(container([key("a\x1b[2J\r\n", 13, b"")])))
    assert "a\\x1b[2J\\r\\n" in line
    assert printable("\u202eabc\x9b\u2028") == "\\u202eabc\\x9b\\u2028"
    assert printable(b"ok\xff") == "ok\\xff"
    assert printable("x" * 500) == "x" * 80 + "..."


def test_limits_on_what_must_be_walked(write, monkeypatch):
    strings = container([key("k", ARR, arr(STR, 9, bytes(72)))])
    monkeypatch.setattr(parse, "MAX_WALKED", 8)
    assert "key k: 9 strings or inner arrays so far, expected at most 8" in refusal(write(strings))
    monkeypatch.setattr(parse, "MAX_NAME_BYTES", 30)
    assert "all names so far take 34 bytes, expected at most 30" in refusal(write(SMALL))
    monkeypatch.setattr(parse, "MAX_KEYS", 3)
    assert "6 keys declared, expected at most 3" in refusal(write(SMALL))


def test_a_declared_length_is_never_allocated(write):
    """Lengths of 2**40 and more in every place that has one; the peak stays small."""
    huge = struct.pack("<Q", 2**40)
    cases = [
        container(n_kv=2**40), container(n_tensors=2**40), container([huge + bytes(40)]),
        container([key("k", STR, huge)]), container([key("k", ARR, arr(U8, 2**40))]),
        container([key("k", ARR, arr(STR, 2**40))]), container([key("k", ARR, arr(ARR, 2**40, bytes(90)))]),
        container((), [huge + bytes(40)]), container((), [tensor("a", (2**40,))], bytes(64)),
    ]  # fmt: skip
    tracemalloc.start()
    for raw in cases:
        refusal(write(raw))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def read_everything(raw: bytes, tmp_path: Path) -> None:
    """Open a file, decode every value and view every tensor: all may be refused, nothing else may happen."""
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(raw)
    with one_line_refusals(), open_gguf(path) as f:
        for name in f.kv:
            with one_line_refusals():
                value = f.kv[name]
                if isinstance(value, GgufArray):
                    value[-1:]
                    list(value)
        for info in f.tensors.values():
            if info.n_bytes is not None:
                assert f.data(info).size == info.n_bytes


@contextlib.contextmanager
def one_line_refusals():
    lines = []
    try:
        yield
    except MtprefError as e:
        lines = str(e).splitlines()
    assert len(lines) <= 1


def test_truncation_at_every_byte_is_refused(write):
    needed = len(SMALL)
    for n in range(needed):
        refusal(write(SMALL[:n]))


def test_one_changed_byte_anywhere_raises_nothing_but_a_refusal(tmp_path):
    for i in range(len(SMALL)):
        for change in (0x01, 0x80, 0xFF):
            raw = bytearray(SMALL)
            raw[i] ^= change
            read_everything(bytes(raw), tmp_path)


EDITS = st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)


@settings(derandomize=True, max_examples=some_examples(400), deadline=None)
@given(edits=EDITS, cut=st.integers(0, len(SMALL)))
def test_mutated_files_raise_nothing_but_a_refusal(tmp_path_factory, edits, cut):
    raw = bytearray(SMALL)
    for at, new in edits:
        raw[at : at + len(new)] = new
    read_everything(bytes(raw[: cut or None]), tmp_path_factory.getbasetemp())


@settings(derandomize=True, max_examples=some_examples(200), deadline=None)
@given(body=st.binary(max_size=200), version=st.sampled_from([2, 3]), n_kv=st.integers(0, 4))
def test_random_headers_raise_nothing_but_a_refusal(tmp_path_factory, body, version, n_kv):
    raw = b"GGUF" + struct.pack("<IQQ", version, 1, n_kv) + body
    read_everything(raw, tmp_path_factory.getbasetemp())


def test_opening_a_large_string_array_copies_none_of_it(write):
    """200,000 strings: opening walks them in place, so its peak is far below the array's 5 MB."""
    raw = container([key("tokens", ARR, arr(STR, 200_000, text(b"0123456789abcdef") * 200_000))])
    path = write(raw)
    tracemalloc.start()
    f = open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(f.kv["tokens"]) == 200_000
    assert f.kv["tokens"][199_999] == "0123456789abcdef"
    assert peak < 1 << 20
    f.close()


def test_a_refused_file_is_unmapped(write, monkeypatch):
    opened = []
    real = doors.Mapping
    monkeypatch.setattr(doors, "Mapping", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])
    refusal(write(container(version=4)))
    assert [m.closed for m in opened] == [True]
