"""Family A: attention through a latent row. What a converter does to its tensors, RoPE, the scale of scores, norms;
trunk and head have them from the same code, so most of these change the text."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.recipe import Recipe
from mtpref.engine.weights import take_rows
from mtpref.faults.fault import Fault, all_ops, broken
from mtpref.faults.matrices import stack_of, values_of
from mtpref.faults.places import sharpness
from mtpref.spec.config import LatentConfig
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]
# Which entries a mistake is in: those of the absorbed form, or those of older files too.
ABSORBED = ("ops.latent_attn_layer", "ops.indexed_attn_layer")
EVERY_FORM = ("ops.latent_attn_layer", "ops.expanded_attn_layer", "ops.indexed_attn_layer")
BOTH = ("latent_attn_layer", "expanded_attn_layer")
Change = Callable[[Any, LatentConfig], tuple[Any, LatentConfig]]


def _layers(change: Change, *names: str) -> Callable[[Recipe], Recipe]:
    """Layers with other weights, or another configuration; those over chosen cells (S66) as those over all (S57)."""
    names += ("indexed_attn_layer",) if "latent_attn_layer" in names else ()

    def entries(ops: Ops) -> OpEntries:
        def later(name: str) -> Any:
            composed: Any = ops.composed[name]  # type: ignore[literal-required]
            return lambda table, w, cfg, *rest: composed(table, *change(w, cfg), *rest)

        return {name: later(name) for name in names}  # type: ignore[return-value]

    return all_ops(entries)


# ------------------------------------------------------------------------------------------------------- conversion


def _converted(convert: Callable[[Any, LatentConfig], dict[str, Any]]) -> Change:
    """Other weights, made once for each layer's own."""
    made: dict[int, tuple[Any, dict[str, Any]]] = {}

    def change(w: Any, cfg: LatentConfig) -> tuple[Any, LatentConfig]:
        own = w["attn_output.weight"]
        if id(own) not in made:
            made[id(own)] = (own, convert(w, cfg))  # with `own`, so that no other weight gets its id
        return {**w, **made[id(own)][1]}, cfg

    return change


def _halves(w: Any, cfg: LatentConfig) -> dict[str, Any]:
    """Keys from the first rows of kv_b_proj, values from the last: heads meet rows of others."""
    n_head, n_nope = cfg.n_head, cfg.n_key - cfg.n_rot
    if "attn_kv_b.weight" in w:
        first = np.arange(n_head * n_nope).reshape(n_head, -1)
        last = np.arange(n_head * n_nope, n_head * (n_nope + cfg.n_value)).reshape(n_head, -1)
        return {"attn_kv_b.weight": take_rows(w["attn_kv_b.weight"], np.concatenate([first, last], axis=1).reshape(-1))}
    k, v = w["attn_k_b.weight"], w["attn_v_b.weight"]
    rows = np.concatenate([values_of(k).transpose(0, 2, 1), values_of(v)], axis=1).reshape(-1, cfg.n_latent)
    keys = rows[: n_head * n_nope].reshape(n_head, n_nope, -1).transpose(0, 2, 1)
    values = rows[n_head * n_nope :].reshape(n_head, cfg.n_value, -1)
    return {"attn_k_b.weight": stack_of(k, keys), "attn_v_b.weight": stack_of(v, values)}


KV_B_HALVES = Fault(
    id="A1-kv-b-halves",
    title="kv_b_proj is split in the middle and not head by head",
    mechanism="The rows of kv_b_proj are [k_nope | v] for each head in turn; the first n_head * n_nope are taken for "
    "all keys, the rest for all values.",
    bug_type="WRONG_LAYOUT",
    replaces=EVERY_FORM,
    predicted=broken("q_nope_absorbed_perm"),
    where=("latent row",),
    needs=(),
    apply_recipe=_layers(_converted(_halves), *BOTH),
)


def _not_transposed(w: Any, cfg: LatentConfig) -> dict[str, Any]:
    k = w["attn_k_b.weight"]
    return {"attn_k_b.weight": stack_of(k, values_of(k).transpose(0, 2, 1).reshape(len(k), k.n_out, k.n_in))}


