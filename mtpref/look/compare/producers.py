"""The graph of cb() names: what each activation is computed from, and by which step.

Owns one table, for the qwen35 trunk and its MTP block. Names are those that mtpref's taps give; llama.cpp's further
names (alpha, conv_input, ...) stand here too, so that a port's dump can say more. A test holds the table to a real
dump: each tapped name has an entry, and what it is computed from comes before it.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_LAYERED = re.compile(r"(?P<base>.+)-(?P<il>\d{1,6})")
LAYER_INPUT = "(layer input)"
TRUNK_HIDDEN = "h_nextn"


@dataclass(frozen=True)
class Producer:
    """One step. inputs: base names of the same layer; step: the operation, its weights and the rule in docs/spec.md."""

    inputs: tuple[str, ...]
    step: str


_MIXER_IN = {"attn_norm": Producer((LAYER_INPUT,), "rms_norm with blk.{i}.attn_norm.weight (S8)")}
_DELTA = {
    "linear_attn_qkv_mixed": Producer(("attn_norm",), "product with blk.{i}.attn_qkv.weight (S6)"),
    "z": Producer(("attn_norm",), "product with blk.{i}.attn_gate.weight (S6)"),
    "conv_states": Producer(
        (), "the conv window that earlier tokens left (zero at the start; rolled back after a rejection)"
    ),
    "conv_input": Producer(("conv_states", "linear_attn_qkv_mixed"), "the window, then the rows of the batch"),
    "conv_output_raw": Producer(
        ("conv_states", "linear_attn_qkv_mixed"), "convolution with blk.{i}.ssm_conv1d.weight (S11)"
    ),
    "conv_output_silu": Producer(
        ("conv_states", "linear_attn_qkv_mixed"), "convolution with blk.{i}.ssm_conv1d.weight, then silu (S11)"
    ),
    "q_conv_predelta": Producer(("conv_output_silu",), "its first H_k heads, l2_norm, epsilon inside the sum (S9)"),
    "k_conv_predelta": Producer(("conv_output_silu",), "its next H_k heads, l2_norm, epsilon inside the sum (S9)"),
    "v_conv_predelta": Producer(("conv_output_silu",), "its last H_v heads"),
    "alpha": Producer(("attn_norm",), "product with blk.{i}.ssm_alpha.weight (S6)"),
    "a_softplus": Producer(("attn_norm",), "softplus of the product with ssm_alpha plus ssm_dt.bias (S12)"),
    "gate": Producer(("attn_norm",), "blk.{i}.ssm_alpha.weight, softplus with ssm_dt.bias, times ssm_a (S6, S12)"),
    "beta": Producer(("attn_norm",), "product with blk.{i}.ssm_beta.weight (S6)"),
    "beta_sigmoid": Producer(("attn_norm",), "blk.{i}.ssm_beta.weight, then sigmoid (S6, S12)"),
    "state_predelta": Producer(
        (), "the recurrent state that earlier tokens left (zero at the start; rolled back after a rejection)"
    ),
    "attn_output": Producer(
        ("q_conv_predelta", "k_conv_predelta", "v_conv_predelta", "gate", "beta_sigmoid", "state_predelta"),
        "the delta rule; v-head h reads q- and k-head h mod H_k (S13)",
    ),
    "new_state": Producer(
        ("k_conv_predelta", "v_conv_predelta", "gate", "beta_sigmoid", "state_predelta"), "the delta rule's state (S13)"
    ),
    "final_output": Producer(
        ("attn_output", "z"), "rms_norm of each head with blk.{i}.ssm_norm.weight, times silu(z) (S14)"
    ),
    "linear_attn_out": Producer(("final_output",), "product with blk.{i}.ssm_out.weight (S6)"),
    "attn_residual": Producer(("linear_attn_out", LAYER_INPUT), "sum"),
}
_ATTENTION = {
    "Qcur_full": Producer(("attn_norm",), "product with blk.{i}.attn_q.weight: query and gate of each head (S6)"),
    "Vcur": Producer(("attn_norm",), "product with blk.{i}.attn_v.weight (S6)"),
    "Qcur_normed": Producer(
        ("Qcur_full",), "the query half of each head, rms_norm with blk.{i}.attn_q_norm.weight (S15, S8)"
    ),
    "Kcur_normed": Producer(("attn_norm",), "blk.{i}.attn_k.weight, rms_norm with blk.{i}.attn_k_norm.weight (S6, S8)"),
    "gate_reshaped": Producer(("Qcur_full",), "the gate half of each head (S15)"),
    "Qcur": Producer(("Qcur_normed",), "RoPE of the first n_rot dimensions, halves paired (S10)"),
    "Kcur": Producer(("Kcur_normed",), "RoPE of the first n_rot dimensions, halves paired (S10)"),
    "attn_pregate": Producer(("Qcur", "Kcur", "Vcur"), "causal attention over the KV cache (S16)"),
    "gate_sigmoid": Producer(("gate_reshaped",), "sigmoid (S17)"),
    "attn_gated": Producer(("attn_pregate", "gate_reshaped"), "times sigmoid of the gate (S17)"),
    "attn_output": Producer(("attn_gated",), "product with blk.{i}.attn_output.weight (S6)"),
    "attn_residual": Producer(("attn_output", LAYER_INPUT), "sum"),
}
_FFN = {
    "attn_post_norm": Producer(("attn_residual",), "rms_norm with blk.{i}.post_attention_norm.weight (S8)"),
    "ffn_gate": Producer(("attn_post_norm",), "product with blk.{i}.ffn_gate.weight (S6)"),
    "ffn_up": Producer(("attn_post_norm",), "product with blk.{i}.ffn_up.weight (S6)"),
    "ffn_swiglu": Producer(("ffn_gate", "ffn_up"), "silu(gate) * up (S18)"),
    "ffn_out": Producer(("ffn_swiglu",), "product with blk.{i}.ffn_down.weight (S6)"),
    "post_ffn": Producer(("ffn_out", "attn_residual"), "sum"),
    "l_out": Producer(("ffn_out", "attn_residual"), "sum"),
}
_MTP_IN = {
    "tok_embd": Producer(("tokens",), "rows of nextn.embed_tokens, else of token_embd; the token of its own position"),
    "hnorm": Producer(
        (TRUNK_HIDDEN,), "the trunk's row of the position before, rms_norm with blk.{i}.nextn.hnorm.weight (S20, S8)"
    ),
    "enorm": Producer(("tok_embd",), "rms_norm with blk.{i}.nextn.enorm.weight (S8)"),
    "concat": Producer(("enorm", "hnorm"), "embedding first, hidden second (S19)"),
    "eh_proj": Producer(("concat",), "product with blk.{i}.nextn.eh_proj.weight (S6)"),
}
_MTP_RENAMED = {"attn_output": "attn_out", "gate_reshaped": "gate"}  # as in mtpref/engine/model/model.py
_GLOBAL = {
    "tokens": Producer((), "the prompt: were both programs given the same ids?"),
    "model.input_embed": Producer(("tokens",), "rows of token_embd.weight"),
    "result_output": Producer(("result_norm",), "product with output.weight, else token_embd.weight (S6)"),
    "mtp_result_output": Producer(("mtp_shared_head_norm",), "product with nextn.shared_head_head, else output (S6)"),
}  # fmt: skip
_FINAL = "rms_norm with output_norm.weight (S8)"
_MTP_FINAL = "rms_norm with nextn.shared_head_norm.weight, else output_norm.weight (S8)"


def _mtp_table() -> dict[str, Producer]:
    table = dict(_MTP_IN)
    for base, producer in {**_MIXER_IN, **_ATTENTION, **_FFN}.items():
        inputs = tuple(_MTP_RENAMED.get(name, name) for name in producer.inputs)
        inputs = tuple("eh_proj" if name == LAYER_INPUT else name for name in inputs)
        table[_MTP_RENAMED.get(base, base)] = Producer(inputs, producer.step)
    return table


_MTP = _mtp_table()
_ORDER_DELTA = {name: i for i, name in enumerate({**_MIXER_IN, **_DELTA, **_FFN})}
_ORDER_ATTENTION = {name: i for i, name in enumerate({**_MIXER_IN, **_ATTENTION, **_FFN})}
_ORDER_MTP = {name: i for i, name in enumerate(_MTP)}
_LAST = 1 << 30


def producer_of(name: str, known: Collection[str]) -> Producer | None:
    """The step that makes a tensor, its inputs as whole names ("attn_norm-3"); None for an unknown name.

    known   the names at hand: they tell which mixer a layer has, and which layer is the last
    """
    if name in ("h_nextn", "result_norm"):
        return Producer((_last_output(known, "l_out"),), _FINAL)
    if name in ("mtp_h_nextn", "mtp_shared_head_norm"):
        return Producer((_last_output(known, "mtp_l_out"),), _MTP_FINAL)
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _LAYERED.fullmatch(name)
    if match is None:
        return None
    base, il = match["base"], int(match["il"])
    if base.startswith("mtp_"):
        found = _MTP.get(base[4:])
        return found and Producer(tuple(_mtp_name(n, il) for n in found.inputs), found.step.format(i=il))
    table = {**_MIXER_IN, **(_ATTENTION if _is_attention(il, known) else _DELTA), **_FFN}
    found = table.get(base)
    return found and Producer(tuple(_trunk_name(n, il) for n in found.inputs), found.step.format(i=il))


def _is_attention(il: int, known: Collection[str]) -> bool:
    return any(f"{base}-{il}" in known for base in _ATTENTION if base not in _DELTA)


def _last_output(known: Collection[str], base: str) -> str:
    layers = [int(m["il"]) for name in known if (m := _LAYERED.fullmatch(name)) and m["base"] == base]
    return f"{base}-{max(layers)}" if layers else f"{base}-(last)"


def _trunk_name(base: str, il: int) -> str:
    if base == LAYER_INPUT:
        return f"l_out-{il - 1}" if il else "model.input_embed"
    return f"{base}-{il}"


def _mtp_name(base: str, il: int) -> str:
    return base if base in (TRUNK_HIDDEN, "tokens") else f"mtp_{base}-{il}"


def in_execution_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the graph, for files that keep none; unknown ones stand last, as they were."""
    listed = list(names)
    known = frozenset(listed)
    return sorted(listed, key=lambda name: _execution_key(name, known))


def _execution_key(name: str, known: Collection[str]) -> tuple[int, int, int]:
    """(part of the graph, layer, place within it)."""
    fixed = {"tokens": (0, 0, 0), "model.input_embed": (0, 0, 1), "h_nextn": (2, 0, 0), "result_norm": (2, 0, 1),
             "result_output": (2, 0, 2), "mtp_h_nextn": (4, 0, 0), "mtp_shared_head_norm": (4, 0, 1),
             "mtp_result_output": (4, 0, 2)}  # fmt: skip
    if name in fixed:
        return fixed[name]
    match = _LAYERED.fullmatch(name)
    if match is None:
        return (5, 0, 0)
    base, il = match["base"], int(match["il"])
    if base.startswith("mtp_"):
        return (3, il, _ORDER_MTP.get(base[4:], _LAST))
    order = _ORDER_ATTENTION if _is_attention(il, known) else _ORDER_DELTA
    return (1, il, order.get(base, _LAST)) if base in order else (5, 0, 0)
