"""The experts' network kind. Its numerics are mtpref/spec/ops/compose_moe.py:moe_ffn (S6, S18, S41 to S48)."""

from dataclasses import replace

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import MoeConfig, Values
from mtpref.spec.kinds.kind import F32, INPUT, LayerKind, Made, Span, no_state
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState

# Numbers of expert_gating_func: 0 is "the architecture's own".
_GATINGS = {1: "softmax", 2: "sigmoid"}


def _configured(v: Values, gating: str, normalise: bool, scale: float) -> MoeConfig:
    n_expert, n_used, n_group, n_group_used = (
        v[name] for name in ("n_expert", "n_expert_used", "n_expert_group", "n_expert_group_used")
    )

    def wrong(key: str, value: int, expected: str) -> MtprefError:
        return MtprefError(
            f"{v.meta.source}: key {v.meta.arch}.{key} is {value}, expected {expected}; try: mtpref inspect FILE"
        )

    if n_used > n_expert:
        raise wrong("expert_used_count", n_used, f"at most expert_count = {n_expert}")
    if n_group > 1:
        if n_expert % n_group or n_expert < 2 * n_group:
            raise wrong("expert_group_count", n_group, f"groups of one size, 2 or more of the {n_expert} experts")
        if not 0 < n_group_used < n_group or n_used > n_group_used * (n_expert // n_group):
            expected = f"1 to {n_group - 1} of {n_group} groups, with {n_used} experts in them"
            raise wrong("expert_group_used_count", n_group_used, expected)
    return MoeConfig(v["n_embd"], n_expert, n_used, gating, normalise, scale, n_group, n_group_used)


def _softmax(v: Values) -> MoeConfig:
    return _configured(v, "softmax", True, 0.0)


def _sigmoid(v: Values) -> MoeConfig:
    return _configured(v, "sigmoid", True, 0.0)


def _by_keys(v: Values) -> MoeConfig:
    func = v["expert_gating_func"]
    if func > max(_GATINGS):
        raise UnsupportedError(
            f"{v.meta.source}: {v.meta.arch}.expert_gating_func is {func}, expected 1 (softmax) or "
            "2 (sigmoid): others are not supported"
        )
    return _configured(v, _GATINGS.get(func, "sigmoid"), v["expert_weights_norm"], v["expert_weights_scale"])


def _plain(v: Values) -> MoeConfig:
    return _configured(v, "sigmoid", v["expert_weights_norm"], v["expert_weights_scale"])


def _averaged(v: Values) -> MoeConfig:
    return replace(_by_keys(v), sum_scale=0.5)


def _forward(w: LayerWeights, cfg: MoeConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    y, routing = span.ops.moe_ffn(span.ops, w, cfg, x, tap)
    span.routings.append(routing)
    return y


_SCORES = "ffn_moe_probs_masked"
_PRODUCT = (spec.mul_mat_exact,)
_FUSED = "(or its half of blk.{i}.ffn_gate_up_exps.weight)"
GRAPH = {
    "ffn_moe_logits": Made((INPUT,)),
    "ffn_moe_probs": Made(
        ("ffn_moe_logits",), "softmax over experts, or each one's sigmoid, as the model has it", (spec.expert_probs,)
    ),
    "ffn_moe_probs_biased": Made(
        ("ffn_moe_probs",),
        "plus blk.{i}.exp_probs_b or blk.{i}.exp_probs_b.bias, for the choice alone",
        (spec.expert_scores,),
        instead=("ffn_moe_probs",),
    ),
    "ffn_moe_group_topk": Made(
        ("ffn_moe_probs_biased",),
        "the groups with the greatest sums of two",
        (spec.group_scores, spec.select_experts),
        instead=(),
    ),
    "ffn_moe_probs_masked": Made(
        ("ffn_moe_probs_biased", "ffn_moe_group_topk"),
        "groups that were not chosen at -infinity",
        (spec.limit_groups,),
        instead=("ffn_moe_probs_biased",),
    ),
    "ffn_moe_topk": Made((_SCORES,), "the experts of the greatest scores, the best first", (spec.select_experts,)),
    "ffn_moe_gap": Made(
        (_SCORES, "ffn_moe_topk"),
        "how near another choice was: the last chosen score less the next",
        (spec.router_gap,),
    ),
    "ffn_moe_weights": Made(
        ("ffn_moe_probs", "ffn_moe_topk"),
        "the chosen experts' probabilities, normalised and scaled as the model has it",
        (spec.expert_weights,),
    ),
    "ffn_moe_gate_up": Made(
        (INPUT, "ffn_moe_topk"),
        "product with the chosen matrices of blk.{i}.ffn_gate_up_exps.weight",
        _PRODUCT,
        instead=(),
    ),
    "ffn_moe_gate": Made(
        (INPUT, "ffn_moe_topk"),
        f"product with the chosen matrices of blk.{{i}}.ffn_gate_exps.weight {_FUSED}",
        _PRODUCT,
    ),
    "ffn_moe_up": Made(
        (INPUT, "ffn_moe_topk"), f"product with the chosen matrices of blk.{{i}}.ffn_up_exps.weight {_FUSED}", _PRODUCT
    ),
    "ffn_moe_swiglu": Made(("ffn_moe_gate", "ffn_moe_up"), "silu(gate) * up", (spec.swiglu,)),
    "ffn_moe_down": Made(
        ("ffn_moe_swiglu", "ffn_moe_topk"), "product with the chosen matrices of blk.{i}.ffn_down_exps.weight", _PRODUCT
    ),
    "ffn_moe_weighted": Made(
        ("ffn_moe_down", "ffn_moe_weights"), "each expert's result times its weight", (spec.weigh_experts,)
    ),
    "ffn_moe_out": Made(("ffn_moe_weighted",), "sum in the order of choice", (spec.sum_experts,)),
    "ffn_shexp": Made(
        (INPUT,),
        "products with blk.{i}.ffn_gate_shexp.weight and blk.{i}.ffn_up_shexp.weight, silu(gate) * up, product "
        "with blk.{i}.ffn_down_shexp.weight",
        (spec.mul_mat_exact, spec.swiglu),
        instead=(),
    ),
    "shared_expert_gate": Made((INPUT,), "product with blk.{i}.ffn_gate_inp_shexp.weight", _PRODUCT, instead=()),
    "ffn_shexp_gated": Made(
        ("ffn_shexp", "shared_expert_gate"), "times sigmoid of the gate", (spec.shared_gate,), instead=("ffn_shexp",)
    ),
    "ffn_out": Made(("ffn_moe_out", "ffn_shexp_gated"), "sum of the experts' and the shared expert's, if there is one"),
}
_MEAN = GRAPH | {
    "ffn_out": Made(
        ("ffn_moe_out", "ffn_shexp_gated"),
        "half the sum of the experts' and the shared expert's, if there is one, else the experts'",
        (spec.scaled_output,),
    )
}
# Of experts without a gate, on narrower rows where there are projections.
_PLAIN_GRAPH = {
    name: made
    for name, made in GRAPH.items()
    if name not in ("ffn_moe_gate_up", "ffn_moe_gate", "shared_expert_gate", "ffn_shexp_gated")
} | {
    "ffn_moe_up": Made(
        (INPUT, "ffn_moe_topk"),
        "product with blk.{i}.ffn_latent_down.weight if there is one, then with the chosen matrices of "
        "blk.{i}.ffn_up_exps.weight",
        _PRODUCT,
    ),
    "ffn_moe_relu_sqr": Made(("ffn_moe_up",), "max(up, 0)^2", (spec.relu_squared,)),
    "ffn_moe_down": Made(
        ("ffn_moe_relu_sqr", "ffn_moe_topk"),
        "product with the chosen matrices of blk.{i}.ffn_down_exps.weight",
        _PRODUCT,
    ),
    "ffn_moe_weighted": GRAPH["ffn_moe_weighted"],
    "ffn_moe_out": GRAPH["ffn_moe_out"],
    "ffn_shexp": Made(
        (INPUT,),
        "product with blk.{i}.ffn_up_shexp.weight, max(up, 0)^2, product with blk.{i}.ffn_down_shexp.weight",
        (spec.mul_mat_exact, spec.relu_squared),
    ),
    "ffn_out": Made(
        ("ffn_moe_out", "ffn_shexp"),
        "product of the experts' with blk.{i}.ffn_latent_up.weight if there is one, plus the shared expert's",
        _PRODUCT,
    ),
}
_PLAIN_GRAPH.pop("ffn_moe_swiglu")
# Probabilities by softmax, weights always normalised, whatever the keys say.
SOFTMAX_MOE_FFN = LayerKind("moe_ffn", _softmax, no_state, _forward, GRAPH)
# As the keys say: sigmoid and not normalised where they say nothing.
MOE_FFN = LayerKind("moe_ffn", _by_keys, no_state, _forward, GRAPH)
# The same, and the mean of the experts' and the shared expert's results in place of their sum.
AVERAGED_MOE_FFN = LayerKind("moe_ffn", _averaged, no_state, _forward, _MEAN)
# Probabilities by sigmoid, weights as the keys say, experts without a gate.
PLAIN_MOE_FFN = LayerKind("moe_ffn", _plain, no_state, _forward, _PLAIN_GRAPH)
# Probabilities by sigmoid, weights always normalised and never scaled, whatever the keys say.
SIGMOID_MOE_FFN = LayerKind("moe_ffn", _sigmoid, no_state, _forward, GRAPH)
