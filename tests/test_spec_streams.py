"""S70 to S93 on arrays: streams, windows, compressed rows, clamped experts, against the float64 oracle.

Whole models: test_streams_model.py.
"""

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.config import CompressedConfig, MoeConfig, StreamsConfig
from mtpref.spec.ops import discard, spec_ops
from mtpref.spec.ops.compose_streams import enter_streams
from mtpref.spec.ops.types import Blocks
from tests import naive, naive_dsv4

F32 = np.float32
N_EMBD, N_HEAD, WIDTH, N_ROT, EPS = 24, 4, 16, 8, 1e-6
STREAMS = StreamsConfig(N_EMBD, 4, 3, 1e-3, EPS)
HPARAMS = {
    "attention.layer_norm_rms_epsilon": EPS, "hyper_connection.epsilon": 1e-3, "rope.dimension_count": N_ROT,
    "hyper_connection.sinkhorn_iterations": 3, "context_length": 512, "rope.freq_base": 1e4,
    "attention.compress_rope_freq_base": 5e3, "attention.head_count": N_HEAD, "attention.key_length": WIDTH,
    "attention.sliding_window": 5, "attention.output_group_count": 2, "attention.indexer.head_count": 3,
    "attention.indexer.key_length": 64, "attention.indexer.top_k": 2, "expert_used_count": 2,
    "expert_weights_norm": True, "expert_weights_scale": 1.5,
    "swiglu_clamp_exp": [0.7, 0.7], "swiglu_clamp_shexp": 0.4, "hash_layer_count": 1,
}  # fmt: skip
EXPERTS = MoeConfig(N_EMBD, 5, 2, "sqrt_softplus", True, 1.5, 1, 0, 0.7, 0.4)


def config(ratio):
    base = 5e3 if ratio else 1e4
    return CompressedConfig(N_EMBD, N_HEAD, WIDTH, N_ROT, 5, ratio, 2, base, EPS, 3, 64, 2)


def bound(weights, il=0):
    """A layer's weights as the operations take them."""
    made = {}
    for name, w in weights.items():
        raw = np.ascontiguousarray(w).view(np.uint8)
        if w.dtype == np.int32 or w.ndim == 1:
            made[name.removeprefix(f"blk.{il}.")] = w
        elif w.ndim == 2:
            made[name.removeprefix(f"blk.{il}.")] = spec.Matrix(name, "F32", *w.shape, raw.reshape(-1))
        else:
            stack = spec.Stack(name, "F32", w.shape[1], w.shape[2], raw.reshape(w.shape[0], -1))
            made[name.removeprefix(f"blk.{il}.")] = stack
    return made


def random(rng, shapes, il=0):
    return {f"blk.{il}.{n}.weight": rng.standard_normal(s).astype(F32) * F32(s[-1] ** -0.5) for n, s in shapes.items()}


def near(found, expected, limit=3e-6):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= limit * max(1e-30, float(np.max(np.abs(expected))))


# STREAMS


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_weights_of_streams_are_the_oracles(scale):
    rng = np.random.default_rng(3)
    x = (scale * rng.standard_normal((5, 4, N_EMBD))).astype(F32)
    names = {"hc_attn_fn": (24, 4 * N_EMBD), "hc_attn_base": (24,), "hc_attn_scale": (3,)}
    w = {f"blk.0.{n}.weight": rng.standard_normal(s).astype(F32) for n, s in names.items()}
    ops = spec_ops("exact")
    rows, post, comb = ops.connect(ops, bound(w), "hc_attn", STREAMS, x.reshape(5, -1))
    for t in range(5):
        pre, p, c = naive_dsv4.connection(w, HPARAMS, "blk.0.hc_attn", naive.f64(x[t]))
        near(rows[t], sum(pre[s] * naive.f64(x[t, s]) for s in range(4)))
        near(post[t], p)
        near(comb[t], c, 1e-5)
    y = rng.standard_normal((5, N_EMBD)).astype(F32)
    written = spec.write_streams(x, y, post, comb)
    whole = np.einsum("tso,tsd->tod", naive.f64(comb), x) + naive.f64(post)[:, :, None] * y[:, None]
    near(written, whole)


