"""Look-alikes: legal differences between engines. They move numbers; none is a fault, and none may be blamed."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.recipe import Recipe, make_recipe
from mtpref.faults.fault import Fault, Signature, all_ops, head_ops, steps
from mtpref.spec import P_ONE, Matrix, hadamard
from mtpref.spec.moe import Routing
from mtpref.spec.ops import OpEntries, Ops
from mtpref.spec.policy import FixedPolicy, PolicyState
from mtpref.spec.steps import StepEntries, Steps

F32 = NDArray[np.float32]
WIDE_BLOCK = 256


def _by_halves(ops: Ops) -> OpEntries:
    """Products of batches of several tokens as the sum of two: blocks 0, 2, 4, .. and blocks 1, 3, 5, .."""

    def mul_mat(w: Matrix, x: F32) -> F32:
        block = WIDE_BLOCK if w.n_in % (2 * WIDE_BLOCK) == 0 else 32
        if len(x) == 1 or w.n_in % (2 * block):
            return np.asarray(ops.mul_mat(w, x))
        is_odd = np.arange(w.n_in) // block % 2 == 1
        zero = np.float32(0)
        return np.asarray(ops.mul_mat(w, np.where(is_odd, zero, x)) + ops.mul_mat(w, np.where(is_odd, x, zero)))

    return {"mul_mat": mul_mat}


BATCH_WIDTH_NOISE = Fault(
    id="L1-batch-width-noise",
    title="Batches of several tokens are summed in another order",
    mechanism="Kernels for several rows add up differently from those for one: the last bits depend on the batch.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.mul_mat",),
    predicted=Signature("linear_attn_qkv_mixed", "the same up to near ties"),
    seen=(("llama.cpp #23335", "https://github.com/ggml-org/llama.cpp/issues/23335"),),
    effect="greedy text differs between draft lengths with Q4_K_M, not with Q8_0",
    needs=(),
    apply_recipe=all_ops(_by_halves),
)


def _at_least_half(table: Steps) -> StepEntries:
    def takes(cfg: FixedPolicy, p: int, n_drawn: int | None = None) -> bool:
        return table.takes(replace(cfg, p_min=max(cfg.p_min, P_ONE // 2)), p, n_drawn)

    return {"takes": takes}


P_MIN = Fault(
    id="L4-p-min",
    title="p_min is at least 0.5",
    mechanism="Only drafts that the head is sure of are proposed: what is counted as acceptance goes up.",
    bug_type="LOOK_ALIKE",
    replaces=("steps.takes",),
    predicted=Signature("", "higher, from fewer drafts"),
    seen=(("llama.cpp #27210", "https://github.com/ggml-org/llama.cpp/pull/27210"),),
    effect="74 % at p_min 0, 95 % at 0.8",
    apply_recipe=steps(_at_least_half),
)

KV_F16 = Fault(
    id="L9-kv-f16",
    title="The KV caches are F16",
    mechanism="Keys and values are rounded to 16 bits, in trunk and head. The default of `ggml` numerics.",
    bug_type="LOOK_ALIKE",
    replaces=("kv_type", "kv_type_draft"),
    predicted=Signature("attn_pregate", "the same up to near ties"),
    needs=("wide numerics",),
    apply_model=lambda model: replace(model, kv_type="F16", kv_type_draft="F16"),
)


def _trimmed(ops: Ops) -> OpEntries:
    def head(table: Ops, output: Matrix, h: F32, n_rows: int | None) -> F32:
        half = (output.n_out + 1) // 2
        return np.asarray(ops.composed["head"](table, output, h, half if n_rows is None else min(n_rows, half)))

    return {"head": head}


TRIMMED_VOCABULARY = Fault(
    id="L10-trimmed-vocabulary",
    title="The head can name only the first half of its rows",
    mechanism="A trimmed head (FastMTP) costs the drafts that it cannot name.",
    bug_type="LOOK_ALIKE",
    replaces=("mtp_ops.head",),
    predicted=Signature("mtp_result_output", "lower, most where rare ids are due"),
    seen=(("llama.cpp #25187", "https://github.com/ggml-org/llama.cpp/issues/25187"),),
    effect="60.8 instead of 68.1 % with 32k of 248k rows",
    apply_recipe=head_ops(_trimmed),
)


def _other_numerics(recipe: Recipe) -> Recipe:
    other = "ggml" if recipe.numerics == "exact" else "exact"
    return recipe.with_ops(mul_mat=make_recipe(other).ops.mul_mat)


ACTIVATION_QUANTISATION = Fault(
    id="L11-activation-quantisation",
    title="Products quantise activations, or do not",
    mechanism="Engines differ in whether activations meet the weights as float32 or quantised by block. Here: the rule "
    "of the numerics that are not in use.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.mul_mat",),
    predicted=Signature("linear_attn_qkv_mixed", "the same up to near ties"),
    needs=(),
    apply_recipe=_other_numerics,
)


def _longer(table: Steps) -> StepEntries:
    def draft_limit(cfg: FixedPolicy, state: PolicyState, n_room: int) -> int:
        return table.draft_limit(replace(cfg, n_max=cfg.n_max + 2), state, n_room)

    return {"draft_limit": draft_limit}


LONGER_DRAFTS = Fault(
    id="L12-longer-drafts",
    title="Drafts are two tokens longer",
    mechanism="Positions after the last one are accepted less often, and the first one less often too: longer runs "
    "swallow the easy starts.",
    bug_type="LOOK_ALIKE",
    replaces=("steps.draft_limit",),
    predicted=Signature("", "lower over all"),
    seen=(("vLLM #48892", "https://github.com/vllm-project/vllm/pull/48892"),),
    effect="a1 83.4 % at k = 1, 76.2 % at k = 8",
    apply_recipe=steps(_longer),
)


def _cooling(table: Steps) -> StepEntries:
    def after_round(cfg: FixedPolicy, state: PolicyState, n_drafted: int, n_accepted: int) -> PolicyState:
        return table.after_round(replace(cfg, cooldown=max(cfg.cooldown, 1)), state, n_drafted, n_accepted)

    return {"after_round": after_round}


COOLDOWN = Fault(
    id="L13-cooldown",
    title="A silent round follows each round without an acceptance",
    mechanism="A cooldown of one round, as in llama.cpp PR #20700: fewer drafts, at better places.",
    bug_type="LOOK_ALIKE",
    replaces=("steps.after_round",),
    predicted=Signature("", "about the same, from fewer drafts"),
    seen=(("llama.cpp #20700", "https://github.com/ggml-org/llama.cpp/pull/20700"),),
    apply_recipe=steps(_cooling),
)


def _softmax_of_chosen(ops: Ops) -> OpEntries:
    def route(table: Ops, w: Any, cfg: Any, x: F32, tap: Any) -> Any:
        """Weights as a softmax of the chosen experts' logits."""
        logits: list[F32] = []

        def tapped(name: str, array: NDArray) -> None:
            logits.extend([array] if name == "ffn_moe_logits" else [])
            tap(name, array)

        def weights(p: F32, ids: NDArray[np.int64], normalise: bool, scale: float) -> F32:
            own = table.expert_probs(np.take_along_axis(logits[0], ids, axis=1), cfg.gating)
            return table.expert_weights(own, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), False, scale)

        is_same = cfg.gating == "softmax" and cfg.normalise
        return ops.composed["route"](replace(table, expert_weights=weights) if is_same else table, w, cfg, x, tapped)

    return {"route": route}


