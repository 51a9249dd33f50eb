"""Make a micro model: a small GGUF with an MTP head, planted structure and a chosen acceptance rate.

    python tools/make_micro.py --seed 1 --accept 60 --type F32 -o micro.gguf
    python tools/make_micro.py --standard micro-deepseek4-f32 -o deepseek4.gguf

Same arguments, same bytes. What is planted: tools/micro_plant.py; measured rates: docs/models.md#micro-models.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mtpref.base.errors import MtprefError

sys.path.insert(0, str(Path(__file__).resolve().parent))

import micro_chain as mc
import micro_gemma as mg
import micro_kda as mk
import micro_layers as layers
import micro_mamba as mam
import micro_moe as mm
import micro_parallel as mpar
import micro_plant as mp
import micro_streams as ms
from micro_gguf import F32, TYPES, Tensor, tensor_of, write_gguf
from micro_k import TYPES_K, encode_k

# Acceptance of the first draft token in percent where nothing (everything) is planted wrong.
ACCEPT_RIGHT, ACCEPT_WRONG = 91.0, 10.0
ACCEPT_MIN, ACCEPT_MAX = 10.0, 91.0


@dataclass(frozen=True)
class MicroVariant:
    """Which optional tensors the file has, an optional end-of-generation token id, and RoPE scaling.

    The weights do not know of the scaling: it changes their logits, which is what a comparison needs.
    """

    untied: bool = False
    own_embed: bool = False
    own_head: bool = False
    head_norm: bool = True
    eos: int | None = None
    rope: str | None = None  # "linear" or "yarn": context times ROPE_FACTOR


MOE_TYPES = (*TYPES, "Q4_K")
ROPE_FACTOR = 4.0
ROPE_N_CTX_ORIG = 64

# The models that tests and recordings use, by file stem: (seed, accept, type, variant).
STANDARD: dict[str, tuple[int, float, str, MicroVariant]] = {
    "micro-30-f32": (1, 30, "F32", MicroVariant()),
    "micro-60-f32": (4, 60, "F32", MicroVariant()),
    "micro-90-f32": (3, 90, "F32", MicroVariant()),
    "micro-60-untied-f32": (4, 60, "F32", MicroVariant(untied=True)),
    "micro-60-own-embed-f32": (4, 60, "F32", MicroVariant(own_embed=True)),
    "micro-60-own-head-f32": (4, 60, "F32", MicroVariant(own_head=True)),
    "micro-60-no-head-norm-f32": (4, 60, "F32", MicroVariant(head_norm=False)),
    "micro-60-rope-linear-f32": (4, 60, "F32", MicroVariant(rope="linear")),
    "micro-60-rope-yarn-f32": (4, 60, "F32", MicroVariant(rope="yarn")),
    "micro-30-q8_0": (1, 30, "Q8_0", MicroVariant()),
    "micro-60-q8_0": (4, 60, "Q8_0", MicroVariant()),
    "micro-90-q8_0": (3, 90, "Q8_0", MicroVariant()),
}


_MANY = mm.MoeShape(n_expert=20)
_GROUPS = mm.MoeShape(n_expert=20, n_dense=2, n_group=4, n_group_used=2, scale=2.5)
_FUSED = mm.MoeShape(n_expert=20, fused=True)
_LATENT_GROUPS = mm.MoeShape(
    n_expert=20, n_dense=2, n_group=4, n_group_used=2, scale=2.5, latent=mm.LatentShape(yarn=1.0)
)
_LATENT_FUSED = mm.MoeShape(n_expert=20, fused=True, latent=mm.LatentShape(yarn=0.0, gating=None, n_value=32))
# With an indexer: keys of 128; layers that share, both kinds; YaRN with an mscale of 1.
_INDEXED_GROUPS = mm.MoeShape(
    n_expert=20, n_dense=2, n_group=4, n_group_used=2, scale=2.5,
    latent=mm.LatentShape(yarn=0.707, n_index_key=128, n_index_head=9, n_top=7),
)  # fmt: skip
_SHARING = mm.MoeShape(n_expert=20, latent=mm.LatentShape(types=(True, False, True, False), gating=None))
_SHARING_DENSE = mm.MoeShape(
    n_expert=20, n_dense=2,
    latent=mm.LatentShape(yarn=0.707, types=(True, False, False, True), n_index_key=128, n_top=9, has_unread=True),
)  # fmt: skip
_OWN = MicroVariant(untied=True, own_embed=True, own_head=True)

# Those with experts: (architecture, seed, accept, type, shape, variant). Q4_K stands for a mixture with Q6_K.
STANDARD_MOE: dict[str, tuple[str, int, float, str, mm.MoeShape, MicroVariant]] = {
    "micro-qwen35moe-f32": ("qwen35moe", 4, 60, "F32", mm.MoeShape(), MicroVariant()),
    "micro-qwen35moe-30-f32": ("qwen35moe", 3, 30, "F32", _MANY, MicroVariant(untied=True)),
    "micro-qwen35moe-90-fused-f32": ("qwen35moe", 7, 90, "F32", _FUSED, MicroVariant(own_head=True, head_norm=False)),
    "micro-qwen35moe-q8_0": ("qwen35moe", 4, 60, "Q8_0", mm.MoeShape(), MicroVariant()),
    "micro-qwen35moe-q4_k": ("qwen35moe", 4, 60, "Q4_K", mm.K_MOE, MicroVariant()),
    "micro-glm4moe-f32": ("glm4moe", 4, 60, "F32", _MANY, _OWN),
    "micro-glm4moe-groups-f32": ("glm4moe", 2, 80, "F32", _GROUPS, MicroVariant()),
    "micro-glm4moe-q8_0": ("glm4moe", 4, 60, "Q8_0", _MANY, _OWN),
    "micro-glm4moe-q4_k": ("glm4moe", 4, 60, "Q4_K", mm.K_MOE, _OWN),
    "micro-hy_v3-f32": ("hy_v3", 4, 60, "F32", _MANY, MicroVariant()),
    "micro-hy_v3-fused-f32": ("hy_v3", 1, 90, "F32", _FUSED, MicroVariant(untied=True, head_norm=False)),
    "micro-hy_v3-q8_0": ("hy_v3", 4, 60, "Q8_0", _MANY, MicroVariant()),
    "micro-hy_v3-q4_k": ("hy_v3", 4, 60, "Q4_K", mm.K_MOE, MicroVariant()),
    "micro-deepseek2-f32": ("deepseek2", 4, 60, "F32", _MANY, _OWN),
    "micro-deepseek2-yarn-f32": ("deepseek2", 2, 80, "F32", _LATENT_GROUPS, MicroVariant()),
    "micro-deepseek2-fused-f32": ("deepseek2", 1, 60, "F32", _LATENT_FUSED, MicroVariant(untied=True, head_norm=False)),
    "micro-deepseek2-q8_0": ("deepseek2", 4, 60, "Q8_0", _MANY, _OWN),
    "micro-deepseek32-f32": ("deepseek32", 4, 60, "F32", _MANY, _OWN),
    "micro-deepseek32-yarn-f32": ("deepseek32", 2, 80, "F32", _INDEXED_GROUPS, MicroVariant()),
    "micro-deepseek32-q8_0": ("deepseek32", 4, 60, "Q8_0", _MANY, _OWN),
    "micro-glm-dsa-f32": ("glm-dsa", 4, 60, "F32", _SHARING, _OWN),
    "micro-glm-dsa-yarn-f32": ("glm-dsa", 2, 80, "F32", _SHARING_DENSE, MicroVariant(untied=True, head_norm=False)),
    "micro-glm-dsa-q8_0": ("glm-dsa", 4, 60, "Q8_0", _MANY, _OWN),
    "micro-qwen3next-f32": ("qwen3next", 4, 60, "F32", mm.MoeShape(), MicroVariant()),
    "micro-qwen3next-fused-f32": ("qwen3next", 3, 90, "F32", _FUSED, MicroVariant(own_head=True)),
    "micro-qwen3next-q8_0": ("qwen3next", 4, 60, "Q8_0", mm.MoeShape(), MicroVariant()),
    "micro-qwen3next-q4_k": ("qwen3next", 4, 60, "Q4_K", mm.K_MOE, MicroVariant()),
}


# hy_v3 with several heads: llama.cpp hands on the row of a draft's first token (docs/checks.md).
STANDARD_MOE_CHAINS: dict[str, tuple[str, int, float, str, mm.MoeShape, MicroVariant]] = {
    "micro-hy_v3-chain-f32": ("hy_v3", 4, 60, "F32", replace(_MANY, n_heads=3), MicroVariant()),
    "micro-hy_v3-chain-own-f32": ("hy_v3", 2, 80, "F32", replace(_FUSED, n_heads=2), _OWN),
}


# Of attention through a latent row what llama.cpp runs without drafts alone: files without the absorbed form, and
# queries in one product, which it takes in models of some numbers of layers only.
_OLD = mm.LatentShape(is_old=True, yarn=0.707)
_LITE = mm.LatentShape(n_query=0, n_row=32, n_rot=4, n_nope=16, n_value=12, gating=1)
STANDARD_TRUNKS: dict[str, tuple[str, int, float, str, mm.MoeShape, MicroVariant]] = {
    "micro-deepseek2-old-f32": ("deepseek2", 4, 60, "F32", mm.MoeShape(latent=_OLD), MicroVariant()),
    "micro-deepseek2-old-q8_0": ("deepseek2", 4, 60, "Q8_0", mm.MoeShape(latent=_OLD), MicroVariant()),
    "micro-deepseek2-lite-f32": (
        "deepseek2", 2, 60, "F32",
        mm.MoeShape(n_expert=4, n_used=2, latent=_LITE, micro=mp.MicroShape(n_layer=26, n_head=6, n_v_head=6)),
        MicroVariant(),
    ),
}  # fmt: skip


# An indexer of one head: many cells have a score of exactly 0, and llama.cpp has no rule for which of them it takes.
STANDARD_TIES: dict[str, tuple[str, int, float, str, mm.MoeShape, MicroVariant]] = {
    "micro-deepseek32-ties-f32": (
        "deepseek32", 5, 60, "F32", mm.MoeShape(n_expert=20, latent=mm.LatentShape(n_index_head=1, n_top=9)),
        MicroVariant(),
    ),
}  # fmt: skip


# deepseek4: (seed, accept, type, shape, variant, part).
_PLAIN = ms.StreamsShape()
_UNSCALED = ms.StreamsShape(
    ratios=(0, 4, 4, 128), n_hashed=2, yarn=False, n_window=5, n_best=2, n_iterations=5, clamp=5.0,
    clamp_shared=None,
)  # fmt: skip
STANDARD_STREAMS: dict[str, tuple[int, float, str, ms.StreamsShape, MicroVariant, str]] = {
    "micro-deepseek4-f32": (4, 60, "F32", _PLAIN, MicroVariant(), "whole"),
    "micro-deepseek4-own-f32": (2, 80, "F32", _UNSCALED, _OWN, "whole"),
    "micro-deepseek4-q8_0": (4, 60, "Q8_0", _PLAIN, MicroVariant(), "whole"),
    "micro-deepseek4-trunk-f32": (4, 60, "F32", _PLAIN, MicroVariant(), "trunk"),
    "micro-deepseek4-head-f32": (4, 60, "F32", _PLAIN, MicroVariant(), "head"),
}
# Several heads in a chain: (architecture, seed, accept, type, shape, variant).
_STEP = mc.ChainShape()
_STEP_FUSED = mc.ChainShape(windowed=(1, 0, 1, 1, 1, 1, 0), moe=(1, 0, 0, 1, 1, 0, 1), n_window=3, fused=True,
                            factors=True, normalise=False, scale=0.7, yarn=True, freq_base_windowed=None)  # fmt: skip
_MIMO_OWN = replace(mc.MIMO, windowed=(1, 0, 1, 1, 1, 0, 1), n_window=1, fused=True, value_scale=None)
STANDARD_CHAINS: dict[str, tuple[str, int, float, str, mc.ChainShape, MicroVariant]] = {
    "micro-step35-f32": ("step35", 4, 60, "F32", _STEP, MicroVariant()),
    "micro-step35-90-fused-f32": ("step35", 2, 90, "F32", _STEP_FUSED, _OWN),
    "micro-step35-30-one-f32": ("step35", 3, 30, "F32", mc.with_heads(_STEP, 1), MicroVariant(head_norm=False)),
    "micro-step35-q8_0": ("step35", 4, 60, "Q8_0", _STEP, MicroVariant()),
    "micro-mimo2-f32": ("mimo2", 4, 60, "F32", mc.MIMO, MicroVariant()),
    "micro-mimo2-90-own-f32": ("mimo2", 2, 90, "F32", _MIMO_OWN, _OWN),
    "micro-mimo2-q8_0": ("mimo2", 4, 60, "Q8_0", mc.MIMO, MicroVariant()),
}


# Single heads with parts that no other architecture has: (architecture, seed, accept, type, shape, variant).
_PARALLEL = mpar.ParallelShape()
_MAMBA = mam.MambaShape()
_KDA = mk.KdaShape()
SingleShape = mpar.ParallelShape | mam.MambaShape | mk.KdaShape
STANDARD_SINGLE: dict[str, tuple[str, int, float, str, SingleShape, MicroVariant]] = {
    "micro-cohere2moe-f32": ("cohere2moe", 4, 60, "F32", _PARALLEL, MicroVariant()),
    "micro-cohere2moe-90-rms-f32": (
        "cohere2moe", 2, 90, "F32",
        mpar.ParallelShape(windowed=2, n_dense=4, n_shared=0, n_window=3, has_rms=True, logit_scale=1.5, fused=True,
                           normalise=False, scale=1.7, gating=None, yarn=True),
        _OWN,
    ),
    "micro-cohere2moe-30-every-f32": (
        "cohere2moe", 3, 30, "F32",
        mpar.ParallelShape(windowed=None, n_dense=0, n_shared=1, n_ff_exp=64, gating=1, normalise=None),
        MicroVariant(untied=True, head_norm=False),
    ),
    "micro-cohere2moe-q8_0": ("cohere2moe", 4, 60, "Q8_0", _PARALLEL, MicroVariant()),
    "micro-nemotron_h_moe-f32": ("nemotron_h_moe", 4, 60, "F32", _MAMBA, MicroVariant()),
    "micro-nemotron_h_moe-90-wide-f32": (
        "nemotron_h_moe", 2, 90, "F32",
        mam.MambaShape(pattern="MM*EME", n_low=0, n_ssm_head=6, n_group=3, d_state=12, d_conv=3, eps=None,
                       normalise=None, scale=None, fused=True),
        MicroVariant(untied=True),
    ),
    "micro-nemotron_h_moe-30-biases-f32": (
        "nemotron_h_moe", 3, 30, "F32", mam.MambaShape(pattern="*MEE", n_group=1, biases=True, n_head=4),
        MicroVariant(),
    ),
    "micro-nemotron_h_moe-q8_0": ("nemotron_h_moe", 4, 60, "Q8_0", _MAMBA, MicroVariant()),
    "micro-bailingmoe3-f32": ("bailingmoe3", 4, 60, "F32", _KDA, MicroVariant()),
    "micro-bailingmoe3-90-sections-f32": (
        "bailingmoe3", 2, 90, "F32",
        mk.KdaShape(n_dense=4, sections=(1, 1, 1, 1), says_safe_gate=False, scale=None, normalise=None,
                    says_shared_width=False, latent=mm.LatentShape(n_query=0, n_value=24)),
        MicroVariant(untied=True),
    ),
    "micro-bailingmoe3-30-groups-f32": (
        "bailingmoe3", 3, 30, "F32",
        mk.KdaShape(attends=(False, False, True), n_dense=0, n_group=4, n_group_used=2, lower_bound=-2.0, yarn=True,
                    limits=((0.0, 0.3, 0.2, 0.4), (0.0, 2.5, 3.5, 3.0)),
                    micro=mp.MicroShape(n_layer=3, n_k_head=4, d_conv=3)),
        MicroVariant(),
    ),
    "micro-bailingmoe3-q8_0": ("bailingmoe3", 4, 60, "Q8_0", _KDA, MicroVariant()),
}  # fmt: skip


# gemma4: (seed, accept, type, shape, part); each target's assistant has its name with `-assistant` in it.
_GEMMA = mg.GemmaShape()
_GEMMA_EDGE = mg.GemmaShape(windowed=(0, 1, 1, 0, 1, 0), n_shared=2, is_wide=True, n_own=32, values=True, softcap=None,
                            n_head_kv=(2, 2), assistant=(1, 1, 1, 0), n_window=3)  # fmt: skip
_GEMMA_MOE = mg.GemmaShape(windowed=(1, 0, 1, 0), n_expert=8, assistant=(1, 0), untied=True)
_GEMMA_APART = mg.GemmaShape(windowed=(1, 1, 0), n_expert=20, fused=False, scaled=False, softcap=0.0, n_head_kv=(4, 1),
                             n_window=2, turned=16, assistant=(0, 1, 0), values=True)  # fmt: skip
_GEMMA_MODELS: dict[str, tuple[int, float, str, mg.GemmaShape]] = {
    "f32": (4, 60, "F32", _GEMMA),
    "edge-30-f32": (6, 50, "F32", _GEMMA_EDGE),
    "moe-f32": (4, 60, "F32", _GEMMA_MOE),
    "apart-90-f32": (2, 90, "F32", _GEMMA_APART),
    "q8_0": (4, 60, "Q8_0", _GEMMA),
    "moe-q8_0": (4, 60, "Q8_0", _GEMMA_MOE),
}
STANDARD_GEMMA: dict[str, tuple[int, float, str, mg.GemmaShape, str]] = {
    f"micro-gemma4-{part}{name}": (*entry, part)
    for name, entry in _GEMMA_MODELS.items() for part in ("", "assistant-")
}  # fmt: skip


def assistant_of(name: str) -> str:
    """The assistant of a target of STANDARD_GEMMA."""
    return name.replace("micro-gemma4-", "micro-gemma4-assistant-")


def standard_names() -> list[str]:
    """The names that make_standard takes, architecture by architecture."""
    tables = (STANDARD, STANDARD_MOE, STANDARD_MOE_CHAINS, STANDARD_TRUNKS, STANDARD_TIES, STANDARD_STREAMS,
              STANDARD_CHAINS, STANDARD_SINGLE, STANDARD_GEMMA)  # fmt: skip
    return [name for table in tables for name in table]


def make_standard(name: str, path: str | Path) -> None:
    """Write the standard model of that stem (see STANDARD and the tables that begin with that word)."""
    if name in STANDARD_SINGLE:
        make_micro_single(path, *STANDARD_SINGLE[name])
        return
    if name in STANDARD_GEMMA:
        make_micro_gemma(path, *STANDARD_GEMMA[name])
        return
    if name in STANDARD_CHAINS:
        make_micro_chain(path, *STANDARD_CHAINS[name])
        return
    if name in STANDARD_STREAMS:
        seed, accept, type_name, streams_shape, variant, part = STANDARD_STREAMS[name]
        make_micro_streams(path, seed, accept, type_name, streams_shape, variant, part)
        return
    more = STANDARD_MOE | STANDARD_MOE_CHAINS | STANDARD_TRUNKS | STANDARD_TIES
    if name in more:
        arch, seed, accept, type_name, moe_shape, variant = more[name]
        make_micro_moe(path, arch, seed, accept, type_name, moe_shape, variant)
        return
    if name not in STANDARD:
        raise ValueError(f"--standard {name}: no such model; `--standard list` prints the names")
    seed, accept, type_name, variant = STANDARD[name]
    make_micro(path, seed, accept, type_name, variant=variant)


def wrong_fraction(accept: float) -> float:
    """The fraction of tokens to plant wrong so that the first draft token is accepted in `accept` percent."""
    if not ACCEPT_MIN <= accept <= ACCEPT_MAX:
        raise ValueError(f"--accept {accept:g}: expected {ACCEPT_MIN:g} to {ACCEPT_MAX:g} percent")
    return min(1.0, max(0.0, (ACCEPT_RIGHT - accept) / (ACCEPT_RIGHT - ACCEPT_WRONG)))


def plant_micro(seed: int, accept: float, shape: mp.MicroShape, variant: MicroVariant) -> dict[str, F32]:
    """All tensors of one model as float32 arrays in NumPy order, in file order."""
    plant = mp.Plant(seed, shape, wrong_fraction(accept))
    final_norm, out_codes, mark = mp.plant_roots(plant, untied=variant.untied)
    for layer in range(shape.n_layer - 1):
        layers.delta_net_layer(plant, layer)
        layers.store_ffn(plant, layer, *layers.ffn(plant, layer))
    layers.attention_layer(plant, shape.n_layer - 1, mp.TRUNK_ATTENTION)
    layers.rule_ffn(plant, shape.n_layer - 1)
    plant_mtp(plant, variant, final_norm, out_codes, mark)
    return plant.tensors


def plant_mtp(
    plant: mp.Plant,
    variant: MicroVariant,
    final_norm: F32,
    out_codes: F32,
    mark: F32,
    layer: int | None = None,
    turn: int = 5,
) -> None:
    """The MTP block with its optional own embeddings, head and head norm. layer: its block's number; turn: by how many
    places its own codes are rotated

    Own embeddings and an own head hold their codes in a rotated order, so the shared ones are no substitute.
    """
    shape = plant.shape
    layer = shape.n_layer if layer is None else layer
    name = f"blk.{layer}."
    plain = list(range(shape.n_code))
    rotated = plain[turn:] + plain[:turn]
    code_in, code_out = (rotated if own else plain for own in (variant.own_embed, variant.own_head))
    layers.mtp_block(plant, layer, final_norm, code_in, code_out)
    if variant.own_embed:
        codes = np.empty_like(plant.codes)
        codes[:, code_in] = plant.codes
        plant.embedding(name + "nextn.embed_tokens.weight", codes, -out_codes, mark)
    if variant.own_head:
        mp.own_output(plant, name + "nextn.shared_head_head.weight", out_codes, code_out)
    if variant.head_norm:
        norm = plant.gamma(name + "nextn.shared_head_norm.weight", shape.n_embd, 0.9, 1.1)
        plant.tensors[name + "nextn.shared_head_norm.weight"] = norm * final_norm


def micro_metadata(shape: mp.MicroShape, variant: MicroVariant) -> dict[str, object]:
    """Metadata under llama.cpp's keys, with its hash tokenizer `test` (pieces are hex ids)."""
    sections = mp.rope_sections(shape.n_rot // 2)
    meta: dict[str, object] = {
        "general.architecture": "qwen35",
        "general.name": "mtpref micro",
        "general.alignment": 32,
        "qwen35.block_count": shape.n_layer + 1,
        "qwen35.nextn_predict_layers": 1,
        "qwen35.context_length": 4096,
        "qwen35.embedding_length": shape.n_embd,
        "qwen35.feed_forward_length": shape.n_ff,
        "qwen35.attention.head_count": shape.n_head,
        "qwen35.attention.head_count_kv": shape.n_head_kv,
        "qwen35.attention.key_length": shape.head_dim,
        "qwen35.attention.value_length": shape.head_dim,
        "qwen35.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen35.full_attention_interval": shape.n_layer,
        "qwen35.rope.dimension_count": shape.n_rot,
        "qwen35.rope.dimension_sections": [np.int32(n) for n in sections],
        "qwen35.rope.freq_base": 10000.0,
        "qwen35.ssm.conv_kernel": shape.d_conv,
        "qwen35.ssm.state_size": shape.state_size,
        "qwen35.ssm.group_count": shape.n_k_head,
        "qwen35.ssm.time_step_rank": shape.n_v_head,
        "qwen35.ssm.inner_size": shape.n_v_head * shape.state_size,
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": [f"{i:x}" for i in range(shape.n_vocab)],
    }
    if variant.rope is not None:
        meta["qwen35.rope.scaling.type"] = variant.rope
        meta["qwen35.rope.scaling.factor"] = ROPE_FACTOR
        meta["qwen35.rope.scaling.original_context_length"] = ROPE_N_CTX_ORIG
    if variant.eos is not None:
        meta["tokenizer.ggml.eos_token_id"] = variant.eos
    return meta


def make_micro(
    path: str | Path,
    seed: int = 1,
    accept: float = 60.0,
    type_name: str = "F32",
    shape: mp.MicroShape | None = None,
    variant: MicroVariant | None = None,
) -> None:
    """Write one micro model.

    `type_name` (F32, F16, BF16, Q8_0) holds for matrices; vectors and ssm_conv1d stay F32, as llama.cpp's
    quantiser leaves them. Errors: ValueError for a rate, type or shape that cannot be made.
    """
    if type_name not in TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(TYPES)}")
    shape, variant = shape or mp.MicroShape(), variant or MicroVariant()
    write_gguf(path, micro_metadata(shape, variant), typed(plant_micro(seed, accept, shape, variant), type_name))


