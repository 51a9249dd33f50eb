"""Checkpoint folders in the formats that programs quantise to, made of float tensors: encoders for the tests alone.

Each encoder takes a matrix and gives the parts that the format has for it, by what follows the module's name, and the
type of those that NumPy has no name for. They are plain loops of rounding to the nearest code: how good the codes are
does not matter, only that every code and place is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtpref.files.tensor_files.float8 import FLOAT8
from mtpref.files.tensor_files.safetensors import write_safetensors
from tests.hf_folder import bf16_bits, write_checkpoint

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass
class Parts:
    """arrays by what follows the module's name; types: of those that are BF16 or 8-bit floats"""

    arrays: dict[str, np.ndarray]
    types: dict[str, str] = field(default_factory=dict)


def blocks_of(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The largest size in each block, at least 1e-6: (blocks down, blocks across)."""
    n_down, n_across = -(-x.shape[0] // rows), -(-x.shape[1] // columns)
    out = np.empty((n_down, n_across), np.float32)
    for i in range(n_down):
        for j in range(n_across):
            out[i, j] = np.abs(x[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]).max()
    return np.maximum(out, np.float32(1e-6))


def spread(scale: np.ndarray, shape: tuple[int, ...], rows: int, columns: int) -> np.ndarray:
    return np.repeat(np.repeat(scale, rows, 0), columns, 1)[: shape[0], : shape[1]]


def nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The code whose value is nearest, the lowest of equals."""
    known = np.where(np.isfinite(table), table, np.inf).astype(np.float64)
    order = np.argsort(known, kind="stable")
    found = np.searchsorted(known[order], x.astype(np.float64)).clip(1, len(order) - 1)
    below, above = order[found - 1], order[found]
    return np.where(x - known[below] <= known[above] - x, below, above).astype(np.uint8)


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    return bf16_bits(x) if dtype == "BF16" else x.astype({"F16": np.float16, "F32": np.float32}[dtype])


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The values that a type keeps, float32."""
    if dtype == "BF16":
        return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)
    return stored(x, dtype).astype(np.float32)


def fp8(x: np.ndarray, rows: int = 128, columns: int = 128, *, part: str = "weight_scale_inv", dtype: str = "F32",
        codes: str = "F8_E4M3") -> Parts:  # fmt: skip
    """rows, columns: of a block; (1, all) a channel, (all, all) a tensor"""
    top = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}[codes]
    scale = blocks_of(x, rows, columns) / np.float32(top)
    if dtype == "F8_E8M0":
        exponents = np.ceil(np.log2(scale)).astype(np.int64) + 127
        scale, kept = np.ldexp(np.float32(1), exponents - 127), exponents.astype(np.uint8)
    else:
        kept, scale = stored(scale, dtype), rounded(scale, dtype)
    found = nearest(x / spread(scale, x.shape, rows, columns), FLOAT8[codes])
    return Parts({"weight": found, part: kept}, {"weight": codes, part: dtype})


def int8(x: np.ndarray) -> Parts:
    scale = blocks_of(x, 1, x.shape[1]) / np.float32(127)
    found = np.rint(x / scale).clip(-128, 127).astype(np.int8)
    return Parts({"weight": found, "weight_scale": scale}, {"weight_scale": "F32"})


def pack(codes: np.ndarray, n_bits: int) -> np.ndarray:
    """(rows, n) codes -> (rows, words), lowest bits first, without gaps."""
    n_row, n = codes.shape
    bits = (codes[:, :, None].astype(np.uint8) >> np.arange(n_bits, dtype=np.uint8)) & 1
    flat = np.zeros((n_row, -(-n * n_bits // 32) * 32), np.uint8)
    flat[:, : n * n_bits] = bits.reshape(n_row, -1)
    return np.packbits(flat, axis=1, bitorder="little").view("<i4")


def integers(x: np.ndarray, n_bits: int, group: int, *, has_zeros: bool, dtype: str) -> tuple[Any, Any, Any]:
    """(codes from 0 up (rows, n), zero points (rows, groups), scales as a type keeps them)."""
    n_row, n = x.shape
    grouped = x.reshape(n_row, n // group, group)
    top = (1 << n_bits) - 1
    if has_zeros:
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        scale = rounded(np.maximum(high - low, 1e-6) / top, dtype)
        zero = np.rint(-low / scale).clip(0, top)
    else:
        scale = rounded(np.maximum(np.abs(grouped).max(-1), 1e-6) / (top // 2), dtype)
        zero = np.full(scale.shape, (top + 1) // 2, np.float32)
    codes = (np.rint(grouped / scale[..., None]) + zero[..., None]).clip(0, top).astype(np.uint8)
    return codes.reshape(n_row, n), zero.astype(np.uint8), scale


def packed(x: np.ndarray, n_bits: int = 4, group: int = 32, *, has_zeros: bool = False, dtype: str = "BF16",
           order: np.ndarray | None = None, shape_type: str = "<i8") -> Parts:  # fmt: skip
    """compressed-tensors pack-quantized; order: g_idx, the group of each column"""
    n_row, n = x.shape
    if order is None:
        codes, zero, scale = integers(x, n_bits, group, has_zeros=has_zeros, dtype=dtype)
    else:
        by_group = np.argsort(order, kind="stable")
        placed, zero, scale = integers(x[:, by_group], n_bits, group, has_zeros=has_zeros, dtype=dtype)
        codes = np.empty_like(placed)
        codes[:, by_group] = placed
    arrays = {
        "weight_packed": pack(codes, n_bits),
        "weight_scale": stored(scale, dtype),
        "weight_shape": np.array([n_row, n], shape_type),
    }
    if has_zeros:
        arrays["weight_zero_point"] = np.ascontiguousarray(pack(zero.T, n_bits).T)
    if order is not None:
        arrays["weight_g_idx"] = order.astype(np.int32)
    return Parts(arrays, {"weight_scale": dtype})


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight outputs, from the lowest four bits up


def awq(x: np.ndarray, group: int = 32) -> Parts:
    codes, zero, scale = integers(x, 4, group, has_zeros=True, dtype="F16")

    def words(y: np.ndarray) -> np.ndarray:
        return pack(y.reshape(len(y), -1, 8)[:, :, AWQ_ORDER].reshape(len(y), -1), 4)

    arrays = {"qweight": words(codes.T), "qzeros": words(zero.T), "scales": np.ascontiguousarray(scale.T, np.float16)}
    return Parts(arrays)


def gptq(x: np.ndarray, n_bits: int = 4, group: int = 32, *, version: int = 1, has_zeros: bool = False,
         order: np.ndarray | None = None) -> Parts:  # fmt: skip
    """order: g_idx of desc_act; without it the groups follow each other, and g_idx says so"""
    n = x.shape[1]
    groups = np.arange(n) // group if order is None else order
    by_group = np.argsort(groups, kind="stable")
    placed, zero, scale = integers(x[:, by_group], n_bits, group, has_zeros=has_zeros, dtype="F16")
    codes = np.empty_like(placed)
    codes[:, by_group] = placed
    less = zero - np.uint8(1) & np.uint8((1 << n_bits) - 1) if version == 1 else zero
    arrays = {
        "qweight": np.ascontiguousarray(pack(codes, n_bits).T),
        "qzeros": pack(less.T, n_bits),
        "scales": np.ascontiguousarray(scale.T, np.float16),
        "g_idx": groups.astype(np.int32),
    }
    return Parts(arrays)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def mxfp4(x: np.ndarray, *, part: str = "scale", codes: str = "weight", dtype: str = "F8_E8M0") -> Parts:
    size = blocks_of(x, 1, 32) / 6
    exponents = (np.ceil(np.log2(size)).astype(np.int64) + 127).clip(0, 254)
    found = nearest(x / spread(np.ldexp(np.float32(1), exponents - 127), x.shape, 1, 32), FP4)
    kept = _nibbles(found)
    kept = kept.view(np.int8) if part == "scale" else kept
    return Parts({codes: kept, part: exponents.astype(np.uint8)}, {part: dtype})


def nvfp4(x: np.ndarray, *, is_divided: bool = True) -> Parts:
    """compressed-tensors divides by weight_global_scale, Model-Optimizer has times weight_scale_2"""
    whole = np.float32(448 * 6 / np.abs(x).max())
    size = blocks_of(x, 1, 16) / 6 * whole
    scale = nearest(np.maximum(size, 2**-9), FLOAT8["F8_E4M3"])
    values = FLOAT8["F8_E4M3"][scale] / whole
    found = _nibbles(nearest(x / spread(values, x.shape, 1, 16), FP4))
    if is_divided:
        arrays = {"weight_packed": found, "weight_scale": scale, "weight_global_scale": np.array([whole], np.float32)}
    else:
        arrays = {"weight": found, "weight_scale": scale, "weight_scale_2": np.array(1 / whole, np.float32)}
    return Parts(arrays, {"weight_scale": "F8_E4M3"})


Encoder = Callable[[str, np.ndarray], Parts | None]


# WHOLE FOLDERS


@dataclass(frozen=True)
class Case:
    """make: a matrix's parts; config: quantization_config; llama_cpp: whether its converter reads it

    keeps   the ggml type that keeps its codes; is_head: whether the head's matrices are quantised too
    """

    make: Callable[[np.ndarray], Parts]
    config: dict[str, Any]
    llama_cpp: bool = True
    keeps: str | None = None
    is_head: bool = True


def _compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


def _grouped(size: int, **more: Any) -> dict[str, Any]:
    return {"strategy": "group", "group_size": size, **more}


def _by_pairs(x: np.ndarray) -> np.ndarray:
    """A g_idx that is not in order: groups of 32 whose columns are every so many."""
    return np.arange(x.shape[1]) % (x.shape[1] // 32)


_FP8: dict[str, Any] = {"num_bits": 8, "type": "float"}
_ZEROS: dict[str, Any] = {"symmetric": False}
CASES = {
    "fp8 blocks": Case(lambda x: fp8(x, 24, 40), {"quant_method": "fp8", "weight_block_size": [24, 40]}),
    "fp8 channel": Case(
        lambda x: fp8(x, 1, x.shape[1], part="weight_scale", dtype="BF16"),
        _compressed("float-quantized", {**_FP8, "strategy": "channel"}),
    ),
    "fp8 tensor": Case(
        lambda x: fp8(x, *x.shape, part="weight_scale"),
        _compressed("float-quantized", {**_FP8, "strategy": "tensor"}),
        llama_cpp=False,
    ),
    "fp8 blocks compressed": Case(
        lambda x: fp8(x, 24, 40, part="weight_scale", dtype="BF16"),
        _compressed("float-quantized", {**_FP8, "strategy": "block", "block_structure": [24, 40]}),
    ),
    "fp8 E8M0": Case(
        lambda x: fp8(x, part="scale", dtype="F8_E8M0"),
        {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        llama_cpp=False,
    ),
    "int8": Case(int8, _compressed("int-quantized", {"num_bits": 8, "strategy": "channel"})),
    "int4": Case(packed, _compressed("pack-quantized", _grouped(32)), keeps="Q4_0"),
    "int4 experts": Case(
        lambda x: packed(x, shape_type="<i4"), _compressed("pack-quantized", _grouped(32)), keeps="Q4_0", is_head=False
    ),
    "int4 zeros": Case(
        lambda x: packed(x, group=16, has_zeros=True), _compressed("pack-quantized", _grouped(16, **_ZEROS))
    ),
    "int4 channel": Case(
        lambda x: packed(x, group=x.shape[1]),
        _compressed("pack-quantized", {"strategy": "channel"}),
        llama_cpp=False,
        keeps="Q4_0",
    ),
    "int4 g_idx": Case(
        lambda x: packed(x, order=_by_pairs(x)), _compressed("pack-quantized", _grouped(32)), llama_cpp=False
    ),
    "int8 packed": Case(lambda x: packed(x, 8), _compressed("pack-quantized", _grouped(32, num_bits=8))),
    "awq": Case(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, llama_cpp=False),
    "gptq": Case(
        gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}, keeps="Q4_0"
    ),
    "gptq desc_act": Case(
        lambda x: gptq(x, order=_by_pairs(x)), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
    ),
    "gptq 8 bits": Case(lambda x: gptq(x, 8), {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    "gptq 2 bits": Case(lambda x: gptq(x, 2), {"quant_method": "gptq", "bits": 2, "group_size": 32}),
    "gptq 3 bits": Case(lambda x: gptq(x, 3), {"quant_method": "gptq", "bits": 3, "group_size": 32}, llama_cpp=False),
    "gptq v2 zeros": Case(
        lambda x: gptq(x, version=2, has_zeros=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2", "sym": False},
    ),
    "mxfp4": Case(mxfp4, {"quant_method": "fp8", "weight_block_size": [128, 128]}, llama_cpp=False, keeps="MXFP4"),
    "mxfp4 packed": Case(
        lambda x: mxfp4(x, part="weight_scale", codes="weight_packed", dtype="U8"),
        _compressed("mxfp4-pack-quantized", _grouped(32, type="float")),
        llama_cpp=False,
        keeps="MXFP4",
    ),
    "nvfp4": Case(
        nvfp4,
        _compressed("nvfp4-pack-quantized", {"type": "float", "strategy": "tensor_group", "group_size": 16}),
        llama_cpp=False,
    ),
    "nvfp4 modelopt": Case(
        lambda x: nvfp4(x, is_divided=False), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, llama_cpp=False
    ),
}


def is_linear(name: str, x: np.ndarray) -> bool:
    """Matrices that programs quantise: of layers, no routers or gates, in whole groups."""
    left = ("conv1d", "mlp.gate.", "shared_expert_gate", "in_proj_a.", "in_proj_b.", "in_proj_ba.", "mtp.fc")
    is_of_layer = ".layers." in name and x.ndim == 2 and name.endswith(".weight")
    return is_of_layer and not any(part in name for part in left) and x.shape[0] % 32 == 0 and x.shape[1] % 32 == 0


def case_folder(
    path: Path, case: Case, state: dict[str, np.ndarray], config: dict[str, Any], tokenizer: dict[str, Any]
) -> Path:
    """A folder of a case: its linear matrices in the format, the rest as in a float checkpoint."""

    def encode(name: str, x: np.ndarray) -> Parts | None:
        is_left = not is_linear(name, x) or (not case.is_head and "mlp.experts" not in name)
        return None if is_left else case.make(x)

    return write_quantised(path, state, {**config, "quantization_config": case.config}, tokenizer, encode)


def write_quantised(
    folder: Path, state: dict[str, np.ndarray], config: dict[str, Any], tokenizer: dict[str, Any], encode: Encoder
) -> Path:
    """A folder whose tensors are as `encode` says; what it gives None for stays BF16 (A_log and dt_bias F32)."""
    write_checkpoint(folder, {"lm_head.weight": np.zeros((1, 1), np.float32)}, config, tokenizer)
    write_tensors(folder / "model.safetensors", state, encode)
    return folder


def write_tensors(path: Path, state: dict[str, np.ndarray], encode: Encoder) -> None:
    arrays: dict[str, np.ndarray] = {}
    bf16, small = set(), {}
    for name, x in state.items():
        parts = encode(name, x)
        if parts is None:
            is_f32 = name.endswith(("A_log", "dt_bias"))
            arrays[name] = x.astype(np.float32) if is_f32 else bf16_bits(x)
            bf16 |= set() if is_f32 else {name}
            continue
        module = name.removesuffix(".weight")
        for part, array in parts.arrays.items():
            full = f"{module}.{part}" if name.endswith(".weight") else name + part.removeprefix("weight")
            arrays[full] = array
            kind = parts.types.get(part, "")
            bf16 |= {full} if kind == "BF16" else set()
            if kind.startswith("F8"):
                small[full] = kind
    write_safetensors(path, arrays, frozenset(bf16), small)
