"""L2 of attention over a window and compressed rows, step by step and whole. Values are naive float64."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.compressed import CHOSEN, ROWS, SINKS, TURNED
from golden.l1_operations import EPS, EPSILON
from golden.l2_layers import SAFE_GAP, add
from golden.streams import bell, uniform
from mtpref.golden.build import SuiteBuilder
from mtpref.golden.format import hex_float
from tests import naive, naive_dsv4

F32 = NDArray[np.float32]
WINDOWS = ("windows", *SINKS)
# Faults that fail every whole layer, and those with a choice of rows.
OF_ATTENTION = ("A9-sink-forgotten", "A10-window-narrow", "A12-not-turned-back", *TURNED)
OF_CHOICE = (*CHOSEN, "A6-indexer-no-relu")


@dataclass(frozen=True)
class Sizes:
    """Hyper-parameters of a layer under their GGUF meanings."""

    ratio: int = 4
    n_embd: int = 16
    n_head: int = 4
    width: int = 8
    n_rot: int = 4
    n_query: int = 16
    n_window: int = 4
    n_group: int = 2
    n_group_width: int = 8
    n_index_head: int = 4
    n_index: int = 12
    n_best: int = 2
    has_yarn: bool = True


SELECTED = Sizes()
WINDOW = Sizes(ratio=0, has_yarn=False)
WHOLE = Sizes(ratio=128)
# Rows of weights are multiples of 32: of Q8_0.
SELECTED_32 = Sizes(n_embd=32, width=16, n_rot=8, n_query=32, n_group_width=16, n_index=16)
WINDOW_32 = replace(SELECTED_32, ratio=0, has_yarn=False)
EXACT, GGML = ("exact",), ("ggml",)


def params_of(s: Sizes, first: int, *names: str) -> dict[str, Any]:
    """A layer's parameters; of them those of `names`, and what every operation has."""
    scaling = {"factor": hex_float(4.0), "n_ctx_orig": 64} if s.ratio and s.has_yarn else {}
    own = {"ratio": s.ratio, "n_window": s.n_window, "n_group": s.n_group, "n_index_head": s.n_index_head,
           "n_index": s.n_index, "n_best": s.n_best}  # fmt: skip
    return {
        "n_head": s.n_head,
        "n_embd_head": s.width,
        "n_rot": s.n_rot,
        **{name: x for name, x in own.items() if not names or name in names},
        "freq_base": hex_float(5e3 if s.ratio else 1e4),
        **scaling,
        "eps": EPS,
        "kv_type": "F32",
        "first": first,
    }


def hparams_of(s: Sizes) -> dict[str, Any]:
    """The same as the keys of a file."""
    keys: dict[str, Any] = {
        "attention.layer_norm_rms_epsilon": EPSILON,
        "context_length": 4096,
        "rope.dimension_count": s.n_rot,
        "rope.freq_base": 1e4,
        "attention.compress_rope_freq_base": 5e3,
        "attention.head_count": s.n_head,
        "attention.key_length": s.width,
        "attention.sliding_window": s.n_window,
        "attention.output_group_count": s.n_group,
        "attention.indexer.head_count": s.n_index_head,
        "attention.indexer.key_length": s.n_index,
        "attention.indexer.top_k": s.n_best,
    }
    if s.has_yarn:
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    return keys


def input_weights(name: str, s: Sizes) -> dict[str, F32]:
    return {
        "attn_q_a.weight": bell(f"{name}/q_a", (s.n_query, s.n_embd), 0.3),
        "attn_q_a_norm.weight": uniform(f"{name}/q_a_norm", (s.n_query,), 0.3, 1.6),
        "attn_q_b.weight": bell(f"{name}/q_b", (s.n_head * s.width, s.n_query), 0.3),
        "attn_kv.weight": bell(f"{name}/kv", (s.width, s.n_embd), 0.3),
        "attn_kv_a_norm.weight": uniform(f"{name}/kv_norm", (s.width,), 0.3, 1.6),
    }


