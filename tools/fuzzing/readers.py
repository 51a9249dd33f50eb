"""Targets that are small files beside models: traces, logs, runs, costs, arrays, importance matrices.

Owns their seeds and edits. A header of a known place (safetensors, npy) is edited as the text that it is, and its
length made right again, or nothing would pass the first check.
"""

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mtpref
from fuzzing.edits import Edit, random_byte_edit
from fuzzing.models import MICRO, put
from fuzzing.targets import Random, Target
from fuzzing.texts import random_json_edit, random_text_edit
from mtpref.engine.decode import Options, SamplingConfig
from mtpref.faults.diagnose import read_port_runs
from mtpref.files.tensor_files import NpzFile, SafetensorsFile, write_npz, write_safetensors
from mtpref.heads.quantize.importance import read_importance, write_importance
from mtpref.look.html import read_side, render_page
from mtpref.look.llama_cpp.callback import read_callback_text
from mtpref.look.llama_cpp.log import read_runs
from mtpref.look.trace import TraceWriter, read_trace, tee
from mtpref.look.trace.normal import Records
from mtpref.look.trace.rounds import rounds_of
from mtpref.look.trace.show import RoundLines, TextSpans
from mtpref.measure.bench.costs import read_costs

DATA = MICRO.parent.parent / "llama_cpp"
WORDS = (
    b"-1", b"nan", b"inf", b"1e300", b"9" * 400, b"[", b"]", b"{", b"}", b",", b'"', b"\\ud800", b"\xff", b"\0", b"\n",
    b"\r\n", b"[" * 3000, b"true", b"null", b"1.5", b"\x1b[31m", "\u202e".encode(), b"(", b")", b" " * 300,
)  # fmt: skip


def json_or_text(rng: Random, raw: bytes) -> Edit:
    return random_json_edit(rng, json.loads(raw)) if rng.random() < 0.8 else random_text_edit(rng, len(raw), WORDS)


def _text(rng: Random, raw: bytes) -> Edit:
    return random_text_edit(rng, len(raw), WORDS)


def written(write: Callable[[Path], object], name: str = "x") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


# RUNS


def trace_target() -> Target:
    """A greedy and a sampled run: shown as rounds, as records, as text, and as a page."""
    model = mtpref.load(MICRO)

    def record(sampling: SamplingConfig) -> bytes:
        def write(path: Path) -> None:
            with TraceWriter(path) as writer:
                for _ in tee(model.generate("a b c", Options(n_predict=5, sampling=sampling)), writer):
                    pass

        return written(write)

    def edit(rng: Random, raw: bytes) -> Edit:
        if rng.random() < 0.25:
            return _text(rng, raw)
        lines = raw.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        inner = random_json_edit(rng, json.loads(lines[at]))

        def change(now: bytes) -> bytes:
            given = now.splitlines(keepends=True)
            if at < len(given) and inner.on_bytes is not None:
                given[at] = inner.on_bytes(given[at]) + b"\n"
            return b"".join(given)

        return Edit(f"line {at}: {inner.what}", on_bytes=change)

    def run(case: bytes, folder: Path, i: int) -> None:
        path = put(folder, "trace.jsonl", case)
        show, records, spans = RoundLines(width=100), Records(), TextSpans()
        with read_trace(path) as events:
            for item in rounds_of(events):
                list(show.lines(item))
                json.dumps(records.record(item))
        with read_trace(path) as events:
            for event in events:
                spans.spans(event)
        render_page([read_side(str(path))])

    seeds = [record(SamplingConfig()), record(SamplingConfig(temp=0.8, seed=3))]
    return Target("trace", seeds, run, 300, edit)


def log_target() -> Target:
    """A log of llama-speculative-simple, raw and as a recording."""
    raw = (DATA / "micro-60-f32.raw.log").read_bytes()
    head = b"# run\n# prompt_ids: [1, 2, 3]\n# n_predict: 8\n# n_max: 3\n# p_min: 0.5\n"
    seeds = [raw, head + b"".join(raw.splitlines(keepends=True)[:50])]

    def run(case: bytes, folder: Path, i: int) -> None:
        path = put(folder, "run.log", case)
        read_runs(path)
        read_port_runs(path, [1, 2, 3])

    return Target("log", seeds, run, 1000, _text)


def printed_target() -> Target:
    raw = (DATA / "micro-60-f32.eval-callback.txt").read_bytes()
    return Target(
        "printed", [raw[:6000]], lambda case, folder, i: read_callback_text(put(folder, "x.txt", case)), 600, _text
    )


RUN = {
    "schema": "mtpref-run-1",
    "prompt_ids": [1, 2, 3],
    "prompt_end": "hold",
    "settings": {"n_max": 3, "n_min": 0, "p_min": 0.5, "cooldown": 0, "cooldown_after": 1, "temp": 0, "n_batch": 64,
                 "rollback": "snapshot"},
    "rounds": [{"draft": [4, 5], "n_accepted": 1, "emitted": [4, 6], "id_last": 3, "p": [0.5, 1]},
               {"draft": [], "n_accepted": 0, "emitted": [7]}],
}  # fmt: skip


