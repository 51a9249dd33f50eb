"""Stock llama.cpp's programs, run: llama-tokenize, llama-results, llama-speculative-simple.

Owns command lines, time limits and retries. What they print is read by log.py.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Ids, parse_json, read
from mtpref.files.gguf import open_gguf, printable
from mtpref.look.llama_cpp.log import LlamaLog, parse
from mtpref.look.llama_cpp.results import read_results

# F32 KV and plain attention: what can be compared without the noise of storing cells.
NUMERICS = ("-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", "1", "-fit", "off")
SPECULATIVE = (
    *("--spec-type", "draft-mtp", "--temp", "0", "--top-k", "1", "--seed", "42", "-lv", "5"),
    *("--no-log-timestamps", "--no-log-prefix", "-ctkd", "f32", "-ctvd", "f32"),
)
N_TRIES = 10
TIMEOUT_S = 600


@dataclass(frozen=True)
class Programs:
    """llama.cpp's programs in a folder. threads: for each run; timeout_s: the longest that one may take."""

    folder: Path
    threads: int = 1
    n_ctx: int = 1024
    timeout_s: int = TIMEOUT_S

    def run(self, name: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Errors  MtprefError where it is not there, fails or takes too long
        """
        return run([str(self.find(name)), *args], cwd=cwd, timeout_s=self.timeout_s)

    def find(self, name: str) -> Path:
        for folder in (self.folder, self.folder / "bin", self.folder / "build" / "bin"):
            if (folder / name).is_file():
                return (folder / name).resolve()
        raise MtprefError(
            f"`llama_bin` {printable(str(self.folder), 400)}: {name} is not there; expected a folder "
            "with llama.cpp's programs (cmake --build build --target llama-tokenize llama-results "
            "llama-speculative-simple)"
        )

    def tokenize(self, model: Path, text: str) -> list[int]:
        """The ids of a text, with whatever the tokenizer adds before and after it; backslashes are read as escapes."""
        done = self.run("llama-tokenize", "-m", str(model), "-p", text, "--ids", "--log-disable")
        last = (done.stdout.strip().splitlines() or [""])[-1]
        try:
            ids: list[int] = read(Ids, parse_json(last.encode("utf-8", "replace")), "ids")
        except MtprefError as error:
            raise MtprefError(
                f"llama-tokenize: {last[:60]!r} is its last line, expected a list of ids ({error})"
            ) from None
        return ids

    def logits(self, model: Path, text: str, folder: Path) -> tuple[list[int], NDArray[np.float32]]:
        """llama-results: the ids of a text and the logits after each, (T, n_vocab). folder: for its file."""
        out = folder / "results.gguf"
        self.run("llama-results", "-m", str(model), "-p", text, "-o", str(out), *self._flags())
        with open_gguf(out) as file:
            found = read_results(file)
            return found["tokens"].tolist(), found["result_output"].copy()

    def speculative(self, model: Path, text: str, n_predict: int, n_max: int, p_min: float) -> LlamaLog:
        """llama-speculative-simple with the model's MTP head, greedily, on F32 KV: its log.

        The thread that writes the log may lose the tail when the program ends: then it runs again, and after three
        times the longest log is given. `is_complete` tells; `rounds` holds whole rounds only.

        Errors  MtprefError where the program fails, or where each log lacks lines in its middle
        """
        size = ("-n", str(n_predict), "--spec-draft-n-max", str(n_max), "--spec-draft-p-min", f"{p_min:g}")
        args = ("-m", str(model), "-p", text, *size, *SPECULATIVE, *self._flags())
        logs: list[LlamaLog] = []
        damage: MtprefError | None = None
        for _ in range(3):
            done = self.run("llama-speculative-simple", *args)
            try:
                logs.append(parse(done.stderr))
            except MtprefError as error:
                damage = error
                continue
            if logs[-1].is_complete:
                return logs[-1]
        if not logs and damage is not None:
            raise damage
        return max(logs, key=lambda log: len(log.rounds))

    def _flags(self) -> list[str]:
        flags = list(NUMERICS)
        flags[flags.index("-t") + 1] = str(self.threads)
        return [*flags, "-c", str(self.n_ctx)]


def run(command: list[str], cwd: Path | None = None, timeout_s: int = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a llama.cpp program; MtprefError with its last line if it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise MtprefError(f"{name}: cannot be run ({error.strerror}), expected a program for this machine") from None
    except subprocess.TimeoutExpired:
        raise MtprefError(f"{name}: it ran for more than {timeout_s} s, expected a smaller model") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MtprefError(f"{name} ended with {done.returncode}: {printable(last, 200)}")
    return done


def run_to_statistics(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run until the log holds its statistics line: the log thread may lose the tail when the program ends."""
    for _ in range(N_TRIES):
        done = run(command, cwd)
        if "#acc rate/pos = (" in done.stderr:
            return done
    raise MtprefError(f"{Path(command[0]).name}: no statistics line in {N_TRIES} runs")
