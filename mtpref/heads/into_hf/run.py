"""`graft --hf` from end to end: a quantised checkpoint and the original in, a new folder out.

Owns the order, what is refused, and the folder: the base's files linked or copied as they are, one new safetensors
file, config.json and the index made anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.base.settings import OneOf, check_fields
from mtpref.files.doors import read_regular
from mtpref.files.gguf import How, Kept, WriteOptions, check_folder, how_kept, human_bytes, printable, write_folder
from mtpref.files.gguf.whole import Part as FilePart
from mtpref.files.gguf.whole import left_over_of
from mtpref.files.tensor_files.safetensors import SafetensorsFile, Streamed, safetensors_part
from mtpref.heads.checkpoint import checkpoint_source
from mtpref.heads.contents import Item, Source
from mtpref.heads.convert.keys import hyper_parameters
from mtpref.heads.convert.vocabulary import vocabulary
from mtpref.heads.graft import layout_of_source
from mtpref.heads.hf import Checkpoint, TextConfig, gguf_tensors, open_checkpoint, refuse_apart, text_config
from mtpref.heads.hf.beside import is_head_name
from mtpref.heads.hf.checkpoint import CONFIG, INDEX, MAX_JSON
from mtpref.heads.into_hf.calibrate import Calibration, by_gptq
from mtpref.heads.into_hf.config import with_head, with_tensors
from mtpref.heads.into_hf.encode import Parts, encode
from mtpref.heads.into_hf.plan import HEAD_TYPES, Coded, HeadPlan, plan_head
from mtpref.heads.layout import HeadLayout
from mtpref.heads.match import check_match, doubts

METHODS = ("rtn", "gptq")
FILE = "model-mtp.safetensors"
PIECE = 8 << 20  # bytes that are copied at a time
SMALL = 64 << 20  # files of a folder that are copied whatever `how` says: an editor would write through a link
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for.

    head_type    of the head's experts (of its feed-forward network, where it has none): bf16, fp8-block or w4a16; None:
                 as the base has its own; bf16 is all of the head
    method       of w4a16: rtn, round to nearest, or gptq
    group_size   of w4a16 (None: the base's, else 128)
    calibration  files of text for gptq            hidden   a file of hidden rows in their place
    how          hard, symbolic or copy: how the base's files come into the new folder
    """

    head_type: Annotated[str, OneOf(HEAD_TYPES)] | None = None
    method: Annotated[str, OneOf(METHODS)] = "rtn"
    group_size: int | None = None
    calibration: tuple[str, ...] = ()
    hidden: str | None = None
    how: Annotated[str, OneOf(("hard", "symbolic", "copy"))] = "hard"

    def __post_init__(self) -> None:
        check_fields(self, "graft_hf.Settings")
        if self.group_size is not None and self.group_size not in (32, 64, 128, 256):
            raise MtprefError(f"`group_size`: {self.group_size}, expected 32, 64, 128 or 256")
        given = bool(self.calibration) + (self.hidden is not None)
        if self.method == "gptq" and given != 1:
            raise MtprefError("`method` gptq: expected `calibration` texts, or `hidden`, a file of hidden rows")
        if self.method != "gptq" and given:
            raise MtprefError("`calibration` and `hidden` are for `method` gptq, expected it with them")


@dataclass
class Grafted:
    """What was written. formats: words of a format -> matrices; n_kept: files that are the base's"""

    path: Path
    n_tensors: int
    n_bytes: int
    formats: dict[str, int]
    n_kept: int
    n_calibrated: int
    notes: list[str] = field(default_factory=list)


