"""L1 of Kimi delta attention, and of RoPE whose sections lie one after the other. Expected values are naive float64."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from golden.connections import add
from golden.l1_operations import EPS, EPSILON
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder
from mtpref.golden.format import hex_float
from tests import naive, naive_chain

CHANNELS, SECTIONS = ("channel_decay",), ("rope_sections",)


def channel_gates() -> SuiteBuilder:
    about = "g = lower_bound * sigmoid((f + dt_bias) * a), the log of each channel's decay; beta' = sigmoid(beta)."
    suite = SuiteBuilder("L1", "channel_gates", "channel_gates", ("S128",), about)
    for id, comment, scale, lower_bound, flags in (
        ("basic", "ordinary values", 1.0, -5.0, ("basic",)),
        ("wide", "sigmoid far out on both sides", 15.0, -5.0, ("edge.large",)),
        ("narrow", "a bound near 0: nothing is forgotten fast", 1.0, -0.125, ("edge.scale",)),
    ):
        f, beta = bell(f"channels/{id}/f", (4, 12), scale), bell(f"channels/{id}/beta", (4, 3), scale)
        dt, a = bell(f"channels/{id}/dt", (12,)), uniform(f"channels/{id}/a", (3,), 0.1, 4.0)
        rows = (naive.f64(f) + naive.f64(dt)).reshape(4, 3, 4)
        wanted = {"g": lower_bound * naive.sigmoid(rows * naive.f64(a)[:, None]), "beta_sigmoid": naive.sigmoid(beta)}
        inputs = {"f": f, "beta": beta, "dt_bias": dt, "ssm_a": a}
        add(suite, id, comment, inputs, wanted, {"lower_bound": hex_float(lower_bound)}, flags, CHANNELS)
    return suite


def recurred(
    q: NDArray, k: NDArray, v: NDArray, g: NDArray, beta: NDArray, state: NDArray
) -> tuple[NDArray, list[NDArray]]:
    """The outputs, and the state after each token."""
    state, out, kept = naive.f64(state).copy(), np.zeros(v.shape), []
    for t in range(len(v)):
        for h in range(v.shape[1]):
            m = state[h] * naive.exp(naive.f64(g[t, h]))[None, :]
            error = (naive.f64(v[t, h]) - naive.dot(m, naive.f64(k[t, h]))) * float(beta[t, h])
            state[h] = m + np.outer(error, naive.f64(k[t, h]))
            out[t, h] = naive.dot(state[h], naive.f64(q[t, h])) / math.sqrt(v.shape[2])
        kept.append(state.copy())
    return out, kept


def channel_delta_rule() -> SuiteBuilder:
    about = "The gated delta rule, column i of the state with the decay of channel i. The state is [value j, key i]."
    suite = SuiteBuilder("L1", "channel_delta_rule", "channel_delta_rule", ("S129",), about)
    for id, comment, n_tokens, keep, bound, flags in (
        ("one_step", "one token on a full state: decay, read, update, then output", 1, 1, 1.5, ("basic",)),
        ("three_states", "the states after each of the last three of five tokens", 5, 3, 1.5, ("carry",)),
        ("forty_tokens", "a long run: errors must not grow", 40, 1, 5.0, ("drift",)),
        ("no_decay", "g = 0 keeps the state", 1, 1, 0.0, ("edge.gate",)),
    ):
        n_head, size = 2, 8
        q, k = (
            naive.l2_norm(bell(f"channel/{id}/{x}", (n_tokens, n_head, size)), EPSILON).astype(np.float32) for x in "qk"
        )
        v, state = bell(f"channel/{id}/v", (n_tokens, n_head, size)), bell(f"channel/{id}/s", (n_head, size, size))
        g = -uniform(f"channel/{id}/g", (n_tokens, n_head, size), 0.0, bound) if bound else np.zeros_like(v)
        beta = uniform(f"channel/{id}/beta", (n_tokens, n_head), 0.0, 1.0)
        out, states = recurred(q, k, v, g, beta, state)
        inputs = {"q": q, "k": k, "v": v, "g": g, "beta": beta, "state": state}
        wanted = {"o": out, "states": np.stack(states[-keep:])}
        add(suite, id, comment, inputs, wanted, {"keep": keep}, flags, CHANNELS)
    return suite


def sigmoid_gated_norm() -> SuiteBuilder:
    about = "An RMS norm of each head, then times sigmoid (not silu) of the gate."
    suite = SuiteBuilder("L1", "sigmoid_gated_norm", "sigmoid_gated_norm", ("S130",), about)
    for id, comment, scale, flags in (
        ("basic", "ordinary values", 1.0, ("basic",)),
        ("wide", "gates far out on both sides", 20.0, ("edge.large",)),
    ):
        o, z = bell(f"sigmoid_gated/{id}/o", (3, 2, 8)), bell(f"sigmoid_gated/{id}/z", (3, 2, 8), scale)
        weight = uniform(f"sigmoid_gated/{id}/w", (8,), 0.3, 1.6)
        wanted = naive.rms_norm(o, weight, EPSILON) * naive.sigmoid(z)
        add(suite, id, comment, {"o": o, "z": z, "weight": weight}, {"y": wanted}, {"eps": EPS}, flags, CHANNELS)
    return suite


def rope_by_sections() -> SuiteBuilder:
    about = "RoPE of whole rows, halves paired, sections one after the other: in text those of the fourth axis stay."
    suite = SuiteBuilder("L1", "rope_by_sections", "rope_by_sections", ("S10", "S132"), about)
    for id, comment, n_rot, sections, flags in (
        ("basic", "all pairs in the first three sections", 8, (2, 1, 1, 0), ("basic",)),
        ("fourth_axis", "the last pair is the fourth axis's", 8, (1, 1, 1, 1), ("edge.length",)),
        ("begin_anew", "more pairs than sections count", 16, (1, 2, 0, 1), ("edge.length",)),
    ):
        x, positions = bell(f"sections/{id}", (3, 2, n_rot)), [0, 7, 1000]
        stays = [i % sum(sections) >= sum(sections[:3]) for i in range(n_rot // 2)]
        angles = [0.0 if stays[i] else naive.power(1e4, -2.0 * i / n_rot) for i in range(n_rot // 2)]
        wanted = naive_chain.turned(naive.f64(x), positions, angles, 1.0)
        params = {"n_rot": n_rot, "freq_base": hex_float(1e4), "sections": list(sections)}
        add(suite, id, comment, {"x": x, "pos": np.array(positions, np.int32)}, {"y": wanted}, params, flags, SECTIONS)
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (channel_gates, channel_delta_rule, sigmoid_gated_norm, rope_by_sections):
        yield make()
