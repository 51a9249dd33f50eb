"""Single quantised matrices: the values that the programs' own libraries give for parts that they made or read.

tests/data/checkpoints.npz holds both (tools/record_checkpoints.py). A library that gives BF16 or F16 has rounded the
product of code and scale to it; here it is float32's, so that rounding it once must give the library's bits.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.files.tensor_files.safetensors import SafetensorsFile, write_safetensors
from mtpref.heads.hf.formats import Declared, Raw, recognise, transposed
from mtpref.heads.hf.formats.declared import Scheme
from mtpref.spec.quants import dequantize
from tests import quantised_folder as made
from tests.hf_folder import bf16_bits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import record_checkpoints as recorder
finally:
    sys.path.pop(0)

DATA = Path(__file__).parent / "data" / "checkpoints.npz"


def cases():
    """Case -> part -> (array, its type where NumPy has no name for it)."""
    out = {}
    for key, array in np.load(DATA).items():
        case, part, *kind = key.split("|")
        out.setdefault(case, {})[part] = (array, kind[0] if kind else "")
    return out


RECORDED = cases()


def write_parts(path, parts):
    arrays = {f"x.{part}": array for part, (array, _) in parts.items()}
    small = {f"x.{part}": kind for part, (_, kind) in parts.items() if kind.startswith("F8")}
    bf16 = frozenset(f"x.{part}" for part, (_, kind) in parts.items() if kind == "BF16")
    write_safetensors(path, arrays, bf16, small)


def stored(tmp_path, parts, said=None):
    """The tensor that a file of these parts holds."""
    write_parts(tmp_path / "model.safetensors", parts)
    raw = Raw("x", {"model.safetensors": SafetensorsFile(tmp_path / "model.safetensors")})
    tensors, _ = recognise(raw, said or Declared())
    (tensor,) = tensors.values()
    assert tensor.fault is None
    return tensor


def rounded(x, kind, dtype):
    """Float32 values in a library's type."""
    return bf16_bits(x) if kind == "BF16" else x.astype(dtype)


def said_of(case):
    if case == "compressed-tensors fp8 block":
        return Declared("compressed-tensors", blocks=((24, 40),))
    if case == "compressed-tensors int3":
        return Declared("compressed-tensors", schemes=(Scheme(num_bits=3),))
    return Declared("gptq", less=0) if case.endswith(" v2") else Declared()


@pytest.mark.parametrize("case", [case for case in RECORDED if case not in ("transformers fp8", "llama.cpp mxfp4")])
def test_values_are_the_librarys(tmp_path, case):
    parts = dict(RECORDED[case])
    wanted, kind = parts.pop("values")
    tensor = stored(tmp_path, parts, said_of(case))
    values = tensor.values()
    assert values.dtype == np.float32
    assert values.shape == wanted.shape == recorder.SHAPE
    assert np.array_equal(rounded(values, kind, wanted.dtype), wanted)
    original = recorder.matrix()
    allowed = 0.9 if " 2 bits" in case else 0.35 if "3" in case.split(" v")[0] else 0.2
    assert np.sqrt(np.mean((values - original) ** 2) / np.mean(original**2)) < allowed  # codes of this very matrix


def test_fp8_is_transformers(tmp_path):
    found = RECORDED["transformers fp8"]
    seed, *shape = found["seed"][0].tolist()
    parts = made.fp8(recorder.matrix(seed, tuple(shape)))
    values = stored(tmp_path, {part: (x, parts.types.get(part, "")) for part, x in parts.arrays.items()}).values()
    assert np.array_equal(values[::16, ::16], found["values"][0])
    assert np.array_equal(np.frombuffer(hashlib.sha256(values.tobytes()).digest(), np.uint8), found["sum"][0])


def test_mxfp4_blocks_are_llama_cpps(tmp_path):
    parts = dict(RECORDED["llama.cpp mxfp4"])
    blocks, _ = parts.pop("values")
    tensor = stored(tmp_path, parts)
    assert tensor.keeps() == "MXFP4"
    assert np.array_equal(tensor.blocks(slice(0, recorder.SHAPE[0])), blocks)
    assert np.array_equal(dequantize("MXFP4", blocks, recorder.SHAPE), tensor.values())


# EDGES


def of(parts):
    return {part: (x, parts.types.get(part, "")) for part, x in parts.arrays.items()}


