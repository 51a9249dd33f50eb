"""Planted micro models of architectures with experts, from their data sheets.

The same rule as in micro_plant.py, planted in the tensors of qwen35 first and then laid out as the data sheet lists
them: plain attention in place of gated, a DeltaNet layer's projections fused, the feed-forward network that carries the
rule as the shared expert. Router and experts are hash noise, strong enough that a wrong choice moves the logits.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import micro_layers as layers
import micro_plant as mp
import numpy as np
from micro_gguf import F32, shuffled, uniform

from mtpref.architectures import ARCHITECTURES, Architecture, Block, Either, Tensor, numbers
from mtpref.architectures.indexer import Sharing
from mtpref.architectures.sheet import ByTensor, LeadingDense
from mtpref.spec.config import Metadata

ROUTER = 0.5
EXPERT_WRITE = 0.05
SHARED_GATE = 2.0  # logit of the shared expert's gate, moved by the token
SIGMOID_2 = 0.8808
BIAS_OF_EXPERTS = 0.15
BIAS_OF_QKV = 0.3
# An indexer's products with the layer's input.
INDEX_KEYS = 1e-3  # so small that the epsilon of their norm counts
OF_INPUT = ("indexer.attn_k.weight", "indexer.proj.weight")
# Attention through a latent row: of expansions, and what its output writes to the context.
LATENT_NOISE = 2.0
LATENT_CONTEXT = 0.03
# Without DeltaNet layers all context comes by attention.
CONTEXT_BY_ATTENTION = 0.12


@dataclass(frozen=True)
class LatentShape:
    """Attention through a latent row, where an architecture has that."""

    n_query: int = 64  # width of the queries' latent; 0: none
    n_row: int = 32  # width of the latent of keys and values
    n_rot: int = 8
    n_nope: int = 64
    n_value: int = 16
    is_old: bool = False  # keys and values in one tensor, no keys for the absorbed form
    yarn: float | None = None  # YaRN; mscale_all_dim, 0: no key
    gating: int | None = 2  # None: no key
    # An indexer, where an architecture has that: cells that a token sees, and the layers with an indexer of their own.
    n_index_head: int = 8
    n_index_key: int = 64
    n_top: int = 12
    types: tuple[bool, ...] | None = None  # None: no key
    has_unread: bool = False  # whether the head has an indexer where a file need not have it


@dataclass(frozen=True)
class MoeShape:
    """What a model has beside a MicroShape (whose n_ff is the shared expert's width, or the dense width)."""

    n_expert: int = 6
    n_used: int = 3
    n_ff_exp: int = 32
    n_ff_dense: int = 96
    n_dense: int = 1  # layers in front that are dense, where an architecture has them
    n_group: int = 1
    n_group_used: int = 0
    scale: float = 1.8
    normalise: bool = True
    fused: bool = False  # gate and up of the experts in one stack, a DeltaNet layer's q, k, v and z in one tensor
    n_heads: int = 1  # MTP blocks
    latent: LatentShape = field(default_factory=lambda: LatentShape())
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape(n_head=6, n_v_head=6))


# Rows that K types need; experts of 256, a shared expert of 512.
K_MICRO = mp.MicroShape(n_embd=256, n_ff=512, n_head=8, head_dim=64, n_rot=32, state_size=64, n_v_head=8)
K_MOE = MoeShape(n_ff_exp=256, n_ff_dense=768, micro=K_MICRO)


