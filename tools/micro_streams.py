"""Planted micro models of deepseek4: several residual streams, windows and compressed rows.

The rule of micro_plant.py in the residual of one stream, in four of them that are read, mixed and written to nearly
evenly: their sum over pre is the residual that the rule is planted in. Attention, compressors, indexer and experts are
hash noise, strong enough that a wrong window, a wrong row or a wrong choice moves the logits.
"""

from dataclasses import dataclass, field
from typing import Any

import micro_layers as layers
import micro_moe as mm
import micro_plant as mp
import numpy as np
from micro_gguf import F32, hash_u64, uniform

from mtpref.architectures import ARCHITECTURES, Block, numbers
from mtpref.spec.config import Metadata, Values

NAME = "deepseek4"
ROW_NOISE = 2.0  # of products whose results are normed, and of expansions
CONTEXT_GAIN = 0.03  # what attention's output writes to the context
PRE = -1.0986  # sigmoid of it is a quarter
HIDDEN_GAIN = 1.6  # a raw stream's norm is that much of the final norm's result


@dataclass(frozen=True)
class StreamsShape:
    """Hyper-parameters under their GGUF meanings. ratios: of the trunk's layers"""

    ratios: tuple[int, ...] = (4, 128, 0, 4)
    n_hashed: int = 1
    n_head: int = 4
    n_head_width: int = 32
    n_rot: int = 8
    n_query: int = 64
    n_window: int = 8
    n_group: int = 2
    n_group_width: int = 32
    n_index_head: int = 8
    n_index: int = 64
    n_best: int = 3
    n_iterations: int = 3
    eps: float = 1e-4
    n_expert: int = 8
    n_used: int = 2
    n_ff_exp: int = 32
    scale: float = 1.5
    clamp: tuple[float, ...] | float = (1.5, 2.0, 0.0, 1.0, 1.25)
    clamp_shared: tuple[float, ...] | None = (7.0, 3.0, 0.0, 6.0, 5.0)
    yarn: bool = True
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape())


def values_of(shape: StreamsShape) -> dict[str, Any]:
    """Hyper-parameters by the data sheet's names."""
    m = shape.micro
    return {
        "n_block": m.n_layer + 1,
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_head": shape.n_head,
        "n_head_kv": 1,
        "freq_base": 10000.0,
        "rms_eps": 1e-6,
        "n_embd_head": shape.n_head_width,
        "n_embd_head_v": shape.n_head_width,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "expert_gating_func": 4,
        "n_rot": shape.n_rot,
        "n_q_latent": shape.n_query,
        "n_window": shape.n_window,
        "n_ff_exp": shape.n_ff_exp,
        "n_expert_shared": m.n_ff // shape.n_ff_exp,
        "expert_weights_scale": shape.scale,
        "expert_weights_norm": True,
        "clamp_exp": list(shape.clamp) if isinstance(shape.clamp, tuple) else shape.clamp,
        "clamp_shexp": None if shape.clamp_shared is None else list(shape.clamp_shared),
        "n_index_head": shape.n_index_head,
        "n_index": shape.n_index,
        "n_best": shape.n_best,
        "n_output_group": shape.n_group,
        "n_output_latent": shape.n_group_width,
        "compress_ratio": [np.int32(r) for r in (*shape.ratios, 0)],
        "compress_freq_base": 5000.0,
        "n_streams": 4,
        "n_sinkhorn": shape.n_iterations,
        "streams_eps": shape.eps,
        "n_hashed": shape.n_hashed,
        "n_hidden": 4 * m.n_embd,
    }


def keys_of(shape: StreamsShape, *, has_head: bool = True) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    values = {name: value for name, value in values_of(shape).items() if value is not None}
    if not has_head:
        n = values["n_block"] = shape.micro.n_layer
        values |= {key: x[:n] for key, x in values.items() if key.startswith("clamp") and isinstance(x, list)}
    keys: dict[str, object] = {
        "general.architecture": NAME,
        "general.name": "mtpref micro",
        "general.alignment": 32,
    }
    hypers = ARCHITECTURES[NAME].hypers
    keys |= {f"{NAME}.{hyper.key}": values[hyper.name] for hyper in hypers if hyper.name in values}
    if has_head:
        keys[f"{NAME}.nextn_predict_layers"] = 1
    if shape.yarn:
        keys[f"{NAME}.rope.scaling.type"] = "yarn"
        keys[f"{NAME}.rope.scaling.factor"] = 4.0
        keys[f"{NAME}.rope.scaling.original_context_length"] = 64
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(shape.micro.n_vocab)]
    return keys


def metadata_of(shape: StreamsShape) -> Metadata:
    """The keys as a reader has them."""
    ratios = {f"{NAME}.attention.compress_ratios": [*shape.ratios, 0]}
    return Metadata(keys_of(shape) | ratios, "micro")


def blocks_of(shape: StreamsShape) -> tuple[Block, ...]:
    """The trunk's blocks, then the head's."""
    sheet, meta = ARCHITECTURES[NAME], metadata_of(shape)
    assert sheet.head is not None
    return (*sheet.layers.blocks(meta, shape.micro.n_layer, frozenset()), sheet.head.block)


