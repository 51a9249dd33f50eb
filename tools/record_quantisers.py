"""Record what ggml's scalar reference quantisers and llama-quantize make, so that tests need no llama.cpp.

    python tools/record_quantisers.py --llama-cpp PATH/TO/llama.cpp/build            # needs shared libraries
    python tools/record_quantisers.py --llama-cpp PATH/TO/llama.cpp/build --files    # needs bin/llama-quantize
    python tools/record_quantisers.py --llama-cpp PATH/TO/llama.cpp/build --streams  # the same, of deepseek4
    python tools/record_quantisers.py --llama-cpp PATH/TO/llama.cpp/build --tiny     # of the embedded tiny model

--files: the type of each tensor and the digest of each file that llama-quantize makes of tests/quantize_cases.py's, for
every mixture, and for three with an importance matrix; one thread. --tiny: the digests alone of what it makes of the
tiny model in F32. Without any of these:

Calls the quantize_row_*_ref functions of Q8_0, Q8_1 and Q8_K (activations) and of Q4_0, Q4_1, Q5_0 and Q5_1 (weights),
ggml_fp32_to_bf16_row_ref and ggml_fp32_to_fp16_row of libggml-base through ctypes. Inputs are made here from seeds:
all scales, ties, zeros, denormals, and the greatest element of either sign, in either half and twice.
"""

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from record_hf import write_npz  # noqa: E402

from tests.random_weights import bits, normal  # noqa: E402

DEFAULT_OUT = ROOT / "tests" / "data" / "quantisers.npz"
FILES_OUT = ROOT / "tests" / "data" / "quantized_moe.json"
TINY_OUT = ROOT / "tests" / "data" / "quantized.json"
STREAMS_OUT = ROOT / "tests" / "data" / "quantized_streams.json"
WITH_IMATRIX = ("Q4_K_M", "Q4_0", "Q5_0")
F32 = NDArray[np.float32]
BLOCK = 256  # one Q8_K block, eight Q8_0 blocks
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34, "q8_1": 36}  # of 32 values
Q8_K_BYTES = 292
# ggml's C code is undefined where 1 / d overflows, so Q8_0 inputs stay above 127 / FLT_MAX.
SCALES = (1e-35, 1e-30, 1e-20, 1e-10, 1e-6, 1e-3, 0.1, 1.0, 3.0, 1e3, 1e6, 1e20, 1e30, 1e37)
N_NEAR_TIES = 8


