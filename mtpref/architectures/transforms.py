"""Weight conventions: a checkpoint (Hugging Face) on one side, GGUF on the other, and the ways between them.

Owns the changes that converters make, each with its inverse; a data sheet (mtpref/architectures) says which tensor
takes which:

* zero-centred norms: GGUF w = HF w + 1;
* decay: GGUF ``ssm_a`` = -exp(HF ``A_log``), or exp(HF ``A_log``) where its sign stands elsewhere;
* V heads: GGUF tiled order, HF grouped order (only if H_v != H_k);
* pairs: of each head the rows of its halves in turn, as of Llama;
* convolution: GGUF (channels, kernel), HF (channels, 1, kernel), or GGUF (1, channels, 1, kernel);
* matrices of heads: GGUF three dimensions, HF one matrix above the other.

Works on NumPy arrays, rows first (a matrix is (n_out, n_in), GGUF dims reversed). Knows nothing of names, files or
models.
Facts: llama.cpp's converter for the Qwen3-Next family (conversion/qwen.py) and src/models/qwen35.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mtpref.base.errors import MtprefError

Values = Mapping[str, int]  # hyper-parameters by the data sheet's names


class Count(Protocol):
    """A number that follows from hyper-parameters."""

    def value(self, values: Values) -> int | None: ...


@dataclass(frozen=True)
class VHeads:
    """The order of V heads along an axis: GGUF's tiled, head t * H_k + g, from HF's grouped, head g * r + t.

    n_k_head, n_v_head   names of H_k and H_v; r = H_v / H_k
    skip       so much of the axis comes first and stays (q and k of a fused tensor)
    """

    n_k_head: str
    n_v_head: str
    skip: Count | None = None

    def source(self, size: int, values: Values) -> np.ndarray | None:
        """Which HF index each GGUF index of an axis of this size comes from; None where all stay."""
        n_k_head, n_v_head = values[self.n_k_head], values[self.n_v_head]
        if n_k_head < 1 or n_v_head % n_k_head:
            raise MtprefError(
                f"V heads: H_v = {n_v_head} is not a multiple of H_k = {n_k_head}; check "
                "ssm.time_step_rank and ssm.group_count"
            )
        if n_k_head == n_v_head:
            return None
        first = 0 if self.skip is None else self.skip.value(values) or 0
        rest = reorder_v_heads(np.arange(size - first), 0, n_k_head, n_v_head, to_gguf=True)
        return np.concatenate([np.arange(first), first + rest])


@dataclass(frozen=True)
class Pairs:
    """Rows of queries and keys as llama.cpp's converter lays out Llama's: of each head the halves' rows in turn.

    size   name of the width of a head
    """

    size: str

    def source(self, size: int, values: Values) -> np.ndarray:
        """Which row of the checkpoint each row comes from. Errors: MtprefError where heads do not divide the rows"""
        width = values[self.size]
        if width % 2 or size % width:
            raise MtprefError(f"queries or keys: {size} rows, expected heads of {width}, an even number")
        return np.arange(size).reshape(-1, 2, width // 2).swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True)
class Change:
    """What a conversion does to one tensor.

    values, inverse   one operation on values, float32 out, and its way back
    rows, columns     the order along an axis
    squeeze           (n, 1, m) in the checkpoint, (n, m) in GGUF
    as_taps           (n, 1, m) or (n, m) in the checkpoint, (1, n, 1, m) in GGUF
    as_column         (n,) in the checkpoint, (n, 1) in GGUF
    groups            name of a count: (groups * n,) in the checkpoint, (groups, n) in GGUF
    heads             name of a count: (heads * n, m) in the checkpoint, a matrix (n, m) for each head in GGUF
    is_transposed     those matrices are (m, n) in GGUF
    """

    values: Callable[[np.ndarray], np.ndarray] | None = None
    inverse: Callable[[np.ndarray], np.ndarray] | None = None
    rows: VHeads | Pairs | None = None
    columns: VHeads | None = None
    squeeze: bool = False
    as_taps: bool = False
    as_column: bool = False
    groups: str = ""
    heads: str = ""
    is_transposed: bool = False

    def apply_values(self, x: np.ndarray) -> np.ndarray:
        """The operation on values alone, then float32. Rows and columns stay where they are.

        float16 is rounded to float16 once more after the operation, since llama.cpp's converter computes in the type
        of the checkpoint; for every other type the operation is float32's.
        """
        if self.values is None:
            return x.astype(np.float32)
        made = self.values(x)
        return made.astype(np.float16).astype(np.float32) if x.dtype == np.float16 else made

    def to_gguf(self, x: np.ndarray, values: Values) -> np.ndarray:
        """One whole tensor from HF's convention to GGUF's, float32."""
        x = self.apply_values(x.astype(np.float32))
        x = conv1d_to_gguf(x) if self.squeeze else x
        for axis, order in enumerate((self.rows, self.columns)):
            source = order.source(x.shape[axis], values) if order else None
            x = x if source is None else np.take(x, source, axis)
        x = x.reshape(1, len(x), 1, -1) if self.as_taps else x
        x = x.reshape(-1, 1) if self.as_column else x
        x = x.reshape(values[self.groups], -1) if self.groups else x
        if self.heads:
            x = x.reshape(values[self.heads], -1, x.shape[-1])
            x = x.transpose(0, 2, 1) if self.is_transposed else x
        return np.ascontiguousarray(x)

    def from_gguf(self, x: np.ndarray, values: Values) -> np.ndarray:
        """Inverse of to_gguf; exact but for the rounding of norms and of log(exp())."""
        x = x.astype(np.float32)
        x = x.reshape(-1) if self.as_column or self.groups else x
        x = x.reshape(-1, 1, x.shape[-1]) if self.as_taps else x
        if self.heads:
            x = x.transpose(0, 2, 1) if self.is_transposed else x
            x = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        for axis, order in enumerate((self.rows, self.columns)):
            source = order.source(x.shape[axis], values) if order else None
            x = x if source is None else np.take(x, np.argsort(source), axis)
        x = self.inverse(x) if self.inverse else x
        return conv1d_from_gguf(x) if self.squeeze else np.ascontiguousarray(x)


def norm_to_gguf(weight: np.ndarray) -> np.ndarray:
    """w + 1, in float32."""
    return weight.astype(np.float32) + np.float32(1.0)


def norm_from_gguf(weight: np.ndarray) -> np.ndarray:
    """w - 1, in float32. Restores the HF weight to within 2^-24 for |w| < 1: the addition has rounded."""
    return weight.astype(np.float32) - np.float32(1.0)


def a_log_to_ssm_a(a_log: np.ndarray) -> np.ndarray:
    """-exp(A_log); computed in float64, rounded once to float32."""
    return (-np.exp(a_log.astype(np.float64))).astype(np.float32)


def ssm_a_to_a_log(ssm_a: np.ndarray) -> np.ndarray:
    """log(-ssm_a); computed in float64, rounded once to float32. ssm_a must be negative."""
    if not np.all(ssm_a < 0):
        raise MtprefError(f"ssm_a: largest value {ssm_a.max()}, expected all < 0; is this already A_log?")
    return np.log(-ssm_a.astype(np.float64)).astype(np.float32)


def a_log_to_decay(a_log: np.ndarray) -> np.ndarray:
    """exp(A_log); computed in float64, rounded once to float32."""
    return np.exp(a_log.astype(np.float64)).astype(np.float32)


def decay_to_a_log(ssm_a: np.ndarray) -> np.ndarray:
    """log(ssm_a); computed in float64, rounded once to float32. ssm_a must be positive."""
    if not np.all(ssm_a > 0):
        raise MtprefError(f"ssm_a: least value {ssm_a.min()}, expected all > 0; is this already A_log?")
    return np.log(ssm_a.astype(np.float64)).astype(np.float32)


def conv1d_to_gguf(weight: np.ndarray) -> np.ndarray:
    """(channels, 1, kernel) to (channels, kernel)."""
    if weight.ndim != 3 or weight.shape[1] != 1:
        raise MtprefError(f"conv1d.weight: shape {weight.shape}, expected (channels, 1, kernel)")
    return weight[:, 0, :]


def conv1d_from_gguf(weight: np.ndarray) -> np.ndarray:
    """(channels, kernel) to (channels, 1, kernel)."""
    if weight.ndim != 2:
        raise MtprefError(f"ssm_conv1d.weight: shape {weight.shape}, expected (channels, kernel)")
    return weight[:, None, :]


def v_head_source(n_k_head: int, n_v_head: int) -> np.ndarray:
    """The HF V head each GGUF V head comes from: head t * H_k + g <- head g * r + t, r = H_v / H_k."""
    return np.arange(n_v_head).reshape(n_k_head, n_v_head // n_k_head).T.reshape(-1)


def reorder_v_heads(x: np.ndarray, axis: int, n_k_head: int, n_v_head: int, to_gguf: bool) -> np.ndarray:
    """Move whole V heads along ``axis`` between grouped (HF) and tiled (GGUF) order.

    The axis holds n_v_head equal pieces, one a head (of S rows, or of one value for ``ssm_a``).
    """
    if x.shape[axis] % n_v_head:
        raise MtprefError(f"V heads: axis of {x.shape[axis]} values, expected a multiple of H_v = {n_v_head}")
    source = v_head_source(n_k_head, n_v_head)
    if not to_gguf:
        source = np.argsort(source)
    moved = np.moveaxis(x, axis, 0)
    heads = moved.reshape(n_v_head, x.shape[axis] // n_v_head, *moved.shape[1:])
    return np.ascontiguousarray(np.moveaxis(heads[source].reshape(moved.shape), 0, axis))


AS_IS = Change()
ZERO_CENTRED = Change(norm_to_gguf, norm_from_gguf)
BY_HEAD, BY_HEAD_TRANSPOSED = Change(heads="n_head"), Change(heads="n_head", is_transposed=True)
NEGATIVE_EXP = Change(a_log_to_ssm_a, ssm_a_to_a_log)
EXP = Change(a_log_to_decay, decay_to_a_log)