def test_rounds_of_sinkhorn_end_with_columns_and_near_sums_of_one():
    rng = np.random.default_rng(4)
    x = (1.5 * rng.standard_normal((3, 4, 4))).astype(F32)
    once, often = spec.sinkhorn(x, 1e-6, 1), spec.sinkhorn(x, 1e-6, 20)
    assert np.abs(once.sum(axis=1) - 1).max() < 1e-4  # over sources
    assert np.abs(once.sum(axis=2) - 1).max() > 0.05
    assert np.abs(often.sum(axis=2) - 1).max() < 1e-3
    for t in range(3):
        near(spec.sinkhorn(x, 0.01, 3)[t], naive_dsv4.sinkhorn(naive.f64(x[t]), 0.01, 3))


def test_streams_begin_alike_and_a_head_reads_them_with_weights_of_its_own():
    rng = np.random.default_rng(5)
    embd = rng.standard_normal((3, N_EMBD)).astype(F32)
    entered = enter_streams(embd, STREAMS).reshape(3, 4, N_EMBD)
    assert all(np.array_equal(entered[:, s], embd) for s in range(4))
    w = {"output_hc_fn.weight": rng.standard_normal((4, 4 * N_EMBD)).astype(F32),
         "output_hc_base.weight": rng.standard_normal(4).astype(F32),
         "output_hc_scale.weight": np.array([0.7], F32)}  # fmt: skip
    x, seen, ops = rng.standard_normal((3, 4, N_EMBD)).astype(F32), {}, spec_ops("exact")
    found = ops.leave_streams(ops, bound(w), x.reshape(3, -1), STREAMS, seen.__setitem__)
    near(found, naive_dsv4.together(w, HPARAMS, naive.f64(x)))
    assert seen["hc_head"] is found


@pytest.mark.parametrize("order", ["eh", "he"])
def test_a_heads_input_is_made_stream_by_stream(order):
    class Own:
        enorm, hnorm = (np.linspace(0.5, 1.5, N_EMBD).astype(F32) * sign for sign in (1, -1))
        values = np.random.default_rng(6).standard_normal((N_EMBD, 2 * N_EMBD)).astype(F32)
        eh_proj = spec.Matrix("eh", "F32", N_EMBD, 2 * N_EMBD, values.view(np.uint8).reshape(-1))

    rng, ops = np.random.default_rng(7), spec_ops("exact")
    embd, hidden = rng.standard_normal((2, N_EMBD)).astype(F32), rng.standard_normal((2, 4 * N_EMBD)).astype(F32)
    found = ops.streams_input(ops, Own, embd, hidden, EPS, order, discard).reshape(2, 4, N_EMBD)
    for t in range(2):
        e = naive.rms_norm(embd[t], Own.enorm, EPS)
        for s in range(4):
            g = naive.rms_norm(hidden[t].reshape(4, -1)[s], Own.hnorm, EPS)
            near(found[t, s], naive.matmul(Own.values, np.concatenate([e, g] if order == "eh" else [g, e])))


# ATTENTION


def test_the_last_dimensions_are_turned_and_turned_back():
    x = np.array([[[1, 2, 3, 4, 5, 6]]], F32)
    cos, sin = np.array([[0.6]], F32), np.array([[0.8]], F32)
    there = spec.rope_last(x, cos, sin)
    assert np.allclose(there, [[[1, 2, 3, 4, 5 * 0.6 - 6 * 0.8, 5 * 0.8 + 6 * 0.6]]])
    assert np.allclose(spec.rope_last(there, cos, sin, True), x, atol=1e-6)
    assert x[0, 0, 4] == 5


def test_each_dimension_has_a_softmax_of_its_own_and_what_is_not_there_counts_nothing():
    values, scores = (np.random.default_rng(s).standard_normal((2, 5, 3)).astype(F32) for s in (8, 9))
    values[0, :2], scores[0, :2] = 0, -np.inf
    found = spec.compress_rows(values, 8 * scores)
    for b in range(2):
        for d in range(3):
            share = naive.softmax(8 * scores[b, :, d].astype(np.float64))
            assert found[b, d] == pytest.approx(float(share @ values[b, :, d]), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("pos", "window", "first"), [(0, 5, 0), (4, 5, 0), (5, 5, 1), (9, 1, 9), (9, 2, 8)])
