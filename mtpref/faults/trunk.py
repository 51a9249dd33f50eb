"""Family G, the layers of trunk and head alike. These change the text."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.faults.fault import Fault, Signature, all_ops
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]


def _eps_times_n(ops: Ops) -> OpEntries:
    return {"l2_norm": lambda x, eps: ops.l2_norm(x, eps * x.shape[-1])}


L2_EPS = Fault(
    id="G12-l2-eps",
    title="The trunk's L2 norm has epsilon times n",
    mechanism="The norm of queries and keys in a DeltaNet layer is built from an RMS norm, whose epsilon is inside a "
    "mean: it counts n times.",
    bug_type="WRONG_RULE",
    replaces=("ops.l2_norm",),
    predicted=Signature("q_conv_predelta", "the same, unless keys are tiny"),
    needs=(),
    where=("delta",),
    apply_recipe=all_ops(_eps_times_n),
)


def _grouped(ops: Ops) -> OpEntries:
    def delta_rule(q: F32, k: F32, v: F32, *rest: Any) -> Any:
        n = v.shape[1] // q.shape[1]
        return ops.delta_rule(np.repeat(q, n, axis=1), np.repeat(k, n, axis=1), v, *rest)

    return {"delta_rule": delta_rule}


V_HEADS_GROUPED = Fault(
    id="G13-v-heads-grouped",
    title="The trunk's value heads take the key head of their group",
    mechanism="In a DeltaNet layer value head h uses key head h div (H_v / H_k), the checkpoint's order; the file's "
    "is h mod H_k.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.delta_rule",),
    predicted=Signature("attn_output", "of another text: the trunk is broken", text=False),
    needs=(),
    where=("tiled heads",),
    apply_recipe=all_ops(_grouped),
)


def _tiled(x: F32, n_head: int) -> F32:
    return np.tile(x, (1, n_head // x.shape[1], 1))


V_HEADS_TILED = Fault(
    id="G13b-v-heads-tiled",
    title="The trunk's value heads take key heads in turn",
    mechanism="In a DeltaNet layer with grouped key heads value head h uses key head h mod H_k; here it is "
    "h div (H_v / H_k).",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.repeat_heads",),
    predicted=Signature("attn_output", "of another text: the trunk is broken", text=False, distribution=False),
    where=("grouped heads",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"repeat_heads": _tiled}),
)


def _exchanged(ops: Ops) -> OpEntries:
    return {"split_beta_alpha": lambda ba, n_k_head: ops.split_beta_alpha(ba, n_k_head)[::-1]}


BETA_ALPHA_SWAPPED = Fault(
    id="G16-beta-alpha-swapped",
    title="beta and alpha of a DeltaNet layer are swapped",
    mechanism="ssm_ba has for each key head its betas, then its alphas; they are taken for alphas, then betas.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.split_beta_alpha",),
    predicted=Signature("gate", "of another text: the trunk is broken", text=False, distribution=False),
    where=("one beta and alpha",),
    needs=(),
    apply_recipe=all_ops(_exchanged),
)


def _halves(ba: F32, n_k_head: int) -> tuple[F32, F32]:
    half = ba.shape[1] // 2
    return ba[:, :half], ba[:, half:]


BETA_ALPHA_HALVES = Fault(
    id="G16b-beta-alpha-halves",
    title="beta and alpha of a DeltaNet layer are read as two halves",
    mechanism="ssm_ba is split in the middle: all betas, then all alphas; its rows go key head by key head.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.split_beta_alpha",),
    predicted=Signature("gate", "of another text: the trunk is broken", text=False, distribution=False),
    where=("one beta and alpha",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"split_beta_alpha": _halves}),
)


def _unbiased(ops: Ops) -> OpEntries:
    def layer(table: Ops, w: Any, *rest: Any) -> F32:
        own = {name: x for name, x in w.items() if name not in ("attn_q.bias", "attn_k.bias")}
        return ops.plain_attn_layer(table, own, *rest)

    return {"plain_attn_layer": layer}


QK_BIASES_FORGOTTEN = Fault(
    id="G17-qk-biases-forgotten",
    title="The biases of queries and keys are not added",
    mechanism="attn_q.bias and attn_k.bias are not read: they are optional, and a loader that does not know them is "
    "silent.",
    bug_type="MISSING_STEP",
    replaces=("ops.plain_attn_layer",),
    predicted=Signature("Qcur_normed", "of another text: the trunk is broken", text=False, distribution=False),
    where=("attention biases",),
    needs=(),
    apply_recipe=all_ops(_unbiased),
)


def _norm_after_rope(ops: Ops) -> OpEntries:
    def later(entry: str) -> Any:
        def layer(table: Ops, w: Any, cfg: Any, *rest: Any) -> F32:
            weights = iter([w["attn_q_norm.weight"], w["attn_k_norm.weight"]])

            def rope(x: F32, cos: F32, sin: F32) -> F32:
                return table.rms_norm(table.rope(x, cos, sin), next(weights), cfg.rms_eps)

            own = replace(table, rms_norm=lambda x, weight, eps: x, rope=rope)
            return np.asarray(ops.composed[entry](own, w, cfg, *rest))  # type: ignore[literal-required]

        return layer

    return {"attn_layer": later("attn_layer"), "plain_attn_layer": later("plain_attn_layer")}


QK_NORM_AFTER_ROPE = Fault(
    id="G18-qk-norm-after-rope",
    title="Queries and keys are normed after RoPE",
    mechanism="RoPE turns rows that have no norm yet. The length is the same either way; the norm's gain meets turned "
    "dimensions.",
    bug_type="WRONG_RULE",
    replaces=("ops.attn_layer", "ops.plain_attn_layer"),
    predicted=Signature("Qcur_normed", "of another text: the trunk is broken", text=False, distribution=False),
    where=("qk norms",),
    needs=(),
    apply_recipe=all_ops(_norm_after_rope),
)


def _half_width(ops: Ops) -> OpEntries:
    def rope_table(pos: NDArray, frequencies: NDArray, has_position: NDArray, *magnitude: float) -> Any:
        wide = np.ascontiguousarray(frequencies[::2])  # those of a base to the powers of half the width
        return ops.rope_table(pos, wide, np.ascontiguousarray(has_position[: len(wide)]), *magnitude)

    return {"rope_table": rope_table}


ROPE_HALF_WIDTH = Fault(
    id="G19-rope-half-width",
    title="RoPE turns half as many dimensions",
    mechanism="The partial rotary factor is applied twice, or rope.dimension_count is taken for a number of pairs of "
    "half its size.",
    bug_type="WRONG_RULE",
    replaces=("ops.rope_table",),
    predicted=Signature("Qcur", "of another text: the trunk is broken", text=False, distribution=False),
    where=("attention",),
    needs=(),
    apply_recipe=all_ops(_half_width),
)
