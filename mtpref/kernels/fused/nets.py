"""Matrices and stacks of them as fused kernels take them: one record that says how rows are multiplied and where they
are, as panels or raw bytes.

Owns that record and its making. Types that are dequantised a tile at a time have none.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtpref.kernels.arithmetic.vectors import ROWS
from mtpref.kernels.compiling.compile import FLAG, INT
from mtpref.kernels.compiling.records import record
from mtpref.kernels.products import float_rows, in_place, mul_mats
from mtpref.kernels.products.packed import PackedMatrix, PackedStack
from mtpref.kernels.products.product import WEIGHTS, How
from mtpref.spec.products import Matrix, Stack

U8 = NDArray[np.uint8]


class Net(NamedTuple):
    """A matrix, or a stack of them (experts, heads): `How` its products run, and where its rows are.

    weights      all matrices of the stack, as panels or raw bytes
    stride       bytes from one matrix to the next    n_bytes: of one    group_bytes: of ROWS of its rows
    """

    prepare: int
    rows: int
    is_unsigned: bool
    n_word: int
    n_block: int
    n_sum: int
    weights: U8
    stride: int
    n_bytes: int
    group_bytes: int
    n_out: int


NET = record(
    Net,
    prepare=INT,
    rows=INT,
    is_unsigned=FLAG,
    n_word=INT,
    n_block=INT,
    n_sum=INT,
    weights=WEIGHTS,
    stride=INT,
    n_bytes=INT,
    group_bytes=INT,
    n_out=INT,
)


@cache
def _how(type_name: str, in_panels: bool, wide: bool) -> How | None:
    """How products of this type run, its kernels compiled; None where no kernel reads its rows."""
    if wide:
        known = in_place.EXACT_PRODUCTS
    else:
        known = mul_mats.PRODUCTS if in_panels else in_place.PRODUCTS | float_rows.PRODUCTS
    return known[type_name].how() if type_name in known else None


def net_of(w: Matrix | Stack, wide: bool) -> Net | None:
    """How a matrix, or each of a stack, is multiplied, and where its rows are; None where no kernel reads them."""
    panels = w.panels if isinstance(w, PackedMatrix | PackedStack) and not wide else None
    how = _how(w.type_name, panels is not None, wide)
    if how is None:
        return None
    rows = w.raw if panels is None else panels
    rows = rows if rows.ndim == 2 else rows[None]
    n, n_bytes = rows.shape
    n_groups = -(-w.n_out // ROWS)
    group_bytes = n_bytes // w.n_out * ROWS if panels is None else n_bytes // n_groups
    stride = rows.strides[0] if n > 1 else n_bytes
    return Net(*how, _flat(rows, stride), stride, n_bytes, group_bytes, w.n_out)


def _flat(rows: U8, stride: int) -> U8:
    """All bytes from the first matrix to the last: a view; matrices of fused stacks have others' rows in between."""
    if rows.flags.c_contiguous:
        return rows.reshape(-1)
    return np.lib.stride_tricks.as_strided(rows, ((len(rows) - 1) * stride + rows.shape[1],), (1,), writeable=False)
