"""What data sheets of attention with an indexer share: its counts and tensors, blocks, and which layers have one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtpref.architectures.common import n_embd
from mtpref.architectures.deepseek2 import MTP, moe_tensors, n_q_latent, norms, split_attention
from mtpref.architectures.qwen35 import FFN
from mtpref.architectures.sheet import Block, Hyper, Keys, LeadingDense, Tensor
from mtpref.spec.config import Metadata
from mtpref.spec.kinds import MOE_FFN, SWIGLU_FFN, LayerKind

TYPES = "attention.indexer.types"
FULL = "full"  # config.json's word for a layer with an indexer; the others are "shared"
# Of glm-dsa without the key: models of so long a context share as GLM-5.2 does, in others every layer has an indexer.
LONG_CONTEXT = 1 << 20

n_index_head = Hyper("n_index_head", "attention.indexer.head_count", high=4096, hf="index_n_heads")
n_index_key = Hyper("n_index_key", "attention.indexer.key_length", high=4096, hf="index_head_dim")
n_top = Hyper("n_top", "attention.indexer.top_k", hf="index_topk")


def flags_of_checkpoint(c: Mapping[str, Any]) -> list[bool]:
    """Which layers have an indexer, as config.json says: by a list, a pattern of letters, or every so many layers."""
    n_layer, pattern = c["num_hidden_layers"], c.get("index_topk_pattern")
    if c.get("indexer_types") is not None:
        return [kind == FULL for kind in c["indexer_types"]]
    if pattern is not None:
        return [letter == "F" for letter in pattern]
    every, skipped = max(c.get("index_topk_freq", 1), 1), c.get("index_skip_topk_offset", 2)
    return [max(il - skipped + 1, 0) % every == 0 for il in range(n_layer)]


# Read by the rule of layers below; here it is written.
indexer_types = Hyper("indexer_types", TYPES, "arr:bool", default=(), hf=flags_of_checkpoint)


def of_split_form(hypers: tuple[Hyper, ...]) -> tuple[Hyper, ...]:
    """deepseek2's hyper-parameters, where queries come by two products and the widths before absorption are told."""
    needed = ("attention.q_lora_rank", "attention.key_length_mla", "attention.value_length_mla")
    return tuple(
        replace(h, default=None, low=1, hf_default=None) if h.key in needed else h for h in hypers
    )  # fmt: skip


def indexer_tensors(*, optional: bool = False, is_used: bool = True) -> tuple[Tensor, ...]:
    """The indexer of a layer. optional: together or not at all; is_used: whether a graph reads it"""
    key, query, weights = ("indexer_k", "indexer_q", "indexer_weights") if is_used else ("", "", "")
    more: dict[str, Any] = {"optional": True, "group": "indexer"} if optional else {}
    hf = "self_attn.indexer."
    return (
        Tensor("indexer.k_norm.weight", (n_index_key,), hf + "k_norm.weight", cb=key, **more),
        Tensor("indexer.k_norm.bias", (n_index_key,), hf + "k_norm.bias", cb=key, **more),
        Tensor("indexer.proj.weight", (n_index_head, n_embd), hf + "weights_proj.weight", cb=weights, converts_f32=True,
               **more),
        Tensor("indexer.attn_k.weight", (n_index_key, n_embd), hf + "wk.weight", role="attn_k", cb=key, **more),
        Tensor("indexer.attn_q_b.weight", (n_index_head * n_index_key, n_q_latent), hf + "wq_b.weight", cb=query,
               **more),
    )  # fmt: skip


def block(name: str, mixer: LayerKind, indexer: tuple[Tensor, ...]) -> Block:
    """A dense block, or one with experts ("moe"), or the head's ("mtp")."""
    is_dense = name.startswith("dense")
    ffn, tensors = (SWIGLU_FFN, FFN) if is_dense else (MOE_FFN, moe_tensors(has_fused=False))
    marks = MTP.marks if name == MTP.name else ("ffn_gate.",) if is_dense else ("ffn_gate_inp.",)
    return Block(name, mixer, ffn, (*norms, *split_attention, *indexer, *tensors), MTP.residual, marks)


@dataclass(frozen=True)
class Sharing:
    """Some layers have an indexer, the others take what the last one before them chose: by an array of flags, one for
    each trunk layer, or one flag for all; without the key by the context's length.

    own      which block each layer is that has an indexer
    sharing  the block that stands in for each of them in a layer without
    """

    own: LeadingDense
    sharing: tuple[Block, ...]
    flags: str = TYPES

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        return self._chosen(self.own.blocks(meta, n_layer, names), self._flags(meta, n_layer))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        blocks, by = self.own.declared(keys, n_blocks, n_trunk, problems)
        flags = keys.flags(self.flags, n_trunk)
        if isinstance(flags, str):
            problems.append(f"key {self.flags} {flags}, expected one bool for each of {n_trunk} trunk layers")
        if isinstance(flags, list) and flags and not flags[0]:
            problems.append(f"key {self.flags} gives layer 0 no indexer, expected one: no layer before it has chosen")
        if not isinstance(flags, list):
            return self._chosen(blocks, by_length(keys.integer("context_length") or 0, n_trunk)), by
        return self._chosen(blocks, flags), f"{by} and {self.flags}"

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return self.own.keys_of(found, n_layer, n_heads)

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        return self._chosen(self.own.by_count(self.own.count_of(found) or 0, n_layer), flags_of_checkpoint(found))

    def all_blocks(self) -> tuple[Block, ...]:
        return (*self.own.all_blocks(), *self.sharing)

    def _flags(self, meta: Metadata, n_layer: int) -> list[bool]:
        if not meta.has(self.flags):
            return by_length(meta.u32("context_length"), n_layer)
        if not meta.is_array(self.flags):
            flags = [meta.flag(self.flags)] * n_layer
        else:
            flags = [bool(flag) for flag in meta.integers(self.flags, n_layer)]
            n = len(meta.kv[f"{meta.arch}.{self.flags}"])  # type: ignore[arg-type]
            if n != n_layer:
                raise meta.bad(self.flags, f"{n} items", f"one bool for each of {n_layer} trunk layers")
        if flags and not flags[0]:
            raise meta.bad(self.flags, flags[:4], "an indexer in layer 0: no layer before it has chosen")
        return flags

    def _chosen(self, blocks: tuple[Block, ...], flags: list[bool]) -> tuple[Block, ...]:
        other = dict(zip([block.name for block in self.own.all_blocks()], self.sharing, strict=True))
        return tuple(block if has else other[block.name] for block, has in zip(blocks, flags, strict=True))


def by_length(n_ctx: int, n_layer: int) -> list[bool]:
    """Which layers have an indexer where no key says so: all, or those of GLM-5.2: 0, 1, 2, 6, 10, ..."""
    return [n_ctx < LONG_CONTEXT or il < 2 or il % 4 == 2 for il in range(n_layer)]
