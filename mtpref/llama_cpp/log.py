"""What stock llama.cpp's programs print at `-lv 5` with `--spec-type draft-mtp`, as runs.

A round is: for each draft step up to three candidates (best first, p over the ten best), then one accept line.
The last candidates of a round may not have been drafted (p_min, budget): `n_draft` of the accept line rules.
Works on raw logs of llama-speculative-simple and llama-server (with or without timestamps and prefixes) and on
recordings, where several runs stand each under its header. log_split.py tells runs, requests and slots apart.
"""

import gzip
import re
import zlib
from pathlib import Path

from mtpref.errors import MtprefError
from mtpref.gguf import printable
from mtpref.llama_cpp.log_split import Splitter
from mtpref.llama_cpp.rounds import Candidate, LlamaLog, Request, Round, Run, Step

__all__ = ("Candidate", "LlamaLog", "Request", "Round", "Run", "Step", "parse", "parse_all", "read_runs")

MAX_LOG_BYTES = 64 << 20


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


def read_runs(path: str | Path) -> list[Run]:
    """The runs of a raw log (without header) or of a recording, where each starts at a line `# run`, then
    `# key: value` lines. A file with .gz in its name's end is unpacked.

    Errors  MtprefError for a file that cannot be read, is too large, or holds no event
    """
    text = read_text(Path(path))
    parts = re.split(r"(?m)^# run\n", text)
    try:
        if len(parts) == 1:
            runs = [Run({}, log) for log in parse_all(text)]
        else:
            headers = [dict(re.findall(r"(?m)^# ([a-z0-9_]+): (.*)$", part)) for part in parts[1:]]
            runs = [Run(head, log) for head, part in zip(headers, parts[1:], strict=True) for log in parse_all(part)]
    except MtprefError as error:
        raise MtprefError(f"{printable(str(path), 400)}: {error}") from None
    if not any(run.log.unfinished or any(r.steps or run.log.request is None for r in run.log.rounds) for run in runs):
        raise MtprefError(f"{printable(str(path), 400)}: no draft candidate and no acceptance in it, expected the log "
                          "of llama-speculative-simple or llama-server -lv 5 --spec-type draft-mtp (it goes to "
                          "stderr)")  # fmt: skip
    return runs


def read_text(path: Path) -> str:
    """A log as text, unpacked where its name ends in .gz; MtprefError where it cannot be read or is too large."""
    label = printable(str(path), 400)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_LOG_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise MtprefError(f"{label}: cannot be read ({error}); expected a log of llama-speculative-simple") from None
    if len(raw) > MAX_LOG_BYTES:
        raise MtprefError(f"{label}: more than {MAX_LOG_BYTES >> 20} MiB, expected the log of a shorter run")
    return raw.decode("utf-8", "replace").replace("\r\n", "\n")
