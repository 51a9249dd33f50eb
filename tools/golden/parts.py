"""L1 and L2 of blocks whose parts stand alone or side by side, layer norms, Mamba-2, experts without a gate. Values are
naive float64."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from golden.connections import add
from golden.experts_layers import SIGMOID, hparams, routed, router_weights
from golden.l1_operations import EPS, EPSILON
from golden.l2_layers import N_EMBD
from golden.l2_layers import add as add_layer
from golden.streams import bell, uniform
from golden.unscaled import UNSCALED
from golden.windowed import WINDOWS
from mtpref.golden.build import SuiteBuilder, value
from mtpref.golden.format import hex_float
from tests import naive, naive_mamba, naive_mla, naive_parallel

F32 = NDArray[np.float32]
LAYER_NORMS, PARALLEL, MAMBA, PLAIN = ("layer_norms",), ("parallel_block",), ("mamba2",), ("plain_experts",)
WIDE_EPS = hex_float(float(np.float32(1e-2)))  # of a norm beside others, so that one is not taken for the other


def centred(x: NDArray, weight: F32, eps: str) -> NDArray:
    """A layer norm without a bias."""
    found: NDArray = naive_parallel.norm({"attention.layer_norm_epsilon": float.fromhex(eps)}, x, weight)
    return found


def model_norm() -> SuiteBuilder:
    about = "The norm of a model with layer norms in place of RMS norms: the mean is taken out, there is no bias."
    suite = SuiteBuilder("L1", "model_norm", "model_norm", ("S60", "S117"), about)
    for id, comment, shift, scale, flags in (
        ("basic", "rows with a mean", 1.5, 1.0, ("basic", "G30-layer-norm-as-rms", "G30b-head-norm-as-rms")),
        ("no_mean", "rows with hardly any", 0.0, 1.0, ("basic",)),
        ("small", "the variance is about eps", 1.0, 1e-3, ("edge.eps",)),
    ):
        x = (bell(f"model_norm/{id}", (3, 33)) + np.float32(shift)) * np.float32(scale)
        w = uniform(f"model_norm/{id}/w", (33,), 0.3, 1.6)
        add(suite, id, comment, {"x": x, "weight": w}, {"y": centred(x, w, EPS)}, {"eps": EPS}, flags, LAYER_NORMS)
    return suite


def head_norm() -> SuiteBuilder:
    about = "The last norm of a head that has a layer norm there alone, with an epsilon of its own."
    suite = SuiteBuilder("L1", "head_norm", "head_norm", ("S60", "S127"), about)
    x, w = bell("head_norm", (2, 24)) + np.float32(0.75), uniform("head_norm/w", (24,), 0.3, 1.6)
    add(suite, "basic", "an epsilon that counts", {"x": x, "weight": w}, {"y": centred(x, w, WIDE_EPS)},
        {"eps": WIDE_EPS, "rms_eps": EPS}, ("basic", "G30b-head-norm-as-rms"), LAYER_NORMS)  # fmt: skip
    return suite


def scaled_head() -> SuiteBuilder:
    about = "The output head's product times logit_scale; 0 and 1: none."
    suite = SuiteBuilder("L1", "scaled_head", "scaled_head", ("S31", "S97", "S118"), about)
    w, x = bell("scaled_head/w", (12, 16), 0.3), bell("scaled_head/x", (2, 16))
    for id, comment, scale, flags in (("basic", "a scale", 0.0625, ("basic",)),
                                      ("zero", "0 is no scale", 0.0, ("edge.zero",))):  # fmt: skip
        wanted = naive.matmul(w, x) * (scale or 1.0)
        add(suite, id, comment, {"output.weight": w, "x": x}, {"logits": wanted}, {"scale": hex_float(scale)}, flags,
            ("logit_scale",))  # fmt: skip
    return suite


def turned_width() -> SuiteBuilder:
    about = "How many dimensions of a head turn: all in layers with a window, and in those that always turn."
    suite = SuiteBuilder("L1", "turned_width", "turned_width", ("S120",), about)
    for id, comment, turns_all, n in (("by_window", "layers with a window alone", False, [0, 16, 16]),
                                      ("always", "dense layers in front, and a head", True, [16, 16, 16])):  # fmt: skip
        suite.case(id, comment, inputs={}, params={"n_rot": 16, "n_window": [0, 1, 5], "turns_all": turns_all},
                   flags=("basic",), requires=WINDOWS, out={"n": value(n)})  # fmt: skip
    return suite


def relu_squared() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "relu_squared", "relu_squared", ("S121",), "max(x, 0)^2.")
    for id, comment, scale, flags in (("basic", "both signs", 1.5, ("basic", "E20-relu-unsquared")),
                                      ("large", "large values", 1e15, ("edge.large",))):  # fmt: skip
        x = bell(f"relu_squared/{id}", (3, 12), scale)
        add(suite, id, comment, {"x": x}, {"y": naive_mamba.relu2(naive.f64(x))}, {}, flags, PLAIN)
    return suite


def conv_bias_silu() -> SuiteBuilder:
    about = "A causal convolution of each channel with a bias, then silu."
    suite = SuiteBuilder("L1", "conv_bias_silu", "conv_bias_silu", ("S122",), about)
    for id, comment, n, d_conv, flags in (("basic", "four tokens", 4, 4, ("basic",)),
                                          ("short", "one token, a window of two", 1, 2, ("edge.short",))):  # fmt: skip
        window, weight = bell(f"conv_bias_silu/{id}", (d_conv - 1 + n, 9)), bell(f"conv_bias_silu/{id}/w", (9, d_conv))
        bias = bell(f"conv_bias_silu/{id}/b", (9,), 1.5)
        sums = np.stack([naive.total((naive.f64(window[t : t + d_conv]) * weight.T).T)[:, 0] for t in range(n)])
        add(suite, id, comment, {"window": window, "weight": weight, "bias": bias}, {"y": naive.silu(sums + bias)}, {},
            flags, MAMBA)  # fmt: skip
    return suite


def scanned(x: Mapping[str, F32]) -> tuple[NDArray, NDArray]:
    """The recurrence, head by head: y (T, H, P) and the state after each token."""
    n, n_head, _ = x["x"].shape
    state, y, states = naive.f64(x["state"]).copy(), np.zeros(x["x"].shape), []
    for t in range(n):
        for h in range(n_head):
            g = h // (n_head // x["b"].shape[1])
            step = float(naive.softplus(naive.f64(x["dt"][t, h])))
            decay = float(naive.exp(np.float64(step * float(x["a"][h]))))
            state[h] = decay * state[h] + step * np.outer(naive.f64(x["x"][t, h]), naive.f64(x["b"][t, g]))
            y[t, h] = naive.dot(state[h], naive.f64(x["c"][t, g]))
        states.append(state.copy())
    return y, np.stack(states)


def ssm_scan() -> SuiteBuilder:
    about = "Mamba-2's recurrence: step softplus(dt), decay exp(step a), b and c of groups of neighbouring heads."
    suite = SuiteBuilder("L1", "ssm_scan", "ssm_scan", ("S123",), about)
    for id, comment, (n, n_head, size, n_group, n_state), keep, flags in (
        ("basic", "four heads in two groups, three states", (5, 4, 3, 2, 8), 3, ("basic", "G34-scan-heads-tiled")),
        ("one_group", "one group for all heads", (3, 3, 4, 1, 10), 1, ("basic",)),
        ("one_token", "a single token", (1, 2, 3, 2, 4), 1, ("edge.short",)),
    ):
        shapes = {"x": (n, n_head, size), "b": (n, n_group, n_state), "c": (n, n_group, n_state), "dt": (n, n_head),
                  "state": (n_head, size, n_state)}  # fmt: skip
        x = {name: bell(f"ssm_scan/{id}/{name}", shape) for name, shape in shapes.items()}
        x["a"] = -uniform(f"ssm_scan/{id}/a", (n_head,), 0.1, 2.0)
        y, states = scanned(x)
        add(suite, id, comment, x, {"y": y, "states": states[-keep:]}, {"keep": keep}, flags, MAMBA)
    return suite


def gated_group_norm() -> SuiteBuilder:
    about = "Plus x times D, times silu(z), then an RMS norm of each group with its own weight."
    suite = SuiteBuilder("L1", "gated_group_norm", "gated_group_norm", ("S8", "S124"), about)
    for id, comment, n_head, n_group, flags in (
        ("basic", "two groups", 4, 2, ("basic", "G35-scan-gate-after-norm", "G35b-scan-norm-ungrouped")),
        ("one_group", "one norm over all", 3, 1, ("basic", "G35-scan-gate-after-norm")),
    ):
        shapes = {"y": (3, n_head, 5), "x": (3, n_head, 5), "d": (n_head,), "z": (3, 5 * n_head)}
        x = {name: bell(f"gated_group_norm/{id}/{name}", shape) for name, shape in shapes.items()}
        x["y"] = x["y"] * np.repeat([0.25, 4.0], n_head)[::2][:, None].astype(np.float32)
        x["weight"] = uniform(f"gated_group_norm/{id}/w", (n_group, 5 * n_head // n_group), 0.3, 1.6)
        skipped = (naive.f64(x["y"]) + naive.f64(x["x"]) * naive.f64(x["d"])[:, None]).reshape(x["z"].shape)
        gated = (skipped * naive.silu(naive.f64(x["z"]))).reshape(3, n_group, -1)
        wanted = naive.rms_norm(gated, np.ones(gated.shape[-1]), EPSILON) * naive.f64(x["weight"])
        params = {"n_group": n_group, "eps": EPS}
        add(suite, id, comment, x, {"y": wanted.reshape(x["z"].shape)}, params, flags, MAMBA)
    return suite


# ----------------------------------------------------------------------------------------------------------- layers

D_CONV, D_INNER, D_STATE, N_SSM_HEAD, N_GROUP = 4, 24, 6, 4, 2
SHARED = N_GROUP * D_STATE


def ssm_weights(name: str) -> dict[str, F32]:
    n_conv = D_INNER + 2 * SHARED
    return {
        "ssm_in.weight": bell(f"{name}/in", (D_INNER + n_conv + N_SSM_HEAD, N_EMBD), 0.3),
        "ssm_conv1d.weight": bell(f"{name}/conv", (n_conv, D_CONV), 0.5),
        "ssm_conv1d.bias": bell(f"{name}/conv/bias", (n_conv,), 0.3),
        "ssm_dt.bias": bell(f"{name}/dt", (N_SSM_HEAD,)),
        "ssm_a": -uniform(f"{name}/a", (N_SSM_HEAD, 1), 0.1, 2.0),
        "ssm_d": bell(f"{name}/d", (N_SSM_HEAD, 1)),
        "ssm_norm.weight": uniform(f"{name}/norm", (N_GROUP, D_INNER // N_GROUP), 0.3, 1.6),
        "ssm_out.weight": bell(f"{name}/out", (N_EMBD, D_INNER), 0.3),
    }


def ssm_layer() -> SuiteBuilder:
    about = "A Mamba-2 mixer: one product for gate, rows of the convolution and step; convolution, scan, norm, output."
    suite = SuiteBuilder("L2", "ssm_layer", "ssm_layer", ("S6", "S49", "S122", "S123", "S124", "S125"), about)
    w = ssm_weights("ssm_layer")
    block = {f"blk.0.{name}": x for name, x in w.items()}
    keys = {"ssm.inner_size": D_INNER, "ssm.state_size": D_STATE, "ssm.time_step_rank": N_SSM_HEAD,
            "ssm.group_count": N_GROUP, "ssm.conv_kernel": D_CONV,
            "attention.layer_norm_epsilon": EPSILON}  # fmt: skip
    params = {"d_conv": D_CONV, "d_inner": D_INNER, "d_state": D_STATE, "n_head": N_SSM_HEAD, "n_group": N_GROUP,
              "eps": EPS, "keep": 1}  # fmt: skip
    flags = ("G34-scan-heads-tiled", "G34b-step-bias-forgotten", "G35-scan-gate-after-norm", "G35b-scan-norm-ungrouped")
    for id, comment, n_before, n, own in (
        ("from_nothing", "five tokens on an empty state", 0, 5, ("basic", *flags)),
        ("one_step", "one token after a window and a state", 4, 1, ("carry", *flags)),
    ):
        x = bell(f"ssm_layer/{id}/x", (n_before + n, N_EMBD))
        conv = np.zeros((D_CONV - 1, D_INNER + 2 * SHARED), np.float32)
        state = np.zeros((N_SSM_HEAD, D_INNER // N_SSM_HEAD, D_STATE), np.float32)
        if n_before:
            raw = naive.matmul(w["ssm_in.weight"], x[:n_before])[:, D_INNER:-N_SSM_HEAD]
            conv = raw[-(D_CONV - 1) :].astype(np.float32)
            state = naive_mamba.mamba(block, keys, 0, naive.f64(x[:n_before]))[1]["new_state"].astype(np.float32)
        y, taps = naive_mamba.mamba(block, keys, 0, naive.f64(x))
        raw = naive.matmul(w["ssm_in.weight"], x)[:, D_INNER:-N_SSM_HEAD]
        oracle = {"scan_output": taps["scan_output"][n_before:].reshape(n, N_SSM_HEAD, -1),
                  "final_output": taps["final_output"][n_before:].reshape(n, -1), "mamba_out": y[n_before:],
                  "conv": raw[-(D_CONV - 1) :][None], "states": taps["new_state"][None]}  # fmt: skip
        data = {"x": x[n_before:], "conv_states": conv, "state_prescan": state}
        add_layer(suite, id, comment, w, data, params, oracle, own, MAMBA)
    return suite


def plain_moe_ffn() -> SuiteBuilder:
    about = (
        "Experts without a gate, on narrower rows where there are projections; router and shared expert on whole ones."
    )
    rules = ("S6", "S41", "S42", "S44", "S45", "S46", "S48", "S121")
    suite = SuiteBuilder("L2", "plain_moe_ffn", "plain_moe_ffn", rules, about)
    x, n_ff = bell("plain_moe/x", (4, N_EMBD)), 16
    shared = {"ffn_up_shexp.weight": bell("plain_moe/shared/up", (n_ff, N_EMBD), 0.3),
              "ffn_down_shexp.weight": bell("plain_moe/shared/down", (N_EMBD, n_ff), 0.3)}  # fmt: skip
    for id, comment, n_low in (("whole", "experts on whole rows", 0), ("narrow", "experts on narrower rows", 8)):
        n = n_low or N_EMBD
        w = router_weights("plain_moe", 5, is_biased=True) | shared
        w["ffn_up_exps.weight"] = bell(f"plain_moe/{id}/up", (5, n_ff, n), 0.3)
        w["ffn_down_exps.weight"] = bell(f"plain_moe/{id}/down", (5, n, n_ff), 0.3)
        if n_low:
            w["ffn_latent_down.weight"] = bell("plain_moe/low/down", (n_low, N_EMBD), 0.3)
            w["ffn_latent_up.weight"] = bell("plain_moe/low/up", (N_EMBD, n_low), 0.3)
        block = {f"blk.0.{name}": one for name, one in w.items()}
        y = naive_mamba.network(block, hparams(SIGMOID), 0, x)[0]
        oracle = {"ids": [e for ids, _, _ in routed(w, SIGMOID, x) for e in ids], "ffn_out": y}
        flags = ("basic", "E2-selection-unbiased", "E5-scale-forgotten", "E9-shared-forgotten", "E20-relu-unsquared")
        add_layer(suite, id, comment, w, {"x": x}, SIGMOID, oracle, flags, ("moe", *PLAIN), ("exact",))
    return suite


def averaged_moe_ffn() -> SuiteBuilder:
    about = "An experts' network whose result is the mean of the experts' and the shared expert's."
    rules = ("S6", "S18", "S41", "S44", "S45", "S46", "S48", "S97")
    suite = SuiteBuilder("L2", "averaged_moe_ffn", "averaged_moe_ffn", rules, about)
    x, n_ff = bell("averaged_moe/x", (4, N_EMBD)), 16
    w = router_weights("averaged_moe", 4, is_biased=False)
    for kind, n in (("exps", (4,)), ("shexp", ())):
        for part in ("gate", "up", "down"):
            shape = (N_EMBD, n_ff) if part == "down" else (n_ff, N_EMBD)
            w[f"ffn_{part}_{kind}.weight"] = bell(f"averaged_moe/{kind}/{part}", (*n, *shape), 0.3)
    block = {f"blk.0.{name}": one for name, one in w.items()}
    y = naive_parallel.network(block, hparams(SIGMOID), 0, x)[0]
    oracle = {"ids": [e for ids, _, _ in routed(w, SIGMOID, x) for e in ids], "ffn_out": y}
    add_layer(suite, "basic", "four experts, a shared one", w, {"x": x}, SIGMOID, oracle,
              ("basic", "E9-shared-forgotten", "E21-shared-expert-summed"), ("moe", "averaged_experts"),
              ("exact",))  # fmt: skip
    return suite


def block() -> SuiteBuilder:
    about = "A block around two products that stand for its mixer and its network: side by side, alone, normed after."
    suite = SuiteBuilder("L2", "block", "block", ("S6", "S8", "S107", "S117", "S119", "S126"), about)
    n = 12
    after = ("post_attention_norm", "ffn_norm", "post_ffw_norm")
    w = {f"{one}.weight": bell(f"block/{one}", (n, n), 0.4) for one in ("mixer", "network")}
    w["attn_norm.weight"] = uniform("block/attn_norm", (n,), 0.5, 1.5)
    normed = w | {f"{one}.weight": uniform(f"block/{one}", (n,), 0.5, 1.5) for one in after}
    scaled = normed | {"layer_output_scale.weight": np.array([0.8], np.float32)}
    alone = {name: x for name, x in normed.items() if name != "ffn_norm.weight"}
    single = {kind: {name: x for name, x in w.items() if name in (f"{kind}.weight", "attn_norm.weight")}
              for kind in ("mixer", "network")}  # fmt: skip
    for id, comment, kind, own, more, need in (
        ("parallel", "both parts on the same normed rows", "parallel", w, {}, PARALLEL),
        ("parallel_layer_norm", "the same with a layer norm", "parallel", w, {"layer_norms": True},
         (*PARALLEL, *LAYER_NORMS)),
        ("mixer", "a mixer alone", "mixer", single["mixer"], {}, MAMBA),
        ("network", "a network alone", "network", single["network"], {}, MAMBA),
        ("normed_after", "norms before and after each part", "normed_after", normed, {}, UNSCALED),
        ("output_scale", "the stream is scaled at the end", "normed_after", scaled, {}, UNSCALED),
        ("network_norms_itself", "the network is given the stream", "normed_after_alone", alone, {}, UNSCALED),
    ):  # fmt: skip
        x = bell("block/x", (3, n)) + np.float32(0.5)
        oracle = block_oracle(kind, own, naive.f64(x), bool(more))
        flags = ("basic", *(("G30-layer-norm-as-rms",) if more else ()))
        add_layer(suite, id, comment, own, {"x": x}, {"block": kind, "eps": EPS, **more}, oracle, flags, need,
                  ("exact",))  # fmt: skip
    return suite


def block_oracle(kind: str, w: Mapping[str, F32], x: NDArray, has_mean: bool) -> dict[str, NDArray]:
    def norm(name: str, rows: NDArray) -> NDArray:
        weight = w[f"{name}.weight"]
        return centred(rows, weight, EPS) if has_mean else naive.rms_norm(rows, weight, EPSILON)

    def part(name: str, rows: NDArray) -> NDArray:
        return naive.matmul(w[f"{name}.weight"], rows)

    h = norm("attn_norm", x)
    if kind == "parallel":
        return {"attn_norm": h, "l_out": x + part("mixer", h) + part("network", h)}
    if kind in ("mixer", "network"):
        return {"attn_norm": h, "l_out": x + part(kind, h)}
    x = x + norm("post_attention_norm", part("mixer", h))
    y = part("network", x if kind == "normed_after_alone" else norm("ffn_norm", x))
    out = x + norm("post_ffw_norm", y)
    scale = float(w["layer_output_scale.weight"][0]) if "layer_output_scale.weight" in w else 1.0
    return {"attn_norm": h, "attn_residual": x, "l_out": out * scale}


def unturned_attn_layer() -> SuiteBuilder:
    about = "An attention mixer of a model where layers with a window turn, neighbours paired, and others do not."
    rules = ("S6", "S15", "S16", "S53", "S76", "S98")
    suite = SuiteBuilder("L2", "unturned_attn_layer", "windowed_attn_layer", rules, about)
    n_embd, n_head, n_kv, size, first, n = 16, 4, 2, 8, 4, 3
    w = {f"attn_{part}.weight": bell(f"unturned/{part}", (rows * size, n_embd), 0.3)
         for part, rows in (("q", n_head), ("k", n_kv), ("v", n_kv))}  # fmt: skip
    w["attn_output.weight"] = bell("unturned/o", (n_embd, n_head * size), 0.3)
    block = {f"blk.0.{name}": x for name, x in w.items()}
    for id, comment, n_window, flags in (
        (
            "window",
            "a window: the whole head turns",
            3,
            ("basic", "A10-window-narrow", "G5b-no-rope", "G36-rope-halves"),
        ),
        ("full", "no window: nothing turns", 0, ("basic",)),
    ):
        keys = {"attention.head_count": n_head, "attention.head_count_kv": n_kv, "attention.key_length": size,
                "attention.sliding_window_pattern": [n_window > 0], "attention.sliding_window": n_window or 1,
                "rope.freq_base": 1e4, "context_length": 4096, "block_count": 1}  # fmt: skip
        x = bell(f"unturned/{id}/x", (first + n, n_embd))
        y = naive_parallel.attention(block, keys, 0, naive.f64(x), list(range(first + n)))
        k, v = (naive.matmul(w[f"attn_{part}.weight"], x).reshape(-1, n_kv, size) for part in "kv")
        if n_window:
            angles, magnitude = naive.rope_scaled(size, 1e4, 1.0, 4096, False)
            k = naive_mla.turned(k, list(range(first + n)), angles, magnitude)
        data = {"x": x[first:], "k_cache": k[:first].astype(np.float32), "v_cache": v[:first].astype(np.float32)}
        params = {"n_head": n_head, "n_head_kv": n_kv, "n_key": size, "n_value": size, "n_window": n_window,
                  "n_rot": size if n_window else 0, "freq_base": hex_float(1e4), "eps": EPS, "interleaved": True,
                  "value_scale": hex_float(0.0), "kv_type": "F32", "first": first}  # fmt: skip
        oracle = {"Kcur": k[first:], "Vcur": v[first:], "attn_output": y[first:]}
        add_layer(suite, id, comment, w, data, params, oracle, flags, (*WINDOWS, *PARALLEL), ("exact",))
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (model_norm, head_norm, scaled_head, turned_width, relu_squared, conv_bias_silu, ssm_scan,
                 gated_group_norm):  # fmt: skip
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (ssm_layer, plain_moe_ffn, averaged_moe_ffn, block, unturned_attn_layer):
        yield make()
