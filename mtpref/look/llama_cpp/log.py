"""What stock llama.cpp's programs print at `-lv 5` with `--spec-type draft-mtp`, as runs.

A round is: for each draft step up to three candidates (best first, p over the ten best), then one accept line.
The last candidates of a round may not have been drafted (p_min, budget): `n_draft` of the accept line rules.
Works on raw logs of llama-speculative-simple and llama-server (with or without timestamps and prefixes) and on
recordings, where several runs stand each under its header. log_split.py tells runs, requests and slots apart.
"""

import codecs
import re
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.files.doors import TextStream, open_text, unpacked
from mtpref.files.gguf import printable
from mtpref.look.llama_cpp.log_split import Splitter
from mtpref.look.llama_cpp.rounds import Candidate, LlamaLog, Request, Round, Run, Step

__all__ = ("Candidate", "LlamaLog", "Request", "Round", "Run", "Step", "parse", "parse_all", "read_runs")

MAX_LOG_BYTES = 32 << 20


def parse(text: str) -> LlamaLog:
    """Parse a text that holds one run. Statistics that it does not hold stay empty.

    Errors  MtprefError where lines contradict each other (lines that are missing in the middle), or for several runs
    """
    logs = parse_all(text)
    if len(logs) > 1:
        raise MtprefError(f"log: {len(logs)} runs in it, expected one")
    return logs[0]


def parse_all(text: str) -> list[LlamaLog]:
    """The runs of a raw log, one at least: of llama-speculative-simple one after another, of llama-server by request.

    Errors  MtprefError where lines contradict each other
    """
    return Splitter().split(text)


def read_runs(path: str | Path | TextStream) -> list[Run]:
    """The runs of a raw log (without header) or of a recording, where each starts at a line `# run`, then
    `# key: value` lines. path: a file, a pipe, "-" or a text that is open; what gzip has packed is unpacked.

    Errors  MtprefError for a file that cannot be read, is too large, or holds no event
    """
    return runs_of(read_text(path), printable(str(path), 400))


def runs_of(text: str, label: str) -> list[Run]:
    """The same of a text that has been read. label: what an error names"""
    parts = re.split(r"(?m)^# run\n", text)
    try:
        if len(parts) == 1:
            runs = [Run({}, log) for log in parse_all(text)]
        else:
            headers = [dict(re.findall(r"(?m)^# ([a-z0-9_]+): (.*)$", part)) for part in parts[1:]]
            runs = [Run(head, log) for head, part in zip(headers, parts[1:], strict=True) for log in parse_all(part)]
    except MtprefError as error:
        raise MtprefError(f"{label}: {error}") from None
    if not any(run.log.unfinished or any(r.steps or run.log.request is None for r in run.log.rounds) for run in runs):
        raise MtprefError(
            f"{label}: no draft candidate and no acceptance of a round in it, expected the "
            "log of llama-speculative-simple or llama-server -lv 5 --spec-type draft-mtp (it goes to "
            "stderr); run it again with -lv 5 (a log of two lines was cut: the program may end before it "
            "is written); rates alone: mtpref diagnose --log FILE"
        )
    return runs


def read_text(source: str | Path | TextStream) -> str:
    """The text, unpacked where gzip has packed it. A piece at a time: its bytes are held once, and so is the text."""
    label, expected = printable(str(source), 400), "expected the log of a run"
    raw = bytearray()
    with source if isinstance(source, TextStream) else open_text(source, label, expected) as file:
        for piece in unpacked(file, label, expected):
            # A line's end that two pieces share is put together before it is looked at.
            tail = raw[-1:] if raw.endswith(b"\r") else b""
            del raw[len(raw) - len(tail) :]
            raw += (tail + piece).replace(b"\r\n", b"\n")
            if len(raw) > MAX_LOG_BYTES:
                raise MtprefError(f"{label}: more than {MAX_LOG_BYTES >> 20} MiB, expected the log of a shorter run")
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # what PowerShell's > writes
        return raw.decode("utf-16", "replace").replace("\r\n", "\n")
    return raw.decode("utf-8-sig", "replace")
