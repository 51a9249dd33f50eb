"""Kill the writing verbs at random moments and look at what is left.

    python tools/crash_writers.py [--trials 1000] [--rounds 200] [--seed 1] [--megabytes 24] [--only fetch]

Each trial starts a verb in a child process (forked, so that the moment of the kill falls into its work and not into the
start of an interpreter), sends SIGINT, SIGTERM or SIGKILL after a random time and checks:

    the target     absent or complete; where a file stood there before: that file or the complete new one, byte for byte
    the folder     nothing else but temporaries of SIGKILL, which are refused as input and removed by the next write
    the inputs     unchanged
    a run after    ends well and gives the bytes of an undisturbed run

`fetch` reads from a server on the loopback, a process of its own. Two trials for each verb end at a full disk
(RLIMIT_FSIZE, and a small tmpfs where one can be mounted). Rounds follow of several writers of one target, and of
planted links (tools/rival_writers.py). --only: verbs whose names begin so.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from rival_writers import rival_rounds  # noqa: E402

from mtpref.base.errors import MtprefError  # noqa: E402
from mtpref.files.gguf import open_gguf, write_gguf, write_shards  # noqa: E402
from mtpref.files.gguf.whole import left_over_of  # noqa: E402
from mtpref.front import cli  # noqa: E402
from mtpref.heads.convert import Settings, convert  # noqa: E402
from mtpref.heads.hf import open_checkpoint  # noqa: E402
from tests.gguf_copy import copy_of  # noqa: E402
from tests.head_files import trunk_of  # noqa: E402
from tests.hf_folder import read_state, write_checkpoint  # noqa: E402
from tests.quantised_folder import CASES, case_folder  # noqa: E402
from tests.range_server import serving  # noqa: E402

TINY = ROOT / "mtpref/data/tiny.gguf"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
IN_SHARDS = ["--split-max-tensors", "30"]
FOLDERS = ("graft as a shard", "graft into a checkpoint", "fetch a folder")  # verbs that write a new folder


@dataclass
class Tally:
    """What the trials found. ends: (signal, how it ended); problems: one line each, empty when all is well"""

    n: int = 0
    ends: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Bench:
    """Inputs, verbs (those whose names begin with `only`), and what each verb writes when nobody disturbs it."""

    def __init__(self, folder: Path, n_megabytes: int, only: str = "") -> None:
        self.folder, self.out = folder, folder / "out"
        self.model = folder / "model.gguf"
        state, config, tokenizer = read_state()
        self.checkpoint = write_checkpoint(folder / "hf", state, config, tokenizer)
        lost = {name: x for name, x in state.items() if not name.startswith("mtp.")}
        quantised = case_folder(folder / "quantised", CASES["int4"], lost, config, tokenizer)
        self.floats = folder / "floats.gguf"
        convert(self.checkpoint, self.floats, Settings(outtype="bf16"))
        kv, tensors = copy_of(TINY)
        pad = np.arange(n_megabytes << 20, dtype=np.uint32).view(np.int8)[: n_megabytes << 20]
        write_gguf(self.model, kv, [*tensors[:20], ("blk.4.padding", "I8", pad.shape, pad), *tensors[20:]])
        trunk = write_shards(folder / "trunk", *trunk_of(kv, tensors), max_tensors=20)[0]
        self.verbs = {
            "extract": ["extract", str(self.model), "-o"],
            "strip": ["strip", str(TINY), "-o"],
            "graft": ["graft", str(TINY), str(self.model), "--no-probe", "-o"],
            "convert": ["convert", str(self.checkpoint), "--outtype", "q8_0", "-o"],
            "quantize": ["quantize", str(self.floats), "OUT", "Q4_0"],
            "extract to shards": ["extract", str(self.model), *IN_SHARDS, "-o"],
            "graft as a shard": ["graft", "--as-shard", str(trunk), str(self.model), "--no-probe", "-o"],
            "graft into a checkpoint": ["graft", "--hf", str(quantised), str(self.checkpoint), "-o"],
        }
        url, pid = _start_server({f"/{path.name}": path for path in (self.model, *self.checkpoint.iterdir())})
        weakref.finalize(self, os.kill, pid, signal.SIGKILL)
        self.verbs["fetch"] = ["fetch", f"{url}/model.gguf", "--head", "-o"]
        self.verbs["fetch a folder"] = ["fetch", f"{url}/", "--head", "-o"]
        self.verbs = {name: words for name, words in self.verbs.items() if name.startswith(only)}
        self.expected, self.seconds, self.largest = {}, {}, {}
        for name in self.verbs:
            for _ in range(2):  # the first run is slower than those of the trials
                self.reset()
                start = time.monotonic()
                code = self.run(name, [])
                self.seconds[name] = time.monotonic() - start
            if code != 0:
                raise RuntimeError(f"{name}: exit code {code}, expected 0")
            self.expected[name] = self.seen()
            # A link takes no part in a write.
            files = [path.stat() for path in self.out.rglob("*") if path.is_file()]
            self.largest[name] = max(status.st_size for status in files if status.st_nlink == 1)
        shards = folder.glob("trunk-*.gguf")
        self.inputs = {path: path.read_bytes() for path in (self.model, TINY, *self.checkpoint.iterdir(), *shards)}
        self.inputs |= {path: path.read_bytes() for path in quantised.iterdir()}

    def reset(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def seen(self) -> dict[str, bytes]:
        """What lies there: files by their path, those of folders too, and folders without any."""
        found = {}
        for path in sorted(self.out.rglob("*")):
            if path.is_file():
                found[path.relative_to(self.out).as_posix()] = path.read_bytes()
            elif not any(path.iterdir()):
                found[path.relative_to(self.out).as_posix()] = b"a folder"
        return found

    def command(self, name: str, more: list[str]) -> list[str]:
        words, out = self.verbs[name], str(self.out / ("m" if name in FOLDERS else "m.gguf"))
        return [*(out if word == "OUT" else word for word in words), *([] if "OUT" in words else [out]), *more]

    def run(self, name: str, more: list[str]) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.start(name, more), 0)[1])

    def start(self, name: str, more: list[str], limit: int | None = None, log: Path | None = None) -> int:
        """The verb in a child process; its id."""
        pid = os.fork()
        if pid:
            return pid
        try:
            fd = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            os._exit(cli.main(self.command(name, more)))
        except KeyboardInterrupt:  # before or after the verb's own handling
            os._exit(130)
        finally:
            os._exit(99)


def _start_server(files: dict[str, Path]) -> tuple[str, int]:
    """(URL, process) of a server of these files. It ends with this process, too."""
    reading, writing = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            return pipe.readline().strip(), pid
    try:
        with serving({name: path.read_bytes() for name, path in files.items()}) as server:
            os.write(writing, f"{server.url}\n".encode())
            while os.getppid() == parent:
                time.sleep(0.2)
    finally:
        os._exit(0)


def trial(bench: Bench, random_: random.Random, tally: Tally, name: str) -> None:
    """One verb, one signal, one moment."""
    number = random_.choice(SIGNALS)
    has_older = not _is_many(name) and random_.random() < 0.5
    moment = random_.uniform(0, 1.1 * bench.seconds[name])
    bench.reset()
    older = b"GGUF of somebody else" * 100
    if has_older:
        (bench.out / "m.gguf").write_bytes(older)
    pid = bench.start(name, ["--force"] if has_older or random_.random() < 0.5 else [])
    time.sleep(moment)
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    where = f"{name}, {number.name} after {moment * 1000:.1f} ms, exit code {code}"
    problems, how = _judge(bench, name, number, older if has_older else None)
    tally.n += 1
    tally.ends[number.name, how] += 1
    tally.problems += [f"{where}: {problem}" for problem in problems]
    _run_again(bench, name, tally, where)


def _judge(bench: Bench, name: str, number: signal.Signals, older: bytes | None) -> tuple[list[str], str]:
    found, expected = bench.seen(), bench.expected[name]
    temporaries = {n for n in found if left_over_of(n.split("/")[0]) is not None}
    results = {n: found[n] for n in found if n not in temporaries}
    problems = []
    if temporaries and number != signal.SIGKILL:
        problems.append(f"temporary left behind: {sorted(temporaries)}")
    for temporary in temporaries:
        for open_it in (open_gguf, open_checkpoint):
            try:
                open_it(bench.out / temporary).close()
                problems.append(f"{temporary} is taken for a model")
            except MtprefError:
                pass
    # Shards are placed one by one, the first last: a kill between two renames leaves some, never the first.
    is_part = number == signal.SIGKILL and "shards" in name and results.items() <= expected.items()
    if is_part and results != expected:
        if min(expected) in results:
            problems.append("the first file of a split model is there without the others")
        return problems, "some later shards, not the first" if results else "nothing written"
    if results == expected:
        return problems, "complete"
    if older is not None and results == {"m.gguf": older}:
        return problems, "the older file"
    if older is None and not results:
        return problems, "nothing written"
    problems.append(f"half a result: { ({n: len(b) for n, b in results.items()}) }")
    return problems, "BROKEN"


def _is_many(name: str) -> bool:
    return "shards" in name or name in FOLDERS


def _run_again(bench: Bench, name: str, tally: Tally, where: str) -> None:
    if "shards" in name:
        for path in bench.out.glob("m-*.gguf"):
            path.unlink()  # existing shards are refused, with or without --force
    if name in FOLDERS:
        shutil.rmtree(bench.out / "m", ignore_errors=True)  # so are folders
    code = bench.run(name, ["--force"])
    if code != 0 or bench.seen() != bench.expected[name]:
        tally.problems.append(f"{where}: the run after it gives exit code {code} and {sorted(bench.seen())}")
    for path, raw in bench.inputs.items():
        if path.read_bytes() != raw:
            tally.problems.append(f"{where}: input {path} has changed")


def full_disk(bench: Bench, tally: Tally, name: str) -> None:
    """A limit on the size of files, which the verb meets in the middle of its write."""
    bench.reset()
    older = b"older"
    target = bench.out / "m.gguf"
    if not _is_many(name):
        target.write_bytes(older)
    log = bench.folder / "log"
    log.unlink(missing_ok=True)
    limit = bench.largest[name] // 2
    code = os.waitstatus_to_exitcode(os.waitpid(bench.start(name, ["--force"], limit, log), 0)[1])
    _check_full(tally, f"{name}, RLIMIT_FSIZE", code, log.read_text(), "cannot be written: File too large")
    if bench.seen() != ({} if _is_many(name) else {"m.gguf": older}):
        tally.problems.append(f"{name}, RLIMIT_FSIZE: left {sorted(bench.seen())}")


def small_disk(bench: Bench, tally: Tally, name: str) -> None:
    """A file system that is too small from the start."""
    log = bench.folder / "log"
    bench.reset()
    n_bytes = sum(map(len, bench.expected[name].values())) // 2
    options = f"size={n_bytes}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(bench.out)], capture_output=True)
    if mounted.returncode:
        tally.ends["full disk", "tmpfs not allowed here"] += 1
        return
    try:
        log.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(os.waitpid(bench.start(name, [], None, log), 0)[1])
        _check_full(tally, f"{name}, tmpfs", code, log.read_text(), "its disk has")
        if bench.seen():
            tally.problems.append(f"{name}, tmpfs: left {sorted(bench.seen())}")
    finally:
        subprocess.run(["umount", str(bench.out)], check=True)
    tally.ends["full disk", "one line, tmpfs"] += 1


def _check_full(tally: Tally, where: str, code: int, text: str, expected: str) -> None:
    tally.ends["full disk", "one line"] += 1
    errors = [line for line in text.splitlines() if not line.startswith("note: ")]
    if code != 2 or len(errors) != 1 or expected not in errors[0]:
        tally.problems.append(f"{where}: exit code {code}, {text!r}")


def crash(folder: Path, n_trials: int, seed: int, n_megabytes: int, *, has_tmpfs: bool = True, only: str = "") -> Tally:
    """Run the trials. only: of verbs whose names begin so. Errors: RuntimeError where a verb fails undisturbed"""
    bench, tally, random_ = Bench(folder, n_megabytes, only), Tally(), random.Random(seed)
    names = list(bench.verbs)
    for name in names:
        full_disk(bench, tally, name)
        if has_tmpfs:
            small_disk(bench, tally, name)
    for i in range(n_trials):
        trial(bench, random_, tally, names[i % len(names)])
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--only", default="", metavar="VERB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = crash(Path(folder), args.trials, args.seed, args.megabytes, only=args.only)
        rival_rounds(Path(folder), args.rounds, random.Random(args.seed), tally)
    print(f"{tally.n} kills, {args.rounds} rounds of rivals of each kind, {len(tally.problems)} problems")
    for (what, how), n in sorted(tally.ends.items()):
        print(f"  {what}: {how}: {n}")
    print("\n".join(tally.problems[:20]))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