K_B_NOT_TRANSPOSED = Fault(
    id="A1b-k-b-not-transposed",
    title="The key part of kv_b_proj is not transposed",
    mechanism="attn_k_b brings a query to the latent, so each head's matrix is kv_b_proj's transposed; its values are "
    "written as they were, under the new shape.",
    bug_type="WRONG_LAYOUT",
    replaces=ABSORBED,
    predicted=broken("q_nope_absorbed_perm"),
    where=("absorbed",),
    needs=(),
    apply_recipe=_layers(_converted(_not_transposed), "latent_attn_layer"),
)

# ------------------------------------------------------------------------------------------------------------- RoPE


def _front(ops: Ops) -> OpEntries:
    def latent_input(table: Ops, w: Any, cfg: LatentConfig, x: F32, cos_sin: Any, tap: Any) -> Any:
        queries = w["attn_q_b.weight" if "attn_q_a.weight" in w else "attn_q.weight"]

        def moved(q: F32, by: int) -> F32:
            return np.roll(q.reshape(len(q), cfg.n_head, cfg.n_key), by, axis=2).reshape(len(q), -1)

        def mul_mat(m: Any, rows: F32) -> F32:
            y = table.mul_mat(m, rows)
            return moved(y, -cfg.n_rot) if m is queries else y

        def seen(name: str, array: F32) -> None:
            tap(name, moved(array, cfg.n_rot) if name == "q" else array)

        return ops.latent_input(replace(table, mul_mat=mul_mat), w, cfg, x, cos_sin, seen)

    return {"latent_input": latent_input}


ROPE_WRONG_END = Fault(
    id="A2-rope-wrong-end",
    title="RoPE turns the front of each query",
    mechanism="A head of q is [nope | rope]; it is read as [rope | nope], so the turned part of the key meets "
    "dimensions that were never trained for it.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.latent_input",),
    predicted=broken("q_pe"),
    where=("latent row",),
    needs=(),
    apply_recipe=all_ops(_front),
)

ROPE_HALVES = Fault(
    id="A2b-rope-halves",
    title="RoPE pairs halves instead of neighbours",
    mechanism="Pairs are (i, i + n_rot / 2), as in most models, instead of (2 i, 2 i + 1), and the weights were not "
    "permuted for it.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.rope_interleaved",),
    predicted=broken("k_pe"),
    seen=(
        ("hip-attention #56", "https://github.com/DeepAuto-AI/hip-attention/pull/56"),
        ("pypto-lib #244", "https://github.com/hw-native-sys/pypto-lib/pull/244"),
    ),
    where=("latent row",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"rope_interleaved": ops.rope}),
)


def _inflated(ops: Ops) -> OpEntries:
    def latent_input(table: Ops, w: Any, cfg: LatentConfig, x: F32, cos_sin: Any, tap: Any) -> Any:
        by = np.float32(sharpness(cfg))
        return ops.latent_input(table, w, cfg, x, tuple(part * by for part in cos_sin), tap)

    return {"latent_input": latent_input}


ROPE_INFLATED = Fault(
    id="A2c-rope-inflated",
    title="YaRN's magnitude is in the turned parts too",
    mechanism="Cosine and sine are multiplied by 1 + 0.1 mscale log(factor). mscale and mscale_all_dim are equal, so "
    "theirs is 1, and the scores alone have that factor.",
    bug_type="DOUBLE_STEP",
    replaces=("ops.latent_input",),
    predicted=broken("k_pe"),
    seen=(("imp #880", "https://github.com/kekzl/imp/pull/880"),),
    effect="turned parts 1.26 times as long; perplexity that rises with the context",
    where=("log multiplier",),
    needs=(),
    apply_recipe=all_ops(_inflated),
)

# -------------------------------------------------------------------------------------------------- scale of scores


def _scaled(by: Callable[[LatentConfig], float]) -> Change:
    """Scores multiplied by a factor more."""
    return lambda w, cfg: (w, replace(cfg, scale=float(np.float32(cfg.scale * by(cfg)))))