def run_target() -> Target:
    def run(case: bytes, folder: Path, i: int) -> None:
        json.dumps([r.settings for r in read_port_runs(put(folder, "run.json", case))], allow_nan=False)

    return Target("run", [json.dumps(RUN).encode()], run, 1500, json_or_text)


def costs_target() -> Target:
    one = {"plain": 3.0, "verify": {"2": 4, "5": 6.5}, "draft": {"100": 1}, "replay": {"1": 2}, "choose": 0.1}
    seed = {"schema": "mtpref-costs-1", "engine": "x", "about": "y", "unit": "ms", **one, "samples": [one, one]}

    def run(case: bytes, folder: Path, i: int) -> None:
        found = read_costs(put(folder, "costs.json", case))
        json.dumps(found.to_json(), allow_nan=False)
        [found.costs.verify_at(n, keep=True) + found.costs.draft_at(n) for n in (1, 3, 1025)]

    return Target("costs", [json.dumps(seed).encode()], run, 1500, json_or_text)


# ARRAYS

ARRAYS: dict[str, NDArray[Any]] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.ones(3, np.int8),
    "c": np.zeros((2, 0), np.float64),
}
NPY_WORDS = (
    *WORDS,
    b"True",
    b"(1099511627776, 0)",
    b"'<f4'",
    b"'|O'",
    b"'<c16'",
    b"'V4'",
    b"-4",
    b"()",
    b"[('a', 'f4')]",
)


def _read_all(file: Any) -> None:
    try:
        for name in file.names:
            if file.values(name).shape != tuple(file.shape(name)):
                raise AssertionError(name)
    finally:
        file.close()


def npz_target() -> Target:
    """A single .npy, a member of that kind in an .npz (its checksum right), and an .npz byte by byte."""
    out = io.BytesIO()
    np.save(out, ARRAYS["a"])
    seeds = [out.getvalue(), out.getvalue(), written(lambda path: write_npz(path, ARRAYS))]

    def edit(rng: Random, raw: bytes) -> Edit:
        if raw[:2] == b"PK" or rng.random() < 0.2:
            return random_byte_edit(rng, len(raw))
        inner = random_text_edit(rng, 70, NPY_WORDS)

        def change(now: bytes) -> bytes:
            length = struct.unpack_from("<H", now.ljust(10, b"\0"), 8)[0]
            head = inner.on_bytes(now[10 : 10 + length]) if inner.on_bytes is not None else b""
            return now[:8] + struct.pack("<H", len(head) & 0xFFFF) + head + now[10 + length :]

        return Edit(inner.what, on_bytes=change)

    def run(case: bytes, folder: Path, i: int) -> None:
        if i == 1:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("a.npy", case)
            case = packed.getvalue()
        _read_all(NpzFile(put(folder, "x.npy" if i == 0 else "x.npz", case)))

    return Target("npz", seeds, run, 1000, edit)


def safetensors_target() -> Target:
    raw = written(lambda path: write_safetensors(path, ARRAYS))

    def edit(rng: Random, raw: bytes) -> Edit:
        if rng.random() < 0.2:
            return random_byte_edit(rng, len(raw))
        length = int.from_bytes(raw[:8], "little")
        inner = json_or_text(rng, raw[8 : 8 + length])

        def change(now: bytes) -> bytes:
            size = min(int.from_bytes(now[:8], "little"), len(now))
            head = inner.on_bytes(now[8 : 8 + size]) if inner.on_bytes is not None else b""
            return len(head).to_bytes(8, "little") + head + now[8 + size :]

        return Edit(inner.what, on_bytes=change)

    def run(case: bytes, folder: Path, i: int) -> None:
        _read_all(SafetensorsFile(put(folder, "x.safetensors", case)))

    return Target("safetensors", [raw], run, 1500, edit)


SUMS = {"a.weight": (np.arange(8, dtype=np.float64), 4), "b.weight": (np.ones(4), 2)}


def imatrix_target() -> Target:
    raw = written(lambda path: write_importance(path, SUMS, ["text"], 3, 512))
    return Target("imatrix", [raw], lambda case, folder, i: read_importance(put(folder, "x.gguf", case)), 1000)


def imatrix_dat_target() -> Target:
    parts = [struct.pack("<i", len(SUMS))]
    for name, (sums, n) in SUMS.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", n, len(sums))]
        parts.append(sums.astype("<f4").tobytes())
    raw = b"".join([*parts, struct.pack("<ii", 3, 4), b"text"])

    def run(case: bytes, folder: Path, i: int) -> None:
        read_importance(put(folder, "x.dat", case))

    return Target("imatrix-dat", [raw], run, 2000, lambda rng, given: random_byte_edit(rng, len(given)))


READERS: dict[str, Callable[[], Target]] = {
    "trace": trace_target,
    "log": log_target,
    "printed": printed_target,
    "run": run_target,
    "costs": costs_target,
    "npz": npz_target,
    "safetensors": safetensors_target,
    "imatrix": imatrix_target,
    "imatrix-dat": imatrix_dat_target,
}
