"""Writers of one target at one time that share nothing but the folder, and links planted where a temporary may come.

Rounds of tools/crash_writers.py. In each, every writer writes a file of its own byte; whatever they meet, the target is
wholly one writer's and the folder holds nothing else:

    containers   two processes with the same process id, each the first of a PID namespace of its own (where that is not
                 allowed, os.getpid is patched to one number)
    threads      four threads of one process
    links        a link to a victim stands at every name that the writer's process id gives, and at the first random
                 name that it draws; the victim keeps its bytes
"""

import ctypes
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import whole

PIECE = 1 << 16
CLONE_NEWPID = 0x20000000  # Linux, <sched.h>
TARGET = "m.gguf"


def rival_rounds(folder: Path, n_rounds: int, random_: random.Random, tally: Any, n_bytes: int = 2 << 20) -> None:
    """n_rounds of each kind; what is wrong goes to tally.problems, how each ended to tally.ends."""
    for i in range(n_rounds):
        for name, one_round in (("containers", _containers), ("threads", _threads), ("links", _links)):
            out = folder / f"{name}-{i}"
            out.mkdir()
            ends, problems = one_round(out, random_, n_bytes)
            problems += _judge(out, n_bytes, ends)
            tally.ends[f"rivals: {name}", "MIXED OR LOST" if problems else "one writer's"] += 1
            tally.problems += [f"{name}, round {i}: {problem}" for problem in problems]


def _judge(out: Path, n_bytes: int, ends: dict[int, int]) -> list[str]:
    """ends: a writer's byte -> its exit code"""
    left = sorted(path.name for path in out.iterdir() if path.name != TARGET and not path.is_symlink())
    problems = [f"left behind: {left}"] if left else []
    raw = (out / TARGET).read_bytes() if (out / TARGET).is_file() else b""
    owners = set(raw)
    if len(raw) != n_bytes or len(owners) != 1:
        problems.append(f"{len(raw)} bytes of writers {sorted(owners)}, exit codes {sorted(ends.values())}")
    elif ends.get(raw[0]) != 0:
        problems.append(f"the file of writer {raw[0]}, whose exit code is {ends.get(raw[0])}")
    if 0 not in ends.values():
        problems.append(f"nobody wrote: exit codes {ends}")
    return problems


def _write(out: Path, byte: int, n_bytes: int, pause: float = 0.0) -> int:
    def put(file: BinaryIO) -> None:
        for _ in range(n_bytes // PIECE):
            file.write(bytes([byte]) * PIECE)
            time.sleep(pause)

    try:
        whole.write_whole(out / TARGET, put)
    except MtprefError:
        return 2
    return 0


def _containers(out: Path, random_: random.Random, n_bytes: int) -> tuple[dict[int, int], list[str]]:
    read, write = os.pipe()
    pids = {}
    for byte in (1, 2):
        late = random_.uniform(0, 0.02)
        pids[byte] = _fork(lambda byte=byte, late=late: _in_container(out, byte, n_bytes, read, late))  # type: ignore[misc]
    os.write(write, b"go")
    ends = {byte: _wait(pid) for byte, pid in pids.items()}
    os.close(read)
    os.close(write)
    return ends, []


def _in_container(out: Path, byte: int, n_bytes: int, gate: int, late: float) -> int:
    os.read(gate, 1)
    time.sleep(late)
    if ctypes.CDLL(None).unshare(CLONE_NEWPID) != 0:
        os.getpid = lambda: 1
        return _write(out, byte, n_bytes, 0.0005)
    return _wait(_fork(lambda: _write(out, byte, n_bytes, 0.0005)))


def _threads(out: Path, random_: random.Random, n_bytes: int) -> tuple[dict[int, int], list[str]]:
    ends: dict[int, int] = {}

    def run(byte: int, late: float) -> None:
        time.sleep(late)
        ends[byte] = _write(out, byte, n_bytes, 0.0002)

    threads = [threading.Thread(target=run, args=(byte, random_.uniform(0, 0.01))) for byte in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends, []


def _links(out: Path, random_: random.Random, n_bytes: int) -> tuple[dict[int, int], list[str]]:
    victim, precious = out.parent / f"{out.name}-victim", random_.randbytes(1000)
    victim.write_bytes(precious)

    def run() -> int:
        drawn = iter(["7" * 16])
        random_name, remove = secrets.token_hex, whole.remove_left_overs
        mock.patch.object(secrets, "token_hex", lambda n: next(drawn, None) or random_name(n)).start()

        def remove_and_plant(target: Path) -> None:
            remove(target)  # what stands there before is seen, and removed or left alone
            for word in (os.getpid(), "7" * 16):
                (out / f".{TARGET}.{word}{whole.SUFFIX}").symlink_to(victim)

        whole.remove_left_overs = remove_and_plant
        return _write(out, 1, n_bytes)

    end = _wait(_fork(run))
    return {1: end}, [] if victim.read_bytes() == precious else ["the bytes went to the victim of a link"]


def _fork(run: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os._exit(run())
    finally:
        os._exit(99)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
