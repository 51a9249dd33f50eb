"""Record what others make of quantised checkpoints: llama.cpp's converter of whole folders, the programs' own libraries
of single matrices.

    python tools/record_checkpoints.py --llama-cpp PATH/TO/llama.cpp [--autoawq DIR] [--gptqmodel DIR]

Needs torch, transformers and compressed-tensors; DIR: unpacked source archives of the packages autoawq and gptqmodel,
of which one file each is run. Writes tests/data/checkpoints.json (a digest of each converted file: its keys, and its
tensors by name, since the converter puts what it decodes last) and tests/data/checkpoints.npz (parts and values).
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from record_converted import theirs  # noqa: E402

from mtpref.files.gguf import GgufArray, open_gguf  # noqa: E402
from tests import quantised_folder as made  # noqa: E402
from tests.moe_folder import CONFIGS, state, tokenizer  # noqa: E402
from tests.random_weights import normal  # noqa: E402

DATA = ROOT / "tests" / "data"
SHAPE = (64, 96)
TYPES = ("f32", "bf16")


def matrix(seed: int = 1, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Bell-shaped values, a few of them large."""
    x = normal(seed, "matrix", shape[0] * shape[1]).reshape(shape) * 0.1
    x[::7, ::11] *= 8
    return x.astype(np.float32)


def digest(path: Path) -> str:
    """A file's keys in order, and its tensors by name."""
    sha = hashlib.sha256()
    with open_gguf(path) as file:
        for key in file.kv:
            value = file.kv[key]
            if isinstance(value, GgufArray):
                value = value.to_bytes_list() if value.element_type == "str" else value.to_numpy().tolist()
            sha.update(f"{key}={value}".encode())
        for name in sorted(file.tensors):
            info = file.tensors[name]
            sha.update(f"{name} {info.type_name} {info.shape}".encode() + file.data(info).tobytes())
    return sha.hexdigest()


def folders() -> Iterator[tuple[str, made.Case]]:
    """Cases that llama.cpp's converter reads."""
    yield from ((name, case) for name, case in made.CASES.items() if case.llama_cpp)


def moe_folder(path: Path, case: made.Case) -> Path:
    return made.case_folder(path, case, state("qwen35moe"), CONFIGS["qwen35moe"], tokenizer("qwen35moe"))


def record_folders(tree: str) -> dict[str, str]:
    out = {}
    with tempfile.TemporaryDirectory() as name:
        for case_name, case in folders():
            checkpoint = moe_folder(Path(name) / case_name / "Tiny-5M", case)
            for outtype in TYPES:
                target = Path(name) / "theirs.gguf"
                theirs(tree, checkpoint, target, "qwen35moe", outtype, "both")
                out[f"{case_name} {outtype}"] = digest(target)
                print(case_name, outtype, out[f"{case_name} {outtype}"][:16], flush=True)
    return out


# LIBRARIES


def tensor(array: np.ndarray, kind: str = "") -> Any:
    """An array as torch has it; kind: of bits that are BF16 or 8-bit floats."""
    import torch

    types = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}
    given = torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype == np.uint16:
        given = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
    return given.view(types[kind]) if kind in types else given


def array(x: Any) -> np.ndarray:
    """A tensor's values in NumPy's type, those of BF16 and 8-bit floats as bits."""
    import torch

    if x.dtype == torch.bfloat16:
        return np.asarray(x.contiguous().view(torch.int16).numpy().view(np.uint16))
    small = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
    return np.asarray(x.contiguous().view(torch.uint8).numpy() if x.dtype in small else x.numpy())


