"""Family E: experts. Router, selection, weights, shared expert; trunk and head have them from the same code, so most of
these change the text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.engine.model import Model
from mtpref.engine.recipe import Recipe
from mtpref.faults.fault import Fault, Signature, all_ops, broken, head_ops, head_weights
from mtpref.faults.places import dense_in_front
from mtpref.spec.moe import Routing
from mtpref.spec.ops import OpEntries, Ops

F32 = NDArray[np.float32]
IDS = NDArray[np.int64]
# ---------------------------------------------------------------------------------------------------------- weights


def _weighing(weights: Callable[[Ops, F32, IDS, F32 | None, Any], F32]) -> Callable[[Recipe], Recipe]:
    """Another rule of the weights that knows the selection bias: weights(ops, probs, ids, bias, cfg)."""

    def entries(ops: Ops) -> OpEntries:
        def route(table: Ops, w: Any, cfg: Any, x: F32, tap: Any) -> tuple[F32, Routing]:
            bias = w.get("exp_probs_b.bias", w.get("exp_probs_b"))
            own = replace(table, expert_weights=lambda p, ids, *how: weights(table, p, ids, bias, cfg))
            return ops.composed["route"](own, w, cfg, x, tap)

        return {"route": route}

    return all_ops(entries)


def _of_scores(ops: Ops, p: F32, ids: IDS, bias: F32 | None, cfg: Any) -> F32:
    return ops.expert_weights(ops.expert_scores(p, bias), ids, cfg.normalise, cfg.scale)


BIAS_IN_WEIGHTS = Fault(
    id="E1-bias-in-weights",
    title="The selection bias is in the experts' weights",
    mechanism="Weights are gathered from the scores by which experts are chosen, and not from the probabilities: "
    "exp_probs_b serves the choice alone.",
    bug_type="WRONG_RULE",
    replaces=("ops.route",),
    predicted=broken("ffn_moe_weights"),
    where=("selection bias",),
    needs=(),
    apply_recipe=_weighing(_of_scores),
)


def _by_sum_of_scores(ops: Ops, p: F32, ids: IDS, bias: F32 | None, cfg: Any) -> F32:
    plain = ops.expert_weights(p, ids, False, cfg.scale)
    total = np.take_along_axis(ops.expert_scores(p, bias), ids, axis=1).sum(axis=1, dtype=np.float64)
    return plain / np.maximum(total.astype(np.float32), np.float32(2.0**-14))[:, None]


NORM_WITH_BIAS = Fault(
    id="E1b-norm-with-bias",
    title="Weights are renormalised before the selection bias is taken away",
    mechanism="The sum that weights are divided by is that of the biased scores; the weights themselves have no bias.",
    bug_type="WRONG_RULE",
    replaces=("ops.route",),
    predicted=broken("ffn_moe_weights"),
    where=("selection bias", "norm"),
    needs=(),
    apply_recipe=_weighing(_by_sum_of_scores),
)

SELECTION_UNBIASED = Fault(
    id="E2-selection-unbiased",
    title="Experts are chosen without the selection bias",
    mechanism="exp_probs_b is loaded and not added, or its name (with and without .bias) is not found.",
    bug_type="MISSING_STEP",
    replaces=("ops.expert_scores",),
    predicted=broken("ffn_moe_probs_biased"),
    where=("selection bias",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"expert_scores": lambda p, bias: p}),
)


def _with(normalise: bool | None = None, scale: float | None = None) -> Callable[[Recipe], Recipe]:
    """Weights renormalised or scaled otherwise than the model says."""

    def entries(ops: Ops) -> OpEntries:
        def expert_weights(p: F32, ids: IDS, norm: bool, by: float) -> F32:
            return ops.expert_weights(p, ids, norm if normalise is None else normalise, by if scale is None else scale)

        return {"expert_weights": expert_weights}

    return all_ops(entries)


WEIGHTS_UNNORMED = Fault(
    id="E3-weights-unnormed",
    title="The experts' weights are not renormalised",
    mechanism="The chosen experts' probabilities are used as they are, where the model divides them by their sum.",
    bug_type="MISSING_STEP",
    replaces=("ops.expert_weights",),
    predicted=broken("ffn_moe_weights"),
    where=("norm",),
    needs=(),
    apply_recipe=_with(normalise=False),
)

SOFTMAX_AFTER_SELECTION = Fault(
    id="E4-softmax-after-selection",
    title="The softmax is taken over the chosen experts alone",
    mechanism="Selection first, softmax of what is left after it: weights add up to 1, where the model's are a part of "
    "1. The same as renormalising where nobody asked for it. Where weights are renormalised it is no fault at all.",
    bug_type="WRONG_RULE",
    replaces=("ops.expert_weights",),
    predicted=broken("ffn_moe_weights"),
    where=("softmax router", "no norm"),
    needs=(),
    apply_recipe=_with(normalise=True),
)

RENORMED_UNASKED = Fault(
    id="E4b-renormed-unasked",
    title="A sigmoid router's weights are renormalised where they shall not be",
    mechanism="expert_weights_norm is false, or missing, which means the same; the weights are divided by their sum.",
    bug_type="DOUBLE_STEP",
    replaces=("ops.expert_weights",),
    predicted=broken("ffn_moe_weights"),
    where=("sigmoid router", "no norm"),
    needs=(),
    apply_recipe=_with(normalise=True),
)

SCALE_FORGOTTEN = Fault(
    id="E5-scale-forgotten",
    title="The scale of the experts' weights is forgotten",
    mechanism="expert_weights_scale (routed_scaling_factor) is not read: the experts count less beside the shared one.",
    bug_type="MISSING_STEP",
    replaces=("ops.expert_weights",),
    predicted=broken("ffn_moe_weights"),
    where=("scale",),
    needs=(),
    apply_recipe=_with(scale=0.0),
)


def _scaled_all(ops: Ops) -> OpEntries:
    def moe_ffn(table: Ops, w: Any, cfg: Any, x: F32, tap: Any) -> tuple[F32, Routing]:
        shared, scale = table.shared_expert, np.float32(cfg.scale)
        own = replace(table, shared_expert=lambda *args: shared(*args) * scale)
        return ops.composed["moe_ffn"](own, w, cfg, x, tap)

    return {"moe_ffn": moe_ffn}


SCALE_ON_SHARED = Fault(
    id="E5b-scale-on-shared",
    title="The shared expert is scaled too",
    mechanism="The scale is applied to the sum of experts and shared expert; it is that of the routed ones alone.",
    bug_type="DOUBLE_STEP",
    replaces=("ops.moe_ffn",),
    predicted=broken("ffn_out"),
    where=("scale", "shared expert"),
    needs=(),
    apply_recipe=all_ops(_scaled_all),
)


def _shuffled(ops: Ops) -> OpEntries:
    def experts(table: Ops, w: Any, x: F32, routing: Routing, weights: F32, tap: Any) -> F32:
        by_id = np.take_along_axis(weights, np.argsort(routing.ids, axis=1, kind="stable"), axis=1)
        return ops.experts(table, w, x, routing, by_id, tap)

    return {"experts": experts}


WEIGHTS_BY_ID = Fault(
    id="E6-weights-by-id",
    title="Weights stand in the order of ids, results in that of scores",
    mechanism="A scatter of weights over all experts is read back in rising ids; the experts run in the order in which "
    "they were chosen, so each result meets another's weight.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.experts",),
    predicted=broken("ffn_moe_weighted"),
    where=("several experts",),
    needs=(),
    apply_recipe=all_ops(_shuffled),
)

# ----------------------------------------------------------------------------------------------------------- router


def _gated_by(gating: str) -> Callable[[Recipe], Recipe]:
    return all_ops(lambda ops: {"expert_probs": lambda logits, own: ops.expert_probs(logits, gating)})


SIGMOID_ROUTER = Fault(
    id="E7-sigmoid-router",
    title="The router's softmax is a sigmoid",
    mechanism="Each expert's logit goes through a sigmoid of its own. The same experts are chosen, with other weights.",
    bug_type="WRONG_RULE",
    replaces=("ops.expert_probs",),
    predicted=broken("ffn_moe_probs"),
    where=("softmax router",),
    needs=(),
    apply_recipe=_gated_by("sigmoid"),
)

SOFTMAX_ROUTER = Fault(
    id="E7b-softmax-router",
    title="The router's sigmoid is a softmax",
    mechanism="The key expert_gating_func is not read, or 0 is taken for softmax. Other weights, and with a selection "
    "bias other experts.",
    bug_type="WRONG_RULE",
    replaces=("ops.expert_probs",),
    predicted=broken("ffn_moe_probs"),
    where=("sigmoid router",),
    needs=(),
    apply_recipe=_gated_by("softmax"),
)


def _by_best(scores: F32, n_group: int) -> F32:
    return np.asarray(scores.reshape(len(scores), n_group, -1).max(axis=-1))


GROUPS_BY_BEST = Fault(
    id="E8-groups-by-best",
    title="Groups are judged by their best expert",
    mechanism="The score of a group is its greatest instead of the sum of its two greatest.",
    bug_type="WRONG_RULE",
    replaces=("ops.group_scores",),
    predicted=broken("ffn_moe_group_topk"),
    seen=(
        ("vLLM #13474", "https://github.com/vllm-project/vllm/pull/13474"),
        ("Megatron-LM #1378", "https://github.com/NVIDIA/Megatron-LM/issues/1378"),
    ),
    where=("groups",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"group_scores": _by_best}),
)

GROUPS_IGNORED = Fault(
    id="E8b-groups-ignored",
    title="Groups are ignored",
    mechanism="The best experts of all are chosen; expert_group_count is not read.",
    bug_type="MISSING_STEP",
    replaces=("ops.limit_groups",),
    predicted=broken("ffn_moe_probs_masked"),
    where=("groups",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"limit_groups": lambda scores, groups, n_group: scores}),
)

# ---------------------------------------------------------------------------------------------------- shared expert


def _nothing(entry: Callable[..., F32]) -> Callable[..., F32]:
    """What an entry gives, as zeros."""
    return lambda *args: np.zeros_like(entry(*args))


SHARED_FORGOTTEN = Fault(
    id="E9-shared-forgotten",
    title="The shared expert is forgotten",
    mechanism="Only the routed experts are added up.",
    bug_type="MISSING_STEP",
    replaces=("ops.shared_expert",),
    predicted=broken("ffn_out"),
    where=("shared expert",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"shared_expert": _nothing(ops.shared_expert)}),
)

SHARED_UNGATED = Fault(
    id="E9b-shared-ungated",
    title="The shared expert's gate is not applied",
    mechanism="ffn_gate_inp_shexp is not read: the shared expert counts whole for every token.",
    bug_type="MISSING_STEP",
    replaces=("ops.shared_gate",),
    predicted=broken("ffn_shexp_gated"),
    where=("shared gate",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"shared_gate": lambda y, logit: y}),
)

SHARED_GATED_TWICE = Fault(
    id="E9c-shared-gated-twice",
    title="The shared expert's gate is applied twice",
    mechanism="Once inside the shared expert's network and once where it is added.",
    bug_type="DOUBLE_STEP",
    replaces=("ops.shared_gate",),
    predicted=broken("ffn_shexp_gated"),
    where=("shared gate",),
    needs=(),
    apply_recipe=all_ops(lambda ops: {"shared_gate": lambda y, g: ops.shared_gate(ops.shared_gate(y, g), g)}),
)

# ----------------------------------------------------------------------------------------------------------- layers


def _exchanged(ops: Ops) -> OpEntries:
    def experts(table: Ops, w: Any, *rest: Any) -> F32:
        gate, up = w["ffn_gate_exps.weight"], w["ffn_up_exps.weight"]
        return ops.experts(table, {**w, "ffn_gate_exps.weight": up, "ffn_up_exps.weight": gate}, *rest)

    return {"experts": experts}


GATE_UP_SWAPPED = Fault(
    id="E10-gate-up-swapped",
    title="Gate and up of the experts are swapped",
    mechanism="A fused stack (ffn_gate_up_exps, gate_up_proj) has the gate's rows first; they are taken for up's.",
    bug_type="WRONG_LAYOUT",
    replaces=("ops.experts",),
    predicted=broken("ffn_moe_gate"),
    where=("experts with a gate",),
    needs=(),
    apply_recipe=all_ops(_exchanged),
)


def _last_layers(model: Model) -> Model:
    last = {name: w for name, w in model.weights.layers[-1].items() if name.endswith("_exps.weight")}
    return head_weights(lambda mtp: {"block": {**mtp.block, **last}})(model)


WRONG_LAYERS_EXPERTS = Fault(
    id="E11-experts-of-last-layer",
    title="The head runs with the experts of the trunk's last layer",
    mechanism="Stacks are looked up by a count of layers that is one short. Router and shared expert are the head's.",
    bug_type="OFF_BY_ONE",
    replaces=("heads.weights",),
    predicted=Signature("mtp_ffn_moe_gate", "lower"),
    where=("head experts",),
    apply_model=_last_layers,
)


def _as_moe(model: Model) -> Model:
    n = dense_in_front(model)
    own, moe = model.layers[n - 1], model.layers[n]
    new = replace(own, block=replace(own.block, ffn=moe.block.ffn), ffn_cfg=moe.ffn_cfg)
    ffn = {
        name: w
        for name, w in model.weights.layers[n].items()
        if name.startswith(("ffn_", "exp_")) and "norm" not in name
    }
    layers = (*model.layers[: n - 1], new, *model.layers[n:])
    weights = [*model.weights.layers]
    weights[n - 1] = {**weights[n - 1], **ffn}
    return replace(model, layers=layers, weights=replace(model.weights, layers=tuple(weights)))


DENSE_AS_MOE = Fault(
    id="E12-dense-as-moe",
    title="The last dense layer runs as an experts' network",
    mechanism="leading_dense_block_count is read one too small, and stacks are looked up by a count that begins there: "
    "the layer has the router and the experts of the next one.",
    bug_type="OFF_BY_ONE",
    replaces=("layers", "weights.layers"),
    predicted=broken("ffn_gate"),
    where=("dense in front",),
    needs=(),
    apply_model=_as_moe,
)


HEAD_AS_DENSE = Fault(
    id="E13-head-as-dense",
    title="The head's block runs as a dense layer",
    mechanism="In a model with dense layers in front, the head's layer takes the dense branch: of its feed-forward "
    "network only the shared expert is run.",
    bug_type="MISSING_STEP",
    replaces=("mtp_ops.experts",),
    predicted=Signature("mtp_ffn_moe_out", "lower"),
    where=("dense in front", "shared expert"),
    apply_recipe=head_ops(lambda ops: {"experts": _nothing(ops.experts)}),
)
