"""Samples of the values of every matrix and stack: zeros, halves of zeros, a few values, another layer's values.

Owns what is read of a file and what a sample can show. Rows are evenly spaced and cut at so many columns, so that the
cost is that of the number of tensors, not of their size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mtpref.files.gguf import GgufFile, TensorInfo
from mtpref.heads.check.findings import GRAFT, TRUNK, Finding
from mtpref.spec.quants import DEQUANTIZABLE, dequantize

F32 = NDArray[np.float32]
SAMPLE_ROWS, SAMPLE_COLUMNS = 48, 2048
KEPT_ROWS, KEPT_COLUMNS = 16, 512  # of each matrix, to be set beside others
ZERO = 1e-3  # of the other half's root mean square: below it a half counts as zero
FEW, MANY = 0.05, 0.2  # different values in a row, as a share of its length
SAME = 0.98  # correlation
# Types whose rows hold few values by nature.
FEW_BITS = frozenset({
    "Q1_0", "Q2_0", "Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0",
    "TQ2_0",
})  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """kind: the name without its block; values: KEPT_ROWS by KEPT_COLUMNS, flat, of length 1"""

    info: TensorInfo
    block: str
    kind: str
    values: F32
    share: float  # of different values in a row


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is found elsewhere
def samples(file: GgufFile) -> list[Finding]:
    """Findings on all matrices, and on norms that are zero."""
    found: list[Finding] = []
    kept: list[_Sample] = []
    gates: dict[str, list[TensorInfo]] = {}  # of zeros, by name without the block
    for info in file.tensors.values():
        if info.type_name not in DEQUANTIZABLE:
            continue
        if len(info.shape) == 1 and info.name.endswith("norm.weight"):
            x = vector(file, info.name)
            if x is not None and not np.any(x):
                found.append(Finding("tensor-zero", info.name, "all values are 0"))
        elif len(info.shape) in (2, 3):
            x = sample_rows(file, info, n_columns=_columns(info))
            if not np.any(x) and len(x) == 1:
                gates.setdefault(info.name.split(".", 2)[-1], []).append(info)
                continue
            if not np.any(x):
                found.append(Finding("tensor-zero", info.name, f"{len(x)} rows of a sample are all 0"))
                continue
            kept.append(_kept(info, x))
            if info.name.endswith("nextn.eh_proj.weight"):
                found += _halves(info.name, x)
    found += _zero_gates(file, gates)
    heads = {name.split(".")[1] for name in file.tensors if name.startswith("blk.") and ".nextn." in name}
    return [_for_its_part(f, heads) for f in [*found, *_few_values(kept)]] + list(_doubled(kept))


def _zero_gates(file: GgufFile, gates: dict[str, list[TensorInfo]]) -> list[Finding]:
    """Gates of one row that are zero: what they gate is halved and no more, so where all are, the model is made so."""
    found = []
    for kind, zero in gates.items():
        n = sum(name.endswith(f".{kind}") for name in file.tensors)
        found += [Finding("gate-zero", info.name, "all values are 0") for info in zero if len(zero) < n]
    return found


def _for_its_part(finding: Finding, heads: set[str]) -> Finding:
    """Another head does not mend a trunk."""
    is_heads = finding.what.startswith("blk.") and finding.what.split(".")[1] in heads
    return replace(finding, own_remedy=GRAFT if is_heads else TRUNK)


def _columns(info: TensorInfo) -> int | None:
    """The input halves of eh_proj are both looked at."""
    return None if info.name.endswith("nextn.eh_proj.weight") else SAMPLE_COLUMNS


def _kept(info: TensorInfo, x: F32) -> _Sample:
    part = x[:: max(1, len(x) // KEPT_ROWS)][:KEPT_ROWS, :KEPT_COLUMNS]
    share = float(np.mean([len(np.unique(row)) for row in part])) / part.shape[1]
    flat = part.astype(np.float32).reshape(-1)
    flat -= flat.mean()
    length = float(np.linalg.norm(flat))
    parts = info.name.split(".", 2)
    block, kind = (parts[1], parts[2]) if parts[0] == "blk" and len(parts) == 3 else ("", info.name)
    return _Sample(info, block, kind, flat / np.float32(length) if length > 0 else flat, share)


def _few_values(kept: list[_Sample]) -> Iterator[Finding]:
    """Matrices whose rows hold a few different values, where the file's others of many bits hold many."""
    able = [s for s in kept if s.info.type_name not in FEW_BITS and s.info.shape[-1] >= 32]
    if not able or np.median([s.share for s in able]) < MANY:
        return
    for s in able:
        if s.share < FEW:
            n = round(s.share * min(s.info.shape[-1], KEPT_COLUMNS))
            text = f"{n} different values in {min(s.info.shape[-1], KEPT_COLUMNS)} of a row, on average"
            yield Finding("tensor-few-values", s.info.name, text)


def _doubled(kept: list[_Sample]) -> Iterator[Finding]:
    """Matrices that are another layer's, by accident: the two layers' other matrices differ (a merge repeats layers
    whole), and no third layer has the same one (then it is made so)."""
    by_block: dict[str, dict[str, _Sample]] = defaultdict(dict)
    for s in kept:
        by_block[s.block][s.kind] = s
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for a, b in combinations(by_block, 2):
        common = [kind for kind, s in by_block[a].items() if _is_comparable(s, by_block[b].get(kind))]
        same = [k for k in common if abs(float(np.dot(by_block[a][k].values, by_block[b][k].values))) > SAME]
        for kind in same if 2 * len(same) < len(common) else ():
            pairs[kind].append((a, b))
    for kind, found in pairs.items():
        if len(found) == 1:
            a, b = found[0]
            names = f"blk.{a}.{kind} and blk.{b}.{kind}"
            yield Finding("tensor-doubled", names, "the same sample, while the layers' other matrices differ")


def _is_comparable(a: _Sample, b: _Sample | None) -> bool:
    return b is not None and a.values.shape == b.values.shape and a.values.size >= 256


def _halves(name: str, x: F32) -> list[Finding]:
    n = x.shape[1] // 2
    rms = [float(np.sqrt(np.mean(np.square(half, dtype=np.float64)))) for half in (x[:, :n], x[:, n:])]
    if not np.all(np.isfinite(rms)):
        return []  # said by not-finite
    for i, (half, other) in enumerate((("embedding", "hidden"), ("hidden", "embedding"))):
        if rms[i] < ZERO * rms[1 - i]:
            text = f"the {half} half has a root mean square of {rms[i]:.3g}, the {other} half {rms[1 - i]:.3g}"
            return [Finding("eh-proj-half-zero", name, text)]
    return []


def sample_rows(file: GgufFile, info: TensorInfo, n: int = SAMPLE_ROWS, n_columns: int | None = None) -> F32:
    """Rows of a matrix, or of a stack one after the other, evenly spaced, as float32.

    n_columns   so many of their first columns (a multiple of 256)
    """
    n_columns = min(n_columns or info.shape[-1], info.shape[-1])
    rows = np.unique(np.linspace(0, math.prod(info.shape[:-1]) - 1, n).astype(np.int64))
    return file.decoded_rows(info, rows, n_columns)


def vector(file: GgufFile, name: str) -> F32 | None:
    info = file.tensors.get(name)
    if info is None or len(info.shape) != 1 or info.type_name not in DEQUANTIZABLE:
        return None
    return dequantize(info.type_name, file.data(info), info.shape)
