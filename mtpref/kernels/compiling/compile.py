"""How kernels are compiled: the decorators and the threads.

Owns everything that touches Numba's settings. A kernel has one explicit signature and is compiled, or loaded from
the cache folder, when it is first called. No kernel uses fastmath; division follows IEEE 754 (error_model "numpy").
"""

import contextlib
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import types

from mtpref import kernels
from mtpref.kernels.compiling.cache import KernelCache
from mtpref.kernels.compiling.records import Record
from mtpref.kernels.compiling.target import target_has_fma

HAS_FMA = target_has_fma()

# Numba's annotations leave out its settings.
settings: Any = numba.config

INT = types.intp
FLAG = types.boolean
F64 = types.float64


def source(dtype: types.Type, ndim: int) -> types.Array:
    """The type of an input array: contiguous, never written (writable arrays convert to it)."""
    return types.Array(dtype, ndim, "C", readonly=True)


def target(dtype: types.Type, ndim: int) -> types.Array:
    """The type of an output array: contiguous and writable."""
    return types.Array(dtype, ndim, "C")


_ROOM = Path(kernels.__file__).parent
_OPTIONS: Any = {"nogil": True, "error_model": "numpy"}


_listener: Callable[[], None] | None = None


def when_compiling(listener: Callable[[], None] | None) -> None:
    """Call `listener` whenever a kernel is not in the cache, so that somebody waits for the compiler."""
    global _listener
    _listener = listener


def tell_compiling() -> None:
    """Something is compiled now, here or in another process that this one waits for."""
    if _listener is not None:
        _listener()


def name_of(py_func: Callable[..., Any]) -> str:
    """A kernel's name: its module within `mtpref.kernels`, and its own ("layers.norms._rms_norm")."""
    return f"{py_func.__module__.removeprefix(kernels.__name__ + '.')}.{py_func.__name__}"


def _compiled(py_func: Callable[..., Any], signature: tuple[types.Type, ...], parallel: bool) -> Any:
    """Numba's decorator, with a cache of our own for what the name of its folder stands for: this room's functions."""
    dispatcher: Any = numba.njit(parallel=parallel, **_OPTIONS)(py_func)
    code = py_func.__code__
    if Path(code.co_filename).is_relative_to(_ROOM) and py_func.__closure__ is None:
        digest = hashlib.sha256(f"{signature} {parallel}".encode()).hexdigest()[:8]
        dispatcher._cache = KernelCache(f"{name_of(py_func)}-{code.co_firstlineno}-{digest}", tell_compiling)
    return dispatcher


_helpers: Callable[[str], None] | None = None


def when_needed(helpers: Callable[[str], None] | None) -> None:
    """Call `helpers` with a kernel's name before it is compiled here: another process may be at it (ahead.py)."""
    global _helpers
    _helpers = helpers


def _plain(record: Any) -> tuple[Any, ...]:
    """A record as plain tuples, the records in it too."""
    return tuple([_plain(field) if isinstance(field, tuple) else field for field in record])


class Kernel:
    """A compiled function of one signature, compiled at its first call."""

    def __init__(self, py_func: Callable[..., Any], signature: tuple[types.Type, ...], parallel: bool) -> None:
        self.dispatcher = _compiled(py_func, signature, parallel)
        self.name = name_of(py_func)
        self.signature = signature
        self._records = [i for i, t in enumerate(signature) if isinstance(t, Record)]
        self._ready: Any = None
        self._address = 0
        self._called_from_kernels()

    def _called_from_kernels(self) -> None:
        """Kernels that call this one call its one signature, whoever is compiled first.

        Left to itself, Numba compiles another for a caller's argument types (a constant is a type of its own), and the
        cache has one file.
        """
        call_template = self.dispatcher.get_call_template

        def declared(args: Any, kws: Any) -> Any:
            if self._ready is None:
                self.compile()
            return call_template(args, kws)

        self.dispatcher.get_call_template = declared

    def compile(self) -> None:
        """Compile now, or load from the cache, which another process may be filling (`when_needed`).

        Nothing where that is done.
        """
        if self._ready is not None:
            return
        with kernels.clock_stopped(), kernels.short_spinning():
            if _helpers is not None:
                _helpers(self.name)
            self.dispatcher.compile(self.signature)
        # From here on writable arrays convert to the read-only type of the signature; nothing compiles twice.
        self.dispatcher.disable_compile()
        self._ready = self.dispatcher

    def address(self) -> int:
        """Where its machine code is, for calls.py."""
        if not self._address:
            if self._ready is None:
                self.compile()
            found = self.dispatcher.overloads[self.signature]
            self._address = int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))
        return self._address

    def __call__(self, *args: Any) -> Any:
        if self._ready is None:
            self.compile()
        if not self._records:
            return self._ready(*args)
        plain = list(args)
        for i in self._records:
            plain[i] = _plain(plain[i])
        return self._ready(*plain)


def kernel(*signature: types.Type, parallel: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: a kernel that Python calls. Other kernels call its `dispatcher`."""
    return lambda py_func: Kernel(py_func, signature, parallel)


def helper(py_func: Callable[..., Any]) -> Any:
    """Decorator: a function that only kernels call; its signature follows from the call.

    It is in the cache as part of kernels, not on its own: Numba numbers the files of a function's signatures, and
    two processes that compile two of them at the same time give both the same number.
    """
    return numba.njit(**_OPTIONS)(py_func)


def name_symbol(py_func: Callable[..., Any], name: str) -> None:
    """Give a function that `compile_internal` compiles a name of its own in the machine code.

    Numba tells functions of one name apart by a number that starts anew in each process. Kernels from the cache would
    take each other's functions for their own.
    """
    py_func.__qualname__ = name


_n_threads: int = settings.NUMBA_NUM_THREADS
_n_applied = 0


def set_threads(n: int) -> None:
    """Use n threads, at least 1 and at most Numba's own limit (NUMBA_NUM_THREADS). Results do not depend on n."""
    global _n_threads
    _n_threads = max(1, min(int(n), settings.NUMBA_NUM_THREADS))


def n_threads() -> int:
    """The number of threads in use."""
    return _n_threads


def start_threads() -> int:
    """The number of threads in use, told to Numba: a process that never calls this starts no thread."""
    global _n_applied
    if _n_applied != _n_threads:
        with kernels.short_spinning():
            numba.set_num_threads(_n_threads)
        _n_applied = _n_threads
    return _n_threads


def threading_layer() -> str:
    """Numba's threading layer ("omp", "tbb", "workqueue"), or "none" before the first parallel kernel ran."""
    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except ValueError:
        return "none"


def has_only_workqueue() -> bool:
    """Whether Numba finds neither OpenMP nor TBB, and would run parallel loops by its own queue, without being told to:
    a loop costs some 100 us there, where OpenMP takes 2."""
    if settings.THREADING_LAYER not in ("default", "safe", "threadsafe", "forksafe"):
        return False
    for pool in ("omppool", "tbbpool"):
        with contextlib.suppress(ImportError), kernels.short_spinning():
            importlib.import_module(f"numba.np.ufunc.{pool}")
            return False
    return True
