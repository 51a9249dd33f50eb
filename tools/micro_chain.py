"""Planted micro models of architectures with several MTP blocks in a chain: step35 and mimo2, from their data sheets.

The rule of micro_plant.py, in dense layers and shared experts. Attention, routers and experts are hash noise, strong
enough that a wrong window, base, gate, sink or choice moves the logits. Every head has weights of its own, and codes in
an order of its own where it has its own embeddings or output, so that no head stands in for another.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import micro_layers as layers
import micro_moe as mm
import micro_plant as mp
import numpy as np
from micro_gguf import F32, uniform

from mtpref.architectures import ARCHITECTURES, Architecture, Block, Tensor, numbers
from mtpref.spec.config import Metadata, Values

ATTENTION_NOISE = 0.5
CONTEXT_GAIN = 0.06  # what attention's output writes to the context
GATE_OF_HEADS = 0.5
SINKS = 2.0
HIDDEN_GAIN = 1.6  # a raw row's norm is about that much of the final norm's result


@dataclass(frozen=True)
class ChainShape:
    """Hyper-parameters under their GGUF meanings; tuples have an item for each block, the heads last.

    windowed  blocks with a window          moe     blocks with experts
    n_head, n_head_kv  of blocks without a window, and of those with one
    fused     q, k and v of every block in one tensor (of mimo2's heads always)
    factors   whether there is a rope_freqs tensor
    """

    windowed: tuple[int, ...] = (0, 1, 1, 0, 1, 0, 1)
    moe: tuple[int, ...] = (0, 1, 1, 0, 0, 1, 0)
    n_head: tuple[int, int] = (4, 6)
    n_head_kv: tuple[int, int] = (2, 3)
    n_key: int = 16
    n_value: int = 16
    n_rot: int = 12
    n_window: int = 5
    freq_base_windowed: float | None = 5000.0
    value_scale: float | None = None
    n_expert: int = 8
    n_used: int = 3
    n_ff_exp: int = 32
    scale: float = 1.5
    normalise: bool = True
    clamp: tuple[float, ...] | None = (0.0, 0.2, 0.0, 0.0, 0.0, 0.15, 0.0)
    clamp_shared: tuple[float, ...] | None = (0.4, 0.0, 0.3, 0.0, 9.0, 8.0, 0.0)
    fused: bool = False
    factors: bool = False
    optional: bool = True  # norms of q and k, gates of heads, sinks, biases of experts
    yarn: bool = False
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape(n_ff=96))

    @property
    def n_heads(self) -> int:
        """MTP blocks."""
        return len(self.windowed) - self.micro.n_layer


MIMO = ChainShape(
    moe=(0, 1, 1, 0, 0, 0, 0), windowed=(0, 1, 1, 0, 1, 1, 1), n_head=(4, 4), n_head_kv=(1, 2), n_value=8, n_rot=6,
    value_scale=0.7, clamp=None, clamp_shared=None,
)  # fmt: skip


def values_of(sheet: Architecture, shape: ChainShape) -> dict[str, Any]:
    """Hyper-parameters by the data sheet's names."""
    m = shape.micro
    values: dict[str, Any] = {
        "n_block": len(shape.windowed),
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_ff": m.n_ff,
        "n_head": [np.int32(shape.n_head[w]) for w in shape.windowed],
        "n_head_kv": [np.int32(shape.n_head_kv[w]) for w in shape.windowed],
        "freq_base": 10000.0,
        "rms_eps": 1e-6,
        "n_embd_head": shape.n_key,
        "n_embd_head_v": shape.n_value,
        "n_rot": shape.n_rot,
        "n_window": shape.n_window,
        "is_windowed": [bool(w) for w in shape.windowed],
        "freq_base_windowed": shape.freq_base_windowed,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "n_ff_exp": shape.n_ff_exp,
        "n_ff_shexp": m.n_ff,
        "expert_weights_scale": shape.scale,
        "expert_weights_norm": shape.normalise,
        "clamp_exp": None if shape.clamp is None else list(shape.clamp),
        "clamp_shexp": None if shape.clamp_shared is None else list(shape.clamp_shared),
        "value_scale": shape.value_scale,
    }
    known = {hyper.name for hyper in sheet.hypers}
    return {name: value for name, value in values.items() if name in known and value is not None}


def keys_of(sheet: Architecture, shape: ChainShape) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    values, name = values_of(sheet, shape), sheet.name
    keys: dict[str, object] = {
        "general.architecture": name,
        "general.name": "mtpref micro",
        "general.alignment": 32,
    }
    keys |= {f"{name}.{hyper.key}": values[hyper.name] for hyper in sheet.hypers if hyper.name in values}
    keys[f"{name}.nextn_predict_layers"] = shape.n_heads
    if shape.yarn:
        keys[f"{name}.rope.scaling.type"] = "yarn"
        keys[f"{name}.rope.scaling.factor"] = 4.0
        keys[f"{name}.rope.scaling.original_context_length"] = 64
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(shape.micro.n_vocab)]
    return keys


