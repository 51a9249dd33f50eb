"""Which block each layer of DeepSeek-V4 is: by the tokens that its compressed rows stand for, and by how its experts
are chosen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtpref.architectures.sheet import Block, Keys
from mtpref.base.errors import UnsupportedError
from mtpref.spec.config import Metadata


@dataclass(frozen=True)
class ByRatio:
    """A key has the ratio of each block; the first so many layers, by another key, choose experts by token id.

    routed, hashed   ratio -> the block
    key, n_hashed    their keys                hf, hf_n_hashed    config.json's fields
    """

    routed: Mapping[int, Block]
    hashed: Mapping[int, Block]
    key: str
    n_hashed: str
    hf: str
    hf_n_hashed: str

    def blocks(self, meta: Metadata, n_layer: int, names: frozenset[str]) -> tuple[Block, ...]:
        ratios = meta.integers(self.key, n_layer)
        for il, ratio in enumerate(ratios):
            if ratio not in self.routed:
                raise UnsupportedError(
                    f"{meta.source}: key {meta.arch}.{self.key} is {ratio} for layer {il}, expected one of "
                    f"{', '.join(map(str, self.routed))}"
                )
        return self._of(ratios, meta.u32(self.n_hashed, low=0))

    def declared(self, keys: Keys, n_blocks: int, n_trunk: int, problems: list[str]) -> tuple[tuple[Block, ...], str]:
        found = keys.integers(self.key, n_blocks)
        if not isinstance(found, list):
            problems.append(f"key {self.key} {found or 'is missing'}, expected one ratio for each of {n_blocks} blocks")
            found = [0] * n_blocks
        if any(found[n_trunk:]):
            problems.append(f"key {self.key} gives the MTP block compressed rows, expected 0 there")
        bad = [ratio for ratio in found[:n_trunk] if ratio not in self.routed]
        if bad:
            problems.append(f"key {self.key} holds {bad[0]}, expected one of {', '.join(map(str, self.routed))}")
        if n_trunk and 4 not in found[:n_trunk]:
            problems.append(f"key {self.key} has no layer of ratio 4: llama.cpp dies of such a file when it is loaded")
        width, own = (keys.integer(f"attention.{name}") for name in ("indexer.key_length", "key_length"))
        if width is not None and width == own:
            problems.append(
                f"key attention.indexer.key_length is {width}, as attention.key_length: llama.cpp dies of such a file "
                "when it drafts with it"
            )
        ratios = [ratio if ratio in self.routed else 0 for ratio in found[:n_trunk]]
        return self._of(ratios, max(0, keys.integer(self.n_hashed) or 0)), self.key

    def keys_of(self, found: Mapping[str, Any], n_layer: int, n_heads: int) -> list[tuple[str, Any, str]]:
        return []

    def of_checkpoint(self, found: Mapping[str, Any], n_layer: int) -> tuple[Block, ...] | None:
        ratios = found.get(self.hf)
        if not isinstance(ratios, list) or len(ratios) < n_layer or any(r not in self.routed for r in ratios[:n_layer]):
            return None
        return self._of(ratios[:n_layer], int(found.get(self.hf_n_hashed) or 0))

    def of_tensors(self, names: Iterable[str]) -> Block | None:
        """The block that has tensors of these names (without "blk.N."); None where they are another's."""
        found = set(names)
        if "attn_kv.weight" not in found:
            return None
        ratio = 4 if any(name.startswith("indexer") for name in found) else 128
        ratio = ratio if any(name.startswith("attn_compressor") for name in found) else 0
        return (self.hashed if "ffn_gate_tid2eid.weight" in found else self.routed)[ratio]

    def _of(self, ratios: Sequence[int], n_hashed: int) -> tuple[Block, ...]:
        return tuple((self.hashed if il < n_hashed else self.routed)[ratio] for il, ratio in enumerate(ratios))

    def all_blocks(self) -> tuple[Block, ...]:
        return (*self.routed.values(), *self.hashed.values())