def micro_values(sheet: Architecture, shape: MoeShape) -> dict[str, Any]:
    """Hyper-parameters by the data sheet's names."""
    m = shape.micro
    pairs = m.n_rot // 2
    values: dict[str, Any] = {
        "n_block": m.n_layer + shape.n_heads,
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_ff": shape.n_ff_dense,
        "n_head": m.n_head,
        "n_head_kv": m.n_head_kv,
        "freq_base": 10000.0,
        "rms_eps": 1e-6,
        "n_embd_head": m.head_dim,
        "n_embd_head_v": m.head_dim,
        "n_rot": m.n_rot,
        "rope_sections": [np.int32(n) for n in mp.rope_sections(pairs)],
        "d_conv": m.d_conv,
        "d_state": m.state_size,
        "n_k_head": m.n_k_head,
        "n_v_head": m.n_v_head,
        "d_inner": m.n_v_head * m.state_size,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "n_expert_shared": m.n_ff // shape.n_ff_exp,
        "n_ff_exp": shape.n_ff_exp,
        "n_ff_shexp": m.n_ff,
        "expert_gating_func": 2,
        "expert_weights_norm": shape.normalise,
        "expert_weights_scale": shape.scale,
    }
    if shape.n_group > 1:
        values |= {"n_expert_group": shape.n_group, "n_expert_group_used": shape.n_group_used}
    known = {hyper.name for hyper in sheet.hypers}
    if "n_latent" in known:
        values |= latent_values(shape.latent, m.n_head)
    if not isinstance(sheet.layers, LeadingDense | ByTensor | Sharing):
        del values["n_ff"]  # no dense layers: converted files have no such key
    if isinstance(sheet.layers, ByTensor):
        values["n_rot"] = m.head_dim  # the whole head turns
    if any(hyper.name == "rope_sections" and hyper.default is not None for hyper in sheet.hypers):
        del values["rope_sections"]  # a model for pictures
    return {name: value for name, value in values.items() if name in known and value is not None}


def latent_values(latent: LatentShape, n_head: int) -> dict[str, Any]:
    """Hyper-parameters of attention through a latent row."""
    n_key = latent.n_nope + latent.n_rot
    return {
        "n_head_kv": n_head if latent.is_old else 1,
        "n_rot": latent.n_rot,
        "n_latent": latent.n_row,
        "n_q_latent": latent.n_query or None,
        "n_embd_head": n_key if latent.is_old else latent.n_row + latent.n_rot,
        "n_embd_head_v": latent.n_value if latent.is_old else latent.n_row,
        "n_key": None if latent.is_old else n_key,
        "n_value": None if latent.is_old else latent.n_value,
        "expert_gating_func": latent.gating,
        "log_multiplier": 0.1 * latent.yarn if latent.yarn else None,
        "n_index_head": latent.n_index_head,
        "n_index_key": latent.n_index_key,
        "n_top": latent.n_top,
        "indexer_types": None if latent.types is None else list(latent.types),
    }


def micro_keys(sheet: Architecture, shape: MoeShape) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    values = micro_values(sheet, shape)
    keys: dict[str, object] = {
        "general.architecture": sheet.name,
        "general.name": "mtpref micro",
        "general.alignment": 32,
    }
    keys |= {f"{sheet.name}.{hyper.key}": values[hyper.name] for hyper in sheet.hypers if hyper.name in values}
    keys[f"{sheet.name}.nextn_predict_layers"] = shape.n_heads
    layers_by = sheet.layers.own if isinstance(sheet.layers, Sharing) else sheet.layers
    if isinstance(layers_by, LeadingDense):
        keys[f"{sheet.name}.{layers_by.key}"] = shape.n_dense
    if hasattr(sheet.layers, "interval"):
        keys[f"{sheet.name}.{sheet.layers.interval}"] = shape.micro.n_layer
    if shape.latent.yarn is not None:
        keys[f"{sheet.name}.rope.scaling.type"] = "yarn"
        keys[f"{sheet.name}.rope.scaling.factor"] = 4.0
        keys[f"{sheet.name}.rope.scaling.original_context_length"] = 64
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(shape.micro.n_vocab)]
    return keys


def micro_blocks(sheet: Architecture, shape: MoeShape) -> tuple[Block, ...]:
    """The trunk's blocks, then the heads'."""
    meta = Metadata(micro_keys(sheet, shape), "micro")
    names = frozenset(f"blk.{il}.ffn_gate_inp.weight" for il in range(shape.n_dense, shape.micro.n_layer + 1))
    assert sheet.head is not None
    return (*sheet.layers.blocks(meta, shape.micro.n_layer, names), *[sheet.head.block] * shape.n_heads)


