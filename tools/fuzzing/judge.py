"""What may come of a case: it runs, or it is refused with one clear line. Anything else is a failure.

Owns the watchdog, the limit on memory and the signature under which failures are told apart.
"""

import contextlib
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mtpref.base.errors import MtprefError

WATCHDOG_SECONDS = 10.0  # far above the 2 s that a refusal may take, since the machine may be busy
MEMORY_BYTES = 200 << 20  # beyond what the process has when it starts
MAX_LINE = 2000


class TooSlow(Exception):
    """The watchdog."""


class Unclear(Exception):
    """A refusal that is not one printable line of moderate length."""


@dataclass(frozen=True)
class Outcome:
    """verdict: "ran", "refused" or "failed"    signature: of a failure, the same for the same place in the code"""

    verdict: str
    signature: str = ""
    details: str = ""


def judge(run: Callable[[], object]) -> Outcome:
    try:
        with watchdog(WATCHDOG_SECONDS):
            run()
    except MtprefError as refusal:
        line = str(refusal)
        if "\n" not in line and line.isprintable() and 0 < len(line) <= MAX_LINE:
            return Outcome("refused")
        return Outcome("failed", f"unclear line: {line[:60]!r}", repr(line))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome("failed", _signature(error), traceback.format_exc())
    return Outcome("ran")


def check_line(line: str) -> None:
    """For refusals that come as text.

    Errors  Unclear
    """
    if "\n" in line or not line.isprintable() or not line or len(line) > MAX_LINE:
        raise Unclear(repr(line[:200]))


def _signature(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/mtpref/" in f.filename] or list(frames)
    last = ours[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}: {last.line}"


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """TooSlow after so many seconds. Kernels that are compiled meanwhile, once on a machine, get more time."""

    def ring(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code.co_filename.endswith("/kernels/compiling/compile.py"):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                return
            at = at.f_back
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(n_bytes: int = MEMORY_BYTES) -> tuple[int, int]:
    """From now on the process may hold n_bytes more than it does (Linux; file mappings do not count).

    Gives the limits that held before.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + n_bytes, before[1]))
    return before


@contextlib.contextmanager
def limited_memory(n_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """The same for a while; nothing where the system keeps no such account."""
    if not Path("/proc/self/status").exists():
        yield
        return
    before = limit_memory(n_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