def plant_streams(seed: int, wrong: float, shape: StreamsShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model in NumPy order, in file order; a table of experts is int32."""
    from make_micro import plant_mtp

    m = shape.micro
    plant = mp.Plant(seed, m, wrong)
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=True)
    for il in range(m.n_layer):
        layers.attention_layer(plant, il, mm.CONTEXT_BY_ATTENTION)
        if il == m.n_layer - 1:
            layers.rule_ffn(plant, il)
        else:
            layers.store_ffn(plant, il, *layers.ffn(plant, il))
    plant_mtp(plant, variant, final_norm, out_codes, mark)
    # The head is given raw streams, not what the final norm makes of them.
    plant.tensors[f"blk.{m.n_layer}.nextn.eh_proj.weight"][:, m.n_embd :] *= final_norm * np.float32(HIDDEN_GAIN)
    made = {name: x for name, x in plant.tensors.items() if not name.startswith("blk.")}
    made |= head_streams(plant, "output_hc")
    values = Values(metadata_of(shape), {h.name: h.read for h in ARCHITECTURES[NAME].hypers})
    for il, block in enumerate(blocks_of(shape)):
        prefix, found = f"blk.{il}.", values.at(il).having(n_vocab=m.n_vocab)
        own = {name.removeprefix(prefix): x for name, x in plant.tensors.items() if name.startswith(prefix)}
        wanted = {tensor.name: numbers(tensor.shape, found) for tensor in block.all_tensors()}
        laid = lay_out(plant, il, own, wanted, shape)
        made |= {prefix + name: x for name, x in laid.items()}
    return made


def head_streams(plant: mp.Plant, name: str, spread: float = 0.3) -> dict[str, F32]:
    """What puts the streams together, each with nearly a quarter. name, spread: of its noise"""
    n = 4
    return {
        "output_hc_fn.weight": noise(plant, f"{name}_fn", (n, n * plant.shape.n_embd), 0.02),
        "output_hc_base.weight": np.float32(PRE) + noise(plant, f"{name}_base", (n,), spread),
        "output_hc_scale.weight": np.full(1, 0.75, np.float32),
    }


def part_of(tensors: dict[str, F32], seed: int, shape: StreamsShape, part: str) -> dict[str, F32]:
    """What a file of the whole, of the trunk or of the head holds; a head has another `output_hc`."""
    prefix = f"blk.{shape.micro.n_layer}."
    if part == "trunk":
        return {name: x for name, x in tensors.items() if not name.startswith(prefix)}
    if part == "head":
        plant = mp.Plant(seed, shape.micro, 0.0)
        own = {name: x for name, x in tensors.items() if name.startswith(prefix) or not name.startswith("blk.")}
        return own | head_streams(plant, "output_hc of the head", 1.5)
    return tensors


def noise(plant: mp.Plant, name: str, shape: tuple[int, ...], scale: float) -> F32:
    """Uniform in [-scale, scale)."""
    return uniform(plant.seed, name, shape) * np.float32(scale)


def lay_out(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: StreamsShape
) -> dict[str, F32]:
    """A block's planted tensors as its data sheet lists them."""
    own["ffn_norm.weight"] = own.pop("post_attention_norm.weight")
    counts = mm.MoeShape(n_expert=shape.n_expert, n_used=shape.n_used, n_ff_exp=shape.n_ff_exp)
    own = mm.with_experts(plant, il, own, wanted, counts)
    made = with_attention(plant, il, own, wanted, shape) | connections(plant, il)
    if "ffn_gate_tid2eid.weight" in wanted:
        made["ffn_gate_tid2eid.weight"] = table(plant, il, shape)
    return mm.checked(made, wanted)


def with_attention(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: StreamsShape
) -> dict[str, F32]:
    """Attention of noise in place of the planted one, which writes as that does."""
    prefix, norm = f"blk.{il}.", own["attn_norm.weight"]
    made = {name: x for name, x in own.items() if not name.startswith("attn_") or name == "attn_norm.weight"}
    for name, dims in wanted.items():
        key = prefix + name
        if name in made or not name.startswith(("attn_", "indexer")):
            continue
        if name == "attn_sinks.weight":
            made[name] = noise(plant, key, dims, 1.0)
        elif name.endswith("norm.weight"):
            made[name] = np.float32(1.25) + noise(plant, key, dims, 0.35)
        elif name.endswith("ape.weight"):
            made[name] = noise(plant, key, dims, 0.75)
        elif name == "attn_output_b.weight":
            out = plant.writer(key, dims[1], mp.WRITE_NOISE)
            c = shape.micro.channels[0]
            out[c] += noise(plant, key + ".context", (shape.micro.n_context, dims[1]), CONTEXT_GAIN)
            made[name] = out
        elif dims[-1] == len(norm):  # reads the layer's rows
            made[name] = noise(plant, key, dims, 0.4) / norm
        else:
            made[name] = noise(plant, key, dims, ROW_NOISE * dims[-1] ** -0.5)
    return made


def connections(plant: mp.Plant, il: int) -> dict[str, F32]:
    """What stands around attention and experts: streams read by a quarter each, written to by one, mixed."""
    made: dict[str, F32] = {}
    for part in ("attn", "ffn"):
        name, n = f"blk.{il}.hc_{part}", 4
        base = noise(plant, f"{name}_base", (n * (n + 2),), 0.3)
        base[:n] += np.float32(PRE)
        base[2 * n :] *= np.float32(3.0)
        made[f"hc_{part}_fn.weight"] = noise(plant, f"{name}_fn", (n * (n + 2), n * plant.shape.n_embd), 0.02)
        made[f"hc_{part}_base.weight"] = base
        made[f"hc_{part}_scale.weight"] = np.array([0.75, 0.5, 1.5], np.float32)
    return made


def table(plant: mp.Plant, il: int, shape: StreamsShape) -> Any:
    """For each token so many different experts."""
    n_vocab = shape.micro.n_vocab
    words = hash_u64(plant.seed, f"blk.{il}.tid2eid", n_vocab * shape.n_expert).reshape(n_vocab, shape.n_expert)
    return np.argsort(words, axis=1, kind="stable")[:, : shape.n_used].astype(np.int32)