def test_small_floats_are_what_their_specification_says():
    """OCP's tables: largest, smallest, NaN, sign of zero."""
    e4m3, e5m2, e8m0 = (FLOAT8[name] for name in ("F8_E4M3", "F8_E5M2", "F8_E8M0"))
    assert e4m3[[0x7E, 0x08, 0x07, 0x01]].tolist() == [448.0, 2.0**-6, 0.875 * 2.0**-6, 2.0**-9]
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF]
    assert e5m2[[0x7B, 0x04, 0x01, 0x7C]].tolist() == [57344.0, 2.0**-14, 2.0**-16, np.inf]
    assert np.isnan(e5m2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]]).all()
    assert e8m0[[0, 1, 127, 254]].tolist() == [2.0**-127, 2.0**-126, 1.0, 2.0**127]
    assert np.isnan(e8m0[255])
    assert np.signbit(e4m3[0x80])
    assert np.array_equal(e4m3[0x80:0xFF], -e4m3[:0x7F])


def test_a_stored_zero_of_all_ones_is_0_in_version_1(tmp_path):
    """What is stored is the zero point less 1 in as many bits; version 2 stores it as it is."""
    parts = made.gptq(np.ones((32, 32), np.float32))
    parts.arrays["qzeros"][:] = -1
    parts.arrays["qweight"][:] = 0x33333333
    ones = parts.arrays["scales"].astype(np.float32)[0, 0]
    assert (stored(tmp_path, of(parts)).values() == 3 * ones).all()
    assert (stored(tmp_path, of(parts), Declared("gptq", less=0)).values() == (3 - 15) * ones).all()


@pytest.mark.parametrize("make", [made.awq, made.gptq, lambda x: made.gptq(x, 3)], ids=["awq", "gptq", "3 bits"])
def test_any_rows_in_any_pieces_are_the_same(tmp_path, monkeypatch, make):
    tensor = stored(tmp_path, of(make(recorder.matrix(3, (96, 64)))))
    whole = tensor.values()
    for size in (1, 64 * 5, 1 << 20):
        monkeypatch.setattr(transposed, "CHUNK_VALUES", size)
        tensor.raw.kept = None
        for first in range(0, 96, 7):
            assert np.array_equal(tensor.rows(slice(first, first + 7)), whole[first : first + 7])
    picked = np.array([95, 0, 17, 17, 3])
    assert np.array_equal(tensor.rows(picked), whole[picked])
    assert tensor.rows(np.array([], np.intp)).shape == (0, 64)


def test_a_scale_that_float16_lacks_keeps_codes_out_of_q4_0(tmp_path):
    parts = made.packed(recorder.matrix(), dtype="F32")
    assert stored(tmp_path, of(parts)).keeps() is None
    small = made.packed(recorder.matrix())
    assert stored(tmp_path, of(small)).keeps() == "Q4_0"
    small.arrays["weight_scale"][5, 1] = bf16_bits(np.array([1e-9], np.float32))[0]
    assert stored(tmp_path, of(small)).keeps() is None
    small.arrays["weight_scale"][5, 1] = bf16_bits(np.array([1e6], np.float32))[0]
    assert stored(tmp_path, of(small)).keeps() is None


@pytest.mark.parametrize("names", [("gate_up_proj_scale_inv", "F32"), ("gate_up_proj_scale", "F8_E8M0")])
def test_a_stack_of_experts_has_a_grid_each(tmp_path, names):
    """transformers' fused experts: three dimensions, names without .weight."""
    scale, dtype = names
    one = [made.fp8(recorder.matrix(seed, (40, 64)), 24, 40, part="s", dtype=dtype) for seed in (1, 2, 3)]
    codes = np.stack([parts.arrays["weight"] for parts in one])
    scales = np.stack([parts.arrays["s"] for parts in one])
    small = {"gate_up_proj": "F8_E4M3"} | ({scale: dtype} if dtype != "F32" else {})
    write_safetensors(tmp_path / "m.safetensors", {"gate_up_proj": codes, scale: scales}, f8=small)
    raw = Raw("x", {"m.safetensors": SafetensorsFile(tmp_path / "m.safetensors")})
    tensors, _ = recognise(raw, Declared("fp8", blocks=((24, 40),)))
    tensor = tensors["gate_up_proj"]
    assert tensor.shape == (3, 40, 64)
    for e, parts in enumerate(one):
        given = {"weight": (parts.arrays["weight"], "F8_E4M3"), "weight_scale": (parts.arrays["s"], dtype)}
        alone = stored(tmp_path, given, Declared("fp8", blocks=((24, 40),))).values()
        assert np.array_equal(tensor.values()[e], alone)
        assert np.array_equal(tensor.rows(np.array([40 * e + 39, 40 * e])), alone[[39, 0]])


@pytest.mark.oracle
@pytest.mark.parametrize("name", recorder.COMPRESSED)
def test_compressed_tensors_live(tmp_path, name):
    for package in ("torch", "compressed_tensors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    found = recorder.compressed(name)
    assert {key: x.tolist() for key, x in found.items()} == {
        f"{part}|{kind}": x.tolist() for part, (x, kind) in RECORDED[f"compressed-tensors {name}"].items()
    }
