"""Family G: the graph of the MTP block (its own table of operations). Those of the trunk's layers: trunk.py."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.model import Model
from mtpref.faults.fault import Fault, Signature, all_ops, contract, head_ops, steps
from mtpref.spec.arith import exp64, log64
from mtpref.spec.contract import MtpContract
from mtpref.spec.ops import OpEntries, Ops
from mtpref.spec.rope_scaling import RopeScaling
from mtpref.spec.steps import Hidden

F32 = NDArray[np.float32]


def _swapped(ops: Ops) -> OpEntries:
    return {"mtp_concat": lambda first, second: ops.mtp_concat(second, first)}


CONCAT_SWAPPED = Fault(
    id="G1-concat-swapped",
    title="The two halves of eh_proj's input are swapped",
    mechanism="eh_proj is given [hidden ; embedding]; its columns were trained for [embedding ; hidden].",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.mtp_concat",),
    predicted=Signature("mtp_concat", "near 0, with varied ids"),
    seen=(("mlx-lm #1469", "https://github.com/ml-explore/mlx-lm/pull/1469"),),
    effect="about 0 %",
    apply_recipe=all_ops(_swapped),
)

PRE_NORM_HIDDEN = Fault(
    id="G2-pre-norm-hidden",
    title="The head is fed the trunk's row before the final norm",
    mechanism="hnorm hides the missing norm's magnitude, so nothing looks broken; what is missing is its gain per "
    "channel.",
    bug_type="MISSING_STEP",
    replaces=("contract.hidden",),
    predicted=Signature("mtp_hnorm", "3 to 6 points lower on large models, a third on small ones"),
    seen=(
        ("LightLLM #1402", "https://github.com/ModelTC/LightLLM/pull/1402"),
        ("llama.cpp #24025", "https://github.com/ggml-org/llama.cpp/pull/24025"),
        ("imp #1800", "https://github.com/kekzl/imp/pull/1800"),
    ),
    effect="AL 1.80 instead of 2.74 (0.8B, k = 3); 75.2 instead of 80.3 % (27B, k = 1)",
    where=("normed rows",),
    apply_recipe=contract(hidden="pre"),
)


def _normed_again(model: Model) -> Model:
    weight, eps, norm = model.weights.output_norm, model.config.rms_eps, model.recipe.ops.rms_norm
    before = model.recipe.steps.target_hidden

    def target_hidden(rows: Hidden, asked: MtpContract) -> F32:
        return np.asarray(norm(before(rows, asked), weight, eps))

    return replace(model, recipe=model.recipe.with_steps(target_hidden=target_hidden))


HIDDEN_NORMED_TWICE = Fault(
    id="G2b-hidden-normed-twice",
    title="The trunk's final norm is applied to a row that has it",
    mechanism="A helper assumes a row from before the norm. The second norm leaves the length and squares the gain.",
    bug_type="DOUBLE_STEP",
    replaces=("steps.target_hidden",),
    predicted=Signature("mtp_hnorm", "lower, less than without the norm"),
    seen=(("omlx #2277", "https://github.com/jundot/omlx/pull/2277"),),
    where=("normed rows",),
    apply_model=_normed_again,
)

POST_NORM_HIDDEN = Fault(
    id="G2c-post-norm-hidden",
    title="The head is fed the trunk's row after the final norm",
    mechanism="Code made for heads that take normed rows is given one that takes the residual row itself: hnorm levels "
    "the length, and the final norm's gain per channel is one too many.",
    bug_type="DOUBLE_STEP",
    replaces=("contract.hidden",),
    predicted=Signature("mtp_hnorm", "lower"),
    where=("raw rows",),
    apply_recipe=contract(hidden="post"),
)


def _no_attention(ops: Ops) -> OpEntries:
    def of_cells(q: F32, k: NDArray, v: NDArray, *rest: Any) -> F32:
        return np.zeros((len(q), v.shape[2]), np.float32)

    def nothing(q: F32, *cells: Any) -> F32:
        return np.zeros_like(q)

    return {"attention": nothing, "cell_attention": of_cells, "unscaled_attention": nothing}


NO_ATTENTION = Fault(
    id="G3-no-attention",
    title="The head has no attention, only its feed-forward network",
    mechanism="The block is reduced to eh_proj and FFN: no token but the last and its hidden row counts.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.attention", "mtp_ops.cell_attention", "mtp_ops.unscaled_attention"),
    predicted=Signature("mtp_attn_pregate", "lower", drift="none: there is no context to lose"),
    seen=(("llama.cpp #20700", "https://github.com/ggml-org/llama.cpp/pull/20700"),),
    apply_recipe=head_ops(_no_attention),
)

GATE_SILU = Fault(
    id="G4-gate-silu",
    title="The head's attention gate is silu",
    mechanism="The attention output is multiplied by silu(gate) instead of sigmoid(gate): signs flip.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.attn_gate",),
    predicted=Signature("mtp_attn_gated", "low on prose, high where the text is deterministic"),
    seen=(("imp #804", "https://github.com/kekzl/imp/pull/804"),),
    effect="prose 10 % instead of 78 to 94 %",
    where=("head gate",),
    apply_recipe=head_ops(lambda ops: {"attn_gate": lambda o, gate: o * spec.silu(gate)}),
)


def _heads_unnormed(ops: Ops) -> OpEntries:
    return {"rms_norm": lambda x, weight, eps: x if x.ndim == 3 else ops.rms_norm(x, weight, eps)}


NO_QK_NORM = Fault(
    id="G5-no-qk-norm",
    title="The head's queries and keys are not normed",
    mechanism="attn_q_norm and attn_k_norm of the MTP layer are loaded and not applied.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.rms_norm",),
    predicted=Signature("mtp_Qcur_normed", "lower", drift="grows with the context"),
    seen=(("imp #175", "https://github.com/kekzl/imp/pull/175"),),
    effect="20 to 37 %, with other faults beside it",
    where=("head qk norms",),
    apply_recipe=head_ops(_heads_unnormed),
)


def _standing(x: F32, cos: F32, sin: F32) -> F32:
    return x


NO_ROPE = Fault(
    id="G5b-no-rope",
    title="The head's queries and keys are not rotated",
    mechanism="The MTP layer's attention has no positions.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.rope", "mtp_ops.rope_interleaved"),
    predicted=Signature("mtp_Qcur", "lower", drift="grows with the context"),
    seen=(("imp #174", "https://github.com/kekzl/imp/pull/174"),),
    apply_recipe=head_ops(lambda ops: {"rope": _standing, "rope_interleaved": _standing}),
)


ROPE_INTERLEAVED = Fault(
    id="G6-rope-interleaved",
    title="RoPE in the head turns neighbouring dimensions",
    mechanism="Pairs are (2 i, 2 i + 1) instead of (i, i + n_rot / 2).",
    bug_type="WRONG_LAYOUT",
    replaces=("mtp_ops.rope",),
    predicted=Signature("mtp_Qcur", "lower", drift="grows with the distance"),
    seen=(("lattice #754", "https://github.com/ohdearquant/lattice/issues/754"),),
    where=("head rotary",),
    apply_recipe=head_ops(lambda ops: {"rope": ops.rope_interleaved}),
)


def _all_dims(ops: Ops) -> OpEntries:
    def later(pos: NDArray, frequencies: NDArray, has_position: NDArray, magnitude: float = 1.0) -> tuple[Any, Any]:
        return pos, (frequencies, has_position, magnitude)  # the table waits until the size of a head is known

    def rope(x: F32, pos: NDArray, table: Any) -> F32:
        frequencies, has_position, magnitude = table
        n_pairs, n_rot = x.shape[-1] // 2, 2 * len(frequencies)
        second = np.asarray(frequencies[min(1, n_rot // 2 - 1)])  # of the second pair: freq_base ** (-2 / n_rot)
        wide = exp64(np.arange(n_pairs) * (n_rot / (2 * n_pairs)) * log64(second))
        return np.asarray(ops.rope(x, *ops.rope_table(pos, wide, np.resize(has_position, n_pairs), magnitude)))

    return {"rope_table": later, "rope": rope}


ROPE_ALL_DIMS = Fault(
    id="G6b-rope-all-dims",
    title="RoPE in the head turns every dimension",
    mechanism="rope.dimension_count is ignored: the whole head is rotated, with frequencies of its whole size.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.rope_table", "mtp_ops.rope"),
    predicted=Signature("mtp_Qcur", "lower", drift="grows with the distance"),
    seen=(("lattice #754", "https://github.com/ohdearquant/lattice/issues/754"),),
    where=("partial rotary",),
    apply_recipe=head_ops(_all_dims),
)


def _unscaled(model: Model) -> Model:
    for i, head in enumerate(model.heads):
        if hasattr(head.layer.cfg, "rope_scaling"):
            cfg = replace(head.layer.cfg, rope_scaling=RopeScaling())
            model = model.with_head(i, layer=replace(head.layer, cfg=cfg))
    return model


ROPE_UNSCALED = Fault(
    id="G7-rope-unscaled",
    title="The head ignores RoPE scaling",
    mechanism="Linear or YaRN scaling is set up for the trunk; the head turns at the unscaled frequencies.",
    bug_type="MISSING_STEP",
    replaces=("heads.layer",),
    predicted=Signature("mtp_Qcur", "normal in short contexts", drift="falls with the context"),
    seen=(
        ("imp #897", "https://github.com/kekzl/imp/issues/897"),
        ("xinfer #450", "https://github.com/guoqingbao/xinfer/issues/450"),
    ),
    needs=("mtp", "scaled rope"),
    apply_model=_unscaled,
)


def _first_zeroed(embd: F32, first_pos: int, asked: MtpContract) -> F32:
    if first_pos == asked.first_pos:
        embd[0] = 0.0
    return embd


FIRST_EMBEDDING_ZERO = Fault(
    id="G8-first-embedding-zero",
    title="The embedding of the head's first cell is zero",
    mechanism="A mask meant for position 0 of unshifted ids is applied to shifted ones, or to a cell that has a token.",
    bug_type="WRONG_RULE",
    replaces=("steps.mtp_embedding",),
    predicted=Signature("mtp_tok_embd", "hardly lower; one cell is wrong", drift="shrinks with the context"),
    seen=(("vLLM #33299", "https://github.com/vllm-project/vllm/issues/33299"),),
    where=("own cells",),
    apply_recipe=steps(lambda table: {"mtp_embedding": _first_zeroed}),
)


def _halves(q_full: F32, n_head: int) -> tuple[F32, F32]:
    blocks = q_full.reshape(q_full.shape[0], 2, n_head, -1)
    return blocks[:, 0], blocks[:, 1]


Q_GATE_HALVES = Fault(
    id="G9-q-gate-halves",
    title="Query and gate of the head are read as two halves",
    mechanism="attn_q holds [query | gate] for each head in turn; it is read as all queries, then all gates.",
    bug_type="WRONG_LAYOUT",
    replaces=("mtp_ops.split_q_gate",),
    predicted=Signature("mtp_Qcur_normed", "lower, as with a wrong gate or worse"),
    seen=(("shainet #199", "https://github.com/NeuraLegion/shainet/pull/199"),),
    where=("head gate",),
    apply_recipe=head_ops(lambda ops: {"split_q_gate": _halves}),
)


def _half_zero(ops: Ops) -> OpEntries:
    def attention(q: F32, *cache: Any) -> F32:
        out = np.array(ops.attention(q, *cache))
        out[:, out.shape[1] // 2 :] = 0.0
        return out

    def of_cells(q: F32, *cache: Any) -> F32:
        out = np.array(ops.cell_attention(q, *cache))
        out[len(out) // 2 :] = 0.0
        return out

    return {"attention": attention, "cell_attention": of_cells}


HEADS_ZEROED = Fault(
    id="G10-heads-zeroed",
    title="Half of the head's attention heads are zero",
    mechanism="The number of context-parallel ranks does not reach the draft: partial attention is never merged.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.attention", "mtp_ops.cell_attention"),
    predicted=Signature("mtp_attn_pregate", "lower; no option of the run changes it"),
    seen=(("local-inference-lab/vllm #72", "https://github.com/local-inference-lab/vllm/pull/72"),),
    apply_recipe=head_ops(_half_zero),
)

GATE_SKIPPED = Fault(
    id="G14-gate-skipped",
    title="The head's attention gate is not applied",
    mechanism="The attention output goes into attn_output as it is.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.attn_gate",),
    predicted=Signature("mtp_attn_gated", "lower"),
    where=("head gate",),
    apply_recipe=head_ops(lambda ops: {"attn_gate": lambda o, gate: o}),
)


def _without_enorm(ops: Ops) -> OpEntries:
    def mtp_input(table: Ops, w: Any, *rest: Any) -> F32:
        norm = table.rms_norm
        unnormed = replace(table, rms_norm=lambda x, weight, eps: x if weight is w.enorm else norm(x, weight, eps))
        return np.asarray(ops.composed["mtp_input"](unnormed, w, *rest))

    return {"mtp_input": mtp_input}


EMBEDDING_UNNORMED = Fault(
    id="G15-embedding-unnormed",
    title="The embedding goes into eh_proj without enorm",
    mechanism="Only the hidden row is normed; the embedding has another scale, and no gain.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.mtp_input",),
    predicted=Signature("mtp_enorm", "low"),
    where=("input norms",),
    apply_recipe=head_ops(_without_enorm),
)
