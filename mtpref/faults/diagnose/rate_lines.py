"""Rates out of text: the lines in which engines print acceptance, and the numbers that people type.

Owns the formats (docs/diagnosis.md has the table: what each can tell and where its definition is from). It must not
know hypotheses. Several requests, slots or intervals are pooled by their counts; counters that run on (llama.cpp's
statistics) are taken at their last line.
"""

import re
from dataclasses import replace
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.faults.diagnose.port_run import LogSource, open_log
from mtpref.faults.diagnose.rate_pool import N
from mtpref.faults.diagnose.rates import MAX_N, Rates
from mtpref.faults.diagnose.rates_of_engines import READERS
from mtpref.faults.diagnose.rates_of_llama import of_llama
from mtpref.files.gguf import printable

_CANDIDATE = re.compile(r"draft candidate +\d{1,3}, pos +\d{1,9}:")
# What engines print of a drafter that gave no draft.
_NOTHING = re.compile(
    r"\( *0 accepted / *0 generated\)|#gen tokens = +0,|\bn_drafted += 0(?=\s|$)|Drafted: 0 tokens|mean len = nan"
)
READ = (
    "the rate lines of llama-server, llama-speculative-simple, ik_llama.cpp, vLLM, SGLang, mlx-vlm or oMLX "
    "(docs/diagnosis.md); rates from elsewhere go to --stats, such as --stats 44/120 `n_max` 3"
)


def read_rates(path: str | Path | LogSource) -> Rates | None:
    """The rates in a log without draft candidates; None where the file is something else that --log reads (candidates,
    a trace, a JSON).

    Errors  MtprefError for a log that holds neither candidates nor rates
    """
    source = path if isinstance(path, LogSource) else open_log(path)
    if source.file is not None or _CANDIDATE.search(source.text):
        return None
    found = find_rates(source.text)
    if found is None and _NOTHING.search(source.text):
        raise MtprefError(
            f"{source.label}: nothing was drafted in it, expected drafts; has the file its head (mtpref check FILE), "
            "and was the engine told to draft (llama.cpp: --spec-type draft-mtp, --spec-draft-n-max above 0)?"
        )
    if found is None:
        raise MtprefError(
            f"{source.label}: no draft candidate and no acceptance rate in it, expected a log of "
            f"llama-speculative-simple -lv 5 --spec-type draft-mtp (it may end before its log is written: run again), "
            f"a trace, a run as JSON, or {READ}"
        )
    return replace(found, source=f"{source.label}, {found.source}")


def find_rates(text: str) -> Rates | None:
    """The rates of the first engine whose lines stand in the text; None where there are none."""
    for find in (of_llama, *READERS):
        found = find(text)
        if found is not None:
            return found
    return None


# ------------------------------------------------------------------------------------------------- --stats

_COUNT = re.compile(rf"{N}\s*(?:/|of)\s*{N}")
_MEAN = re.compile(
    r"(?i)(?:mean(?: (?:acc(?:ept(?:ance)?)? )?len(?:gth)?)?|al|acc(?:ept(?:ance)?)? len(?:gth)?)"
    r" ?[:=]? ?(\d{1,3}(?:\.\d{1,9})?)"
)
_RATE = re.compile(r"(\d{1,3}(?:\.\d{1,12})?|\.\d{1,12})(%?)")
MAX_STATS = 1 << 16


def parse_stats(text: str, n_max: int | None = None, rounds: int | None = None) -> Rates:
    """What --stats takes: rates by position (0.84,0.69 or 84% 69% or (0.84, 0.69)), an aggregate as counts (44/120) or
    with n_max (36.7% and --n-max 3), a mean length ("mean 2.34"), or a line that an engine printed.

    A single rate without n_max may be position 1's or an aggregate: it is read as both (rates.readings).
    Errors  MtprefError for anything else
    """
    if len(text) > MAX_STATS:
        raise MtprefError(f"`stats`: {len(text)} characters, expected rates; a log goes to `log`")
    plain = re.sub(r"\s+", " ", text.strip()).strip("()[]{} ").replace(" %", "%")
    found: Rates | None = None
    if match := _COUNT.fullmatch(plain):
        found = Rates("--stats", int(match[1]), int(match[2]))
    elif match := _MEAN.fullmatch(plain):
        found = Rates("--stats", mean=float(match[1]))
    else:
        parts = [_RATE.fullmatch(part) for part in re.split(r" ?[,;] ?| ", plain)]
        if plain and all(parts) and len(parts) <= MAX_N:
            found = _given([(float(part[1]), part[2] == "%") for part in parts if part], n_max)
        else:
            found = find_rates(text)
    if found is None:
        raise MtprefError(
            f"`stats`: {printable(text, 40)!r} is no rate, expected such as 0.82,0.66,0.5 (by position), 44/120 "
            '`n_max` 3 (accepted / drafted), "mean 2.34" `n_max` 3, or a line that an engine printed'
        )
    return replace(found, rounds=found.rounds if rounds is None else rounds)


def _given(values: list[tuple[float, bool]], n_max: int | None) -> Rates:
    is_percent = any(percent for _, percent in values) or any(1 < value <= 100 for value, _ in values)
    rates = tuple(value / 100 if is_percent else value for value, _ in values)
    if len(rates) > 1 or n_max == 1:
        return Rates("--stats", positions=rates)
    if not 0 <= rates[0] <= 1:
        given = f"{values[0][0]:g}"
        raise MtprefError(
            f'`stats`: {given} is no rate, expected 0 .. 1 or 0 .. 100 %; a mean length is "mean {given}"'
        )
    return Rates("--stats", aggregate=rates[0])
