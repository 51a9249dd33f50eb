"""S60 to S66 on arrays: the indexer's norm, rotation, scores and choice, against the float64 oracle and by hand.

Whole layers and models: test_dsa_model.py.
"""

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec import NO_CELL
from mtpref.spec.config import IndexedConfig
from mtpref.spec.ops import compose_indexer, discard, spec_ops
from tests import naive, naive_dsa

F32 = np.float32
N_EMBD, N_QUERY, N_HEAD, N_KEY, N_ROT, N_TOP = 48, 16, 3, 64, 8, 4
EPS = {"deepseek32": 1e-6, "glm-dsa": 0.0}


# LAYER NORM


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 3.0, -100.0])
def test_layer_norm_is_the_oracles(eps, scale, shift):
    rng = np.random.default_rng(2)
    x = (scale * (rng.standard_normal((5, 100)) + shift)).astype(F32)
    weight, bias = (rng.standard_normal(100).astype(F32) for _ in range(2))
    found = spec.layer_norm(x, weight, bias, eps)
    expected = naive_dsa.layer_norm(naive.f64(x), naive.f64(weight), naive.f64(bias), float(np.float32(eps)))
    assert found.dtype == F32
    # The mean is rounded once: half a last place of it is what a row may be off by.
    assert np.max(np.abs(found - expected)) < 4e-7 * (1 + abs(shift)) * np.max(np.abs(expected))


def test_layer_norm_by_hand():
    x = np.array([[1, 3, 5, 7]], F32)
    assert spec.layer_norm(x, np.full(4, 5**0.5, F32), np.full(4, 10, F32), 0.0).tolist() == [[7, 9, 11, 13]]


def test_a_row_without_variance_is_zero_with_an_epsilon_and_nan_without():
    x, one, bias = np.full((1, 8), 3, F32), np.ones(8, F32), np.arange(8, dtype=F32)
    assert spec.layer_norm(x, one, bias, 1e-6).tolist() == [list(range(8))]
    assert np.isnan(spec.layer_norm(x, one, bias, 0.0)).all()


def test_a_rows_norm_does_not_know_of_other_rows():
    x = np.random.default_rng(4).standard_normal((6, 64)).astype(F32)
    w = np.random.default_rng(5).standard_normal(64).astype(F32)
    whole = spec.layer_norm(x, w, w, 1e-6)
    assert all(np.array_equal(whole[i : i + 1], spec.layer_norm(x[i : i + 1], w, w, 1e-6)) for i in range(6))


# ROTATION


