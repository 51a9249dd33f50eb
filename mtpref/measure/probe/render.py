"""A report as lines for people: tables, and bars of plain ASCII.

Owns the words. It must not compute anything.
"""

from collections.abc import Sequence

from mtpref.measure.probe.report import Report
from mtpref.measure.probe.tables import Bin, Calibration, Group

BAR = 30


def lines(report: Report) -> list[str]:
    out = _acceptance(report)
    out += ["", *_chart(report)]
    if len(report.domains) > 1:
        out += ["", "by domain (against the trunk)", *_groups("domain", report.domains)]
    if len(report.contexts) > 1:
        out += ["", "by context: tokens before the position (against the trunk)", *_groups("tokens", report.contexts)]
    for found in report.calibrations:
        out += ["", *_calibration(found)]
    out += ["", *_ranks(report), "", *_margins(report)]
    if report.controls:
        out += ["", *_controls(report)]
    if report.contracts:
        out += ["", *_contracts(report)]
    return out


def _acceptance(report: Report) -> list[str]:
    s = report.settings
    head = (
        f"{report.reached[0]} positions of {report.n_tokens} tokens, {_count(report.n_windows, 'window')}, "
        f"{_count(report.n_blocks, 'block')} of {s.block} tokens; contract {report.contract}, "
        f"numerics {report.numerics}"
    )
    columns = [rates for g in (report.trunk, report.text) for rates in (g.conditional, g.unconditional)]
    rows = [
        [str(k + 1), str(report.reached[k]), str(report.right[k]), *(rates[k].shown() for rates in columns)]
        for k in range(s.n_draft)
    ]
    titles = ["draft", "reached", "right", "trunk: conditional", "unconditional", "text: conditional", "unconditional"]
    own = report.language
    return [
        head,
        "",
        "acceptance by draft position: against the trunk's argmax (what greedy decoding accepts), against the text",
        *table(titles, rows),
        f"tokens per round of {s.n_draft} drafts, 1 + a_1 + ... + a_{s.n_draft}: {report.trunk.mean_length.shown(2)}",
        f"the text's own next token: trunk right {_share(own.trunk_right)} ({_nats(own.trunk_nats)} nats), head right "
        f"{_share(own.head_right)} ({_nats(own.head_nats)} nats)",
    ]


def _chart(report: Report) -> list[str]:
    rows = [(f"a_{k + 1}", e.value) for k, e in enumerate(report.trunk.unconditional)]
    rows += [(f"a_1 {g.name}", g.unconditional[0].value) for g in report.domains if len(report.domains) > 1]
    rows += [(f"a_1 at {g.name}", g.unconditional[0].value) for g in report.contexts if len(report.contexts) > 1]
    rows += [(f"a_1 {c.name}", c.rate.value) for c in report.controls]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}s}  {bar(value)} {_share(value)}" for name, value in rows]


def bar(share: float | None) -> str:
    n = 0 if share is None else round(BAR * min(1.0, max(0.0, share)))
    return "#" * n + "." * (BAR - n)


def _groups(title: str, groups: Sequence[Group]) -> list[str]:
    n = len(groups[0].unconditional)
    titles = [title, "positions", *(f"a_{k + 1}" for k in range(n)), "tokens per round"]
    rows = [[g.name, str(g.n), *(e.shown() for e in g.unconditional), g.mean_length.shown(2)] for g in groups]
    return table(titles, rows)


def _calibration(found: Calibration) -> list[str]:
    rows = [
        [f"{b.low:.1f}-{b.high:.1f}", str(b.n), _share(b.mean), _share(b.right), bar(b.right)]
        for b in found.bins
        if b.n and b.high is not None
    ]
    ece = "-" if found.ece is None else f"{found.ece:.4f}"
    return [f"calibration: {found.what}; ECE {ece}", *table(["p", "n", "mean p", "right", ""], rows)]


def _ranks(report: Report) -> list[str]:
    r = report.ranks
    rows = [[_range(low, None if high is None else high - 1), str(n), _share(n / r.n if r.n else None)]
            for low, high, n in r.bins if n]  # fmt: skip
    if r.n_unnamed:
        rows.append(["not among its ids", str(r.n_unnamed), _share(r.n_unnamed / r.n)])
    median = "-" if r.median is None else f"{r.median:g}"
    return [
        f"rank of the trunk's argmax in the head, step 1: median {median}; its probability there: mean "
        f"{_share(r.mean_p)}, geometric mean {_share(r.geometric_mean_p)}",
        *table(["rank", "n", "share"], rows),
    ]


def _margins(report: Report) -> list[str]:
    rows = [[_span(b), str(b.n), _share(b.right)] for b in report.margins if b.n]
    return [
        f"by the trunk's margin (best logit less second best); near ties (below 0.01): {report.n_near_ties}",
        *table(["margin", "n", "a_1"], rows),
    ]


def _controls(report: Report) -> list[str]:
    rows = [[c.name, c.rate.shown(), c.head_less_control.shown(), c.about] for c in report.controls]
    out = table(["control", "a_1", "head less control", "what it is"], rows)
    return ["controls, at the same positions", *out, report.verdict or ""]


def _contracts(report: Report) -> list[str]:
    n = report.settings.n_draft
    titles = [
        "contract",
        *(f"a_{k + 1}" for k in range(n)),
        "tokens per round",
        "a_1 less probed",
        "tokens less probed",
    ]
    rows = [
        [
            c.contract + (" (probed)" if c.is_probed else ""),
            *(e.shown() for e in c.group.unconditional),
            c.group.mean_length.shown(2),
            "" if c.is_probed else c.a1_less_probed.shown(),
            "" if c.is_probed else c.length_less_probed.shown(2),
        ]
        for c in report.contracts
    ]
    return [
        "contracts, at the same positions (95 % intervals: jackknife over blocks, differences paired)",
        *table(titles, rows),
        f"fields that no text can show: {', '.join(report.invisible)}",
    ]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell."""
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [titles, *rows]
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(low: int, high: int | None) -> str:
    return f"{low}-" if high is None else str(low) if low == high else f"{low}-{high}"


def _span(b: Bin) -> str:
    return f"{b.low:g}-" if b.high is None else f"{b.low:g}-{b.high:g}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