def plant_moe(seed: int, wrong: float, sheet: Architecture, shape: MoeShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    from make_micro import plant_mtp

    plant = mp.Plant(seed, shape.micro, wrong)
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=variant.untied)
    blocks = micro_blocks(sheet, shape)
    n_layer = shape.micro.n_layer
    for il, block in enumerate(blocks[:n_layer]):
        plant_block(plant, il, block, shape)
    for head in range(shape.n_heads):
        plant_mtp(plant, variant, final_norm, out_codes, mark, n_layer + head, 5 + 3 * head)
        if head:
            own_units(plant, n_layer + head, shape.micro.n_ff)
    values = {**micro_values(sheet, shape), "n_vocab": shape.micro.n_vocab}
    values.setdefault("n_ff", shape.n_ff_dense)
    made = {name: x for name, x in plant.tensors.items() if not name.startswith("blk.")}
    for il, block in enumerate(blocks):
        prefix = f"blk.{il}."
        own = {name.removeprefix(prefix): x for name, x in plant.tensors.items() if name.startswith(prefix)}
        laid = lay_out(plant, il, block, own, values, shape)
        made |= {prefix + name: x for name, x in laid.items()}
    return made


def own_units(plant: mp.Plant, il: int, n_ff: int) -> None:
    """The rule of a network is planted alike in every head: its units stand in an order of the head's own."""
    order = shuffled(plant.seed, f"units of {il}", n_ff)
    for part in ("gate", "up"):
        plant.tensors[f"blk.{il}.ffn_{part}.weight"] = plant.tensors[f"blk.{il}.ffn_{part}.weight"][order]
    down = plant.tensors[f"blk.{il}.ffn_down.weight"]
    plant.tensors[f"blk.{il}.ffn_down.weight"] = np.ascontiguousarray(down[:, order])


def plant_block(plant: mp.Plant, il: int, block: Block, shape: MoeShape) -> None:
    """One trunk layer in qwen35's tensors."""
    is_last, names = il == shape.micro.n_layer - 1, {tensor.name for tensor in block.all_tensors()}
    if "ssm_a" in names:
        layers.delta_net_layer(plant, il)
    else:
        by_delta = any(name.endswith("ssm_a") for name in plant.tensors)
        layers.attention_layer(plant, il, mp.TRUNK_ATTENTION if by_delta else CONTEXT_BY_ATTENTION)
    whole = plant.shape
    if "ffn_gate_inp.weight" not in names:
        plant.shape = replace(whole, n_ff=shape.n_ff_dense)
    if is_last:
        layers.rule_ffn(plant, il)
    else:
        layers.store_ffn(plant, il, *layers.ffn(plant, il))
    plant.shape = whole


def lay_out(
    plant: mp.Plant, il: int, block: Block, own: dict[str, F32], values: dict[str, int], shape: MoeShape
) -> dict[str, F32]:
    """A block's planted tensors as its data sheet lists them."""
    if block.mixer.name.endswith("latent_attention"):
        m = shape.latent
        values = values | {"n_q_latent": m.n_query, "n_key": m.n_nope + m.n_rot, "n_value": m.n_value}
        values |= {"n_index_head": m.n_index_head, "n_index_key": m.n_index_key}
        tensors = latent_choice(block, shape)
        wanted = {tensor.name: numbers(tensor.shape, values) for tensor in tensors}
        own = with_latent(plant, il, own, wanted, shape)
    else:
        wanted = {tensor.name: numbers(tensor.shape, values) for tensor in chosen(block, shape.fused)}
    if block.mixer.name == "attention":
        own = without_gate(plant, il, own, shape.micro)
    if shape.fused and block.mixer.name == "attention":
        for kind in ("weight", "bias"):
            own[f"attn_qkv.{kind}"] = np.concatenate([own.pop(f"attn_{part}.{kind}") for part in "qkv"])
    if "ffn_norm.weight" in wanted and "ffn_norm.weight" not in own:
        own["ffn_norm.weight"] = own.pop("post_attention_norm.weight")
    if "ffn_gate_inp.weight" in wanted:
        own = with_experts(plant, il, own, wanted, shape)
    if "ssm_ba.weight" in wanted:
        own = with_fused_projections(own, wanted, shape.micro)
    return checked(own, wanted)


