"""The head's matrices in INT4 by GPTQ: the block driven with the trunk's hidden rows, then codes under the checkpoint's
names.

Owns where the hidden rows come from, texts run through the quantised trunk or a file that an engine has dumped, and the
way back from GGUF's order of rows to the checkpoint's. The algorithm is heads/quantize's. A matrix that a conversion
turns over (deepseek's kv_b_proj) is rounded to nearest, and said.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model, Pairs, load
from mtpref.engine.model.alone import load_alone
from mtpref.files.gguf import WriteOptions, listed, printable
from mtpref.files.tensor_files.safetensors import SafetensorsFile
from mtpref.heads.checkpoint import head_contents
from mtpref.heads.contents import write_contents
from mtpref.heads.convert import Settings as ConvertSettings
from mtpref.heads.convert import convert
from mtpref.heads.hf import Checkpoint, Part, TextConfig, gguf_tensors
from mtpref.heads.into_hf.encode import Int4Grid, Parts
from mtpref.heads.into_hf.plan import Coded, HeadPlan
from mtpref.heads.quantize.collect import product_of
from mtpref.heads.quantize.head import MAX_TOKENS, gptq_head, trunk_rows, with_matrices
from mtpref.measure.probe import read_texts
from mtpref.spec import Matrix

Progress = Callable[[int, int], None]
N_CTX = 512
H, IDS, POSITIONS = "h", "ids", "positions"


@dataclass(frozen=True)
class Calibration:
    """texts: files that are run through the trunk; hidden: a file of hidden rows in their place"""

    texts: tuple[str, ...] = ()
    hidden: str | None = None


def by_gptq(
    base: Checkpoint,
    original: Checkpoint,
    config: TextConfig,
    plan: HeadPlan,
    given: Calibration,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[dict[str, Parts], list[str]]:
    """(parts by module of what GPTQ has quantised, what is to be said).

    folder   where temporary files go; nothing of them is left
    Errors   MtprefError for a model that cannot be run, too little text, a bad file of hidden rows
    """
    wanted = [c for c in plan.quantised if c.form.kind == "w4a16" and not c.copied]
    parts = {part.name: part for part in gguf_tensors(original, config).parts if part.is_head}
    able = {name for c in wanted for name in _tensors(c, parts) if _is_rows(parts[name])}
    lacking = sorted({c.template for c in wanted if not able & set(_tensors(c, parts))})
    notes = [f"GPTQ: {listed(lacking)}: turned over by a conversion, rounded to nearest"] if lacking else []
    if not able:
        return {}, [*notes, "GPTQ: nothing of the head is INT4 and new: nothing was calibrated"]
    with tempfile.TemporaryDirectory(prefix="mtpref-gptq-", dir=folder) as name:
        model, chunks = _model(base, original, given, Path(name), progress)
        codes: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]] = {}
        for form in dict.fromkeys(c.form for c in wanted):
            grid = Int4Grid(form)
            own = {n for c in wanted if c.form == form for n in _tensors(c, parts)} & able

            def finish(name: str, q: Any, d: Any, _: Any, grid: Int4Grid = grid) -> Matrix:
                codes[name] = q.astype(np.int8), d.astype(np.float32)
                return grid.matrix(name, q, d)

            made = gptq_head(model, chunks, grid, folder=name, only=own.__contains__, finish=finish)
            model = with_matrices(model, made.made)
            notes += [note for note in [made.note()] if note]
    return _by_module(wanted, parts, able, codes), notes


def _model(
    base: Checkpoint, original: Checkpoint, given: Calibration, folder: Path, progress: Progress | None
) -> tuple[Model, list[Pairs]]:
    """The original's head, on the base's trunk where texts are given; and the pairs that it is calibrated on."""
    # BF16 holds what the original has in BF16; anything else goes through float32.
    is_exact = all(original.dtype(name) in ("BF16", "F16") for name in original.names if len(original.shape(name)) == 2)
    outtype = "bf16" if is_exact and all(original.dtype(n) != "F16" for n in original.names) else "f32"
    contents, _ = head_contents(original, outtype)
    write_contents(folder / "head.gguf", contents, WriteOptions())
    if given.hidden is not None:
        model = load_alone(folder / "head.gguf")
        return model, hidden_rows(given.hidden, model)
    convert(base.folder, folder / "trunk.gguf", ConvertSettings(which="trunk", allow_unmapped=True))
    model = load(folder / "trunk.gguf", model_draft=folder / "head.gguf")
    texts = [text.ids for text in read_texts(list(given.texts), model.vocab, "calibration")]
    return model, trunk_rows(model, texts, min(N_CTX, model.config.n_ctx_train), progress)


def hidden_rows(path: str | Path, model: Model) -> list[Pairs]:
    """The pairs of a safetensors file of hidden rows: `h` (n, n_hidden) F32, F16 or BF16, `ids` and `positions` (n,).

    h[i] is the trunk's row after token ids[i] at position positions[i], as the head takes it (after the final norm,
    where the architecture says so). Positions that follow each other are one sequence; the head sees each token with
    the row before it, so that the first of a sequence gives a row and no pair.
    Errors   MtprefError for a tensor that is missing, of another shape or type, out of range, or not finite
    """
    label = printable(str(path), 400)
    file = SafetensorsFile(path)
    try:
        expected = f"expected {H} (n, {model.heads[0].n_hidden}), {IDS} (n,) and {POSITIONS} (n,)"
        missing = [name for name in (H, IDS, POSITIONS) if name not in file.names]
        if missing:
            raise MtprefError(f"{label}: no tensor {missing[0]}, {expected}")
        shape = file.shape(H)
        n = shape[0] if shape else 0
        if shape != (n, model.heads[0].n_hidden) or file.shape(IDS) != (n,) or file.shape(POSITIONS) != (n,):
            found = ", ".join(f"{name} {file.shape(name)}" for name in (H, IDS, POSITIONS))
            raise MtprefError(f"{label}: {found}, {expected}")
        if not 2 <= n <= MAX_TOKENS:
            raise MtprefError(f"{label}: {n} rows, expected 2 to {MAX_TOKENS}")
        if file.dtype(H) not in ("F32", "F16", "BF16") or any(file.dtype(i)[0] not in "IU" for i in (IDS, POSITIONS)):
            found = ", ".join(f"{name} {file.dtype(name)}" for name in (H, IDS, POSITIONS))
            raise MtprefError(f"{label}: {found}, expected {H} in F32, F16 or BF16 and integers")
        h = file.values(H).astype(np.float32)
        ids, positions = (file.values(name).astype(np.int64) for name in (IDS, POSITIONS))
    finally:
        file.close()
    if not np.isfinite(h).all():
        raise MtprefError(f"{label}: {H} holds NaN or infinity, expected finite rows")
    n_vocab = model.n_vocab
    if ids.min() < 0 or ids.max() >= n_vocab:
        bad = int(ids[(ids < 0) | (ids >= n_vocab)][0])
        raise MtprefError(f"{label}: {IDS} holds {bad}, expected 0 .. {n_vocab - 1}")
    chunks = []
    starts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), n]
    for first, last in pairwise(starts):
        for at in range(first, last, N_CTX):
            end = min(at + N_CTX, last)
            if end - at > 1:
                chunks.append(Pairs(ids[at + 1 : end].tolist(), h[at : end - 1], 1))
    if not chunks:
        raise MtprefError(f"{label}: no two positions follow each other, expected rows of whole texts")
    return chunks


# BACK TO THE CHECKPOINT


def _tensors(c: Coded, parts: dict[str, Part]) -> list[str]:
    """The GGUF tensors that a matrix of the checkpoint is, or is in."""
    if c.expert is not None:
        return [c.tensor] if c.tensor in parts else []
    return [name for name, part in parts.items() if part.source == c.source and len(part.sources) == 1]


def _is_rows(part: Part) -> bool:
    """Whether a tensor's rows are the checkpoint's, in whatever order."""
    change = part.place.tensor.change
    is_plain = not change.is_transposed and not change.heads and change.values is None and part.columns is None
    return is_plain and len(part.shape) in (2, 3)


def _by_module(
    wanted: Sequence[Coded], parts: dict[str, Part], able: set[str],
    codes: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]],
) -> dict[str, Parts]:  # fmt: skip
    found: dict[tuple[str, int | None], list[tuple[NDArray[np.int8], NDArray[np.float32]]]] = {}
    for name, own in codes.items():
        product = product_of(name)
        found.setdefault((product.tensor, product.expert), []).append(own)
    made = {}
    for c in wanted:
        names = _tensors(c, parts)
        if not names or not able.issuperset(names):
            continue
        q = np.zeros(c.shape, np.int8)
        d = np.zeros((c.shape[0], c.shape[1] // c.form.group), np.float32)
        for name in names:
            pieces = found[name, c.expert]
            rows = parts[name].rows if c.expert is None else None
            at = np.arange(sum(len(q) for q, _ in pieces)) if rows is None else rows
            q[at] = np.concatenate([piece[0] for piece in pieces])
            d[at] = np.concatenate([piece[1] for piece in pieces])
        made[c.module] = Int4Grid(c.form).parts(q.astype(np.int64), d.astype(np.float64))
    return made
