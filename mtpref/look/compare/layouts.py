"""Shapes that say the same thing, rows that one file lacks, and layouts in which two tensors would agree.

Owns what may be compared (the same elements in the same order; the last rows, where one file has no others) and what is
only ever a hint (transposed, interleaved, swapped, shifted, scaled). A hint never makes a comparison pass.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_HINT_ELEMENTS = 1 << 18
MAX_SPLITS = 24
# No row of these belongs to a token: nothing may be left out of them.
WITHOUT_TOKENS = ("conv_states", "state_predelta", "new_state", "cache_", "conv", "states", "tokens")


def aligned(name: str, a: NDArray, b: NDArray) -> tuple[NDArray, NDArray, int, str] | None:
    """Two arrays in one shape, the row of `a` that the first row is, and a remark; None where they do not fit.

    Rule   axes may be split or merged as long as the elements keep their order; where one array has fewer rows (tokens)
           than the other, it is compared with the last ones
    """
    if _same_order(a.shape, b.shape):
        shape = a.shape if len(_kept(a.shape)) >= len(_kept(b.shape)) else b.shape
        remark = "" if _kept(a.shape) == _kept(b.shape) else f"shape {b.shape} read as {a.shape}"
        if not shape or shape[0] == 1:
            shape = _kept(shape)
        return a.reshape(shape), b.reshape(shape), 0, remark
    if (a.ndim < 2 and b.ndim < 2) or name.startswith(WITHOUT_TOKENS):
        return None
    if (cut := _last_rows(a, b)) is not None:
        return (*cut, f"only the last {len(cut[1])} of {len(a)} rows are in the second file")
    if (cut := _last_rows(b, a)) is not None:
        return cut[1], cut[0], 0, f"only the last {len(cut[1])} of {len(b)} rows are in the first file"
    return None


def _last_rows(whole: NDArray, part: NDArray) -> tuple[NDArray, NDArray, int] | None:
    """The last rows of `whole` that `part` has: (rows, part in their shape, the first row's index)."""
    row = math.prod(whole.shape[1:])
    if whole.ndim < 2 or not row or not part.size or part.size >= whole.size or part.size % row:
        return None
    n_rows = part.size // row
    if not _same_order((n_rows, *whole.shape[1:]), part.shape):
        return None
    return whole[len(whole) - n_rows :], part.reshape(n_rows, *whole.shape[1:]), len(whole) - n_rows


def _kept(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _same_order(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one shape is the other with axes split or merged: the sizes of their trailing blocks nest."""
    if math.prod(a) != math.prod(b):
        return False
    blocks_a, blocks_b = _blocks(_kept(a)), _blocks(_kept(b))
    return blocks_a <= blocks_b or blocks_b <= blocks_a


def _blocks(shape: tuple[int, ...]) -> set[int]:
    return {math.prod(shape[i:]) for i in range(1, len(shape))}


@np.errstate(invalid="ignore", over="ignore")
def layout_hints(a: NDArray, b: NDArray, limit: float) -> list[str]:
    """In which layouts b would agree with a; at most three, the simplest first. Empty for large or constant arrays."""
    if not 2 <= a.size <= MAX_HINT_ELEMENTS or a.size != b.size:
        return _row_hints(a, b, limit)
    x = np.asarray(a, np.float64)
    if not np.isfinite(x).all() or x.min() == x.max() or not np.isfinite(np.asarray(b, np.float64)).all():
        return []
    flat, y, power = x.reshape(-1), np.asarray(b, np.float64), float((x * x).sum())
    found = []
    for text, z in _layouts(x.shape, y):
        if float(((z.reshape(-1) - flat) ** 2).sum()) <= limit * power:
            found.append(f"would agree with {text}")
            if len(found) == 3:
                break
    return found or _shift_hints(x, y, limit) or _scale_hint(flat, y.reshape(-1), limit, power)


def _row_hints(a: NDArray, b: NDArray, limit: float) -> list[str]:
    """Fewer rows, and they are the first ones."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[1:] != b.shape[1:] or not 0 < len(b) < len(a) or a.size > MAX_HINT_ELEMENTS:
        return []
    x, y = np.asarray(a[: len(b)], np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        is_equal = float(((x - y) ** 2).sum()) <= limit * float((x * x).sum()) and x.any()
    return [f"holds the first {len(b)} rows of the other file, not the last"] if is_equal else []


def _layouts(shape: tuple[int, ...], b: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Every other reading of b that is tried, simplest first; all have the elements of `shape`."""
    kept = _kept(b.shape)
    y = b.reshape(kept)
    for axes in itertools.permutations(range(len(kept))) if 2 <= len(kept) <= 4 else ():
        if axes != tuple(range(len(kept))):
            yield f"its axes {kept} permuted to {tuple(kept[i] for i in axes)}", y.transpose(axes)
    yield from _splits("as one list", b.reshape(1, -1)) if b.ndim == 1 else ()
    rows = b.reshape(shape[0], -1) if len(shape) > 1 else b.reshape(1, -1)
    half = rows.shape[1] // 2
    if rows.shape[1] == 2 * half:
        yield "the two halves of each row swapped", np.concatenate([rows[:, half:], rows[:, :half]], axis=1)
    if len(shape) > 2:
        yield from _splits("within each head", b.reshape(-1, shape[-1]))
    yield from _splits("within each row", rows)


def _splits(where: str, rows: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Rows read as (n, m) and transposed: interleaved for blocked, heads tiled for grouped."""
    size = rows.shape[1]
    for n in [n for n in range(2, size // 2 + 1) if size % n == 0][:MAX_SPLITS]:
        swapped = rows.reshape(-1, n, size // n).transpose(0, 2, 1)
        yield f"({n}, {size // n}) transposed {where}: interleaved for blocked, or heads tiled for grouped", swapped


def _shift_hints(a: NDArray, b: NDArray, limit: float) -> list[str]:
    """Rows that stand one token too late or too early; the row without a partner is left out."""
    if a.ndim < 2 or len(a) < 3:
        return []
    x, y = a.reshape(len(a), -1), b.reshape(len(a), -1)
    power = float((x * x).sum())
    late = float(((x[:-1] - y[1:]) ** 2).sum()) <= limit * power
    early = float(((x[1:] - y[:-1]) ** 2).sum()) <= limit * power
    return ["is one row late: its row t holds what belongs to row t - 1"] * late + [
        "is one row early: its row t holds what belongs to row t + 1"
    ] * early


def _scale_hint(a: NDArray, b: NDArray, limit: float, power: float) -> list[str]:
    """A constant factor."""
    own = float((b * b).sum())
    if not own:
        return ["is all zero"]
    factor = float((a * b).sum()) / own
    if factor and float(((factor * b - a) ** 2).sum()) <= limit * power:
        return [f"is {1 / factor:.6g} times the values of the other file"]
    return []
