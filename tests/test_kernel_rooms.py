"""The rooms of mtpref/kernels: which twins what, which may import which; and the records that kernels take."""

import ast
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numba.core import types
from numba.core.errors import TypingError

import mtpref.kernels
from mtpref import kernels, spec
from mtpref.spec.ops import compose, compose_compressed, compose_indexer, compose_latent, compose_moe

if not kernels.available():
    pytest.skip("NUMBA_DISABLE_JIT is set: nothing is compiled", allow_module_level=True)

from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, Kernel, source, target
from mtpref.kernels.compiling.records import record

HOME = Path(mtpref.kernels.__file__).parent
# A room may import those before it.
ROOMS = ("compiling", "arithmetic", "quants", "products", "layers", "fused")
# Where the twin of a function lies: whole activations are quantised where products need them.
TWINS = {
    "mtpref.spec.quant": "products",
    "mtpref.spec.products": "products",
    "mtpref.spec.layers": "layers",
    "mtpref.spec.latent": "layers",
    "mtpref.spec.indexer": "layers",
    "mtpref.spec.streams": "layers",
    "mtpref.spec.compressed": "layers",
    "mtpref.spec.ops.compose": "fused",
    "mtpref.spec.ops.compose_moe": "fused",
    "mtpref.spec.ops.compose_latent": "fused",
    "mtpref.spec.ops.compose_compressed": "fused",
    "mtpref.spec.ops.compose_indexer": "fused",
    "mtpref.spec.mtp": "choices",
}


def test_a_twin_lies_in_the_room_of_its_function():
    homes = spec, compose, compose_moe, compose_latent, compose_compressed, compose_indexer
    names = list(kernels._HOMES)
    pairs = {name: next((getattr(home, name) for home in homes if hasattr(home, name)), None) for name in names}
    pairs = {name: function for name, function in pairs.items() if function is not None}
    assert {kernels._HOMES[name].split(".")[0] for name in pairs} == set(TWINS.values())
    for name, function in pairs.items():
        assert kernels._HOMES[name].split(".")[0] == TWINS[function.__module__], name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_kernels_imports_only_those_before_it(room):
    later = ROOMS[ROOMS.index(room) + 1 :]
    assert {path.parent.name for path in HOME.glob("*/__init__.py")} == set(ROOMS)
    for path in (HOME / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not any((node.module or "").startswith(f"mtpref.kernels.{name}") for name in later), path


# RECORDS


class Pair(NamedTuple):
    given: np.ndarray
    factor: float


class Turned(NamedTuple):
    given: np.ndarray
    factor: float


ARRAY, OUT = source(types.float32, 1), target(types.float32, 1)
PAIR = record(Pair, given=ARRAY, factor=types.float64)
call = caller(PAIR, OUT)


def scaled(pair, out):
    for i in range(len(out)):
        out[i] = pair.given[i] * pair.factor


def again(address, pair, out):
    """A record made in a kernel, of an array that can be written, for one that takes what is only read."""
    call(address, (pair, out))
    call(address, (Pair(out, pair.factor), out))


def test_a_record_takes_what_converts_to_its_fields_from_python_and_from_kernels():
    first, second = Kernel(scaled, (PAIR, OUT), False), Kernel(again, (INT, PAIR, OUT), False)
    given, out = np.arange(3, dtype=np.float32), np.empty(3, np.float32)
    fixed = given.copy()
    fixed.flags.writeable = False
    for array, factor in ((given, 2.0), (fixed, 2.0), (given, 2), (fixed, np.float32(2))):
        first(Pair(array, factor), out)
        assert out.tolist() == [0, 2, 4]
        second(first.address(), Pair(array, factor), out)
        assert out.tolist() == [0, 4, 8]
    for wrong in ((given,), (given, 2.0, 3.0), (given.astype(np.float64), 2.0)):
        with pytest.raises(TypeError, match="No matching definition"):
            first(wrong, out)


def test_a_record_of_another_class_is_refused_in_a_kernel():
    def confused(address, pair, out):
        call(address, (Turned(pair.given, pair.factor), out))

    with pytest.raises(TypingError, match=r"Turned.* given, Pair.* wanted"):
        Kernel(confused, (INT, PAIR, OUT), False).compile()


def test_the_fields_of_a_record_are_named_in_their_order():
    assert PAIR.fields == ("given", "factor")
    for fields in ({"factor": types.float64, "given": ARRAY}, {"given": ARRAY}):
        with pytest.raises(TypeError, match="record Pair"):
            record(Pair, **fields)
