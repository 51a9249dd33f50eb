"""The panel layout: 16 rows of a weight matrix side by side, so that a row is a lane.

Owns the layout of every type that has one, and the kernel that makes panels of raw rows. Raw blocks of 16 rows become
one block of a panel: each field (codes, scales) is cut into units, and unit 0 of all 16 rows comes first, then unit 1:
a product reads all of it in one stream. A row that the last panel lacks is zero bytes. It is read in tiles.py.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numba import prange
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.scalars import copy_unit
from mtpref.kernels.arithmetic.vectors import CODE_PLACES, GROUP, HAS_DOT4, ROWS, copy_codes, copy_groups
from mtpref.kernels.compiling import compile
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.products.packed import PackedMatrix, PackedStack
from mtpref.kernels.quants.unpack import six_bit_scale
from mtpref.spec.products import Matrix, Stack

SIX_BIT = 0  # in place of a unit: 12 bytes that hold 8 scales and 8 minima become 16 bytes


class Field(NamedTuple):
    """A part of a raw block: its first byte, its bytes in a panel, and those of a unit.

    flip         what every byte is xored with
    is_unsigned  rows of unsigned codes lie in CODE_ORDER
    """

    start: int
    n_bytes: int
    unit: int
    flip: int = 0
    is_unsigned: bool = False


class Layout(NamedTuple):
    """Columns and bytes of a raw block, and its fields in the order of the panel."""

    columns: int
    n_bytes: int
    fields: tuple[Field, ...]

    @property
    def panel_bytes(self) -> int:
        """Bytes of a block of a panel."""
        return ROWS * sum(field.n_bytes for field in self.fields)


def _codes(start: int, n_bytes: int) -> Field:
    return Field(start, n_bytes, GROUP, 0, True)


def _halves(*starts: int) -> tuple[Field, ...]:
    return tuple(Field(start, 2, 2) for start in starts)


# Where codes are multiplied as uint8, those of Q8_0 are stored 128 greater. Scales of sub-blocks lie in pairs.
LAYOUTS = {
    "Q8_0": Layout(32, 34, (Field(2, 32, GROUP, 128 if HAS_DOT4 else 0), *_halves(0))),
    "Q4_0": Layout(32, 18, (_codes(2, 16), *_halves(0))),
    "Q4_K": Layout(256, 144, (_codes(16, 128), Field(0, 16, SIX_BIT), *_halves(0, 2))),
    "Q5_K": Layout(256, 176, (_codes(48, 128), _codes(16, 32), Field(0, 16, SIX_BIT), *_halves(0, 2))),
    "Q6_K": Layout(256, 210, (_codes(0, 128), _codes(128, 64), Field(192, 16, 2), *_halves(208))),
}

_RAW, _PANELS, _FIELDS = source(types.uint8, 1), target(types.uint8, 1), source(types.int64, 2)


def _field_table(layout: Layout) -> NDArray[np.int64]:
    return np.array(layout.fields, np.int64)


@helper
def _copy_scales(raw, block, panels, to):
    """The 8 scales of a row, two for each pair of sub-blocks, then its 8 minima."""
    for j in range(8):
        scale, minimum = six_bit_scale(raw, block, j)
        at = to + j // 2 * 2 * ROWS + j % 2
        panels[at], panels[at + 8 * ROWS] = scale, minimum


@kernel(_RAW, INT, INT, INT, _FIELDS, _PANELS, INT, INT)
def _make_panels(raw, n_out, row_bytes, block_bytes, fields, panels, first, last):
    """Panels first .. last - 1."""
    to = first * (len(panels) // -(-n_out // ROWS))
    for p in range(first, last):
        n_rows = min(ROWS, n_out - ROWS * p)
        for block in range(ROWS * p * row_bytes, (ROWS * p + 1) * row_bytes, block_bytes):
            for f in range(len(fields)):
                start, n_bytes, unit, flip, is_unsigned = fields[f]
                if n_rows < ROWS:
                    panels[to : to + ROWS * n_bytes] = 0
                if unit == SIX_BIT:
                    for r in range(n_rows):
                        _copy_scales(raw, block + r * row_bytes, panels, to + 2 * r)
                    to += ROWS * n_bytes
                    continue
                if n_rows == ROWS and unit == GROUP:
                    for u in range(block + start, block + start + n_bytes, unit):
                        if is_unsigned:
                            copy_codes(raw, u, row_bytes, panels, to, flip)
                        else:
                            copy_groups(raw, u, row_bytes, panels, to, flip)
                        to += ROWS * unit
                    continue
                for u in range(start, start + n_bytes, unit):
                    for r in range(n_rows):
                        place = CODE_PLACES[r] if is_unsigned else r
                        copy_unit(raw, block + r * row_bytes + u, panels, to + place * unit, unit, flip)
                    to += ROWS * unit


_call_make = caller(_RAW, INT, INT, INT, _FIELDS, _PANELS, INT, INT)


@kernel(INT, _RAW, INT, INT, INT, _FIELDS, _PANELS, INT, parallel=True)
def _make_all_panels(make, raw, n_out, row_bytes, block_bytes, fields, panels, n_parts):
    """All panels, with the kernel at this address."""
    n = -(-n_out // ROWS)
    for p in prange(n_parts):
        first, last = p * n // n_parts, (p + 1) * n // n_parts
        _call_make(make, (raw, n_out, row_bytes, block_bytes, fields, panels, first, last))


ALIGNMENT = 64
PARALLEL_FROM = 1 << 20  # bytes


def pack(matrices: Sequence[Matrix | Stack], done: Callable[[Matrix | Stack], None]) -> list[Matrix | Stack]:
    """`kernels.pack`. One piece of memory for all, since the system gives large pages to large pieces."""
    sizes = [_panel_bytes(w) for w in matrices]
    ends = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
    memory = np.empty(ends[-1] + ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % ALIGNMENT :]
    made: list[Matrix | Stack] = []
    for w, start, size in zip(matrices, ends, sizes, strict=False):
        part = memory[start : start + size]
        if isinstance(w, Stack):
            made.append(_packed_stack(w, part.reshape(len(w), -1), done) if size else w)
        else:
            if size:
                _fill(w, part)
            made.append(PackedMatrix(w.name, w.type_name, w.n_out, w.n_in, w.raw).with_panels(part) if size else w)
        done(w)
    return made


def _panel_bytes(w: Matrix | Stack) -> int:
    """Bytes of a matrix's panels, or of those of a stack together; 0 where it gets none."""
    if isinstance(w, Stack):
        return len(w) * _panel_bytes(w[0]) if len(w) else 0
    layout = LAYOUTS.get(w.type_name)
    if layout is None or w.n_out == 0 or w.n_in % layout.columns or w.row_bytes * w.n_out != w.raw.size:
        return 0
    return -(-w.n_out // ROWS) * (w.n_in // layout.columns) * layout.panel_bytes


def _packed_stack(w: Stack, panels: NDArray[np.uint8], done: Callable[[Matrix | Stack], None]) -> PackedStack:
    """The matrices one after the other: a stack of a large model must not be there twice."""
    for one, part in zip(w, panels, strict=True):
        _fill(one, part)
        done(one)
    return PackedStack(w.name, w.type_name, w.n_out, w.n_in, w.raw).with_panels(panels)


def _fill(w: Matrix, panels: NDArray[np.uint8]) -> None:
    """Make a matrix's panels."""
    layout = LAYOUTS[w.type_name]
    args = np.ascontiguousarray(w.raw), w.n_out, w.row_bytes, layout.n_bytes, _field_table(layout), panels
    if compile.n_threads() == 1 or w.raw.size < PARALLEL_FROM:
        _make_panels(*args, 0, -(-w.n_out // ROWS))
    else:
        _make_all_panels(_make_panels.address(), *args, compile.start_threads())
