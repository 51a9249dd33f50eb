"""S128 to S132: Kimi delta attention and sections of RoPE one after the other, against plain float64."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mtpref import spec
from mtpref.spec.config import KdaConfig, LatentConfig
from mtpref.spec.kinds import rope_constants
from mtpref.spec.ops import spec_ops
from tests import naive, naive_kda, naive_mla
from tests.random_weights import normal

DOTS = {"exact": spec.dot64, "ggml": spec.dot32}
N_EMBD, N_HEAD, SIZE, D_CONV = 24, 3, 8, 4


def rows(name, *shape, scale=1.0):
    return (normal(13, name, math.prod(shape)).reshape(shape) * scale).astype(np.float32)


# GATES


@pytest.mark.parametrize("lower_bound", [-5.0, -0.25])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_decay_of_a_channel_stays_above_its_bound(lower_bound, scale):
    f, beta, bias = rows("f", 5, 12, scale=scale), rows("b", 5, 3, scale=4), rows("dt", 12)
    a = np.abs(rows("a", 3)) + np.float32(0.1)
    g, strength = spec.channel_gates(f, beta, bias, a, lower_bound)
    assert g.shape == (5, 3, 4)
    assert ((g >= lower_bound) & (g <= 0)).all()
    wanted = lower_bound * naive.sigmoid((f + bias).astype(np.float64).reshape(5, 3, 4) * a[:, None])
    assert naive.nmse(wanted, g) < 1e-12
    assert naive.nmse(naive.sigmoid(beta), strength) < 1e-12


# RECURRENCE


def recurred(q, k, v, g, beta, state):
    state, out, kept = state.astype(np.float64).copy(), np.zeros(v.shape), []
    for t in range(len(v)):
        for h in range(v.shape[1]):
            state[h] = state[h] * naive.exp(g[t, h].astype(np.float64))[None, :]
            error = v[t, h] - state[h] @ k[t, h].astype(np.float64)
            state[h] += np.outer(error, k[t, h]) * float(beta[t, h])
            out[t, h] = state[h] @ q[t, h].astype(np.float64) / math.sqrt(v.shape[2])
        kept.append(state.copy())
    return out, np.stack(kept)


@pytest.mark.parametrize("numerics", DOTS)
@pytest.mark.parametrize(("n_head", "size"), [(1, 5), (3, 16), (2, 40)])
def test_the_rule_equals_the_recurrence_and_keeps_the_last_states(numerics, n_head, size):
    q, k, v = (rows(name, 6, n_head, size, scale=size**-0.5) for name in ("q", "k", "v"))
    g, beta = -np.abs(rows("g", 6, n_head, size)), np.abs(rows("b", 6, n_head, scale=0.5))
    state = rows("s", n_head, size, size)
    wanted, states = recurred(q, k, v, g, beta, state)
    out, kept = spec.channel_delta_rule(q, k, v, g, beta, state, 4, DOTS[numerics])
    assert naive.nmse(wanted, out) < 1e-11
    assert naive.nmse(states[2:], kept) < 1e-11
    first, between = spec.channel_delta_rule(q[:4], k[:4], v[:4], g[:4], beta[:4], state, 1, DOTS[numerics])
    second, last = spec.channel_delta_rule(q[4:], k[4:], v[4:], g[4:], beta[4:], between[-1], 2, DOTS[numerics])
    assert np.array_equal(np.concatenate([first, second]), out)
    assert np.array_equal(last, kept[-2:])


@pytest.mark.parametrize("numerics", DOTS)
def test_with_one_decay_a_head_it_is_the_delta_rule_of_every_other_model(numerics):
    q, k, v, state = (rows(name, 7, 3, 12) for name in ("q", "k", "v", "s"))
    state, g, beta = rows("s", 3, 12, 12), -np.abs(rows("g", 7, 3)), np.abs(rows("b", 7, 3))
    per_channel = np.repeat(g[:, :, None], 12, axis=2)
    found = spec.channel_delta_rule(q, k, v, per_channel, beta, state, 5, DOTS[numerics])
    wanted = spec.delta_rule(q, k, v, g, beta, state, 5, DOTS[numerics])
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("keep", [0, 3])
def test_the_rule_refuses_what_it_cannot_keep(keep):
    x = rows("x", 2, 3, 8)
    with pytest.raises(ValueError, match=f"keep {keep} of 2 tokens"):
        spec.channel_delta_rule(x, x, x, -np.abs(x), x[:, :, 0], rows("s", 3, 8, 8), keep, spec.dot64)


def test_the_output_gate_is_sigmoid():
    o, z, weight = rows("o", 5, 3, 8), rows("z", 5, 3, 8), rows("w", 8)
    wanted = naive.rms_norm(o, weight, 1e-5) * naive.sigmoid(z)
    assert naive.nmse(wanted, spec.sigmoid_gated_norm(o, z, weight, 1e-5)) < 1e-12


# LAYER


def weights(seed):
    """GGUF name without blk.N. -> float32, of one layer."""
    n = N_HEAD * SIZE
    shapes = {f"attn_{x}.weight": (n, N_EMBD) for x in "qkv"} | {
        "ssm_f_a.weight": (n, N_EMBD), "ssm_g_a.weight": (n, N_EMBD), "ssm_beta.weight": (N_HEAD, N_EMBD),
        "attn_output.weight": (N_EMBD, n), "ssm_dt.bias": (n,), "ssm_norm.weight": (SIZE,),
    }  # fmt: skip
    made = {name: rows(f"{seed} {name}", *shape, scale=shape[-1] ** -0.5) for name, shape in shapes.items()}
    made |= {f"ssm_conv1d_{x}.weight": rows(f"{seed} conv {x}", 1, n, 1, D_CONV) for x in "qkv"}
    return made | {"ssm_a": np.abs(rows(f"{seed} a", N_HEAD, 1)) + np.float32(0.1)}


def bound(made):
    return {
        name: spec.Matrix(name, "F32", *w.shape, w.view(np.uint8).reshape(-1))
        if w.ndim == 2 and name.endswith(".weight") else w
        for name, w in made.items()
    }  # fmt: skip


@pytest.mark.parametrize("numerics", DOTS)
def test_a_layer_is_the_oracles_whole_or_in_parts(numerics):
    made, x = weights(1), rows("x", 9, N_EMBD)
    cfg = KdaConfig(N_EMBD, D_CONV, N_HEAD, SIZE, -5.0, 1e-6)
    assert cfg.conv_dim == 3 * N_HEAD * SIZE
    hparams = {"attention.head_count": N_HEAD, "kda.head_dim": SIZE, "kda.gate_lower_bound": -5.0,
               "attention.layer_norm_rms_epsilon": 1e-6}  # fmt: skip
    truth, taps = naive_kda.delta({f"blk.0.{name}": naive.f64(w) for name, w in made.items()}, hparams, 0, naive.f64(x))
    ops, seen = spec_ops(numerics), {}
    conv, state = np.zeros((D_CONV - 1, cfg.conv_dim), np.float32), np.zeros((N_HEAD, SIZE, SIZE), np.float32)
    y, windows, states = ops.kda_layer(
        ops, bound(made), cfg, x, conv, state, 3, lambda n, a: seen.update({n: a.copy()})
    )
    assert naive.nmse(truth, y) < 1e-11
    for name, value in taps.items():
        found = seen["kda_scan_out" if name == "attn_output" else name]
        assert naive.nmse(value, found.reshape(value.shape)) < 1e-11, name
    parts, given = [], (conv, state)
    for a, b in ((0, 4), (4, 5), (5, 9)):
        part, own_windows, own_states = ops.kda_layer(ops, bound(made), cfg, x[a:b], *given, 1, lambda n, a: None)
        parts.append(part)
        given = own_windows[-1], own_states[-1]
    assert np.array_equal(np.concatenate(parts), y)
    assert np.array_equal(given[0], windows[-1])
    assert np.array_equal(given[1], states[-1])


# SECTIONS


def test_pairs_of_the_last_section_stay_and_sections_begin_anew():
    assert spec.mrope_has_position(8, (1, 1, 1, 1)).tolist() == [True, True, True, False]
    assert spec.mrope_has_position(16, (1, 2, 0, 1)).tolist() == [True, True, True, False] * 2
    assert spec.mrope_has_position(8, (2, 1, 1, 0)).all()
    # Those that take turns (S10) leave other pairs.
    assert spec.imrope_has_position(8, (1, 1, 1, 1)).tolist() != spec.imrope_has_position(8, (1, 2, 0, 1)).tolist()


LATENT = LatentConfig(N_EMBD, N_HEAD, 20, 10, 16, 8, 1e4, 1e-6, is_absorbed=True)
HPARAMS = {"context_length": 512, "rope.freq_base": 1e4}


@pytest.mark.parametrize("sections", [None, (2, 1, 1, 0), (1, 1, 1, 1)])
def test_with_sections_halves_are_paired_and_without_neighbours(sections):
    cfg, positions = replace(LATENT, rope_sections=sections), [0, 1, 7, 300]
    assert cfg.is_interleaved == (sections is None)
    shapes = {"attn_q.weight": (60, N_EMBD), "attn_kv_a_mqa.weight": (24, N_EMBD)}
    made = {name: rows(name, *shape) for name, shape in shapes.items()} | {"attn_kv_a_norm.weight": rows("n", 16)}
    ops = spec_ops("exact")
    table = ops.rope_table(np.array(positions, np.int32), *rope_constants(cfg.rotary))
    x = rows("x", 4, N_EMBD)
    _, q_pe, _, k_pe = ops.latent_input(ops, bound(made), cfg, x, table, lambda name, array: None)
    hparams = HPARAMS | ({} if sections is None else {"rope.dimension_sections": list(sections)})
    both, q = naive.matmul(made["attn_kv_a_mqa.weight"], x), naive.matmul(made["attn_q.weight"], x)
    for found, raw in ((q_pe, q.reshape(4, N_HEAD, 20)[:, :, 12:]), (k_pe[:, None], both[:, None, 16:])):
        assert naive.nmse(naive_kda.turned(hparams, raw, positions), found) < 1e-11
    if sections:
        other = naive_mla.turned(both[:, None, 16:], positions, [naive.power(1e4, -i / 4) for i in range(4)], 1.0)
        assert naive.nmse(other, k_pe[:, None]) > 1e-3


def test_a_gate_of_each_head_stands_before_the_output():
    ops, cfg, n = spec_ops("exact"), LATENT, 4
    made = {
        "attn_q.weight": rows("q", 60, N_EMBD), "attn_kv_a_mqa.weight": rows("kv", 24, N_EMBD),
        "attn_gate.weight": rows("g", N_HEAD, N_EMBD), "attn_output.weight": rows("o", N_EMBD, 30),
        "attn_kv_a_norm.weight": rows("n", 16),
    }  # fmt: skip
    stacks = {}
    for name, shape in (("attn_k_b.weight", (N_HEAD, 16, 12)), ("attn_v_b.weight", (N_HEAD, 10, 16))):
        raw = rows(name, *shape).view(np.uint8).reshape(N_HEAD, -1)
        stacks[name] = spec.Stack(name, "F32", shape[1], shape[2], raw)
    table = ops.rope_table(np.arange(n, dtype=np.int32), *rope_constants(cfg.rotary))
    x, seen = rows("x", n, N_EMBD), {}

    def run(w):
        cells = np.zeros((n, 1, cfg.n_row), np.float32)
        return ops.latent_attn_layer(ops, w, cfg, x, cells, "F32", 0, table, lambda k, a: seen.update({k: a.copy()}))

    found = run(bound(made) | stacks)
    gate = naive.sigmoid(naive.matmul(made["attn_gate.weight"], x))
    gated = seen["kqv_out"].astype(np.float64) * gate[:, :, None]
    assert naive.nmse(naive.matmul(made["attn_output.weight"], gated.reshape(n, -1)), found) < 1e-11
    del made["attn_gate.weight"]
    plain = run(bound(made) | stacks)
    assert naive.nmse(naive.matmul(made["attn_output.weight"], seen["kqv_out"].reshape(n, -1)), plain) < 1e-11