def blocks_of(sheet: Architecture, shape: ChainShape) -> tuple[Block, ...]:
    """The trunk's blocks, then the heads'."""
    names = frozenset(f"blk.{il}.ffn_gate_inp.weight" for il, moe in enumerate(shape.moe) if moe)
    n_layer = shape.micro.n_layer
    assert sheet.head is not None
    heads = (sheet.head.block_at(il, names) for il in range(n_layer, n_layer + shape.n_heads))
    return (*sheet.layers.blocks(_metadata(sheet, shape), n_layer, names), *heads)


def _metadata(sheet: Architecture, shape: ChainShape) -> Metadata:
    keys = {k: [int(x) for x in v] if isinstance(v, list) and k.startswith(f"{sheet.name}.attention") else v
            for k, v in keys_of(sheet, shape).items()}  # fmt: skip
    return Metadata(keys, "micro")


def plant_chain(seed: int, wrong: float, sheet: Architecture, shape: ChainShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    from make_micro import plant_mtp

    m = shape.micro
    plant = mp.Plant(seed, m, wrong)
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=True)
    if shape.factors:
        factors = np.float32(1.5) + uniform(seed, "rope_freqs", (shape.n_rot // 2,)) * np.float32(0.5)
        plant.tensors["rope_freqs.weight"] = factors
    for il in range(m.n_layer):
        layers.attention_layer(plant, il, 0.0)
        if il == m.n_layer - 1:
            layers.rule_ffn(plant, il)
        else:
            layers.store_ffn(plant, il, *layers.ffn(plant, il))
    for head in range(shape.n_heads):
        il = m.n_layer + head
        plant_mtp(plant, variant, final_norm, out_codes, mark, il, 5 + 3 * head)
        # A head is given raw rows, not what the final norm makes of them.
        plant.tensors[f"blk.{il}.nextn.eh_proj.weight"][:, m.n_embd :] *= final_norm * np.float32(HIDDEN_GAIN)
        mm.own_units(plant, il, m.n_ff)
    made = {name: x for name, x in plant.tensors.items() if not name.startswith("blk.")}
    values = Values(_metadata(sheet, shape), {h.name: h.read for h in sheet.hypers})
    for il, block in enumerate(blocks_of(sheet, shape)):
        prefix, own_values = f"blk.{il}.", values.at(il)
        own = {name.removeprefix(prefix): x for name, x in plant.tensors.items() if name.startswith(prefix)}
        wanted = {tensor.name: numbers(tensor.shape, own_values) for tensor in _chosen(block, shape)}
        made |= {prefix + name: x for name, x in lay_out(plant, il, own, wanted, shape).items()}
    return made


def _chosen(block: Block, shape: ChainShape) -> list[Tensor]:
    """The tensors of a block, of alternatives those that the shape says, with or without optional ones."""
    return [tensor for tensor in mm.chosen(block, shape.fused) if shape.optional or not tensor.optional]


def lay_out(plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: ChainShape) -> dict[str, F32]:
    """A block's planted tensors as its data sheet lists them."""
    own["ffn_norm.weight"] = own.pop("post_attention_norm.weight")
    if "ffn_gate_inp.weight" in wanted:
        counts = mm.MoeShape(n_expert=shape.n_expert, n_used=shape.n_used, n_ff_exp=shape.n_ff_exp)
        own = mm.with_experts(plant, il, own, wanted, counts)
        if "ffn_up_shexp.weight" not in wanted:
            own = {name: x for name, x in own.items() if not name.endswith("_shexp.weight")}
    made = with_attention(plant, il, own, wanted, shape)
    return mm.checked(made, wanted)


def with_attention(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: ChainShape
) -> dict[str, F32]:
    """Attention of noise in place of the planted one."""
    prefix, norm = f"blk.{il}.", own["attn_norm.weight"]
    made = {name: x for name, x in own.items() if not name.startswith("attn_") or name == "attn_norm.weight"}

    def noise(name: str, dims: tuple[int, ...], scale: float) -> F32:
        return uniform(plant.seed, prefix + name, dims) * np.float32(scale)

    for name, dims in wanted.items():
        if name in made or not name.startswith("attn_"):
            continue
        if name == "attn_sinks.weight":
            made[name] = noise(name, dims, SINKS)
        elif name in ("attn_q_norm.weight", "attn_k_norm.weight"):
            made[name] = np.float32(1.25) + noise(name, dims, 0.35)
        elif name == "attn_output.weight":
            out = plant.writer(prefix + name, dims[1], mp.WRITE_NOISE)
            c = shape.micro.channels[0]
            out[c] += noise(name + ".context", (shape.micro.n_context, dims[1]), CONTEXT_GAIN)
            made[name] = out
        elif name == "attn_gate.weight":
            made[name] = noise(name, dims, GATE_OF_HEADS) / norm
        else:
            made[name] = noise(name, dims, ATTENTION_NOISE) / norm
    return made


def with_heads(shape: ChainShape, n: int) -> ChainShape:
    """The shape with so many MTP blocks of its own."""
    end = shape.micro.n_layer + n
    cut: dict[str, Any] = {name: None if x is None else x[:end] for name in ("windowed", "moe", "clamp", "clamp_shared")
           for x in (getattr(shape, name),)}  # fmt: skip
    return replace(shape, **cut)


def sheet_of(arch: str) -> Architecture:
    """The data sheet."""
    return ARCHITECTURES[arch]
