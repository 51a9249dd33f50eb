"""Planted micro models of cohere2moe: attention and network side by side, from its data sheet.

The rule of micro_plant.py, in dense layers and shared experts that read what attention reads. Attention, routers and
experts are hash noise, strong enough that a wrong window, pair, turn, norm or mean moves the logits.
"""

from dataclasses import dataclass, field
from typing import Any

import micro_layers as layers
import micro_moe as mm
import micro_plant as mp
import numpy as np
from micro_chain import ATTENTION_NOISE, CONTEXT_GAIN
from micro_gguf import F32, uniform

from mtpref.architectures import ARCHITECTURES, Architecture, Block, Tensor, numbers
from mtpref.spec.config import Metadata, Values

ARCH = "cohere2moe"


@dataclass(frozen=True)
class ParallelShape:
    """Hyper-parameters under their GGUF meanings.

    windowed  blocks with a window: a flag for each, or a number n, then all but 0, n, 2 n, ...; None: no key
    has_rms   RMS norms in place of layer norms
    """

    windowed: tuple[int, ...] | int | None = (1, 1, 0, 1)
    n_dense: int = 1
    n_expert: int = 20
    n_used: int = 3
    n_ff_exp: int = 32
    n_shared: int = 2
    n_window: int = 5
    has_rms: bool = False
    logit_scale: float = 0.75
    gating: int | None = 2
    normalise: bool | None = True
    scale: float | None = None
    fused: bool = False
    yarn: bool = False
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape(n_head=6))


def keys_of(shape: ParallelShape) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    m = shape.micro
    values: dict[str, Any] = {
        "n_block": m.n_layer + 1,
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_ff": m.n_ff,
        "n_head": m.n_head,
        "n_head_kv": m.n_head_kv,
        "freq_base": 10000.0,
        "rms_eps": 1e-6 if shape.has_rms else None,
        "norm_eps": 1e-5,
        "n_embd_head": m.head_dim,
        "n_embd_head_v": m.head_dim,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "expert_gating_func": shape.gating,
        "logit_scale": shape.logit_scale,
        "n_window": shape.n_window,
        "is_windowed": [bool(w) for w in shape.windowed] if isinstance(shape.windowed, tuple) else shape.windowed,
        "n_ff_exp": shape.n_ff_exp,
        "expert_weights_norm": shape.normalise,
        "expert_weights_scale": shape.scale,
        "n_expert_shared": shape.n_shared or None,
        "n_ff_shexp": shape.n_shared * shape.n_ff_exp or None,
        "n_rot": m.head_dim,
    }
    keys: dict[str, object] = {
        "general.architecture": ARCH,
        "general.name": "mtpref micro",
        "general.alignment": 32,
    }
    for hyper in sheet().hypers:
        if values.get(hyper.name) is not None:
            keys[f"{ARCH}.{hyper.key}"] = values[hyper.name]
        if hyper.name == "n_ff_exp":
            keys[f"{ARCH}.leading_dense_block_count"] = shape.n_dense
    keys[f"{ARCH}.nextn_predict_layers"] = 1
    if shape.yarn:
        keys[f"{ARCH}.rope.scaling.type"] = "yarn"
        keys[f"{ARCH}.rope.scaling.factor"] = 4.0
        keys[f"{ARCH}.rope.scaling.original_context_length"] = 64
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(m.n_vocab)]
    return keys


def sheet() -> Architecture:
    """The data sheet."""
    return ARCHITECTURES[ARCH]


def plant_parallel(seed: int, wrong: float, shape: ParallelShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    from make_micro import plant_mtp

    m = shape.micro
    plant = mp.Plant(seed, m, wrong)
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=variant.untied)
    for il in range(m.n_layer):
        layers.attention_layer(plant, il, 0.0)
        if il == m.n_layer - 1:
            layers.rule_ffn(plant, il)
        else:
            layers.store_ffn(plant, il, *layers.ffn(plant, il))
    plant_mtp(plant, variant, final_norm, out_codes, mark)
    meta = Metadata(keys_of(shape), "micro")
    values = Values(meta, {h.name: h.read for h in sheet().hypers}).having(n_vocab=m.n_vocab)
    blocks = (*sheet().layers.blocks(meta, m.n_layer, frozenset()), sheet().head.block)  # type: ignore[union-attr]
    made = {name: x for name, x in plant.tensors.items() if not name.startswith("blk.")}
    for il, block in enumerate(blocks):
        prefix = f"blk.{il}."
        own = {name.removeprefix(prefix): x for name, x in plant.tensors.items() if name.startswith(prefix)}
        wanted = {tensor.name: numbers(tensor.shape, values.at(il)) for tensor in chosen(block, shape)}
        made |= {prefix + name: x for name, x in lay_out(plant, il, own, wanted, shape).items()}
    return made


def chosen(block: Block, shape: ParallelShape) -> list[Tensor]:
    """The tensors of a block; without a shared expert where there is none."""
    return [t for t in mm.chosen(block, shape.fused) if shape.n_shared or t.group != "shared expert"]


def lay_out(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: ParallelShape
) -> dict[str, F32]:
    """A block's planted tensors as its data sheet lists them: the network reads through attention's norm."""
    norm, before = own["attn_norm.weight"], own.pop("post_attention_norm.weight")
    for part in ("gate", "up"):
        own[f"ffn_{part}.weight"] = own[f"ffn_{part}.weight"] * before / norm
    if "ffn_gate_inp.weight" in wanted:
        own["ffn_norm.weight"] = norm  # what the experts' matrices are divided by
        counts = mm.MoeShape(n_expert=shape.n_expert, n_used=shape.n_used, n_ff_exp=shape.n_ff_exp)
        own = mm.with_experts(plant, il, own, wanted, counts)
        del own["ffn_norm.weight"]
        own["ffn_down_shexp.weight"] = own["ffn_down_shexp.weight"] * np.float32(2)  # the mean of two
        if not shape.n_shared:
            own = {name: x for name, x in own.items() if not name.endswith("_shexp.weight")}
    return mm.checked(with_attention(plant, il, own, wanted, shape.micro), wanted)


def with_attention(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], m: mp.MicroShape
) -> dict[str, F32]:
    """Attention of noise in place of the planted one."""
    prefix, norm = f"blk.{il}.", own["attn_norm.weight"]
    made = {name: x for name, x in own.items() if not name.startswith("attn_") or name == "attn_norm.weight"}
    for name, dims in wanted.items():
        if name in made or not name.startswith("attn_"):
            continue
        if name == "attn_output.weight":
            out = plant.writer(prefix + name, dims[1], mp.WRITE_NOISE)
            out[m.channels[0]] += uniform(plant.seed, prefix + name + ".context", (m.n_context, dims[1])) * np.float32(
                CONTEXT_GAIN
            )
            made[name] = out
        else:
            made[name] = uniform(plant.seed, prefix + name, dims) * np.float32(ATTENTION_NOISE) / norm
    return made