def blocks() -> F32:
    """(n, 256) float32: the inputs of the block quantisers."""
    rows = [np.zeros(BLOCK), -np.zeros(BLOCK)]
    rows += [normal(1, f"scale {scale}", BLOCK) * scale for scale in SCALES]
    # exact ties: the greatest element is 127 (or -127), so that codes are the values themselves
    halves = (np.arange(BLOCK) - BLOCK // 2) / 2.0
    for greatest in (127.0, -127.0):
        tie = np.clip(halves, -63.5, 63.5)
        tie[::32] = greatest
        rows += [tie, tie * 2.0**-40, tie * 3.0]
    # the greatest magnitude twice, with both signs: the first one gives Q8_K its sign
    for first, second in ((1.5, -1.5), (-1.5, 1.5)):
        both = normal(2, "both", BLOCK) * 0.2
        both[[5, 37, 200]] = first, second, second
        rows.append(both)
    rows += [np.where(np.arange(BLOCK) == at, value, 0.0) for at, value in ((0, 1.0), (31, -1.0), (255, 1e-3))]
    rows.append(np.where(np.arange(BLOCK) % 32 == 7, 2.0, 1e-42))  # denormals beside a normal number
    rows += [near_ties(seed) for seed in range(N_NEAR_TIES)]
    return np.stack(rows).astype(np.float32)


def near_ties(seed: int) -> NDArray[np.float64]:
    """A block whose elements lie within an ulp or two of a tie between codes, for a scale that is not exact."""
    greatest = np.float32(1.0 + 0.1 * (seed + 1))
    tie = (np.arange(BLOCK) % 126 + 0.5) * np.float64(greatest) / 127
    steps = (bits(3, f"steps {seed}", BLOCK) % np.uint64(5)).astype(np.int64) - 2
    near = (tie.astype(np.float32).view(np.int32) + steps.astype(np.int32)).view(np.float32)
    near = np.where(np.arange(BLOCK) % 2, -near, near)
    near[seed::32] = greatest if seed % 2 else -greatest
    return near.astype(np.float64)


def values() -> F32:
    """The inputs of the 16-bit roundings: every exponent, ties of both types, their neighbours, both signs."""
    exponents = (np.arange(256, dtype=np.uint32) << np.uint32(23))[:, None]
    mantissas = [0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0x17FFF, 0x18000,
                 0x18001, 0x7FEFFF, 0x7FF000, 0x7F7FFF, 0x7F8000, 0x7FFFFF]  # fmt: skip
    patterns = (exponents | np.array(mantissas, np.uint32)).reshape(-1)
    small = (bits(4, "patterns", 4096) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    every = np.concatenate([patterns, patterns | np.uint32(1 << 31), small])
    return every[~np.isnan(every.view(np.float32))].view(np.float32)


def call(library: ctypes.CDLL, name: str, x: F32, n_bytes: int) -> NDArray[np.uint8]:
    """One row function of ggml: (const float *, void *, int64_t)."""
    function: Any = getattr(library, name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    x = np.ascontiguousarray(x, np.float32).reshape(-1)
    out = np.zeros(n_bytes, np.uint8)
    function(x.ctypes.data, out.ctypes.data, x.size)
    return out


def find_library(build: Path, name: str = "ggml-base") -> ctypes.CDLL:
    """libggml-base, or another library, of a llama.cpp build folder."""
    found = sorted(build.rglob(f"lib{name}.so")) + sorted(build.rglob(f"lib{name}.dylib"))
    if not found:
        raise FileNotFoundError(f"{build}: no lib{name} found, expected a llama.cpp build with shared libraries")
    return ctypes.CDLL(str(found[0]))


def record(library: ctypes.CDLL) -> dict[str, NDArray[Any]]:
    x, v = blocks(), values()
    of_32 = {
        name: call(library, f"quantize_row_{name}_ref", x, x.size // 32 * n).reshape(-1, n)
        for name, n in BLOCK_BYTES.items()
    }
    return {
        "blocks": x,
        **of_32,
        "q8_k": call(library, "quantize_row_q8_K_ref", x, x.size // BLOCK * Q8_K_BYTES).reshape(-1, Q8_K_BYTES),
        "values": v,
        "bf16": call(library, "ggml_fp32_to_bf16_row_ref", v, 2 * v.size).view(np.uint16),
        "f16": call(library, "ggml_fp32_to_fp16_row", v, 2 * v.size).view(np.uint16),
    }


def record_files(program: Path, archs: tuple[str, ...] = ()) -> dict[str, dict[str, dict[str, str]]]:
    """ "ARCH CASE" -> mixture, or "MIXTURE imatrix" -> types and sha256 of the file."""
    from mtpref.files.gguf import open_gguf
    from mtpref.heads.quantize import MIXTURES
    from tests import quantize_cases as cases

    found: dict[str, dict[str, dict[str, str]]] = {}
    for arch in archs or cases.ARCHS:
        for name in cases.CASES:
            of_case = found.setdefault(f"{arch} {name}", {})
            with tempfile.TemporaryDirectory() as folder:
                cases.write_case(Path(folder) / "in.gguf", arch, name)
                for key in (*MIXTURES, *(f"{mixture} imatrix" for mixture in WITH_IMATRIX)):
                    flags = ["--imatrix", cases.IMATRIX] if key.endswith("imatrix") else []
                    command = [str(program), *flags, "in.gguf", "out.gguf", key.partition(" ")[0], "1"]
                    subprocess.run(command, check=True, capture_output=True, cwd=folder)
                    out = Path(folder) / "out.gguf"
                    with open_gguf(out) as file:
                        types = cases.told([t.type_name for t in file.tensors.values()])
                    of_case[key] = {"types": types, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    return found


def record_tiny(program: Path) -> dict[str, str]:
    """Mixture, or "MIXTURE imatrix" -> sha256 of the file that llama-quantize makes of the tiny model in F32."""
    from tests import quantize_cases as cases

    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, out = cases.write_tiny(Path(folder)), Path(folder) / "out.gguf"
        for key in cases.TINY_MIXTURES:
            flags = ["--imatrix", cases.TINY_IMATRIX] if key.endswith("imatrix") else []
            command = [str(program), *flags, source.name, out.name, key.partition(" ")[0], "1"]
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            found[key] = hashlib.sha256(out.read_bytes()).hexdigest()
    return found


def record_streams(program: Path) -> dict[str, Any]:
    """The digest of each file that llama-quantize makes of a planted model of deepseek4, whole, trunk or head."""
    import make_micro

    from mtpref.heads.quantize import MIXTURES

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (n for n in make_micro.STANDARD_STREAMS if n.endswith("f32")):
            source, target = Path(folder) / f"{name}.gguf", Path(folder) / "out.gguf"
            make_micro.make_standard(name, source)
            digests = {}
            for mixture in MIXTURES:
                command = [str(program), str(source), str(target), mixture, "1"]
                subprocess.run(command, check=True, capture_output=True)
                digests[mixture] = hashlib.sha256(target.read_bytes()).hexdigest()
            found[name] = {"model": hashlib.sha256(source.read_bytes()).hexdigest(), "files": digests}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="record ggml's scalar quantisers, or llama-quantize")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a llama.cpp build folder (shared libraries)")
    parser.add_argument("--files", action="store_true", help="record whole files of llama-quantize")
    parser.add_argument("--arch", action="append", default=[], help="of --files only these, beside what is recorded")
    parser.add_argument("--streams", action="store_true", help="the same of the models of several streams")
    parser.add_argument("--out", type=Path, help="default: in tests/data")
    parser.add_argument("--tiny", action="store_true", help="record what llama-quantize makes of the tiny model")
    args = parser.parse_args(argv)
    if args.files or args.streams or args.tiny:
        program = args.llama_cpp.resolve() / "bin" / "llama-quantize"
        if not program.exists():
            print(f"error: {program}: not there, expected a build of llama-quantize", file=sys.stderr)
            return 2
        out = args.out or (TINY_OUT if args.tiny else STREAMS_OUT if args.streams else FILES_OUT)
        made: dict[str, Any]
        if args.tiny:
            made = record_tiny(program)
        else:
            made = record_streams(program) if args.streams else record_files(program, tuple(args.arch))
        if args.arch:
            made = json.loads(out.read_text()) | made
        out.write_text(json.dumps(made, indent=1) + "\n")
        print(json.dumps({"out": str(out), "bytes": out.stat().st_size}))
        return 0
    try:
        library = find_library(args.llama_cpp)
    except (FileNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arrays = record(library)
    out = args.out or DEFAULT_OUT
    write_npz(out, arrays)
    print(json.dumps({"out": str(out), "arrays": len(arrays), "bytes": out.stat().st_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