def checked(made: dict[str, F32], wanted: dict[str, Any]) -> dict[str, F32]:
    """The tensors, once they are those of the data sheet (a head's own may be more) in its shapes."""
    for name, dims in wanted.items():
        assert made[name].shape == dims, (name, made[name].shape, dims)
    extra = {name for name in made if name.startswith("nextn.")}
    assert set(made) == set(wanted) | extra, set(made) ^ set(wanted)
    return made


def chosen(block: Block, fused: bool = False) -> list[Tensor]:
    """The tensors of a block: of alternatives the fused ones or the others; every optional one."""
    found: list[Tensor] = []
    for item in block.tensors:
        choices = item.choices if isinstance(item, Either) else ((item,),)
        sizes = [len(choice) for choice in choices]
        found += choices[sizes.index(min(sizes) if fused else max(sizes))]
    return found


def latent_choice(block: Block, shape: MoeShape) -> list[Tensor]:
    """The tensors of a block with a latent row: of queries and of keys and values the form that the shape says."""
    left_out = {"attn_k_b.weight", "attn_v_b.weight"} if shape.latent.is_old else {"attn_kv_b.weight"}
    left_out |= {"attn_q.weight"} if shape.latent.n_query else {f"attn_q_{x}.weight" for x in ("a", "a_norm", "b")}
    left_out |= {f"ffn_{x}_exps.weight" for x in (("gate", "up") if shape.fused else ("gate_up",))}
    is_left_out = "sharing" in block.mixer.name or not shape.latent.has_unread
    left_out |= {t.name for t in block.all_tensors() if t.group == "indexer" and is_left_out}
    return [tensor for tensor in block.all_tensors() if tensor.name not in left_out]


def with_latent(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: MoeShape
) -> dict[str, F32]:
    """Attention through a latent row in place of the planted one: noise that writes as that does."""
    prefix, norm = f"blk.{il}.", own["attn_norm.weight"]
    made = {name: x for name, x in own.items() if not name.startswith("attn_") or name == "attn_norm.weight"}
    for name, dims in wanted.items():
        if name.endswith(("q_a_norm.weight", "kv_a_norm.weight")):
            made[name] = plant.gamma(prefix + name, dims[0], 0.9, 1.6)
            del plant.tensors[prefix + name]
        elif name == "indexer.k_norm.weight":
            made[name] = plant.gamma(prefix + name, dims[0], 0.7, 1.3)
            del plant.tensors[prefix + name]
        elif name == "indexer.k_norm.bias":
            made[name] = uniform(plant.seed, prefix + name, dims) * np.float32(BIAS_OF_QKV)
        elif name == "indexer.attn_q_b.weight":
            made[name] = uniform(plant.seed, prefix + name, dims) * np.float32(LATENT_NOISE * dims[-1] ** -0.5)
        elif name in ("attn_q_a.weight", "attn_q.weight", "attn_kv_a_mqa.weight", *OF_INPUT):
            made[name] = plant.noise(prefix + name, dims, 0.4) / norm
            if name == "indexer.attn_k.weight":
                made[name] = made[name] * np.float32(INDEX_KEYS)
        elif name == "attn_output.weight":
            out = plant.writer(prefix + name, dims[1], mp.WRITE_NOISE)
            c = shape.micro.channels[0]
            out[c] += plant.noise(prefix + "attn_output.context", (shape.micro.n_context, dims[1]), LATENT_CONTEXT)
            made[name] = out
        elif name.startswith("attn_") and name not in made:
            made[name] = uniform(plant.seed, prefix + name, dims) * np.float32(LATENT_NOISE * dims[-1] ** -0.5)
    return made


