"""L1 and L2 of unscaled attention, GELU, caps, inputs of layers, an assistant's layers. Values are naive float64."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.connections import add
from golden.l1_operations import EPS, EPSILON, GGML, ours
from golden.l2_layers import add as add_layer
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder, close
from mtpref.golden.format import hex_float
from tests import naive, naive_gemma

F32 = NDArray[np.float32]
UNSCALED, ASSISTANT = ("unscaled_attention",), ("assistant",)
N_EMBD, HEADS, N_KEY, N_ROT = 16, (4, 2), 8, 8
FACTORS = np.array([1, 1, 2, 1e30], np.float32)


def unscaled_attention() -> SuiteBuilder:
    about = "Attention of one token over the cells that it sees, scores not divided by sqrt(D)."
    suite = SuiteBuilder("L1", "unscaled_attention", "unscaled_attention", ("S100",), about)
    for id, comment, (n_head, n_kv, n_cells, size), flags in (
        ("basic", "two heads share a kv-head", (4, 2, 6, 8), ("basic",)),
        ("one_cell", "one cell: its value", (2, 2, 1, 8), ("edge.short",)),
        ("odd", "counts that no vector width divides", (3, 1, 11, 10), ("edge.length",)),
    ):
        shapes = {"q": (n_head, size), "k": (n_cells, n_kv, size), "v": (n_cells, n_kv, size)}
        x = {name: bell(f"unscaled_attention/{id}/{name}", shape, 0.6) for name, shape in shapes.items()}
        q, k, v = (naive.f64(x[name]) for name in "qkv")
        wanted = naive_gemma.attend(keys_of(0), 0, q[None], [n_cells - 1], naive_gemma.Cells(k, v))
        add(suite, id, comment, x, {"o": wanted.reshape(n_head, size)}, {"kv_type": "F32"}, flags, UNSCALED)
    return suite


def geglu() -> SuiteBuilder:
    about = "gelu(gate) * up, GELU by its form with tanh. In `ggml` numerics by ggml's table of 16 bits."
    suite = SuiteBuilder("L1", "geglu", "geglu", ("S101",), about)
    edges = np.array([[0.0, -0.0, 1e-7, -1e-7, 0.5, -0.5, 2.9, -2.9, 9.99, -9.99, 10.0, -10.0, 10.5, -10.5, 80, -80]])
    for id, comment, gate, flags in (
        ("basic", "ordinary gates", bell("geglu", (3, 20), 1.5), ("basic",)),
        ("edges", "signs, the ends of the table and beyond", edges.astype(np.float32), ("edge.gate",)),
    ):
        x = {"gate": gate, "up": bell(f"geglu/{id}/up", gate.shape)}
        wanted = naive_gemma.gelu(gate) * naive.f64(x["up"])
        add(suite, id, comment, x, {"y": wanted}, {}, flags, UNSCALED)
        bits = ours("geglu", {}, x, GGML)
        suite.case(f"{id}_ggml", f"{comment}; by the table", inputs=x, out={"y": close("op_ggml", bits["y"])},
                   numerics="ggml", flags=flags, requires=("ggml", *UNSCALED))  # fmt: skip
    return suite


def soft_cap() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "soft_cap", "soft_cap", ("S102",), "cap * tanh(logits / cap); a cap of 0 is none.")
    for id, comment, cap, scale, flags in (
        ("basic", "logits on both sides of the cap", 12.0, 10.0, ("basic",)),
        ("small", "logits far below it are themselves", 30.0, 0.05, ("edge.eps",)),
        ("large", "logits far beyond it", 1.5, 40.0, ("edge.large",)),
        ("none", "no cap", 0.0, 5.0, ("edge.zero",)),
    ):
        logits = bell(f"soft_cap/{id}", (2, 24), scale)
        wanted = naive_gemma.tanh(naive.f64(logits) / cap) * cap if cap else logits
        add(suite, id, comment, {"logits": logits}, {"y": wanted}, {"cap": hex_float(cap)}, flags, UNSCALED)
    return suite


def scaled_embedding() -> SuiteBuilder:
    about = "Rows of an embedding times the square root of their width."
    suite = SuiteBuilder("L1", "scaled_embedding", "scaled_embedding", ("S103",), about)
    for id, comment, n, flags in (("basic", "a root that float32 rounds", 24, ("basic",)),
                                  ("square", "a root that it holds", 16, ("edge.scale",))):  # fmt: skip
        x = bell(f"scaled_embedding/{id}", (3, n))
        add(suite, id, comment, {"x": x}, {"y": naive.f64(x) * math.sqrt(n)}, {}, flags, UNSCALED)
    return suite


def assistant_input() -> SuiteBuilder:
    about = "What an assistant's layers are given: pre_projection([E_t[token] sqrt(n) ; h]), neither normed."
    suite = SuiteBuilder("L1", "assistant_input", "assistant_input", ("S6", "S19", "S103", "S108"), about)
    w, embd, hidden = (bell(f"assistant_input/{name}", shape, scale) for name, shape, scale in
                       (("w", (12, 32), 0.2), ("embd", (3, 16), 0.3), ("hidden", (3, 16), 1.0)))  # fmt: skip
    joined = np.concatenate([naive.f64(embd) * math.sqrt(16), naive.f64(hidden)], axis=1)
    add(suite, "basic", "three tokens, an assistant narrower than its target",
        {"embd": embd, "hidden": hidden, "nextn.pre_projection.weight": w}, {"pre_proj": naive.matmul(w, joined)}, {},
        ("basic", "G1-concat-swapped"), ASSISTANT)  # fmt: skip
    return suite


def assistant_row() -> SuiteBuilder:
    about = "The row that an assistant's next step is fed with: post_projection of its normed row."
    suite = SuiteBuilder("L1", "assistant_row", "assistant_row", ("S6", "S108"), about)
    w, x = bell("assistant_row/w", (16, 12), 0.3), bell("assistant_row/x", (2, 12))
    add(suite, "basic", "two rows", {"x": x, "nextn.post_projection.weight": w}, {"row": naive.matmul(w, x)}, {},
        ("basic",), ASSISTANT)  # fmt: skip
    return suite


# ----------------------------------------------------------------------------------------------------------- layers


def keys_of(n_window: int, n_key: int = N_KEY, n_rot: int = N_ROT) -> dict[str, Any]:
    """A layer with or without a window as the keys of a file."""
    return {"attention.layer_norm_rms_epsilon": EPSILON, "attention.head_count": HEADS[0],
            "attention.head_count_kv": HEADS[1], "attention.key_length": n_key, "attention.key_length_swa": n_key,
            "rope.dimension_count": n_rot, "rope.dimension_count_swa": n_rot, "rope.freq_base": 1e4,
            "rope.freq_base_swa": 1e4, "attention.sliding_window": n_window or 1,
            "attention.sliding_window_pattern": [n_window > 0]}  # fmt: skip


def params_of(n_window: int, **more: Any) -> dict[str, Any]:
    return {"n_head": HEADS[0], "n_head_kv": HEADS[1], "n_key": N_KEY, "n_window": n_window, "n_rot": N_ROT,
            "freq_base": hex_float(1e4), "eps": EPS, "kv_type": "F32", **more}  # fmt: skip


def layer_weights(name: str, n: int, parts: str) -> dict[str, F32]:
    """parts: of `qkv` what the layer has"""
    w: dict[str, F32] = {}
    for part in parts:
        w[f"attn_{part}.weight"] = bell(f"{name}/{part}", (HEADS[part != "q"] * N_KEY, n), 0.3)
        if part != "v":
            w[f"attn_{part}_norm.weight"] = uniform(f"{name}/{part}/norm", (N_KEY,), 0.3, 1.0)
    return w | {"attn_output.weight": bell(f"{name}/o", (n, HEADS[0] * N_KEY), 0.3)}


def under(w: Mapping[str, Any]) -> dict[str, Any]:
    """Weights as those of block 0 of a file."""
    return {f"blk.0.{name}": x for name, x in w.items()} | {"rope_freqs.weight": FACTORS}


def unscaled_attn_layer() -> SuiteBuilder:
    about = "An attention mixer whose scores are not scaled: norms of q, k and (without a weight) v, RoPE, a window."
    rules = ("S6", "S8", "S10", "S15", "S76", "S94", "S100", "S104")
    suite = SuiteBuilder("L2", "unscaled_attn_layer", "unscaled_attn_layer", rules, about)
    turned = ("G19-rope-half-width",)
    for id, comment, n, parts, n_window, first, n_tokens, shares, numerics, flags in (
        ("window", "a window; the cells of all tokens before the batch", 16, "qkv", 3, 5, 4, False, "exact",
         ("basic", "A10-window-narrow", *turned)),
        ("last_cells", "of a window the last cells alone are there", 16, "qkv", 4, 9, 3, False, "exact", ("carry",)),
        ("values_of_keys", "no window, divided frequencies, values that are the keys' products", 16, "qk", 0, 3, 4,
         False, "exact", ("basic", *turned)),
        ("from_nothing", "no window, no past", 16, "qkv", 0, 0, 5, False, "exact", ("basic", *turned)),
        ("sharing", "no cells of its own: those of a layer before it, of the batch too", 16, "q", 0, 3, 4, True,
         "exact", ("basic",)),
        ("window", "a window", 32, "qkv", 3, 5, 4, False, "ggml", ("basic",)),
    ):  # fmt: skip
        w, keys = layer_weights(f"unscaled_attn/{n}/{parts}", n, parts), keys_of(n_window)
        has = layer_weights(f"unscaled_attn/{n}/source", n, "qkv") if shares else w
        x, pos = bell(f"unscaled_attn/{id}/x", (first + n_tokens, n)), list(range(first + n_tokens))
        cells = naive_gemma.own_cells(under(has), keys, 0, x, pos)
        q = naive_gemma.queries(under(w), keys, 0, x, pos)
        o = naive_gemma.attend(keys, 0, q, pos, cells)
        start, end = max(0, first - (n_window - 1)) if id == "last_cells" else 0, None if shares else first
        data: dict[str, F32] = {"x": x[first:]} | ({} if n_window else {"factors": FACTORS})
        if first:
            data |= {f"{part}_cache": one[start:end].astype(np.float32) for part, one in zip("kv", cells, strict=True)}
        oracle = {"Qcur_pos": q, "kqv_out": o.reshape(q.shape), "attn_output": naive.matmul(w["attn_output.weight"], o)}
        oracle |= {} if shares else {"Kcur_pos": cells.k, "Vcur_normed": cells.v}
        more = {"first": first} | ({"shares": True} if shares else {})
        add_layer(suite, id, comment, w, data, params_of(n_window, **more),
                  {name: one[first:] for name, one in oracle.items()}, flags, UNSCALED, (numerics,))  # fmt: skip
    return suite


def target_attn_layer() -> SuiteBuilder:
    about = "A layer of an assistant: queries at position n_past over the target's cells of positions before it."
    suite = SuiteBuilder("L2", "target_attn_layer", "target_attn_layer", ("S6", "S8", "S10", "S76", "S100", "S109"),
                         about)  # fmt: skip
    w = layer_weights("target_attn", N_EMBD, "q")
    for id, comment, n_window, n_past, n_tokens, flags in (
        ("window", "the cells of the last n_window - 1 positions; the token's own would be one more", 4, 9, 2,
         ("basic",)),
        ("full", "every cell, divided frequencies", 0, 6, 1, ("basic",)),
        ("short", "a window that is not full yet: unwritten cells in front of the first", 6, 3, 1, ("edge.short",)),
        ("first", "one cell", 0, 1, 1, ("edge.short",)),
    ):  # fmt: skip
        shape = (n_past, HEADS[1], N_KEY)
        k, v = (bell(f"target_attn/{id}/{part}", shape, 0.6) for part in "kv")
        x, keys = bell(f"target_attn/{id}/x", (n_tokens, N_EMBD)), keys_of(n_window)
        q = naive_gemma.queries(under(w), keys, 0, x, [n_past] * n_tokens)
        o = naive_gemma.attend(keys, 0, q, [n_past] * n_tokens, naive_gemma.Cells(naive.f64(k), naive.f64(v)))
        kept = [one[-(n_window - 1) :] if n_window else one for one in (k, v)]
        if n_window > n_past:
            empty = np.zeros((n_window - 1 - n_past, *shape[1:]), np.float32)
            kept = [np.concatenate([empty, one]) for one in (k, v)]
        data = {"x": x, "k_cells": kept[0], "v_cells": kept[1]} | ({} if n_window else {"factors": FACTORS})
        oracle = {"Qcur_pos": q, "kqv_out": o.reshape(q.shape), "attn_output": naive.matmul(w["attn_output.weight"], o)}
        add_layer(suite, id, comment, w, data, params_of(n_window, n_past=n_past), oracle, flags, ASSISTANT, ("exact",))
    return suite


def layer_inputs() -> SuiteBuilder:
    about = "What each layer is given of the tokens: (norm(proj x / sqrt(n)) + E'[token] sqrt(n_own)) / sqrt(2)."
    suite = SuiteBuilder("L2", "layer_inputs", "layer_inputs", ("S6", "S7", "S8", "S103", "S105"), about)
    n_layer, n_own, n_vocab = 3, 8, 10
    w = {
        "per_layer_token_embd.weight": bell("layer_inputs/embd", (n_vocab, n_layer * n_own), 0.4),
        "per_layer_model_proj.weight": bell("layer_inputs/proj", (n_layer * n_own, N_EMBD), 0.4),
        "per_layer_proj_norm.weight": uniform("layer_inputs/norm", (n_own,), 0.5, 1.5),
    }
    x, tokens = bell("layer_inputs/x", (4, N_EMBD)), np.array([3, 0, 9, 3], np.int32)
    keys = {"embedding_length_per_layer_input": n_own, "block_count": n_layer,
            "attention.layer_norm_rms_epsilon": EPSILON}  # fmt: skip
    found = naive_gemma.per_layer_inputs(w, keys, tokens.tolist(), naive.f64(x))
    assert found is not None
    inputs: dict[str, Any] = {"x": x, "tokens": tokens}
    params = {"n_layer": n_layer, "n_own": n_own, "eps": EPS}
    add_layer(suite, "basic", "four tokens, one of them twice", w, inputs, params, {"inputs": np.stack(found)},
              ("basic",), UNSCALED, ("exact",))  # fmt: skip
    return suite


def own_input() -> SuiteBuilder:
    about = "A layer's own input through a gate of the stream: norm(proj (gelu(inp_gate x) * inputs))."
    suite = SuiteBuilder("L2", "own_input", "own_input", ("S6", "S8", "S101", "S105"), about)
    w = {
        "inp_gate.weight": bell("own_input/gate", (8, N_EMBD), 0.4),
        "proj.weight": bell("own_input/proj", (N_EMBD, 8), 0.4),
        "post_norm.weight": uniform("own_input/norm", (N_EMBD,), 0.5, 1.5),
    }
    x, inputs = bell("own_input/x", (3, N_EMBD)), bell("own_input/inputs", (3, 8))
    gated = naive_gemma.gelu(naive.matmul(w["inp_gate.weight"], x)) * naive.f64(inputs)
    wanted = naive.rms_norm(naive.matmul(w["proj.weight"], gated), w["post_norm.weight"], EPSILON)
    add_layer(suite, "basic", "three tokens", w, {"x": x, "inputs": inputs}, {"eps": EPS},
              {"per_layer_embd_out": wanted}, ("basic",), UNSCALED, ("exact",))  # fmt: skip
    return suite


def dense_beside_experts() -> SuiteBuilder:
    about = "A dense network and experts side by side, each with norms of its own, on rows of the stream."
    rules = ("S6", "S8", "S30", "S41", "S44", "S45", "S48", "S101", "S106")
    suite = SuiteBuilder("L2", "dense_beside_experts", "dense_beside_experts", rules, about)
    n, n_expert = 16, 5
    norms = ("ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
    w = {f"{one}.weight": uniform(f"beside/{one}", (n,), 0.5, 1.5) for one in norms}
    w |= {f"ffn_{part}.weight": bell(f"beside/{part}", (n, n), 0.4) for part in ("gate", "up", "down")}
    w["ffn_gate_inp.weight"] = bell("beside/router", (n_expert, n), 1.5)
    w["ffn_gate_inp.scale"] = uniform("beside/scale", (n,), 0.5, 1.5)
    gate, up = (bell(f"beside/exps/{part}", (n_expert, n, n), 0.4) for part in ("gate", "up"))
    w["ffn_down_exps.weight"] = bell("beside/exps/down", (n_expert, n, n), 0.4)
    apart = w | {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    fused = w | {"ffn_gate_up_exps.weight": np.concatenate([gate, up], axis=1),
                 "ffn_down_exps.scale": uniform("beside/exps/scale", (n_expert,), 0.5, 1.5)}  # fmt: skip
    x = bell("beside/x", (4, n))
    flags = ("basic", "E6-weights-by-id", "E10-gate-up-swapped")
    for id, comment, own in (
        ("apart", "stacks of their own, no scales of experts", apart),
        ("fused", "gate and up in one stack, a scale of each expert", fused),
    ):
        oracle = beside_oracle(own, x)
        add_layer(suite, id, comment, own, {"x": x}, {"n_used": 2, "eps": EPS}, oracle, flags,
                  ("moe", *UNSCALED), ("exact",))  # fmt: skip
    return suite


def beside_oracle(w: Mapping[str, F32], x: F32) -> dict[str, Any]:
    block = {f"blk.0.{name}": one for name, one in w.items()}
    keys = {"attention.layer_norm_rms_epsilon": EPSILON, "expert_used_count": 2}
    more, ids = naive_gemma.experts(block, keys, 0, naive.f64(x))
    parts = (w[f"ffn_{part}.weight"] for part in ("gate", "up", "down"))
    y = naive_gemma.network(naive.rms_norm(x, w["ffn_norm.weight"], EPSILON), *parts)
    dense = naive.rms_norm(y, w["post_ffw_norm_1.weight"], EPSILON)
    experts = naive.rms_norm(more, w["post_ffw_norm_2.weight"], EPSILON)
    return {"ids": [int(e) for e in ids.reshape(-1)], "ffn_mlp": dense, "ffn_moe": experts,
            "ffn_moe_combined": dense + experts}  # fmt: skip


def operations() -> Iterator[SuiteBuilder]:
    for make in (unscaled_attention, geglu, soft_cap, scaled_embedding, assistant_input, assistant_row):
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (unscaled_attn_layer, target_attn_layer, layer_inputs, own_input, dense_beside_experts):
        yield make()
