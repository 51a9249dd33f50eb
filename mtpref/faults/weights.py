"""Family W: weights and conversion. Norm weights around 0 lack the +1; around 2 they have it twice."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.engine.weights import MtpWeights, Weights
from mtpref.faults.fault import Fault, Signature, head_ops, head_weights
from mtpref.faults.matrices import changed, random_like, requantised, with_neighbours_scales, without_second_half
from mtpref.spec import Matrix
from mtpref.spec.ops import Ops

F32 = NDArray[np.float32]
ZERO_CENTRED = ("attn_norm.weight", "post_attention_norm.weight", "attn_q_norm.weight", "attn_k_norm.weight")


def _shifted(layer: Mapping[str, Any], by: float) -> dict[str, Any]:
    """A layer whose norms that the checkpoint stores around 0 (ssm_norm is not one) are shifted."""
    return {name: w + np.float32(by) if name in ZERO_CENTRED else w for name, w in layer.items()}


def _all_norms(mtp: MtpWeights, by: float) -> dict[str, Any]:
    """Every norm of the head's own; a shared head norm is the trunk's."""
    is_own = mtp.origin["shared_head_norm"].endswith(".nextn.shared_head_norm.weight")
    head_norm = mtp.shared_head_norm + np.float32(by if is_own else 0)
    return _pre_fc(mtp, by) | {"block": _shifted(mtp.block, by), "shared_head_norm": head_norm}


def _pre_fc(mtp: MtpWeights, by: float) -> dict[str, Any]:
    return {"enorm": mtp.enorm + np.float32(by), "hnorm": mtp.hnorm + np.float32(by)}


NORM_SHIFT_MISSING = Fault(
    id="W1-norm-shift-missing",
    title="The head's norms lack the +1",
    mechanism="The checkpoint stores norm weights around 0. The converter adds 1 to the trunk's, but the head's "
    "tensors bypass that step.",
    bug_type="MISSING_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_hnorm", "a1 = 0: the sign of the embedding's half flips"),
    seen=(
        ("vllm-mlx #400", "https://github.com/waybarrios/vllm-mlx/pull/400"),
        ("MTPLX #511", "https://github.com/youssofal/MTPLX/pull/511"),
    ),
    effect="0 % instead of 76 to 88 %; the target's token ranks 247,513th of 248,320",
    apply_model=head_weights(lambda mtp: _all_norms(mtp, -1)),
)

NORM_SHIFT_DOUBLED = Fault(
    id="W2-norm-shift-doubled",
    title="The head's norms have the +1 twice",
    mechanism="A checkpoint that was converted already is converted again: every norm of the head is 1 too large.",
    bug_type="DOUBLE_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_hnorm", "low, seldom 0"),
    seen=(("mlx-vlm #1554", "https://github.com/Blaizzy/mlx-vlm/pull/1554"),),
    apply_model=head_weights(lambda mtp: _all_norms(mtp, 1)),
)


def _trunk_shifted(weights: Weights) -> Weights:
    layers = tuple(_shifted(layer, 1) for layer in weights.layers)
    return replace(weights, layers=layers, output_norm=weights.output_norm + np.float32(1))


TRUNK_NORMS_DOUBLED = Fault(
    id="W2b-trunk-norms-doubled",
    title="The trunk's norms have the +1 twice",
    mechanism="The presence of a head's tensors is taken for a sign that the checkpoint is raw, so the trunk's norms, "
    "converted already, get another +1.",
    bug_type="DOUBLE_STEP",
    replaces=("weights.layers", "weights.output_norm"),
    predicted=Signature("attn_norm", "of another text: the trunk is broken, and the head with it", text=False),
    seen=(
        ("mlx-lm #1442", "https://github.com/ml-explore/mlx-lm/pull/1442"),
        ("mlx-swift-lm #598", "https://github.com/ml-explore/mlx-swift-lm/pull/598"),
        ("MTPLX #306", "https://github.com/youssofal/MTPLX/issues/306"),
    ),
    effect="0 to 6.7 %; a norm of 0.9666 in the file was 1.9666 at run time",
    needs=(),
    apply_weights=_trunk_shifted,
)

NORM_SHIFT_MIXED = Fault(
    id="W2c-norm-shift-mixed",
    title="Only the norms inside the head's layer lack the +1",
    mechanism="One flag for the whole head: the outer norms are converted, those of its layer are still raw.",
    bug_type="MISSING_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_attn_norm", "near 0"),
    seen=(("omlx #1507", "https://github.com/jundot/omlx/pull/1507"),),
    effect="0 of 148 accepted",
    apply_model=head_weights(lambda mtp: {"block": _shifted(mtp.block, -1)}),
)

PRE_FC_NORMS_DOUBLED = Fault(
    id="W3-pre-fc-norms-doubled",
    title="enorm and hnorm alone have the +1 twice",
    mechanism="A test of the kind 'mean below 0.5 means raw' takes the two norms in front of eh_proj, whose means are "
    "small by nature, for unconverted ones.",
    bug_type="DOUBLE_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_hnorm", "about half of what it was, not 0"),
    seen=(
        ("omlx #3742", "https://github.com/jundot/omlx/issues/3742"),
        ("omlx #3750", "https://github.com/jundot/omlx/pull/3750"),
    ),
    effect="72 % fell to 35 %",
    where=("input norms",),
    apply_model=head_weights(lambda mtp: _pre_fc(mtp, 1)),
)


def _unloaded(mtp: MtpWeights, parts: tuple[str, ...]) -> dict[str, Any]:
    """The head's layer with matrices whose names contain one of `parts` left at random."""
    return {name: changed(w, random_like) if name.startswith(parts) else w for name, w in mtp.block.items()}


