"""The plain attention layer kind: biases and norms of q and k where the file has them, no gate. Its numerics are
mtpref/spec/ops/compose.py:plain_attn_layer (S6, S8, S10, S15, S16, S49)."""

from dataclasses import replace

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.spec.config import AttnConfig, Values
from mtpref.spec.kinds.gated_attention import ROPE, configure, forward_by, kv_state
from mtpref.spec.kinds.kind import INPUT, LayerKind, Made


def _configure_whole(v: Values) -> AttnConfig:
    cfg = configure(v)
    if cfg.n_rot != cfg.n_embd_head:
        raise MtprefError(
            f"{v.meta.source}: {v.meta.arch}.rope.dimension_count is {cfg.n_rot}, expected {cfg.n_embd_head} = "
            f"attention.key_length: heads of {v.meta.arch} turn as a whole; convert the model again"
        )
    return cfg


def _configure_text(v: Values) -> AttnConfig:
    sections = v["rope_sections"]
    if min(sections[:2]) > 0:
        raise UnsupportedError(
            f"{v.meta.source}: {v.meta.arch}.rope.dimension_sections is {list(sections)}: a model for pictures, which "
            "is not supported; expected no sections"
        )
    return replace(configure(v), rope_sections=None)


_FUSED = "(or its rows of blk.{i}.attn_qkv.weight and attn_qkv.bias)"


def _projected(part: str) -> str:
    return f"product with blk.{{i}}.attn_{part}.weight, plus blk.{{i}}.attn_{part}.bias if there is one {_FUSED}"


_NORMED = (spec.mul_mat_exact, spec.add_bias, spec.rms_norm)
GRAPH = {
    "Vcur": Made((INPUT,), _projected("v"), (spec.mul_mat_exact, spec.add_bias)),
    "Qcur_normed": Made(
        (INPUT,), f"{_projected('q')}, rms_norm with blk.{{i}}.attn_q_norm.weight if there is one", _NORMED
    ),
    "Kcur_normed": Made(
        (INPUT,), f"{_projected('k')}, rms_norm with blk.{{i}}.attn_k_norm.weight if there is one", _NORMED
    ),
    "Qcur": Made(("Qcur_normed",), ROPE, (spec.rope,)),
    "Kcur": Made(("Kcur_normed",), ROPE, (spec.rope,)),
    "kqv_out": Made(("Qcur", "Kcur", "Vcur"), "causal attention over the KV cache", (spec.attention,)),
    "attn_output": Made(("kqv_out",)),
}
_STILL = GRAPH | {
    "Qcur": Made(("Qcur_normed",), "as it is: layers of this model do not turn"),
    "Kcur": Made(("Kcur_normed",), "as it is: layers of this model do not turn"),
    "attn_output": Made(
        ("kqv_out",), _projected("output").removesuffix(f" {_FUSED}"), (spec.mul_mat_exact, spec.add_bias)
    ),
}
_forward = forward_by(lambda ops: ops.plain_attn_layer)
ATTENTION = LayerKind("attention", configure, kv_state, _forward, GRAPH)
# The same without RoPE, in architectures that have no count of turned dimensions.
STILL_ATTENTION = LayerKind("attention", configure, kv_state, _forward, _STILL)
# The same with plain RoPE, where files for pictures have other sections: those are refused.
TEXT_ATTENTION = LayerKind("attention", _configure_text, kv_state, _forward, GRAPH)
# The same where RoPE must turn the whole head.
WHOLE_ROTARY_ATTENTION = LayerKind("attention", _configure_whole, kv_state, _forward, GRAPH)
