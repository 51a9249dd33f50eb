"""The long mode of fuzzing: every target, in worker processes with limited memory, for a time or a number of cases.

  python tools/fuzz.py --work DIR --seconds 600 --jobs 2      go on where DIR's last run ended
  python tools/fuzz.py --work DIR --singles                   every single edit of every GGUF target, once
  python tools/fuzz.py --work DIR --report                    the counts so far
  python tools/fuzz.py --repeat tiny DIR/failures/x.bin       run one saved input again, with its traceback

Cases are numbered; seed and number make a case, so a run can be repeated anywhere. Failures are reduced to the fewest
edits that still fail alike, and saved with a description.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]

from fuzzing.catalogue import MAKERS, catalogue  # noqa: E402
from fuzzing.edits import Edit  # noqa: E402
from fuzzing.judge import Outcome, judge, limit_memory  # noqa: E402
from fuzzing.targets import Target  # noqa: E402

HANG_SECONDS = 60.0  # the watchdog inside a worker should have ended a case long before
SCHEMA = "mtpref-fuzz-1"


# WORKER


def work(pipe: Connection, current: Any, names: tuple[str, ...], seed: int) -> None:
    """Answer (target, is_single, first, count) with counts and failures until the parent goes away."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    targets = catalogue(names)
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        for target in targets.values():
            for i, raw in enumerate(target.seeds):
                sound = judge(lambda t=target, r=raw, i=i: t.run(r, Path(folder), i))  # type: ignore[misc]
                if sound.verdict != "ran":
                    raise SystemExit(f"target {target.name}: its seed {i} is refused: {sound.details}")
        limit_memory()
        pipe.send("ready")
        while True:
            try:
                name, is_single, first, count = pipe.recv()
            except EOFError:
                return
            pipe.send(_chunk(targets[name], is_single, first, count, seed, Path(folder), current))


def scratch() -> str | None:
    """A file system in memory where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _chunk(
    target: Target, is_single: bool, first: int, count: int, seed: int, folder: Path, current: Any
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    failures: dict[str, dict[str, Any]] = {}
    for number in range(first, first + count):
        current.value = number
        i, edits = target.single(number) if is_single else target.plan(seed, number)
        outcome = run_case(target, i, edits, folder)
        counts[outcome.verdict] += 1
        if outcome.verdict == "failed" and outcome.signature not in failures:
            fewest = reduced(target, i, edits, outcome, folder)
            failures[outcome.signature] = {
                "target": target.name, "seed": seed, "number": number, "is_single": is_single, "input": i,
                "edits": [edit.what for edit in fewest], "details": outcome.details[-3000:],
                "bytes": target.build(i, fewest),
            }  # fmt: skip
    return {"counts": dict(counts), "failures": failures}


def run_case(target: Target, i: int, edits: list[Edit], folder: Path) -> Outcome:
    raw = target.build(i, edits)
    return judge(lambda: target.run(raw, folder, i))


def reduced(target: Target, i: int, edits: list[Edit], outcome: Outcome, folder: Path) -> list[Edit]:
    """The edits without those that the failure does not need."""
    kept = list(edits)
    for edit in edits:
        fewer = [e for e in kept if e is not edit]
        if run_case(target, i, fewer, folder).signature == outcome.signature:
            kept = fewer
    return kept


# PARENT


@dataclass
class Worker:
    process: Any
    pipe: Connection
    current: Any
    task: tuple[str, bool, int, int] | None = None
    since: float = 0.0
    number: int = -1

    def is_stuck(self) -> bool:
        """Whether it has been at one case for too long; a whole piece may take longer on a busy machine."""
        if self.current.value != self.number:
            self.number, self.since = int(self.current.value), time.monotonic()
        return time.monotonic() - self.since > HANG_SECONDS + 2.0


@dataclass
class Campaign:
    """What DIR holds: for each target the next number, counts of verdicts, and seconds of work; and the failures."""

    folder: Path
    seed: int
    next: dict[str, int] = field(default_factory=dict)
    next_single: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @staticmethod
    def open(folder: Path, seed: int) -> "Campaign":
        (folder / "failures").mkdir(parents=True, exist_ok=True)
        path = folder / "state.json"
        if not path.exists():
            return Campaign(folder, seed)
        record = json.loads(path.read_text())
        if record.pop("schema") != SCHEMA or record["seed"] != seed:
            raise SystemExit(
                f"{path}: of another version or of seed {record['seed']}, expected seed {seed}; choose another folder"
            )
        return Campaign(folder, **record)

    def save(self) -> None:
        record = {k: v for k, v in vars(self).items() if k != "folder"}
        temporary = self.folder / "state.json.tmp"
        temporary.write_text(json.dumps({"schema": SCHEMA, **record}, indent=1))
        temporary.replace(self.folder / "state.json")

    def add(self, name: str, counts: dict[str, int]) -> None:
        mine = self.counts.setdefault(name, {})
        for verdict, n in counts.items():
            mine[verdict] = mine.get(verdict, 0) + n

    def keep(self, signature: str, failure: dict[str, Any]) -> None:
        """Save a failure, the first of its kind."""
        key = f"{failure['target']}: {signature}"
        if key in self.signatures:
            return
        name = f"{failure['target']}-{failure['number']}"
        self.signatures[key] = name
        (self.folder / "failures" / f"{name}.bin").write_bytes(failure.pop("bytes", b""))
        (self.folder / "failures" / f"{name}.json").write_text(
            json.dumps({"signature": signature, **failure}, indent=1)
        )
        print(f"FAILED {key}\n  {failure['edits']}", flush=True)

    def total(self) -> int:
        return sum(n for counts in self.counts.values() for n in counts.values())


def tasks(campaign: Campaign, targets: dict[str, Target], singles: bool) -> Iterator[tuple[str, bool, int, int]]:
    """Pieces of some seconds of work at most, the targets in turn."""
    while True:
        is_over = True
        for name, target in targets.items():
            count, numbers = target.share, campaign.next_single if singles else campaign.next
            first = numbers.get(name, 0)
            if singles:
                count = min(count, target.n_singles() - first)
            if count > 0:
                is_over = False
                numbers[name] = first + count
                yield name, singles, first, count
        if is_over:
            return


def start(names: tuple[str, ...], seed: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    current = context.Value("q", -1, lock=False)
    process = context.Process(target=work, args=(there, current, names, seed), daemon=True)
    process.start()
    there.close()
    return Worker(process, here, current)


def run(args: argparse.Namespace, names: tuple[str, ...]) -> int:
    campaign = Campaign.open(args.work, args.seed)
    workers = [start(names, args.seed) for _ in range(args.jobs)]
    targets = catalogue(names)
    pending = tasks(campaign, targets, args.singles)
    for worker in workers:
        _wait_until_ready(worker)
    before, started = campaign.total(), time.monotonic()

    def is_done() -> bool:
        return time.monotonic() - started > args.seconds or campaign.total() - before >= args.cases

    try:
        busy = [w for w in workers if _give(w, None if is_done() else next(pending, None))]
        while busy:
            ready = wait([w.pipe for w in busy], timeout=1.0)
            for worker in list(busy):
                if worker.pipe not in ready and not worker.is_stuck():
                    continue
                fresh = _take(worker, campaign, names)
                busy.remove(worker)
                if _give(fresh, None if is_done() else next(pending, None)):
                    busy.append(fresh)
            campaign.save()
    finally:
        campaign.seconds += time.monotonic() - started
        campaign.save()
        for worker in workers:
            worker.pipe.close()
    print(report(campaign))
    return 1 if campaign.signatures else 0


def _wait_until_ready(worker: Worker) -> None:
    try:
        worker.pipe.recv()
    except EOFError:
        raise SystemExit("a worker could not start; try --repeat, which shows why") from None


def _give(worker: Worker, task: tuple[str, bool, int, int] | None) -> bool:
    worker.task, worker.since = task, time.monotonic()
    if task is not None:
        worker.pipe.send(task)
    return task is not None


def _take(worker: Worker, campaign: Campaign, names: tuple[str, ...]) -> Worker:
    """A worker's answer; where it is dead or stuck, the case that it was at is the failure, and another starts."""
    assert worker.task is not None
    name, is_single, first, _ = worker.task
    try:
        if not worker.pipe.poll():
            raise EOFError
        answer = worker.pipe.recv()
    except (EOFError, OSError):
        number = max(first, int(worker.current.value))
        worker.process.kill()
        worker.process.join()
        campaign.add(name, {"refused": 0, "failed": 1})
        how = f"the process ended with code {worker.process.exitcode}"
        failure = {"target": name, "number": number, "is_single": is_single, "edits": [], "details": how}
        campaign.keep(f"{how} at case {number}", failure)
        fresh = start(names, campaign.seed)
        _wait_until_ready(fresh)
        return fresh
    campaign.add(name, answer["counts"])
    for signature, failure in answer["failures"].items():
        campaign.keep(signature, failure)
    return worker


