"""L1 and L2 of attention through a latent row: RoPE of neighbours, scale, products head by head, a layer's forms."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.l1_operations import EPS, EPSILON, ours
from golden.l2_layers import N_EMBD
from golden.l2_layers import add as add_layer
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder, close
from mtpref.golden.format import hex_float
from tests import naive, naive_mla

F32 = NDArray[np.float32]
NEEDS = ("latent_attention",)


def _case(
    suite: SuiteBuilder, id: str, comment: str, inputs: Mapping[str, NDArray], oracle: Mapping[str, NDArray],
    params: Mapping[str, Any], flags: tuple[str, ...],
) -> None:  # fmt: skip
    """Outputs are the oracle's, with the specification's noise."""
    given = ours(suite.op, params, inputs)
    out = {name: close("op_f32", wanted, given[name]) for name, wanted in oracle.items()}
    suite.case(id, comment, inputs=inputs, out=out, params=params, flags=flags, requires=NEEDS)


# ------------------------------------------------------------------------------------------------------- operations


def rope_interleaved() -> SuiteBuilder:
    about = "RoPE of the first n_rot dimensions, neighbours paired: (2 i, 2 i + 1)."
    suite = SuiteBuilder("L1", "rope_interleaved", "rope_interleaved", ("S10", "S53"), about)
    for id, comment, shape, n_rot, positions, flags in (
        ("basic", "every dimension turns", (4, 2, 8), 8, [0, 1, 7, 100], ("basic", "A2b-rope-halves", "G5b-no-rope")),
        ("part", "the dimensions after n_rot pass", (3, 2, 12), 8, [3, 4, 5],
         ("basic", "A2b-rope-halves", "G5b-no-rope")),
        ("far", "far into a context", (2, 1, 8), 8, [4095, 163839],
         ("edge.large", "A2b-rope-halves", "G5b-no-rope")),
        ("one_pair", "one pair: neighbours and halves are the same", (3, 2, 2), 2, [0, 1, 2],
         ("edge.short", "G5b-no-rope")),
    ):  # fmt: skip
        x = bell(f"rope_interleaved/{id}", shape)
        angles, _ = naive.rope_scaled(n_rot, 1e4, 1.0)
        turned = naive_mla.turned(naive.f64(x[:, :, :n_rot]), positions, angles, 1.0)
        wanted = np.concatenate([turned, naive.f64(x[:, :, n_rot:])], axis=2)
        _case(suite, id, comment, {"x": x, "pos": np.array(positions, np.int32)}, {"y": wanted},
              {"n_rot": n_rot, "freq_base": hex_float(1e4)}, flags)  # fmt: skip
    return suite


def latent_scale() -> SuiteBuilder:
    about = "What queries are multiplied with before attention, whose own scale is 1 / sqrt(n_row)."
    suite = SuiteBuilder("L1", "latent_scale", "latent_scale", ("S54",), about)
    yarn = float(np.float32(1.0) / np.float32(40.0))
    growth = 0.1 * naive.log(1.0 / yarn)
    for id, comment, n_key, n_row, freq_scale, magnitude, multiplier in (
        ("deepseek_v3", "keys of 192, rows of 576, mscale_all_dim 1", 192, 576, yarn, 1.0, 1.0),
        ("deepseek_v2_lite", "mscale_all_dim 0.707", 192, 576, yarn, 1.0, 0.707),
        (
            "no_multiplier",
            "a file without that key: cosine and sine have the factor",
            192,
            576,
            yarn,
            1.0 + growth,
            0.0,
        ),
        ("plain", "no YaRN, keys of 256: only the widths count", 256, 576, 1.0, 1.0, 0.0),
        ("older_file", "every head's key is kept: a row is as wide as a key", 192, 192, yarn, 1.0, 1.0),
    ):
        sharp = magnitude * (1.0 + multiplier * 0.1 * naive.log(1.0 / freq_scale))
        params = {"n_key": n_key, "n_row": n_row, "freq_scale": hex_float(freq_scale),
                  "magnitude": hex_float(magnitude), "log_multiplier": hex_float(multiplier)}  # fmt: skip
        wanted = np.array([sharp * sharp * math.sqrt(n_row / n_key)])
        _case(suite, id, comment, {}, {"scale": wanted}, params, ("basic",))
    return suite


def head_products() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "head_products", "head_products", ("S6", "S56"), "A matrix for each head, on its rows.")
    for id, comment, (n_head, n_out, n_in), n in (
        ("basic", "three heads", (3, 4, 5), 2),
        ("one_head", "one head is one product", (1, 6, 7), 3),
        ("one_token", "one token, more heads than values", (5, 2, 3), 1),
    ):
        w, x = bell(f"head_products/{id}/w", (n_head, n_out, n_in)), bell(f"head_products/{id}/x", (n, n_head, n_in))
        wanted = np.stack([naive.matmul(w[h], x[:, h]) for h in range(n_head)], axis=1)
        _case(suite, id, comment, {"w": w, "x": x}, {"y": wanted}, {}, ("basic",))
    return suite


# ----------------------------------------------------------------------------------------------------------- layers

# n_head, n_latent, n_rot, n_nope, n_value; rows of weights are multiples of 32, and a cached row is wider than a key.
SIZES = (2, 64, 8, 32, 16)
WIDE_VALUES = (3, 8, 4, 4, 12)  # values wider than keys
PLAIN: dict[str, Any] = {}
YARN = {"factor": hex_float(4.0), "n_ctx_orig": 64, "log_multiplier": hex_float(1.0)}
NO_MULTIPLIER = YARN | {"log_multiplier": hex_float(0.0)}
Sizes = tuple[int, int, int, int, int]


def params_of(sizes: Sizes, scaling: Mapping[str, Any], first: int) -> dict[str, Any]:
    n_head, n_latent, n_rot, n_nope, n_value = sizes
    return {"n_head": n_head, "n_key": n_nope + n_rot, "n_value": n_value, "n_latent": n_latent, "n_rot": n_rot,
            "eps": EPS, "freq_base": hex_float(1e4), "kv_type": "F32", "first": first, **scaling}  # fmt: skip


def hparams_of(sizes: Sizes, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A case's parameters as the keys of a file."""
    n_head, n_latent, n_rot, n_nope, n_value = sizes
    keys = {
        "arch": "deepseek2",
        "context_length": 4096,
        "attention.head_count": n_head,
        "attention.kv_lora_rank": n_latent,
        "rope.dimension_count": n_rot,
        "attention.key_length": n_nope + n_rot,
        "attention.value_length": n_value,
        "attention.layer_norm_rms_epsilon": EPSILON,
    }
    if scaling:
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float.fromhex(scaling["factor"]),
            "rope.scaling.original_context_length": scaling["n_ctx_orig"],
            "rope.scaling.yarn_log_multiplier": 0.1 * float.fromhex(scaling["log_multiplier"]),
        }
    return keys


