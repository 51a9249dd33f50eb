"""Record logs of stock llama.cpp as people have them: sampled, quantised, appended, served; and its rates.

    python tools/record_logs.py --llama-bin DIR [--only NAME ...] [-o tests/data]

writes llama_cpp/logs/NAME.log.gz and rates/NAME.log of all recordings, or of some, with the embedded tiny model; what
each is stands in tests/data/llama_cpp/README.md and tests/data/README.md. DIR holds llama-speculative-simple and
llama-server. Lines that tell nothing of the run are left out; times are this machine's, so two recordings differ.

What a recording is there to show is looked for in it, and it is made again where chance has hidden it: requests that
should have run side by side did not, or the log lost its end.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from tiny.prompts import FIRST, FOURTH, LISTEN, RATES, SAMPLED, SECOND, THIRD  # noqa: E402

import mtpref  # noqa: E402
from mtpref.base.errors import MtprefError  # noqa: E402
from mtpref.faults.diagnose import read_rates  # noqa: E402
from mtpref.front.api import tiny_path  # noqa: E402
from mtpref.front.cli import main as mtpref_main  # noqa: E402
from mtpref.look.llama_cpp.programs import run  # noqa: E402
from tests.broken_heads import BROKEN, write  # noqa: E402

N_TRIES, N_LOST = 5, 12
START_S, ANSWER_S = 120, 300
FIRST_SEED, N_SEEDS = 7, 60
TYPES = ("BF16", "Q4_0", "Q4_K_M")
N_LOG, N_SERVED, N_RATED, N_SIMPLE = 48, 40, 150, 200
SIMPLE = ("--spec-type", "draft-mtp", "-c", "1024", "-t", "1", "-fit", "off", "--no-repack")
BEGUN, ENDED = "processing task, is_child", "stop processing"  # what llama-server logs of a request
TIME = re.compile(r"\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")
# What is kept, of a line with its time and of one that belongs to the line before it.
RUN = re.compile(
    r"adding speculative|- n_max=|draft candidate|called impl|accepted +\d+/|encoded +\d+ tokens"
    r"|(?<= [A-Z] )n_(?:draft|predict|drafted|accept) +=|statistics +draft-mtp"
    r"|processing task, is_child|new prompt,|cached n_tokens =|next token:|add accepted tokens:|draft acceptance ="
    r"|stop processing"
)
RUN_REST = re.compile(r"\ttop_k = ")
COUNTS = re.compile(
    r"- n_max=|(?<= [A-Z] )(?:n_draft|n_predict|n_drafted|n_accept|accept) +=|statistics +draft-mtp"
    r"|accepted +\d+/ *\d+ draft tokens"
    r"|print_timing: .*(?: eval time|total time|draft acceptance|acc per pos) =|perf_print: .*(?:eval|total) time ="
)
ENDS_IN_PIECE = re.compile(r"draft candidate|next token:")


def kept(text: str, wanted: re.Pattern[str], rest: re.Pattern[str] | None = None) -> str:
    """The lines of a log that are wanted. A token's text may go on in lines without a time, which stay with theirs."""
    lines, goes_on = [], False
    for line in text.splitlines(keepends=True):
        if TIME.match(line):
            is_kept = bool(wanted.search(line))
            goes_on = is_kept and bool(ENDS_IN_PIECE.search(line))
        else:
            is_kept = goes_on or bool(rest and rest.match(line))
        if is_kept:
            lines.append(line)
    return "".join(lines)


