"""--check-tensors: every float of every type, named by tensor, place and field, in bounded memory."""

import tracemalloc

import numpy as np
import pytest

import mtpref.files.finite_weights as room
from mtpref.base.errors import MtprefError
from mtpref.files.finite_weights import FIELDS, check_tensors
from mtpref.files.gguf import open_gguf, write_gguf, write_shards
from mtpref.spec.quants import TYPE_IDS, TYPES

# Encodings by the bytes of a field: (NaN, infinity, the largest finite number).
ENCODINGS = {
    room._bad_f16: (b"\x01\x7c", b"\x00\xfc", b"\xff\x7b"),
    room._bad_bf16: (b"\xc0\xff", b"\x80\x7f", b"\x7f\x7f"),
    room._bad_f32: (b"\x01\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"),
    room._bad_f64: (b"\x01" + bytes(5) + b"\xf0\x7f", bytes(6) + b"\xf0\xff", b"\xff" * 6 + b"\xef\x7f"),
    room._bad_e8m0: (b"\xff", None, b"\xfe"),
    # nibbles 0, 1, 2, 3 of the float16 are the top nibbles of the four words
    room._bad_iq1_m: (
        b"\xff\x1f\x00\x00\x00\xc0\x00\x70",
        b"\xff\x0f\x00\x00\x00\xc0\x00\xf0",
        b"\xff" * 5 + b"\xbf\xff\x7f",
    ),
}
CASES = [(name, i) for name, fields in FIELDS.items() for i in range(len(fields))]


def write(path, type_name, blocks, shape):
    write_gguf(path, [], [("a", "F32", (2,), np.ones(2, np.float32)), ("w", type_name, shape, blocks.reshape(-1))])
    return path


def line_of(path):
    with open_gguf(path) as f, pytest.raises(MtprefError) as caught:
        check_tensors(f, f.tensors)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_every_type_with_floats_is_known():
    without = {"I8", "I16", "I32", "I64", "NVFP4", "Q8_1"}  # Q8_1 is for activations only: no file holds it
    assert set(FIELDS) == set(TYPE_IDS) - without
    for name, fields in FIELDS.items():
        for field in fields:
            assert field.at + field.size <= TYPES[TYPE_IDS[name]].block_bytes


@pytest.mark.parametrize(("name", "i"), CASES)
def test_a_float_that_is_not_finite_is_named(tmp_path, name, i):
    t, field = TYPES[TYPE_IDS[name]], FIELDS[name][i]
    n_row = 3
    nan, infinite, largest = ENCODINGS[field.is_bad]
    for value, word in ((nan, "NaN"), (infinite, "infinite"), (largest, None)):
        if value is None:
            continue
        blocks = np.zeros((4 * n_row, t.block_bytes), np.uint8)
        blocks[7, field.at : field.at + field.size] = np.frombuffer(value, np.uint8)
        path = write(tmp_path / "m.gguf", name, blocks, (4, n_row * t.block_elements))
        if word is None:
            with open_gguf(path) as f:
                assert check_tensors(f, f.tensors) == 8 + blocks.size
            continue
        line = line_of(path)
        assert f"tensor w ({name}): row 2, " in line
        place = "value 1:" if t.block_elements == 1 else f"block 1 (values {t.block_elements} .. "
        assert place in line
        assert f"{field.name} is {word}, expected a finite number;" in line


def test_integers_of_a_block_are_never_wrong(tmp_path):
    """All bytes 0xff but the scale."""
    blocks = np.full((2, 34), 0xFF, np.uint8)
    blocks[:, :2] = 0
    with open_gguf(write(tmp_path / "m.gguf", "Q8_0", blocks, (2, 32))) as f:
        check_tensors(f, f.tensors)


@pytest.mark.parametrize("piece", [1, 34, 100, 1 << 22])
def test_the_first_place_and_the_count_do_not_depend_on_the_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(room, "PIECE", piece)
    blocks = np.zeros((40, 144), np.uint8)
    blocks[9, 2:4] = (0, 0x7C)
    blocks[13, 0:2] = (1, 0x7C)
    blocks[39, 0:2] = (1, 0xFC)
    line = line_of(write(tmp_path / "m.gguf", "Q4_K", blocks, (8, 5 * 256)))
    assert "row 1, block 4 (values 1024 .. 1279): minimum scale dmin is infinite" in line
    assert "and 2 more in this tensor" in line


def test_a_vector_has_no_row(tmp_path):
    values = np.array([0, np.inf, np.nan], np.float32)
    assert "tensor w (F32): value 1: value is infinite" in line_of(
        write(tmp_path / "m.gguf", "F32", values.view(np.uint8), (3,))
    )


def test_only_the_tensors_asked_for_are_read(tmp_path):
    bad = np.array([np.nan], np.float32)
    write_gguf(tmp_path / "m.gguf", [], [("good", "F32", (1,), np.ones(1, np.float32)), ("bad", "F32", (1,), bad)])
    with open_gguf(tmp_path / "m.gguf") as f:
        assert check_tensors(f, ["good"]) == 4
        with pytest.raises(MtprefError, match="tensor bad"):
            check_tensors(f, ["good", "bad"])


def test_a_large_tensor_is_read_in_pieces(tmp_path):
    n = 24 << 20
    write_gguf(tmp_path / "m.gguf", [], [("w", "F16", (n // 1024, 1024), lambda: np.zeros(n, np.float16))])
    with open_gguf(tmp_path / "m.gguf") as f:
        tracemalloc.start()
        assert check_tensors(f, f.tensors) == 2 * n
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * room.PIECE


def test_views_stay_valid_behind_the_check(tmp_path):
    values = np.arange(1 << 16, dtype=np.float32)
    paths = write_shards(tmp_path / "m", [], [("w", "F32", (1 << 16,), values)], max_tensors=1, first_is_empty=True)
    with open_gguf(paths[0]) as f:
        view = f.data("w")
        check_tensors(f, ["w"])
        assert np.array_equal(view.view("<f4"), values)