def layer_weights(name: str, sizes: Sizes, *, n_query: int = 32) -> dict[str, F32]:
    """A layer with keys and values in one tensor; n_query: width of the queries' latent, 0 for none."""
    n_head, n_latent, n_rot, n_nope, n_value = sizes
    rows = n_head * (n_nope + n_rot)
    w = {"attn_kv_a_mqa.weight": bell(f"{name}/kv_a", (n_latent + n_rot, N_EMBD), 0.3)}
    w["attn_kv_a_norm.weight"] = uniform(f"{name}/kv_a_norm", (n_latent,), 0.3, 1.6)
    if n_query:
        w["attn_q_a.weight"] = bell(f"{name}/q_a", (n_query, N_EMBD), 0.3)
        w["attn_q_a_norm.weight"] = uniform(f"{name}/q_a_norm", (n_query,), 0.3, 1.6)
        w["attn_q_b.weight"] = bell(f"{name}/q_b", (rows, n_query), 0.3)
    else:
        w["attn_q.weight"] = bell(f"{name}/q", (rows, N_EMBD), 0.3)
    w["attn_kv_b.weight"] = bell(f"{name}/kv_b", (n_head * (n_nope + n_value), n_latent), 0.3)
    w["attn_output.weight"] = bell(f"{name}/o", (N_EMBD, n_head * n_value), 0.3)
    return w


def split(w: Mapping[str, F32], sizes: Sizes) -> dict[str, F32]:
    """The same layer with keys (transposed) and values in two tensors."""
    n_head, n_latent, _, n_nope, n_value = sizes
    own = dict(w)
    both = own.pop("attn_kv_b.weight").reshape(n_head, n_nope + n_value, n_latent)
    own["attn_k_b.weight"] = np.ascontiguousarray(both[:, :n_nope].transpose(0, 2, 1))
    own["attn_v_b.weight"] = np.ascontiguousarray(both[:, n_nope:])
    return own