def kind_of(x: Any) -> str:
    return {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0"}.get(str(x.dtype)[6:], "")


COMPRESSED: dict[str, tuple[str, dict[str, Any], str]] = {
    # name: (compressor, weights of the scheme, type of the scales)
    "int4": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, "bfloat16"),
    "int4 F32": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, "float32"),
    "int4 zeros": (
        "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}, "bfloat16"),
    "int4 channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, "bfloat16"),
    "int8 zeros": (
        "pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False}, "float32"),
    "int3": ("pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 48}, "float32"),
    "int8 plain": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, "bfloat16"),
    "fp8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, "bfloat16"),
    "fp8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, "float32"),
    "fp8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [24, 40]}, "float32"),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, "float32"),
    "mxfp4": (
        "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, "float32"),
}  # fmt: skip


def compressed(name: str) -> dict[str, np.ndarray]:
    """What compressed-tensors makes of the matrix, and of what it has made: parts, their types, values."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    form, given, dtype = COMPRESSED[name]
    args = QuantizationArgs(**{"type": "int", "symmetric": True, **given})
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    x = torch.from_numpy(matrix()).to(getattr(torch, dtype))
    low, high = extremes(x, given)
    whole = generate_gparam(x.min(), x.max()) if form.startswith("nvfp4") else None
    scale, zero = calculate_qparams(low, high, args, whole)
    if form.startswith("mxfp4"):
        scale = torch.exp2(torch.ceil(torch.log2(high.abs().maximum(low.abs()) / 6)))
    state = {"weight": x, "weight_scale": scale, "weight_zero_point": zero}
    if whole is not None:
        state["weight_global_scale"] = whole
    compressor = BaseCompressor.get_value_from_registry(form)
    parts = compressor.compress(state, scheme)
    values = compressor.decompress(dict(parts), scheme)["weight"]
    return recorded(parts, values)


def extremes(x: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest value of each group, row, block, or of all."""
    import torch

    strategy, (n_row, n_column) = given["strategy"], x.shape
    if strategy in ("group", "tensor_group"):
        found = x.reshape(n_row, -1, given["group_size"])
        return found.amin(-1), found.amax(-1)
    if strategy == "block":
        down, across = given["block_structure"]
        n_down, n_across = -(-n_row // down), -(-n_column // across)
        padded = torch.zeros(n_down * down, n_across * across, dtype=x.dtype)
        padded[:n_row, :n_column] = x
        found = padded.reshape(n_down, down, n_across, across)
        return found.amin((1, 3)), found.amax((1, 3))
    if strategy == "channel":
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return x.min().reshape(1), x.max().reshape(1)


def recorded(parts: dict[str, Any], values: Any) -> dict[str, np.ndarray]:
    """Arrays of a case, each with its type after a bar."""
    out = {f"{part}|{kind_of(x)}": array(x) for part, x in parts.items()}
    return out | {f"values|{kind_of(values)}": array(values)}


def of_transformers() -> dict[str, np.ndarray]:
    """DeepSeek's FP8 by transformers' own way back, in blocks that divide the matrix (it takes no others)."""
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    parts = made.fp8(matrix(2, (256, 384)))
    given = {part: tensor(x, parts.types.get(part, "")) for part, x in parts.arrays.items()}
    values = Fp8Dequantize(None)._dequantize_one(given["weight"], given["weight_scale_inv"], torch.float32)
    return {"seed": np.array([2, 256, 384]), "values|": array(values)[::16, ::16].copy(), "sum": _digest(values)}


def _digest(values: Any) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(array(values).tobytes()).digest(), np.uint8)


def of_autoawq(source: Path) -> dict[str, np.ndarray]:
    """AutoAWQ's dequantize_gemm. Its product is float16's."""
    path = next(source.rglob("awq/utils/packing_utils.py"))
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = {part: tensor(x) for part, x in made.awq(matrix()).arrays.items()}
    values = module.dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, 32)
    return recorded(parts, values.T.contiguous())


def of_gptqmodel(source: Path, n_bits: int, version: int) -> dict[str, np.ndarray]:
    """The codes and zeros that GPTQModel takes out of its words, as it corrects those of version 1."""
    names = ("unpack_cols", "unpack_rows", "_require_int32_words_for_3bit", "_unpack_cols_3bit", "_unpack_rows_3bit")
    path = next(source.rglob("gptqmodel/utils/model_dequant.py"))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    import torch

    space: dict[str, Any] = {"torch": torch, "PLANAR_BITS": (5, 6, 7)}
    exec(compile(tree, str(path), "exec"), space)
    parts = made.gptq(matrix(), n_bits, version=version, has_zeros=True)
    given = {part: tensor(x) for part, x in parts.arrays.items()}
    zeros = space["unpack_cols"](given["qzeros"], n_bits)
    zeros = (zeros + (1 if version == 1 else 0)) & ((1 << n_bits) - 1)
    codes = space["unpack_rows"](given["qweight"], n_bits)
    order = given["g_idx"].long()
    values = (codes - zeros[order]).to(torch.float32) * given["scales"].float()[order]
    return recorded(given, values.T.contiguous())


def of_llama_cpp(tree: str) -> dict[str, np.ndarray]:
    """MXFP4 blocks as llama.cpp's converter repacks them."""
    sys.path[:0] = [f"{tree}/gguf-py", tree]
    from conversion.base import ModelBase

    parts = {part: tensor(x) for part, x in made.mxfp4(matrix(), dtype="U8").arrays.items()}
    blocks = ModelBase.repack_mxfp4_blocks(parts["weight"], parts["scale"])
    return recorded(parts, tensor(np.ascontiguousarray(blocks)))


def record_parts(args: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Every case that what was given allows."""
    out = {f"compressed-tensors {name}": compressed(name) for name in COMPRESSED}
    out["transformers fp8"] = of_transformers()
    if args.llama_cpp:
        out["llama.cpp mxfp4"] = of_llama_cpp(args.llama_cpp)
    if args.autoawq:
        out["AutoAWQ"] = of_autoawq(args.autoawq)
    for n_bits in (2, 3, 4, 8) if args.gptqmodel else ():
        for version in (1, 2):
            out[f"GPTQModel {n_bits} bits v{version}"] = of_gptqmodel(args.gptqmodel, n_bits, version)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record what others make of quantised checkpoints")
    parser.add_argument("--llama-cpp", help="its tree")
    parser.add_argument("--autoawq", type=Path, help="source of the package autoawq")
    parser.add_argument("--gptqmodel", type=Path, help="source of the package gptqmodel")
    parser.add_argument("--parts", action="store_true", help="matrices alone, no folders (a minute less each)")
    args = parser.parse_args(argv)
    path = DATA / "checkpoints.npz"
    old = dict(np.load(path)) if path.exists() else {}
    found = {f"{case}|{part}": x for case, parts in record_parts(args).items() for part, x in parts.items()}
    np.savez_compressed(path, **(old | found))
    if args.llama_cpp and not args.parts:
        made_here = record_folders(args.llama_cpp)
        (DATA / "checkpoints.json").write_text(json.dumps(made_here, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
