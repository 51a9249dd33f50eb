"""gemma4-assistant: the model that drafts for a gemma4 target. A few layers that read the target's cells and write
none, fed with the target's embedding and row, in a file of its own.

The data sheet. Source: llama.cpp src/models/gemma4-assistant.cpp, common/speculative.cpp, conversion/gemma.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtpref.architectures.common import N_VOCAB, OUTPUT_NORM, TOKEN_EMBD, n_embd, n_embd_head
from mtpref.architectures.dims import ONE, Dim, Share
from mtpref.architectures.gemma4 import (
    FULL,
    GEMMA4,
    NAMES,
    WINDOW,
    attention_tensors,
    gemma_hypers,
    hugging_face,
    is_windowed,
    n_key_windowed,
    network_tensors,
    output_scale,
    softcap,
)
from mtpref.architectures.sheet import OPTIONAL, Architecture, Block, HeadSheet, Hyper, Keys, Tensor
from mtpref.spec.config import Metadata, UnscaledConfig
from mtpref.spec.kinds import GEGLU_FFN, TARGET_ATTENTION, TARGET_WINDOW, NormedAfter
from mtpref.spec.kinds.windowed import FACTORS

n_embd_target = Hyper("n_embd_target", "embedding_length_out", hf="backbone_hidden_size")
# No graph of an assistant caps its logits, whatever its file says.
_softcap = replace(softcap, hf_default=OPTIONAL)
PRE, POST = "nextn.pre_projection.weight", "nextn.post_projection.weight"


def _block(name: str, width: Dim) -> Block:
    return Block(
        name, TARGET_WINDOW if name == WINDOW else TARGET_ATTENTION, GEGLU_FFN,
        (*attention_tensors(width), *network_tensors(), output_scale(optional=False)), NormedAfter("ffn_norm.weight"),
        looks_like="" if name == FULL else FULL,
    )  # fmt: skip


_FULL, _WINDOW = _block(FULL, n_embd_head), _block(WINDOW, n_key_windowed)


@dataclass(frozen=True)
class AssistantLayers:
    """By the array of windows."""

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        return self._of(meta.counts(is_windowed.key, n_layer, low=0, high=1))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        flags = keys.flags(is_windowed.key, n_blocks)
        if not isinstance(flags, list):
            found = "is missing" if flags is None else flags
            problems.append(f"key {is_windowed.key} {found}, expected one bool for each of {n_blocks} blocks")
            flags = [False] * n_blocks
        return self._of([int(x) for x in flags]), is_windowed.key

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return [("nextn_predict_layers", n_layer, "u32")]

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        kinds = found.get("layer_types")
        return None if kinds is None else self._of([int(kind == "sliding_attention") for kind in kinds])

    def of_tensors(self, names: Iterable[str]) -> Block | None:
        """The block that has tensors of these names (without "blk.N."); None where they are another's."""
        return _FULL if "post_ffw_norm.weight" in set(names) else None

    def all_blocks(self) -> tuple[Block, ...]:
        return _FULL, _WINDOW

    def _of(self, flags: Sequence[int]) -> tuple[Block, ...]:
        return tuple(_WINDOW if flag else _FULL for flag in flags)


def layer_read(own: UnscaledConfig, target: Sequence[Any]) -> int:
    """S109. The target's layer whose cells a layer reads: the last but one with a window, the last without. target: the
    configurations of its layers"""
    il = len(target) - (2 if own.n_window else 1)
    return il if target[il].source is None else int(target[il].source)


def _enter(ops: Any, *rest: Any) -> Any:
    return ops.assistant_input(ops, *rest)


def _leave(ops: Any, *rest: Any) -> Any:
    return ops.assistant_row(ops, *rest)


GEMMA4_ASSISTANT = Architecture(
    name="gemma4-assistant",
    hypers=(*gemma_hypers(_softcap, has_experts=False), n_embd_target),
    tensors=(
        Tensor(TOKEN_EMBD, (N_VOCAB, n_embd), "model.embed_tokens.weight", role="token_embd", cb="result_output"),
        Tensor(OUTPUT_NORM, (n_embd,), "model.norm.weight", cb="result_norm"),
        Tensor(PRE, (n_embd, 2 * n_embd_target), "pre_projection.weight", cb="pre_proj"),
        Tensor(POST, (n_embd_target, n_embd), "post_projection.weight", cb="h_nextn"),
        Tensor(FACTORS, (Share(n_embd_head, 2 * ONE),), cb="Qcur_pos"),
    ),
    layers=AssistantLayers(),
    head=HeadSheet(_FULL, (), n_hidden=n_embd_target, reads_target=True, enter=_enter, leave=_leave),
    hf=hugging_face(
        classes=("Gemma4AssistantForCausalLM",),
        model_types=("gemma4_assistant",),
        layers_after=n_embd_target.key,
        unread=("masked_embedding.",),
    ),
    cb=NAMES,
    target=GEMMA4.name,
    layer_read=layer_read,
)
