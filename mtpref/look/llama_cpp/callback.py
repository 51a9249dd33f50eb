"""Reader of the text of llama-eval-callback and llama-debug: every tensor of a graph as a few printed values.

A tensor is a line `common_debug_cb_eval: NAME = (TYPE) OP(SOURCES) = {ne0, ne1, ne2, ne3}`, then for each index of
ne3 the first and last three values along ne2, ne1 and ne0, to four decimals, and `sum = S` over all its values (added
one by one in float32). Weights and other quantised tensors have the first line alone. Both programs may end before
their log has been written out: what is missing at the end is told, not refused.
Source: llama.cpp common/debug.cpp
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.doors import TextStream, open_text, read_up_to
from mtpref.files.gguf import printable

MAX_TEXT_BYTES = 256 << 20
N_EDGE = 3
HALF_DIGIT = 0.5e-4  # values are printed to four decimals
HALF_SUM_DIGIT = 0.5e-6
MARKS = (b"common_debug_cb_eval:", b"ggml_debug:")
_HEAD = re.compile(
    r"(?:common_debug_cb_eval|ggml_debug): {1,40}(?P<name>\S.{0,120}?) = \((?P<type>\w{1,16})\) {1,20}"
    r"(?P<op>\w{1,40})\((?P<sources>.{0,300})\) = \{(?P<ne>\d{1,12}, \d{1,12}, \d{1,12}, \d{1,12})\}"
)
_VALUE = re.compile(r"-?(?:\d{1,40}\.\d{4}|nan|inf)(?![\d.])")
_SUM = re.compile(r"^ *sum = (-?(?:\d{1,45}\.\d{6}|nan|inf))\s*$")


@dataclass(frozen=True)
class Printed:
    """What is printed of one tensor.

    shape   NumPy's, four dimensions
    values  the printed values, in order; index: where they are in the flattened tensor
    sum     of all values, None where the text ends before it
    """

    name: str
    type_name: str
    op: str
    shape: tuple[int, ...]
    values: NDArray[np.float64]
    index: NDArray[np.int64]
    sum: float | None

    @property
    def is_cut(self) -> bool:
        """The text ended within it."""
        return self.sum is None


def is_callback_text(start: bytes) -> bool:
    """Whether a file that begins so looks like such a text (a log has other lines before)."""
    return any(mark in start for mark in MARKS)


def read_callback_text(path: str | Path | TextStream) -> list[Printed]:
    """All tensors with printed values, in the order of execution; names may come again.

    Errors  MtprefError for a file that is unreadable, too large, or holds no such tensor
    """
    label = printable(str(path), 400)
    expected = "expected the text of llama-eval-callback, of a short prompt"
    with path if isinstance(path, TextStream) else open_text(path, label, expected) as file:
        text = read_up_to(file, label, expected, MAX_TEXT_BYTES).decode("utf-8", "replace")
    found = list(_parse(text, label))
    if not found:
        raise MtprefError(
            f"{label}: no printed tensor in it, expected the text of llama-eval-callback, or of "
            "llama-debug with --verbose"
        )
    return found


def _parse(text: str, label: str) -> list[Printed]:
    found: list[Printed] = []
    heads = list(_HEAD.finditer(text))
    for head, following in zip(heads, [*heads[1:], None], strict=False):
        printed = _read_tensor(head, text[head.end() : following.start() if following else len(text)], label)
        if printed is None:
            continue
        if printed.is_cut and following is not None:
            raise MtprefError(
                f"{label}: the values of {printable(printed.name)} end early, though tensors follow; "
                "expected a text with no line missing"
            )
        found.append(printed)
    return found


def _read_tensor(head: re.Match[str], body: str, label: str) -> Printed | None:
    """None for a tensor of which no value is printed."""
    ne = [int(n) for n in head["ne"].split(", ")]
    values, total = [], None
    for line in body.splitlines():
        if (found := _SUM.match(line)) is not None:
            total = float(found[1])  # printed again for each index of ne3, always the same
        elif line.lstrip().startswith("["):
            values += [float(v) for v in _VALUE.findall(line)]
    if not values:
        return None
    if math.prod(ne) >= 1 << 62:
        raise MtprefError(f"{label}: {printable(head['name'])} has dimensions {head['ne']}, expected a real tensor's")
    index = printed_index(ne, len(values))
    if len(values) < len(index):
        total = None
    n = min(len(values), len(index))
    return Printed(
        head["name"].strip(), head["type"], head["op"], tuple(ne[::-1]), np.array(values[:n]), index[:n], total
    )


def printed_index(ne: list[int], n_values: int) -> NDArray[np.int64]:
    """Flat indices of the values that are printed, in the order of printing: three from either end of ne0, ne1, ne2.

    Shapes  ne: four dimensions, the fastest first. ne3 is printed whole; at least the n_values first indices come back
            (all, where there are not more), so that a false ne3 costs nothing.
    """
    axes = [np.array(edge(n), np.int64) for n in ne[:3]]
    per_block = math.prod(len(axis) for axis in axes)
    axes.append(np.arange(min(ne[3], n_values // per_block + 1 if per_block else 0), dtype=np.int64))
    flat = axes[3] * np.int64(ne[2])
    for axis, n in ((axes[2], ne[1]), (axes[1], ne[0]), (axes[0], 1)):
        flat = (flat[..., None] + axis) * np.int64(n)
    return flat.reshape(-1)


def edge(n: int) -> list[int]:
    """The indices of an axis that are printed."""
    return list(range(n)) if n <= 2 * N_EDGE else [*range(N_EDGE), *range(n - N_EDGE, n)]
