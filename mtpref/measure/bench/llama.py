"""A real llama-bench beside ours: the same file, the same threads, in turn.

Owns how it is called and what is read of its JSON. A verify pass is measured there as a prompt of so many tokens, which
has logits for its last token alone: a little less work than ours.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mtpref.base.errors import MtprefError
from mtpref.base.typed import Within, parse_json, read
from mtpref.files.gguf import printable

TIMEOUT_S = 1800
Count = Annotated[int, Within(0, 1 << 31)]


@dataclass(frozen=True)
class _Row:
    """One test of llama-bench's JSON."""

    n_prompt: Count
    n_gen: Count
    avg_ns: Annotated[float, Within(0, 1e15)]


class LlamaBench:
    """One llama-bench program with one model.

    Errors  MtprefError for a program that is not there, or does not print what llama-bench prints
    """

    def __init__(self, program: str, model: str, n_threads: int, extra: Sequence[str] = ()) -> None:
        path = Path(program)
        if not path.is_file() or not os.access(path, os.X_OK):
            raise MtprefError(
                f"`llama_bench`: {printable(program, 400)} is no program, expected the path of a built llama-bench"
            )
        self._command = [str(path.absolute()), "-m", model, "-t", str(n_threads), "-r", "1", "-o", "json", *extra]
        self.about = ""

    def run(
        self, n_prompt: int, n_gen: int, widths: Sequence[int], n_depth: int, parts: Sequence[str]
    ) -> dict[str, float]:
        """Milliseconds under the names of our rows: `prompt N`, `decode 1`, `verify N`."""
        found: dict[str, float] = {}
        if "prompt" in parts:
            found |= {f"prompt {r['n_prompt']}": r["ms"] for r in self._rows("-p", str(n_prompt), "-n", "0")}
        if "decode" in parts:
            rows = self._rows("-p", "0", "-n", str(n_gen), "-d", str(n_depth))
            found |= {f"decode {r['n_gen'] // n_gen}": r["ms"] for r in rows if r["n_gen"] == n_gen}
        if "verify" in parts and widths:
            rows = self._rows("-p", ",".join(map(str, widths)), "-n", "0", "-d", str(n_depth))
            found |= {f"verify {r['n_prompt']}": r["ms"] for r in rows if r["n_prompt"]}
        return found

    def _rows(self, *arguments: str) -> list[dict[str, Any]]:
        command = [*self._command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MtprefError(f"`llama_bench`: cannot be run ({error}); expected a built llama-bench") from None
        if done.returncode:
            last = printable((done.stderr.strip().splitlines() or ["no message"])[-1], 300)
            raise MtprefError(f"`llama_bench`: exit code {done.returncode}: {last}; can it open this model?")
        try:
            found = parse_json(done.stdout[done.stdout.index("[") :].encode("utf-8", "replace"))
            rows: list[_Row] = read(list[_Row], found, "llama-bench")
            if not self.about and rows:
                self.about = described(found[0])
            return [{"n_prompt": r.n_prompt, "n_gen": r.n_gen, "ms": r.avg_ns / 1e6} for r in rows]
        except (ValueError, MtprefError):
            text = printable(done.stdout.strip()[:80], 80)
            raise MtprefError(f"`llama_bench`: printed {text!r}, expected llama-bench's JSON") from None


def described(row: dict[str, Any]) -> str:
    """Build and settings of a run, for the table's foot: what a ratio depends on."""
    words = [f"build {printable(str(row.get('build_commit', '?')), 20)}", f"{row.get('n_threads', '?')} threads"]
    words += [f"KV {row.get('type_k', '?')}/{row.get('type_v', '?')}", f"-fa {row.get('flash_attn', '?')}"]
    cpu = re.sub(r"\s+", " ", printable(str(row.get("cpu_info", "")), 80))
    return ", ".join([*words, *([cpu] if cpu else [])])
