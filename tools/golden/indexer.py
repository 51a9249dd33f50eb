"""L1 and L2 of an indexer that chooses which cells a token sees. Expected values are naive float64."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.compressed import CHOSEN
from golden.connections import add
from golden.l2_layers import N_EMBD, SAFE_GAP
from golden.l2_layers import add as add_layer
from golden.latent import YARN, hparams_of, layer_weights, params_of, split
from golden.streams import bell, stream, uniform
from mtpref.golden.build import SuiteBuilder, exact, value
from mtpref.golden.format import hex_float
from tests import naive, naive_dsa, naive_mla

F32 = NDArray[np.float32]
NEEDS, WHOLE = ("indexer",), ("indexer", "latent_attention")
# Faults that change which cells are chosen.
MADE = ("A7-indexer-rope-exchanged", "A7b-indexer-rope-at-end", "A7c-indexer-key-mean-kept")
OF_CHOICE = (*CHOSEN, "A6-indexer-no-relu", *MADE)


def layer_norm() -> SuiteBuilder:
    suite = SuiteBuilder("L1", "layer_norm", "layer_norm", ("S60",), "Layer norm over the last axis, with a bias.")
    for id, comment, shape, scale, eps, flags in (
        ("basic", "ordinary rows, eps 1e-6", (3, 64), 1.0, 1e-6, ("basic", "A7c-indexer-key-mean-kept")),
        ("no_eps", "without an eps", (3, 64), 1e-3, 0.0, ("edge.eps",)),
        ("small_rows", "a variance of about eps: it is inside the root", (3, 64), 1e-3, 1e-6, ("edge.eps",)),
        (
            "far_mean",
            "a mean a hundred times the spread is taken out",
            (2, 37),
            1.0,
            1e-6,
            ("edge.length", "A7c-indexer-key-mean-kept"),
        ),
        ("two", "rows of two values", (3, 2), 1.0, 1e-6, ("edge.short",)),
    ):
        x = bell(f"layer_norm/{id}", shape, scale) + np.float32(100.0 if id == "far_mean" else 0.25 * scale)
        w, b = uniform(f"layer_norm/{id}/w", shape[-1:], 0.3, 1.6), bell(f"layer_norm/{id}/b", shape[-1:], 0.3)
        given_eps = float(np.float32(eps))
        x64 = naive.f64(x)
        d = x64 - naive.total(x64) / shape[-1]
        wanted = d / np.sqrt(naive.total(d * d) / shape[-1] + given_eps) * w + b
        add(suite, id, comment, {"x": x, "weight": w, "bias": b}, {"y": wanted}, {"eps": hex_float(given_eps)}, flags,
            NEEDS)  # fmt: skip
    return suite


def rotation(n: int) -> NDArray:
    """(-1)^popcount(i & j) / sqrt(n)"""
    return np.array([[(-1) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]) / math.sqrt(n)


def rotate() -> SuiteBuilder:
    about = "The rotation of an indexer's queries and keys: the orthonormal Walsh-Hadamard matrix."
    suite = SuiteBuilder("L1", "rotate", "rotate", ("S6", "S61"), about)
    for id, comment, n, flags in (
        ("basic", "rows of 64", 64, ("basic",)),
        ("short", "rows of two: (a + b, a - b) / sqrt(2)", 2, ("edge.short",)),
        ("one_value", "a row with one value other than zero", 16, ("edge.zero",)),
    ):
        x = bell(f"rotate/{id}", (2, n))
        if id == "one_value":
            x[:, :5], x[:, 6:] = 0.0, 0.0
        add(suite, id, comment, {"x": x}, {"y": naive.matmul(rotation(n), x)}, {}, flags, NEEDS)
    return suite


def index_scores() -> SuiteBuilder:
    about = "The score of every cell: heads' positive products, each times its weight, added up; -infinity after the " \
            "token's own cell."  # fmt: skip
    suite = SuiteBuilder("L1", "index_scores", "index_scores", ("S62",), about)
    for id, comment, (n_head, n_cells), flags in (
        ("basic", "one token that sees nine cells; weights of both signs", (4, 9), ("basic", "A6-indexer-no-relu")),
        ("one_head", "one head: half of the scores are zero", (1, 8), ("edge.zero", "A6-indexer-no-relu")),
    ):
        products, w = bell(f"index_scores/{id}", (1, n_head, n_cells)), bell(f"index_scores/{id}/w", (1, n_head))
        wanted = sum(np.maximum(naive.f64(products[:, h]), 0) * float(w[0, h]) for h in range(n_head))
        add(suite, id, comment, {"products": products, "weights": w}, {"scores": np.asarray(wanted)},
            {"first": n_cells - 1}, flags, NEEDS)  # fmt: skip
    products = (stream("index_scores/masked", 3 * 2 * 7) % np.uint64(9)).astype(np.float32).reshape(3, 2, 7) - 4
    w = np.array([[1, 0.5], [-1, 2], [0.25, 1]], np.float32)
    scores = np.maximum(products[:, 0], 0) * w[:, :1] + np.maximum(products[:, 1], 0) * w[:, 1:]
    scores[np.arange(7)[None, :] > 4 + np.arange(3)[:, None]] = -np.inf
    suite.case("masked", "three tokens from position 4: cells after a token's own are never seen; small integers",
               inputs={"products": products, "weights": w}, params={"first": 4},
               flags=("basic", "A6-indexer-no-relu"), requires=NEEDS,
               out={"scores": exact(scores)})  # fmt: skip
    return suite


def select_cells() -> SuiteBuilder:
    about = "The cells of the greatest scores among those that a token sees, the lowest among equals; rising."
    suite = SuiteBuilder("L1", "select_cells", "select_cells", ("S63",), about)
    ties = (stream("select_cells/ties", 3 * 12) % np.uint64(3)).astype(np.float32).reshape(3, 12)
    nan = bell("select_cells/nan", (2, 8))
    nan[:, [1, 4]] = np.nan
    for id, comment, scores, first, n_top, flags in (
        ("basic", "four of up to nine", bell("select_cells", (3, 9)), 6, 4, ("basic", *CHOSEN)),
        ("from_nothing", "tokens that see fewer cells than there are places: all of them",
         bell("select_cells/few", (6, 6)), 0, 4, ("edge.short",)),
        ("all", "as many places as cells", bell("select_cells/all", (2, 5)), 3, 8, ("edge.length",)),
        ("ties", "equal scores: the lowest cells. llama.cpp's sort has no order here", ties, 9, 5,
         ("edge.tie", *CHOSEN)),
        ("later_cells", "the greatest score is that of a cell after the token's own", np.array(
            [[1, 5, 2, 9, 9], [0, 3, 4, 1, 9]], np.float32), 2, 2, ("basic",)),
        ("nan", "NaN loses to any number", nan, 6, 5, ("edge.tie",)),
    ):  # fmt: skip
        wanted = []
        for t, row in enumerate(scores.tolist()):
            ranked = sorted(range(first + t + 1), key=lambda c: (math.isnan(row[c]), -row[c], c))
            wanted.append(sorted(ranked[:n_top]))
        suite.case(id, comment, inputs={"scores": scores}, params={"first": first, "n_top": n_top}, flags=flags,
                   requires=NEEDS, out={"cells": value(wanted)})  # fmt: skip
    return suite


# ----------------------------------------------------------------------------------------------------------- layers

# n_head, n_latent, n_rot, n_nope, n_value; and as wide as Q8_0 needs.
SIZES, SIZES_32 = (2, 16, 4, 12, 8), (2, 32, 8, 32, 16)
PLAIN: dict[str, Any] = {}
HALVES, PAIRS = "deepseek32", "glm-dsa"


def chosen_of(n_tokens: int, first: int, n_top: int, name: str) -> list[list[int]]:
    """Any choice: of each token so many cells that it sees."""
    keys = stream(name, n_tokens * (first + n_tokens)).reshape(n_tokens, -1)
    return [sorted(np.argsort(row[: first + t + 1], kind="stable")[:n_top].tolist()) for t, row in enumerate(keys)]


def selected_attention() -> SuiteBuilder:
    about = "Attention of each token over the cells that were chosen for it; no other cell is read."
    suite = SuiteBuilder("L2", "selected_attention", "selected_attention", ("S16", "S64"), about)
    for id, comment, n, first, n_top in (
        ("basic", "three tokens after five cells, four of them seen", 3, 5, 4),
        ("from_nothing", "the first tokens see all their cells", 6, 0, 3),
        ("one", "one cell a token", 2, 3, 1),
    ):
        q, cells = (bell(f"selected/{id}/{part}", shape) for part, shape in
                    (("q", (n, 2, 12)), ("k", (first + n, 1, 12))))  # fmt: skip
        chosen, wanted = chosen_of(n, first, n_top, f"selected/{id}"), np.zeros((n, 2, 12))
        for t, own in enumerate(chosen):
            rows = naive.f64(cells[own, 0])
            for h in range(2):
                share = naive.softmax(naive.dot(rows, naive.f64(q[t, h])) / math.sqrt(12))
                wanted[t, h] = naive.dot(share, rows)
        params = {"chosen": chosen, "first": first, "kv_type": "F32"}
        add(suite, id, comment, {"q": q, "cells": cells}, {"o": wanted}, params, ("basic",), NEEDS)
    return suite


def params_with(
    sizes: tuple[int, int, int, int, int], scaling: Mapping[str, Any], first: int, arch: str, n_key: int, n_top: int
) -> dict[str, Any]:
    is_pairs = arch == PAIRS
    return params_of(sizes, scaling, first) | {
        "n_index_head": 4,
        "n_index_key": n_key,
        "n_top": n_top,
        "interleaved": is_pairs,
        "index_eps": hex_float(0.0 if is_pairs else 1e-6),
    }


def keys_with(
    sizes: tuple[int, int, int, int, int], scaling: Mapping[str, Any], arch: str, n_key: int, n_top: int
) -> dict[str, Any]:
    return hparams_of(sizes, scaling) | {
        "arch": arch,
        "attention.indexer.head_count": 4,
        "attention.indexer.key_length": n_key,
        "attention.indexer.top_k": n_top,
    }


def indexer_weights(name: str, n_query: int, n_key: int, scale: float) -> dict[str, F32]:
    """scale: of keys before their norm; small ones are of the size of its eps."""
    return {
        "indexer.attn_q_b.weight": bell(f"{name}/lid_q", (4 * n_key, n_query), 0.3),
        "indexer.attn_k.weight": bell(f"{name}/lid_k", (n_key, N_EMBD), scale),
        "indexer.k_norm.weight": uniform(f"{name}/lid_norm", (n_key,), 0.3, 1.6),
        "indexer.k_norm.bias": bell(f"{name}/lid_bias", (n_key,), 0.3),
        "indexer.proj.weight": bell(f"{name}/lid_proj", (4, N_EMBD), 0.3),
    }


def indexed(
    w: Mapping[str, F32], hparams: Mapping[str, Any], x: F32, first: int, chosen: list[list[int]] | None = None
) -> tuple[dict[str, Any], dict[str, F32]]:
    """The oracle over all of x: what tokens from `first` on have, and what those before left in the caches.

    Errors  ValueError where a choice hangs on a near tie
    """
    block, keys, positions = {f"blk.0.{name}": a for name, a in w.items()}, dict(hparams), list(range(len(x)))
    if chosen is not None:
        chosen = [[0]] * first + chosen
    y, cells, t = naive_dsa.attention(block, keys, 0, naive.f64(x), positions, chosen)
    angles, magnitude, _ = naive_dsa.scaling(keys)
    n_latent = int(keys["attention.kv_lora_rank"])
    both = naive.matmul(w["attn_kv_a_mqa.weight"], x)
    k_pe = naive_mla.turned(both[:, None, n_latent:], positions, angles, magnitude)[:, 0]
    rows = np.concatenate([t["kv_cmpr"], k_pe], axis=1)[:, None]
    out: dict[str, Any] = {"Kcur": rows[first:], "attn_output": y[first:]}
    before = {"cells": rows[:first].astype(np.float32)} if first else {}
    if chosen is None:
        check_gaps(t["scores"], cells, first)
        turn = rotation(t["indexer_k not rotated"].shape[-1])
        q, k = (naive.matmul(turn, t[f"indexer_{part} not rotated"]) for part in "qk")
        out |= {"indexer_q": q[first:], "indexer_k": k[first:, None], "indexer_weights": t["indexer_weights"][first:],
                "top_k": cells[first:]}  # fmt: skip
        before |= {"indexer_cells": k[:first, None].astype(np.float32)} if first else {}
    return out, before


def check_gaps(scores: NDArray, cells: list[list[int]], first: int) -> None:
    """Errors  ValueError where a choice hangs on a near tie"""
    for t, own in enumerate(cells[first:], first):
        rest = [scores[t, c] for c in range(t + 1) if c not in own]
        if rest and min(scores[t, own]) - max(rest) < SAFE_GAP * np.abs(scores[t, : t + 1]).max():
            raise ValueError("a choice of cells hangs on a near tie: take other inputs")


CASES = (
    ("halves", "deepseek32: halves are turned, an eps of 1e-6, YaRN", SIZES, 16, YARN, HALVES, 6, 4, 3, 0.3),
    ("pairs", "glm-dsa: neighbours are turned, no eps", SIZES, 16, PLAIN, PAIRS, 0, 8, 3, 0.3),
    ("small_keys", "keys whose variance is about eps", SIZES, 16, PLAIN, HALVES, 4, 3, 4, 3e-4),
)


def index_cells() -> SuiteBuilder:
    about = "An indexer: queries of the latent, keys with a layer norm, RoPE, rotation, weights, scores, the choice."
    rules = ("S6", "S8", "S10", "S15", "S53", "S60", "S61", "S62", "S63", "S65")
    suite = SuiteBuilder("L2", "index_cells", "index_cells", rules, about)
    for id, comment, sizes, n_key, scaling, arch, first, n, n_top, scale in CASES:
        w = split(layer_weights("index_cells", sizes, n_query=16), sizes)
        w |= indexer_weights("index_cells", 16, n_key, scale)
        x, hparams = bell(f"index_cells/{id}", (first + n, N_EMBD)), keys_with(sizes, scaling, arch, n_key, n_top)
        out, before = indexed(w, hparams, x, first)
        own = {name: a for name, a in w.items() if name.startswith(("indexer", "attn_q_a"))}
        data = {"x": x[first:]} | {name: a for name, a in before.items() if name == "indexer_cells"}
        oracle = {name: a for name, a in out.items() if name.startswith(("indexer", "top_k"))}
        add_layer(suite, id, comment, own, data, params_with(sizes, scaling, first, arch, n_key, n_top), oracle,
                  ("basic", *CHOSEN, *MADE), NEEDS, ("exact",))  # fmt: skip
    return suite


def indexed_attn_layer() -> SuiteBuilder:
    about = "A mixer through a latent row that sees chosen cells: its indexer's, or those of a layer before it."
    rules = ("S6", "S8", "S15", "S55", "S56", "S57", "S60", "S61", "S62", "S63", "S64", "S65", "S66")
    suite = SuiteBuilder("L2", "indexed_attn_layer", "indexed_attn_layer", rules, about)
    for id, comment, sizes, n_key, scaling, arch, first, n, n_top, numerics in (
        ("halves", "deepseek32: four tokens after six cells, YaRN", SIZES, 16, YARN, HALVES, 6, 4, 3, "exact"),
        ("halves", "deepseek32: four tokens after six cells, YaRN", SIZES_32, 16, YARN, HALVES, 6, 4, 3, "ggml"),
        ("pairs", "glm-dsa: eight tokens from nothing", SIZES, 16, PLAIN, PAIRS, 0, 8, 3, "exact"),
        ("sharing", "glm-dsa: cells that another layer chose", SIZES, 16, PLAIN, PAIRS, 5, 3, 2, "exact"),
    ):
        name, n_query = f"indexed_attn/{sizes[1]}", 2 * sizes[1] if sizes == SIZES else 32
        w = split(layer_weights(name, sizes, n_query=n_query), sizes)
        x, hparams = bell(f"indexed_attn/{id}", (first + n, N_EMBD)), keys_with(sizes, scaling, arch, n_key, n_top)
        params = params_with(sizes, scaling, first, arch, n_key, n_top)
        chosen = chosen_of(n, first, n_top, "indexed_attn/chosen") if id == "sharing" else None
        if chosen is None:
            w |= indexer_weights(name, n_query, n_key, 0.3)
        else:
            params |= {"chosen": chosen}
        oracle, before = indexed(w, hparams, x, first, chosen)
        flags = ("basic", "A1-kv-b-halves", "A1b-k-b-not-transposed", "A2-rope-wrong-end", "A2b-rope-halves",
                 "A4-k-pe-normed", "A4b-latent-unnormed", *(OF_CHOICE if chosen is None else ()))  # fmt: skip
        add_layer(suite, id, comment, w, {"x": x[first:], **before}, params, oracle, flags, WHOLE, (numerics,))
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (layer_norm, rotate, index_scores, select_cells):
        yield make()


def layers() -> Iterator[SuiteBuilder]:
    for make in (selected_attention, index_cells, indexed_attn_layer):
        yield make()