def test_a_window_holds_the_query_itself(pos, window, first):
    assert spec.window_start(pos, window) == first


@pytest.mark.parametrize(
    ("n", "ratio", "rows"), [(0, 4, 0), (3, 4, 0), (4, 4, 1), (127, 128, 0), (128, 128, 1), (9, 4, 2)]
)
def test_a_block_counts_once_its_last_token_is_there(n, ratio, rows):
    assert spec.n_compressed(n, ratio) == rows


def test_the_indexer_adds_up_positive_products_and_takes_the_lower_row_of_equals():
    rng = np.random.default_rng(10)
    q, rows, w = (rng.standard_normal(s).astype(F32) for s in ((3, 12), (6, 12), (3,)))
    near(spec.row_scores(q, rows, w), (np.maximum(naive.f64(rows) @ q.T, 0) * w).sum(axis=1))
    assert spec.best_rows(np.array([1, 3, 0, 3, 2], F32), 2).tolist() == [1, 3]
    assert spec.best_rows(np.array([0, 3, 3, 3], F32), 2).tolist() == [1, 2]
    assert spec.best_rows(np.array([5, 7], F32), 4).tolist() == [0, 1]
    assert spec.best_rows(np.zeros(0, F32), 4).tolist() == []


@pytest.mark.parametrize("kv_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("sink", [-90.0, 0.5, 80.0])
def test_a_sink_takes_its_share_and_gives_nothing(sink, kv_type):
    rng, ops = np.random.default_rng(12), spec_ops("exact")
    q, k = rng.standard_normal((2, WIDTH)).astype(F32), rng.standard_normal((7, WIDTH)).astype(F32)
    cells, sinks = ops.store_kv(k, kv_type), np.array([sink, 0.0], F32)
    found, rows = ops.sink_attention(q, cells, sinks, kv_type), naive.f64(spec.load_kv(cells, kv_type))
    rounded = spec.load_kv(ops.store_kv(q, kv_type), kv_type)
    for h in range(2):
        scores = np.append(rows @ naive.f64(rounded[h]) / np.sqrt(WIDTH), sinks[h])
        expected = naive.softmax(scores)[:-1] @ rows
        assert np.max(np.abs(found[h] - expected)) < 2e-6


def attention_weights(rng, ratio):
    wide = 2 if ratio == 4 else 1
    shapes = {"attn_q_a": (10, N_EMBD), "attn_q_b": (N_HEAD * WIDTH, 10), "attn_kv": (WIDTH, N_EMBD),
              "attn_output_a": (12, 2 * WIDTH), "attn_output_b": (N_EMBD, 12), "attn_sinks": (N_HEAD,)}  # fmt: skip
    parts = [("attn_compressor", WIDTH)] * bool(ratio) + [("indexer_compressor", 64)] * (ratio == 4)
    for name, width in parts:
        shapes |= {f"{name}_kv": (wide * width, N_EMBD), f"{name}_gate": (wide * width, N_EMBD),
                   f"{name}_ape": (ratio, wide * width)}  # fmt: skip
    if ratio == 4:
        shapes |= {"indexer.attn_q_b": (3 * 64, 10), "indexer.proj": (3, N_EMBD)}
    w = random(rng, shapes)
    norms = {"attn_q_a_norm": 10, "attn_kv_a_norm": WIDTH} | {f"{name}_norm": width for name, width in parts}
    return w | {f"blk.0.{n}.weight": (1 + 0.3 * rng.standard_normal(d)).astype(F32) for n, d in norms.items()}


def run_layer(ops, cfg, w, x, cuts):
    """The layer over pieces of the rows; what is kept goes from piece to piece."""
    frequencies = spec.rope_frequencies(N_ROT, cfg.freq_base)

    def table(pos):
        return spec.rope_table(np.asarray(pos, np.int32), frequencies, np.ones(N_ROT // 2, np.bool_))

    widths = {"attn_compressor": WIDTH} if cfg.ratio else {}
    widths |= {"indexer_compressor": 64} if cfg.has_overlap else {}
    wide = 2 if cfg.has_overlap else 1
    raw = np.zeros((cfg.n_window - 1, WIDTH), F32)
    kept = {n: [np.zeros((wide * cfg.ratio - 1, wide * d), F32)] * 2 for n, d in widths.items()}
    cells = {n: np.full((len(x), d), np.nan, F32) for n, d in widths.items()}
    out, first = [], 0
    for piece in np.split(x, cuts):
        end = first + len(piece)
        blocks = {n: Blocks(*kept[n], cells[n][: end // cfg.ratio]) for n in widths}
        now = table(np.arange(first, end))
        y, raw, made = ops.compressed_attn_layer(ops, w, cfg, piece, raw, blocks, "F32", first, now, table, discard)
        raw = raw[len(raw) - cfg.n_window + 1 :]
        kept = {n: [rows[len(piece) :] for rows in pair] for n, pair in made.items()}
        out.append(y)
        first = end
    return np.concatenate(out)


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.parametrize(("ratio", "n"), [(0, 12), (4, 23), (128, 131)])
def test_attention_with_windows_and_compressed_rows_is_the_oracles_however_it_is_cut(ratio, n, numerics):
    rng, ops, cfg = np.random.default_rng(13 + ratio), spec_ops(numerics), config(ratio)
    w, x = attention_weights(rng, ratio), rng.standard_normal((n, N_EMBD)).astype(F32)
    wanted, _ = naive_dsv4.attention(w, HPARAMS, 0, naive.f64(x), list(range(n)), ratio)
    found = run_layer(ops, cfg, bound(w), x, [])
    assert naive.nmse(wanted, found) < 1e-11
    for cuts in ([1], [3, 4, 5], [n - 1], [n - 3, n - 2]):
        assert np.array_equal(run_layer(ops, cfg, bound(w), x, cuts), found)


# EXPERTS


def test_a_router_of_square_roots_of_softplus():
    x = np.array([[-90.0, -3.0, 0.0, 3.0, 30.0]], F32)
    near(spec.expert_probs(x, "sqrt_softplus"), np.sqrt(naive.softplus(x)))


@pytest.mark.parametrize("limit", [0.0, 1e-6, 0.5, 7.0])
def test_gate_and_up_are_clamped_before_silu(limit):
    gate, up = np.array([[-9.0, -1.0, 0.4, 9.0]], F32), np.array([[2.0, -8.0, 0.3, 8.0]], F32)
    g, u = (gate, up) if limit <= 1e-6 else (np.minimum(gate, limit), np.clip(up, -limit, limit))
    near(spec.clamped_swiglu(gate, up, limit), naive.silu(g) * naive.f64(u))


@pytest.mark.parametrize("il", [0, 1])
def test_experts_by_token_and_by_score_are_the_oracles(il):
    rng, ops = np.random.default_rng(15), spec_ops("exact")
    shapes = {"ffn_gate_inp": (5, N_EMBD), "ffn_gate_exps": (5, 8, N_EMBD), "ffn_up_exps": (5, 8, N_EMBD),
              "ffn_down_exps": (5, N_EMBD, 8), "ffn_gate_shexp": (8, N_EMBD), "ffn_up_shexp": (8, N_EMBD),
              "ffn_down_shexp": (N_EMBD, 8)}  # fmt: skip
    w = random(rng, shapes, il)
    w[f"blk.{il}.exp_probs_b.bias"] = rng.standard_normal(5).astype(F32)
    w[f"blk.{il}.ffn_gate_tid2eid.weight"] = np.array([[4, 0], [1, 2], [3, 1]], np.int32)
    if il == 0:
        del w["blk.0.exp_probs_b.bias"]
    x, tokens = (3 * rng.standard_normal((4, N_EMBD))).astype(F32), np.array([2, 0, 1, 2], np.int32)
    own = bound(w, il)
    if il == 0:
        weights, routing = ops.route_by_token(ops, own, EXPERTS, x, tokens, discard)
        assert np.isinf(routing.gap).all()
    else:
        weights, routing = ops.route(ops, own, EXPERTS, x, discard)
    wanted, t = naive_dsv4.experts(w, HPARAMS, il, naive.f64(x), tokens.tolist())
    assert np.array_equal(routing.ids, t["ffn_moe_topk"])
    near(ops.clamped_experts(ops, own, EXPERTS, x, routing, weights, discard), wanted)
