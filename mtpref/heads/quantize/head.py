"""The MTP head quantised by GPTQ: calibrated on what its matrices see when it runs on the trunk's real hidden rows.

Owns the order. Trunk rows are computed once; then the head runs once for each stage, with all earlier stages quantised
already, so that a matrix is calibrated on the inputs it will have. Stages are found by watching the head run, whatever
its block is. The trunk is not touched. The rows that experts see go to disk, and one expert's Hessian at a time is in
memory; an expert that saw too few is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, Pairs
from mtpref.engine.weights import MtpWeights, stacked
from mtpref.heads.quantize.collect import paired, product_of, run_head, watched
from mtpref.heads.quantize.gptq import DAMPING, Rounding, gptq_codes, nearest_codes
from mtpref.heads.quantize.grid import Grid
from mtpref.heads.quantize.mixture import Item, is_quantizable
from mtpref.heads.quantize.spill import Spill
from mtpref.spec import Matrix, Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
MAX_TOKENS = 1 << 16
MIN_ROWS = 16  # an expert that saw fewer is rounded to nearest
# Times n_in / rows: the damping of an expert's Hessian. With fewer rows than columns GPTQ's usual damping is worse than
# rounding to nearest; this is near the best at every number of rows (tools/compare_expert_quants.py).
EXPERT_DAMPING = 0.5
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


def hessians(model: Model, chunks: Sequence[Pairs], names: Sequence[str], spill: Spill | None = None) -> dict[str, F64]:
    """2/n sum x x^T of these matrices' inputs, float64.

    spill   where the rows of experts are kept in place of their Hessians: those of one tensor, since all of `names` of
            one expert see the same
    """
    sums: dict[str, tuple[F64, int]] = {}
    wanted = set(names)
    first = next((product_of(name) for name in names if product_of(name).expert is not None), None)

    def see(name: str, x: F32) -> None:
        if name not in wanted:
            return
        product = product_of(name)
        if spill is not None and first is not None and product.expert is not None:
            if (product.tensor, product.part) == (first.tensor, first.part):
                spill.add(product.expert, x)
            return
        wide = x.astype(np.float64)
        total, n = sums.get(name, (np.zeros((x.shape[1], x.shape[1])), 0))
        sums[name] = (total + wide.T @ wide, n + len(x))

    run_head(watched(model, see), chunks)
    return {name: 2.0 / n * total for name, (total, n) in sums.items()}


def with_matrices(model: Model, made: dict[str, Matrix]) -> Model:
    """The model with matrices of its heads replaced, by the names that head_matrices gives; a stack as a whole."""

    def new(w: Any) -> Any:
        if isinstance(w, Stack):
            if w[0].name not in made:
                return w
            return stacked(w, [made[part.name] for part in w])
        return made.get(w.name, w) if isinstance(w, Matrix) else w

    for i, head in enumerate(model.heads):
        block = {key: new(w) for key, w in head.weights.block.items()}
        model = model.with_head(i, eh_proj=new(head.weights.eh_proj), block=block)
    return model


def head_matrices(model: Model) -> dict[str, Matrix]:
    """The heads' own matrices that can be quantised, by the names of products (collect.product_of): those of a stack
    (experts) are NAME[0], NAME[1], ...

    Embedding and output head are not among them.
    """
    return {w.name: w for head in model.heads for w in _matrices(head.weights)}


def _matrices(mtp: MtpWeights) -> Iterator[Matrix]:
    for part in (mtp.eh_proj, *mtp.block.values()):
        for w in part if isinstance(part, Stack) else (part,):
            if isinstance(w, Matrix) and is_quantizable(Item(tensor_name(w.name), w.type_name, (w.n_out, w.n_in))):
                yield w


def tensor_name(name: str) -> str:
    """The tensor that a matrix is of: itself, what it is rows of, or the stack."""
    return product_of(name).tensor


def stages(model: Model, chunks: Sequence[Pairs], tensors: set[str] | None = None) -> list[list[str]]:
    """The tensors of head_matrices in the order in which they run; those that see the same rows are one stage.

    tensors  which of them (default: all)

    Rule  one pair tells: a stack is where the matrix of it that ran is; a tensor that no pass reads is in no stage
    """
    chunk = max(chunks, key=lambda chunk: len(chunk.ids))
    wanted = {tensor_name(name) for name in head_matrices(model)} if tensors is None else set(tensors)
    by_rows: dict[bytes, list[str]] = {}

    def see(name: str, x: F32) -> None:
        if tensor_name(name) in wanted:
            wanted.remove(tensor_name(name))
            by_rows.setdefault(x.tobytes(), []).append(tensor_name(name))

    run_head(watched(model, see), [Pairs(chunk.ids[-1:], chunk.rows[-1:], chunk.first + len(chunk.ids) - 1)])
    return list(by_rows.values())


@dataclass(frozen=True)
class Calibrated:
    """The heads' matrices on a grid, by the names of head_matrices.

    plain   stack -> its experts that saw fewer than MIN_ROWS rows and were rounded to nearest
    """

    made: dict[str, Matrix]
    plain: dict[str, list[int]]

    def note(self) -> str | None:
        """One line on what was not calibrated."""
        if not self.plain:
            return None
        told = ", ".join(f"{len(experts)} of {name}" for name, experts in self.plain.items())
        return f"GPTQ: experts that saw fewer than {MIN_ROWS} rows were rounded to nearest: {told}; more text helps"


Finish = Callable[[str, NDArray[np.int64], F64, F64], Matrix]  # (name, codes, d, m)


def gptq_head(
    model: Model,
    chunks: Sequence[Pairs],
    grid: Rounding,
    *,
    damping: float = DAMPING,
    folder: str | Path | None = None,
    only: Callable[[str], bool] | None = None,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """The heads' matrices on a grid, stage by stage.

    only    which tensors, by GGUF name (default: all that can be quantised)
    finish  makes the matrix that the later stages run with (default: of the grid's GGUF type)
    Rule    an expert that saw n rows has a damping of EXPERT_DAMPING n_in / n where that is more; one that saw fewer
            than MIN_ROWS is rounded to nearest
    folder  where the rows of experts are kept meanwhile (None: the system's place); nothing of it is left
    """
    made: dict[str, Matrix] = {}
    plain: dict[str, list[int]] = {}
    finish = finish or partial(_of_grid, grid)
    sources = {name: w for name, w in head_matrices(model).items() if only is None or only(tensor_name(name))}
    order = stages(model, chunks, {tensor_name(name) for name in sources})
    for i, stage in enumerate(order):
        names = [name for name in sources if tensor_name(name) in stage]
        of_expert: dict[int | None, list[Matrix]] = {}
        for name in names:
            of_expert.setdefault(product_of(name).expert, []).append(sources[name])
        with Spill(folder) as spill:
            found = hessians(with_matrices(model, made), chunks, names, spill)
            for expert, matrices in of_expert.items():
                own, least = (None, 0.0) if expert is None else _of_expert(spill, expert, matrices[0].n_in)
                for w in matrices:
                    if expert is not None and own is None:
                        plain.setdefault(tensor_name(w.name), []).append(expert)
                        coded = nearest_codes(w.dequantize(), grid)
                    else:
                        hessian = found[w.name] if own is None else own
                        coded = gptq_codes(w.dequantize(), hessian, grid, damping=max(damping, least), name=w.name)
                    made[w.name] = finish(w.name, *coded)
        if progress is not None:
            progress(i + 1, len(order))
    return Calibrated(made, {name: sorted(set(experts)) for name, experts in plain.items()})


def _of_grid(grid: Rounding, name: str, codes: NDArray[np.int64], d: F64, m: F64) -> Matrix:
    if not isinstance(grid, Grid):
        raise TypeError("gptq_head: no finish for a grid of no GGUF type")
    return Matrix(name, grid.kind, len(codes), codes.shape[1], grid.pack(codes, d, m).reshape(-1))


def _of_expert(spill: Spill, expert: int, n_in: int) -> tuple[NDArray[np.float64] | None, float]:
    """An expert's Hessian and its least damping; None where it saw too few rows."""
    n = spill.n_rows(expert)
    return (spill.hessian(expert, n_in), EXPERT_DAMPING * n_in / n) if n >= MIN_ROWS else (None, 0.0)


def tensors_of(made: dict[str, Matrix]) -> dict[str, tuple[str, U8]]:
    """Quantised matrices as tensors of a file: GGUF name -> type and bytes. Matrices of a stack stand one after the
    other, each with its parts together."""
    tensors: dict[str, dict[int | None, list[Matrix]]] = {}
    for name, w in made.items():
        product = product_of(name)
        tensors.setdefault(product.tensor, {}).setdefault(product.expert, []).append(w)
    found = {}
    for name, of_expert in tensors.items():
        matrices = [w for parts in of_expert.values() for w in parts]
        found[name] = matrices[0].type_name, np.concatenate([w.raw for w in matrices])
    return found
