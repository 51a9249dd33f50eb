"""The experts' network kind. Its numerics are mtpref/spec/ops/compose_moe.py:moe_ffn (S6, S18, S41 to S48)."""

from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import MoeConfig, Values
from mtpref.spec.kinds.kind import F32, LayerKind, Span, no_state
from mtpref.spec.ops import LayerTap, LayerWeights
from mtpref.spec.state import LayerState

# Numbers of expert_gating_func: 0 is "the architecture's own".
_GATINGS = {1: "softmax", 2: "sigmoid"}


def _configured(v: Values, gating: str, normalise: bool, scale: float) -> MoeConfig:
    n_expert, n_used, n_group, n_group_used = (
        v[name] for name in ("n_expert", "n_expert_used", "n_expert_group", "n_expert_group_used")
    )

    def wrong(key: str, value: int, expected: str) -> MtprefError:
        return MtprefError(f"{v.meta.source}: key {v.meta.arch}.{key} is {value}, expected {expected}; "
                           "try: mtpref inspect FILE")  # fmt: skip

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


def _by_keys(v: Values) -> MoeConfig:
    func = v["expert_gating_func"]
    if func > max(_GATINGS):
        raise UnsupportedError(f"{v.meta.source}: {v.meta.arch}.expert_gating_func is {func}, expected 1 (softmax) or "
                               "2 (sigmoid): others are not supported")  # fmt: skip
    return _configured(v, _GATINGS.get(func, "sigmoid"), v["expert_weights_norm"], v["expert_weights_scale"])


def _forward(w: LayerWeights, cfg: MoeConfig, x: F32, state: LayerState, span: Span, tap: LayerTap) -> F32:
    y, routing = span.ops.moe_ffn(span.ops, w, cfg, x, tap)
    span.routings.append(routing)
    return y


# Probabilities by softmax, weights always normalised, whatever the keys say.
SOFTMAX_MOE_FFN = LayerKind("moe_ffn", _softmax, no_state, _forward)
# As the keys say: sigmoid and not normalised where they say nothing.
MOE_FFN = LayerKind("moe_ffn", _by_keys, no_state, _forward)
