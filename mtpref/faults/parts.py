"""Families G and E: blocks whose parts stand side by side or alone, layer norms, layers that do not turn, Mamba-2, and
experts without a gate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.model import Model
from mtpref.engine.model.model import Layer
from mtpref.faults.fault import Fault, Signature, all_ops, broken, head_ops
from mtpref.faults.places import is_parallel, is_unturned, widest_turn
from mtpref.spec.kinds import Around
from mtpref.spec.kinds.residual import Parallel, Part
from mtpref.spec.ops import LayerTap, OpEntries, Ops

F32 = NDArray[np.float32]

# ------------------------------------------------------------------------------------------------------------ norms


def _rms_of(ops: Ops) -> OpEntries:
    def layer_norm(x: F32, weight: F32, bias: F32 | None, eps: float) -> F32:
        return spec.rms_norm(x, weight, eps) if bias is None else ops.layer_norm(x, weight, bias, eps)

    return {"layer_norm": layer_norm}


LAYER_NORM_AS_RMS = Fault(
    id="G30-layer-norm-as-rms",
    title="A model's layer norms are run as RMS norms",
    mechanism="The norms have a weight and no bias, as RMS norms have: nothing in the tensors says that the mean is to "
    "be taken out. attention.layer_norm_epsilon in place of layer_norm_rms_epsilon says it.",
    bug_type="WRONG_RULE",
    replaces=("ops.rms_norm", "ops.layer_norm"),
    predicted=broken("attn_norm"),
    where=("layer norms",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"rms_norm": spec.rms_norm, **_rms_of(ops)}),
)

HEAD_NORM_AS_RMS = Fault(
    id="G30b-head-norm-as-rms",
    title="The head's last norm is run as an RMS norm",
    mechanism="It alone is a layer norm, without a bias; all others of the model are RMS norms. The chain carries the "
    "row after it.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.layer_norm",),
    predicted=Signature("mtp_h_nextn", "lower"),
    where=("head layer norm",),
    apply_recipe=head_ops(_rms_of),
)

HEAD_NORMS_CENTRED = Fault(
    id="G30c-head-norms-centred",
    title="Every norm of the head is run as a layer norm",
    mechanism="The layer norm after the head is taken for the rule of the whole head: enorm, hnorm and those of its "
    "block lose the mean too.",
    bug_type="WRONG_RULE",
    replaces=("mtp_ops.rms_norm",),
    predicted=Signature("mtp_hnorm", "lower"),
    where=("head layer norm",),
    apply_recipe=head_ops(lambda ops: {"rms_norm": lambda x, weight, eps: ops.layer_norm(x, weight, None, eps)}),
)

# ------------------------------------------------------------------------------------------------------------ turns


def _turned(layer: Layer, n_rot: int) -> Layer:
    return replace(layer, cfg=replace(layer.cfg, n_rot=n_rot)) if is_unturned(layer) else layer


def _head_turned(model: Model) -> Model:
    for i, head in enumerate(model.heads):
        model = model.with_head(i, layer=_turned(head.layer, widest_turn(model)))
    return model


HEAD_TURNED = Fault(
    id="G31-head-turned",
    title="The head's queries and keys are turned by RoPE",
    mechanism="No layer of the model turns; the head runs on an attention that others share, which does. The key "
    "rope.dimension_count is in the file, and means nothing.",
    bug_type="DOUBLE_STEP",
    replaces=("heads.layer",),
    predicted=Signature("mtp_Qcur", "lower", drift="grows with the distance"),
    where=("head without RoPE",),
    apply_model=_head_turned,
)

UNTURNED_LAYERS_TURNED = Fault(
    id="G31b-unturned-layers-turned",
    title="The trunk's layers without RoPE turn",
    mechanism="Layers without a window, or all of the model's, have no positions (NoPE); here they turn as others do.",
    bug_type="DOUBLE_STEP",
    replaces=("layers",),
    predicted=broken("Qcur"),
    where=("layers without RoPE",),
    needs=(),
    apply_model=lambda model: replace(
        model, layers=tuple(_turned(layer, widest_turn(model)) for layer in model.layers)
    ),
)

ROPE_HALVES = Fault(
    id="G36-rope-halves",
    title="RoPE turns halves where neighbours belong together",
    mechanism="Pairs are (i, i + n_rot / 2) instead of (2 i, 2 i + 1); the file's rows are as the checkpoint has them, "
    "not permuted for halves.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.rope_interleaved",),
    predicted=broken("Qcur"),
    where=("paired neighbours",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"rope_interleaved": ops.rope}),
)

# ----------------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class _OneAfterTheOther:
    """The block with the network after the mixer, on rows that its one norm is laid on again."""

    own: Parallel

    def __call__(self, x: F32, around: Around, mixer: Part, ffn: Part, tap: LayerTap) -> F32:
        h = around.norm(self.own.block_norm, x)
        tap("attn_norm", h)
        x = x + mixer(h)
        x = x + ffn(around.norm(self.own.block_norm, x))
        tap("post_ffn", x)
        tap("l_out", x)
        return x


def _in_sequence(layer: Layer) -> Layer:
    residual: Any = layer.block.residual
    return replace(layer, block=replace(layer.block, residual=_OneAfterTheOther(residual)))


def _all_in_sequence(model: Model) -> Model:
    for i, head in enumerate(model.heads):
        model = model.with_head(i, layer=_in_sequence(head.layer)) if is_parallel(head.layer) else model
    return replace(model, layers=tuple(_in_sequence(one) if is_parallel(one) else one for one in model.layers))


PARALLEL_AS_SEQUENTIAL = Fault(
    id="G32-parallel-as-sequential",
    title="Attention and network run one after the other",
    mechanism="The network reads rows that attention has been added to, normed again; both belong on the same normed "
    "rows.",
    bug_type="WRONG_RULE",
    replaces=("layers", "heads.layer"),
    predicted=broken("ffn_gate"),
    where=("parallel blocks",),
    needs=(),
    apply_model=_all_in_sequence,
)


def _unscaled_head(model: Model) -> Model:
    by = np.float32(1) / np.float32(model.config.logit_scale)

    def entries(ops: Ops) -> OpEntries:
        return {"head": lambda table, w, h, n_rows: ops.composed["head"](table, w, h, n_rows) * by}

    return replace(model, recipe=head_ops(entries)(model.recipe))


HEAD_LOGITS_UNSCALED = Fault(
    id="G33-head-logits-unscaled",
    title="The head's logits are not scaled",
    mechanism="logit_scale is applied to the trunk's logits and left out of the head's. The greedy draft is the same; "
    "its probabilities are not, and with them p_min and what is sampled.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.head",),
    predicted=Signature("mtp_result_output", "the same in greedy drafts without p_min"),
    where=("scaled logits",),
    apply_model=_unscaled_head,
)

# ---------------------------------------------------------------------------------------------------------- Mamba-2

Scan = Callable[..., tuple[F32, F32]]


def _by_turns(scan: Scan) -> Scan:
    def ssm_scan(x: F32, b: F32, c: F32, *rest: Any) -> tuple[F32, F32]:
        group = np.arange(x.shape[1]) % b.shape[1]
        return scan(x, b[:, group], c[:, group], *rest)

    return ssm_scan


SCAN_HEADS_TILED = Fault(
    id="G34-scan-heads-tiled",
    title="Heads of a Mamba-2 layer take groups in turn",
    mechanism="Head h reads b and c of group h mod G; it belongs to group h div (H / G).",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.ssm_scan",),
    predicted=broken("scan_output"),
    where=("several scan groups",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"ssm_scan": _by_turns(ops.ssm_scan)}),
)


def _unbiased_steps(ops: Ops) -> OpEntries:
    def ssm_layer(table: Ops, w: Any, *rest: Any) -> Any:
        return ops.composed["ssm_layer"](table, {**w, "ssm_dt.bias": np.zeros_like(w["ssm_dt.bias"])}, *rest)

    return {"ssm_layer": ssm_layer}


STEP_BIAS_FORGOTTEN = Fault(
    id="G34b-step-bias-forgotten",
    title="The steps of a Mamba-2 layer have no bias",
    mechanism="ssm_dt.bias is loaded and not added before softplus: every head forgets at another rate.",
    bug_type="MISSING_STEP",
    replaces=("ops.ssm_layer",),
    predicted=broken("scan_output"),
    where=("scan",),
    needs=(),
    apply_recipe=all_ops(_unbiased_steps),
)


def _gate_after(y: F32, x: F32, d: F32, z: F32, weight: F32, eps: float) -> F32:
    skipped = (y + x * d[None, :, None]).reshape(len(z), *weight.shape)
    return spec.silu(z) * spec.rms_norm_of_groups(skipped, weight, eps).reshape(z.shape)


SCAN_GATE_AFTER_NORM = Fault(
    id="G35-scan-gate-after-norm",
    title="A Mamba-2 layer is gated after its norm",
    mechanism="norm(y) * silu(z), as in DeltaNet layers; here the gate stands before the norm.",
    bug_type="WRONG_RULE",
    replaces=("ops.gated_group_norm",),
    predicted=broken("final_output"),
    where=("scan",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"gated_group_norm": _gate_after}),
)


def _one_norm(ops: Ops) -> OpEntries:
    def gated(y: F32, x: F32, d: F32, z: F32, weight: F32, eps: float) -> F32:
        return ops.gated_group_norm(y, x, d, z, weight.reshape(1, -1), eps)

    return {"gated_group_norm": gated}


SCAN_NORM_UNGROUPED = Fault(
    id="G35b-scan-norm-ungrouped",
    title="A Mamba-2 layer has one norm over all groups",
    mechanism="ssm.group_count is not read where the norm is: the rows of all groups are normed together.",
    bug_type="WRONG_RULE",
    replaces=("ops.gated_group_norm",),
    predicted=broken("final_output"),
    where=("several scan groups",),
    needs=(),
    apply_recipe=all_ops(_one_norm),
)

# ---------------------------------------------------------------------------------------------------------- experts

RELU_UNSQUARED = Fault(
    id="E20-relu-unsquared",
    title="Networks without a gate have a relu that is not squared",
    mechanism="max(x, 0) in place of its square, in experts and shared expert.",
    bug_type="MISSING_STEP",
    replaces=("ops.relu_squared",),
    predicted=broken("ffn_moe_relu_sqr"),
    where=("experts without a gate",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"relu_squared": lambda x: np.maximum(x, np.float32(0))}),
)


def _summed(ops: Ops) -> OpEntries:
    def moe_ffn(table: Ops, w: Any, cfg: Any, *rest: Any) -> Any:
        return ops.composed["moe_ffn"](table, w, replace(cfg, sum_scale=0.0), *rest)

    return {"moe_ffn": moe_ffn}


SHARED_EXPERT_SUMMED = Fault(
    id="E21-shared-expert-summed",
    title="Experts and shared expert are added, not averaged",
    mechanism="The network's result is half the sum of both; as in most models the sum itself is taken.",
    bug_type="MISSING_STEP",
    replaces=("ops.moe_ffn",),
    predicted=broken("ffn_out"),
    where=("averaged experts",),
    needs=(),
    apply_recipe=all_ops(_summed),
)
