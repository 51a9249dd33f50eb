"""Safety of targets: --force, inputs, free space, left-over temporaries, progress."""

import fcntl
import os
import secrets
import shutil
import tracemalloc

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import (
    WriteOptions,
    check_targets,
    human_bytes,
    open_gguf,
    whole,
    write_gguf,
    write_shards,
    write_whole,
)

KV = [("general.architecture", "qwen35", "str")]
TENSORS = [("a", "F32", (4,), np.arange(4, dtype=np.float32)), ("b", "F16", (3,), np.ones(3, np.float16))]


def test_an_existing_file_is_refused_without_force_and_replaced_with_it(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(
        MtprefError, match=r"m.gguf: exists, expected a new name; give another `target`, or `WriteOptions.force`"
    ):
        write_gguf(path, KV, TENSORS, options=WriteOptions(force=False))
    assert path.read_bytes() == b"mine"
    write_gguf(path, KV, TENSORS, options=WriteOptions(force=True))
    with open_gguf(path) as f:
        assert list(f.tensors) == ["a", "b"]
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_during_the_write_is_not_replaced_without_force(tmp_path, monkeypatch, has_links):
    path = tmp_path / "m"

    def write(file):
        file.write(b"ours")
        path.write_bytes(b"theirs")

    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(MtprefError, match="exists, expected a new name"):
        write_whole(path, write, WriteOptions(force=False))
    assert path.read_bytes() == b"theirs"
    write_whole(tmp_path / "n", b"ours", WriteOptions(force=False))
    assert sorted(os.listdir(tmp_path)) == ["m", "n"]
    assert (tmp_path / "n").read_bytes() == b"ours"
    assert (tmp_path / "n").stat().st_nlink == 1


def test_a_dangling_link_is_something_that_exists(tmp_path):
    (tmp_path / "m.gguf").symlink_to(tmp_path / "absent")
    with pytest.raises(MtprefError, match="exists"):
        write_gguf(tmp_path / "m.gguf", KV, TENSORS, options=WriteOptions(force=False))


@pytest.mark.parametrize("link", ["same", "relative", "symbolic", "hard"])
def test_an_input_is_never_a_target(tmp_path, monkeypatch, link):
    source = tmp_path / "in.gguf"
    source.write_bytes(b"input")
    monkeypatch.chdir(tmp_path)
    target = {"same": source, "relative": "./in.gguf"}.get(link, tmp_path / "link.gguf")
    if link == "symbolic":
        target.symlink_to(source)
    if link == "hard":
        target.hardlink_to(source)
    with pytest.raises(MtprefError, match="is one of the inputs, expected another name"):
        write_gguf(target, KV, TENSORS, options=WriteOptions(force=True, inputs=[source]))
    assert source.read_bytes() == b"input"


def test_too_little_space_is_one_line_before_a_byte_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(MtprefError, match=r"m.gguf: needs 1[\d.]+ TB, its disk has [\d.]+ \w?B free; free some space"):
        check_targets([tmp_path / "m.gguf"], WriteOptions(), free + 10**12 if free < 10**12 else 10**15)
    opened = []
    monkeypatch.setattr(whole, "_open_locked", lambda *found: opened.append(found))
    with pytest.raises(MtprefError, match="needs 4398 TB"):
        write_gguf(tmp_path / "m.gguf", KV, [("a", "F32", (1 << 20, 1 << 20, 1000), lambda: 1 / 0)])
    assert opened == []
    assert os.listdir(tmp_path) == []


def test_needed_bytes_are_those_of_the_file(tmp_path):
    seen = []
    write_gguf(tmp_path / "m", KV, TENSORS, options=WriteOptions(progress=lambda *state: seen.append(state)))
    size = (tmp_path / "m").stat().st_size
    assert seen[-1] == (size, size)
    assert {total for _, total in seen} == {size}
    done = [n for n, _ in seen]
    assert done == sorted(done)


def test_progress_counts_all_shards_and_moves_within_a_tensor(tmp_path):
    seen = []
    tensors = [*TENSORS, ("big", "I8", (20 << 20,), lambda: (np.zeros(5 << 20, np.int8) for _ in range(4)))]
    options = WriteOptions(progress=lambda *state: seen.append(state))
    paths = write_shards(tmp_path / "m", KV, tensors, max_tensors=1, options=options)
    assert seen[-1][0] == seen[-1][1] == sum(p.stat().st_size for p in paths)
    assert sum(1 for n, _ in seen if n > 5 << 20) >= 4


def test_a_copy_of_a_large_tensor_takes_little_memory(tmp_path):
    source = tmp_path / "in.gguf"
    write_gguf(source, KV, [("big", "I8", (96 << 20,), lambda: (np.full(1 << 20, i, np.int8) for i in range(96)))])
    with open_gguf(source) as f:
        tracemalloc.start()
        write_gguf(tmp_path / "out.gguf", KV, [("big", "I8", (96 << 20,), lambda: f.pieces(f.tensors["big"]))])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
    assert source.read_bytes() == (tmp_path / "out.gguf").read_bytes()


# LEFT-OVERS


def test_left_overs_of_dead_writers_go_and_others_stay(tmp_path):
    dead, live, other = (tmp_path / name for name in (".m.1.mtpref-tmp", ".m.2.mtpref-tmp", ".mm.1.mtpref-tmp"))
    for path in (dead, live, other):
        path.write_bytes(b"half")
    with live.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_gguf(tmp_path / "m", KV, TENSORS)
    assert sorted(os.listdir(tmp_path)) == sorted([live.name, other.name, "m"])


def test_a_left_over_is_refused_as_input_though_it_is_complete(tmp_path):
    write_gguf(tmp_path / "m.gguf", KV, TENSORS)
    left = (tmp_path / "m.gguf").rename(tmp_path / ".m.gguf.77.mtpref-tmp")
    with pytest.raises(MtprefError, match=r"the temporary of a write of m.gguf that was killed .* write it again"):
        open_gguf(left)


def test_a_half_file_under_any_name_is_refused_as_input(tmp_path):
    write_gguf(tmp_path / "m.gguf", KV, TENSORS)
    raw = (tmp_path / "m.gguf").read_bytes()
    for n in range(0, len(raw) - 32, 7):
        (tmp_path / "half.gguf").write_bytes(raw[:n])
        with pytest.raises(MtprefError):
            open_gguf(tmp_path / "half.gguf")


def test_a_live_writer_is_not_taken_for_a_dead_one(tmp_path):
    target = tmp_path / "m"

    def write(file):
        before = os.listdir(tmp_path)
        whole.remove_left_overs(target)  # what a second writer of the same target does first
        assert os.listdir(tmp_path) == before != []
        file.write(b"first")

    write_whole(target, write)
    assert target.read_bytes() == b"first"


def test_any_error_removes_the_temporary_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "m"
    target.write_bytes(b"old")
    for error in (
        KeyboardInterrupt,
        MemoryError,
        ValueError,
        MtprefError("no"),
        OSError(28, "No space left on device"),
    ):

        def fail(file, error=error):
            file.write(b"half")
            raise error

        with pytest.raises(MtprefError if isinstance(error, OSError) else BaseException) as caught:
            write_whole(target, fail)
        if isinstance(error, OSError):
            assert "No space left on device; the disk or quota is full" in str(caught.value)
        assert os.listdir(tmp_path) == ["m"]
        assert target.read_bytes() == b"old"


# NAMES OF TEMPORARIES


def drawn(monkeypatch, *names):
    """The next random names; then real ones."""
    left, real = iter(names), secrets.token_hex
    monkeypatch.setattr(whole.secrets, "token_hex", lambda n: next(left, None) or real(n))


def test_names_are_not_foretold(tmp_path):
    seen = []
    for _ in range(3):
        write_whole(tmp_path / "m", lambda file: seen.extend(os.listdir(tmp_path)))
        (tmp_path / "m").unlink()
    assert len(set(seen)) == 3
    assert not any(str(os.getpid()) == name.split(".")[2] for name in seen)
    assert {whole.left_over_of(name) for name in seen} == {"m"}


@pytest.mark.parametrize("kind", ["link to a file", "dangling link", "file", "pipe"])
def test_what_stands_at_a_temporary_s_name_is_neither_written_nor_removed(tmp_path, monkeypatch, kind):
    (tmp_path / "out").mkdir()
    victim, planted = tmp_path / "victim", tmp_path / "out" / ".m.aaaa.mtpref-tmp"
    victim.write_bytes(b"precious")
    real = whole.remove_left_overs

    def remove_and_plant(target):
        real(target)
        if kind == "file":
            planted.write_bytes(b"theirs")
        elif kind == "pipe":
            os.mkfifo(planted)
        else:
            planted.symlink_to(victim if kind == "link to a file" else tmp_path / "new")

    monkeypatch.setattr(whole, "remove_left_overs", remove_and_plant)
    drawn(monkeypatch, "aaaa")
    write_whole(tmp_path / "out" / "m", b"ours")
    assert (tmp_path / "out" / "m").read_bytes() == b"ours"
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()
    assert os.path.lexists(planted)
    monkeypatch.setattr(whole, "remove_left_overs", real)
    write_whole(tmp_path / "out" / "m", b"again")  # looks for left-overs, and waits for no pipe
    assert os.path.lexists(planted) == (kind != "file")
    assert victim.read_bytes() == b"precious"


def test_a_temporary_that_was_taken_for_dead_before_it_was_locked_is_given_up(tmp_path, monkeypatch):
    """A cleaner that holds the lock, and one that has removed the name already."""
    real, held = whole.lock, []

    def lock(fd):
        path = next(path for path in tmp_path.iterdir() if path.name != "m")
        if len(held) == 0:
            held.append(path.open("rb"))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        elif len(held) == 1:
            held.append(None)
            path.unlink()
        return real(fd)

    monkeypatch.setattr(whole, "lock", lock)
    write_whole(tmp_path / "m", b"ours")
    held[0].close()
    assert os.listdir(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == b"ours"


def test_a_temporary_that_another_replaces_is_not_placed(tmp_path):
    def write(file):
        file.write(b"ours")
        (temporary,) = tmp_path.iterdir()
        temporary.unlink()
        temporary.write_bytes(b"theirs")

    with pytest.raises(MtprefError, match="cannot be written: another program has replaced the temporary file"):
        write_whole(tmp_path / "m", write)
    assert not (tmp_path / "m").exists()


def test_a_file_system_without_locks_can_be_written_to(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(whole.fcntl, "flock", no_locks)
    (tmp_path / ".m.aa.mtpref-tmp").write_bytes(b"of whom?")
    write_whole(tmp_path / "m", b"ours")
    assert sorted(os.listdir(tmp_path)) == [".m.aa.mtpref-tmp", "m"]


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678_901, "12.3 GB"), (999_600, "1000 kB"), (3e15, "3000 TB")],
)
def test_human_bytes(n, text):
    assert human_bytes(n) == text
