"""Which type each tensor of a model gets: llama.cpp's rules for its file types, and what this project changes in them.

Owns the rules, as functions of names, shapes and counts; knows nothing of files. llama.cpp has no rule for MTP tensors:
its Q4_K_M makes eh_proj 4 bits, and the head's attn_v and ffn_down 6 bits since they come last. Here the head's own
matrices are kept at Q8_0 or better unless told otherwise.
Facts: llama.cpp src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from mtpref.base.errors import MtprefError
from mtpref.base.settings import OneOf, check_fields
from mtpref.files.gguf import printable, without_leading_ones
from mtpref.spec.quants import TYPE_IDS, TYPES

# Name of a mixture -> (type of most matrices, general.file_type)
MIXTURES: dict[str, tuple[str, int]] = {
    "F32": ("F32", 0),
    "F16": ("F16", 1),
    "BF16": ("BF16", 32),
    "Q8_0": ("Q8_0", 7),
    "Q6_K": ("Q6_K", 18),
    "Q5_K_M": ("Q5_K", 17),
    "Q5_K_S": ("Q5_K", 16),
    "Q5_1": ("Q5_1", 9),
    "Q5_0": ("Q5_0", 8),
    "Q4_K_M": ("Q4_K", 15),
    "Q4_K_S": ("Q4_K", 14),
    "Q4_1": ("Q4_1", 3),
    "Q4_0": ("Q4_0", 2),
    "MXFP4_MOE": ("MXFP4", 38),
}
FLOATS = ("F32", "F16", "BF16")
INTEGERS = ("I8", "I16", "I32", "I64")
# A type whose block does not divide a row -> what takes its place.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LEAST_HEAD = "Q8_0"
# With exactly so many experts llama.cpp gives attention more bits: a rule made for one model, by that number.
MORE_FOR_ATTENTION = 8
_FFN = re.compile(r"ffn_(?:up|gate|down)")
_BLOCK = re.compile(r"blk\.(\d{1,6})\.")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """mixture     a name of MIXTURES
    pure_llama  llama.cpp's types exactly, for the head too
    mtp_type    type of the head's matrices; None: what the mixture says, and at least Q8_0
    overrides   (regular expression, type): the first that is found in a name counts
    has_imatrix whether there is an importance matrix, which changes two rules
    """

    mixture: Annotated[str, OneOf(tuple(MIXTURES))]
    pure_llama: bool = False
    mtp_type: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    has_imatrix: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "quantize.Wanted")


@dataclass(frozen=True)
class Item:
    """A tensor as the rules see it. shape: NumPy order"""

    name: str
    type_name: str
    shape: tuple[int, ...]


def layer_order(items: Sequence[Item]) -> list[Item]:
    """llama.cpp's order: tensors outside of blocks first, then block by block, by name inside."""
    return sorted(items, key=lambda item: (_layer(item.name), item.name.encode()))


def head_layers(n_blocks: int, n_nextn: int) -> range:
    """Block numbers of the MTP head."""
    return range(n_blocks - n_nextn, n_blocks)