SOFTMAX_AFTER_SELECTION = Fault(
    id="L14-softmax-after-selection",
    title="Weights are a softmax of the chosen experts' logits",
    mechanism="Where weights are renormalised, a softmax over the chosen experts' logits is the same number: "
    "exp(l_i) / sum of exp(l_j) either way.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.route",),
    predicted=Signature("ffn_moe_weights", "the same up to near ties"),
    where=("softmax router", "norm"),
    needs=(),
    apply_recipe=all_ops(_softmax_of_chosen),
)


def _by_id(ops: Ops) -> OpEntries:
    def experts(table: Ops, w: Any, x: F32, routing: Routing, weights: F32, tap: Any) -> F32:
        order = np.argsort(routing.ids, axis=1, kind="stable")
        by_id = routing._replace(ids=np.take_along_axis(routing.ids, order, axis=1))
        return np.asarray(ops.experts(table, w, x, by_id, np.take_along_axis(weights, order, axis=1), tap))

    return {"experts": experts}


ADDED_BY_ID = Fault(
    id="L15-experts-added-by-id",
    title="Experts are added up in the order of ids",
    mechanism="transformers adds expert by expert into a token's row: the same sum in another order, other last bits.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.experts",),
    predicted=Signature("ffn_moe_gate", "the same up to near ties"),
    where=("several experts",),
    needs=(),
    apply_recipe=all_ops(_by_id),
)


def _unrotated(ops: Ops) -> OpEntries:
    def index_cells(table: Ops, w: Any, cfg: Any, *rest: Any) -> Any:
        rotation = hadamard(cfg.n_index_key)
        own = replace(table, mul_mat=lambda m, x: x if m is rotation else table.mul_mat(m, x))
        return ops.index_cells(own, w, cfg, *rest)

    return {"index_cells": index_cells}


INDEXER_UNROTATED = Fault(
    id="L16-indexer-unrotated",
    title="The indexer's queries and keys are not rotated",
    mechanism="The Hadamard matrix is orthonormal: products of rotated queries and keys are those of unrotated "
    "ones. It helps keys that are stored in few bits.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.index_cells",),
    predicted=Signature("indexer_q", "the same up to near ties"),
    where=("indexer of cells",),
    needs=(),
    apply_recipe=all_ops(_unrotated),
)


def _values_first(ops: Ops) -> OpEntries:
    def layer(table: Ops, w: Any, cfg: Any, *rest: Any) -> F32:
        scale = np.float32(cfg.value_scale or 1.0)

        def seen_attention(own: Ops, cfg: Any, *cells: Any) -> F32:
            return np.asarray(table.seen_attention(own, cfg, *cells) * scale)

        scaled = table.replaced(seen_attention=seen_attention, scaled_output=lambda y, scale: y)
        return ops.composed["windowed_attn_layer"](scaled, w, cfg, *rest)

    return {"windowed_attn_layer": layer}


VALUES_SCALED_FIRST = Fault(
    id="L17-values-scaled-first",
    title="Values are scaled before the output product",
    mechanism="attention.value_scale is one number: before attn_output or after it is the same but for rounding.",
    bug_type="LOOK_ALIKE",
    replaces=("ops.windowed_attn_layer",),
    predicted=Signature("kqv_out", "the same up to near ties"),
    where=("value scale",),
    needs=(),
    apply_recipe=all_ops(_values_first),
)
