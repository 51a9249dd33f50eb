"""Training text: the pure Python files of the running CPython's standard library.

Owns which files are read, their order and the held-out split. Knows nothing of tokens.
Licence of the text: Python Software Foundation License Version 2 (the files are CPython's own).
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from mtpref.base.errors import MtprefError

EXCLUDED_PARTS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "encodings",
        "_bundled",
    }
)
HELD_OUT_PERCENT = 4


@dataclass(frozen=True)
class Corpus:
    """Text files by split, in deterministic order, with the hashes that identify them.

    train, held_out : (relative path, text) pairs, sorted by path.
    sha256_train, sha256_held_out : over path, NUL, UTF-8 text, NUL of each file in order.
    """

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]
    sha256_train: str
    sha256_held_out: str
    python_version: str


def is_wanted(rel: Path) -> bool:
    """Whether a stdlib file belongs to the corpus: no tests, packages, code tables, build output."""
    if any(part in EXCLUDED_PARTS for part in rel.parts):
        return False
    if any(part.startswith("config-") for part in rel.parts):
        return False
    return not rel.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))


def is_held_out(rel: str) -> bool:
    """Split rule: by the file's path alone, so that it does not move when other files change."""
    return int.from_bytes(hashlib.sha256(rel.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def _digest(files: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for rel, text in files:
        digest.update(rel.encode() + b"\0" + text.encode() + b"\0")
    return digest.hexdigest()


def load_corpus(root: Path | None = None) -> Corpus:
    """Read every wanted ``*.py`` below the standard library (or ``root``) that is UTF-8."""
    base = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    train: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for rel in sorted(path.relative_to(base).as_posix() for path in base.rglob("*.py")):
        if not is_wanted(Path(rel)):
            continue
        try:
            text = (base / rel).read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if text.strip():
            (held_out if is_held_out(rel) else train).append((rel, text))
    if not train or not held_out:
        raise MtprefError(
            f"{base}: {len(train)} training and {len(held_out)} held-out files, expected a standard library"
        )
    return Corpus(tuple(train), tuple(held_out), _digest(train), _digest(held_out), platform.python_version())