@pytest.mark.parametrize("size", [1, 2, 64, 128, 256])
def test_the_rotation_is_its_own_inverse_and_has_two_values(size):
    h = spec.hadamard(size).dequantize()
    signs = [[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]
    assert np.array_equal(h, np.array(signs, F32) * F32(1 / np.sqrt(size)))
    assert np.allclose(h.astype(np.float64) @ h.astype(np.float64), np.eye(size), atol=2e-7)


# SCORES


def test_scores_are_weighted_positive_products():
    products = np.array([[[1, -2, 3], [-1, 5, 2]], [[-1, -1, -1], [-1, -1, -1]]], F32)
    weights = np.array([[2, -10], [1, 1]], F32)
    scores = spec.index_scores(products, weights, 1)
    assert scores[0].tolist() == [2, -50, -np.inf]
    assert scores[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_scores_are_the_oracles_within_roundings(scale):
    rng = np.random.default_rng(8)
    products = (scale * rng.standard_normal((4, 9, 12))).astype(F32)
    weights = rng.standard_normal((4, 9)).astype(F32)
    terms = np.maximum(naive.f64(products), 0) * naive.f64(weights)[:, :, None]
    found = spec.index_scores(products, weights, 20)
    assert np.all(np.abs(found - terms.sum(axis=1)) <= 9 * 2.0**-24 * 2 * np.abs(terms).sum(axis=1))


# CHOICE


def test_the_greatest_scores_win_and_the_lowest_cell_among_equals():
    scores = np.array([[1, 5, 3, 5, 0]], F32)
    assert spec.select_cells(scores, 4, 1).tolist() == [[1]]
    assert spec.select_cells(scores, 4, 2).tolist() == [[1, 3]]
    assert spec.select_cells(scores, 4, 3).tolist() == [[1, 2, 3]]
    ties = np.array([[0, 0.0, -0.0, 0, 1]], F32)
    assert spec.select_cells(ties, 4, 3).tolist() == [[0, 1, 4]]


def test_a_token_chooses_among_the_cells_that_it_sees():
    scores = np.array([[1, 9, 9, 9], [1, 2, 9, 9], [3, 2, 1, 9]], F32)
    assert spec.select_cells(scores, 0, 2).tolist() == [[0, NO_CELL], [0, 1], [0, 1]]
    assert spec.select_cells(scores, 1, 2).tolist() == [[0, 1], [1, 2], [0, 3]]


def test_fewer_cells_than_are_chosen_are_all_chosen():
    assert spec.select_cells(np.array([[3, 1, 2]], F32), 2, 8).tolist() == [[0, 1, 2]]


def test_nan_loses_to_any_number_and_is_chosen_where_nothing_is_left():
    scores = np.array([[np.nan, -5, np.nan, 1]], F32)
    assert spec.select_cells(scores, 3, 2).tolist() == [[1, 3]]
    assert spec.select_cells(scores, 3, 3).tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("n_top", [1, 3, 7, 20])
def test_choices_are_the_oracles_and_do_not_know_the_batch(n_top):
    rng = np.random.default_rng(n_top)
    scores = rng.integers(-3, 4, (15, 15)).astype(F32)  # many ties
    found = spec.select_cells(scores, 0, n_top)
    wanted = naive_dsa.chosen_cells(np.where(np.tri(15, dtype=bool), scores, -np.inf), n_top)
    assert [row[row != NO_CELL].tolist() for row in found] == wanted
    for t in range(15):
        alone = spec.select_cells(scores[t : t + 1, : t + 1], t, n_top)[0]
        assert alone.tolist() == wanted[t]


def test_the_gap_is_a_share_of_the_greatest_score():
    scores = np.array([[8, 4, 3, -16, 2]], F32)
    assert spec.selection_gap(scores, spec.select_cells(scores, 4, 2), 4).tolist() == [1 / 16]
    assert spec.selection_gap(scores, spec.select_cells(scores, 3, 2), 3).tolist() == [1 / 16]
    assert spec.selection_gap(scores, spec.select_cells(scores, 4, 5), 4).tolist() == [np.inf]


@pytest.mark.parametrize("values", [[0, 0, 0, 5], [1, 1, 1, 5], [0, 0, 0, 0], [np.nan, np.nan, np.nan, 2]])
def test_equal_scores_at_the_edge_have_no_gap(values):
    scores = np.array([values], F32)
    assert spec.selection_gap(scores, spec.select_cells(scores, 3, 2), 3).tolist() == [0]


# THE WHOLE INDEXER


def layer(rng):
    shapes = {"attn_q_b.weight": (N_HEAD * N_KEY, N_QUERY), "attn_k.weight": (N_KEY, N_EMBD),
              "proj.weight": (N_HEAD, N_EMBD), "k_norm.weight": (N_KEY,), "k_norm.bias": (N_KEY,)}  # fmt: skip
    made = {f"indexer.{name}": rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}
    made["attn_q_a.weight"] = rng.standard_normal((N_QUERY, N_EMBD)).astype(F32)
    return made | {"attn_q_a_norm.weight": (1 + 0.3 * rng.standard_normal(N_QUERY)).astype(F32)}


def bound(weights):
    made = {}
    for name, w in weights.items():
        made[name] = spec.Matrix(name, "F32", *w.shape, w.view(np.uint8).reshape(-1)) if w.ndim == 2 else w
    return made


def config(arch):
    return IndexedConfig(
        N_EMBD, 2, 20, 10, 12, N_ROT, 1e4, 1e-6, is_absorbed=True, n_index_head=N_HEAD, n_index_key=N_KEY, n_top=N_TOP,
        index_eps=EPS[arch], is_index_interleaved=arch == "glm-dsa",
    )  # fmt: skip


def table(positions):
    has = np.ones(N_ROT // 2, np.bool_)
    return spec.rope_table(np.array(positions, np.int32), spec.rope_frequencies(N_ROT, 1e4), has)


def run(arch, w, x, splits, kv_type="F32"):
    """The choices of tokens that come in batches of these sizes, and the keys that they leave."""
    ops, cfg, n = spec_ops("exact"), config(arch), len(x)
    keys = np.full((n, 1, N_KEY), np.nan, F32) if kv_type == "F32" else np.zeros((n, 1, N_KEY), np.uint16)
    at, cells, gaps, seen = 0, [], [], {}
    for size in splits:
        rows = slice(at, at + size)
        found = ops.index_cells(
            ops, w, cfg, x[rows], keys[: at + size], kv_type, at, table(range(at, at + size)),
            seen.__setitem__ if len(splits) == 1 else discard,
        )  # fmt: skip
        cells += [row[row != NO_CELL].tolist() for row in found.cells]
        gaps += found.gap.tolist()
        at += size
    return cells, gaps, keys, seen


@pytest.mark.parametrize("arch", EPS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_indexer_is_the_oracles(arch, scale):
    rng = np.random.default_rng(12)
    w = layer(rng)
    x = (scale * rng.standard_normal((11, N_EMBD))).astype(F32)
    hparams = {
        "arch": arch, "attention.indexer.head_count": N_HEAD, "attention.indexer.key_length": N_KEY,
        "attention.indexer.top_k": N_TOP, "attention.head_count": 2, "attention.kv_lora_rank": 12,
        "rope.dimension_count": N_ROT, "attention.key_length": 20, "attention.value_length": 12,
        "attention.key_length_mla": 20,
        "attention.value_length_mla": 10, "context_length": 512,
    }  # fmt: skip
    named = {f"blk.0.{name}": value for name, value in w.items()}
    low = naive.matmul(naive.f64(w["attn_q_a.weight"]), naive.f64(x))
    low = naive.rms_norm(low, naive.f64(w["attn_q_a_norm.weight"]), 1e-6)
    scores, truth = naive_dsa.index_scores(named, hparams, 0, naive.f64(x), low, list(range(11)))
    cells, gaps, keys, seen = run(arch, bound(w), x, [11])
    assert cells == naive_dsa.chosen_cells(scores, N_TOP)
    own = np.tri(11, dtype=bool)
    assert naive.nmse(scores[own], seen["indexer_score"][own]) < 1e-11
    assert np.all(np.isneginf(seen["indexer_score"][~own]))
    assert naive.nmse(truth["indexer_weights"], seen["indexer_weights"]) < 1e-12
    h = spec.hadamard(N_KEY).dequantize().astype(np.float64)
    assert naive.nmse(truth["indexer_q not rotated"] @ h, seen["indexer_q"]) < 1e-12
    assert naive.nmse(truth["indexer_k not rotated"] @ h, keys[:, 0]) < 1e-11
    assert np.isinf(gaps[:N_TOP]).all()
    assert np.isfinite(gaps[N_TOP:]).all()


@pytest.mark.parametrize("most", [1, 100, 200])
def test_how_many_tokens_are_scored_at_once_changes_nothing(most, monkeypatch):
    rng = np.random.default_rng(16)
    w = bound(layer(rng))
    x = rng.standard_normal((13, N_EMBD)).astype(F32)
    *whole, seen = run("deepseek32", w, x, [13])
    monkeypatch.setattr(compose_indexer, "MOST_PRODUCTS", most)
    *parts, again = run("deepseek32", w, x, [13])
    assert parts[:2] == whole[:2]
    assert np.array_equal(seen["indexer_score"], again["indexer_score"])


@pytest.mark.parametrize("arch", EPS)
@pytest.mark.parametrize("kv_type", ["F32", "F16"])
def test_choices_and_keys_are_the_same_in_any_batches(arch, kv_type):
    rng = np.random.default_rng(13)
    w = bound(layer(rng))
    x = rng.standard_normal((13, N_EMBD)).astype(F32)
    whole = run(arch, w, x, [13], kv_type)
    for splits in ([1] * 13, [4, 1, 8], [12, 1]):
        part = run(arch, w, x, splits, kv_type)
        assert part[:2] == whole[:2]
        assert np.array_equal(part[2], whole[2])


# ATTENTION


def test_attention_over_chosen_cells_reads_no_other_and_is_that_over_them_alone():
    rng, ops = np.random.default_rng(14), spec_ops("exact")
    q, cells = rng.standard_normal((5, 3, 10)).astype(F32), rng.standard_normal((9, 1, 10)).astype(F32)
    chosen = np.array([[0, 1, 4], [0, 2, 5], [1, 2, 3], [0, 6, 7], [3, 4, 8]])
    poisoned = np.where(np.isin(np.arange(9), np.unique(chosen))[:, None, None], cells, F32(np.nan))
    found = ops.selected_attention(ops, q, poisoned, "F32", 4, chosen)
    for t, own in enumerate(chosen):
        share = [naive.softmax(naive.f64(cells[own, 0]) @ naive.f64(q[t, h]) / 10**0.5) for h in range(3)]
        assert naive.nmse(np.stack(share) @ naive.f64(cells[own, 0]), found[t]) < 1e-13


@pytest.mark.parametrize("first", [0, 2, 6])
def test_where_every_cell_is_chosen_the_bits_are_those_of_attention(first):
    rng, ops, n = np.random.default_rng(15), spec_ops("ggml"), 6
    q, cells = rng.standard_normal((n, 2, 12)).astype(F32), rng.standard_normal((first + n, 1, 12)).astype(F32)
    sees = np.arange(first + n) <= first + np.arange(n)[:, None]
    every = np.where(sees, np.arange(first + n), NO_CELL)
    plain = ops.attention(q, cells, cells, "F32", first)
    assert np.array_equal(ops.selected_attention(ops, q, cells, "F32", first, every), plain)
    # Fewer places than cells: the first tokens see all of theirs still.
    some = ops.selected_attention(ops, q, cells, "F32", first, every[:, : first + 3])
    assert np.array_equal(some[:3], plain[:3])
    assert not np.array_equal(some[3:], plain[3:])