def compressor_weights(name: str, which: str, s: Sizes, width: int) -> dict[str, F32]:
    wide = 2 * width if s.ratio == 4 else width
    return {
        f"{which}_kv.weight": bell(f"{name}/{which}/kv", (wide, s.n_embd), 0.3),
        f"{which}_gate.weight": bell(f"{name}/{which}/gate", (wide, s.n_embd), 0.3),
        f"{which}_ape.weight": bell(f"{name}/{which}/ape", (s.ratio, wide)),
        f"{which}_norm.weight": uniform(f"{name}/{which}/norm", (width,), 0.3, 1.6),
    }


def indexer_weights(name: str, s: Sizes) -> dict[str, F32]:
    return {
        "indexer.attn_q_b.weight": bell(f"{name}/lid_q", (s.n_index_head * s.n_index, s.n_query), 0.3),
        "indexer.proj.weight": bell(f"{name}/lid_proj", (s.n_index_head, s.n_embd), 0.3),
    }


def output_weights(name: str, s: Sizes) -> dict[str, F32]:
    n_out, n_in = s.n_group * s.n_group_width, s.n_head * s.width // s.n_group
    return {
        "attn_output_a.weight": bell(f"{name}/wo_a", (n_out, n_in), 0.3),
        "attn_output_b.weight": bell(f"{name}/wo_b", (s.n_embd, n_out), 0.3),
    }


def layer_weights(name: str, s: Sizes) -> dict[str, F32]:
    w = input_weights(name, s) | output_weights(name, s)
    w["attn_sinks.weight"] = bell(f"{name}/sinks", (s.n_head,))
    if s.ratio:
        w |= compressor_weights(name, "attn_compressor", s, s.width)
    if s.ratio == 4:
        w |= compressor_weights(name, "indexer_compressor", s, s.n_index) | indexer_weights(name, s)
    return w


def block_of(w: Mapping[str, F32]) -> dict[str, F32]:
    return {f"blk.0.{name}": array for name, array in w.items()}


# -------------------------------------------------------------------------------------------------------- the steps


def window_input() -> SuiteBuilder:
    about = "Queries, each head normed without a weight, and the row that is key and value of all heads; both turned."
    suite = SuiteBuilder("L2", "window_input", "window_input", ("S6", "S8", "S74", "S85"), about)
    for id, comment, sizes, first, numerics in (
        ("window", "a layer without compressed rows: its own base, no YaRN", WINDOW, 5, EXACT),
        ("window", "a layer without compressed rows", WINDOW_32, 5, GGML),
        ("scaled", "a layer with them: another base, YaRN of magnitude 1", SELECTED, 40, EXACT),
    ):
        w, x = input_weights("window_input", sizes), bell(f"window_input/{id}/x", (3, sizes.n_embd))
        hparams, n = hparams_of(sizes), list(range(first, first + 3))
        angles = naive_dsv4.angles_of(hparams, sizes.ratio)
        low, q, k = naive_dsv4.window_input(block_of(w), hparams, "blk.0.", naive.f64(x), n, angles)
        oracle = {"qr_norm": low, "Qcur": q, "Kcur": k}
        add(suite, id, comment, w, {"x": x}, params_of(sizes, first, "-"), oracle, ("basic", *TURNED), WINDOWS[:1],
            numerics)  # fmt: skip
    return suite