def without_gate(plant: mp.Plant, il: int, own: dict[str, F32], m: mp.MicroShape) -> dict[str, F32]:
    """Plain attention: the queries without their gates, the output at the gates' mean, biases."""
    q = own["attn_q.weight"].reshape(m.n_head, 2, m.head_dim, m.n_embd)[:, 0].reshape(-1, m.n_embd)
    out = own["attn_output.weight"] * np.float32(0.5)
    changed = {"attn_q.weight": np.ascontiguousarray(q), "attn_output.weight": out}
    for part in "qkv":
        rows = len(changed["attn_q.weight"]) if part == "q" else len(own[f"attn_{part}.weight"])
        name = f"attn_{part}.bias"
        changed[name] = uniform(plant.seed, f"blk.{il}.{name}", (rows,)) * np.float32(BIAS_OF_QKV)
    return own | changed


def with_experts(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: MoeShape
) -> dict[str, F32]:
    """The feed-forward network as the shared expert, with a router and experts of noise."""
    made = {name: x for name, x in own.items() if not name.startswith("ffn_") or name == "ffn_norm.weight"}
    norm = own.get("ffn_norm.weight", own.get("post_attention_norm.weight"))
    assert norm is not None
    made |= {f"ffn_{part}_shexp.weight": own[f"ffn_{part}.weight"] for part in ("gate", "up", "down")}
    prefix = f"blk.{il}."
    if "ffn_gate_inp_shexp.weight" in wanted:
        gate = plant.noise(prefix + "ffn_gate_inp_shexp.weight", (1, len(norm)), 0.05)
        gate[:, mp.BIAS] += np.float32(SHARED_GATE)
        made["ffn_gate_inp_shexp.weight"] = gate / norm
        made["ffn_down_shexp.weight"] = made["ffn_down_shexp.weight"] / np.float32(SIGMOID_2)
    for name in wanted:
        if name.startswith("exp_probs_b"):
            made[name] = uniform(plant.seed, prefix + name, (shape.n_expert,)) * np.float32(BIAS_OF_EXPERTS)
    router = plant.noise(prefix + "ffn_gate_inp.weight", (shape.n_expert, len(norm)), ROUTER)
    made["ffn_gate_inp.weight"] = router / norm
    width = shape.n_ff_exp
    stacks = {
        part: plant.noise(f"{prefix}ffn_{part}_exps.weight", (shape.n_expert, width, len(norm)), 0.4) / norm
        for part in ("gate", "up")
    }
    if "ffn_gate_up_exps.weight" in wanted:
        made["ffn_gate_up_exps.weight"] = np.concatenate([stacks["gate"], stacks["up"]], axis=1)
    else:
        made |= {f"ffn_{part}_exps.weight": x for part, x in stacks.items()}
    down = [plant.writer(f"{prefix}ffn_down_exps.weight {e}", width, EXPERT_WRITE) for e in range(shape.n_expert)]
    made["ffn_down_exps.weight"] = np.stack(down)
    return made


def with_fused_projections(own: dict[str, F32], wanted: dict[str, Any], m: mp.MicroShape) -> dict[str, F32]:
    """ssm_ba of beta and alpha, and ssm_in of the others where it is wanted: rows grouped by key head."""
    r, size, n_k = m.n_v_head // m.n_k_head, m.state_size, m.n_k_head

    def groups(x: F32) -> F32:
        return x.reshape(n_k, -1, m.n_embd)

    beta, alpha = own.pop("ssm_beta.weight"), own.pop("ssm_alpha.weight")
    own["ssm_ba.weight"] = np.concatenate([groups(beta), groups(alpha)], axis=1).reshape(-1, m.n_embd)
    if "ssm_in.weight" in wanted:
        qkv, z = own.pop("attn_qkv.weight"), own.pop("attn_gate.weight")
        n_key = n_k * size
        parts = [groups(qkv[:n_key]), groups(qkv[n_key : 2 * n_key]), groups(qkv[2 * n_key :]), groups(z)]
        own["ssm_in.weight"] = np.concatenate(parts, axis=1).reshape(-1, m.n_embd)
        assert own["ssm_in.weight"].shape[0] == 2 * n_key + 2 * r * n_key
    return own


def sheet_of(arch: str) -> Architecture:
    """The data sheet. Errors: ValueError for an architecture that has no experts here"""
    if arch not in ARCHITECTURES:
        raise ValueError(f"--arch {arch}: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[arch]
