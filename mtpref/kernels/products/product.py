"""What the products of a weight type are made of: a kernel that prepares an activation, and one that multiplies rows.

Owns the arguments that these kernels have in common, so that one loop over threads serves all types and calls them by
address. panel_products.py has those of panels, float_rows.py those of float rows in place.
"""

from typing import NamedTuple

import numpy as np
from numba.core import types

from mtpref.kernels.compiling.calls import caller
from mtpref.kernels.compiling.compile import FLAG, INT, Kernel, helper, source, target
from mtpref.kernels.compiling.records import record

# What rows are read from: panels, or the raw bytes of a matrix of floats.
WEIGHTS = source(types.uint8, 1)
X, OUT = source(types.float32, 2), target(types.float32, 2)
_READ, _MADE = source(types.int32, 2), target(types.int32, 2)

# (x, is_unsigned, words, scales, sums, first, last): tokens first .. last - 1 of x.
PREPARE = (X, FLAG, _MADE, OUT, _MADE, INT, INT)
# (weights, words, scales, sums, y, first, last): groups first .. last - 1 of ROWS rows, times all tokens.
ROWS_ARGS = (WEIGHTS, _READ, X, _READ, OUT, INT, INT)

call_prepare, call_rows = caller(*PREPARE), caller(*ROWS_ARGS)


class Product(NamedTuple):
    """How a type is multiplied. An activation of n columns is prepared as n / n_word words, n / n_block scales and
    n / n_sum sums (none where the number is 0); a type of floats has its n values in place of scales.

    is_unsigned   whether the weights' codes are
    """

    n_word: int
    n_block: int
    n_sum: int
    is_unsigned: bool
    prepare: Kernel
    rows: Kernel

    def how(self) -> "How":
        return How(self.prepare.address(), self.rows.address(), self.is_unsigned, self.n_word, self.n_block, self.n_sum)


class How(NamedTuple):
    """A Product as kernels read it: prepare and rows are the addresses of its kernels."""

    prepare: int
    rows: int
    is_unsigned: bool
    n_word: int
    n_block: int
    n_sum: int


HOW = record(How, prepare=INT, rows=INT, is_unsigned=FLAG, n_word=INT, n_block=INT, n_sum=INT)


@helper
def room(how, n_tokens, n_in):  # type: ignore[no-untyped-def]
    """Memory for the words, scales and sums of an activation. how: a How, or another record with its numbers"""
    n_words, n_sums = n_in // how.n_word if how.n_word > 0 else 0, n_in // how.n_sum if how.n_sum > 0 else 0
    scales = np.empty((n_tokens, n_in // how.n_block), np.float32)
    return np.empty((n_tokens, n_words), np.int32), scales, np.empty((n_tokens, n_sums), np.int32)
