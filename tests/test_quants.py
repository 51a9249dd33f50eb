"""Block formats: sizes, bit equality with the gguf package on made and on random bytes, refusals."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtpref.base.errors import MtprefError
from mtpref.spec import quants
from mtpref.spec.quants import codec
from tests import naive
from tests.blocks import BLOCK, HALVES, QUANTISED, random_bytes, sane_blocks, set_halves

gguf = pytest.importorskip("gguf")
gguf_quants = pytest.importorskip("gguf.quants")

SPECIAL_HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF], "<u2"
)


FEW_BITS = ("Q1_0", "Q2_0")  # that the gguf package cannot decode


def reference(type_name: str, raw: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if type_name in FEW_BITS:
            return naive.few_bits(type_name, raw).astype(np.float32)
        return gguf_quants.dequantize(raw.copy(), gguf.GGMLQuantizationType[type_name])


def assert_same_bits(expected: np.ndarray, found: np.ndarray) -> None:
    """Equal bits; where the expected value is NaN the found one must be NaN too (payloads are the CPU's)."""
    expected, found = expected.reshape(-1), found.reshape(-1)
    nan = np.isnan(expected)
    assert np.array_equal(nan, np.isnan(found))
    assert np.array_equal(expected.view(np.uint32)[~nan], found.view(np.uint32)[~nan])


def random_rows(type_name: str, n_rows: int, n: int, seed: int) -> np.ndarray:
    return random_bytes(np.random.default_rng(seed), type_name, n_rows, n)


def test_everything_that_gguf_dequantises_is_dequantised_here():
    theirs = {t.name for t in gguf_quants._type_traits} | {"F32", "F16"}
    assert theirs <= set(quants.DEQUANTIZABLE)
    assert set(QUANTISED) | {"F32", "F16", "BF16"} == set(quants.DEQUANTIZABLE)


def test_every_type_of_the_gguf_package_has_its_id_and_sizes():
    for type_id, (elements, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        n_bytes = 36 if type_id.name == "Q8_1" else n_bytes  # ggml's block_q8_1 holds two float16; the package says 40
        ours = quants.TYPES[int(type_id)]
        assert (ours.name, ours.block_elements, ours.block_bytes) == (type_id.name, elements, n_bytes)
        assert quants.TYPE_IDS[type_id.name] == int(type_id)


def test_q2_0_has_a_size_though_older_gguf_packages_lack_it():
    assert quants.TYPES[42] == quants.QuantType(42, "Q2_0", 64, 18)


def test_q1_0_and_q2_0_blocks_made_by_hand():
    half = np.array([0.5], "<f2").view(np.uint8)
    codes = [(7 * i + i // 5) % 4 for i in range(64)]
    packed = [sum(codes[4 * i + g] << 2 * g for g in range(4)) for i in range(16)]
    raw = np.concatenate([half, np.array(packed, np.uint8)])
    assert quants.dequantize("Q2_0", raw, (64,)).tolist() == [0.5 * (code - 1) for code in codes]
    bits = [(i * i + i // 3) % 2 for i in range(128)]
    packed = [sum(bits[8 * i + g] << g for g in range(8)) for i in range(16)]
    raw = np.concatenate([half, np.array(packed, np.uint8)])
    assert quants.dequantize("Q1_0", raw, (128,)).tolist() == [0.5 if bit else -0.5 for bit in bits]


@pytest.mark.parametrize("type_name", quants.DEQUANTIZABLE)
def test_dequantize_equals_gguf_on_random_bytes(type_name):
    raw = random_rows(type_name, 40, 1024, 1)
    found = quants.dequantize(type_name, raw.reshape(-1), (40, 1024))
    assert found.dtype == np.float32
    assert found.shape == (40, 1024)
    assert_same_bits(reference(type_name, raw), found)


@pytest.mark.parametrize("type_name", [name for name in QUANTISED if HALVES[name]])
def test_dequantize_equals_gguf_on_special_scales(type_name):
    raw = random_rows(type_name, 3 * len(SPECIAL_HALVES), BLOCK[type_name], 2)
    set_halves(raw, type_name, SPECIAL_HALVES.view(np.float16))
    found = quants.dequantize(type_name, raw, (len(raw), BLOCK[type_name]))
    assert not np.isfinite(found).all()
    assert_same_bits(reference(type_name, raw), found)


@pytest.mark.parametrize("type_name", ["MXFP4", "NVFP4"])
def test_every_byte_as_a_scale_dequantises_as_in_gguf(type_name):
    raw = random_rows(type_name, 256, BLOCK[type_name], 4)
    for at in range(1 if type_name == "MXFP4" else 4):
        raw[:, at] = np.roll(np.arange(256), at)
    assert_same_bits(reference(type_name, raw), quants.dequantize(type_name, raw, (256, BLOCK[type_name])))


@pytest.mark.parametrize("type_name", QUANTISED)
def test_dequantize_equals_libgguf(type_name):
    """ggml's own C decoders, on blocks with finite scales and on random bytes."""
    libgguf = pytest.importorskip("libgguf", reason="pip install libgguf: ggml's quantisers as a Python package")
    if quants.TYPE_IDS[type_name] not in {int(id) for id in libgguf.GGML_QUANT_SIZES}:
        pytest.skip(f"this libgguf has no {type_name}")
    rng = np.random.default_rng(6)
    for make in (sane_blocks, random_bytes):
        raw = make(rng, type_name, 8, 2 * 256)
        theirs = libgguf.dequantize_rows(raw, quants.TYPE_IDS[type_name])
        assert_same_bits(theirs, quants.dequantize(type_name, raw, (8, 512)))


@pytest.mark.parametrize("type_name", QUANTISED)
def test_rows_and_views_decode_apart_as_together(type_name):
    """A tile of rows holds the same values as the whole tensor."""
    raw = sane_blocks(np.random.default_rng(7), type_name, 5, 512)
    whole = quants.dequantize(type_name, raw, (5, 512))
    assert np.isfinite(whole).all()
    assert np.abs(whole).max() > 0
    assert_same_bits(whole[2:4], quants.dequantize(type_name, raw[2:4], (2, 512)))


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_all_65536_halves_decode_as_in_gguf(type_name):
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    found = quants.dequantize(type_name, raw, (1 << 16,))
    assert_same_bits(reference(type_name, raw.reshape(1, -1)), found)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sampled_from(QUANTISED), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_dequantize_equals_gguf_for_any_shape(type_name, n_rows, n_blocks, seed):
    n = n_blocks * BLOCK[type_name]
    raw = random_rows(type_name, n_rows, n, seed)
    assert_same_bits(reference(type_name, raw), quants.dequantize(type_name, raw.reshape(-1), (n_rows, n)))


def test_q8_0_block_made_by_hand():
    raw = np.concatenate([np.array([0.5], "<f2").view(np.uint8), np.arange(-16, 16, dtype=np.int8).view(np.uint8)])
    assert quants.dequantize("Q8_0", raw, (32,)).tolist() == [0.5 * i for i in range(-16, 16)]


def test_q4_k_block_made_by_hand():
    """Scales 1..8 with mins 8..1, then the six-bit extremes, against the layout written out bit by bit."""
    for scales, mins in ([1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]), ([63, 0] * 4, [0, 63] * 4):
        packed = [0] * 12
        for j in range(4):
            packed[j] = scales[j] | (scales[j + 4] >> 4) << 6
            packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
            packed[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4
        values = [(7 * i) % 16 for i in range(256)]
        qs = [values[64 * g + i] | values[64 * g + 32 + i] << 4 for g in range(4) for i in range(32)]
        halves = np.array([2.0, 0.25], "<f2").view(np.uint8)
        raw = np.concatenate([halves, np.array(packed + qs, np.uint8)])
        expected = [2.0 * scales[i // 32] * values[i] - 0.25 * mins[i // 32] for i in range(256)]
        assert quants.dequantize("Q4_K", raw, (256,)).tolist() == expected
        assert [a.tolist() for a in quants.q4_k_scales(raw.reshape(1, 144))] == [[scales], [mins]]
        assert quants.q4_k_quants(raw).tolist() == [values]


def test_q4_0_and_q5_0_blocks_made_by_hand():
    half = np.array([0.5], "<f2").view(np.uint8)
    values = [(7 * i) % 16 for i in range(32)]
    qs = [values[i] | values[16 + i] << 4 for i in range(16)]
    raw = np.concatenate([half, np.array(qs, np.uint8)])
    assert quants.dequantize("Q4_0", raw, (32,)).tolist() == [0.5 * (v - 8) for v in values]
    values = [(11 * i) % 32 for i in range(32)]
    qs = [values[i] & 15 | (values[16 + i] & 15) << 4 for i in range(16)]
    qh = sum((v >> 4) << i for i, v in enumerate(values)).to_bytes(4, "little")
    raw = np.concatenate([half, np.frombuffer(qh, np.uint8), np.array(qs, np.uint8)])
    assert quants.dequantize("Q5_0", raw, (32,)).tolist() == [0.5 * (v - 16) for v in values]
    minimum = np.array([0.5, -3.0], "<f2").view(np.uint8)
    raw = np.concatenate([minimum, np.frombuffer(qh, np.uint8), np.array(qs, np.uint8)])
    assert quants.dequantize("Q5_1", raw, (32,)).tolist() == [0.5 * v - 3 for v in values]


def test_q2_k_block_made_by_hand():
    values = [(5 * i) % 4 for i in range(256)]
    qs = [0] * 64
    for e, value in enumerate(values):
        qs[32 * (e // 128) + e % 32] |= value << 2 * (e % 128 // 32)
    scales, mins = list(range(16)), list(range(15, -1, -1))
    packed = [scale | minimum << 4 for scale, minimum in zip(scales, mins, strict=True)]
    raw = np.concatenate([np.array(packed + qs, np.uint8), np.array([2.0, 0.25], "<f2").view(np.uint8)])
    expected = [2.0 * scales[i // 16] * values[i] - 0.25 * mins[i // 16] for i in range(256)]
    assert quants.dequantize("Q2_K", raw, (256,)).tolist() == expected


def test_q3_k_block_made_by_hand():
    values = [(5 * i) % 8 - 4 for i in range(256)]
    scales = [(9 * j) % 64 - 32 for j in range(16)]
    qs, hmask, packed = [0] * 64, [0] * 32, [0] * 12
    for e, value in enumerate(values):
        h, g, i = e // 128, e % 128 // 32, e % 32
        qs[32 * h + i] |= (value + 4 & 3) << 2 * g
        hmask[i] |= (value + 4 >> 2) << 4 * h + g
    for j, scale in enumerate(scales):
        packed[j % 8] |= (scale + 32 & 15) << 4 * (j // 8)
        packed[8 + j % 4] |= (scale + 32 >> 4) << 2 * (j // 4)
    half = np.array([0.5], "<f2").view(np.uint8)
    raw = np.concatenate([np.array(hmask + qs + packed, np.uint8), half])
    assert quants.dequantize("Q3_K", raw, (256,)).tolist() == [0.5 * scales[i // 16] * values[i] for i in range(256)]
    assert quants.q3_k_scales(raw).tolist() == [scales]
    assert quants.q3_k_quants(raw).tolist() == [values]


def test_q5_k_block_is_a_q4_k_block_with_fifth_bits():
    rng = np.random.default_rng(8)
    q4, high = sane_blocks(rng, "Q4_K", 1, 256)[0], rng.integers(0, 2, 256, dtype=np.uint8)
    qh = np.zeros(32, np.uint8)
    for e in range(256):
        qh[e % 32] |= high[e] << e // 32
    raw = np.concatenate([q4[:16], qh, q4[16:]])
    assert np.array_equal(quants.q5_k_quants(raw), quants.q4_k_quants(q4) + 16 * high)
    raw[16:48] = 0
    assert np.array_equal(quants.dequantize("Q5_K", raw, (256,)), quants.dequantize("Q4_K", q4, (256,)))


def test_q6_k_block_made_by_hand():
    values = [(11 * i) % 64 - 32 for i in range(256)]
    ql, qh = [0] * 128, [0] * 64
    for e, value in enumerate(values):
        h, quarter, i = e // 128, e % 128 // 32, e % 32
        ql[64 * h + 32 * (quarter % 2) + i] |= ((value + 32) & 15) << 4 * (quarter // 2)
        qh[32 * h + i] |= (value + 32) >> 4 << 2 * quarter
    scales = np.arange(-8, 8, dtype=np.int8)
    half = np.array([0.5], "<f2").view(np.uint8)
    raw = np.concatenate([np.array(ql + qh, np.uint8), scales.view(np.uint8), half])
    expected = [0.5 * float(scales[i // 16]) * values[i] for i in range(256)]
    assert quants.dequantize("Q6_K", raw, (256,)).tolist() == expected
    assert quants.q6_k_scales(raw).tolist() == [scales.tolist()]
    assert quants.q6_k_quants(raw).tolist() == [values]


def test_dequantize_of_more_than_one_chunk_keeps_the_order():
    raw = random_rows("Q8_0", 300, 1024, 3)
    whole = quants.dequantize("Q8_0", raw, (300, 1024))
    one_row = quants.dequantize("Q8_0", raw[299], (1024,))
    assert whole.size > codec.CHUNK_ELEMENTS
    assert_same_bits(one_row, whole[299])


ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 96])),
    elements=st.floats(-3e4, 3e4, width=32),
)


@pytest.mark.parametrize("type_name", quants.QUANTIZABLE)
@settings(derandomize=True, max_examples=40, deadline=None)
@given(x=ROWS)
def test_quantize_equals_gguf(type_name, x):
    blocks = x.reshape(-1, 32)
    blocks += np.float32(0)  # gguf takes the sign of a zero scale from the last zero, ggml from the first
    blocks[np.abs(blocks).max(axis=1) < 1e-36] = 0  # there 1 / d overflows and the C conversion is undefined
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = gguf_quants.quantize(x, gguf.GGMLQuantizationType[type_name]).view(np.uint8)
    assert np.array_equal(expected, quants.quantize(type_name, x))


def test_q8_0_rounds_halves_away_from_zero():
    x = np.array([127.0, 0.5, -0.5, 1.5, 2.5, -2.5] + [0.0] * 26, np.float32)
    assert quants.quantize("Q8_0", x)[2:8].view(np.int8).tolist() == [127, 1, -1, 2, 3, -3]


def test_q8_0_of_values_too_small_for_the_scale_is_zero():
    raw = quants.quantize("Q8_0", np.full(32, 1e-40, np.float32))
    assert raw.tolist() == [0] * 34


def test_bf16_rounds_to_even_and_keeps_nan_quiet():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F800000, 0x7F800001, 0xFF7FFFFF], np.uint32)
    raw = quants.quantize("BF16", bits.view(np.float32)).view("<u2")
    assert [hex(v) for v in raw] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7fc0", "0xff80"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("type_name", quants.LEGACY_TYPES)
def test_blocks_that_a_float16_scale_cannot_hold_are_refused(type_name, bad):
    x = np.ones(32, np.float32)
    x[3] = bad
    with pytest.raises(MtprefError, match=f"{type_name}: a block holds NaN, infinity or values too great"):
        quants.quantize(type_name, x)


@pytest.mark.parametrize("type_name", quants.LEGACY_TYPES)
def test_encoded_weights_are_within_a_step(type_name):
    x = np.random.default_rng(9).standard_normal((50, 32)).astype(np.float32)
    y = quants.dequantize(type_name, quants.quantize(type_name, x), (50, 32))
    n_steps = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}[type_name]
    span = x.max(axis=1) - x.min(axis=1) if type_name.endswith("_1") else np.abs(x).max(axis=1)
    steps = np.abs(y - x).max(axis=1) / (span / n_steps)
    assert steps.max() < (1.01 if type_name in ("Q4_0", "Q5_0") else 0.52)  # codes end at +7 (+15) but at -8 (-16)


def test_refusals_name_what_is_wrong_and_what_is_there():
    with pytest.raises(
        MtprefError, match=r"tensor type Q8_1: no decoder, expected one of F32, F16, BF16, Q4_0.*requantise"
    ):
        quants.dequantize("Q8_1", np.zeros(36, np.uint8), (32,))
    with pytest.raises(MtprefError, match="tensor type Q4_K: no encoder, expected one of F32, F16, BF16, Q4_0"):
        quants.quantize("Q4_K", np.zeros((1, 256), np.float32))
    with pytest.raises(MtprefError, match=r"Q8_0 tensor of shape \(2, 32\): 67 bytes, expected 68"):
        quants.dequantize("Q8_0", np.zeros(67, np.uint8), (2, 32))
    with pytest.raises(MtprefError, match="Q4_K: row of 32 values, expected a multiple of its block size 256"):
        quants.dequantize("Q4_K", np.zeros(18, np.uint8), (8, 32))


def test_a_grid_type_without_the_gguf_package_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MtprefError, match=r"tensor type IQ3_S: .*gguf package.*pip install gguf"):
        quants.dequantize("IQ3_S", np.zeros(110, np.uint8), (256,))
