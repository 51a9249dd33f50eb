"""A comparison as one HTML page: the verdict, the error of each tensor by layer as a curve, the table.

Owns the page. It stands alone (no scripts, no network), follows the reader's light or dark setting, and everything that
comes from a file is escaped. The curve repeats what the table says.
"""

import math
import re
from html import escape

from mtpref.base.errors import one_line
from mtpref.look.compare.files import Comparison, Difference
from mtpref.look.compare.text import verdict

FLOOR = 1e-18  # what an NMSE of 0 is drawn at
CEILING = 1e3
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 320, 56, 16, 40

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5c5c66; --line: #d4d4da; --page: #ffffff; --ok: #1f6f4a;
  --bad: #b3261e; --band: #f4f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --soft: #a5a5b0; --line: #3a3a42; --page: #16161a;
  --ok: #6fce9f; --bad: #ff8a80; --band: #202026; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
pre { background: var(--band); padding: .8rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:last-child { white-space: normal; }
tr.bad td, tr.bad th { color: var(--bad); }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); } svg .limit { stroke: var(--bad); stroke-dasharray: 5 4; }
svg .curve { fill: none; stroke: var(--ok); stroke-width: 1.5; } svg .dot { fill: var(--ok); }
svg .bad { fill: var(--bad); }
"""


def render_html(comparison: Comparison) -> str:
    """The whole page."""
    a, b = (_safe(label) for label in comparison.labels)
    rows = "\n".join(_row(d, comparison.limit) for d in comparison.differences)
    only = [("first", comparison.only_a), ("second", comparison.only_b)]
    missing = "".join(f"<p>Only in the {w} file: {_safe(', '.join(names))}</p>\n" for w, names in only if names)
    heads = ("tensor", "NMSE", "rel L2", "max abs", "max ulp", "cosine", "worst row", "remarks")
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>mtpref compare</title><style>{_STYLE}</style></head><body>
<h1>mtpref compare</h1>
<p>First: <code>{a}</code><br>Second: <code>{b}</code></p>
<pre>{escape(chr(10).join(verdict(comparison)))}</pre>
<h2>Error by layer</h2>
<p>Each dot is a tensor, in the order of execution; the line joins the greatest error of each layer. Dashed: the limit.
Values below {FLOOR:g}, and 0, are drawn at {FLOOR:g}.</p>
{_curve(comparison)}
<h2>Tensors</h2>
<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>
{rows}
</tbody></table></div>
{missing}</body></html>
"""


def _safe(text: str) -> str:
    return escape(one_line(text))


def _row(d: Difference, limit: float) -> str:
    m = d.measures
    remarks = "; ".join(_safe(text) for text in (d.note, d.remark, *d.hints) if text)
    if m.is_bit_equal:
        remarks = f"bit-equal{'; ' * bool(remarks)}{remarks}"
    numbers = [f"{m.nmse:.3e}", f"{m.rel_l2:.3e}", f"{m.max_abs:.3e}", "-" if m.max_ulp is None else str(m.max_ulp),
               f"{m.cosine:.8f}", "-" if m.worst_row is None else str(m.worst_row)]  # fmt: skip
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    kind = ' class="bad"' if d.exceeds(limit) else ""
    return f'<tr{kind}><th scope="row">{_safe(d.name)}</th>{cells}<td>{remarks}</td></tr>'


def layer_of(name: str) -> str:
    """The label of a tensor on the axis: its layer ("3", "mtp 4"), or what stands around the layers."""
    match = re.fullmatch(r"(mtp_)?.+-(\d{1,6})", name)
    if match:
        return f"{'mtp ' if match[1] else ''}{int(match[2])}"
    if name.startswith("mtp_"):
        return "mtp head"
    return "in" if name in ("tokens", "model.input_embed") else "out"


def _curve(comparison: Comparison) -> str:
    """The error curve as inline SVG."""
    found = comparison.differences
    groups: dict[str, list[int]] = {}
    for i, d in enumerate(found):
        groups.setdefault(layer_of(d.name), []).append(i)
    x = [LEFT + (WIDTH - LEFT - 12) * (i + 0.5) / len(found) for i in range(len(found))]
    y = [_height(d.nmse) for d in found]
    parts = [_grid(comparison.limit)]
    peaks = []
    every = -(-len(groups) // 24)  # at most 24 labels
    for n, (label, members) in enumerate(groups.items()):
        top = min(members, key=lambda i: (y[i], i))
        peaks.append(f"{x[top]:.1f},{y[top]:.1f}")
        if n % every == 0:
            middle = sum(x[i] for i in members) / len(members)
            parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{_safe(label)}</text>')
    parts.append(f'<polyline class="curve" points="{" ".join(peaks)}"/>')
    for d, cx, cy in zip(found, x, y, strict=True):
        kind = "dot bad" if d.exceeds(comparison.limit) else "dot"
        title = f"<title>{_safe(d.name)}: NMSE {d.nmse:.3e}</title>"
        parts.append(f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="3">{title}</circle>')
    n_bad = sum(d.exceeds(comparison.limit) for d in found)
    about = f"NMSE of {len(found)} tensors by layer, logarithmic; {n_bad} are above the limit of {comparison.limit:g}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_safe(about)}"><title>{_safe(about)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _grid(limit: float) -> str:
    lines = []
    for exponent in range(-18, 4, 3):
        at = _height(10.0**exponent)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    at = _height(limit)
    lines.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - 12}" y1="{at:.1f}" y2="{at:.1f}"/>')
    return "\n".join(lines)


def _height(nmse: float) -> float:
    """The y coordinate of an error; what is not finite stands at the top."""
    value = CEILING if not math.isfinite(nmse) else min(max(nmse, FLOOR), CEILING)
    share = (math.log10(value) - math.log10(FLOOR)) / (math.log10(CEILING) - math.log10(FLOOR))
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
