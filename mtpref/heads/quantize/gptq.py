"""GPTQ: a matrix rounded column by column, each column's error spread over those that are not rounded yet.

Owns the algorithm. The error that counts is tr((W - Q) H (W - Q)^T), H = 2/n sum x x^T over the inputs that the matrix
sees.
Source: Frantar et al., arXiv 2210.17323, algorithm 1 (Cholesky form, lazy updates by block of columns).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.heads.quantize.grid import Grid

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
LAZY = 128  # columns between two updates of all that follow
DAMPING = 0.01  # of the mean of H's diagonal
MAX_DAMPING = 1.0


class Rounding(Protocol):
    """A grid as GPTQ needs it: `Grid`, or one of a checkpoint's formats. group: columns that share a scale"""

    @property
    def group(self) -> int: ...

    def scales(self, w: F64) -> tuple[F64, F64]:
        """(d, m) of each row for a group of columns."""
        ...

    def nearest(self, w: F64, d: F64, m: F64) -> tuple[NDArray[np.int64], F64]:
        """(codes, values) of one column."""
        ...


def gptq(w: NDArray[np.floating], hessian: F64, grid: Grid, *, damping: float = DAMPING, name: str = "matrix") -> U8:
    """Quantise a matrix to a GGUF type. Shapes, errors: as `gptq_codes` -> uint8 (n_out, bytes of a row)"""
    return grid.pack(*gptq_codes(w, hessian, grid, damping=damping, name=name))


def gptq_codes(
    w: NDArray[np.floating], hessian: F64, grid: Rounding, *, damping: float = DAMPING, name: str = "matrix"
) -> tuple[NDArray[np.int64], F64, F64]:
    """Quantise a matrix.

    H' = H + damping mean(diag H) I; H'^-1 = U^T U, U upper; for each column j
    q_j = nearest(w_j);  e = (w_j - q_j) / U_jj;  w_k -= e U_jk for k > j.
    The scale of a group is chosen when its first column comes, from the columns as they are then.

    Shapes   w: (n_out, n_in); hessian: (n_in, n_in), symmetric -> codes (n_out, n_in); d, m (n_out, n_in / group)
    Dtypes   float64 throughout
    Dead     a column that saw nothing (H_jj = 0) is rounded to nearest and spreads no error
    Errors   MtprefError where H is not finite, or not positive definite with a damping of MAX_DAMPING either
    """
    work = np.array(w, np.float64)
    n_out, n_in = work.shape
    if n_in % grid.group:
        raise MtprefError(f"GPTQ: {name} has rows of {n_in}, expected a multiple of {grid.group}; try another type")
    upper = inverse_factor(hessian, damping, name)
    codes = np.empty((n_out, n_in), np.int64)
    n_groups = n_in // grid.group
    d, m = np.empty((n_out, n_groups)), np.empty((n_out, n_groups))
    step = LAZY // grid.group * grid.group or grid.group
    for first in range(0, n_in, step):
        last = min(first + step, n_in)
        errors = np.zeros((n_out, last - first))
        for j in range(first, last):
            g = j // grid.group
            if j % grid.group == 0:
                d[:, g], m[:, g] = grid.scales(work[:, j : j + grid.group])
            codes[:, j], value = grid.nearest(work[:, j], d[:, g], m[:, g])
            error = (work[:, j] - value) / upper[j, j]
            work[:, j + 1 : last] -= np.outer(error, upper[j, j + 1 : last])
            errors[:, j - first] = error
        work[:, last:] -= errors @ upper[first:last, last:]
    return codes, d, m


def nearest_codes(w: NDArray[np.floating], grid: Rounding) -> tuple[NDArray[np.int64], F64, F64]:
    """The same grid without a Hessian: what GPTQ gives for H = I."""
    return gptq_codes(w, np.eye(w.shape[1]), grid, damping=0.0)


def round_to_nearest(w: NDArray[np.floating], grid: Grid) -> U8:
    """`nearest_codes` as a GGUF type holds them."""
    return grid.pack(*nearest_codes(w, grid))


def inverse_factor(hessian: F64, damping: float, name: str) -> F64:
    """U with U^T U = (H + damping I mean)^-1, upper triangular; more damping, tenfold each time, where H needs it."""
    if not np.all(np.isfinite(hessian)):
        raise MtprefError(f"GPTQ: {name}: its inputs hold NaN or infinity, expected finite ones; try: mtpref check")
    h = np.array(hessian, np.float64)
    diagonal = np.diag(h).copy()
    dead = diagonal <= 0
    h[dead, :] = 0
    h[:, dead] = 0
    mean = float(diagonal[~dead].mean()) if np.any(~dead) else 1.0
    h[dead, dead] = mean
    while True:
        try:
            damped = h + damping * mean * np.eye(len(h))
            lower = np.linalg.cholesky(damped)
            inverse_lower = np.linalg.inv(lower)
            upper = np.linalg.cholesky(inverse_lower.T @ inverse_lower).T
        except np.linalg.LinAlgError:
            if damping >= MAX_DAMPING:
                raise MtprefError(
                    f"GPTQ: {name}: the Hessian is not positive definite, expected more text to calibrate with"
                ) from None
            damping = max(damping * 10, 1e-4)
        else:
            return np.asarray(upper)
