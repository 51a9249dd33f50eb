"""The lines of llama.cpp's `-lv 5` logs that tell what a run did, one after another.

Owns the wording of llama-speculative-simple, llama-server and common/speculative.cpp, and nothing of its meaning. Every
pattern is bounded, so that the time is linear in the text whatever it holds.
"""

import re
from collections.abc import Iterator

MAX_PIECE = 400
_SLOT = r"slot {1,12}\S{1,12}: id {1,4}(?P<slot>\d{1,6}) \| task (?P<task>\d{1,9}) \| "
_SEQ = re.compile(r"- seq_id (\d{1,6}), ")
# Each alternative begins with a letter of its own, so that the search runs over other text fast.
_EVENT = re.compile(
    r"draft candidate {1,8}(?P<rank>\d{1,3}), pos {1,9}(?P<pos>\d{1,9}): {1,12}"
    r"(?P<id>-?\d{1,9}) \( {0,12}(?P<p>\d{1,3}\.\d{1,9}|-?nan(?:\(ind\))?)\) '"
    r"|accepted (?P<n_accepted>\d{1,9})/(?P<n_draft>\d{1,9}) draft tokens, "
    r"the last target token is: \((?P<id_last>-?\d{1,9})\)"
    r"|partial acceptance: (?P<n_kept>\d{1,9}) < (?P<n_tried>\d{1,9}), restoring"
    r"|- n_max=(?P<n_max>\d{1,9}), n_min=(?P<n_min>\d{1,9}), p_min=(?P<p_min>\d{1,3}\.\d{1,9})"
    r"|adding (?P<start>speculative implementation)"
    r"|encoded {1,6}(?P<n_prompt>\d{1,9}) tokens in "
    r"|n_(?<!\wn_)(?P<count>draft|predict|drafted|accept) {1,8}= (?P<value>\d{1,12})(?=\n|$)"
    r"|statistics {1,16}draft-mtp: (?P<statistics>[^\n]{0,4096})"
    r"|\n(?P<minutes>\d{1,6})\.(?P<seconds>\d\d)\.(?P<ms>\d{3})\.(?P<us>\d{3}) "
    r"|temp(?<=[, \t]temp) = (?P<temp>\d{1,6}\.\d{1,9})"
    rf"|{_SLOT}(?:"
    r"processing task, is_child = (?P<is_child>\d)"
    r"|new prompt, n_ctx_slot = \d{1,9}, n_keep = -?\d{1,9}, task\.n_tokens = (?P<n_task>\d{1,9})"
    r"|cached n_tokens = (?P<n_cached>\d{1,9}), "
    r"|n_gen = (?P<n_gen>\d{1,9}), n_remaining = -?\d{1,9}, next token: {1,8}(?P<next>-?\d{1,9}) '"
    r"|add accepted tokens: sampled=(?P<sampled>-?\d{1,9}), ids\.size=(?P<n_ids>\d{1,9}), "
    r"n_draft=(?P<n_drafted>\d{1,9})"
    r"|(?P<stop>stop processing)"
    r"|(?P<shift>slot context shift|restoring speculative checkpoint))"
)
_COUNTS = re.compile(r"#(gen drafts|acc drafts|gen tokens|acc tokens|mean acc len) = {1,8}(\d{1,12}(?:\.\d{1,9})?)")
_CALLS = re.compile(r"#calls\(b,g,a\) = {1,8}(\d{1,12}) {1,8}(\d{1,12}) {1,8}(\d{1,12})")
_RATES = re.compile(r"#acc rate/pos = \(([0-9., ]{0,4096})\)")
_RATE = re.compile(r"\d{1,3}\.\d{1,9}")


def events(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each line that tells something, and the token's text where it ends in one. `lastgroup` says what it is.

    A token's text may hold quotes and newlines: it ends at the first quote before a newline, within MAX_PIECE
    characters; a line whose end is missing is no event.
    """
    at = 0
    while match := _EVENT.search(text, at):
        at, piece = match.end(), ""
        if match.lastgroup in ("p", "next"):
            end = text.find("'\n", at, at + MAX_PIECE + 2)
            if end < 0 and len(text) - at <= MAX_PIECE + 1 and text.endswith("'", at):
                end = len(text) - 1
            if end < 0:
                continue
            piece, at = text[at:end], end
        yield match, piece


def counts(line: str) -> tuple[dict[str, float], tuple[int, int, int] | None, list[float]]:
    """Of a statistics line: its counts by name, its three numbers of calls, its rates by position."""
    calls, rates = _CALLS.search(line), _RATES.search(line)
    return (
        {name: float(value) for name, value in _COUNTS.findall(line)},
        (int(calls[1]), int(calls[2]), int(calls[3])) if calls else None,
        [float(x) for x in _RATE.findall(rates[1])] if rates else [],
    )


def seq_id(match: re.Match[str]) -> int:
    """The sequence of a draft candidate: it stands before it, and recordings leave it out."""
    before = _SEQ.search(match.string, max(0, match.start() - 18), match.start())
    return int(before[1]) if before else 0


def times(match: re.Match[str]) -> list[float]:
    """The time that stands in front of a line, since the program's start; more than one where digits of the text may
    stand in front of it (after "\\n1" of a list, 10.00.146.188 is 0.00.146.188): the smallest first."""
    rest = int(match["seconds"]) + int(match["ms"]) / 1e3 + int(match["us"]) / 1e6
    minutes = match["minutes"]
    return [60 * int(minutes[i:]) + rest for i in range(len(minutes) - 1, -1, -1)]