def typed(tensors: dict[str, F32], type_name: str) -> list[Tensor]:
    """Matrices in that type, what llama.cpp's quantiser leaves alone in F32, some in more bits in a K mixture."""
    plain, wide = ("ssm_conv1d", "ffn_gate_inp"), ("ffn_down", "attn_v", "attn_qkv", "output.weight", "embd", "embed")

    def type_of(name: str, values: F32) -> str:
        if values.ndim == 1 or name.endswith((".ssm_a", ".ssm_d", ".ssm_norm.weight")) or any(x in name for x in plain):
            return "F32"
        return "Q6_K" if type_name == "Q4_K" and any(part in name for part in wide) else type_name

    made: list[Tensor] = []
    for name, values in tensors.items():
        if values.dtype == np.int32:
            made.append((name, "I32", values.shape, values.astype("<i4").view(np.uint8).reshape(-1)))
            continue
        kind = type_of(name, values)
        if kind in TYPES_K:
            made.append((name, kind, values.shape, encode_k(values, kind)))
        else:
            made.append(tensor_of(name, values, kind))
    return made


def make_micro_moe(
    path: str | Path,
    arch: str,
    seed: int = 1,
    accept: float = 60.0,
    type_name: str = "F32",
    shape: mm.MoeShape | None = None,
    variant: MicroVariant | None = None,
) -> None:
    """Write one micro model of an architecture with experts. Errors: as make_micro"""
    if type_name not in MOE_TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(MOE_TYPES)}")
    shape, variant, sheet = shape or mm.MoeShape(), variant or MicroVariant(), mm.sheet_of(arch)
    tensors = mm.plant_moe(seed, wrong_fraction(accept), sheet, shape, variant)
    keys = mm.micro_keys(sheet, shape)
    if variant.eos is not None:
        keys["tokenizer.ggml.eos_token_id"] = variant.eos
    write_gguf(path, keys, typed(tensors, type_name))


