"""Targets that are whole models: loaded and run, split, with a head of their own, and taken apart.

Owns what is done with a model's file, and the writing of a case to disk.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import mtpref
from fuzzing.fields import Doc, parse, write
from fuzzing.judge import check_line
from fuzzing.targets import Target
from mtpref import heads
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import Options
from mtpref.files import gguf
from mtpref.front.api import LanguageModel, tiny_path
from mtpref.heads import inspect

MICRO = Path(__file__).parent.parent.parent / "tests" / "data" / "micro" / "micro-60-q8_0.gguf"


def put(folder: Path, name: str, raw: bytes, n_zeros: int = 0) -> Path:
    """A file of these bytes, and after them zeros that take no space on disk."""
    path = folder / name
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + n_zeros)
    return path


def run_model(model: LanguageModel) -> None:
    """A prompt, three tokens, drafts."""
    ids = model.encode("a b")[:6] or [0]
    model.generate(ids, Options(n_predict=3, spec_type="draft-mtp" if model.has_mtp else "none"), n_ctx=32).finish()


def run_whole(raw: bytes, folder: Path, i: int, n_zeros: int = 0) -> None:
    """Describe it, load it with and without its weights checked, run it."""
    path = put(folder, "model.gguf", raw, n_zeros)
    with contextlib.suppress(MtprefError):
        json.dumps(inspect.inspect_file(path))
    with contextlib.suppress(MtprefError):
        mtpref.load(path, mtp=False, check_tensors=True)
    run_model(mtpref.load(path))


def tiny_target() -> Target:
    """The tiny model's header; its weights are zeros, so that a case costs no copy of them."""
    raw = tiny_path().read_bytes()
    header = write(Doc(**{**vars(parse(raw)), "data": b""}))
    n_zeros = len(raw) - len(header)
    return Target("tiny", [header], lambda case, folder, i: run_whole(case, folder, i, n_zeros), 50)


def shards_target() -> Target:
    with tempfile.TemporaryDirectory() as name, gguf.open_gguf(MICRO) as file:
        kv = [(k, file.kv.raw(k) if file.kv.kind(k) == "str" else file.kv[k], str(file.kv.kind(k))) for k in file.kv]
        tensors = [(t.name, t.type_name, t.shape, file.data(t)) for t in file.tensors.values()]
        paths = gguf.write_shards(Path(name) / "m", kv, tensors, max_tensors=30)
        parts = [path.read_bytes() for path in paths]

    def run(raw: bytes, folder: Path, i: int) -> None:
        for no, part in enumerate(parts):
            put(folder, f"m-{no + 1:05d}-of-{len(parts):05d}.gguf", raw if no == i else part)
        first = folder / f"m-00001-of-{len(parts):05d}.gguf"
        with contextlib.suppress(MtprefError):
            inspect.inspect_file(folder / f"m-{i + 1:05d}-of-{len(parts):05d}.gguf")
        run_model(mtpref.load(first))

    return Target("shards", parts, run, 100)


def head_target() -> Target:
    """A stand-alone head, for a trunk without one."""
    with tempfile.TemporaryDirectory() as folder, gguf.open_gguf(MICRO) as file:
        (path,) = heads.write_contents(Path(folder) / "head.gguf", heads.extract(file), gguf.WriteOptions())
        seed = path.read_bytes()

    def run(raw: bytes, folder: Path, i: int) -> None:
        path = put(folder, "mtp-head.gguf", raw)
        with contextlib.suppress(MtprefError):
            mtpref.load(path)
        run_model(mtpref.load(MICRO, model_draft=path))

    return Target("head", [seed], run, 100)


def heads_target() -> Target:
    """A model whose head is taken out, off, and put in from it and into it; what is written must open again."""

    def attempt(make: Callable[[], heads.Contents], out: Path) -> bool:
        try:
            heads.write_contents(out, make(), gguf.WriteOptions())
        except MtprefError as error:
            check_line(str(error))
            return False
        gguf.open_gguf(out).close()
        return True

    def run(raw: bytes, folder: Path, i: int) -> None:
        path, out = put(folder, "model.gguf", raw), folder / "out.gguf"
        with gguf.open_gguf(path) as file, gguf.open_gguf(MICRO) as sound:
            makers = (
                lambda: heads.extract(file),
                lambda: heads.strip(file),
                lambda: heads.graft(file, sound).contents,
                lambda: heads.graft(sound, file).contents,
            )
            made = [attempt(make, out) for make in makers]
            if not any(made):
                raise MtprefError("every one of extract, strip, graft refuses it")

    return Target("heads", [MICRO.read_bytes()], run, 200)
