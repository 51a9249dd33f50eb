"""The Numba twins of several residual streams, compressed rows and choices against the specification, bit by bit."""

import numpy as np
import pytest

from mtpref import kernels, spec
from tests.test_kernels import SCALES, assert_same, check, values

pytestmark = pytest.mark.skipif(not kernels.available(), reason="NUMBA_DISABLE_JIT is set: no kernels to compare")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261129)


def scores_with_ties(rng: np.random.Generator, n_tokens: int, n: int, scale: str) -> np.ndarray:
    """Many equal ones, zeros of both signs among them."""
    some = values(rng, (max(1, n // 3),), scale)
    ties = np.where(rng.random((n_tokens, n)) < 0.2, np.float32(-0.0), some[rng.integers(0, len(some), (n_tokens, n))])
    return ties.astype(np.float32)


@pytest.mark.parametrize("scale", SCALES)
def test_streams(rng: np.random.Generator, scale: str) -> None:
    """Four and three of them, of widths that fill no vector, with one round and many."""
    for n_tokens, n, n_embd, n_iterations in ((1, 4, 64, 20), (3, 4, 37, 1), (2, 3, 16, 3)):
        mixes = values(rng, (n_tokens, n * (n + 2)), scale)
        scale3, base = values(rng, (3,), "unit"), values(rng, (n * (n + 2),), "unit")
        check("stream_weights", mixes, scale3, base, n, 1e-6, n_iterations)
        streams, y = values(rng, (n_tokens, n, n_embd), scale), values(rng, (n_tokens, n_embd), scale)
        pre, comb = values(rng, (n_tokens, n), "unit"), values(rng, (n_tokens, n, n), "unit")
        check("read_streams", streams, pre)
        check("write_streams", streams, y, pre, comb)


@pytest.mark.parametrize("scale", SCALES)
def test_rope_of_neighbours(rng: np.random.Generator, scale: str) -> None:
    x = values(rng, (3, 2, 21), scale)
    for pairs in (1, 10):
        table = values(rng, (3, pairs), "unit"), values(rng, (3, pairs), "unit")
        check("rope_interleaved", x, *table)
        check("rope_last", x, *table)
        check("rope_last", x[:, ::2], *table, True)


@pytest.mark.parametrize("scale", SCALES)
def test_clamped_swiglu(rng: np.random.Generator, scale: str) -> None:
    gate, up = values(rng, (3, 37), scale), values(rng, (3, 37), scale)
    for limit in (0.0, 1e-6, 0.5, 7.0, float("inf")):
        check("clamped_swiglu", gate, up, limit)


@pytest.mark.parametrize("scale", SCALES)
def test_compressed_rows(rng: np.random.Generator, scale: str) -> None:
    """With rows before the first position, and without."""
    for shape in ((1, 8, 40), (3, 128, 16), (0, 4, 16)):
        rows, scores = values(rng, shape, scale), values(rng, shape, scale)
        if shape[0]:
            scores[0, :4] = -np.inf
        check("compress_rows", rows, scores)


@pytest.mark.parametrize("scale", SCALES)
def test_scores_and_choices(rng: np.random.Generator, scale: str) -> None:
    """More cells than are chosen, as many, and fewer; equal scores."""
    for n_cells, first in ((1, 0), (40, 37), (300, 297), (3000, 2997)):
        n_tokens = n_cells - first
        products, weights = values(rng, (n_tokens, 5, n_cells), scale), values(rng, (n_tokens, 5), "unit")
        check("index_scores", products, weights, first)
        for scores in (scores_with_ties(rng, n_tokens, n_cells, scale), values(rng, (n_tokens, n_cells), scale)):
            for n_top in (1, 17, n_cells - 1, n_cells, n_cells + 5):
                if n_top:
                    check("select_cells", scores, first, n_top)
                    cells = spec.select_cells(scores, first, n_top)
                    check("selection_gap", scores, cells, first)


@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_an_indexer(rng: np.random.Generator, scale: str) -> None:
    """Ten equal rows among others, so that a tie decides; keys that fill no lanes."""
    from mtpref.kernels.layers.choose import choose_rows

    q, rows, weights = values(rng, (5, 3, 40), scale), values(rng, (60, 40), scale), values(rng, (5, 3), "unit")
    rows[20:30] = rows[7]
    for n_best in (1, 8, 40, 60):
        seen = np.array([0, 1, 8, 41, 60])
        chosen, n_chosen = np.empty((5, n_best), np.int64), seen.copy()
        for part in range(2):
            choose_rows(q, rows, weights, chosen, n_chosen, part, 2)
        for t, n in enumerate(seen):
            with np.errstate(all="ignore"):
                expected = spec.best_rows(spec.row_scores(q[t], rows[:n], weights[t]), n_best)
            assert_same(expected, chosen[t, : n_chosen[t]])
