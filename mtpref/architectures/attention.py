"""The tensors of plain attention: biases and norms of q and k where a file has them, or one fused projection."""

from mtpref.architectures.common import n_embd, n_embd_head, n_head, n_head_kv
from mtpref.architectures.sheet import Either, Tensor

_query, _key = n_head * n_embd_head, n_head_kv * n_embd_head


def plain_attention(*, needs_norms: bool) -> tuple[Tensor | Either, ...]:
    """needs_norms: whether a file without the norms of q and k is refused"""
    q, k, v = (
        Tensor(f"attn_{part}.weight", (rows, n_embd), f"self_attn.{part}_proj.weight", role=role, cb=cb)
        for part, rows, role, cb in (
            ("q", _query, "", "Qcur_normed"),
            ("k", _key, "attn_k", "Kcur_normed"),
            ("v", _key, "attn_v", "Vcur"),
        )
    )
    biases = tuple(
        Tensor(f"attn_{part}.bias", (rows,), f"self_attn.{part}_proj.bias", optional=True, cb=cb)
        for part, rows, cb in (("q", _query, "Qcur_normed"), ("k", _key, "Kcur_normed"), ("v", _key, "Vcur"))
    )
    fused = Tensor("attn_qkv.weight", (_query + 2 * _key, n_embd), role="attn_v", cb="Vcur",
                   parts=(("attn_q.weight", _query), ("attn_k.weight", _key), ("attn_v.weight", _key)))  # fmt: skip
    fused_bias = Tensor("attn_qkv.bias", (_query + 2 * _key,), cb="Vcur", optional=True,
                        parts=(("attn_q.bias", _query), ("attn_k.bias", _key), ("attn_v.bias", _key)))  # fmt: skip
    return (
        Either(((fused,), (q, k, v))),
        Either(((fused_bias,), biases)),
        Tensor("attn_output.weight", (n_embd, _query), "self_attn.o_proj.weight", role="attn_output", cb="attn_output"),
        Tensor(
            "attn_q_norm.weight", (n_embd_head,), "self_attn.q_norm.weight", optional=not needs_norms, cb="Qcur_normed"
        ),
        Tensor(
            "attn_k_norm.weight", (n_embd_head,), "self_attn.k_norm.weight", optional=not needs_norms, cb="Kcur_normed"
        ),
    )
