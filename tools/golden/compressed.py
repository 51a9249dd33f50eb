"""L1 of attention over a window and compressed rows, and of clamped experts. Expected values are naive float64."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from golden.connections import add
from golden.streams import bell, stream
from mtpref.golden.build import SuiteBuilder, value
from mtpref.golden.format import hex_float
from tests import naive, naive_dsv4

F32 = NDArray[np.float32]
ROWS, EXPERTS = ("compressed_rows",), ("moe", "clamped_experts")
SINKS = ("attention_sinks",)
TURNED = ("A12b-turned-in-front", "A12c-turned-in-halves")
CHOSEN = ("A5-indexer-ignored", "A5b-indexer-one-fewer", "A5c-indexer-cell-before")


def rope_last() -> SuiteBuilder:
    about = "RoPE of the last n_rot dimensions, neighbours paired; back: by the same angles the other way."
    suite = SuiteBuilder("L1", "rope_last", "rope_last", ("S53", "S74"), about)
    for id, comment, shape, n_rot, positions, back, flags in (
        (
            "basic",
            "the dimensions before the last n_rot pass",
            (4, 2, 12),
            8,
            [0, 1, 7, 100],
            False,
            ("basic", *TURNED),
        ),
        ("back", "turned back", (4, 2, 12), 8, [0, 1, 7, 100], True, ("basic", *TURNED, "A12-not-turned-back")),
        ("all", "every dimension turns", (3, 1, 8), 8, [3, 4, 5], False, ("basic",)),
        ("far", "far into a context, back", (2, 1, 8), 6, [4095, 1048575], True, ("edge.large",)),
        ("one_pair", "one pair at the end", (3, 2, 5), 2, [0, 1, 2], False, ("edge.short",)),
    ):
        x, sign = bell(f"rope_last/{id}", shape), -1.0 if back else 1.0
        angles = naive.rope_scaled(n_rot, 1e4, 1.0)[0]
        wanted = [[naive_dsv4.turned(naive.f64(h), p, angles, sign) for h in row]
                  for row, p in zip(x, positions, strict=True)]  # fmt: skip
        add(suite, id, comment, {"x": x, "pos": np.array(positions, np.int32)}, {"y": np.array(wanted)},
            {"n_rot": n_rot, "freq_base": hex_float(1e4), "back": back}, flags, ROWS)  # fmt: skip
    return suite


def compress_rows() -> SuiteBuilder:
    about = "The row that a block leaves: values weighed by a softmax over the block, dimension by dimension."
    suite = SuiteBuilder("L1", "compress_rows", "compress_rows", ("S75",), about)
    for id, comment, shape, scale, flags in (
        ("basic", "blocks of eight rows: each dimension has weights of its own", (3, 8, 6), 1.0, ("basic",)),
        ("whole_block", "a block of 128 rows", (1, 128, 4), 1.0, ("edge.length",)),
        ("one_row", "one row takes nearly all: the greatest score is subtracted first", (2, 8, 6), 60.0,
         ("edge.large",)),
        ("equal", "equal scores: the mean", (2, 4, 6), 0.0, ("edge.zero",)),
        ("before_the_first", "rows before the first position: value 0, score -infinity", (2, 8, 6), 1.0, ("basic",)),
    ):  # fmt: skip
        values, scores = bell(f"compress_rows/{id}", shape), bell(f"compress_rows/{id}/s", shape) * np.float32(scale)
        if id == "before_the_first":
            values[0, :4], scores[0, :4] = 0.0, -np.inf
        wanted = np.array([[naive.dot(naive.softmax(naive.f64(scores[b, :, d])), naive.f64(values[b, :, d]))
                            for d in range(shape[2])] for b in range(shape[0])])  # fmt: skip
        add(suite, id, comment, {"values": values, "scores": scores}, {"rows": wanted}, {}, flags, ROWS)
    return suite


def window_start() -> SuiteBuilder:
    about = "The first position that a query sees: its window holds itself and n_window - 1 before it."
    suite = SuiteBuilder("L1", "window_start", "window_start", ("S76",), about)
    for id, comment, n_window, positions in (
        ("basic", "around the end of the first window", 4, [0, 2, 3, 4, 5, 100]),
        ("two", "the smallest window", 2, [0, 1, 2, 3]),
        ("wide", "DeepSeek-V4's", 128, [0, 126, 127, 128, 1048575]),
    ):
        first = [min(j for j in range(max(0, p - n_window), p + 1) if p - j < n_window) for p in positions]
        suite.case(id, comment, inputs={}, params={"n_window": n_window, "pos": positions},
                   flags=("basic", "A10-window-narrow"), requires=("windows",),
                   out={"first": value(first)})  # fmt: skip
    return suite


def n_compressed() -> SuiteBuilder:
    about = "The compressed rows of so many tokens: those of whole blocks. A query sees that of a block which it ends."
    suite = SuiteBuilder("L1", "n_compressed", "n_compressed", ("S76",), about)
    for id, comment, ratio in (("four", "blocks of four", 4), ("whole", "blocks of 128", 128)):
        counts = [0, 1, ratio - 1, ratio, ratio + 1, 2 * ratio - 1, 2 * ratio, 1048575]
        n = [sum(1 for _ in range(ratio, k + 1, ratio)) for k in counts]
        suite.case(id, comment, inputs={}, params={"ratio": ratio, "n_tokens": counts},
                   flags=("basic", "A11-block-late"), requires=ROWS, out={"n": value(n)})  # fmt: skip
    return suite


def row_scores() -> SuiteBuilder:
    about = "What the indexer says of each row: its heads' positive products, each times the head's weight, added up."
    suite = SuiteBuilder("L1", "row_scores", "row_scores", ("S77",), about)
    for id, comment, (n_head, n_rows, width), scale, flags in (
        ("basic", "three heads; weights of both signs", (3, 6, 16), 1.0, ("basic", "A6-indexer-no-relu")),
        ("one_head", "a single head", (1, 5, 9), 1.0, ("edge.length",)),
        ("one_row", "a single row", (4, 1, 16), 1.0, ("edge.short",)),
        (
            "all_negative",
            "no positive product: every score is zero",
            (2, 4, 8),
            -1.0,
            ("edge.zero", "A6-indexer-no-relu"),
        ),
    ):
        q, rows = bell(f"row_scores/{id}/q", (n_head, width)), bell(f"row_scores/{id}", (n_rows, width))
        if scale < 0:
            q, rows = np.abs(q), -np.abs(rows)
        w = bell(f"row_scores/{id}/w", (n_head,))
        wanted = [sum(max(0.0, float(naive.dot(naive.f64(q[h]), naive.f64(k)))) * float(w[h]) for h in range(n_head))
                  for k in rows]  # fmt: skip
        add(suite, id, comment, {"q": q, "rows": rows, "weights": w}, {"scores": np.array(wanted)}, {}, flags, ROWS)
    return suite


def best_rows() -> SuiteBuilder:
    about = "The rows of the greatest scores, in their own order; among equals the lower row; all where they are few."
    suite = SuiteBuilder("L1", "best_rows", "best_rows", ("S77",), about)
    ties = (stream("best_rows/ties", 24) % np.uint64(3)).astype(np.float32)
    for id, comment, scores, n_best, flags in (
        ("basic", "three of nine, not the best first", bell("best_rows", (9,)), 3, ("basic", *CHOSEN)),
        ("few", "fewer rows than are let through", bell("best_rows/few", (2,)), 3, ("edge.short",)),
        ("ties", "equal scores: the lowest rows", ties, 7, ("edge.tie", *CHOSEN)),
        ("zeros", "scores of zero are as good as any", np.array([-1, 0, -2, 0, 0, -3], np.float32), 2, ("edge.zero",)),
    ):
        ranked = sorted(range(len(scores)), key=lambda r: (-float(scores[r]), r))[:n_best]
        suite.case(id, comment, inputs={"scores": scores}, params={"n_best": n_best}, flags=flags, requires=ROWS,
                   out={"ids": value(sorted(ranked))})  # fmt: skip
    return suite


def sink_attention() -> SuiteBuilder:
    about = "Attention of one token over rows that are keys and values of all heads, beside a sink of each head."
    suite = SuiteBuilder("L1", "sink_attention", "sink_attention", ("S78", "S95"), about)
    for id, comment, (n_head, n_rows, width), kv_type, sink, flags in (
        ("basic", "sinks of the scores' size", (3, 7, 16), "F32", 1.0, ("basic", "A9-sink-forgotten")),
        ("one_row", "one row: its weight is not 1 beside a sink", (2, 1, 8), "F32", 1.0, ("edge.short",)),
        ("heavy_sink", "a sink above every score: it is the greatest that is subtracted", (2, 5, 8), "F32", 30.0,
         ("edge.large", "A9-sink-forgotten")),
        ("no_sink", "a sink far below every score takes nothing", (2, 5, 8), "F32", -60.0, ("edge.large",)),
        ("f16", "rows and queries rounded to float16", (2, 6, 16), "F16", 0.5, ("basic",)),
    ):  # fmt: skip
        q, cells = bell(f"sink_attention/{id}/q", (n_head, width)), bell(f"sink_attention/{id}", (n_rows, width))
        sinks = bell(f"sink_attention/{id}/sinks", (n_head,), 0.3) + np.float32(sink)
        as_kept = (lambda x: naive.f64(x.astype(np.float16))) if kv_type == "F16" else naive.f64
        rows, out = as_kept(cells), []
        for head, own in zip(as_kept(q), sinks, strict=True):
            scores = naive.dot(rows, head) / math.sqrt(width)
            share = naive.softmax(np.append(scores, float(own)))[:-1]
            out.append(naive.dot(share, rows))
        add(suite, id, comment, {"q": q, "cells": cells, "sinks": sinks}, {"o": np.array(out)}, {"kv_type": kv_type},
            flags, SINKS)  # fmt: skip
    return suite


def clamped_swiglu() -> SuiteBuilder:
    about = "silu(min(gate, limit)) * clamp(up, -limit, limit): before silu, and the gate from above alone."
    suite = SuiteBuilder("L1", "clamped_swiglu", "clamped_swiglu", ("S79",), about)
    for id, comment, limit, scale, flags in (
        ("basic", "values on both sides of the limit", 1.5, 2.0, ("basic", "E14-clamp-after-silu")),
        ("none", "a limit of 0 clamps nothing", 0.0, 4.0, ("edge.zero",)),
        ("least", "nor does one of 1e-6", 1e-6, 1.0, ("edge.eps",)),
        ("wide", "far beyond the limit: a gate far below it is not clamped", 7.0, 40.0, ("edge.large",)),
    ):
        gate, up = bell(f"clamped_swiglu/{id}/gate", (4, 12), scale), bell(f"clamped_swiglu/{id}/up", (4, 12), scale)
        g, u, most = naive.f64(gate), naive.f64(up), float(np.float32(limit))
        if limit > 1e-6:
            g, u = np.minimum(g, most), np.clip(u, -most, most)
        add(suite, id, comment, {"gate": gate, "up": up}, {"y": naive.silu(g) * u}, {"limit": hex_float(limit)},
            flags, EXPERTS)  # fmt: skip
    return suite


def sqrt_softplus() -> SuiteBuilder:
    about = "The router's probabilities by `sqrt_softplus`: the square root of softplus, expert by expert."
    suite = SuiteBuilder("L1", "sqrt_softplus", "expert_probs", ("S41",), about)
    for id, comment, scale, flags in (
        (
            "basic",
            "seven experts: they do not add up to one, and may be above it",
            2.0,
            ("basic", "E7-sigmoid-router", "E7b-softmax-router"),
        ),
        ("wide", "far out on both sides: exp(x / 2), and the root of x", 30.0, ("edge.large",)),
        ("zeros", "logits of zero", 0.0, ("edge.zero",)),
    ):
        logits = bell(f"sqrt_softplus/{id}", (3, 7)) * np.float32(scale)
        wanted = np.sqrt(naive.softplus(naive.f64(logits)))
        add(suite, id, comment, {"logits": logits}, {"p": wanted}, {"gating": "sqrt_softplus"}, flags, EXPERTS)
    return suite


def hashed_experts() -> SuiteBuilder:
    about = "The experts of a layer that is routed by token id: the token's row of its table."
    suite = SuiteBuilder("L1", "hashed_experts", "hashed_experts", ("S80",), about)
    keys = stream("hashed_experts", 60).reshape(12, 5)
    table = np.argsort(keys, axis=1, kind="stable")[:, :2].astype(np.int32)
    for id, comment, tokens in (("basic", "a token that comes twice has the same experts", [3, 0, 11, 3]),
                                ("one", "one token", [7])):  # fmt: skip
        suite.case(id, comment, inputs={"table": table, "tokens": np.array(tokens, np.int32)}, flags=("basic",),
                   requires=EXPERTS, out={"ids": value([int(e) for t in tokens for e in table[t]])})  # fmt: skip
    return suite


def operations() -> Iterator[SuiteBuilder]:
    for make in (
        rope_last, compress_rows, window_start, n_compressed, row_scores, best_rows, sink_attention, clamped_swiglu,
        sqrt_softplus, hashed_experts,
    ):  # fmt: skip
        yield make()
