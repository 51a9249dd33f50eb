"""Record what llama.cpp's samplers keep of rows of logits, with which probabilities, so that tests need no llama.cpp.

    python tools/record_samplers.py --llama-cpp PATH/TO/llama.cpp/build

Calls llama_sampler_init_top_k, top_p, min_p, temp and dist of libllama through ctypes, on the cases of
tests/sampler_cases.py. Rows that keep more than 400 ids are recorded by their number and their first 400.
"""

import argparse
import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from record_hf import write_npz  # noqa: E402

from tests.sampler_cases import cases  # noqa: E402

DEFAULT_OUT = ROOT / "tests" / "data" / "samplers.npz"
N_KEPT = 400
Kept = tuple[NDArray[np.int32], NDArray[np.float32]]


class TokenData(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class TokenDataArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(TokenData)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


def open_samplers(build: Path) -> Any:
    """libllama of a built tree, with the types of the functions that `kept` calls."""
    library = ctypes.CDLL(str(build / "bin" / "libllama.so"))
    for name, arguments in (
        ("top_k", [ctypes.c_int32]),
        ("top_p", [ctypes.c_float, ctypes.c_size_t]),
        ("min_p", [ctypes.c_float, ctypes.c_size_t]),
        ("temp", [ctypes.c_float]),
        ("dist", [ctypes.c_uint32]),
    ):
        function = getattr(library, f"llama_sampler_init_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_void_p
    library.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.POINTER(TokenDataArray)]
    library.llama_sampler_apply.restype = None
    library.llama_sampler_free.argtypes = [ctypes.c_void_p]
    library.llama_sampler_free.restype = None
    return library


def kept(library: Any, logits: NDArray[np.float32], chain: Sequence[tuple[str, float]]) -> Kept:
    """The ids that a chain leaves, rising, and the probabilities that they are drawn with."""
    data = (TokenData * len(logits))(*[TokenData(i, float(x), 0.0) for i, x in enumerate(logits)])
    array = TokenDataArray(data, len(logits), -1, False)
    for name, value in (*chain, ("dist", 1)):
        arguments: tuple[Any, ...] = (int(value),) if name in ("top_k", "dist") else (value,)
        if name in ("top_p", "min_p"):
            arguments += (1,)
        init = getattr(library, "llama_sampler_init_" + ("temp" if name == "temperature" else name))
        sampler = init(*arguments)
        library.llama_sampler_apply(sampler, ctypes.byref(array))
        library.llama_sampler_free(sampler)
    left = sorted((array.data[i].id, array.data[i].p) for i in range(array.size))
    return np.array([id for id, _ in left], np.int32), np.array([p for _, p in left], np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="the build folder of a llama.cpp tree")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args()
    library, arrays = open_samplers(args.llama_cpp), {}
    sizes, ids, p = [], [], []
    for case in cases():
        case_ids, case_p = kept(library, case.logits, case.chain)
        sizes.append(len(case_ids))
        ids.append(case_ids[:N_KEPT])
        p.append(case_p[:N_KEPT])
    arrays = {"sizes": np.array(sizes, np.int32), "ids": np.concatenate(ids), "p": np.concatenate(p)}
    write_npz(args.out, arrays)
    print(f"{args.out}: {len(sizes)} cases, {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
