"""L1 and L2 of several residual streams: weights, reading, writing, a head's input. Values are naive float64."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import EPS, EPSILON, ours
from golden.l2_layers import N_EMBD
from golden.l2_layers import add as add_layer
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder, close, exact
from mtpref.golden.format import hex_float
from tests import naive, naive_dsv4

F32 = NDArray[np.float32]
NEEDS = ("hyper_connections",)
N = naive_dsv4.N_STREAMS
MIXES = N * (N + 2)
MIXED = ("H5-comb-transposed", "H5b-sinkhorn-skipped")


def add(
    suite: SuiteBuilder, id: str, comment: str, inputs: Mapping[str, NDArray], oracle: Mapping[str, NDArray],
    params: Mapping[str, Any], flags: tuple[str, ...], need: tuple[str, ...] = NEEDS,
) -> None:  # fmt: skip
    """Outputs are the oracle's, with the specification's noise."""
    given = ours(suite.op, params, inputs)
    out = {name: close("op_f32", wanted, given[name]) for name, wanted in oracle.items()}
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=need)


# ------------------------------------------------------------------------------------------------------- operations


def stream_weights() -> SuiteBuilder:
    about = "What a sub-layer reads its streams with, writes to them with, and mixes them by: [pre | post | comb]."
    suite = SuiteBuilder("L1", "stream_weights", "stream_weights", ("S70", "S71"), about)
    for id, comment, scale, eps, n_iterations, flags in (
        ("basic", "three rounds", 1.0, 1e-4, 3, ("basic", *MIXED, "H5c-post-not-doubled")),
        ("one_round", "a single round: softmax over targets, then columns alone", 1.0, 1e-4, 1, ("basic",)),
        ("many_rounds", "twenty rounds, a small eps", 1.0, 1e-6, 20, ("basic",)),
        ("large_eps", "an eps that counts: it is added to pre and in Sinkhorn, not to post", 1.0, 0.05, 2,
         ("edge.eps",)),
        ("far_out", "sigmoids at their ends, one target takes nearly all", 30.0, 1e-4, 3, ("edge.gate",)),
    ):  # fmt: skip
        mixes = bell(f"stream_weights/{id}", (3, MIXES), scale)
        base, scales = bell(f"stream_weights/{id}/base", (MIXES,), 0.5), np.array([0.75, 0.5, 1.5], np.float32)
        m = naive.f64(mixes) * np.repeat(naive.f64(scales), [N, N, N * N]) + base
        comb = [naive_dsv4.sinkhorn(row.reshape(N, N), _f32(eps), n_iterations) for row in m[:, 2 * N :]]
        oracle = {"pre": naive.sigmoid(m[:, :N]) + _f32(eps), "post": 2 * naive.sigmoid(m[:, N : 2 * N]),
                  "comb": np.stack(comb)}  # fmt: skip
        params = {"n_streams": N, "streams_eps": hex_float(_f32(eps)), "n_iterations": n_iterations}
        add(suite, id, comment, {"mixes": mixes, "scale": scales, "base": base}, oracle, params, flags)
    return suite


def _f32(x: float) -> float:
    return float(np.float32(x))


def sinkhorn() -> SuiteBuilder:
    about = "Sinkhorn's rounds on (source, target): softmax over targets, plus eps, columns; then rows and columns."
    suite = SuiteBuilder("L1", "sinkhorn", "sinkhorn", ("S71",), about)
    for id, comment, comb, n_iterations, flags in (
        ("basic", "any matrices, three rounds", bell("sinkhorn/basic", (3, N, N), 1.5), 3, ("basic", *MIXED)),
        ("one_round", "columns add up to one, rows do not", bell("sinkhorn/one", (2, N, N), 1.5), 1, ("edge.short",)),
        ("equal", "equal values: a quarter each", np.zeros((1, N, N), np.float32), 3, ("edge.zero",)),
        ("one_sided", "one source of each row by far: eps alone is left for the rest",
         40 * np.eye(N, dtype=np.float32)[None], 3, ("edge.large",)),
        ("not_symmetric", "every source wants target 1: rows and columns exchanged give another matrix",
         np.tile(np.array([0, 4, 0, 0], np.float32), (1, N, 1)) + bell("sinkhorn/not", (1, N, N), 0.5), 2,
         ("basic", *MIXED)),
    ):  # fmt: skip
        eps = _f32(1e-3)
        wanted = np.stack([naive_dsv4.sinkhorn(naive.f64(one), eps, n_iterations) for one in comb])
        params = {"streams_eps": hex_float(eps), "n_iterations": n_iterations}
        add(suite, id, comment, {"comb": comb}, {"comb": wanted}, params, flags)
    return suite


def head_weights() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "head_weights", "head_weights", ("S70",), "What the head reads the streams with.")
    for id, comment, scale, eps, flags in (
        ("basic", "four tokens", 1.0, 1e-4, ("basic",)),
        ("far_out", "sigmoids at their ends: eps is what is left", 40.0, 1e-3, ("edge.gate",)),
    ):
        mixes, base = bell(f"head_weights/{id}", (4, N), scale), bell(f"head_weights/{id}/base", (N,), 0.5)
        own, params = np.array([0.75], np.float32), {"streams_eps": hex_float(_f32(eps))}
        wanted = naive.sigmoid(naive.f64(mixes) * float(own[0]) + base) + _f32(eps)
        add(suite, id, comment, {"mixes": mixes, "scale": own, "base": base}, {"pre": wanted}, params, flags)
    return suite


def read_streams() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "read_streams", "read_streams", ("S72",), "The sum of the streams, each times its pre.")
    for id, comment, pre, flags in (
        ("basic", "weights of each token's own", uniform("read_streams/pre", (3, N), 0.0, 1.0), ("basic",)),
        ("one_stream", "one stream alone is read", np.eye(N, dtype=np.float32)[[2, 0, 3]], ("basic",)),
    ):
        x = bell(f"read_streams/{id}", (3, N, 12))
        wanted = sum(naive.f64(x[:, s]) * naive.f64(pre[:, s, None]) for s in range(N))
        add(suite, id, comment, {"streams": x, "pre": pre}, {"y": np.asarray(wanted)}, {}, flags)
    return suite


def write_streams() -> SuiteBuilder:
    about = "The streams after a sub-layer: target t is post_t y plus every source s times comb[s, t]."
    suite = SuiteBuilder("L1", "write_streams", "write_streams", ("S73",), about)
    permuted = np.tile(np.eye(N, dtype=np.float32)[[1, 2, 3, 0]], (2, 1, 1))
    for id, comment, comb, flags in (
        ("basic", "any matrix", uniform("write_streams/comb", (2, N, N), 0.0, 1.0), ("basic",)),
        ("permuted", "source s goes to target s + 1 alone: the matrix is not symmetric", permuted, ("basic",)),
        ("nothing_stays", "a matrix of zeros: what is written is all", np.zeros((2, N, N), np.float32),
         ("edge.zero",)),
    ):  # fmt: skip
        x, y, post = (bell(f"write_streams/{id}/{part}", shape) for part, shape in
                      (("x", (2, N, 12)), ("y", (2, 12)), ("post", (2, N))))  # fmt: skip
        wanted = np.zeros((2, N, 12))
        for target in range(N):
            wanted[:, target] = naive.f64(post[:, target, None]) * naive.f64(y)
            for source in range(N):
                wanted[:, target] += naive.f64(comb[:, source, target, None]) * naive.f64(x[:, source])
        inputs = {"streams": x, "y": y, "post": post, "comb": comb}
        add(suite, id, comment, inputs, {"streams": wanted}, {}, flags)
    return suite


def enter_streams() -> SuiteBuilder:
    about = "The streams before the first layer: the embedding in each, not divided by their number."
    suite = SuiteBuilder("L1", "enter_streams", "enter_streams", ("S81",), about)
    embd = bell("enter_streams", (3, 12))
    suite.case("basic", "three tokens", inputs={"embd": embd}, params={"n_streams": N}, flags=("basic",),
               requires=NEEDS, out={"streams": exact(np.stack([embd] * N, axis=1))})  # fmt: skip
    return suite


# ----------------------------------------------------------------------------------------------------------- layers


def hparams_of(eps: float, n_iterations: int) -> dict[str, Any]:
    """A case's parameters as the keys of a file."""
    return {
        "attention.layer_norm_rms_epsilon": EPSILON,
        "hyper_connection.epsilon": eps,
        "hyper_connection.sinkhorn_iterations": n_iterations,
    }