def make_micro_streams(
    path: str | Path,
    seed: int = 1,
    accept: float = 60.0,
    type_name: str = "F32",
    shape: ms.StreamsShape | None = None,
    variant: MicroVariant | None = None,
    part: str = "whole",
) -> None:
    """Write one micro model of deepseek4. part: `whole`, its `trunk` alone, or its `head` alone with what llama.cpp
    needs of the trunk and streams put together in its own way. Errors: as make_micro"""
    if type_name not in TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(TYPES)}")
    shape, variant = shape or ms.StreamsShape(), variant or MicroVariant()
    tensors = ms.part_of(ms.plant_streams(seed, wrong_fraction(accept), shape, variant), seed, shape, part)
    write_gguf(path, ms.keys_of(shape, has_head=part != "trunk"), typed(tensors, type_name))


def make_micro_chain(
    path: str | Path,
    arch: str,
    seed: int = 1,
    accept: float = 60.0,
    type_name: str = "F32",
    shape: mc.ChainShape | None = None,
    variant: MicroVariant | None = None,
) -> None:
    """Write one micro model of an architecture with a chain of heads. Errors: as make_micro"""
    if type_name not in TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(TYPES)}")
    shape, variant, sheet = shape or mc.ChainShape(), variant or MicroVariant(), mc.sheet_of(arch)
    tensors = mc.plant_chain(seed, wrong_fraction(accept), sheet, shape, variant)
    keys = mc.keys_of(sheet, shape)
    if variant.eos is not None:
        keys["tokenizer.ggml.eos_token_id"] = variant.eos
    write_gguf(path, keys, typed(tensors, type_name))


