"""The instructions of the panel kernels: what each target's code contains, and AVX-512 VNNI's layout without AVX-512.

A processor's code can be compiled anywhere, and only run where it exists. So the assembly is looked at for every
target, and what VNNI's layout computes is run with its instructions replaced by what they mean.
Every target takes a process of its own; this file is its script.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpref import kernels, spec

ROOT = Path(__file__).resolve().parent.parent
AVX512 = "+avx,+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"
TARGETS = {
    "baseline": ("generic", ""),
    "avx2": ("generic", "+avx,+avx2,+fma"),
    "avx512": ("skylake-avx512", AVX512),
    "vnni": ("cascadelake", AVX512 + ",+avx512vnni"),
}
# Target -> what its code must contain, and what it must not.
EXPECTED = {
    "baseline": (("pmaddwd",), ("ymm", "zmm", "vpmaddwd", "pmaddubsw", "pmovsx", "vpdpbusd")),
    "avx2": (("vpmaddwd .*ymm", "vfmadd.*ymm"), ("zmm", "vcvtph2ps", "vpdpbusd")),
    "avx512": (("vpmaddwd .*zmm", "vfmadd.*zmm", "vcvtph2ps"), ("vpdpbusd",)),
    "vnni": (("vpdpbusd .*zmm", "vfmadd.*zmm", "vcvtph2ps"), ()),
}


def print_assembly() -> None:
    """The code of all tiles."""
    import numba
    from numba.core import types

    from mtpref.kernels.compiling import compile
    from mtpref.kernels.products import blocks

    floats, words = compile.source(types.float32, 2), compile.source(types.int32, 2)
    signature = compile.source(types.uint8, 1), words, floats, words, compile.target(types.float32, 2)

    def print_one(tile: Any) -> None:
        @numba.njit(error_model="numpy")
        def call(panels, words, scales, sums, y):
            tile(panels, 0, words, scales, sums, 0, y, 0, 16)

        call.compile(signature)
        print("\n".join(call.inspect_asm().values()))

    for name in ("Q8_0", "Q6_K"):  # these two use every step of vectors.py
        print_one(blocks.TILES[name][-1])


# What the vector room is made to believe in -> x86 features that this machine may lack.
EMULATED = {"vnni": ("avx512bw", "avx512vnni"), "avx512": ("avx512bw",), "not x86": ()}


def emulate(name: str) -> None:
    """Make the vector room believe in another processor, and give AVX-512's instructions as plain vector code."""
    from llvmlite import ir

    from mtpref.kernels.compiling import target

    has: Callable[[str], bool] = target.target_has
    if name == "not x86":
        target.target_has, target.target_is_x86 = (lambda feature: False), (lambda: False)
    else:
        denied = {"avx512bw", "avx512vnni"}
        target.target_has = lambda f: f in EMULATED[name] or (f not in denied and has(f))

    from mtpref.kernels.arithmetic import vectors

    i8, i32, given = ir.IntType(8), ir.IntType(32), vectors.call

    def every(builder: Any, value: Any, start: int, step: int) -> Any:
        lanes = ir.Constant(ir.VectorType(i32, 16), [start + step * lane for lane in range(16)])
        return builder.shuffle_vector(value, value, lanes)

    def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
        if name.endswith("vpdpbusd.512"):
            total = args[0]
            codes, word = (builder.bitcast(arg, ir.VectorType(i8, 64)) for arg in args[1:])
            for i in range(4):
                unsigned = builder.zext(every(builder, codes, i, 4), total.type)
                signed = builder.sext(every(builder, word, i, 4), total.type)
                total = builder.add(total, builder.mul(unsigned, signed))
            return total
        if not name.endswith("pmaddw.d.512"):
            assert "avx512" not in name
            return given(builder, name, result, *args)
        products = [builder.mul(*(builder.sext(every(builder, arg, odd, 2), result) for arg in args)) for odd in (0, 1)]
        return builder.add(*products)

    vectors.call = call


def print_same(emulated: str, *types: str) -> None:
    """For these types, or all with a layout: that panels give the specification's bits; then the room's constants."""
    if emulated:
        emulate(emulated)
    from mtpref.kernels.arithmetic.vectors import CODE_BYTES, GROUP, LANES
    from mtpref.kernels.products.panels import LAYOUTS
    from tests.test_kernels import assert_same, matrix, values

    rng = np.random.default_rng(5)
    for type_name in types or LAYOUTS:
        for n_tokens, scale in ((1, "unit"), (2, "mixed"), (7, "tiny")):
            w, x = matrix(rng, type_name, 37, 768, scale), values(rng, (n_tokens, 768), scale)
            with np.errstate(all="ignore"):
                assert_same(spec.mul_mat_ggml(w, x), kernels.mul_mat_ggml(kernels.pack([w])[0], x))
    print(json.dumps([GROUP, LANES, CODE_BYTES]))


def run(*arguments: str, **environment: str) -> str:
    if not kernels.available():
        pytest.skip("NUMBA_DISABLE_JIT is set: no kernels to compile")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"instruction sets are varied on x86-64 only, this is {platform.machine()}")
    unset = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")}
    env = {**unset, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, __file__, *arguments], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_its_instructions_and_no_others(name: str) -> None:
    cpu, features = TARGETS[name]
    text = run("assembly", NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features).replace("\t", " ")
    present, absent = EXPECTED[name]
    for pattern in present:
        assert re.search(f" {pattern}", text), pattern
    for pattern in absent:
        assert not re.search(rf"\b{pattern}", text), pattern
    assert "__gnu_h2f_ieee" not in text
    assert "__extendhfsf2" not in text


@pytest.mark.parametrize(
    ("name", "types", "constants"),
    [
        ("vnni", ("Q8_0", "Q6_K"), [4, 16, 64]),
        pytest.param("vnni", (), [4, 16, 64], marks=pytest.mark.slow),
        ("avx512", ("Q6_K",), [2, 16, 32]),
        ("not x86", ("Q8_0",), [2, 4, 16]),
    ],
)
def test_what_other_processors_compute_is_the_specifications(
    tmp_path: Path, name: str, types: tuple[str, ...], constants: list[int]
) -> None:
    """In a cache folder of its own: the target's name does not tell the emulation from this machine."""
    printed = run("same", name, *types, NUMBA_CACHE_DIR=str(tmp_path))
    assert json.loads(printed.splitlines()[-1]) == constants


def test_ssse3_computes_the_specifications_bits() -> None:
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+sse3,+ssse3"}
    assert json.loads(run("same", "", "Q4_K", **environment).splitlines()[-1]) == [2, 4, 16]


if __name__ == "__main__":
    {"assembly": print_assembly, "same": print_same}[sys.argv[1]](*sys.argv[2:])
