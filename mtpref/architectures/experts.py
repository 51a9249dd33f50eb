"""What data sheets of expert networks share: the counts, and the tensors of router, experts and shared expert."""

from mtpref.architectures.common import n_embd
from mtpref.architectures.dims import ONE, Dim
from mtpref.architectures.sheet import OPTIONAL, Either, FusedStack, Hyper, Tensor

n_expert = Hyper("n_expert", "expert_count", high=1 << 16, hf="num_experts")
n_expert_used = Hyper("n_expert_used", "expert_used_count", high=1 << 16, hf="num_experts_per_tok")
n_expert_group = Hyper(
    "n_expert_group", "expert_group_count", default=0, low=0, high=1 << 16, hf="n_group", hf_default=OPTIONAL
)
n_expert_group_used = Hyper("n_expert_group_used", "expert_group_used_count", default=0, low=0, high=1 << 16,
                            hf="topk_group", hf_default=OPTIONAL)  # fmt: skip
n_ff_exp = Hyper("n_ff_exp", "expert_feed_forward_length", hf="moe_intermediate_size")
# Of routers that say how they choose: 1 softmax, 2 sigmoid, 0 the architecture's own.
expert_gating_func = Hyper("expert_gating_func", "expert_gating_func", default=0, low=0, high=16, hf=lambda c: 2)
expert_weights_scale = Hyper("expert_weights_scale", "expert_weights_scale", "f32", default=0.0, low=0.0, high=1e6,
                             hf="routed_scaling_factor", hf_default=OPTIONAL)  # fmt: skip
expert_weights_norm = Hyper(
    "expert_weights_norm", "expert_weights_norm", "bool", default=False, hf="norm_topk_prob", hf_default=OPTIONAL
)

_GATE_UP = (("ffn_gate_exps.weight", n_ff_exp), ("ffn_up_exps.weight", n_ff_exp))


def router(hf: str) -> Tensor:
    """The router. hf: its name in a checkpoint"""
    return Tensor("ffn_gate_inp.weight", (n_expert, n_embd), hf, cb="ffn_moe_logits", stays_f32=True)


def expert_stacks(*, has_fused: bool) -> tuple[Tensor | Either, ...]:
    """The experts' matrices. has_fused: whether a file may have gate and up in one stack, which goes first"""
    gate = Tensor(
        "ffn_gate_exps.weight", (n_expert, n_ff_exp, n_embd), "mlp.experts.{e}.gate_proj.weight", cb="ffn_moe_gate"
    )
    up = Tensor("ffn_up_exps.weight", (n_expert, n_ff_exp, n_embd), "mlp.experts.{e}.up_proj.weight", cb="ffn_moe_up")
    down = Tensor("ffn_down_exps.weight", (n_expert, n_embd, n_ff_exp), "mlp.experts.{e}.down_proj.weight",
                  role="ffn_down", cb="ffn_moe_down")  # fmt: skip
    if not has_fused:
        return gate, up, down
    fused = Tensor("ffn_gate_up_exps.weight", (n_expert, 2 * n_ff_exp, n_embd), parts=_GATE_UP, cb="ffn_moe_gate_up")
    return Either(((fused,), (gate, up))), down


def shared_expert(width: Dim, hf: str, *, is_gated: bool) -> tuple[Tensor, ...]:
    """The shared expert. hf: its prefix in a checkpoint; is_gated: one number a token goes over its result"""
    gate = Tensor("ffn_gate_inp_shexp.weight", (ONE, n_embd), "mlp.shared_expert_gate.weight", cb="shared_expert_gate",
                  stays_f32=True)  # fmt: skip
    return (
        *([gate] if is_gated else []),
        Tensor("ffn_gate_shexp.weight", (width, n_embd), f"{hf}.gate_proj.weight", cb="ffn_shexp"),
        Tensor("ffn_up_shexp.weight", (width, n_embd), f"{hf}.up_proj.weight", cb="ffn_shexp"),
        Tensor("ffn_down_shexp.weight", (n_embd, width), f"{hf}.down_proj.weight", role="ffn_down", cb="ffn_shexp"),
    )


# All experts at once, as transformers keeps them in memory and some checkpoints on disk.
FUSED_STACKS = (
    FusedStack("mlp.experts.gate_up_proj", ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight")),
    FusedStack("mlp.experts.down_proj", ("mlp.experts.{e}.down_proj.weight",)),
)
