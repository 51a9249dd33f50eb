"""npz and safetensors: what is written comes back, other programs agree, damaged files are refused."""

import io
import json
import zipfile

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.tensor_files import NpzFile, SafetensorsFile, write_npz, write_safetensors, write_whole
from mtpref.files.tensor_files import npz as npz_module

TENSORS = {
    "case/out.x": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([[1.5, -2.0]], np.float16),
    "ids": np.array([1, 2, 3], np.int32),
    "bytes": np.arange(5, dtype=np.uint8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize(
    ("write", "reader", "suffix"), [(write_npz, NpzFile, "npz"), (write_safetensors, SafetensorsFile, "safetensors")]
)
def test_arrays_come_back_as_they_were(tmp_path, write, reader, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path, TENSORS)
    file = reader(path)
    assert set(file.names) == set(TENSORS)
    for name, array in TENSORS.items():
        found = file.values(name)
        assert file.shape(name) == array.shape
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    file.close()
    first = path.read_bytes()
    write(path, TENSORS)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_numpy_reads_and_writes_the_same_npz(tmp_path):
    write_npz(tmp_path / "a.npz", TENSORS)
    with np.load(tmp_path / "a.npz") as loaded:
        assert all(np.array_equal(loaded[name], array) for name, array in TENSORS.items())
    fortran = np.asfortranarray(TENSORS["case/out.x"])
    np.savez_compressed(tmp_path / "b.npz", x=fortran, big=fortran.astype(">f8"))
    file = NpzFile(tmp_path / "b.npz")
    assert np.array_equal(file.values("x"), fortran)
    assert np.array_equal(file.values("big"), fortran)
    np.save(tmp_path / "l_out-3.npy", fortran)
    assert NpzFile(tmp_path / "l_out-3.npy").names == ["l_out-3"]
    assert np.array_equal(NpzFile(tmp_path / "l_out-3.npy").values("l_out-3"), fortran)


def test_the_safetensors_package_reads_and_writes_the_same_files(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    loaded = package.load_file(tmp_path / "a.safetensors")
    assert all(np.array_equal(loaded[name], array) for name, array in TENSORS.items())
    package.save_file(TENSORS, tmp_path / "b.safetensors", metadata={"made": "elsewhere"})
    file = SafetensorsFile(tmp_path / "b.safetensors")
    assert set(file.names) == set(TENSORS)
    assert all(np.array_equal(file.values(name), array) for name, array in TENSORS.items())


def test_bf16_is_kept_and_read_as_float32(tmp_path):
    bits = np.array([[0x3F80, 0xC020]], np.uint16)
    write_safetensors(tmp_path / "a.safetensors", {"x": bits}, frozenset({"x"}))
    assert SafetensorsFile(tmp_path / "a.safetensors").values("x").tolist() == [[1.0, -2.5]]


def damaged_npz():
    """(name, bytes) of .npz files that must be refused when they are opened or read."""
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(6, dtype=np.float32))
    good = buffer.getvalue()
    yield "cut", good[: len(good) // 2]
    yield "crc", good[:150] + bytes([good[150] ^ 1]) + good[151:]

    def packed(raw: bytes, name: str = "x.npy") -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, raw)
        return out.getvalue()

    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    yield "no-arrays", packed(b"hello", "readme.txt")
    yield "no-npy", packed(b"hello")
    yield "claims-much", packed(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n"))
    yield "negative", packed(header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"))
    yield "objects", packed(header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"cos\nsystem\n")
    yield "records", packed(header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n") + bytes(4))
    yield "code", packed(header("__import__('os')\n"))
    yield "long-header", packed(b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 50)


@pytest.mark.parametrize(("name", "raw"), list(damaged_npz()), ids=[name for name, _ in damaged_npz()])
def test_damaged_npz_files_are_refused_with_one_line(tmp_path, name, raw):
    path = tmp_path / f"{name}.npz"
    path.write_bytes(raw)
    with pytest.raises(MtprefError) as caught:
        NpzFile(path).values("x")
    assert "\n" not in str(caught.value)
    assert "numpy.save" in str(caught.value)


def test_a_member_that_unpacks_to_far_more_than_the_file_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(1 << 18, np.float32))
    assert not NpzFile(tmp_path / "zeros.npz").values("x").any()
    monkeypatch.setattr(npz_module, "FREE_BYTES", 1 << 16)
    with pytest.raises(MtprefError, match="unpacks to 1048704 bytes"):
        NpzFile(tmp_path / "zeros.npz").values("x")


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x00" * 7, (1 << 60).to_bytes(8, "little") + b"{", safetensors_bytes(b"{"), safetensors_bytes([1]),
        safetensors_bytes(entry(), bytes(4)), safetensors_bytes(entry(dtype="F4"), bytes(8)),
        safetensors_bytes(entry(shape=[3]), bytes(8)), safetensors_bytes(entry(shape=[-2, -1]), bytes(8)),
        safetensors_bytes(entry(shape=[2.0]), bytes(8)), safetensors_bytes(entry(data_offsets=[8, 0]), bytes(8)),
        safetensors_bytes(entry(data_offsets=[1 << 60, (1 << 60) + 8]), bytes(8)),
        safetensors_bytes({"x": 5}), safetensors_bytes({"x": {}}), safetensors_bytes(b"[" * 100_000),
        safetensors_bytes(b"\xff\xfe{}"), safetensors_bytes(entry(shape=[1] * 99), bytes(8)),
    ],
)  # fmt: skip
def test_damaged_safetensors_files_are_refused_with_one_line(tmp_path, raw):
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(MtprefError, match=r"expected a \.safetensors file") as caught:
        SafetensorsFile(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise MtprefError("no")

    with pytest.raises(MtprefError):
        write_whole(tmp_path / "a", fail)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(MtprefError, match="expected a file name"):
        write_whole(tmp_path, b"x")
