"""Planted micro models of bailingmoe3: Kimi delta attention, and latent rows whose heads have gates.

The rule of micro_plant.py, planted in the tensors of qwen35 first: its delta rule in layers of Kimi delta attention,
whose channels each forget at a rate of their own, its network as a dense one or as the shared expert. Attention,
routers and experts are hash noise, strong enough that a wrong decay, gate, convolution, pair or limit moves the logits.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import micro_layers as layers
import micro_moe as mm
import micro_plant as mp
import numpy as np
from micro_gguf import F32, uniform

from mtpref.architectures import ARCHITECTURES, Architecture, Block, Tensor, numbers
from mtpref.spec.config import Metadata, Values

ARCH = "bailingmoe3"
RATES = (0.6, 0.9, 1.3, 1.8)  # exp(A_log) of each head
BIAS_OF_DECAY = 0.4  # by which the channels of a head differ
DECAY_NOISE = 0.08  # of its product with the token
OPEN = 0.8808 / 1.7616  # sigmoid(2) for silu(2), which the planted output gate is made for


@dataclass(frozen=True)
class KdaShape:
    """Hyper-parameters under their GGUF meanings.

    attends   of each layer of the trunk whether it has attention, the last one always
    sections  of RoPE; None: no key
    limits    of the experts' activation and of the shared expert's, for each block; None: no keys
    """

    attends: tuple[bool, ...] = (False, False, False, True)
    n_dense: int = 1
    n_expert: int = 20
    n_used: int = 3
    n_ff_exp: int = 32
    n_ff_dense: int = 96
    n_group: int = 0
    n_group_used: int = 0
    gating: int = 2
    normalise: bool | None = True
    scale: float | None = 1.8
    lower_bound: float = -5.0
    says_safe_gate: bool = True
    says_shared_width: bool = True
    sections: tuple[int, ...] | None = None
    limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    yarn: bool = False
    latent: mm.LatentShape = field(default_factory=lambda: mm.LatentShape())
    micro: mp.MicroShape = field(default_factory=lambda: mp.MicroShape(n_k_head=4))


def sheet() -> Architecture:
    """The data sheet."""
    return ARCHITECTURES[ARCH]


def keys_of(shape: KdaShape) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test`."""
    m, latent = shape.micro, shape.latent
    values: dict[str, Any] = {
        "n_block": m.n_layer + 1,
        "n_ctx": 4096,
        "n_embd": m.n_embd,
        "n_ff": shape.n_ff_dense,
        "n_head": m.n_v_head,
        "n_head_kv": [np.int32(x) for x in (*shape.attends, True)],
        "freq_base": 10000.0,
        "rms_eps": 1e-6,
        "n_embd_head": latent.n_row + latent.n_rot,
        "n_embd_head_v": m.state_size,
        "n_expert": shape.n_expert,
        "n_expert_used": shape.n_used,
        "n_expert_group": shape.n_group or None,
        "n_expert_group_used": shape.n_group_used or None,
        "expert_gating_func": shape.gating,
        "d_conv": m.d_conv,
        "n_kda": m.state_size,
        "has_safe_gate": True if shape.says_safe_gate else None,
        "lower_bound": shape.lower_bound,
        "n_q_latent": latent.n_query or None,
        "n_latent": latent.n_row,
        "n_rot": latent.n_rot,
        "n_key": latent.n_nope + latent.n_rot,
        "n_value": latent.n_value,
        "n_ff_exp": shape.n_ff_exp,
        "n_ff_shexp": m.n_ff if shape.says_shared_width else None,
        "n_expert_shared": m.n_ff // shape.n_ff_exp,
        "expert_weights_scale": shape.scale,
        "expert_weights_norm": shape.normalise,
        "clamp_exp": None if shape.limits is None else list(shape.limits[0]),
        "clamp_shexp": None if shape.limits is None else list(shape.limits[1]),
        "rope_sections": None if shape.sections is None else [np.int32(x) for x in shape.sections],
    }
    keys: dict[str, object] = {"general.architecture": ARCH, "general.name": "mtpref micro", "general.alignment": 32}
    keys |= {f"{ARCH}.{h.key}": values[h.name] for h in sheet().hypers if values.get(h.name) is not None}
    keys[f"{ARCH}.leading_dense_block_count"] = shape.n_dense
    keys[f"{ARCH}.nextn_predict_layers"] = 1
    if shape.yarn:
        keys[f"{ARCH}.rope.scaling.type"] = "yarn"
        keys[f"{ARCH}.rope.scaling.factor"] = 4.0
        keys[f"{ARCH}.rope.scaling.original_context_length"] = 64
    keys["tokenizer.ggml.model"] = "test"
    keys["tokenizer.ggml.tokens"] = [f"{i:x}" for i in range(m.n_vocab)]
    return keys