_STACKS = ("ffn_gate_exps.", "ffn_up_exps.")

PARTLY_LOADED = Fault(
    id="W4-partly-loaded",
    title="q, k, v, gate and up of the head are random",
    mechanism="The fused tensors' names are on no list; they are skipped with a warning that is shown once. The rest "
    "of the head is right.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_Qcur_full", "low: AL 1.0 to 1.5"),
    seen=(("SGLang #35797", "https://github.com/sgl-project/sglang/issues/35797"),),
    effect="AL exactly 1.000 (NVFP4), 1.46 / 1.40 / 1.21 for code, maths, prose (INT4)",
    apply_model=head_weights(
        lambda mtp: {"block": _unloaded(mtp, ("attn_q.", "attn_k.", "attn_v.", "ffn_gate.", "ffn_up.", *_STACKS))}
    ),
)

CONSTANT_DRAFT = Fault(
    id="W5-constant-draft",
    title="The head's norm kernel does nothing",
    mechanism="The kernel reads the norm's shape the wrong way round, finds nothing to do and returns: its output "
    "buffer keeps what was in it, here zeros.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.rms_norm",),
    predicted=Signature("mtp_hnorm", "0, and every draft is the same id"),
    seen=(
        ("imp #174", "https://github.com/kekzl/imp/pull/174"),
        ("lattice #1373", "https://github.com/ohdearquant/lattice/issues/1373"),
    ),
    effect="0 %; every draft is token 6178, whatever the input",
    apply_recipe=head_ops(lambda ops: {"rms_norm": lambda x, weight, eps: np.zeros_like(x)}),
)


def _never_loaded(mtp: MtpWeights) -> dict[str, Any]:
    layer = {n: np.ones_like(w) if isinstance(w, np.ndarray) else changed(w, random_like) for n, w in mtp.block.items()}
    norms = {name: np.ones_like(getattr(mtp, name)) for name in ("enorm", "hnorm", "shared_head_norm")}
    return norms | {"block": layer, "eh_proj": random_like(mtp.eh_proj)}


RANDOM_HEAD = Fault(
    id="W6-random-head",
    title="The head's own weights are random",
    mechanism="The module is made, its tensors are stripped or renamed on the way, and the load reports success: "
    "matrices are noise, norms are 1.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_hnorm", "0"),
    seen=(
        ("omlx #1320", "https://github.com/jundot/omlx/pull/1320"),
        ("transformers #46129", "https://github.com/huggingface/transformers/issues/46129"),
    ),
    effect="0 %",
    apply_model=head_weights(_never_loaded),
)


def _no_logits(ops: Ops, output: Matrix, h: F32, n_rows: int | None) -> F32:
    return np.full((len(h), min(n_rows or output.n_out, output.n_out)), np.nan, np.float32)


HEAD_NOT_ATTACHED = Fault(
    id="W7-head-not-attached",
    title="The head's output matrix was never attached",
    mechanism="The checkpoint has no copy of the shared output matrix and nobody points the head at the trunk's: its "
    "logits are NaN.",
    bug_type="WRONG_WEIGHTS",
    replaces=("mtp_ops.head",),
    predicted=Signature("mtp_result_output", "0, and every draft is id 0"),
    seen=(("vLLM #34385", "https://github.com/vllm-project/vllm/pull/34385"),),
    effect="0 of 279 accepted; AL 1.95 when fixed",
    apply_recipe=head_ops(lambda ops: {"head": _no_logits}),
)

