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
}
FLOATS = ("F32", "F16", "BF16")
# A type whose block does not divide a row -> what takes its place.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LEAST_HEAD = "Q8_0"
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


def plan_types(items: Sequence[Item], wanted: Wanted, n_blocks: int, n_nextn: int) -> dict[str, str]:
    """Name -> type, in llama.cpp's order.

    n_blocks, n_nextn   block_count and nextn_predict_layers
    Errors              MtprefError for an override that no tensor's name matches, or a bad regular expression
    """
    default, _ = MIXTURES[wanted.mixture]
    rules = _Rules(wanted, default, [item.name for item in items], n_blocks)
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
        raise MtprefError(f"`quantize.Wanted.overrides` {unused[0]}: no tensor's name matches, expected one that can "
                          "be quantised; mtpref inspect lists them")  # fmt: skip
    return types


def is_quantizable(item: Item) -> bool:
    """Matrices named .weight, save norms and the convolution."""
    name = item.name
    return (
        len(item.shape) >= 2
        and name.endswith("weight")
        and "_norm.weight" not in name
        and "ssm_conv1d" not in name
        and "ffn_gate_inp.weight" not in name
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
    """llama.cpp's choices, which depend on how many tensors of a kind came before."""

    def __init__(self, wanted: Wanted, default: str, names: Sequence[str], n_blocks: int) -> None:
        self.wanted, self.default = wanted, default
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
        if role == "attn_v":
            i, self.i_v = self.i_v, self.i_v + 1
            if mixture in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self.n_v):
                return "Q6_K"
            return "Q5_K" if mixture == "Q4_K_S" and i < 4 else self.default
        if role == "ffn_down":
            i, self.i_down = self.i_down, self.i_down + 1
            return self._ffn_down(i)
        return self.default

    def _output(self, item: Item) -> str:
        if item.shape[-1] % TYPES[TYPE_IDS[self.default]].block_elements:
            return "Q8_0"
        return self.default if self.default == "Q8_0" else "Q6_K"

    def _ffn_down(self, i: int) -> str:
        mixture, first = self.wanted.mixture, i < self.n_down // 8
        if mixture in ("Q4_K_M", "Q5_K_M") and _more_bits(i, self.n_down):
            return "Q6_K"
        if mixture == "Q4_K_S" and first:
            return "Q5_K"
        if mixture in ("Q4_0", "Q5_0") and self.wanted.has_imatrix and first:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mixture]
        return self.default


def category(name: str) -> str:
    """llama.cpp's category of a tensor, by its name whatever the architecture: what a data sheet calls its role."""
    if name in ("output.weight", "token_embd.weight"):
        return name.removesuffix(".weight")
    if "attn_qkv.weight" in name or "attn_v.weight" in name:
        return "attn_v"
    return "ffn_down" if "ffn_down" in name else ""


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth, and every third of the others."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