def graft_hf(
    base: str | Path,
    original: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    options: WriteOptions | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Grafted:
    """Put the head of a checkpoint folder into a quantised one.

    say      told at once what a user should know before the write; `Grafted.notes` has all of it
    Errors   MtprefError for a base that has a head, a head that does not fit it, a format that its config cannot say
    """
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        if say is not None:
            say(text)

    check_folder(out)
    for folder in (base, original):
        if left_over_of(Path(folder).absolute()):
            raise MtprefError(f"{printable(str(folder), 400)}: the temporary of a write, expected a finished folder")
    with open_checkpoint(base) as b, open_checkpoint(original) as o:
        config = text_config(b.config, b.label)
        refuse_apart(config, b.label)
        _check_base(b, config)
        for doubt in _check_fit(b, config, o):
            tell(f"the head may be another trunk's: {doubt}")
        plan = plan_head(b, o, config, settings.head_type, settings.group_size)
        made, said = with_head(b.config, config, plan, b.declared.method, b.label)
        for note in (*plan.notes, *said):
            tell(note)
        codes: dict[str, Parts] = {}
        if settings.method == "gptq":
            given = Calibration(settings.calibration, settings.hidden)
            parent = Path(out).absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            codes, said = by_gptq(b, o, config, plan, given, parent, progress)
            for note in said:
                tell(note)
        tensors = list(_tensors(o, plan, codes))
        return _write(b, out, made, tensors, settings, options or WriteOptions(), tell, plan, codes, notes)


def _write(
    base: Checkpoint, out: str | Path, config: dict[str, Any], tensors: list[Streamed], settings: Settings,
    options: WriteOptions, tell: Callable[[str], None], plan: HeadPlan, codes: dict[str, Parts], notes: list[str],
) -> Grafted:  # fmt: skip
    held = {name: file.names for name, file in base.files.items()}
    n_bytes = sum(t.n_bytes for t in tensors)
    index = with_tensors(base.json(INDEX), held, FILE, [t.name for t in tensors], (_n_bytes(base), n_bytes))
    parts = [safetensors_part(FILE, tensors, {"format": "pt"}), _json(CONFIG, config), _json(INDEX, index)]
    kept, skipped = _others(base, {part.path.name for part in parts})
    if skipped:
        tell(f"left out, being folders or nothing of a checkpoint: {', '.join(skipped[:8])}")
    how: How = settings.how  # type: ignore[assignment]
    links = [file for file in kept if _is_large(file)]
    taken = how_kept(links, Path(out), how)
    if taken != how:
        total = human_bytes(sum(file.source.stat().st_size for file in links))
        tell(
            f"{out} is on another device than the base: {len(links)} files, {total}, are copied; `how=symbolic` links "
            "them"
        )
    if taken != "copy":
        parts += [_copied(file) for file in kept if not _is_large(file)]
        kept = links
    n_kept = len(links)
    write_folder(out, parts, kept, taken, options)
    formats = Counter(c.form.words() for c in plan.coded)
    return Grafted(Path(out), len(tensors), n_bytes, dict(formats), n_kept, len(codes), notes)


# CHECKS


def _check_base(base: Checkpoint, config: TextConfig) -> None:
    own = [name for name in base.names if is_head_name(name, config.n_layer)]
    if own:
        raise MtprefError(
            f"{base.label}: has {len(own)} tensors of a head already, {printable(own[0])} first, expected a checkpoint "
            "that lost it: its files stay as they are"
        )
    if base.unlisted or FILE in base.files:
        raise MtprefError(f"{base.label}: has {printable((*base.unlisted, FILE)[0])}, expected no file of a head")


def _check_fit(base: Checkpoint, config: TextConfig, original: Checkpoint) -> list[str]:
    """Why the head may be another trunk's. Errors: MtprefError as `graft` for one that cannot serve it"""
    source, _ = checkpoint_source(original, "f32")
    pairs = [("general.architecture", config.sheet.name, "str"), *hyper_parameters(config, 0, 0)]
    pairs += vocabulary(base, config.vocab_size, config.sheet, None)
    parts = {part.name: part for part in gguf_tensors(base, config).parts}
    items = {
        part.name: Item(part.name, "F32", part.shape, 0, partial(part.pieces, base))
        for part in parts.values()
        if len(part.shape) == 1 or part.name == "token_embd.weight"
    }

    def rows(name: str, index: NDArray[np.intp]) -> Any:
        part = parts[name]
        return base.rows(part.source, index).astype(np.float64) if part.rows is None else None

    trunk = Source(base.label, pairs, items, list(items), rows)
    own = HeadLayout(config.sheet.name, config.n_layer, 0, ())
    check_match(trunk, own, source, layout_of_source(source), is_one_file=False)
    return doubts(trunk, source)


# TENSORS


def _tensors(original: Checkpoint, plan: HeadPlan, codes: dict[str, Parts]) -> Iterator[Streamed]:
    for p in plan.plain:
        yield Streamed(p.name, p.dtype, p.shape, partial(_bits, original, p.source))
    encoded = _Encoded(original, codes)
    for c in plan.coded:
        if c.copied:
            for part, dtype, source in c.copied:
                shape = original.stored(c.source).raw.shape(source)
                yield Streamed(f"{c.module}.{part}", dtype, shape, partial(_bits, original, source, c.source))
            continue
        for part, (dtype, shape) in c.form.layout(c.shape).items():
            yield Streamed(f"{c.module}.{part}", dtype, shape, partial(encoded.part, c, part))


def _bits(original: Checkpoint, source: str, plain: str | None = None) -> Iterator[NDArray]:
    """A tensor of the original's files as it stands there."""
    raw = original.stored(plain or source).raw
    shape = raw.shape(source)
    if not shape:
        raise MtprefError(f"{original.label}: {printable(source)} is one number, expected a vector or matrix of a head")
    n_row = int(np.prod(shape[:-1])) if len(shape) > 1 else shape[0]
    step = max(1, PIECE // (8 * max(1, shape[-1] if len(shape) > 1 else 1)))
    for first in range(0, n_row, step):
        yield raw.codes(source, slice(first, min(first + step, n_row)))
        raw.release(source)


class _Encoded:
    """Matrices as they are written: the parts of the last one are kept, since they are asked for one by one."""

    def __init__(self, original: Checkpoint, codes: dict[str, Parts]) -> None:
        self.original, self.codes = original, codes
        self._last: tuple[str, Parts] = ("", {})

    def part(self, c: Coded, part: str) -> Iterator[NDArray]:
        if c.module in self.codes:
            yield self.codes[c.module][part]
            return
        if self._last[0] != c.module:
            self._last = (c.module, encode(c.form, self._rows(c), c.shape, printable(c.source)))
        yield self._last[1][part]

    def _rows(self, c: Coded) -> Iterator[NDArray[np.float32]]:
        step = c.form.step(c.shape[1])
        for first in range(0, c.shape[0], step):
            index = slice(c.first + first, c.first + min(first + step, c.shape[0]))
            yield np.asarray(self.original.rows(c.source, index), np.float32)
            self.original.release(c.source)


# FILES


def _json(name: str, record: dict[str, Any]) -> FilePart:
    raw = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    return FilePart(Path(name), len(raw), lambda file: _put(file, raw))


def _copied(file: Kept) -> FilePart:
    raw = read_regular(file.source, printable(str(file.source), 400), "expected a file of the folder", MAX_JSON)
    return FilePart(Path(file.name), len(raw), lambda target: _put(target, raw))


def _put(file: Any, raw: bytes) -> None:
    file.write(raw)


def _is_large(file: Kept) -> bool:
    return file.name.endswith(WEIGHTS) or file.source.stat().st_size > SMALL


def _others(base: Checkpoint, made: set[str]) -> tuple[list[Kept], list[str]]:
    """The base's files that are not made anew, and what is left out."""
    kept, skipped = [], []
    for path in sorted(base.folder.iterdir()):
        if path.name in made:
            continue
        if path.is_file() and not left_over_of(path):
            kept.append(Kept(path.name, path))
        else:
            skipped.append(printable(path.name))
    return kept, skipped


def _n_bytes(base: Checkpoint) -> int:
    return sum(_data_bytes(file) for file in base.files.values())


def _data_bytes(file: SafetensorsFile) -> int:
    return sum(Streamed(name, file.dtype(name), file.shape(name), list).n_bytes for name in file.names)