def compressor() -> SuiteBuilder:
    about = "Tokens into blocks: the row of every block that ends, normed and turned at its first position, and what " \
            "is kept of the last tokens."  # fmt: skip
    suite = SuiteBuilder("L2", "compressor", "compressor", ("S6", "S7", "S8", "S74", "S75", "S86"), about)
    for id, comment, which, sizes, first, n, numerics in (
        ("from_nothing", "nine tokens: two rows; before the first block there is none", "attn_compressor", SELECTED, 0,
         9, EXACT),
        ("from_nothing", "nine tokens: two rows", "attn_compressor", SELECTED_32, 0, 9, GGML),
        ("carried", "three tokens at 6: one row, of tokens before the batch too", "attn_compressor", SELECTED, 6, 3,
         EXACT),
        ("no_block_ends", "two tokens at 4: no row", "attn_compressor", SELECTED, 4, 2, EXACT),
        ("indexer", "the indexer's own, six tokens at 3: two rows", "indexer_compressor", SELECTED, 3, 6, EXACT),
        ("whole_block", "blocks of 128 do not overlap; three tokens at 126", "attn_compressor", WHOLE, 126, 3,
         EXACT),
    ):  # fmt: skip
        width = sizes.n_index if which == "indexer_compressor" else sizes.width
        w = compressor_weights("compressor", which, sizes, width)
        x = bell(f"compressor/{id}/x", (first + n, sizes.n_embd))
        rows, states = kept(block_of(w), sizes, f"blk.0.{which}", naive.f64(x), (first, first + n))
        data = {"x": x[first:]} | (named("comp", rows[: first // sizes.ratio], states[0]) if first else {})
        oracle = named("comp", rows, states[1], F64=True)
        add(suite, id, comment, w, data, {"name": which, **params_of(sizes, first, "ratio")}, oracle,
            ("basic",) if not first else ("carry",), ROWS, numerics)  # fmt: skip
    return suite


def kept(
    block: Mapping[str, F32], s: Sizes, prefix: str, x: NDArray, counts: tuple[int, int]
) -> tuple[NDArray, list[tuple[NDArray, NDArray]]]:
    """The rows of all blocks of x, and what is kept after so many tokens: values and scores of as many tokens as a
    block that ends with the next one is made of, zeros before the first."""
    hparams, weights = hparams_of(s), dict(block)
    rows = naive_dsv4.compressed(weights, hparams, prefix, s.ratio, x, naive_dsv4.angles_of(hparams, s.ratio))
    rows = rotated(rows) if prefix.endswith("indexer_compressor") else rows
    found = naive_dsv4.values_and_scores(weights, prefix, s.ratio, x)
    n_kept = (2 if s.ratio == 4 else 1) * s.ratio - 1
    padded = [np.concatenate([np.zeros((n_kept, one.shape[1])), one]) for one in found]
    return rows, [(padded[0][n : n + n_kept], padded[1][n : n + n_kept]) for n in counts]


def rotated(rows: NDArray) -> NDArray:
    """As an indexer's rows are stored: as many dimensions together as the greatest power of two in their width."""
    size = rows.shape[-1] & -rows.shape[-1]
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray((rows.reshape(-1, size) @ matrix / math.sqrt(size)).reshape(rows.shape))


def named(name: str, rows: NDArray, state: tuple[NDArray, NDArray], *, F64: bool = False) -> dict[str, Any]:
    """A compressor's state under its names, as inputs or as the oracle's values; without rows where there are none."""
    arrays = ({f"{name}_k": rows} if len(rows) else {}) | {f"{name}_kv": state[0], f"{name}_score": state[1]}
    return arrays if F64 else {key: array.astype(np.float32) for key, array in arrays.items()}


def chosen_rows() -> SuiteBuilder:
    about = "The compressed rows that the indexer lets each token see: turned queries, weights, scores, the best."
    suite = SuiteBuilder("L2", "chosen_rows", "chosen_rows", ("S6", "S74", "S76", "S77", "S87"), about)
    w, s = indexer_weights("chosen_rows", SELECTED), SELECTED
    block, hparams = block_of(w), hparams_of(s)
    for id, comment, first, n, n_best in (
        ("basic", "some tokens see more rows than are let through, some fewer", 5, 9, 2),
        ("one", "the best alone", 18, 3, 1),
    ):
        n_tokens, s = first + n, replace(SELECTED, n_best=n_best)
        hparams = hparams_of(s)
        x, low = bell(f"chosen_rows/{id}/x", (n_tokens, s.n_embd)), bell(f"chosen_rows/{id}/low", (n_tokens, s.n_query))
        keys, angles = bell(f"chosen_rows/{id}/k", (n_tokens // 4, s.n_index)), naive_dsv4.angles_of(hparams, 4)
        found = [naive_dsv4.chosen_rows(block, hparams, "blk.0.", naive.f64(x), naive.f64(low), t, t, keys, angles)
                 for t in range(first, n_tokens)]  # fmt: skip
        check_gaps([naive_dsv4.gap(scores, seen) for seen, scores in found])
        q = naive.matmul(w["indexer.attn_q_b.weight"], low[first:]).reshape(n, s.n_index_head, s.n_index)
        q = np.array([[naive_dsv4.turned(h, first + t, angles) for h in row] for t, row in enumerate(q)])
        weights = naive.matmul(w["indexer.proj.weight"], x[first:]) / math.sqrt(s.n_index_head * s.n_index)
        oracle = {"lid_q_rope": q, "lid_weights": weights, "rows": [seen for seen, _ in found]}
        params = params_of(s, first, "ratio", "n_index_head", "n_index", "n_best")
        data = {"x": x[first:], "qr_norm": low[first:], "lid_k": rotated(keys).astype(np.float32)}
        add(suite, id, comment, w, data, params, oracle, ("basic", "A5-indexer-ignored", "A5c-indexer-cell-before"),
            ROWS, EXACT)  # fmt: skip
    return suite


def check_gaps(gaps: Any) -> None:
    """Errors  ValueError where a choice of rows hangs on a near tie"""
    if np.min(gaps) < SAFE_GAP:
        raise ValueError("a choice of rows hangs on a near tie: take other inputs")


def window_attention() -> SuiteBuilder:
    about = "Every token over its window, oldest first, then over the compressed rows that it sees, in one softmax."
    suite = SuiteBuilder("L2", "window_attention", "window_attention", ("S76", "S78", "S88"), about)
    s = SELECTED
    w = {"attn_sinks.weight": bell("window_attention/sinks", (s.n_head,))}
    for id, comment, ratio, first, n, seen in (
        ("from_nothing", "a window alone: six tokens, of which four are seen", 0, 0, 6, None),
        ("behind_cells", "a window behind three rows", 0, 9, 3, None),
        ("all_rows", "rows of all whole blocks: that of a block with the token that ends it", 4, 6, 4, None),
        ("some_rows", "rows by choice", 4, 13, 3, [[0, 2], [1, 2], [1, 3]]),
    ):
        n_before = min(first, s.n_window - 1)
        q = bell(f"window_attention/{id}/q", (n, s.n_head, s.width))
        kv = bell(f"window_attention/{id}/kv", (n_before + n, s.width))
        rows = bell(f"window_attention/{id}/rows", ((first + n) // ratio if ratio else 0, s.width))
        out = np.zeros(q.shape)
        for t in range(n):
            at = n_before + t
            ids = seen[t] if seen else list(range((first + t + 1) // ratio)) if ratio else []
            cells = naive.f64(np.concatenate([kv[max(0, at - s.n_window + 1) : at + 1], rows[ids]]))
            for h in range(s.n_head):
                scores = naive.dot(cells, naive.f64(q[t, h])) / math.sqrt(s.width)
                share = naive.softmax(np.append(scores, float(w["attn_sinks.weight"][h])))[:-1]
                out[t, h] = naive.dot(share, cells)
        data = {"q": q, "kv": kv} | ({"rows": rows} if ratio else {})
        params = params_of(replace(s, ratio=ratio), first, "ratio", "n_window") | ({"seen": seen} if seen else {})
        need = (*WINDOWS, *ROWS) if ratio else WINDOWS
        add(suite, id, comment, w, data, params, {"kqv_out": out},
            ("basic", "A9-sink-forgotten", "A10-window-narrow"), need, EXACT)  # fmt: skip
    return suite


def grouped_output() -> SuiteBuilder:
    about = "What attention gives, turned back at the query's position; each group of heads through its own rows of " \
            "attn_output_a, all through attn_output_b."  # fmt: skip
    suite = SuiteBuilder("L2", "grouped_output", "grouped_output", ("S6", "S74", "S89"), about)
    s, first = WINDOW, 7
    w, out = output_weights("grouped_output", s), bell("grouped_output", (3, s.n_head, s.width))
    angles = naive_dsv4.angles_of(hparams_of(s), 0)
    back = np.array([[naive_dsv4.turned(naive.f64(h), first + t, angles, -1.0) for h in row]
                     for t, row in enumerate(out)])  # fmt: skip
    groups = w["attn_output_a.weight"].reshape(s.n_group, s.n_group_width, -1)
    mixed = np.concatenate([naive.matmul(groups[g], back.reshape(3, s.n_group, -1)[:, g]) for g in range(s.n_group)], 1)
    oracle = {"attn_derope": back, "attn_wo_a": mixed,
              "attn_output": naive.matmul(w["attn_output_b.weight"], mixed)}  # fmt: skip
    add(suite, "basic", "three tokens at 7, two groups of two heads", w, {"kqv_out": out},
        params_of(s, first, "n_group"), oracle, ("basic", *TURNED, "A12-not-turned-back"), WINDOWS[:1],
        EXACT)  # fmt: skip
    return suite


# ------------------------------------------------------------------------------------------------------------ whole


def compressed_attn_layer() -> SuiteBuilder:
    about = "A mixer over a window and, where it has a ratio, compressed rows: its steps, and the state that it leaves."
    rules = ("S6", "S8", "S15", "S74", "S75", "S76", "S77", "S78", "S85", "S86", "S87", "S88", "S89", "S90")
    suite = SuiteBuilder("L2", "compressed_attn_layer", "compressed_attn_layer", rules, about)
    for id, comment, s, first, n, numerics in (
        ("window", "ratio 0: three tokens behind six", WINDOW, 6, 3, EXACT),
        ("window", "ratio 0: three tokens behind six", WINDOW_32, 6, 3, GGML),
        ("selected", "ratio 4: fourteen tokens from nothing, two rows of three are chosen", SELECTED, 0, 14, EXACT),
        ("selected", "ratio 4: nine tokens behind five", SELECTED_32, 5, 9, GGML),
        ("selected_carried", "ratio 4: three tokens behind fourteen, which end a block", SELECTED, 14, 3, EXACT),
        ("whole_block", "ratio 128: three tokens behind 126, which end the first block", WHOLE, 126, 3, EXACT),
    ):  # fmt: skip
        w, x = layer_weights("compressed_attn", s), bell(f"compressed_attn/{id}/x", (first + n, s.n_embd))
        block, h = block_of(w), naive.f64(x)
        y, t = naive_dsv4.attention(block, hparams_of(s), 0, h, list(range(len(x))), s.ratio)
        check_gaps(t["lid_gap"][first:])
        data: dict[str, Any] = {"x": x[first:]}
        oracle: dict[str, Any] = {"qr_norm": t["qr_norm"], "Qcur": t["q"], "Kcur": t["kv"],
                                  "attn_derope": t["attn_derope"], "attn_output": y}  # fmt: skip
        oracle = {name: array[first:] for name, array in oracle.items()}
        n_before = s.n_window - 1
        oracle["window_k"] = t["kv"][-n_before:]
        if first:
            data["window_k"] = t["kv"][:first][-n_before:].astype(np.float32)
        compressors = {0: {}, 4: {"attn": "comp", "indexer": "lid"}, 128: {"attn": "comp"}}[s.ratio]
        for which, name in compressors.items():
            rows, states = kept(block, s, f"blk.0.{which}_compressor", h, (first, first + n))
            oracle |= named(name, rows, states[1], F64=True)
            if first:
                data |= named(name, rows[: first // s.ratio], states[0])
        need = (*WINDOWS, *ROWS) if s.ratio else WINDOWS
        flags = ("carry" if first else "basic", *OF_ATTENTION, *(OF_CHOICE if s.ratio == 4 else ()))
        add(suite, id, comment, w, data, params_of(s, first), oracle, flags, need, numerics)
    return suite


def layers() -> Iterator[SuiteBuilder]:
    for make in (window_input, compressor, chosen_rows, window_attention, grouped_output, compressed_attn_layer):
        yield make()
