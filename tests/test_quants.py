"""Block formats: sizes, bit equality with the gguf package on made and on random bytes, refusals."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtpref import quants
from mtpref.errors import MtprefError

gguf = pytest.importorskip("gguf")
gguf_quants = pytest.importorskip("gguf.quants")

SPECIAL_HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF], "<u2"
)
HALF_AT = {"Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}


def reference(type_name: str, raw: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gguf_quants.dequantize(raw.copy(), gguf.GGMLQuantizationType[type_name])


def assert_same_bits(expected: np.ndarray, found: np.ndarray) -> None:
    """Equal bits; where the expected value is NaN the found one must be NaN too (payloads are the CPU's)."""
    expected, found = expected.reshape(-1), found.reshape(-1)
    nan = np.isnan(expected)
    assert np.array_equal(nan, np.isnan(found))
    assert np.array_equal(expected.view(np.uint32)[~nan], found.view(np.uint32)[~nan])


def random_rows(type_name: str, n_rows: int, n: int, seed: int) -> np.ndarray:
    size = (n_rows, quants.row_bytes(type_name, n))
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def test_every_type_of_the_gguf_package_has_its_id_and_sizes():
    for type_id, (elements, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        ours = quants.TYPES[int(type_id)]
        assert (ours.name, ours.block_elements, ours.block_bytes) == (type_id.name, elements, n_bytes)
        assert quants.TYPE_IDS[type_id.name] == int(type_id)


def test_q2_0_has_a_size_though_older_gguf_packages_lack_it():
    assert quants.TYPES[42] == quants.QuantType(42, "Q2_0", 64, 18)


@pytest.mark.parametrize("type_name", quants.DEQUANTIZABLE)
def test_dequantize_equals_gguf_on_random_bytes(type_name):
    raw = random_rows(type_name, 40, 1024, 1)
    found = quants.dequantize(type_name, raw.reshape(-1), (40, 1024))
    assert found.dtype == np.float32
    assert found.shape == (40, 1024)
    assert_same_bits(reference(type_name, raw), found)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "Q6_K"])
def test_dequantize_equals_gguf_on_special_scales(type_name):
    t = quants.TYPES[quants.TYPE_IDS[type_name]]
    raw = random_rows(type_name, len(SPECIAL_HALVES), t.block_elements, 2)
    for i, at in enumerate(HALF_AT[type_name]):
        raw[:, at : at + 2] = np.roll(SPECIAL_HALVES, i).view(np.uint8).reshape(-1, 2)
    found = quants.dequantize(type_name, raw, (len(raw), t.block_elements))
    assert_same_bits(reference(type_name, raw), found)


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_all_65536_halves_decode_as_in_gguf(type_name):
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    found = quants.dequantize(type_name, raw, (1 << 16,))
    assert_same_bits(reference(type_name, raw.reshape(1, -1)), found)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.sampled_from(["Q8_0", "Q4_K", "Q6_K"]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_dequantize_equals_gguf_for_any_shape(type_name, n_rows, n_blocks, seed):
    n = n_blocks * quants.TYPES[quants.TYPE_IDS[type_name]].block_elements
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
        assert [a.tolist() for a in quants.q4_k_scales(raw)] == [[scales], [mins]]
        assert quants.q4_k_quants(raw).tolist() == [values]


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
    assert whole.size > quants._CHUNK_ELEMENTS
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
def test_q8_0_refuses_what_its_scale_cannot_hold(bad):
    x = np.ones(32, np.float32)
    x[3] = bad
    with pytest.raises(MtprefError, match="Q8_0: a block holds NaN, infinity or a value beyond"):
        quants.quantize("Q8_0", x)


def test_refusals_name_what_is_wrong_and_what_is_there():
    with pytest.raises(MtprefError, match=r"tensor type IQ2_XS: no decoder, expected one of F32, F16, BF16, Q8_0"):
        quants.dequantize("IQ2_XS", np.zeros(74, np.uint8), (256,))
    with pytest.raises(MtprefError, match="tensor type Q4_K: no encoder, expected one of F32, F16, BF16, Q8_0"):
        quants.quantize("Q4_K", np.zeros((1, 256), np.float32))
    with pytest.raises(MtprefError, match=r"Q8_0 tensor of shape \(2, 32\): 67 bytes, expected 68"):
        quants.dequantize("Q8_0", np.zeros(67, np.uint8), (2, 32))
    with pytest.raises(MtprefError, match="Q4_K: row of 32 values, expected a multiple of its block size 256"):
        quants.dequantize("Q4_K", np.zeros(18, np.uint8), (8, 32))
