"""The MTP head quantised by GPTQ: calibrated on what its matrices see when it runs on the trunk's real hidden rows.

Owns the order. Trunk rows are computed once; then the head runs once for each stage, with all earlier stages quantised
already, so that a matrix is calibrated on the inputs it will have. Stages are found by watching the head run, whatever
its block is. The trunk is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, Pairs
from mtpref.engine.weights import MtpWeights
from mtpref.heads.quantize.collect import paired, run_head, watched
from mtpref.heads.quantize.gptq import DAMPING, gptq
from mtpref.heads.quantize.grid import Grid
from mtpref.heads.quantize.mixture import Item, is_quantizable
from mtpref.spec import Matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
MAX_TOKENS = 1 << 16
Progress = Callable[[int, int], None]


def trunk_rows(
    model: Model, texts: Sequence[Sequence[int]], n_ctx: int = 512, progress: Progress | None = None
) -> list[Pairs]:
    """Run the trunk over texts, n_ctx tokens at a time; what is kept is n_embd float32 a token.

    Errors   MtprefError for a model without a head, more than MAX_TOKENS tokens, or none
    """
    if not model.has_mtp:
        raise MtprefError("GPTQ: the model has no MTP head, expected one; try: mtpref check")
    cut = [list(ids[i : i + n_ctx]) for ids in texts for i in range(0, len(ids), n_ctx)]
    n_all = sum(map(len, cut))
    if not 2 <= n_all <= MAX_TOKENS:
        raise MtprefError(f"`calibration`: {n_all} tokens, expected 2 to {MAX_TOKENS}; give other texts")
    out, n_done = [], 0
    for ids in cut:
        chunk = paired(model, ids)
        if chunk.ids:
            out.append(chunk)
        n_done += len(ids)
        if progress is not None:
            progress(n_done, n_all)
    return out


def hessians(model: Model, chunks: Sequence[Pairs], names: Sequence[str]) -> dict[str, F64]:
    """2/n sum x x^T of these matrices' inputs, float64."""
    sums: dict[str, tuple[F64, int]] = {}

    def see(name: str, x: F32) -> None:
        if name in names:
            wide = x.astype(np.float64)
            total, n = sums.get(name, (np.zeros((x.shape[1], x.shape[1])), 0))
            sums[name] = (total + wide.T @ wide, n + len(x))

    run_head(watched(model, see), chunks)
    return {name: 2.0 / n * total for name, (total, n) in sums.items()}


def with_matrices(model: Model, made: dict[str, Matrix]) -> Model:
    """The model with matrices of its heads replaced, by the names that head_matrices gives."""

    def new(w: Any) -> Any:
        return tuple(map(new, w)) if isinstance(w, tuple) else made.get(w.name, w) if isinstance(w, Matrix) else w

    for i, head in enumerate(model.heads):
        block = {key: new(w) for key, w in head.weights.block.items()}
        model = model.with_head(i, eh_proj=new(head.weights.eh_proj), block=block)
    return model


def head_matrices(model: Model) -> dict[str, Matrix]:
    """The heads' own matrices that can be quantised, by GGUF name; those of a stack (experts) are NAME[0], NAME[1], ...

    Embedding and output head are not among them.
    """
    return {w.name: w for head in model.heads for w in _matrices(head.weights)}


def _matrices(mtp: MtpWeights) -> Iterator[Matrix]:
    for part in (mtp.eh_proj, *mtp.block.values()):
        for w in part if isinstance(part, tuple) else (part,):
            if isinstance(w, Matrix) and is_quantizable(Item(tensor_name(w.name), w.type_name, (w.n_out, w.n_in))):
                yield w


def tensor_name(name: str) -> str:
    """The tensor that a matrix is of: itself, or the stack."""
    return name.partition("[")[0]


def stages(model: Model, chunks: Sequence[Pairs]) -> list[list[str]]:
    """The tensors of head_matrices in the order in which they run; those that see the same rows are one stage.

    Rule  one pair tells: a stack is where the matrix of it that ran is; a tensor that no pass reads is in no stage
    """
    chunk = max(chunks, key=lambda chunk: len(chunk.ids))
    wanted = {tensor_name(name) for name in head_matrices(model)}
    by_rows: dict[bytes, list[str]] = {}

    def see(name: str, x: F32) -> None:
        if tensor_name(name) in wanted:
            wanted.remove(tensor_name(name))
            by_rows.setdefault(x.tobytes(), []).append(tensor_name(name))

    run_head(watched(model, see), [Pairs(chunk.ids[-1:], chunk.rows[-1:], chunk.first + len(chunk.ids) - 1)])
    return list(by_rows.values())


def gptq_head(
    model: Model,
    chunks: Sequence[Pairs],
    grid: Grid,
    *,
    damping: float = DAMPING,
    progress: Progress | None = None,
) -> dict[str, Matrix]:
    """The heads' matrices on a grid, stage by stage: name as of head_matrices -> quantised matrix.

    Rule  a matrix that saw nothing (an expert that no token chose) is rounded to nearest
    """
    made: dict[str, Matrix] = {}
    sources, order = head_matrices(model), stages(model, chunks)
    for i, stage in enumerate(order):
        names = [name for name in sources if tensor_name(name) in stage]
        found = hessians(with_matrices(model, made), chunks, names)
        for name in names:
            w = sources[name]
            hessian = found.get(name, np.zeros((w.n_in, w.n_in)))
            raw = gptq(w.dequantize(), hessian, grid, damping=damping, name=name)
            made[name] = Matrix(name, grid.kind, w.n_out, w.n_in, raw.reshape(-1))
        if progress is not None:
            progress(i + 1, len(order))
    return made


def tensors_of(made: dict[str, Matrix]) -> dict[str, tuple[str, U8]]:
    """Quantised matrices as tensors of a file: GGUF name -> type and bytes, a stack's one after the other."""
    stacks: dict[str, list[Matrix]] = {}
    for name, w in made.items():
        stacks.setdefault(tensor_name(name), []).append(w)
    return {name: (ws[0].type_name, np.concatenate([w.raw for w in ws])) for name, ws in stacks.items()}
