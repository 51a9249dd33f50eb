"""A port's tensors: what a dump of any engine says, and how far a prediction is from it.

Owns reading the file in bounded memory, the alignment of rows and the measure. It must not know hypotheses.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.look.compare.sources import open_source

F64 = NDArray[np.float64]
TOKENS = ("tokens", "inp_tokens")
MAX_TOKENS = 1 << 20
MAX_BYTES = 4 << 30
WORST = 4.0  # the greatest distance: opposite values


@dataclass(frozen=True)
class PortTensors:
    """A port's tensors, as its dump holds them.

    ids      the tokens, None where the file does not hold them
    tensors  by cb() name, as the file has them in NumPy order (tokens first)
    skipped  names of tensors that were not read: a type that is no plain float
    """

    label: str
    ids: list[int] | None
    tensors: dict[str, NDArray[np.float32]]
    skipped: tuple[str, ...] = ()


def read_port(path: str | Path) -> PortTensors:
    """The tensors of a file of any kind that `mtpref compare` reads.

    Errors  MtprefError, one line, for a damaged file, one without float tensors, or more than 4 GiB of them
    """
    with open_source(path) as source:
        ids, tensors, skipped, n_bytes = None, {}, [], 0
        for name in source.names:
            values = source.read(name)
            if isinstance(values, np.ndarray) and name in TOKENS:
                ids = _ids(source.label, name, values)
                continue
            if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or not values.size:
                skipped.append(name)
                continue
            n_bytes += 4 * values.size
            if n_bytes > MAX_BYTES:
                raise MtprefError(
                    f"{source.label}: more than {MAX_BYTES >> 30} GiB of activations, expected less; "
                    "dump fewer tokens or fewer tensors"
                )
            tensors[name] = values.astype(np.float32)
        if not tensors:
            raise MtprefError(
                f"{source.label}: no tensor of floats in it, expected activations under cb() names such "
                "as mtp_eh_proj-4; try: mtpref dump"
            )
        return PortTensors(source.label, ids, tensors, tuple(skipped))


def _ids(label: str, name: str, values: NDArray) -> list[int]:
    ids = values.reshape(-1)
    is_whole = ids.dtype.kind in "iu" or (ids.dtype.kind == "f" and bool((ids == np.floor(ids)).all()))
    if not is_whole or not 0 < ids.size <= MAX_TOKENS:
        raise MtprefError(
            f"{label}: tensor {printable(name)} has {ids.size} values of type {ids.dtype}, expected 1 .. "
            f"{MAX_TOKENS} token ids (I32)"
        )
    return [int(i) for i in ids]


def distance(port: NDArray, predicted: NDArray) -> float | None:
    """2 sum((p - h)^2) / (sum(p^2) + sum(h^2)): 0 equal, 2 unrelated, 4 opposite; None where shapes do not fit.

    Rule    rows are tokens. A port that has fewer rows has the last ones (dumps often do); rows that a port has and
            the prediction has not are wholly unexplained. Values that are not finite are as far off as can be
    """
    a, b = np.asarray(port, np.float64), np.asarray(predicted, np.float64)
    aligned = _aligned(a, b)
    if aligned is None:
        return None
    a, b, unexplained = aligned
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        same = (np.isnan(a) & np.isnan(b)) | (a == b)
        if not (finite | same).all():
            return WORST
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    power = float((a * a).sum() + (b * b).sum())
    error = 2.0 * float(((a - b) ** 2).sum())
    fit = min(error / power, WORST) if power > 0 else 0.0
    return fit + (2.0 - min(fit, 2.0)) * unexplained


def _aligned(a: F64, b: F64) -> tuple[F64, F64, float] | None:
    """Both as equal arrays, and the fraction of the port's rows that the prediction does not have."""
    if a.size == b.size:
        return a.reshape(-1), b.reshape(-1), 0.0
    if not a.size or not b.size or b.ndim < 2:
        return None
    width = b.size // b.shape[0]
    if not width or a.size % width:
        return None
    rows_a, rows_b = a.reshape(-1, width), b.reshape(-1, width)
    n = min(len(rows_a), len(rows_b))
    return rows_a[-n:].reshape(-1), rows_b[-n:].reshape(-1), (len(rows_a) - n) / len(rows_a)