HEAD_NORM_SKIPPED = Fault(
    id="W7b-head-norm-skipped",
    title="shared_head_norm is not applied",
    mechanism="The output head reads the block's row as it is; so does the next step of the chain.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.mtp_norm",),
    predicted=Signature("mtp_h_nextn", "lower: logits are off by a gain per channel", drift="none"),
    seen=(("ATOM #643", "https://github.com/ROCm/ATOM/pull/643"),),
    apply_recipe=head_ops(lambda ops: {"mtp_norm": lambda table, x, weight, eps: x}),
)

EH_PROJ_OVERQUANTISED = Fault(
    id="W8-eh-proj-overquantised",
    title="eh_proj is quantised to 4 bits",
    mechanism="The matrix that joins embedding and hidden row is treated like any other and loses what the rest of "
    "the head cannot restore. Here Q4_0.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_eh_proj", "a little lower"),
    seen=(
        ("ollama #16320", "https://github.com/ollama/ollama/pull/16320"),
        ("vllm-mlx #471", "https://github.com/waybarrios/vllm-mlx/issues/471"),
    ),
    apply_model=head_weights(lambda mtp: {"eh_proj": requantised(mtp.eh_proj, "Q4_0")}),
)


def _misscaled(mtp: MtpWeights) -> dict[str, Any]:
    layer = {name: changed(w, with_neighbours_scales) for name, w in mtp.block.items()}
    return {"block": layer, "eh_proj": with_neighbours_scales(mtp.eh_proj)}


BLOCK_SCALES_WRONG = Fault(
    id="W9-block-scales-wrong",
    title="The head's blocks are dequantised with wrong scales",
    mechanism="The head is read by the trunk's quantisation scheme, or its scales by the wrong name. Here each block "
    "of 32 weights has the scale of the block before it.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_eh_proj", "lower, from a little to nearly 0"),
    seen=(("vLLM #43455", "https://github.com/vllm-project/vllm/issues/43455"),),
    effect="1.8 % instead of 91 to 92 %",
    apply_model=head_weights(_misscaled),
)


def _unmapped(mtp: MtpWeights) -> dict[str, Any]:
    n = mtp.shared_head_head.n_out
    return {"d2t": None} if mtp.d2t is not None else {"shared_head_head": mtp.shared_head_head.rows(n // 4, n)}


DRAFT_IDS_UNMAPPED = Fault(
    id="W10-draft-ids-unmapped",
    title="Rows of a trimmed head are taken for ids",
    mechanism="The head has rows for some ids only, and its row numbers are proposed as ids without the way back. A "
    "head that is not trimmed is trimmed here to the upper three quarters of the ids.",
    bug_type="MISSING_STEP",
    replaces=("heads.weights",),
    predicted=Signature("mtp_result_output", "near 0: every id is another one"),
    seen=(
        ("llama.cpp #29143", "https://github.com/ggml-org/llama.cpp/pull/29143"),
        ("llama.cpp #25187", "https://github.com/ggml-org/llama.cpp/issues/25187"),
    ),
    apply_model=head_weights(_unmapped),
)

EH_PROJ_HALF_ZERO = Fault(
    id="W13-eh-proj-half-zero",
    title="The hidden half of eh_proj is zero",
    mechanism="Only the first half of the columns was copied (one shard of two): the head sees the embedding alone.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights",),
    predicted=Signature("mtp_eh_proj", "low: what follows a token whatever came before it"),
    apply_model=head_weights(lambda mtp: {"eh_proj": without_second_half(mtp.eh_proj)}),
)


def _all_the_last(model: Model) -> Model:
    return replace(model, heads=(replace(model.heads[-1]),) * len(model.heads))


HEADS_LOADED_FROM_ONE = Fault(
    id="W14-heads-loaded-from-one",
    title="Every head of a chain has the weights of the last one",
    mechanism="Names of all heads are mapped onto one module: what is loaded last stays, and every draft step runs it.",
    bug_type="WRONG_WEIGHTS",
    replaces=("heads.weights", "heads.layer"),
    predicted=Signature("mtp_hnorm", "all but the last position near 0"),
    seen=(("SGLang #25368", "https://github.com/sgl-project/sglang/pull/25368"),),
    effect="slower than without drafts",
    where=("several heads",),
    apply_model=_all_the_last,
)