def attended(
    w: Mapping[str, F32], sizes: Sizes, scaling: Mapping[str, Any], x: F32, first: int, *, absorbed: bool
) -> tuple[dict[str, NDArray], dict[str, F32]]:
    """The oracle over all of x: activations of the rows from `first` on, and what the rows before left in the cache."""
    n_head, n_nope = sizes[0], sizes[3]
    block, keys = {f"blk.0.{name}": array for name, array in w.items()}, hparams_of(sizes, scaling)
    y, t = naive_mla.latent_attention(block, keys, 0, naive.f64(x), list(range(len(x))), absorbed)
    q = t["q"].reshape(len(x), n_head, -1)
    to_key, to_value = naive_mla.key_and_value(block, keys, 0)
    c, k_pe = t["kv_cmpr"], t["k_pe"]
    if absorbed:
        brought = np.stack([naive.matmul(to_key[h].T, q[:, h, :n_nope]) for h in range(n_head)], axis=1)
        t |= {"q_nope_absorbed_perm": brought, "Kcur": np.concatenate([c, k_pe], axis=1)[:, None]}
        cells = {"cells": t["Kcur"]}
    else:
        k = np.stack([naive.matmul(to_key[h], c) for h in range(n_head)], axis=1)
        shared = np.repeat(k_pe[:, None], n_head, axis=1)
        v = np.stack([naive.matmul(to_value[h], c) for h in range(n_head)], axis=1)
        t |= {"Kcur": np.concatenate([k, shared], axis=2), "Vcur": v}
        cells = {"k_cache": t["Kcur"], "v_cache": v}
    given = {name: array[:first].astype(np.float32) for name, array in cells.items()} if first else {}
    return {name: array[first:] for name, array in t.items()} | {"attn_output": y[first:]}, given


ROTARY = ("A2-rope-wrong-end", "A2b-rope-halves", "A4-k-pe-normed", "G5b-no-rope", "G19-rope-half-width")
OF_LATENT = ("A1-kv-b-halves", "A4b-latent-unnormed", *ROTARY)
OF_ABSORBED = ("A1b-k-b-not-transposed", "A3c-scale-of-row", *OF_LATENT)
SHARPENED = ("A3-sharpness-forgotten", "A3b-sharpness-once")
OF_YARN = ("A2c-rope-inflated", *SHARPENED)


def latent_attn_layer() -> SuiteBuilder:
    about = "Attention through a latent row, absorbed: one cached row [latent | turned part] for all heads."
    rules = ("S6", "S8", "S10", "S15", "S16", "S53", "S54", "S55", "S56", "S57")
    suite = SuiteBuilder("L2", "latent_attn_layer", "latent_attn_layer", rules, about)
    for id, comment, n, first, n_query, scaling, flags, numerics in (
        ("yarn", "five tokens, no past, YaRN with a multiplier", 5, 0, 32, YARN, OF_YARN, ("exact", "ggml")),
        ("one_step", "one token after six cells, no YaRN", 1, 6, 32, PLAIN, (), ("exact",)),
        ("one_product", "queries by one product, YaRN without a multiplier", 3, 2, 0, NO_MULTIPLIER, SHARPENED,
         ("exact",)),
    ):  # fmt: skip
        w = split(layer_weights("latent_attn", SIZES, n_query=n_query), SIZES)
        x = bell(f"latent_attn/{id}/x", (first + n, N_EMBD))
        oracle, cells = attended(w, SIZES, scaling, x, first, absorbed=True)
        add_layer(suite, id, comment, w, {"x": x[first:], **cells}, params_of(SIZES, scaling, first), oracle,
                  ("basic", *OF_ABSORBED, *flags), NEEDS, numerics)  # fmt: skip
    return suite


def expanded_attn_layer() -> SuiteBuilder:
    about = "Attention through a latent row as older files have it: every head's key and value are kept."
    rules = ("S6", "S8", "S10", "S15", "S16", "S53", "S54", "S55", "S58")
    suite = SuiteBuilder("L2", "expanded_attn_layer", "expanded_attn_layer", rules, about)
    for id, comment, n, first, sizes, scaling, flags, numerics in (
        ("from_nothing", "four tokens, values narrower than keys", 4, 0, SIZES, YARN, OF_YARN, ("exact", "ggml")),
        ("wide_values", "two tokens after three cells, values wider than keys", 2, 3, WIDE_VALUES, PLAIN, (),
         ("exact",)),
    ):  # fmt: skip
        name = "latent_attn" if sizes == SIZES else f"expanded_attn/{id}"
        w, x = layer_weights(name, sizes), bell(f"expanded_attn/{id}/x", (first + n, N_EMBD))
        oracle, cells = attended(w, sizes, scaling, x, first, absorbed=False)
        add_layer(suite, id, comment, w, {"x": x[first:], **cells}, params_of(sizes, scaling, first), oracle,
                  ("basic", *OF_LATENT, *flags), NEEDS, numerics)  # fmt: skip
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (rope_interleaved, latent_scale, head_products):
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (latent_attn_layer, expanded_attn_layer):
        yield make()
