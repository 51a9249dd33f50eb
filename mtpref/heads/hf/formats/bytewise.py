"""FP8, INT8 and FP4 whose codes are X.weight itself: which of them it is, by its type and its scales'."""

from __future__ import annotations

import math

from mtpref.heads.hf.formats.declared import Declared, Facts
from mtpref.heads.hf.formats.foreign import fault
from mtpref.heads.hf.formats.fp4 import MxFp4, NvFp4
from mtpref.heads.hf.formats.raw import Raw
from mtpref.heads.hf.formats.scaled import Grid, Scaled, grid_of, ranks_of
from mtpref.heads.hf.formats.stored import FLOATS, Stored, Unread, named

Made = tuple[Stored, Facts | None]
E8M0 = ("U8", "F8_E8M0")
BLOCK = (128, 128)  # DeepSeek's, where config.json names none
CUT = "qkv_proj.weight"  # what is shipped rank by rank (MiMo-V2.5)


def of_codes(raw: Raw, said: Declared, name: str, kind: str, zero: str | None = None) -> Made:
    """FP8 or INT8 and its scale, of any of the names that programs give it."""
    module = name.removesuffix(".weight")
    names = [f"{name}_scale_inv", f"{name}_scale"]
    names += [f"{module}.scale", f"{module}.qscale_weight"] if module != name else []
    scale = next((part for part in names if part in raw), None)
    shape, sources = raw.shape(name), tuple(part for part in (name, scale, zero) if part)
    if scale is None:
        expected = f"{named(names[0])} or {named(names[1])}"
        text = f"{named(name)} is {raw.dtype(name)} and has no scales, expected {expected}; was it saved whole?"
        return Unread(raw, name, sources, kind, text), None
    if len(shape) not in (2, 3) or min(shape) < 1:
        text = f"{named(name)}: shape {shape}, expected a matrix of codes or a stack of them"
        return Unread(raw, name, sources, kind, text), None
    if raw.dtype(scale) not in (*FLOATS, *E8M0):
        text = f"{named(scale)} is {raw.dtype(scale)}, expected floats or E8M0"
        return Unread(raw, name, sources, kind, text), None
    is_int = kind == "INT8"
    blocks = [*said.blocks, BLOCK, *([(1, 32)] if raw.dtype(scale) in E8M0 else [])]
    any_group = is_int or any(s.group_size not in (None, -1) for s in said.schemes)
    grid = grid_of(shape, raw.shape(scale), blocks, any_group=any_group)
    ranks = ranks_of(shape, raw.shape(scale), blocks[0]) if name.endswith(CUT) and not is_int else ()
    if grid is None and ranks:
        (down, across), (n_down, n_across) = blocks[0], raw.shape(scale)
        grid = Grid(down, across, n_down, n_across, n_ranks=ranks[0])
    if grid is None:
        return Unread(raw, name, sources, kind, _grid_text(raw, name, scale, blocks[0])), None
    if zero and (raw.shape(zero) != raw.shape(scale) or raw.dtype(zero) not in ("I8", "I32")):
        text = f"{named(zero)}: {raw.dtype(zero)} {raw.shape(zero)}, expected I8 {raw.shape(scale)}"
        return Unread(raw, name, sources, kind, text), None
    strategy, block = _strategy(shape, grid, blocks[0])
    symmetric = zero is None if is_int else None
    family, type_name = ("int8", "int") if is_int else ("fp8", "float")
    facts = Facts(family, type_name, 8, is_symmetric=symmetric, block=block, strategy=strategy)
    made = Scaled(raw, name, sources, grid, f"{kind}, {grid.words(*shape[-2:])}")
    made.ranks = ranks or made.ranks
    return made, facts


def _strategy(shape: tuple[int, ...], grid: Grid, usual: tuple[int, int]) -> tuple[str | None, tuple[int, int] | None]:
    """What config.json would call the grid, and its block; None where two of its words make the same one."""
    n_row, n_column = shape[-2:]
    if grid.n_rows == grid.n_columns == 1:
        return (None if n_row <= usual[0] and n_column <= usual[1] else "tensor"), None
    if grid.rows > 1:
        return "block", (grid.rows, grid.columns)
    return ("channel" if grid.n_columns == 1 else "group"), None


