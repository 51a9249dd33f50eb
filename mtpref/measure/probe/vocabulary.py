"""Draft vocabularies: which ids of a corpus a trimmed head (FastMTP, d2t) should be able to name.

Owns the count, the ranking, the held-out split and the files. A list is never measured on what it was counted on: what
it costs is measured by the probe, vocabulary_report.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.files.doors import open_text
from mtpref.files.draft_vocab import D2T
from mtpref.files.gguf import printable, write_gguf, write_whole
from mtpref.files.vocab import Vocab
from mtpref.measure.probe.texts import named_files

Ints = NDArray[np.int64]
BLOCK = 512  # tokens
HELD_OUT_EVERY = 5
PIECE_BYTES = 1 << 20
ALWAYS = ("none", "eog", "control")


@dataclass
class Domain:
    """What was counted and what was held out of the texts of one label. counts, held_counts: (n_vocab,)."""

    label: str
    counts: Ints
    held_counts: Ints
    held: list[NDArray[np.int32]] = field(default_factory=list)


def read_corpus(arguments: Sequence[str], vocab: Vocab, n_vocab: int, *, holds_out: bool = True) -> list[Domain]:
    """Count token ids by domain.

    Split    each text is cut into blocks of 512 tokens (a fifth of the text, where it has fewer than five such); every
             fifth block is held out: kept, and not counted
    Memory   a file is read in pieces of 1 MiB that end at a line; only held-out ids stay
    Errors   MtprefError for a file that cannot be read, or where no text has a token
    """
    domains: dict[str, Domain] = {}
    for label, path in named_files(arguments):
        empty = Domain(label, np.zeros(n_vocab, np.int64), np.zeros(n_vocab, np.int64))
        domain = domains.setdefault(label, empty)
        for i, ids in enumerate(_blocks(path, vocab)):
            is_held = holds_out and i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            counts = domain.held_counts if is_held else domain.counts
            counts += np.bincount(ids, minlength=n_vocab)
            if is_held:
                domain.held.append(ids)
    if not sum(int(domain.counts.sum()) for domain in domains.values()):
        raise MtprefError("draft-vocab: the corpus has no token, expected text to count; give `files`")
    return list(domains.values())


def held_out_texts(arguments: Sequence[str], vocab: Vocab, n_vocab: int) -> list[Domain]:
    """Texts that are measured whole and not counted at all."""
    domains = read_corpus(arguments, vocab, n_vocab, holds_out=False)
    for domain in domains:
        domain.held_counts, domain.counts = domain.counts, np.zeros(n_vocab, np.int64)
    for label, path in named_files(arguments):
        next(d for d in domains if d.label == label).held += list(_blocks(path, vocab))
    return domains


def _blocks(path: Path, vocab: Vocab) -> Iterator[NDArray[np.int32]]:
    """The ids of a file in blocks; the last may be shorter."""
    pieces = _pieces(path)
    first = next(pieces, None)
    if first is None:
        return
    second = next(pieces, None)
    ids = _encoded(vocab, first, is_first=True)
    size = BLOCK if second is not None else min(BLOCK, max(2, len(ids) // HELD_OUT_EVERY))
    while second is not None:
        ids = np.concatenate([ids, _encoded(vocab, second, is_first=False)])
        n_whole = len(ids) // size * size
        yield from np.split(ids[:n_whole], n_whole // size) if n_whole else ()
        ids, second = ids[n_whole:], next(pieces, None)
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _encoded(vocab: Vocab, raw: bytes, *, is_first: bool) -> NDArray[np.int32]:
    text = raw.decode("utf-8", "surrogateescape")
    return np.asarray(vocab.encode(text, add_special=is_first), np.int32)


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes in pieces that end after a line where there is one."""
    rest = b""
    name = f"`texts` {printable(str(path), 400)}"
    try:
        with open_text(path, name, "expected a text") as file:
            while len(raw := file.read(PIECE_BYTES)) == PIECE_BYTES:
                piece = rest + raw
                cut = piece.rfind(b"\n") + 1 or len(piece)
                yield piece[:cut]
                rest = piece[cut:]
    except OSError as error:
        raise MtprefError(f"{name}: cannot be read ({error.strerror}); expected a text") from None
    if rest + raw:
        yield rest + raw


# RANKING


def counts_of(domains: Sequence[Domain]) -> Ints:
    """What was counted, over all domains."""
    return np.sum([domain.counts for domain in domains], axis=0, dtype=np.int64)


def always_ids(vocab: Vocab, n_vocab: int, which: str) -> list[int]:
    """What a list holds whatever the corpus says. eog: the ids that end generation; control: these and every control
    token."""
    if which == "none":
        return []
    eog = {id for id in vocab.eog_ids if 0 <= id < n_vocab}
    if which == "control":
        eog |= {id for id in range(min(n_vocab, vocab.n_vocab)) if vocab.is_control(id)}
    return sorted(eog)


def rank_ids(counts: Ints, n: int, always: Sequence[int], named: Ints | None = None) -> list[int]:
    """n ids: `always` first, ascending, then the most frequent; equal counts by lower id.

    named    the ids that the head has rows for (None: all)
    Errors   MtprefError where n is more than there are ids, or fewer than `always`
    """
    candidates = np.arange(len(counts)) if named is None else named
    known = set(candidates.tolist())
    first = [id for id in always if id in known]
    if not 1 <= n <= len(candidates):
        what = "the size of the vocabulary" if named is None else "the rows of the trimmed head"
        raise MtprefError(f"`n_ids`: {n} is out of range, expected 1 .. {len(candidates)}, {what}")
    if n < len(first):
        raise MtprefError(
            f"`n_ids`: {n} is out of range, expected {len(first)} or more, the ids that are always "
            "listed; choose fewer with `always`"
        )
    order = candidates[np.lexsort((candidates, -counts[candidates]))]
    rest = order[~np.isin(order, first)][: n - len(first)]
    return first + [int(id) for id in rest]


# FILES


def check_target(path: str | Path) -> None:
    """Refuse early a file that cannot be written after the work."""
    if not Path(path).absolute().parent.is_dir():
        raise MtprefError(f"`out` {printable(str(path), 400)}: the folder does not exist, expected one that does")


def write_ids(path: str | Path, ids: Sequence[int], model: Model) -> None:
    """A list for --spec-draft-vocab: `.gguf`: the tensor d2t, ascending; otherwise text, one id a line, best first.

    The same ids give the same bytes. Written to a temporary name and renamed.
    """
    target = Path(path)
    if target.suffix.lower() == ".gguf":
        d2t = np.array(sorted(ids), "<i8")
        kv = [("general.architecture", model.config.arch, "str"), ("general.name", "draft vocabulary", "str")]
        write_gguf(target, kv, [(D2T, "I64", (len(d2t),), d2t)])
        return
    write_whole(target, "".join(f"{id}\n" for id in ids).encode())