@dataclass
class Served:
    """A llama-server that answers, and the log that it writes."""

    url: str
    log: Path

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def complete(self, prompt: str | list[str], n_predict: int, temperature: float, seed: int = 0) -> None:
        """One completion, or several that begin in the same pass."""
        body = {"prompt": prompt, "n_predict": n_predict, "temperature": temperature, "seed": seed}
        request = urllib.request.Request(
            f"{self.url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            answer.read()

    def together(self, *requests: tuple[str, int, float, int]) -> None:
        """Requests at the same time, each sent once the one before it has a slot.

        Errors  MtprefError where one had ended before the next began
        """
        n_begun, n_ended = self.text().count(BEGUN), self.text().count(ENDED)
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = []
            for n, request in enumerate(requests, 1):
                answers.append(pool.submit(self.complete, *request))
                until(lambda n=n: self.text().count(BEGUN) >= n_begun + n, "a slot for a request")  # type: ignore[misc]
            is_together = self.text().count(ENDED) == n_ended
            for answer in answers:
                answer.result()
        if not is_together:
            raise MtprefError("llama-server: a request had ended before the next began, expected them side by side")


def until(is_done: Callable[[], bool], what: str, seconds: float = START_S) -> None:
    end = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > end:
            raise MtprefError(f"llama-server: no sign of {what} in {seconds:g} s")
        time.sleep(0.001)


@contextlib.contextmanager
def serving(program: Path, model: Path, log: Path, *flags: str, trace: bool = False) -> Iterator[Served]:
    """llama-server with the model's MTP head, on a free port; it is ended as by a user's Ctrl-C. log: its stderr"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "-m", str(model), "--spec-type", "draft-mtp", "--no-repack", *flags]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **({"LLAMA_TRACE": "1"} if trace else {})}
    try:
        with log.open("wb") as err:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=environment
            )
    except OSError as error:
        raise MtprefError(f"{program}: cannot be run ({error.strerror}), expected a build of llama-server") from None
    served = Served(f"http://127.0.0.1:{port}", log)

    def is_up() -> bool:
        if process.poll() is not None:
            last = (served.text().strip().splitlines() or ["no output"])[-1]
            raise MtprefError(f"llama-server ended with {process.returncode}: {last[:200]}")
        try:
            with urllib.request.urlopen(f"{served.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # it does not listen yet, or is loading
            time.sleep(0.1)
            return False

    try:
        until(is_up, "an answer")
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Recorder:
    """bin_dir: llama.cpp's programs; folder: for files made on the way"""

    bin_dir: Path
    folder: Path

    def simple(self, model: Path, prompt: str, *flags: str) -> str:
        """stderr of llama-speculative-simple, up to its counts at least: what writes the log may lose its end."""
        program = str(self.bin_dir / "llama-speculative-simple")
        level = int(flags[flags.index("-lv") + 1]) if "-lv" in flags else 3
        last = "#acc rate/pos = (" if level > 3 else "accept    ="
        for _ in range(N_LOST):
            found = run([program, "-m", str(model), "-p", prompt, *SIMPLE, *flags]).stderr
            if last in found:
                return found
        raise MtprefError(f"llama-speculative-simple: no {last!r} in {N_LOST} runs")

    def log(self, model: Path, prompt: str, *flags: str) -> str:
        return kept(self.simple(model, prompt, "-n", str(N_LOG), "-lv", "5", *flags), RUN)

    def server(self, model: Path, *flags: str, trace: bool = False) -> contextlib.AbstractContextManager[Served]:
        program, log = self.bin_dir / "llama-server", self.folder / "server.log"
        return serving(program, model, log, *flags, "-fit", "off", "-t", "1", trace=trace)

    def quantised(self, kind: str) -> Path:
        path = self.folder / f"{kind}.gguf"
        if not path.exists():
            said(["quantize", "--allow-requantize", str(tiny_path()), str(path), kind])
        return path

    # LOGS

    def sampled(self) -> str:
        """At the default temperature, by the first seed from FIRST_SEED on whose run is hardly comparable."""
        for seed in range(FIRST_SEED, FIRST_SEED + N_SEEDS):
            text = self.log(tiny_path(), SAMPLED, "--seed", str(seed))
            if self._is_hardly_comparable(text):
                print(f"sampled: seed {seed}", file=sys.stderr)
                return text
        raise MtprefError(
            f"sampled: of seeds {FIRST_SEED} to {FIRST_SEED + N_SEEDS - 1} none leaves the greedy text at a near tie "
            "at once, and is seen to be sampled"
        )

    def _is_hardly_comparable(self, text: str) -> bool:
        """Whether it leaves the greedy text at a near tie, of the file and of its Q4_0, before anything was compared;
        and its first eight rounds are seen not to be greedy."""
        path, short = self.folder / "sampled.log", self.folder / "short.log"
        path.write_text(text)
        lines = text.splitlines(keepends=True)
        ends = [i for i, line in enumerate(lines) if "draft tokens, the last target token is" in line]
        if len(ends) < 9:
            return False
        short.write_text("".join(lines[: ends[8]]))
        ways = ([*("--numerics", "ggml", "--p-limit", "0.02")], ["-m", str(self.quantised("Q4_0"))])
        for way in ways:
            code, out = said(["compare-log", "-p", SAMPLED, str(path), *way, "--json"], codes=(0, 1))
            if code or not json.loads(out)["is_hardly_compared"]:
                return False
        code, out = said(["diagnose", "-p", SAMPLED, "--log", str(short)], codes=(0, 1, 3))
        return code == 1 and out.startswith("NONE OF THE KNOWN: ")

    def two(self) -> str:
        return "".join(self.log(tiny_path(), prompt, "--temp", "0") for prompt in (FIRST, SECOND))

    def greedy(self, kind: str) -> str:
        return self.log(self.quantised(kind), THIRD, "--temp", "0")

    def server_np1(self) -> str:
        with self.server(tiny_path(), "-c", "2048", "-np", "1", "-lv", "5") as served:
            for prompt, temperature in ((FIRST, 0.0), (SECOND, 0.0), (THIRD, 0.8)):
                served.complete(prompt, N_SERVED, temperature)
        return kept(served.text(), RUN, RUN_REST)

    def server_np2(self) -> str:
        with self.server(tiny_path(), "-c", "2048", "-np", "2", "-lv", "5") as served:
            for pair in ((FIRST, SECOND), (THIRD, FOURTH)):
                served.together(*((prompt, N_SERVED, 0.0, 0) for prompt in pair))
        return kept(served.text(), RUN, RUN_REST)

    # RATES

    def rates_simple(self, *flags: str) -> str:
        size = ("--spec-draft-n-max", "3", "--temp", "0", "-n", str(N_SIMPLE))
        return kept(self.simple(tiny_path(), RATES[0], *size, *flags), COUNTS)

    def rates_served(
        self, model: Path, temperature: float, level: int, trace: bool = False, first_seed: int = 0
    ) -> str:
        """Ten completions, two at a time in one request, so that it is the same run each time; the seeds
        count up from the first."""
        prompts = [*RATES, *(LISTEN + prompt for prompt in RATES)]
        flags = ("--spec-draft-n-max", "3", "-np", "2", "-lv", str(level))
        with self.server(model, *flags, trace=trace) as served:
            for i in range(0, len(prompts), 2):
                served.complete(prompts[i : i + 2], N_RATED, temperature, first_seed + i // 2)
        return kept(served.text(), COUNTS)

    def rates_both(self) -> dict[str, str]:
        """The same requests twice: as the server's own numbers, and round by round.

        Errors  MtprefError where the two ran otherwise
        """
        printed = self.rates_served(tiny_path(), 1.0, 4)
        traced = self.rates_served(tiny_path(), 1.0, 3, trace=True)
        counts: list[tuple[object, ...]] = []
        for text in (printed, traced):
            (self.folder / "rates.log").write_text(text)
            rates = read_rates(self.folder / "rates.log")
            counts.append((rates.accepted, rates.drafted, rates.n_parts) if rates else ())
        if counts[0] != counts[1]:
            raise MtprefError(f"server-temp-1: accepted, drafted and requests {counts[0]}, with a trace {counts[1]}")
        return {"rates/server-temp-1.log": printed, "rates/server-temp-1-trace.log": traced}

    def rates_broken(self, label: str, level: int) -> str:
        """A text that repeats one line is accepted whatever the head: by the first seeds that give none."""
        path = write(self.folder / "broken.gguf", BROKEN[label][0])
        for first in range(0, N_SEEDS, len(RATES)):
            text = self.rates_served(path, 0.8, level, first_seed=first)
            if all(float(share) < 0.5 for share in re.findall(r"draft acceptance = ([0-9.]+)", text)):
                print(f"{label}: seeds from {first}", file=sys.stderr)
                return text
        raise MtprefError(f"{label}: every run has a text of which half of what is drafted is accepted")


def said(argv: Sequence[str], codes: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Exit code and stdout of mtpref's own command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = mtpref_main(list(argv))
    if code not in codes:
        raise MtprefError(f"mtpref {argv[0]}: exit {code}: {(err.getvalue().strip().splitlines() or ['nothing'])[-1]}")
    return code, out.getvalue()


LOGS, RATES_OF = "llama_cpp/logs/{}.log.gz", "rates/{}.log"
Texts = dict[str, str]
# Name -> what it writes: paths below OUT and their texts.
RECORDINGS: dict[str, Callable[[Recorder], Texts]] = {
    "sampled": lambda r: {LOGS.format("sampled"): r.sampled()},
    "two": lambda r: {LOGS.format("two"): r.two()},
    "greedy": lambda r: {LOGS.format(f"greedy-{kind}"): r.greedy(kind) for kind in TYPES},
    "server-np1": lambda r: {LOGS.format("server-np1"): r.server_np1()},
    "server-np2": lambda r: {LOGS.format("server-np2"): r.server_np2()},
    "simple": lambda r: {
        RATES_OF.format("simple"): r.rates_simple(),
        RATES_OF.format("simple-lv-4"): r.rates_simple("-lv", "4"),
        RATES_OF.format("simple-p-min"): r.rates_simple(
            "-lv", "4", "--spec-draft-n-max", "4", "--spec-draft-p-min", "0.6"
        ),
    },
    "server-temp-1": Recorder.rates_both,
    "server-eh-proj-swapped": lambda r: {
        RATES_OF.format("server-eh-proj-swapped"): r.rates_broken("G1 halves swapped", 4)
    },
    "server-norms-raw": lambda r: {RATES_OF.format("server-norms-raw"): r.rates_broken("W1 +1 missing in the head", 3)},
}


def check_prompts() -> None:
    """Requests are told apart by their number of tokens.

    Errors  MtprefError where two that must differ do not
    """
    model = mtpref.load()
    sizes = {prompt: len(model.encode(prompt)) for prompt in (FIRST, SECOND, FOURTH)}
    if len(set(sizes.values())) < len(sizes):
        raise MtprefError(
            f"tools/tiny/prompts.py: FIRST, SECOND, FOURTH have {sizes}, expected three numbers of tokens"
        )


def record(recorder: Recorder, name: str) -> Texts:
    """One recording, made again where chance has hidden what it is there to show."""
    for i in range(N_TRIES):
        try:
            return RECORDINGS[name](recorder)
        except MtprefError as error:
            if i == N_TRIES - 1 or name == "sampled":
                raise
            print(f"{name}: again, since {error}", file=sys.stderr)
    raise AssertionError


def main(argv: list[str] | None = None) -> int:
    """Make all recordings, or some; exit code 2 and one line on stderr on failure."""
    parser = argparse.ArgumentParser(description="Record logs and rates of stock llama.cpp.")
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder with llama-speculative-simple, ...")
    parser.add_argument("--only", action="append", choices=RECORDINGS, help="this one alone (repeatable)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "tests" / "data", help="default: tests/data")
    args = parser.parse_args(argv)
    try:
        check_prompts()
        with tempfile.TemporaryDirectory() as folder:
            recorder = Recorder(args.llama_bin.resolve(), Path(folder))
            for name in args.only or RECORDINGS:
                for path, text in record(recorder, name).items():
                    target = args.output / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    raw = text.encode()
                    target.write_bytes(gzip.compress(raw, 9, mtime=0) if path.endswith(".gz") else raw)
                    print(f"recorded {path}: {text.count(chr(10))} lines", file=sys.stderr)
    except (MtprefError, OSError, ValueError) as error:
        print(f"record_logs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