def _grid_text(raw: Raw, name: str, scale: str, block: tuple[int, int]) -> str:
    shape, (down, across), found = raw.shape(name), block, raw.shape(scale)
    n_row, n_column = shape[-2:]
    wanted = (*shape[:-2], -(-n_row // down), -(-n_column // across))
    return (
        f"{named(scale)}: shape {found}, expected {wanted} for blocks of {down}x{across} of {named(name)} {shape}, "
        f"{(*shape[:-1], 1)} for rows, or one scale"
    )


def of_bytes(raw: Raw, said: Declared, name: str) -> Made | None:
    """I8 and U8: two FP4 codes in a byte, or INT8; None for bytes without scales, which are plain."""
    module, shape = name.removesuffix(".weight"), raw.shape(name)
    scale = next((s for s in (f"{module}.scale", f"{name}_scale", f"{name}_scale_inv") if s in raw), None)
    if scale is None:
        return None
    dtype = raw.dtype(scale)
    if dtype == "F8_E4M3":
        return of_nvfp4(raw, name, name, scale)
    if dtype in E8M0:
        return of_mxfp4(raw, name, name, scale)
    if dtype in FLOATS and raw.dtype(name) == "I8":
        zero = f"{name}_zero_point"
        return of_codes(raw, said, name, "INT8", zero if zero in raw else None)
    if math.prod(raw.shape(scale)) == 1:
        return Unread(raw, name, (name, scale), "BitNet", fault("BitNet", named(name)), is_foreign=True), None
    found = f"{raw.dtype(name)} {shape} with scales of {dtype} {raw.shape(scale)}"
    text = f"{named(name)} is {found}, expected FP4 or INT8"
    return Unread(raw, name, (name, scale), "", text), None


def of_mxfp4(raw: Raw, name: str, codes: str, scale: str) -> Made:
    found, more = raw.shape(codes), f"{name}_shape"
    n_value = 2 * found[-1] if found else 0
    sources = (codes, scale, more) if more in raw else (codes, scale)
    if len(found) < 2 or not n_value or n_value % 32 or raw.shape(scale) != (*found[:-1], n_value // 32):
        text = (
            f"{named(scale)}: shape {raw.shape(scale)}, expected one for 32 values of {named(codes)} {found}, two of "
            f"which are in a byte: {(*found[:-1], -(-n_value // 32))}"
        )
        return Unread(raw, name, sources, "MXFP4", text), None
    return MxFp4(raw, name, sources, (*found[:-1], n_value), "MXFP4"), Facts("mxfp4", "float", 4, 32)


def of_nvfp4(raw: Raw, name: str, codes: str, scale: str) -> Made:
    found, names = raw.shape(codes), (f"{name}_global_scale", f"{name}_scale_2")
    whole = next((part for part in names if part in raw), None)
    sources = tuple(part for part in (codes, scale, whole) if part)
    n_value = 2 * found[-1] if found else 0
    if whole is None or math.prod(raw.shape(whole)) != 1 or raw.dtype(whole) not in FLOATS:
        text = (
            f"{named(codes)} has no scale of the whole matrix, expected one number in {named(names[0])} or "
            f"{named(names[1])}"
        )
        return Unread(raw, name, sources, "NVFP4", text), None
    if len(found) < 2 or not n_value or n_value % 16 or raw.shape(scale) != (*found[:-1], n_value // 16):
        text = (
            f"{named(scale)}: shape {raw.shape(scale)}, expected one for 16 values of {named(codes)} {found}, two of "
            f"which are in a byte: {(*found[:-1], -(-n_value // 16))}"
        )
        return Unread(raw, name, sources, "NVFP4", text), None
    tensor = NvFp4(raw, name, sources, (*found[:-1], n_value), "NVFP4", is_divided=whole == names[0])
    return tensor, Facts("nvfp4", "float", 4, 16)
