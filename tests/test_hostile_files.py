"""What chance does not find: sizes that only a header claims, lists without end, full disks, killed writers.

Gigabytes here are zeros in sparse files: they take no space, and nobody may read them.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MICRO, put
from fuzzing.fields import ARR, BOOL, F32, I32, STR, U8, U32, Doc, Key, text, u32, u64, write
from fuzzing.judge import judge, limited_memory

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.heads import inspect
from tests.hostile_files import DOC, GB, with_long_value

ROOT = Path(__file__).parent.parent


def array_of(element: int, count: int) -> bytes:
    return u32(element) + u64(count)


LONG = [
    *((name, STR, u64(8 * GB), 8 * GB, "is a text of 8589934592 bytes, expected at most 16777216") for name in (
        b"general.architecture", b"general.name", b"tokenizer.ggml.model", b"tokenizer.ggml.pre",
        b"qwen35.rope.scaling.type")),
    *((name, STR, u64(8 * GB), 8 * GB, None) for name in (b"tokenizer.chat_template", b"general.type", b"a.note")),
    (b"tokenizer.ggml.tokens", ARR, array_of(STR, 1 << 20), 8 << 20, "the tokenizer has 1048576 tokens"),
    (b"tokenizer.ggml.tokens", ARR, array_of(STR, 1 << 23), 8 << 23, "8388608 strings or inner arrays so far"),
    (b"tokenizer.ggml.tokens", ARR, array_of(STR, 1) + u64(GB), GB, "bytes in arrays of strings so far, expected"),
    (b"tokenizer.ggml.tokens", ARR, array_of(ARR, 1 << 20), 12 << 20, "strings or inner arrays so far"),
    (b"tokenizer.ggml.scores", ARR, array_of(F32, 2 * GB), 8 * GB, None),
    (b"tokenizer.ggml.token_type", ARR, array_of(I32, 2 * GB), 8 * GB, None),
    (b"qwen35.rope.dimension_sections", ARR, array_of(I32, 2 * GB), 8 * GB, None),
    (b"qwen35.rope.dimension_sections", ARR, array_of(U8, 8 * GB), 8 * GB, None),
    (b"qwen35.attention.recurrent_layers", ARR, array_of(BOOL, 8 * GB), 8 * GB, "tensor blk.0.attn_q.weight is"),
    (b"qwen35.ssm.state_size", ARR, array_of(U32, 2 * GB), 8 * GB, "expected an integer from 1 to 4096"),
]  # fmt: skip


@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case[0].decode()}-{case[2][:12].hex()}")
def test_lengths_that_a_sparse_file_backs_take_no_memory(tmp_path, case):
    name, kind, head, n_zeros, expected = case
    path = with_long_value(tmp_path / "long.gguf", name, kind, head, n_zeros)
    with limited_memory():
        described = judge(lambda: inspect.inspect_file(path))
        loaded = judge(lambda: mtpref.load(path))
    assert described.verdict != "failed", described.details
    assert loaded.verdict == ("ran" if expected is None else "refused"), loaded.details
    if expected is not None:
        with pytest.raises(MtprefError, match=expected):
            mtpref.load(path)


def test_a_vocabulary_without_end_is_refused_before_it_is_read(tmp_path):
    """gpt2 merges and tokens of any number, with as many rows of token_embd."""
    path = with_long_value(tmp_path / "m.gguf", b"tokenizer.ggml.merges", ARR, array_of(STR, 1 << 21), 8 << 21)
    assert judge(lambda: mtpref.load(path)).verdict == "ran"  # the micro model's tokenizer reads no merges
    from mtpref.files.vocab import load_vocab

    class Endless(list):
        def __len__(self):
            return 1 << 40

        def to_bytes_list(self):
            raise AssertionError("read")

    for name in ("tokens", "merges"):
        kv = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": [],
              f"tokenizer.ggml.{name}": Endless()}  # fmt: skip
        with pytest.raises(MtprefError, match=f"{name}: 1099511627776 strings, expected at most"):
            load_vocab(kv)


@pytest.mark.parametrize("what", ["tokens that are numbers", "sections that are infinite", "layers in a text"])
def test_arrays_of_other_things_are_named(tmp_path, what):
    from fuzzing.fields import array, scalar

    keys = {
        "tokens that are numbers": (b"tokenizer.ggml.tokens", ARR, array(U32, scalar(U32, 1) * 4, 4), "expected"),
        "sections that are infinite": (
            b"qwen35.rope.dimension_sections", ARR, array(F32, scalar(F32, float("inf")) * 4, 4),
            r"is \[inf, inf, inf, inf\], expected an array of 4 integers"),
        "layers in a text": (
            b"qwen35.attention.recurrent_layers", STR, text(b"1110111"), "is '1110111', expected an array"),
    }  # fmt: skip
    name, kind, value, expected = keys[what]
    new = Doc((*(k for k in DOC.keys if k.name != name), Key(name, kind, value)), DOC.tensors, DOC.data)
    with pytest.raises(MtprefError, match=expected):
        mtpref.load(put(tmp_path, "odd.gguf", write(new)))


def test_names_of_a_dump_cannot_steer_the_terminal(tmp_path):
    from mtpref.look.compare import compare_files, render, render_html

    one = np.ones(4, np.float32)
    tensors = [("\x1b[31mred", "F32", (4,), one), ("ok", "F32", (4,), one)]
    write_gguf(tmp_path / "a.gguf", [("mtpref.dump.order", ["ok"], "arr:str")], tensors)
    write_gguf(tmp_path / "b.gguf", [], [*tensors, ("\u202e", "F32", (4,), one)])
    assert "\x1b" not in (table := render(compare_files(tmp_path / "a.gguf", tmp_path / "b.gguf")))
    assert "\u202e" not in table
    assert "\x1b" not in render_html(compare_files(tmp_path / "a.gguf", tmp_path / "b.gguf"))
    write_gguf(tmp_path / "c.gguf", [("mtpref.dump.order", 7, "u32")], tensors)
    with pytest.raises(MtprefError, match=r"key mtpref.dump.order is of type u32, expected arr:str"):
        compare_files(tmp_path / "c.gguf", tmp_path / "a.gguf")


# WRITERS THAT DO NOT COME TO AN END


def run_limited(*argv: object, n_bytes: int, cwd: Path) -> subprocess.CompletedProcess:
    """A command line that may write files of n_bytes at most."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    # Kernels come from a cache that cannot be written then: the readable operations need none.
    return subprocess.run(
        [sys.executable, "-m", "mtpref", *map(str, argv)], cwd=cwd, preexec_fn=limit, capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip


FULL = {
    "dump": (["dump", "-m", MICRO, "-p", "ab", "-o", "out"], "out", "out: cannot be written: File too large"),
    "state": (["generate", "-m", MICRO, "-p", "ab", "-n", "2", "--prompt-cache", "out"], "out", "cannot be written"),
    "trace": (["generate", "-m", MICRO, "-p", "ab", "-n", "64", "--trace", "out"], None, "--trace out: cannot be"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line(tmp_path, name):
    argv, target, expected = FULL[name]
    done = run_limited(*argv, n_bytes=1500, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    if target is None:
        whole = (tmp_path / "out").read_bytes().rpartition(b"\n")[0]
        assert all(json.loads(line)["event"] for line in whole.splitlines())
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
@pytest.mark.parametrize("argv", [["inspect", MICRO], ["golden", "list", ROOT / "golden"]], ids=["inspect", "golden"])
def test_an_output_that_takes_nothing_is_one_line(argv):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mtpref", *map(str, argv)], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"mtpref {argv[0]}: error: No space left on device; is the disk full, or the output closed?"
    ]


KILLED = """
import os, sys, time
import mtpref
from mtpref.engine.decode import Options
from mtpref.look import dump
def stop(fd):
    print("half", flush=True)
    time.sleep(60)
model = mtpref.load(sys.argv[2])
session = model.new_session(64)
model.generate([1, 2, 3], Options(n_predict=2), session=session).finish()
os.fsync = stop  # all is written then, under the temporary name
if sys.argv[1] == "state":
    session.save(sys.argv[3])
else:
    dump.write_dump(sys.argv[3], model.core, [1, 2], dump.record(model.core, [1, 2], "l_out").tensors)
"""


@pytest.mark.parametrize("what", ["state", "dump"])
@pytest.mark.parametrize("has_older", [False, True])
def test_a_killed_writer_leaves_the_older_file_or_none(tmp_path, what, has_older):
    target = tmp_path / "out.gguf"
    if has_older:
        write_gguf(target, [("a", 1, "u32")], [])
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, what, str(MICRO), str(target)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert target.exists() == has_older
    if has_older:
        with open_gguf(target) as file:
            assert file.kv["a"] == 1


def test_a_killed_run_leaves_a_trace_that_can_be_read(tmp_path):
    path = tmp_path / "t.jsonl"
    argv = [
        sys.executable,
        "-m",
        "mtpref",
        "generate",
        "-m",
        str(MICRO),
        "-p",
        "ab",
        "-n",
        "4000",
        "--trace",
        str(path),
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        for _ in range(1000):
            if path.exists() and path.read_bytes().count(b"\n") > 20:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    from mtpref.look.trace import TraceReader

    with TraceReader(path) as reader:
        assert len(list(reader)) > 20
        assert reader.is_open or child.returncode == 0
