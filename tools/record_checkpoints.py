"""Record what others make of quantised checkpoints: llama.cpp's converter of whole folders, the programs' own libraries
of single matrices.

    python tools/record_checkpoints.py --llama-cpp PATH/TO/llama.cpp [--autoawq DIR] [--gptqmodel DIR]

Needs torch, transformers and compressed-tensors; DIR: unpacked source archives of the packages autoawq and gptqmodel,
of which one file each is run. Writes tests/data/checkpoints.json (a digest of each converted file: its keys, and its
tensors by name, since the converter puts what it decodes last) and tests/data/checkpoints.npz (parts and values).
"""

import argparse
import hashlib
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
SHAPE = (40, 96)
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
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]}, "float32"),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, "float32"),
    "mxfp4": (
        "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, "float32"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record what others make of quantised checkpoints")
    parser.add_argument("--llama-cpp", help="its tree")
    parser.add_argument("--autoawq", type=Path, help="source of the package autoawq")
    parser.add_argument("--gptqmodel", type=Path, help="source of the package gptqmodel")
    args = parser.parse_args(argv)
    if args.llama_cpp:
        made_here = record_folders(args.llama_cpp)
        (DATA / "checkpoints.json").write_text(json.dumps(made_here, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
