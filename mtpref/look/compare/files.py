"""Comparison of two files of tensors: which differ, by how much, which is the first to differ, and what feeds it.

Owns the verdict. Either file may come from any engine; only names and shapes must agree.
"""

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.look.compare.layouts import aligned, layout_hints
from mtpref.look.compare.measures import Measures, measure
from mtpref.look.compare.printed import choose, compare_both_printed, compare_printed
from mtpref.look.compare.producers import producer_of
from mtpref.look.compare.sources import Source, open_source
from mtpref.look.llama_cpp.callback import Printed

SCHEMA = "mtpref-compare-1"
DEFAULT_LIMIT = 1e-6
MAX_HINTED = 8  # layouts are tried for so many tensors
_NONE = Measures(False, math.inf, math.inf, math.nan, math.inf, None, None, False)


@dataclass(frozen=True)
class Difference:
    """One tensor of both files.

    measures   how far apart the values are; infinite where they could not be compared
    note       why the tensor counts as different although no measure says so, or ""
    remark     what was compared if it was not the whole tensor, or ""
    hints      layouts in which the second would agree with the first
    """

    name: str
    measures: Measures
    note: str = ""
    remark: str = ""
    hints: tuple[str, ...] = ()

    @property
    def is_bit_equal(self) -> bool:
        return self.measures.is_bit_equal

    @property
    def nmse(self) -> float:
        return self.measures.nmse

    @property
    def max_abs(self) -> float:
        return self.measures.max_abs

    @property
    def worst_row(self) -> int | None:
        return self.measures.worst_row

    def exceeds(self, limit: float) -> bool:
        return bool(self.note) or not self.nmse <= limit

    def to_json(self) -> dict[str, Any]:
        m = self.measures
        return {
            "name": self.name,
            "is_bit_equal": m.is_bit_equal,
            "nmse": _finite(m.nmse),
            "rel_l2": _finite(m.rel_l2),
            "cosine": _finite(m.cosine),
            "max_abs": _finite(m.max_abs),
            "max_ulp": m.max_ulp,
            "worst_row": m.worst_row,
            "note": self.note,
            "remark": self.remark,
            "hints": list(self.hints),
        }


@dataclass(frozen=True)
class Feed:
    """One input of the first divergence. verdict: "equal", "differs", "not compared" (it is not in both files)."""

    name: str
    verdict: str

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "verdict": self.verdict}


