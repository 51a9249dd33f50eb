"""One change to a JSON value or to plain text.

Owns which values are interesting there. As in edits.py, a change does nothing where its place is gone.
"""

import json
import random
from typing import Any

from fuzzing.edits import Edit, random_byte_edit

Path = tuple[Any, ...]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 1 << 31, 1 << 63, 1 << 64, 10**40, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "0x1p+9999", "0x1.8p-2", "nan", "\u0000", "\ud800", "a\nb", "../../x", "/etc/hostname",
    "y" * 5000, [], [0], [[]], [None] * 40, {}, {"x": 1}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def random_json_edit(rng: random.Random, value: Any) -> Edit:
    """Replace, take out or double what is at one place of the value, or wrap it."""
    path = rng.choice(list(_paths(value)))
    new, draw = rng.choice(VALUES), rng.random()
    what = "replaced" if draw < 0.7 else "left out" if draw < 0.85 else "wrapped"

    def change(raw: bytes) -> bytes:
        try:
            data = json.loads(raw)
            data = _changed(data, path, what, new)
        except (ValueError, LookupError, TypeError, RecursionError):
            return raw
        return json.dumps(data).encode("utf-8", "surrogatepass")

    return Edit(f"{'.'.join(map(str, path)) or 'all'}: {what} {str(new)[:20]!r}", on_bytes=change)


def _paths(value: Any, at: Path = ()) -> Any:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _paths(item, (*at, key))


def _changed(data: Any, path: Path, what: str, new: Any) -> Any:
    if not path:
        return [data] if what == "wrapped" else new
    at = data
    for step in path[:-1]:
        at = at[step]
    if what == "left out":
        del at[path[-1]]
    else:
        at[path[-1]] = [at[path[-1]]] if what == "wrapped" else new
    return data


def random_text_edit(rng: random.Random, size: int, words: tuple[bytes, ...]) -> Edit:
    """A word put in or put over at a random place, a stretch repeated, or a change of bytes."""
    at, draw = rng.randrange(max(1, size)), rng.random()
    word = rng.choice(words)
    if draw < 0.35:
        return Edit(f"byte {at}: {word[:20]!r} put in", on_bytes=lambda raw: raw[:at] + word + raw[at:])
    if draw < 0.5:
        return Edit(f"byte {at}: {word[:20]!r}", on_bytes=lambda raw: raw[:at] + word + raw[at + len(word) :])
    if draw < 0.6:
        n, times = rng.randint(1, 40), rng.choice((2, 3, 50, 1000))
        return Edit(
            f"byte {at}: {n} bytes {times} times",
            on_bytes=lambda raw: raw[:at] + raw[at : at + n] * times + raw[at + n :],
        )
    return random_byte_edit(rng, size)
