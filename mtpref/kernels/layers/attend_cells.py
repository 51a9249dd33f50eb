"""S16, S78: attention of some tokens' heads over cells that lie beside each other, all of one kv-head.

Owns the kernel that attention through a latent row and attention over chosen cells run for a task of theirs. Cells lie
as a matrix of floats does, so scores are its product with the queries: a product with F32, F16 or BF16 (S6) has the
rounding and the sums of attention.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import NamedTuple

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.arith import exp, one_over_root
from mtpref.kernels.arithmetic.lanes import dot32
from mtpref.kernels.arithmetic.scalars import copy_bytes
from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import INT, helper, kernel, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.layers.attend import KINDS
from mtpref.kernels.layers.attend_tiles import numerators_from, values
from mtpref.kernels.products import float_rows
from mtpref.kernels.products.product import WEIGHTS, call_prepare, call_rows

F32 = NDArray[np.float32]
TILES = 32  # columns of values at a time: what a value's width must be a multiple of


class Reading(NamedTuple):
    """How cells of a type are read: the type (attend.py's KINDS), the kernels that multiply them, bytes of a row; and
    what scores are multiplied with."""

    kind: int
    prepare: int
    rows: int
    row_bytes: int
    root: np.float32


READING = record(Reading, kind=INT, prepare=INT, rows=INT, row_bytes=INT, root=types.float32)
_ARGS = (READING, WEIGHTS, source(types.float32, 3), source(types.float32, 1), INT, target(types.float32, 3))


@kernel(*_ARGS)
def attend_cells(how, raw, q, sinks, first, out):
    """Token t sees cells 0 .. first + t.

    raw     bytes of first + T cells or more
    q       (T, n_head, n_row), not yet rounded     out  (T, n_head, n_value), n_value a multiple of TILES
    sinks   (n_head,), or empty: none
    """
    n_tokens, n_heads, n_row = q.shape
    n, most = n_tokens * n_heads, first + n_tokens
    nothing, packed = np.empty((n, 0), np.int32), np.empty((n, n_row), np.float32)
    score, totals, ones = np.empty((n, most), np.float32), np.empty(n, np.float32), np.ones(most, np.float32)
    call_prepare(how.prepare, (q.reshape(n, n_row), False, nothing, packed, nothing, 0, n))
    call_rows(how.rows, (raw[: most * how.row_bytes], nothing, packed, nothing, score, 0, -(-most // ROWS)))
    for i in range(n):
        n_cells, row = first + i // n_heads + 1, score[i]
        for j in range(n_cells):
            row[j] = row[j] * how.root
        sink = sinks[i % n_heads] if len(sinks) > 0 else row[0]
        greatest = numerators_from(row, n_cells, sink)
        totals[i] = dot32(score, i * most, ones, 0, n_cells)
        if len(sinks) > 0:
            totals[i] = totals[i] + exp(sink - greatest)
    wide, half = raw[: len(raw) // 4 * 4].view(np.float32), raw[: len(raw) // 2 * 2].view(np.uint16)
    values(wide, half, how.kind, 0, 1, n_row, n_heads, first, 0, n_tokens, score, totals, out)


call_attend = caller(*_ARGS)


@helper
def take(raw, row_bytes, ids, first, last, out, at):
    """Rows ids[first], .. ids[last - 1] of raw, to row `at` of out and after it."""
    for i in range(first, last):
        copy_bytes(raw, ids[i] * row_bytes, out, (at + i - first) * row_bytes, row_bytes)


def reading(kv_type: str, n_row: int) -> Reading:
    """How cells of this type and width are read; the kernels are compiled."""
    how = float_rows.PRODUCTS[kv_type].how()
    row_bytes = n_row * (4 if kv_type == "F32" else 2)
    return Reading(KINDS[kv_type], how.prepare, how.rows, row_bytes, one_over_root(n_row))