def report(campaign: Campaign) -> str:
    """Cases by target, as a Markdown table."""
    rows = ["| target | cases | ran | refused | failed |", "|---|---:|---:|---:|---:|"]
    for name in [n for n in MAKERS if n in campaign.counts]:
        counts = campaign.counts[name]
        numbers = [counts.get(v, 0) for v in ("ran", "refused", "failed")]
        rows.append(f"| {name} | {sum(numbers):,} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
    failed = sum(c.get("failed", 0) for c in campaign.counts.values())
    rows.append(f"| all | {campaign.total():,} | | | {failed:,} |")
    rows += ["", f"seed {campaign.seed}, {campaign.seconds:.0f} s; {len(campaign.signatures)} kinds of failure"]
    return "\n".join([*rows, *(f"- {key} ({name})" for key, name in campaign.signatures.items())])


def repeat(name: str, path: Path) -> int:
    """Run a saved input; its description says which seed input it was made of."""
    described = path.with_suffix(".json")
    i = int(json.loads(described.read_text()).get("input", 0)) if described.exists() else 0
    target = catalogue((name,))[name]
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        outcome = judge(lambda: target.run(path.read_bytes(), Path(folder), i))
    print(f"{outcome.verdict} {outcome.signature}\n{outcome.details}")
    return 1 if outcome.verdict == "failed" else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--work", type=Path, help="folder of the campaign: counts, next numbers, failures")
    parser.add_argument(
        "--targets", default="", help=f"names with commas between (default: all of {', '.join(MAKERS)})"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=1 << 62, help="end after so many (default: no limit)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--singles", action="store_true", help="every single edit of every GGUF target, once")
    parser.add_argument("--report", action="store_true", help="print the counts so far and end")
    parser.add_argument("--repeat", nargs=2, metavar=("TARGET", "FILE"))
    args = parser.parse_args()
    if args.repeat:
        return repeat(args.repeat[0], Path(args.repeat[1]))
    if args.work is None:
        parser.error("--work is needed")
    if args.report:
        print(report(Campaign.open(args.work, args.seed)))
        return 0
    return run(args, tuple(n for n in args.targets.split(",") if n))


if __name__ == "__main__":
    raise SystemExit(main())
