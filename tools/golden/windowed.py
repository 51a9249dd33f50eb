"""L1 and L2 of windows, sinks, gates of heads, limits, and a chain of heads. Expected values are naive float64."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.clamped_layers import expert_weights
from golden.compressed import SINKS
from golden.connections import add
from golden.l1_operations import EPS, EPSILON
from golden.l2_layers import add as add_layer
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder, exact, value
from mtpref.golden.format import hex_float
from tests import naive, naive_chain

F32 = NDArray[np.float32]
WINDOWS, LIMITS, CHAIN = ("windows",), ("limits",), ("chained_heads",)
NONE = hex_float(0.0)


def divided_rope() -> SuiteBuilder:
    about = "RoPE of the first n_rot dimensions whose frequencies are divided, each pair's by its own factor."
    suite = SuiteBuilder("L1", "divided_rope", "divided_rope", ("S10", "S94"), about)
    for id, comment, n_rot, factors, flags in (
        ("basic", "factors of one to eight", 8, [1.0, 1.5, 4.0, 8.0], ("basic",)),
        ("more_factors", "more factors than pairs: the first count", 4, [2.0, 8.0, 3.0, 5.0], ("edge.length",)),
        ("ones", "factors of one change nothing", 8, [1.0] * 4, ("edge.scale",)),
    ):
        x, positions, own = bell(f"divided_rope/{id}", (3, 2, 10)), [1, 7, 4095], np.array(factors, np.float32)
        angles = [naive.power(1e4, -2.0 * i / n_rot) / float(own[i]) for i in range(n_rot // 2)]
        wanted = naive_chain.turned(naive.f64(x), positions, angles, 1.0)
        add(suite, id, comment, {"x": x, "pos": np.array(positions, np.int32), "factors": own}, {"y": wanted},
            {"n_rot": n_rot, "freq_base": hex_float(1e4)}, flags, ("rope_factors",))  # fmt: skip
    return suite


def attended(q: NDArray, k: NDArray, v: NDArray, sinks: F32 | None) -> NDArray:
    """One token over the cells that it sees."""
    out = np.zeros((len(q), v.shape[2]))
    for h in range(len(q)):
        kv = h // (len(q) // k.shape[1])
        scores = naive.dot(k[:, kv], q[h]) / math.sqrt(q.shape[1])
        share = naive.softmax(scores if sinks is None else np.append(scores, float(sinks[h])))[: len(k)]
        out[h] = naive.dot(share, v[:, kv])
    return out


def cell_attention() -> SuiteBuilder:
    about = "Attention of one token over the cells that it sees, keys wider than values, beside a sink of each head."
    suite = SuiteBuilder("L1", "cell_attention", "cell_attention", ("S95",), about)
    for id, comment, (n_head, n_kv, n_cells, n_key, n_value), sink, flags in (
        ("basic", "two heads share a kv-head", (4, 2, 6, 12, 8), 0.5, ("basic",)),
        ("no_sinks", "without sinks", (2, 1, 5, 8, 4), None, ("basic",)),
        ("one_cell", "one cell: its weight is not 1 beside a sink", (2, 2, 1, 8, 8), 0.0, ("edge.short",)),
        ("heavy_sink", "a sink above every score", (2, 1, 5, 8, 4), 30.0, ("edge.large",)),
        ("wide_values", "values wider than keys", (2, 1, 4, 4, 12), 1.0, ("edge.length",)),
    ):
        shapes = {"q": (n_head, n_key), "k": (n_cells, n_kv, n_key), "v": (n_cells, n_kv, n_value)}
        x = {name: bell(f"cell_attention/{id}/{name}", shape) for name, shape in shapes.items()}
        sinks = None if sink is None else bell(f"cell_attention/{id}/s", (n_head,), 0.3) + np.float32(sink)
        q, k, v = (naive.f64(x[name]) for name in "qkv")
        wanted = attended(q, k, v, sinks)
        add(suite, id, comment, x if sinks is None else x | {"sinks": sinks}, {"o": wanted}, {"kv_type": "F32"}, flags,
            SINKS)  # fmt: skip
    return suite


def limited_swiglu() -> SuiteBuilder:
    about = "min(silu(gate), limit) * clamp(up, -limit, limit): the limit stands after silu."
    suite = SuiteBuilder("L1", "limited_swiglu", "limited_swiglu", ("S96",), about)
    for id, comment, limit, scale, flags in (
        ("basic", "values on both sides of the limit", 1.25, 2.0, ("basic",)),
        ("none", "a limit of 0 limits nothing", 0.0, 4.0, ("edge.zero",)),
        ("least", "nor does one of 1e-6", 1e-6, 1.0, ("edge.eps",)),
        ("wide", "far beyond the limit", 7.0, 40.0, ("edge.large",)),
        ("just_above", "a gate between the limit and what silu makes the limit of", 1.25, 0.1, ("basic",)),
    ):
        gate, up = bell(f"limited_swiglu/{id}/gate", (4, 12), scale), bell(f"limited_swiglu/{id}/up", (4, 12), scale)
        gate = gate + np.float32(1.45) if id == "just_above" else gate
        g, u, most = naive.silu(naive.f64(gate)), naive.f64(up), float(np.float32(limit))
        if limit > 1e-6:
            g, u = np.minimum(g, most), np.clip(u, -most, most)
        add(suite, id, comment, {"gate": gate, "up": up}, {"y": g * u}, {"limit": hex_float(limit)}, flags, LIMITS)
    return suite


def head_gate() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "head_gate", "head_gate", ("S97",), "One gate for each head: o_h * sigmoid(logit_h).")
    for id, comment, scale, flags in (("basic", "three tokens", 1.0, ("basic",)),
                                      ("far_out", "gates at their ends", 30.0, ("edge.gate",))):  # fmt: skip
        o, logit = bell(f"head_gate/{id}", (3, 2, 6)), bell(f"head_gate/{id}/logit", (3, 2), scale)
        wanted = naive.f64(o) * naive.sigmoid(logit)[:, :, None]
        add(suite, id, comment, {"o": o, "logit": logit}, {"y": wanted}, {}, flags, ("head_gates",))
    return suite


def scaled_output() -> SuiteBuilder:
    about = "The scale of attention's values, applied after the output projection; 0 and 1: none."
    suite = SuiteBuilder("L1", "scaled_output", "scaled_output", ("S97",), about)
    for id, comment, scale, flags in (("basic", "a scale", 0.625, ("basic",)), ("zero", "0 is no scale", 0.0,
                                      ("edge.zero",)), ("one", "1 is none", 1.0, ("edge.scale",))):  # fmt: skip
        y = bell(f"scaled_output/{id}", (3, 8))
        suite.case(id, comment, inputs={"y": y}, params={"scale": hex_float(scale)}, flags=flags, requires=WINDOWS,
                   out={"y": exact(y * np.float32(scale or 1.0))})  # fmt: skip
    return suite


def chain_head() -> SuiteBuilder:
    about = "The head that each draft step runs; null: there is none, and the draft ends."
    suite = SuiteBuilder("L1", "chain_head", "chain_head", ("S99",), about)
    for id, comment, n_heads, contract, heads in (
        ("each", "three heads, a token each", 3, "llama.cpp", [0, 1, 2, None, None]),
        ("reuse", "the last one runs again", 3, "llama.cpp,chain_end=reuse", [0, 1, 2, 2, 2]),
        ("first", "the first one drafts all", 3, "llama.cpp,heads=first", [0] * 5),
        ("one_head", "one head is no chain", 1, "llama.cpp", [0] * 5),
    ):
        suite.case(id, comment, inputs={}, params={"n_heads": n_heads, "contract": contract, "steps": list(range(5))},
                   flags=("basic",), requires=CHAIN, out={"heads": value(heads)})  # fmt: skip
    return suite


def chain_input() -> SuiteBuilder:
    about = "What the next draft step is given: of a chain the draft so far and its rows, else the new ones alone."
    suite = SuiteBuilder("L1", "chain_input", "chain_input", ("S99",), about)
    hidden, row = bell("chain_input", (2, 6)), bell("chain_input/row", (1, 6))
    for id, comment, chained in (("chained", "two tokens and the new one", True), ("alone", "one head", False)):
        out = {"ids": value([5, 9, 3] if chained else [3]),
               "hidden": exact(np.concatenate([hidden, row]) if chained else row)}  # fmt: skip
        suite.case(id, comment, inputs={"hidden": hidden, "row": row}, flags=("basic",), out=out, requires=CHAIN,
                   params={"tokens": [5, 9], "token": 3, "chained": chained})  # fmt: skip
    return suite


# ----------------------------------------------------------------------------------------------------------- layers


def seen_attention() -> SuiteBuilder:
    about = "Every token over the cells that it sees: all, or those of its window; the oldest first."
    suite = SuiteBuilder("L2", "seen_attention", "seen_attention", ("S16", "S76", "S95", "S98"), about)
    for id, comment, n, first, n_window, n_value, has_sinks in (
        ("window", "keys and values of one width, no sinks", 4, 6, 3, 8, False),
        ("sinks", "a window and sinks, values narrower", 4, 6, 3, 4, True),
        ("from_nothing", "a window that is not full yet", 5, 0, 4, 8, True),
        ("all", "no window, values narrower", 3, 2, 0, 4, False),
        ("last_cells", "only the cells of the window before the batch are there", 3, 9, 4, 8, True),
    ):
        n_before = n_window - 1 if id == "last_cells" else first
        shapes = {"q": (n, 4, 8), "k": (n_before + n, 2, 8), "v": (n_before + n, 2, n_value)}
        x = {name: bell(f"seen_attention/{id}/{name}", shape) for name, shape in shapes.items()}
        sinks = bell(f"seen_attention/{id}/s", (4,)) if has_sinks else None
        q, k, v = (naive.f64(x[name]) for name in "qkv")
        wanted = []
        for t in range(n):
            at = n_before + t
            start = max(0, at - n_window + 1) if n_window else 0
            wanted.append(attended(q[t], k[start : at + 1], v[start : at + 1], sinks))
        add(suite, id, comment, x if sinks is None else x | {"sinks": sinks}, {"o": np.array(wanted)},
            {"n_window": n_window, "first": first, "kv_type": "F32"}, ("basic",),
            (*WINDOWS, *(SINKS if has_sinks else ())))  # fmt: skip
    return suite


def layer_weights(name: str, n: int, heads: tuple[int, int], widths: tuple[int, int], has: str) -> dict[str, F32]:
    """has: of `norms`, `gate`, `sinks` what there is"""
    (n_head, n_kv), (n_key, n_value) = heads, widths
    rows = {"q": n_head * n_key, "k": n_kv * n_key, "v": n_kv * n_value}
    w = {f"attn_{part}.weight": bell(f"{name}/{part}", (m, n), 0.3) for part, m in rows.items()}
    w["attn_output.weight"] = bell(f"{name}/o", (n, n_head * n_value), 0.3)
    if "norms" in has:
        w |= {f"attn_{part}_norm.weight": uniform(f"{name}/{part}/norm", (n_key,), 0.3, 1.6) for part in "qk"}
    if "gate" in has:
        w["attn_gate.weight"] = bell(f"{name}/gate", (n_head, n), 0.3)
    if "sinks" in has:
        w["attn_sinks.weight"] = bell(f"{name}/sinks", (n_head,))
    return w


def windowed_attn_layer() -> SuiteBuilder:
    about = "An attention mixer with what it has of window, norms, sinks, gates of heads and scale."
    rules = ("S6", "S8", "S10", "S15", "S16", "S76", "S94", "S95", "S97", "S98")
    suite = SuiteBuilder("L2", "windowed_attn_layer", "windowed_attn_layer", rules, about)
    for id, comment, arch, n_embd, widths, n_window, has, scale, first, n, numerics in (
        ("step_window", "step35 with a window: norms, gates", "step35", 16, (8, 8), 3, "norms gate", 0.0, 5, 4,
         "exact"),
        ("step_full", "step35 without one: half of the dimensions turn, YaRN, divided frequencies", "step35", 16,
         (8, 8), 0, "norms gate", 0.0, 3, 3, "exact"),
        ("mimo_window", "mimo2 with a window: sinks, narrower values, a scale", "mimo2", 16, (12, 8), 3, "sinks",
         0.625, 5, 4, "exact"),
        ("mimo_full", "mimo2 without one", "mimo2", 16, (12, 8), 0, "", 0.625, 0, 5, "exact"),
        ("mimo_window", "mimo2 with a window", "mimo2", 32, (16, 8), 3, "sinks", 0.625, 5, 4, "ggml"),
    ):  # fmt: skip
        heads, n_rot = (4, 2), 4
        w = layer_weights(f"windowed_attn/{arch}/{n_embd}", n_embd, heads, widths, has)
        x, is_step = bell(f"windowed_attn/{id}/x", (first + n, n_embd)), arch == "step35" and not n_window
        keys = {"arch": arch, "attention.sliding_window_pattern": [n_window > 0], "rope.freq_base_swa": 5e3,
                "rope.dimension_count": 2 * n_rot if is_step else n_rot, "attention.layer_norm_rms_epsilon": EPSILON,
                "attention.head_count": heads[0], "attention.head_count_kv": heads[1], "context_length": 4096,
                "attention.key_length": widths[0], "attention.value_length": widths[1],
                "attention.sliding_window": n_window or 99, "attention.value_scale": scale or 1.0}  # fmt: skip
        params: dict[str, Any] = {
            "n_head": heads[0], "n_head_kv": heads[1], "n_key": widths[0], "n_value": widths[1], "n_rot": n_rot,
            "n_window": n_window, "freq_base": hex_float(5e3 if n_window else 1e4), "eps": EPS,
            "value_scale": hex_float(scale), "kv_type": "F32", "first": first,
        }  # fmt: skip
        block, data = {f"blk.0.{name}": one for name, one in w.items()}, {"x": x[first:]}
        if is_step:
            keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                     "rope.scaling.original_context_length": 64}  # fmt: skip
            params |= {"factor": hex_float(4.0), "n_ctx_orig": 64}
            data["factors"] = block["rope_freqs.weight"] = np.array([1.0, 3.0], np.float32)
        y, t = naive_chain.attention(block, keys, 0, naive.f64(x), list(range(len(x))))
        if first:
            data |= {"k_cache": t["Kcur"][:first].astype(np.float32), "v_cache": t["Vcur"][:first].astype(np.float32)}
        oracle = {"Qcur": t["Qcur"], "Kcur": t["Kcur"], "Vcur": t["Vcur"], "kqv_out": t["attn_pregate"],
                  "attn_scaled": y} | ({"attn_gated": t["attn_gated"]} if "gate" in has else {})  # fmt: skip
        need = (*WINDOWS, *(SINKS if "sinks" in has else ()), *(("head_gates",) if "gate" in has else ()),
                *(("rope_factors",) if is_step else ()))  # fmt: skip
        add_layer(suite, id, comment, w, data, params, {name: one[first:] for name, one in oracle.items()},
                  ("basic",), need, (numerics,))  # fmt: skip
    return suite


def limited_ffn() -> SuiteBuilder:
    about = "A dense network, or experts and a shared expert, whose gated activation has limits."
    suite = SuiteBuilder("L2", "limited_ffn", "limited_ffn", ("S6", "S18", "S48", "S96"), about)
    experts = {"gating": "sigmoid", "n_used": 2, "normalise": True, "scale": hex_float(1.5)}
    moe = expert_weights(16)
    dense = {f"ffn_{part}.weight": moe[f"ffn_{part}_shexp.weight"] for part in ("gate", "up", "down")}
    for id, comment, w, params in (
        ("dense", "a limit", dense, {"limit": hex_float(0.75)}),
        ("experts", "limits of the experts and of the shared one", moe,
         experts | {"limit": hex_float(0.75), "limit_shared": hex_float(0.5)}),
        ("shared_alone", "a limit of the shared expert's alone", moe,
         experts | {"limit": NONE, "limit_shared": hex_float(0.5)}),
    ):  # fmt: skip
        x = bell("limited_ffn/x", (4, 16))
        is_moe = "ffn_gate_inp.weight" in w
        add_layer(suite, id, comment, w, {"x": x}, params, limited_oracle(w, params, x), ("basic",),
                  (*LIMITS, *(("moe",) if is_moe else ())), ("exact",))  # fmt: skip
    return suite


def limited_oracle(w: Mapping[str, F32], params: Mapping[str, Any], x: F32) -> dict[str, Any]:
    block = {f"blk.0.{name}": one for name, one in w.items()}
    if "ffn_gate_inp.weight" not in w:
        gate, up, down = (w[f"ffn_{part}.weight"] for part in ("gate", "up", "down"))
        return {"ffn_out": naive_chain.network(naive.f64(x), gate, up, down, float.fromhex(params["limit"]))}
    keys = {"arch": "step35", "expert_used_count": params["n_used"], "expert_weights_norm": params["normalise"],
            "expert_weights_scale": float.fromhex(params["scale"]),
            "swiglu_clamp_exp": float.fromhex(params["limit"]),
            "swiglu_clamp_shexp": float.fromhex(params["limit_shared"])}  # fmt: skip
    y, ids = naive_chain.experts(block, keys, 0, naive.f64(x))
    return {"ids": [int(e) for e in ids.reshape(-1)], "ffn_out": y}


def operations() -> Iterator[SuiteBuilder]:
    for make in (divided_rope, cell_attention, limited_swiglu, head_gate, scaled_output, chain_head, chain_input):
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (seen_attention, windowed_attn_layer, limited_ffn):
        yield make()