@dataclass(frozen=True)
class Comparison:
    """All tensors in the execution order of the first file; names that only one file has.

    step, feeds   what makes the first tensor that differs: the operation and its inputs; an input that is not in both
                  files is followed by its own inputs
    """

    differences: list[Difference]
    only_a: list[str]
    only_b: list[str]
    limit: float
    labels: tuple[str, str] = ("", "")
    step: str = ""
    feeds: list[Feed] = field(default_factory=list)

    @property
    def first_divergence(self) -> Difference | None:
        return next((d for d in self.differences if d.exceeds(self.limit)), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first_divergence
        return {
            "schema": SCHEMA,
            "limit": self.limit,
            "first_divergence": first.name if first else None,
            "step": self.step,
            "feeds": [feed.to_json() for feed in self.feeds],
            "only_a": self.only_a,
            "only_b": self.only_b,
            "tensors": [d.to_json() for d in self.differences],
        }


def compare_files(
    path_a: str | Path,
    path_b: str | Path,
    limit: float = DEFAULT_LIMIT,
    rules: Sequence[tuple[re.Pattern[str], str]] = (),
) -> Comparison:
    """Compare the tensors that two files have in common; `limit` is the NMSE above which tensors diverge.

    rules   names of the second file that become others first (parse_map)
    Errors  MtprefError for a damaged file, or two files without a common name
    """
    with open_source(path_a) as a, open_source(path_b) as given:
        b = given.renamed(rules)
        in_a, in_b = set(a.names), set(b.names)
        order = a.names if a.has_order or not b.has_order else [n for n in b.names if n in in_a] + a.names
        order = list(dict.fromkeys(order))
        common = [name for name in order if name in in_b]
        if not common:
            raise MtprefError(
                f"compare: {a.label} and {b.label} have no tensor name in common; expected cb() names "
                "such as l_out-3; try: mtpref inspect FILE, or `rules` REGEX=NAME"
            )
        found: list[Difference] = []
        n_beyond = 0
        for name in common:
            found.append(_difference(a, b, name, limit, is_hinted=n_beyond < MAX_HINTED))
            n_beyond += found[-1].exceeds(limit)
    only_a, only_b = [n for n in order if n not in in_b], [n for n in b.names if n not in in_a]
    step, feeds = _feeds(found, limit, frozenset(in_a | in_b))
    return Comparison(found, only_a, only_b, limit, (a.label, b.label), step, feeds)


def _difference(file_a: Source, file_b: Source, name: str, limit: float, is_hinted: bool) -> Difference:
    a, b = file_a.read(name), file_b.read(name)
    if isinstance(a, list) or isinstance(b, list):
        return _with_printed(name, a, b, limit)
    fitted = aligned(name, a, b)
    if fitted is None:
        note = f"shapes {_ne(a)} and {_ne(b)} in GGUF order"
        return Difference(name, _NONE, note, hints=tuple(layout_hints(a, b, limit)) if is_hinted else ())
    x, y, first_row, remark = fitted
    m = measure(x, y)
    if m.worst_row is not None and first_row:
        m = replace(m, worst_row=m.worst_row + first_row)
    note = "" if m.is_finite or m.is_bit_equal else "not finite"
    if x.dtype.kind in "iu" and y.dtype.kind in "iu" and m.max_abs:
        note = "integers differ"
    differs = bool(note) or not m.nmse <= limit
    hints = layout_hints(x, y, limit) if differs and is_hinted and x.dtype.kind == "f" else []
    if differs and first_row and is_hinted:
        hints = layout_hints(a, b, limit) or hints
    return Difference(name, m, note, remark, tuple(hints))


def _with_printed(name: str, a: NDArray | list[Printed], b: NDArray | list[Printed], limit: float) -> Difference:
    if isinstance(a, list) and isinstance(b, list):
        return Difference(name, *compare_both_printed(a[-1], b[-1]))
    array, printed = (b, a) if isinstance(a, list) else (a, b)
    assert isinstance(printed, list)
    assert not isinstance(array, list)
    chosen = choose(name, array.shape, printed)
    if chosen is None:
        shapes = ", ".join(str(p.shape[::-1]) for p in printed[:3])
        return Difference(name, _NONE, f"shapes {_ne(array)} and {shapes} (printed) in GGUF order")
    measures, note, remark = compare_printed(array, chosen[1], chosen[0], limit)
    if len(printed) > 1:
        remark += f", the last of {len(printed)} of this name that fits"
    return Difference(name, measures, note, remark)


def _ne(array: NDArray) -> tuple[int, ...]:
    return tuple(array.shape[::-1])


def _feeds(differences: list[Difference], limit: float, known: frozenset[str]) -> tuple[str, list[Feed]]:
    """The step that makes the first divergence, and its inputs with what the comparison says of them."""
    first = next((d for d in differences if d.exceeds(limit)), None)
    producer = producer_of(first.name, known) if first else None
    if first is None or producer is None:
        return "", []
    verdicts = {d.name: "differs" if d.exceeds(limit) else "equal" for d in differences}
    feeds: dict[str, Feed] = {}
    waiting = deque(producer.inputs)
    while waiting:
        name = waiting.popleft()
        if name in feeds:
            continue
        feeds[name] = Feed(name, verdicts.get(name, "not compared"))
        above = producer_of(name, known) if name not in verdicts else None
        waiting += above.inputs if above else ()
    return producer.step, list(feeds.values())


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
