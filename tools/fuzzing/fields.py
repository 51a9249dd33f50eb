"""A GGUF file as fields that can be changed one by one and written back, whether the result makes sense or not.

Owns a reader and writer that check nothing; it is independent of mtpref/files/gguf, which it is used to test.
"""

import struct
from dataclasses import dataclass

# Value type id -> struct code of a scalar; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U8, U32, I32, F32, BOOL, STR, ARR, U64 = 0, 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Key:
    """name: its bytes    kind: value type id    value: everything after the type id"""

    name: bytes
    kind: int
    value: bytes


@dataclass(frozen=True)
class Tensor:
    name: bytes
    ne: tuple[int, ...]
    type_id: int
    offset: int
    n_dims: int | None = None  # None: the true number


@dataclass(frozen=True)
class Doc:
    """n_keys, n_tensors: what the header says, None for the truth. pad: what the data begins at a multiple of."""

    keys: tuple[Key, ...]
    tensors: tuple[Tensor, ...]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    pad: int = 32


def parse(raw: bytes) -> Doc:
    """The fields of a sound file."""
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", raw, 4)
    at, keys, tensors = 24, [], []
    for _ in range(n_keys):
        name, at = _text(raw, at)
        kind = struct.unpack_from("<I", raw, at)[0]
        end = _value_end(raw, at + 4, kind)
        keys.append(Key(name, kind, raw[at + 4 : end]))
        at = end
    for _ in range(n_tensors):
        name, at = _text(raw, at)
        n_dims = struct.unpack_from("<I", raw, at)[0]
        *ne, type_id, offset = struct.unpack_from(f"<{n_dims}QIQ", raw, at + 4)
        tensors.append(Tensor(name, tuple(ne), type_id, offset))
        at += 4 + 8 * n_dims + 12
    return Doc(tuple(keys), tuple(tensors), raw[at + -at % 32 :], version=version)


def write(doc: Doc) -> bytes:
    """The file's bytes; numbers too large for their field wrap around."""
    n_tensors = len(doc.tensors) if doc.n_tensors is None else doc.n_tensors
    n_keys = len(doc.keys) if doc.n_keys is None else doc.n_keys
    out = [doc.magic, u32(doc.version), u64(n_tensors), u64(n_keys)]
    for key in doc.keys:
        out += [text(key.name), u32(key.kind), key.value]
    for t in doc.tensors:
        out += [text(t.name), u32(len(t.ne) if t.n_dims is None else t.n_dims), *map(u64, t.ne)]
        out += [u32(t.type_id), u64(t.offset)]
    header = b"".join(out)
    return header + bytes(-len(header) % doc.pad) + doc.data


def u32(n: int) -> bytes:
    return struct.pack("<I", n & 0xFFFFFFFF)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n & 0xFFFFFFFFFFFFFFFF)


def text(raw: bytes) -> bytes:
    return u64(len(raw)) + raw


def scalar(kind: int, number: float) -> bytes:
    """A number as a scalar of this kind; integers wrap around, floats are cut."""
    code = SCALARS[kind]
    if code in "fd":
        try:
            return struct.pack("<" + code, number)
        except OverflowError:
            return struct.pack("<" + code, float("inf"))
    if number != number or number in (float("inf"), float("-inf")):
        number = 0
    return (int(number) % (1 << 64)).to_bytes(8, "little")[: struct.calcsize(code)]


def number(key: Key) -> float:
    return float(struct.unpack("<" + SCALARS[key.kind], key.value)[0])


def array(element: int, payload: bytes, count: int) -> bytes:
    return u32(element) + u64(count) + payload


def array_parts(value: bytes) -> tuple[int, int, bytes]:
    """Element kind, count and payload."""
    element, count = struct.unpack_from("<IQ", value)
    return element, count, value[12:]


def elements(value: bytes) -> list[bytes]:
    """The bytes of each element of a sound array."""
    element, count, payload = array_parts(value)
    if element in SCALARS:
        size = struct.calcsize(SCALARS[element])
        return [payload[i * size : (i + 1) * size] for i in range(count)]
    out, at = [], 0
    for _ in range(count):
        end = _value_end(payload, at, element)
        out.append(payload[at:end])
        at = end
    return out


def _text(raw: bytes, at: int) -> tuple[bytes, int]:
    n = struct.unpack_from("<Q", raw, at)[0]
    return raw[at + 8 : at + 8 + n], at + 8 + n


def _value_end(raw: bytes, at: int, kind: int) -> int:
    if kind in SCALARS:
        return at + struct.calcsize(SCALARS[kind])
    if kind == STR:
        return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
    element, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if element in SCALARS:
        return at + int(count) * struct.calcsize(SCALARS[element])
    for _ in range(count):
        at = _value_end(raw, at, element)
    return at
