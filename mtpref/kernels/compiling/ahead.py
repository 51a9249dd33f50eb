"""A first run compiles in several processes.

Owns the helpers: processes that compile kernels into the cache folder before this one asks for them. Threads would
not help: Numba's compiler holds a lock. What is not in the cache when it is called is compiled here, as ever, so
nothing depends on a helper: one that dies, hangs or compiles the wrong thing costs time only.

A helper reads names from its standard input and answers with each name when it is done; the end of its input ends it
at once, however this process ended.
"""

import atexit
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from importlib import import_module
from queue import SimpleQueue
from typing import Any

from mtpref import kernels
from mtpref.kernels.compiling import compile

MOST_HELPERS = 3
# A kernel takes a few seconds; a helper that takes so long is not waited for.
PATIENCE_S = 60.0
# The helper imports from where this process does, whatever its working directory holds.
_COMMAND = (
    "import sys; sys.path[:] = sys.argv[2:]; from mtpref.kernels.compiling.ahead import serve; serve(sys.argv[1])"
)


def compile_ahead(names: Sequence[str]) -> None:
    """Have helpers compile these kernels, the first first: one for each thread in use but this one, MOST_HELPERS at
    most. A call of `compile_ahead` waits for nothing."""
    n_helpers = min(compile.n_threads() - 1, MOST_HELPERS, len(names))
    if n_helpers > 0 and sys.executable and kernels.cache_folder() is not None:
        compile.tell_compiling()
        helpers = _Helpers(names, n_helpers)
        compile.when_needed(helpers.give_way)
        atexit.register(helpers.end)


class _Helpers:
    """Names that nobody has compiled yet, names that helpers compile now, and a thread here for each helper."""

    def __init__(self, names: Sequence[str], n: int) -> None:
        self._left, self._running = deque(names), set[str]()
        self._changed = threading.Condition()
        self._processes: list[subprocess.Popen[str]] = []
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def give_way(self, name: str) -> None:
        """Before this process compiles a kernel: no helper will begin it, and none is at it.

        While one is, this process compiles what nobody has begun, the quickest first.
        """
        with self._changed:
            if name in self._left:
                self._left.remove(name)
        while True:
            with self._changed:
                if name not in self._running:
                    return
                other = self._left.pop() if self._left else None
                compile.tell_compiling()
                if other is None:
                    self._changed.wait_for(lambda: name not in self._running, PATIENCE_S)
                    return
            with contextlib.suppress(Exception):  # raised again where it is called, if it is
                _find(other).compile()

    def end(self) -> None:
        """End all helpers, whatever they do."""
        with self._changed:
            self._is_over = True
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join(1.0)

    def _run(self) -> None:
        """Start a helper and give it one name after the other."""
        with self._changed:
            if self._is_over:
                return
            try:
                process = _start()
            except OSError:
                return
            self._processes.append(process)
        with contextlib.suppress(OSError, ValueError), process:
            while (name := self._next()) is not None:
                try:
                    is_alive = _ask(process, name)
                finally:
                    with self._changed:
                        self._running.discard(name)
                        self._changed.notify_all()
                if not is_alive:
                    return

    def _next(self) -> str | None:
        with self._changed:
            if self._is_over or not self._left:
                return None
            name = self._left.popleft()
            self._running.add(name)
            return name


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(kernels.cache_folder()), *sys.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _ask(process: "subprocess.Popen[str]", name: str) -> bool:
    """Have a helper compile a kernel; whether it has answered."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return any(line == name + "\n" for line in process.stdout)


def _find(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"mtpref.kernels.{module}"), function)


def serve(folder: str) -> None:
    """What a helper does: compile what it is told into this folder, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    names: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(names,), daemon=True).start()
    if str(kernels.cache_folder()) != folder:
        return
    gc.disable()  # it takes a twelfth of the time, for less than 100 MB
    while True:
        name = names.get()
        with contextlib.suppress(Exception):  # the other process compiles it, and says what is wrong
            _find(name).compile()
        print(name, flush=True)


def _read(names: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        names.put(line.strip())
    os._exit(0)
