"""One change to a GGUF file: to one field of its header (`single_edits` lists them all), or to bytes anywhere.

Owns which values are interesting. An edit is pure and does nothing where what it names is not there any more, so that
edits can be put together and left out again.
"""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fuzzing.fields import (
    ARR,
    F32,
    SCALARS,
    STR,
    U8,
    U32,
    U64,
    Doc,
    Key,
    Tensor,
    array,
    array_parts,
    elements,
    number,
    scalar,
    text,
)

INTEGERS = (
    0, 1, 2, 3, 5, 7, 8, 33, 255, 256, 4096, 4097, 65535, 65536, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, 10**9,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -2, -(1 << 31),
)  # fmt: skip
NAN, INF = float("nan"), float("inf")
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.0, NAN, INF, -INF, 1e-45, 1e-30, 1e-7, 1e7, 1e30, 3.4e38, 65504.0, 16777217.0,
)  # fmt: skip
TEXTS = (
    b"", b"\0", b"x", b"qwen35", b"qwen3", b"model", b"gpt2", b"llama", b"test", b"none", b"yarn", b"linear",
    b"longrope", b"default", b"\xff\xfe", b"\xc3", b"a\nb", b"\x1b[31m", "\u202e\u2028".encode(), b"\xed\xa0\x80",
    b"x" * 300, b"y" * 70000, b"{{ x }}", b"{% for i in range(9) %}", b"../../x", b"-1",
)  # fmt: skip
NAMES = (b"", b"\xff", b"a\nb", b"x" * 70, b"z" * 65536, b"blk.0.attn_norm.weight", b"token_embd.weight", b"d2t",
         b"split.count", b"general.architecture", b"general.alignment")  # fmt: skip
DIMS = (0, 1, 2, 3, 31, 32, 33, 256, 1 << 16, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)
TYPE_IDS = (*range(42), 255, 1 << 16, (1 << 32) - 1)
COUNTS = (0, 1, 2, 1 << 16, (1 << 16) + 1, 1 << 31, 1 << 32, 1 << 61, (1 << 63) - 1, (1 << 64) - 1)


@dataclass(frozen=True)
class Edit:
    """what: for people; the same text always means the same change."""

    what: str
    on_doc: Callable[[Doc], Doc] | None = None
    on_bytes: Callable[[bytes], bytes] | None = None


def apply(doc: Doc, edits: list[Edit], write: Callable[[Doc], bytes]) -> bytes:
    """Edits of fields first, then those of bytes."""
    for edit in edits:
        if edit.on_doc is not None:
            doc = edit.on_doc(doc)
    raw = write(doc)
    for edit in edits:
        if edit.on_bytes is not None:
            raw = edit.on_bytes(raw)
    return raw


def single_edits(doc: Doc) -> list[Edit]:
    """Every interesting change to one field of the header."""
    return [*_header_edits(doc), *key_edits(doc), *tensor_edits(doc)]


# HEADER


