"""A benchmark as lines for people.

Owns the words and how numbers are written. It must not measure anything.
"""

import statistics

from mtpref.measure.bench.report import Bench, Row

HEADS = {
    "prompt": "prompt: tokens in one pass",
    "decode": "decode: a token at a time",
    "verify": "verify: so many tokens in one pass, recurrent state kept after each",
    "draft": "draft: one step of the head, by its vocabulary; step k of a chain is head k over k rows",
    "rollback": "roll back: what a strategy adds to the pass over the draft (replay: after a rejection of all)",
    "mtp": "MTP, its drafts right with probability {acceptance:g} each; text and passes are real",
}


def lines(found: Bench) -> list[str]:
    out = [_machine(found)]
    for part in found.settings.parts:
        own = [row for row in found.rows if row.part == part]
        if own:
            out += ["", HEADS[part].format(acceptance=found.settings.acceptance)]
            out += [_line(row, found) for row in own]
    if found.theirs:
        out += ["", f"x: times as fast as llama-bench, by medians, alternated with it ({found.theirs})"]
    return out


def _machine(found: Bench) -> str:
    reads = ""
    if found.read_gb:
        reads = f"; plain reads {found.bandwidth:.1f} GB/s ({min(found.read_gb):.1f} .. {max(found.read_gb):.1f})"
    rounds = found.settings.n_rounds
    return f"{found.n_threads} threads, medians of {rounds} (least .. greatest){reads}"


def _line(row: Row, found: Bench) -> str:
    ms = statistics.median(row.ms)
    spread = f"({_number(min(row.ms))} .. {_number(max(row.ms))})"
    text = f"  {row.name:18s} {_number(ms):>9s} ms {spread:22s}"
    if row.part in ("prompt", "decode", "verify", "mtp"):
        text += f" {row.rate:9.2f} t/s"
    share = row.share_of(found.bandwidth)
    if share is not None:
        text += f"  weights at {100 * share:.0f} % of plain reads"
    if row.n_experts:
        text += f"  {row.n_experts:.1f} experts a layer"
    if row.part == "mtp" and row.name != "plain":
        plain = found.row("mtp", "plain")
        text += f"  {row.rate / plain.rate:.2f} of plain" if plain else ""
    decode = found.row("decode", "1")
    if row.part == "draft" and decode:
        text += f"  {100 * ms * decode.rate / 1000:.0f} % of a decode step"
    if row.part == "rollback":
        verify = found.row("verify", str(int(row.name.rpartition("=")[2]) + 1))
        text += f"  {100 * ms / statistics.median(verify.ms):.1f} % of the pass" if verify else ""
    if row.ratio is not None:
        text += f"  {row.ratio:.2f} x ({_number(statistics.median(row.theirs))} ms)"
    return text.rstrip()


def _number(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"