def plant_kda(seed: int, wrong: float, shape: KdaShape, variant: Any) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    from make_micro import plant_mtp

    m = shape.micro
    plant = mp.Plant(seed, m, wrong)
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=variant.untied)
    blocks = blocks_of(shape)
    for il in range(m.n_layer):
        if shape.attends[il]:
            layers.attention_layer(plant, il, mp.TRUNK_ATTENTION)
        else:
            layers.delta_net_layer(plant, il)
        plant.shape = replace(m, n_ff=shape.n_ff_dense) if il < shape.n_dense else m
        if il == m.n_layer - 1:
            layers.rule_ffn(plant, il)
        else:
            layers.store_ffn(plant, il, *layers.ffn(plant, il))
        plant.shape = m
    plant_mtp(plant, variant, final_norm, out_codes, mark)
    values = Values(read_keys(shape), {h.name: h.read for h in sheet().hypers}).having(n_vocab=m.n_vocab)
    made = {name: x for name, x in plant.tensors.items() if not name.startswith("blk.")}
    for il, block in enumerate(blocks):
        prefix = f"blk.{il}."
        own = {name.removeprefix(prefix): x for name, x in plant.tensors.items() if name.startswith(prefix)}
        wanted = {tensor.name: numbers(tensor.shape, values.at(il)) for tensor in chosen(block, shape)}
        made |= {prefix + name: x for name, x in lay_out(plant, il, own, wanted, shape).items()}
    return made


def read_keys(shape: KdaShape) -> Metadata:
    """The same as the sheet reads them."""
    found = {k: [x if isinstance(x, float) else int(x) for x in v] if isinstance(v, list) and k.startswith(ARCH) else v
             for k, v in keys_of(shape).items()}  # fmt: skip
    return Metadata(found, "micro")


def blocks_of(shape: KdaShape) -> tuple[Block, ...]:
    """The trunk's blocks, then the head's."""
    head = sheet().head
    assert head is not None
    return (*sheet().layers.blocks(read_keys(shape), shape.micro.n_layer, frozenset()), head.block)


def chosen(block: Block, shape: KdaShape) -> list[Tensor]:
    """The tensors of a block, with queries by two products or by one where it has both forms."""
    is_latent = block.mixer.name == "latent_attention"
    one, two = {"attn_q.weight"}, {f"attn_q_{x}.weight" for x in ("a", "a_norm", "b")}
    left_out = (one if shape.latent.n_query else two) if is_latent else set()
    return [tensor for tensor in block.all_tensors() if tensor.name not in left_out]


def lay_out(plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: KdaShape) -> dict[str, F32]:
    """A block's planted tensors as its data sheet lists them."""
    own["ffn_norm.weight"] = own.pop("post_attention_norm.weight")
    counts = mm.MoeShape(n_expert=shape.n_expert, n_used=shape.n_used, n_ff_exp=shape.n_ff_exp, latent=shape.latent,
                         micro=shape.micro)  # fmt: skip
    if "ssm_a" in wanted:
        own = with_channels(plant, il, own, wanted, shape)
    else:
        own = mm.with_latent(plant, il, own, wanted, counts)
    if "ffn_gate_inp.weight" in wanted:
        own = mm.with_experts(plant, il, own, wanted, counts)
    if "nextn.shared_head_norm.weight" in own:
        own["layer_output_norm.weight"] = own.pop("nextn.shared_head_norm.weight")
    head = {"layer_output_norm.weight"} if "layer_output_norm.weight" in own else set()
    out_norm = {name: own.pop(name) for name in head}
    return mm.checked(own, wanted) | out_norm


def with_channels(
    plant: mp.Plant, il: int, own: dict[str, F32], wanted: dict[str, Any], shape: KdaShape
) -> dict[str, F32]:
    """A planted DeltaNet layer as one of Kimi delta attention: parts apart, a decay for each channel, another gate."""
    m, prefix = shape.micro, f"blk.{il}."
    norm, n_head, size = own["attn_norm.weight"], m.n_v_head, m.state_size
    made = {name: x for name, x in own.items() if name.startswith("ffn_") or name == "attn_norm.weight"}
    for part, rows, taps in zip(
        "qkv", np.split(own["attn_qkv.weight"], 3), np.split(own["ssm_conv1d.weight"], 3), strict=True
    ):
        made[f"attn_{part}.weight"] = np.ascontiguousarray(rows)
        made[f"ssm_conv1d_{part}.weight"] = np.ascontiguousarray(taps[None, :, None])
    rates = np.array([RATES[h % len(RATES)] for h in range(n_head)], np.float32)
    bias = np.empty((n_head, size), np.float32)
    for h in range(n_head):
        # sigmoid(rate * bias) is the share of the lower bound that the head of HEADS forgets by.
        _, _, dt, a = mp.HEADS[h % len(mp.HEADS)]
        share = -a * math.log1p(math.exp(dt)) / -shape.lower_bound
        bias[h] = np.float32(round(1024 * math.log(share / (1 - share)) / float(rates[h])) / 1024)
    bias += uniform(plant.seed, prefix + "ssm_dt.bias", (n_head, size)) * np.float32(BIAS_OF_DECAY)
    f = uniform(plant.seed, prefix + "ssm_f_a.weight", wanted["ssm_f_a.weight"]) * np.float32(DECAY_NOISE)
    made |= {
        "ssm_f_a.weight": f / norm,
        "ssm_dt.bias": bias.reshape(-1),
        "ssm_a": rates.reshape(-1, 1),
        "ssm_beta.weight": own["ssm_beta.weight"],
        "ssm_g_a.weight": own["attn_gate.weight"],
        "ssm_norm.weight": own["ssm_norm.weight"],
        "attn_output.weight": own["ssm_out.weight"] / np.float32(OPEN),
    }
    return made
