"""Attention through a latent row with a gate for each head. Its numerics are those of latent.py (S55 to S57, S97).

Owns what such a layer's keys say: one row a token for all heads, scores divided by the root of the key's width before
absorption and by nothing else, and sections of RoPE (S132) where the model has them.
"""

from dataclasses import replace

from mtpref import spec
from mtpref.base.errors import MtprefError
from mtpref.spec.config import LatentConfig, Values, read_rope_scaling
from mtpref.spec.kinds import latent
from mtpref.spec.kinds.kind import INPUT, Made

_ROPE = "RoPE, neighbours paired (halves, where the model has sections)"


def _configure(v: Values) -> LatentConfig:
    n_key, n_rot, n_latent = v["n_key"], v["n_rot"], v["n_latent"]
    label = f"{v.meta.source}: key {v.meta.arch}"
    if n_rot % 2 or n_rot >= n_key:
        raise MtprefError(f"{label}.rope.dimension_count is {n_rot}, expected an even count below {n_key}, the width "
                          "of a head's key; try: mtpref inspect FILE")  # fmt: skip
    if v["n_embd_head"] != n_latent + n_rot:
        raise MtprefError(
            f"{label}.attention.key_length is {v['n_embd_head']}, expected {n_latent + n_rot} = kv_lora_rank + "
            "rope.dimension_count; convert the model again"
        )
    if v["n_head_kv"] != 1:
        raise MtprefError(f"{label}.attention.head_count_kv is {v['n_head_kv']} for a layer of attention, expected 1: "
                          "one row serves all heads; convert the model again")  # fmt: skip
    sections = tuple(v["rope_sections"])
    if min(sections) < 0:
        raise MtprefError(f"{label}.rope.dimension_sections is {list(sections)}, expected counts of pairs; try: mtpref "
                          "inspect FILE")  # fmt: skip
    freq_base = v["freq_base"] if v.meta.rope.freq_base is None else v.meta.rope.freq_base
    cfg = LatentConfig(
        n_embd=v["n_embd"],
        n_head=v["n_head"],
        n_key=n_key,
        n_value=v["n_value"],
        n_latent=n_latent,
        n_rot=n_rot,
        freq_base=freq_base,
        rms_eps=v["rms_eps"],
        is_absorbed=True,
        rope_scaling=read_rope_scaling(v.meta, freq_base),
        rope_sections=sections if sections[0] and sections[1] else None,
    )
    return replace(cfg, scale=spec.latent_scale(cfg.n_key, cfg.n_row, 1.0, 1.0, 0.0))


_RULES = (spec.rope_interleaved, spec.rope, spec.mrope_has_position)
GRAPH = latent.GRAPH | {
    "k_pe": Made(("kv_cmpr_pe",), f"the turned part, not normed: {_ROPE}", _RULES),
    "q_pe": Made(("q",), f"the last n_rot dimensions of each head, {_ROPE}", _RULES),
}
del GRAPH["kv"], GRAPH["Vcur"]
GRAPH |= {
    "q_nope_absorbed_perm": replace(GRAPH["q_nope_absorbed_perm"], instead=None),
    "Qcur": Made(("q_nope_absorbed_perm", "q_pe"), "[absorbed | turned] of each head"),
    "Kcur": Made(("kv_cmpr", "k_pe"), "[latent | turned], a row for all heads"),
    "kqv_out": replace(GRAPH["kqv_out"], inputs=("Qcur", "Kcur")),
}
_last = GRAPH.pop("attn_output")
GRAPH |= {
    "attn_gate": Made((INPUT,), "product with blk.{i}.attn_gate.weight, a number a head", (spec.mul_mat_exact,)),
    "attn_gated": Made(("kqv_out", "attn_gate"), "each head times sigmoid of its gate", (spec.head_gate,)),
    "attn_output": replace(_last, inputs=("attn_gated",)),
}
GATED_LATENT_ATTENTION = replace(latent.LATENT_ATTENTION, configure=_configure, graph=GRAPH)
