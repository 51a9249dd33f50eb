"""Weights: the tensors of a file, found by name, checked by shape, held as they lie in the file.

Owns finding, checking and the fallbacks of the MTP head (and reports where each of its tensors came from).
It must not know what a tensor is used for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.files.gguf import GgufFile, without_leading_ones
from mtpref.spec import quants

F32 = NDArray[np.float32]


def stacked(like: spec.Stack, matrices: Sequence[spec.Matrix]) -> spec.Stack:
    """These matrices, all of a type, as a stack of that shape and name."""
    return spec.Stack(like.name, matrices[0].type_name, like.n_out, like.n_in, np.stack([m.raw for m in matrices]))


def take_rows(w: spec.Matrix, rows: NDArray[np.int64]) -> spec.Matrix:
    """The rows of these numbers, in this order: a copy of their bytes, so products with them give the same bits."""
    raw = w.raw.reshape(w.n_out, w.row_bytes)[rows]
    return replace(w, n_out=len(rows), raw=raw.reshape(-1))


@dataclass(frozen=True)
class MtpWeights:
    """The MTP head.

    origin    the tensor that each optional part was read from
    borrowed  the parts that are the trunk's    file: the stand-alone file of the others, "" for the trunk's own file
    """

    enorm: F32  # nextn.enorm.weight (n_embd,)
    hnorm: F32  # nextn.hnorm.weight (n_embd,)
    eh_proj: spec.Matrix  # nextn.eh_proj.weight (n_embd, 2 * n_embd)
    block: dict[str, Any]  # mixer, feed-forward and their norms, as in a trunk layer
    embed_tokens: spec.Matrix  # nextn.embed_tokens.weight, else token_embd.weight
    shared_head_norm: F32  # nextn.shared_head_norm.weight, else output_norm.weight
    shared_head_head: spec.Matrix  # nextn.shared_head_head.weight, else the trunk's output
    origin: dict[str, str]
    borrowed: tuple[str, ...] = ()
    file: str = ""
    roots: dict[str, Any] = field(default_factory=dict)  # of tensors outside of blocks what else the head reads
    before: tuple[dict[str, Any], ...] = ()  # of an assistant: the layers before `block`
    post_projection: spec.Matrix | None = None  # of an assistant: the normed row -> the row for its next step
    d2t: NDArray[np.int64] | None = (
        None  # row r of shared_head_head is the logit of id d2t[r], ascending; None: of id r
    )

    def trimmed(self, ids: Sequence[int]) -> "MtpWeights":
        """The head with the rows of these ids (ascending) alone: their bytes, gathered once.

        Errors   MtprefError for an id that a head which is trimmed already does not have
        """
        rows = np.asarray(ids, np.int64)
        if self.d2t is not None:
            lacking = np.setdiff1d(rows, self.d2t)
            if lacking.size:
                raise MtprefError(
                    f"draft vocabulary: id {lacking[0]} is not among the {self.d2t.size} ids of the "
                    "head's own d2t, expected only ids that it has rows for"
                )
            rows = np.searchsorted(self.d2t, rows)
        return replace(self, shared_head_head=take_rows(self.shared_head_head, rows), d2t=np.asarray(ids, np.int64))


@dataclass(frozen=True)
class Weights:
    """Everything that a model reads. layers[il]: GGUF name without "blk.il." -> Matrix, Stack or float32."""

    token_embd: spec.Matrix  # token_embd.weight (n_vocab, n_embd)
    output_norm: F32  # output_norm.weight (n_embd,)
    output: spec.Matrix  # output.weight, else token_embd.weight
    layers: tuple[dict[str, Any], ...]
    roots: dict[str, Any] = field(default_factory=dict)  # other tensors outside of blocks, by GGUF name


Packer = Callable[[Sequence[spec.Matrix | spec.Stack]], list[spec.Matrix | spec.Stack]]


def packed(weights: Weights, heads: Sequence[MtpWeights], pack: Packer) -> tuple[Weights, list[MtpWeights]]:
    """The same weights, the matrices of products as `pack` gives them back: each once, wherever it serves.
    Embeddings are read by row and stay as they are."""
    blocks = [*weights.layers, weights.roots]
    blocks += [block for head in heads for block in (*head.before, head.block, head.roots)]
    found = [weights.output, *(w for block in blocks for w in block.values())]
    found += [w for head in heads for w in (head.eh_proj, head.shared_head_head, head.post_projection)]
    unique = {id(w): w for w in found if isinstance(w, spec.Matrix | spec.Stack)}
    made = dict(zip(unique, pack(list(unique.values())), strict=True))

    def of(w: Any) -> Any:
        return made.get(id(w), w)

    def of_block(block: dict[str, Any]) -> dict[str, Any]:
        return {name: of(w) for name, w in block.items()}

    layers, roots = tuple(map(of_block, weights.layers)), of_block(weights.roots)
    trunk = replace(weights, output=of(weights.output), layers=layers, roots=roots)
    return trunk, [
        replace(
            head,
            eh_proj=of(head.eh_proj),
            block=of_block(head.block),
            before=tuple(map(of_block, head.before)),
            shared_head_head=of(head.shared_head_head),
            post_projection=of(head.post_projection),
            roots=of_block(head.roots),
        )
        for head in heads
    ]


@dataclass
class TensorFinder:
    """Takes tensors out of a file by name; remembers which were taken, so that the rest can be named.

    taken            names that were asked for    read: those among them whose values were given
    is_header_only   only check names, shapes and types: what is given has no values, and the file's data is not touched
    """

    file: GgufFile
    taken: set[str] = field(default_factory=set)
    is_header_only: bool = False
    read: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.file.tensors

    def array(self, name: str, shape: tuple[int, ...]) -> F32:
        """A float32 copy of a small tensor (norms, biases, the convolution)."""
        info = self._info(name, shape)
        if self.is_header_only:
            return np.empty(0, np.float32)
        return quants.dequantize(info.type_name, self.file.data(info), info.shape).reshape(shape)

    def matrix(self, name: str, shape: tuple[int, int]) -> spec.Matrix:
        """A weight matrix, as a view of the file."""
        info = self._info(name, shape)
        self._check_product(name, info)
        return spec.Matrix(name, info.type_name, shape[0], shape[1], self._data(info))

    def stack(self, name: str, shape: tuple[int, ...]) -> spec.Stack:
        """The matrices of a three-dimensional tensor (one for each expert), as a view of the file."""
        n, n_out, n_in = shape
        info = self._info(name, shape)
        self._check_product(name, info)
        raw = np.empty((0, 0), np.uint8) if self.is_header_only else self._data(info).reshape(n, -1)
        return spec.Stack(name, info.type_name, n_out, n_in, raw)

    def integers(self, name: str, shape: tuple[int, ...], below: int) -> NDArray[np.int32]:
        """A table of int32, every one at least 0 and below `below`.

        Errors  MtprefError for another type, or a number out of range
        """
        info = self._info(name, shape)
        if info.type_name != "I32":
            raise MtprefError(
                f"{self.file.label}: tensor {name} has type {info.type_name}, expected I32; convert the model again"
            )
        if self.is_header_only:
            return np.empty(0, np.int32)
        table = self.file.data(info).view("<i4").reshape(shape)
        low, high = int(table.min()), int(table.max())
        if low < 0 or high >= below:
            bad = low if low < 0 else high
            raise MtprefError(
                f"{self.file.label}: tensor {name} holds {bad}, expected 0 .. {below - 1}; convert the model again"
            )
        return table

    def unused(self, prefixes: Iterable[str] = ("",)) -> list[str]:
        """Tensors of the file that nobody took."""
        return [n for n in self.file.tensors if n not in self.taken and n.startswith(tuple(prefixes))]

    def _check_product(self, name: str, info: Any) -> None:
        if info.type_name not in spec.GGML_PRODUCTS:
            raise UnsupportedError(
                f"{self.file.label}: tensor {name} has type {info.type_name}, expected one of "
                f"{', '.join(spec.GGML_PRODUCTS)}; requantise the file (llama-quantize, e.g. to Q8_0 or Q4_K_M)"
            )

    def _data(self, info: Any) -> NDArray[np.uint8]:
        return np.empty(0, np.uint8) if self.is_header_only else self.file.data(info)

    def _info(self, name: str, shape: tuple[int, ...]) -> Any:
        info = self.file.tensors.get(name)
        if info is None:
            raise MtprefError(
                f"{self.file.label}: tensor {name} is missing, expected shape {shape[::-1]} in GGUF "
                "order; was it dropped by a conversion? try: mtpref inspect FILE"
            )
        if without_leading_ones(info.shape) != without_leading_ones(shape):
            raise MtprefError(
                f"{self.file.label}: tensor {name} has shape {info.ne}, expected {shape[::-1]} in GGUF "
                "order; do the metadata belong to this file? try: mtpref inspect FILE"
            )
        self.taken.add(name)
        if not self.is_header_only:
            self.read.add(name)
        return info