SHARPNESS_FORGOTTEN = Fault(
    id="A3-sharpness-forgotten",
    title="Scores lack YaRN's factor",
    mechanism="The scale is 1 / sqrt(key width): mscale^2, with mscale = 1 + 0.1 mscale_all_dim log(factor), is left "
    "out. Position 0 is right, since one score alone has no scale.",
    bug_type="MISSING_STEP",
    replaces=EVERY_FORM,
    predicted=broken("kqv_out"),
    seen=(
        ("mobius #548", "https://github.com/onnxruntime/mobius/pull/548"),
        ("transformers #47435", "https://github.com/huggingface/transformers/pull/47435"),
        ("tpu-inference #521", "https://github.com/vllm-project/tpu-inference/pull/521"),
    ),
    effect="scores 1.59 (V2-Lite) or 1.87 (V3) times too small",
    where=("sharpened scores",),
    needs=(),
    apply_recipe=_layers(_scaled(lambda cfg: sharpness(cfg) ** -2), *BOTH),
)

SHARPNESS_ONCE = Fault(
    id="A3b-sharpness-once",
    title="Scores have YaRN's factor once",
    mechanism="mscale counts for the query and for the key, so the scale has its square.",
    bug_type="WRONG_RULE",
    replaces=EVERY_FORM,
    predicted=broken("kqv_out"),
    where=("sharpened scores",),
    needs=(),
    apply_recipe=_layers(_scaled(lambda cfg: 1 / sharpness(cfg)), *BOTH),
)

SCALE_OF_ROW = Fault(
    id="A3c-scale-of-row",
    title="Scores are divided by the root of the cached row's width",
    mechanism="1 / sqrt(kv_lora_rank + rope dimensions): absorbing a matrix changes where a score is computed and not "
    "its size, so the width is that of a key before it.",
    bug_type="WRONG_RULE",
    replaces=ABSORBED,
    predicted=broken("kqv_out"),
    seen=(("ollama #13893", "https://github.com/ollama/ollama/pull/13893"),),
    effect="loops and bad tool calls (576 in place of 256)",
    where=("absorbed", "row of another width"),
    needs=(),
    apply_recipe=_layers(_scaled(lambda cfg: sqrt(cfg.n_key / cfg.n_row)), "latent_attn_layer"),
)

# ------------------------------------------------------------------------------------------------------------ norms


def _key_normed(ops: Ops) -> OpEntries:
    def latent_input(table: Ops, w: Any, cfg: LatentConfig, *rest: Any) -> Any:
        def rope(x: F32, cos: F32, sin: F32) -> F32:
            is_key, ones = next(first), np.ones(cfg.n_rot, np.float32)
            return table.rope_interleaved(table.rms_norm(x, ones, cfg.rms_eps) if is_key else x, cos, sin)

        first = iter((True, False))
        return ops.latent_input(replace(table, rope_interleaved=rope), w, cfg, *rest)

    return {"latent_input": latent_input}


KEY_NORMED = Fault(
    id="A4-k-pe-normed",
    title="The turned part of the key is normed",
    mechanism="The norm goes over the latent alone; the last n_rot values of attn_kv_a_mqa are turned as they are.",
    bug_type="DOUBLE_STEP",
    replaces=("ops.latent_input",),
    predicted=broken("k_pe"),
    where=("latent row",),
    needs=(),
    apply_recipe=all_ops(_key_normed),
)


def _latent_unnormed(ops: Ops) -> OpEntries:
    def latent_input(table: Ops, w: Any, *rest: Any) -> Any:
        def rms_norm(x: F32, weight: F32, eps: float) -> F32:
            return x if weight is w["attn_kv_a_norm.weight"] else table.rms_norm(x, weight, eps)

        return ops.latent_input(replace(table, rms_norm=rms_norm), w, *rest)

    return {"latent_input": latent_input}


LATENT_UNNORMED = Fault(
    id="A4b-latent-unnormed",
    title="The latent is not normed",
    mechanism="attn_kv_a_norm is not applied: keys and values have another size, and no gain.",
    bug_type="MISSING_STEP",
    replaces=("ops.latent_input",),
    predicted=broken("kv_cmpr"),
    where=("latent row",),
    needs=(),
    apply_recipe=all_ops(_latent_unnormed),
)