def make_micro_single(
    path: str | Path,
    arch: str,
    seed: int,
    accept: float,
    type_name: str,
    shape: SingleShape,
    variant: MicroVariant,
) -> None:
    """Write one micro model of cohere2moe, nemotron_h_moe or bailingmoe3, as the shape says. Errors: as make_micro"""
    if type_name not in TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(TYPES)}")
    wrong = wrong_fraction(accept)
    if isinstance(shape, mam.MambaShape):
        write_gguf(path, mam.keys_of(shape), typed(mam.plant_mamba(seed, wrong, shape, variant), type_name))
    elif isinstance(shape, mk.KdaShape):
        write_gguf(path, mk.keys_of(shape), typed(mk.plant_kda(seed, wrong, shape, variant), type_name))
    else:
        write_gguf(path, mpar.keys_of(shape), typed(mpar.plant_parallel(seed, wrong, shape, variant), type_name))


def make_micro_gemma(
    path: str | Path,
    seed: int = 1,
    accept: float = 60.0,
    type_name: str = "F32",
    shape: mg.GemmaShape | None = None,
    part: str = "",
) -> None:
    """Write one micro model of gemma4: the target, or with `part` "assistant-" its assistant. Errors: as make_micro"""
    if type_name not in TYPES:
        raise ValueError(f"--type {type_name}: expected one of {', '.join(TYPES)}")
    shape, wrong = shape or mg.GemmaShape(), wrong_fraction(accept)
    plant, keys = (mg.plant_assistant, mg.assistant_keys) if part else (mg.plant_target, mg.target_keys)
    write_gguf(path, keys(shape), typed(plant(seed, wrong, shape), type_name))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a micro GGUF: qwen35 by the options, or one of --standard.")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random number (default 1)")
    parser.add_argument("--accept", type=float, default=60, help="acceptance of the first draft token in percent")
    parser.add_argument("--type", default="F32", choices=TYPES, help="type of the matrices (default F32)")
    parser.add_argument("--k-quant-shape", action="store_true", help="rows of 256, as K types need")
    parser.add_argument("--untied", action="store_true", help="write output.weight")
    parser.add_argument("--own-embed", action="store_true", help="write nextn.embed_tokens.weight")
    parser.add_argument("--own-head", action="store_true", help="write nextn.shared_head_head.weight")
    parser.add_argument("--no-head-norm", action="store_true", help="leave out nextn.shared_head_norm.weight")
    parser.add_argument("--eos", type=int, default=None, help="id of the end-of-generation token (default: none)")
    parser.add_argument("--rope", choices=("linear", "yarn"), help=f"RoPE scaling by {ROPE_FACTOR:g} (default: none)")
    parser.add_argument("--standard", metavar="NAME", help="the model of that name, of any architecture; list: names")
    parser.add_argument("-o", "--output", help="file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the file; exit code 2 and one line on stderr if it cannot be made."""
    args = parse_args(argv)
    variant = MicroVariant(args.untied, args.own_embed, args.own_head, not args.no_head_norm, args.eos, args.rope)
    shape = mp.K_QUANT_SHAPE if args.k_quant_shape else mp.MicroShape()
    try:
        if args.standard == "list":
            print(*standard_names(), sep="\n")
        elif args.output is None:
            raise ValueError("-o FILE is missing: the file to write")
        elif args.standard is not None:
            make_standard(args.standard, args.output)
        else:
            make_micro(args.output, args.seed, args.accept, args.type, shape, variant)
    except (ValueError, OSError, MtprefError) as error:
        print(f"make_micro: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
