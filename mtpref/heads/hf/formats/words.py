"""AWQ or GPTQ: which of the two `qweight` is, by its shape beside its scales'."""

from __future__ import annotations

from mtpref.heads.hf.formats.bytewise import Made
from mtpref.heads.hf.formats.declared import Declared, Facts
from mtpref.heads.hf.formats.foreign import fault
from mtpref.heads.hf.formats.raw import Raw
from mtpref.heads.hf.formats.stored import Unread, named
from mtpref.heads.hf.formats.transposed import Awq, Gptq

FLOATS = ("F32", "F16", "BF16")
GPTQ_BITS = (2, 3, 4, 8)


def of_words(raw: Raw, said: Declared, codes: str) -> Made:
    """The tensor whose codes are in X.qweight, with qzeros, scales and g_idx beside it."""
    module = codes.removesuffix(".qweight")
    name = f"{module}.weight"
    parts = {part: f"{module}.{part}" for part in ("qzeros", "scales", "g_idx") if f"{module}.{part}" in raw}
    sources = (codes, *(parts[part] for part in ("qzeros", "scales", "g_idx") if part in parts))
    if said.version is not None:
        why = fault(said.version, named(name))
        return Unread(raw, name, sources, said.version, why, is_foreign=True), None
    text = _wrong(raw, codes, parts, module)
    if text is not None:
        return Unread(raw, name, sources, "AWQ or GPTQ", text), None
    (n_down, n_across), (n_group, n_out) = raw.shape(codes), raw.shape(parts["scales"])
    if 8 * n_across == n_out:
        return _awq(raw, name, sources, n_down, n_group, n_out)
    if n_across == n_out:
        return _gptq(raw, said, name, sources, parts, n_group, n_out)
    expected = f"{n_out} columns (GPTQ) or {n_out // 8} (AWQ, GEMM) beside {named(parts['scales'])} {(n_group, n_out)}"
    text = f"{named(codes)}: shape {(n_down, n_across)}, expected {expected}"
    return Unread(raw, name, sources, "AWQ or GPTQ", text), None


def _wrong(raw: Raw, codes: str, parts: dict[str, str], module: str) -> str | None:
    """What keeps these parts from being either format."""
    for part in ("scales", "qzeros"):
        if part not in parts:
            return f"{named(codes)} has no {named(module)}.{part}, expected it; was the checkpoint saved whole?"
    for part, kinds in ((codes, ("I32",)), (parts["qzeros"], ("I32",)), (parts["scales"], FLOATS)):
        if raw.dtype(part) not in kinds or len(raw.shape(part)) != 2 or min(raw.shape(part)) < 1:
            return f"{named(part)}: {raw.dtype(part)} {raw.shape(part)}, expected a matrix of {' or '.join(kinds)}"
    return None


def _awq(raw: Raw, name: str, sources: tuple[str, ...], n_in: int, n_group: int, n_out: int) -> Made:
    zeros, scales = sources[1:3]
    text = None
    if n_in % n_group:
        what = f"a number that divides the {n_in} inputs of {named(name)}"
        text = f"{named(scales)}: {n_group} groups, expected {what}"
    elif raw.shape(zeros) != (n_group, n_out // 8):
        text = f"{named(zeros)}: shape {raw.shape(zeros)}, expected {(n_group, n_out // 8)} beside {named(scales)}"
    if text is not None:
        return Unread(raw, name, sources, "AWQ", text), None
    group = n_in // n_group
    tensor = Awq(raw, name, sources, (n_out, n_in), group, f"AWQ, 4 bits, groups of {group}")
    return tensor, Facts("awq", "int", 4, group, n_group == 1)


def _gptq(
    raw: Raw, said: Declared, name: str, sources: tuple[str, ...], parts: dict[str, str], n_group: int, n_out: int
) -> Made:
    codes, zeros, order = sources[0], parts["qzeros"], parts.get("g_idx")
    n_bits = next((b for b in GPTQ_BITS if raw.shape(zeros) == (n_group, -(-n_out * b // 32))), 0)
    n_in = raw.shape(order)[0] if order and len(raw.shape(order)) == 1 else raw.shape(codes)[0] * 32 // (n_bits or 4)
    text, group = None, -(-n_in // n_group) if n_in else 0
    stated = next((s.group_size for s in said.schemes if said.method == "gptq" and s.group_size), None)
    if stated and stated > 0 and -(-n_in // stated) == n_group:
        group = stated  # the last group may be a part of one
    n_word = -(-n_in * n_bits // 32)
    if not n_bits:
        four, eight = ((n_group, -(-n_out * b // 32)) for b in (4, 8))
        text = (
            f"{named(zeros)}: shape {raw.shape(zeros)}, expected {four} (4 bits) or {eight} (8 bits) beside the scales"
        )
    elif order and (len(raw.shape(order)) != 1 or raw.dtype(order) not in ("I32", "I64")):
        text = f"{named(order)}: {raw.dtype(order)} {raw.shape(order)}, expected I32, one for each input"
    elif raw.shape(codes)[0] != n_word:
        expected = f"{n_word} for {n_in} inputs ({named(order or name)}) of {n_bits} bits"
        text = f"{named(codes)}: {raw.shape(codes)[0]} rows of words, expected {expected}"
    elif n_in < 1 or (n_in % n_group and group != stated):
        what = f"a number that divides the {n_in} inputs of {named(name)}"
        text = f"{named(parts['scales'])}: {n_group} groups, expected {what}"
    if text is not None:
        return Unread(raw, name, sources, "GPTQ", text), None
    version = "" if said.less else ", version 2"
    kind = f"GPTQ, {n_bits} bits, groups of {group}{version}"
    ordered = (sources[0], zeros, parts["scales"], *([order] if order else []))
    tensor = Gptq(raw, name, ordered, (n_out, n_in), group, kind, n_bits=n_bits, less=said.less)
    return tensor, Facts("gptq", "int", n_bits, group, n_group == 1)
