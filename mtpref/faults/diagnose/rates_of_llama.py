"""Rates in the logs of llama.cpp and ik_llama.cpp.

Owns their lines. Definitions: common/speculative.cpp, tools/server/server-context.cpp, speculative-simple.cpp; older
ones: pull request 24536 and what stood before it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mtpref.faults.diagnose.rate_pool import LIST, F, N, falling, lines_with, numbers
from mtpref.faults.diagnose.rates import MAX_N, Rates, is_cut

_REQUEST = re.compile(
    rf"draft acceptance(?: rate)? = +{F} \( *{N} accepted / *{N} generated\)"
    rf"(?:, mean (?:len|acceptance length) = +{F})?(?:, acceptance rate per position = {LIST})?"
    rf"|acc per pos = {LIST}"
)
_STATISTICS = re.compile(
    rf"statistics +(\S{{1,40}}?): #calls(?:\(b,g,a\))? = +{N}(?: +{N} +{N})?, #gen drafts = +{N}, #acc drafts = +{N}, "
    rf"#gen tokens = +{N}, #acc tokens = +{N}(?:, #mean acc len = +{F})?(?:, #acc rate/pos = {LIST})?"
)
_SETTINGS = re.compile(r"- n_max=(\d{1,9}), n_min=\d{1,9}, p_min=(\d{1,3}\.\d{1,9}), n_embd=")
_SUMMARY = re.compile(rf"\b(n_draft|n_drafted|n_accept) {{1,3}}= {N}(?=\s|$)")
_ROUND = re.compile(
    rf"(?:(id +\d{{1,9}} \| task +-?\d{{1,9}}) \| )?accepted +{N}/ *{N} draft tokens( \(restore checkpoint\))?"
    rf"|partial acceptance: {N} < {N}, (restoring) checkpoint"
)
_REPLAY = re.compile(r"restoring (?:speculative )?checkpoint|\(restore checkpoint\)")
REPLAYED = (
    "the target's state was restored from checkpoints (it cannot be rolled back), and llama.cpp then counts the "
    "replayed tokens, the target's own among them, as drafted and accepted: its totals mean nothing (100 % in "
    "llama-speculative-simple); use the log of -lv 5, or llama-server's line a request"
)


def of_llama(text: str) -> Rates | None:
    """The best of what llama.cpp and ik_llama.cpp print: rounds one by one, statistics of draft-mtp, a line a request,
    the summary of llama-speculative-simple."""
    n_max, p_min = _settings(text)
    is_replayed = _REPLAY.search(lines_with(text, "checkpoint")) is not None
    drafters = {match[1] for match in _STATISTICS.finditer(lines_with(text, "#gen drafts")) if int(match[7]) > 0}
    others = sorted(name for name in drafters if not _is_mtp(name))
    rounds, requests = (None, None) if others else (_of_rounds(text), _of_requests(text, n_max))
    statistics, summary = _of_statistics(text, n_max), _of_summary(text)
    by_request = requests if requests is not None and requests.positions else None
    found = rounds or by_request or statistics or requests or summary or (_of_requests(text, n_max) if others else None)
    if found is None:
        return None
    drafted = sum(s[1] for s in _summary(text))
    is_all = summary is not None and summary.accepted == summary.drafted
    if found is not rounds and found is not requests and (is_replayed or (is_all and (found.drafted or 0) > drafted)):
        found = replace(found, spoiled=REPLAYED)
    elif found is not rounds and is_all and not is_replayed:
        note = "where the target's state is restored from checkpoints (qwen3next, ...) llama-speculative-simple prints "
        found = replace(found, notes=(*found.notes, note + "100 % whatever happens"))
    if others and found is not statistics:
        found = replace(found, spoiled=f"drafts of {', '.join(others)}, not of an MTP head, are counted in these lines")
    return replace(found, is_cut=found.is_cut or p_min > 0 or is_cut(found.drafted, found.rounds, found.n_max))


def _is_mtp(name: str) -> bool:
    return "mtp" in name.lower()


def _settings(text: str) -> tuple[int | None, float]:
    found = _SETTINGS.findall(lines_with(text, "n_max="))
    return (int(found[-1][0]), float(found[-1][1])) if found else (None, 0.0)


def _of_rounds(text: str) -> Rates | None:
    """LLAMA_TRACE=1, or -lv 5 without its candidates."""
    requests, was_replayed = _verdicts(text)
    rounds = [r for request in requests for r in request]
    if not rounds:
        return None
    full: list[bool] = []
    other: list[bool] = []
    for request in requests:
        for (a, d), (b, _) in pairwise(request):
            (full if a == d else other).append(b > 0)
    n = max(drafted for _, drafted in rounds)
    return Rates(
        "rounds of llama.cpp",
        sum(a for a, _ in rounds),
        sum(d for _, d in rounds),
        len(rounds),
        n,
        tuple(sum(a > i for a, _ in rounds) / len(rounds) for i in range(n)),
        after_full=_mean(full) if full and other else None,
        after_partial=_mean(other) if full and other else None,
        n_parts=len(requests),
        notes=("rounds that went back to a checkpoint are counted once, without their replay",) if was_replayed else (),
    )


def _verdicts(text: str) -> tuple[list[list[tuple[int, int]]], bool]:
    """(accepted, drafted) of each round, request by request, and whether rounds were replayed: a verdict that makes the
    target go back to a checkpoint counts, the replay that follows in that request does not."""
    requests: dict[str, list[tuple[int, int]]] = {}
    replays: set[str] = set()
    was_replayed = False
    for match in _ROUND.finditer(lines_with(text, " draft tokens", "restoring checkpoint")):
        request = match[1] or ""
        accepted, drafted = (int(x) for x in ((match[2], match[3]) if match[2] else (match[5], match[6])))
        if request in replays and not match[7]:
            replays.discard(request)
            if not match[4]:
                continue
        if match[4] or match[7]:
            replays.add(request)
            was_replayed = True
        if 0 < drafted <= MAX_N and accepted <= drafted:
            requests.setdefault(request, []).append((accepted, drafted))
    return list(requests.values()), was_replayed


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _of_statistics(text: str, n_max: int | None) -> Rates | None:
    """Counters since the program began: the last line before they fall (a new program) counts. Drafts that were made
    are the rounds; #acc rate/pos leaves out positions that were never accepted."""
    lines = [
        match
        for match in _STATISTICS.finditer(lines_with(text, "#gen drafts"))
        if _is_mtp(match[1]) and int(match[7]) > 0
    ]
    last = [a for a, b in pairwise(lines) if int(b[7]) < int(a[7])] + lines[-1:]
    if not last:
        return None
    drafts, drafted, accepted = (sum(int(match[i]) for match in last) for i in (5, 7, 8))
    found = Rates("statistics of llama.cpp", accepted, drafted, drafts, n_max, n_parts=len(last))
    n = min(max(n_max or -(-drafted // max(1, drafts)), 1), MAX_N)
    parts = [(numbers(match[10]), int(match[4] or match[5])) for match in last if match[10] is not None]
    if len(parts) < len(last):
        return found
    rounds = sum(r for _, r in parts)
    padded = [[*rates, *[0.0] * n][:n] for rates, _ in parts]
    positions = tuple(sum(p[i] * r for p, (_, r) in zip(padded, parts, strict=True)) / max(1, rounds) for i in range(n))
    return replace(found, positions=falling(positions))


def _of_requests(text: str, n_max: int | None) -> Rates | None:
    """llama-server's line a request, and its rates by position where they are printed (-lv 4)."""
    requests: list[tuple[int, int, float | None, list[float]]] = []
    for match in _REQUEST.finditer(lines_with(text, "draft acceptance", "acc per pos")):
        if match[2] is not None:
            by_position = numbers(match[5]) if match[5] else []
            requests.append((int(match[2]), int(match[3]), float(match[4]) if match[4] else None, by_position))
        elif requests and not requests[-1][3]:
            requests[-1] = (*requests[-1][:3], numbers(match[6]))
    requests = [r for r in requests if r[1] > 0]
    if not requests:
        return None
    accepted, drafted = sum(r[0] for r in requests), sum(r[1] for r in requests)
    rounds = [_rounds_of(*r) for r in requests]
    known = None if any(x is None for x in rounds) else float(sum(x or 0 for x in rounds))
    found = Rates("llama-server", accepted, drafted, known, n_max, n_parts=len(requests))
    n = max(len(r[3]) for r in requests)
    if known and n and all(r[3] for r in requests):
        padded = [[*r[3], *[0.0] * n][:n] for r in requests]
        mean = (sum(p[i] * (x or 0) for p, x in zip(padded, rounds, strict=True)) / known for i in range(n))
        return replace(found, n_max=n, positions=falling(tuple(mean)))
    return found


def _rounds_of(accepted: int, drafted: int, mean: float | None, by_position: Sequence[float]) -> float | None:
    """Rounds of a request: mean length is 1 + accepted / rounds, and so is 1 + the sum of its rates by position."""
    if accepted and sum(by_position) > 0:
        return accepted / sum(by_position)
    if by_position:
        return drafted / len(by_position)
    if mean is not None and mean >= 1.1:
        return accepted / (mean - 1)
    return None


def _summary(text: str) -> list[tuple[int | None, int, int]]:
    """(n_max, drafted, accepted) of each summary of llama-speculative-simple."""
    found: list[tuple[int | None, int, int]] = []
    values: dict[str, int] = {}
    for match in _SUMMARY.finditer(lines_with(text, "n_draft", "n_accept")):
        values[match[1]] = int(match[2])
        if match[1] == "n_accept" and "n_drafted" in values:
            found.append((values.get("n_draft"), values["n_drafted"], values["n_accept"]))
            values = {}
    return found


def _of_summary(text: str) -> Rates | None:
    found = [s for s in _summary(text) if s[1] > 0 and s[2] <= s[1]]
    if not found:
        return None
    lengths = {s[0] for s in found}
    n_max = lengths.pop() if len(lengths) == 1 else None
    n_max = n_max if n_max and n_max <= MAX_N else None
    drafted, accepted = sum(s[1] for s in found), sum(s[2] for s in found)
    return Rates("llama-speculative-simple", accepted, drafted, n_max=n_max, n_parts=len(found))