def category(name: str) -> str:
    """llama.cpp's category of a tensor by its name, whatever the architecture; a data sheet calls it the role."""
    if name in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return name.removesuffix(".weight").removeprefix("per_layer_")
    if any(part in name for part in ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")):
        return "attn_v"
    for role in ("attn_k", "attn_output"):
        if f"{role}.weight" in name:
            return role
    return "ffn_down" if "ffn_down" in name else ""


def plan_types(
    items: Sequence[Item],
    wanted: Wanted,
    n_blocks: int,
    n_nextn: int,
    *,
    n_expert: int = 0,
    experts_alone: bool = False,
) -> dict[str, str]:
    """Name -> type, in llama.cpp's order.

    n_blocks, n_nextn, n_expert   block_count, nextn_predict_layers and expert_count
    experts_alone  of stacks of matrices those of experts alone are MXFP4 in a mixture of that name (the data sheet's)
    Errors    MtprefError for an override that no tensor's name matches, a bad regular expression, or an ffn_down
              of a model with experts that is of no block
    """
    default, _ = MIXTURES[wanted.mixture]
    rules = _Rules(wanted, default, [item.name for item in items], n_blocks, n_expert, experts_alone)
    head = {f"blk.{i}." for i in head_layers(n_blocks, n_nextn)}
    patterns = [(_compiled(pattern), kind) for pattern, kind in wanted.overrides]
    used: set[int] = set()
    types: dict[str, str] = {}
    for item in layer_order(items):
        if not is_quantizable(item):
            types[item.name] = item.type_name
            continue
        kind = rules.type_of(item)
        if not wanted.pure_llama and _prefix(item.name) in head:
            kind = wanted.mtp_type or _at_least(kind, LEAST_HEAD)
        for i, (pattern, forced) in enumerate(patterns):
            if pattern.search(item.name):
                used.add(i)
                kind = forced
                break
        types[item.name] = fitting(kind, item.shape[-1])
    unused = [wanted.overrides[i][0] for i in range(len(patterns)) if i not in used]
    if unused:
        raise MtprefError(
            f"`quantize.Wanted.overrides` {unused[0]}: no tensor's name matches, expected one that can "
            "be quantised; mtpref inspect lists them"
        )
    return types


def is_quantizable(item: Item) -> bool:
    """Matrices and stacks named .weight, save norms, the convolution, the router and tables of integers. A single row
    counts as a vector (the gate of a shared expert)."""
    name = item.name
    return (
        len(without_leading_ones(item.shape)) >= 2
        and name.endswith("weight")
        and "_norm.weight" not in name
        and "ssm_conv1d" not in name
        and "ffn_gate_inp.weight" not in name
        and "per_layer_model_proj" not in name
        and item.type_name not in INTEGERS
    )


def fitting(kind: str, n_in: int) -> str:
    """The type, or what takes its place in rows that its block does not divide."""
    for candidate in (kind, FALLBACKS.get(kind, kind)):
        if n_in % TYPES[TYPE_IDS[candidate]].block_elements == 0:
            return candidate
    return "F16"


def bits(kind: str) -> float:
    """Bits a weight takes."""
    block = TYPES[TYPE_IDS[kind]]
    return 8 * block.block_bytes / block.block_elements


def _at_least(kind: str, least: str) -> str:
    return kind if bits(kind) >= bits(least) else least


def _layer(name: str) -> int:
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1


def _prefix(name: str) -> str:
    found = _BLOCK.match(name)
    return found[0] if found else ""


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise MtprefError(f"`quantize.Wanted.overrides` {pattern}: no regular expression ({error})") from None


class _Rules:
    """llama.cpp's choices. attn_v counts the tensors of its kind that came before. So does ffn_down, but in a model
    with experts it goes by the number of the block."""

    def __init__(
        self,
        wanted: Wanted,
        default: str,
        names: Sequence[str],
        n_blocks: int,
        n_expert: int,
        experts_alone: bool,
    ) -> None:
        self.wanted, self.default, self.n_expert, self.experts_alone = wanted, default, n_expert, experts_alone
        self.is_tied = "output.weight" not in names
        self.n_v = sum(category(name) == "attn_v" for name in names)
        self.n_down = n_blocks
        self.i_v = self.i_down = 0

    def type_of(self, item: Item) -> str:
        if self.default in FLOATS:
            return self.default
        role, mixture = category(item.name), self.wanted.mixture
        if role == "output" or (self.is_tied and role == "token_embd"):
            return self._output(item)
        if mixture == "MXFP4_MOE":
            is_stack = len(item.shape) > 2 and item.shape[-3] > 1
            return "MXFP4" if is_stack and (not self.experts_alone or _FFN.search(item.name)) else "Q8_0"
        if role == "attn_v":
            i, self.i_v = self.i_v, self.i_v + 1
            return self._attn_v(i)
        if role in ("attn_k", "attn_output") and self.n_expert == MORE_FOR_ATTENTION:
            if role == "attn_k":
                return "Q8_0"
            return "Q5_K" if mixture in ("Q4_K_S", "Q4_K_M") else self.default
        return self._ffn_down(self._layer_of(item.name)) if role == "ffn_down" else self.default

    def _output(self, item: Item) -> str:
        if self.wanted.mixture == "MXFP4_MOE" or item.shape[-1] % TYPES[TYPE_IDS[self.default]].block_elements:
            return "Q8_0"
        return self.default if self.default == "Q8_0" else "Q6_K"

    def _attn_v(self, i: int) -> str:
        mixture = self.wanted.mixture
        if self.n_expert == MORE_FOR_ATTENTION:
            return "Q8_0"
        if mixture in ("Q4_K_M", "Q5_K_M") and more_bits(i, self.n_v):
            return "Q6_K"
        return "Q5_K" if mixture == "Q4_K_S" and i < 4 else self.default

    def _layer_of(self, name: str) -> int:
        i, self.i_down = self.i_down, self.i_down + 1
        if self.n_expert <= 1:
            return i
        i = _layer(name)
        if not 0 <= i < self.n_down:
            raise MtprefError(
                f"tensor {printable(name)}: expected one of blk.0 to blk.{self.n_down - 1}, which its "
                "type depends on in a model with experts; try: mtpref check"
            )
        return i

    def _ffn_down(self, i: int) -> str:
        mixture, first = self.wanted.mixture, i < self.n_down // 8
        if mixture in ("Q4_K_M", "Q5_K_M") and more_bits(i, self.n_down):
            return "Q6_K"
        if mixture == "Q4_K_S" and first:
            return "Q5_K"
        if mixture in ("Q4_0", "Q5_0") and self.wanted.has_imatrix and first:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mixture]
        return self.default


def more_bits(i: int, n: int) -> bool:
    """The first and last eighth, and every third of the others."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