def _header_edits(doc: Doc) -> Iterator[Edit]:
    for value in (0, 1, 2, 4, 1 << 24, 3 << 24, (1 << 32) - 1):
        yield _set_header(f"version {value}", version=value)
    for n in (*COUNTS, len(doc.keys) - 1, len(doc.keys) + 1):
        yield _set_header(f"key count {n}", n_keys=n)
    for n in (*COUNTS, len(doc.tensors) - 1, len(doc.tensors) + 1):
        yield _set_header(f"tensor count {n}", n_tensors=n)
    for magic in (b"GGUX", b"FUGG", b"ggml", b"\0\0\0\0"):
        yield _set_header(f"magic {magic!r}", magic=magic)
    for size in (0, 1, len(doc.data) // 2, len(doc.data) - 1):
        yield _set_header(f"data cut to {size}", data=doc.data[:size])
    for pad in (1, 8, 64):
        yield _set_header(f"data padded to {pad}", pad=pad)
    for name, kind, raw in EXTRA_KEYS:
        yield _add_key(f"new key {name!r} {raw[:24].hex()}", Key(name, kind, raw))
    extra = Tensor(b"extra.weight", (32,), 0, 0)
    yield Edit("new tensor over the first", lambda d: replace(d, tensors=(*d.tensors, extra)))
    d2t = Tensor(b"d2t", (4,), 26, 0)
    yield Edit("new tensor d2t", lambda d: replace(d, tensors=(*d.tensors, d2t)))


def _set_header(what: str, **changes: Any) -> Edit:
    return Edit(what, lambda d: replace(d, **changes))


def _add_key(what: str, key: Key) -> Edit:
    return Edit(what, lambda d: replace(d, keys=(*d.keys, key)))


def _drop(what: str, part: str, i: int) -> Edit:
    """Without key or tensor i."""

    def change(d: Doc) -> Doc:
        items: Any = (*getattr(d, part)[:i], *getattr(d, part)[i + 1 :])
        return replace(d, **{part: items})

    return Edit(what, change)


def _double(what: str, part: str, i: int) -> Edit:
    """Key or tensor i once more, at the end."""

    def change(d: Doc) -> Doc:
        items: Any = (*getattr(d, part), *getattr(d, part)[i : i + 1])
        return replace(d, **{part: items})

    return Edit(what, change)


_EXTRA_NUMBERS = (
    *((b"general.alignment", U32, scalar(U32, n)) for n in (0, 1, 8, 12, 16, 64, 4096, 1 << 31, (1 << 32) - 1)),
    *((b"split.count", 2, scalar(2, n)) for n in (0, 1, 2, 65535)),
    *((b"qwen35.rope.scaling.factor", F32, scalar(F32, x)) for x in FLOATS),
    *((b"qwen35.rope.scale_linear", F32, scalar(F32, x)) for x in FLOATS),
    *((b"qwen35.rope.scaling.attn_factor", F32, scalar(F32, x)) for x in FLOATS),
    *((b"qwen35.rope.scaling.yarn_ext_factor", F32, scalar(F32, x)) for x in FLOATS),
    *((b"qwen35.rope.scaling.original_context_length", U32, scalar(U32, n)) for n in INTEGERS),
)
EXTRA_KEYS: tuple[tuple[bytes, int, bytes], ...] = (
    *_EXTRA_NUMBERS,
    *((b"qwen35.rope.scaling.type", STR, text(raw)) for raw in TEXTS),
    *((b"tokenizer.chat_template", STR, text(raw)) for raw in TEXTS),
    *((b"general.type", STR, text(raw)) for raw in (*TEXTS, b"adapter", b"mmproj")),
    (b"adapter.type", STR, text(b"lora")),
    (b"tokenizer.ggml.scores", ARR, array(F32, scalar(F32, NAN) * 4, 4)),
    (b"", U32, scalar(U32, 1)),
)


# KEYS


def key_edits(doc: Doc) -> Iterator[Edit]:
    for i, key in enumerate(doc.keys):
        label = f"key {key.name.decode('utf-8', 'replace')}"
        yield _drop(f"{label}: left out", "keys", i)
        yield _double(f"{label}: twice", "keys", i)
        for name in NAMES:
            yield _set_key(i, f"{label}: renamed {name[:20]!r}", name=name)
        for what, kind, value in _values(key):
            yield _set_key(i, f"{label}: {what}", kind=kind, value=value)


def _set_key(i: int, what: str, **changes: Any) -> Edit:
    def change(d: Doc) -> Doc:
        if i >= len(d.keys):
            return d
        new = replace(d.keys[i], **changes)
        return replace(d, keys=(*d.keys[:i], new, *d.keys[i + 1 :]))

    return Edit(what, change)


def _values(key: Key) -> Iterator[tuple[str, int, bytes]]:
    """(what, kind, value) for every interesting other value of a key."""
    here: float = 0
    if key.kind in SCALARS:
        here = number(key)
        near = (here - 1, here + 1, here * 2, here // 2, here * 3, -here) if here == here else ()
        for x in (*(FLOATS if SCALARS[key.kind] in "fd" else INTEGERS), *near):
            yield f"{x!r}", key.kind, scalar(key.kind, x)
    elif key.kind == STR:
        for raw in (*TEXTS, key.value[8:] + b" ", key.value[8:] * 2):
            yield f"text {raw[:20]!r}", STR, text(raw)
        for n in COUNTS:
            yield f"text of {n} bytes declared", STR, scalar(U64, n) + key.value[8:]
    else:
        yield from _array_values(key)
    for kind in (*range(14), 255, (1 << 32) - 1):
        if kind == key.kind:
            continue
        if kind in SCALARS:
            yield f"of kind {kind}", kind, scalar(kind, here)
        elif kind == STR:
            yield "of kind str", STR, text(str(int(here)).encode() if here == here else b"")
        elif kind == ARR:
            for count in (0, 1, 4, 300):
                yield f"array of {count} u32", ARR, array(U32, scalar(U32, here) * count, count)
            yield "array of nan", ARR, array(F32, scalar(F32, NAN) * 8, 8)
            yield "array of inf", ARR, array(F32, scalar(F32, INF) * 8, 8)
            yield "nested array", ARR, array(ARR, array(U32, b"", 0) * 8, 8)
            yield "array of text", ARR, array(STR, text(b"1") * 8, 8)
        else:
            yield f"of kind {kind}", kind, key.value


def _array_values(key: Key) -> Iterator[tuple[str, int, bytes]]:
    element, count, payload = array_parts(key.value)
    items = elements(key.value)
    for n in (*COUNTS, count - 1, count + 1):
        yield f"{n} elements declared", ARR, array(element, payload, n)
    for kind in (*range(14), 255):
        yield f"elements of kind {kind} declared", ARR, array(kind, payload, count)
        if kind in SCALARS:
            one = scalar(kind, 1)
            yield f"{count} elements of kind {kind}", ARR, array(kind, one * count, count)
    for n in (0, 1, 3, count - 1):
        yield f"cut to {n} elements", ARR, array(element, b"".join(items[:n]), min(n, count))
    yield "one more element", ARR, array(element, payload + (items[-1] if items else b""), count + bool(items))
    yield "its first element twice", ARR, array(element, b"".join([*items[:1], *items[:1], *items[2:]]), count)
    yield "reversed", ARR, array(element, b"".join(reversed(items)), count)
    nested = array(ARR, array(element, payload, count), 1)
    yield "nested once", ARR, nested
    yield "nested twice", ARR, array(ARR, nested, 1)
    deep = array(U8, b"", 0)
    for _ in range(40):
        deep = array(ARR, deep, 1)
    yield "nested 40 deep", ARR, deep
    for where in sorted({0, count // 2, count - 1}) if count else ():
        for what, raw in _items(element, items[where]):
            new = b"".join([*items[:where], raw, *items[where + 1 :]])
            yield f"element {where}: {what}", ARR, array(element, new, count)


def _items(element: int, raw: bytes) -> Iterator[tuple[str, bytes]]:
    if element in SCALARS:
        for x in FLOATS if SCALARS[element] in "fd" else INTEGERS:
            yield f"{x!r}", scalar(element, x)
    elif element == STR:
        for new in (*TEXTS, raw[8:] + b"x", b"a b c", b"<0x41>", b"<0xZZ>"):
            yield f"text {new[:20]!r}", text(new)
        yield "longer than the file", scalar(U64, 1 << 40) + raw[8:]


# TENSORS


def tensor_edits(doc: Doc) -> Iterator[Edit]:
    for i, t in enumerate(doc.tensors):
        label = f"tensor {t.name.decode('utf-8', 'replace')}"
        yield _drop(f"{label}: left out", "tensors", i)
        yield _double(f"{label}: twice", "tensors", i)
        for name in NAMES:
            yield _set_tensor(i, f"{label}: renamed {name[:20]!r}", name=name)
        for type_id in TYPE_IDS:
            yield _set_tensor(i, f"{label}: type {type_id}", type_id=type_id)
        for n_dims in (0, 1, 2, 3, 4, 5, 1 << 31):
            yield _set_tensor(i, f"{label}: {n_dims} dimensions declared", n_dims=n_dims)
        for ne in _shapes(t.ne):
            yield _set_tensor(i, f"{label}: shape {ne}", ne=ne)
        others = (doc.tensors[0].offset, doc.tensors[-1].offset)
        for offset in {*COUNTS, *others, t.offset + 1, t.offset + 8, t.offset + 32, t.offset - 32}:
            yield _set_tensor(i, f"{label}: offset {offset}", offset=offset)


def _shapes(ne: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for axis, n in enumerate(ne):
        for value in (*DIMS, n - 1, n + 1, 2 * n, n // 2):
            yield (*ne[:axis], value, *ne[axis + 1 :])
    yield ne[::-1]
    yield (*ne, 1)
    yield (1, *ne)
    yield (*ne, 1, 1, 1)[:5]
    yield ne[:-1]


def _set_tensor(i: int, what: str, **changes: Any) -> Edit:
    def change(d: Doc) -> Doc:
        if i >= len(d.tensors):
            return d
        new = replace(d.tensors[i], **changes)
        return replace(d, tensors=(*d.tensors[:i], new, *d.tensors[i + 1 :]))

    return Edit(what, change)


# BYTES

_WORDS = tuple(struct.pack("<I", n & 0xFFFFFFFF) for n in INTEGERS) + tuple(struct.pack("<f", x) for x in FLOATS)
_LONGS = tuple(struct.pack("<Q", n & 0xFFFFFFFFFFFFFFFF) for n in INTEGERS)
_HALVES = (b"\x00\x7c", b"\x00\xfc", b"\x01\x7e", b"\x80\x7f", b"\xff\xff")  # infinities and NaN of F16 and BF16


def random_byte_edit(rng: random.Random, size: int) -> Edit:
    """A change at a random place; half of the places are in the first 4096 bytes."""
    at = rng.randrange(max(1, min(size, 4096) if rng.random() < 0.5 else size))
    draw = rng.random()
    if draw < 0.15:
        return Edit(f"cut at byte {at}", on_bytes=lambda raw: raw[:at])
    if draw < 0.4:
        flip = 1 << rng.randrange(8)
        return Edit(
            f"byte {at} ^ {flip}",
            on_bytes=lambda raw: raw[:at] + bytes(b ^ flip for b in raw[at : at + 1]) + raw[at + 1 :],
        )
    if draw < 0.8:
        new = rng.choice((_WORDS, _LONGS, _HALVES, (rng.randbytes(rng.randint(1, 16)),))[rng.randrange(4)])
        return Edit(f"byte {at}: {new.hex()}", on_bytes=lambda raw: raw[:at] + new + raw[at + len(new) :])
    if draw < 0.9:
        new = rng.randbytes(rng.randint(1, 8))
        return Edit(f"byte {at}: {new.hex()} put in", on_bytes=lambda raw: raw[:at] + new + raw[at:])
    n = rng.randint(1, 64)
    return Edit(f"byte {at}: {n} taken out", on_bytes=lambda raw: raw[:at] + raw[at + n :])