def params_of(eps: float, n_iterations: int) -> dict[str, Any]:
    return {"n_streams": N, "streams_eps": hex_float(eps), "n_iterations": n_iterations, "eps": EPS}


def connect() -> SuiteBuilder:
    about = "What stands around a sub-layer: RMS norm of all streams at once without a weight, the product, S70, S72."
    suite = SuiteBuilder("L2", "connect", "connect", ("S6", "S8", "S70", "S71", "S72", "S82"), about)
    for id, comment, name, scale, eps, n_iterations, flags, numerics in (
        ("attention", "weights of attention", "hc_attn", 1.0, 1e-4, 3, ("basic", *MIXED, "H5c-post-not-doubled"),
         ("exact", "ggml")),
        ("experts", "weights of the experts' network; streams of other sizes", "hc_ffn", 1.0, 1e-3, 2, ("basic",),
         ("exact",)),
        ("small_streams", "mean(x^2) is about eps: the norm's eps is inside the root", "hc_attn", 1e-3, 1e-4, 3,
         ("edge.eps",), ("exact",)),
    ):  # fmt: skip
        w = {f"{name}_fn.weight": bell("connect/fn", (MIXES, N * N_EMBD), 0.1),
             f"{name}_base.weight": bell("connect/base", (MIXES,), 0.5),
             f"{name}_scale.weight": np.array([0.75, 0.5, 1.5], np.float32)}  # fmt: skip
        sizes = np.array([1.0, 0.25, 3.0, 0.5], np.float32)[None, :, None]
        x = bell(f"connect/{id}", (3, N, N_EMBD), scale) * sizes
        eps = _f32(eps)
        found = [naive_dsv4.connection(w, hparams_of(eps, n_iterations), name, naive.f64(one)) for one in x]
        y = [sum(pre[s] * naive.f64(one[s]) for s in range(N)) for (pre, _, _), one in zip(found, x, strict=True)]
        oracle = {"y": np.stack(y), "post": np.stack([post for _, post, _ in found]),
                  "comb": np.stack([comb for _, _, comb in found])}  # fmt: skip
        params = {"name": name, **params_of(eps, n_iterations)}
        add_layer(suite, id, comment, w, {"streams": x}, params, oracle, flags, NEEDS, numerics)
    return suite


