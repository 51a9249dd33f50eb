"""A comparison as text for people."""

from mtpref.base.errors import one_line
from mtpref.look.compare.files import Comparison, Difference


def render(comparison: Comparison) -> str:
    """A table, then the first divergence, what feeds it, and hints; names are escaped for a terminal."""
    width = max(len(d.name) for d in comparison.differences)
    head = f"{'nmse':>10s}  {'rel l2':>10s}  {'max abs':>10s}  {'max ulp':>10s}  {'cosine':>11s}  worst row"
    lines = [f"{'tensor':{width}s}  {head}"]
    lines += [_row(d, width, comparison.limit) for d in comparison.differences]
    for label, names in (("first", comparison.only_a), ("second", comparison.only_b)):
        if names:
            lines.append(f"only in the {label} file: {len(names)} ({', '.join(names[:6])}{', ...' * (len(names) > 6)})")
    return "\n".join([*map(one_line, lines), *verdict(comparison)])


def _row(d: Difference, width: int, limit: float) -> str:
    m = d.measures
    ulp = "-" if m.max_ulp is None else str(m.max_ulp)
    row = "-" if m.worst_row is None else str(m.worst_row)
    remarks = "; ".join(text for text in (d.note, d.remark) if text)
    marks = f"{'  (bit-equal)' * m.is_bit_equal}{'  <-- differs' * d.exceeds(limit)}"
    numbers = f"{m.nmse:10.3e}  {m.rel_l2:10.3e}  {m.max_abs:10.3e}  {ulp:>10s}  {m.cosine:11.8f}  {row:>9s}"
    return f"{d.name:{width}s}  {numbers}{marks}  {remarks}".rstrip()


def verdict(comparison: Comparison) -> list[str]:
    """The last lines: the first divergence, the step that makes it, its inputs, layouts that would agree."""
    first = comparison.first_divergence
    if first is None:
        n = len(comparison.differences)
        return [f"no tensor differs by more than NMSE {comparison.limit:g} ({n} compared)"]
    lines = [f"first divergence (NMSE > {comparison.limit:g}), in execution order: {first.name}"]
    if comparison.step:
        lines.append(f"  made by: {comparison.step}")
    lines += [f"  fed by:  {feed.name}: {feed.verdict}" for feed in comparison.feeds]
    if comparison.feeds and all(feed.verdict == "equal" for feed in comparison.feeds):
        lines.append("  all its inputs are equal: the step itself differs, its weights, or state that it reads")
    for d in comparison.differences:
        lines += [f"  hint: {d.name} of the second file {hint}" for hint in d.hints]
    return [one_line(line) for line in lines]