def leave_streams() -> SuiteBuilder:
    about = "The streams as the final norm is given them: read by sigmoid(m s + base) + eps of weights of their own."
    suite = SuiteBuilder("L2", "leave_streams", "leave_streams", ("S6", "S8", "S70", "S72", "S83"), about)
    w = {"output_hc_fn.weight": bell("leave_streams/fn", (N, N * N_EMBD), 0.1),
         "output_hc_base.weight": bell("leave_streams/base", (N,), 0.5),
         "output_hc_scale.weight": np.array([0.75], np.float32)}  # fmt: skip
    x, eps = bell("leave_streams", (3, N, N_EMBD)), _f32(1e-3)
    oracle = {"hc_head": naive_dsv4.together(w, hparams_of(eps, 1), naive.f64(x))}
    params = {name: one for name, one in params_of(eps, 1).items() if name != "n_iterations"}
    add_layer(suite, "basic", "three tokens", w, {"streams": x}, params, oracle, ("basic",), NEEDS)
    return suite


def streams_input() -> SuiteBuilder:
    about = "The input of an MTP block of several streams: eh_proj of [embedding ; that stream], each normed, stream " \
            "by stream."  # fmt: skip
    suite = SuiteBuilder("L2", "streams_input", "streams_input", ("S6", "S8", "S19", "S84"), about)
    w = {f"nextn.{name}.weight": uniform(f"streams_input/{name}", (N_EMBD,), 0.3, 1.6) for name in ("enorm", "hnorm")}
    w["nextn.eh_proj.weight"] = bell("streams_input/eh", (N_EMBD, 2 * N_EMBD), 0.2)
    sizes = np.array([1.0, 0.01, 30.0, 0.5], np.float32)[None, :, None]
    embd = bell("streams_input/embd", (3, N_EMBD))
    hidden = bell("streams_input/hidden", (3, N, N_EMBD)) * sizes
    e = naive.rms_norm(embd, w["nextn.enorm.weight"], EPSILON)
    streams = []
    for s in range(N):
        h = naive.rms_norm(hidden[:, s], w["nextn.hnorm.weight"], EPSILON)
        streams.append(naive.matmul(w["nextn.eh_proj.weight"], np.concatenate([e, h], axis=1)))
    add_layer(suite, "basic", "streams of very different sizes: each has a norm of its own", w,
              {"embd": embd, "hidden": hidden}, {"eps": EPS}, {"eh_proj": np.stack(streams, axis=1)},
              ("basic", "G1-concat-swapped", "H1-hnorm-of-mean", "H1b-streams-interleaved", "H2-concat-across-streams"),
              NEEDS)  # fmt: skip
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (stream_weights, sinkhorn, head_weights, read_streams, write_streams, enter_streams):
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (connect, leave_streams, streams_input):
        yield make()
