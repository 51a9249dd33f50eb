"""`mtpref fetch --resume`: a run that was stopped, however it was, is gone on with, and by nothing but its bytes."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.files import remote
from mtpref.files.remote import Spool
from mtpref.front import cli
from tests.hf_folder import read_state, write_checkpoint
from tests.range_server import serving

ROOT = Path(__file__).parent.parent
TINY = (ROOT / "mtpref/data/tiny.gguf").read_bytes()
MODEL = "/m.gguf"
PARTS = "out.mtpref-parts"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "Limits", functools.partial(remote.Limits, pause=0.0, tries=2))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "mtp.gguf"
    assert cli.main(["extract", str(ROOT / "mtpref/data/tiny.gguf"), "-o", str(path)]) == 0
    return path.read_bytes()


def fetch(server, out, *more):
    return cli.main(["fetch", server.url + MODEL, "--head", "-o", str(out), "--resume", *more])


def gone_after(n_bytes):
    """A server that has given so many bytes beyond the header, and then is gone for good."""
    given = [0]

    def rule(h, a):
        if a.first == 0:
            return False
        body = TINY[a.first : a.last + 1][: max(n_bytes - given[0], 0)]
        given[0] += len(body)
        said = f"Content-Range: bytes {a.first}-{a.last}/{len(TINY)}\r\nETag: {h.state.etag(a.path)}\r\n"
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {a.last + 1 - a.first}\r\n{said}\r\n"
        return h.raw(head.encode() + body)

    return rule


@pytest.mark.parametrize("n_bytes", [1, 250_000, 700_000, 1_300_000])
def test_a_run_goes_on_where_another_has_ended(n_bytes, tmp_path, capsys, reference):
    out = tmp_path / "out"
    with serving({MODEL: TINY}, [gone_after(n_bytes)]) as server:
        assert fetch(server, out) == 2
        assert os.listdir(tmp_path) == [PARTS]
        assert len(capsys.readouterr().err.splitlines()) == 1
        server.rules.clear()
        server.asked.clear()
        assert fetch(server, out) == 0
        n_asked = sum(min(a.last, len(TINY) - 1) + 1 - a.first for a in server.asked if a.first)
    assert out.read_bytes() == reference
    assert n_asked == 1_399_296 - n_bytes, "head and embeddings, without the bytes that are there"
    assert "that an earlier run has left; " in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["out"]


def at_one_port(tmp_path, change):
    """A stopped run, a change, and a run after it against the same server. Gives its exit code and requests."""
    with serving({MODEL: TINY}, [gone_after(700_000)]) as server:
        assert fetch(server, tmp_path / "out") == 2
        server.rules.clear()
        change(server, sorted((tmp_path / PARTS).iterdir()))
        server.asked.clear()
        code = fetch(server, tmp_path / "out")
        return code, sum(min(a.last, len(TINY) - 1) + 1 - a.first for a in server.asked if a.first)


WHOLE = 1_399_296


def damage_bytes(server, paths):
    path = next(path for path in paths if path.suffix == ".bytes")
    raw = bytearray(path.read_bytes())
    raw[next(i for i, byte in enumerate(raw) if byte)] ^= 1
    path.write_bytes(raw)


def cut_bytes(server, paths):
    path = next(path for path in paths if path.suffix == ".bytes")
    os.truncate(path, path.stat().st_size - 1)


def nonsense(server, paths):
    path = next(path for path in paths if path.suffix == ".ranges")
    path.write_bytes(
        b"5 4 3\n-1 9 0\n1 2\nx y z\n0 99999999999999 1\n" + b"9" * 5000 + b" 1 2\n" + b"\xff\n0 10 0\n7 1"
    )


def another_version(server, paths):
    server.etag = lambda path: '"other"'


@pytest.mark.parametrize("change", [damage_bytes, cut_bytes, nonsense, another_version])
def test_what_is_not_sure_is_read_again(change, tmp_path, capsys, reference):
    code, n_asked = at_one_port(tmp_path, change)
    assert (code, (tmp_path / "out").read_bytes() == reference) == (0, True)
    assert WHOLE - 700_000 < n_asked <= WHOLE
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_kept_without_the_flag_or_without_a_version(tmp_path, capsys):
    with serving({MODEL: TINY}, [gone_after(700_000)]) as server:
        words = ["fetch", server.url + MODEL, "--head", "-o", str(tmp_path / "out")]
        assert cli.main(words) == 2
        assert os.listdir(tmp_path) == []
        server.rules.clear()
        server.etag = lambda path: ""
        assert fetch(server, tmp_path / "out") == 0
    assert os.listdir(tmp_path) == ["out"]


def test_a_refusal_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "out").write_bytes(b"mine")
    with serving({MODEL: TINY}) as server:
        assert fetch(server, tmp_path / "out") == 2
    assert os.listdir(tmp_path) == ["out"]


def test_two_runs_of_one_target(tmp_path, capsys):
    with serving({MODEL: TINY}) as server, Spool(tmp_path / "out"):
        assert fetch(server, tmp_path / "out") == 2
        assert "another run writes there" in capsys.readouterr().err
        (tmp_path / "x.mtpref-parts").write_bytes(b"")
        assert fetch(server, tmp_path / "x") == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_that_are_not_ours_stay(tmp_path, capsys):
    parts = tmp_path / PARTS
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    with serving({MODEL: TINY}) as server:
        assert fetch(server, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "out.mtpref-parts: holds mine.txt, expected" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
        (parts / "mine.txt").unlink()
        with Spool(tmp_path / "out") as spool:  # one that appears meanwhile
            (parts / "mine.txt").write_text("mine")
            spool.done()
    assert [path.name for path in parts.iterdir()] == ["mine.txt"]


def test_planted_links_lead_nowhere(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / PARTS).symlink_to(tmp_path / "victim")
    with pytest.raises(MtprefError, match="cannot be written"):
        Spool(tmp_path / "out")
    (tmp_path / "precious").write_bytes(b"precious")
    with Spool(tmp_path / "y") as spool:
        name = spool.of("u", 1, "v")._label.rpartition("/")[2]
    (tmp_path / "y.mtpref-parts").mkdir()
    (tmp_path / "y.mtpref-parts" / f"{name}.bytes").symlink_to(tmp_path / "precious")
    with Spool(tmp_path / "y") as spool, pytest.raises(MtprefError, match="cannot be kept"):
        spool.of("u", 1, "v")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_checkpoint_goes_on(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "hf", *read_state())
    files = {f"/ck/{path.name}": path.read_bytes() for path in folder.iterdir()}
    weights = "/ck/model.safetensors"
    given = []

    def gone(h, a):
        if a.path != weights or not a.first or given:
            return bool(given) and a.path == weights and bool(a.first) and h.cut()
        given.append(a.first)
        body = files[weights]
        said = f"Content-Range: bytes {a.first}-{a.last}/{len(body)}\r\nETag: {h.state.etag(a.path)}\r\n"
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {a.last + 1 - a.first}\r\n{said}\r\n"
        return h.raw(head.encode() + body[a.first : a.first + 500_000])

    with serving(files, [gone]) as server:
        words = ["fetch", f"{server.url}/ck/", "--head", "-o", str(tmp_path / "out"), "--resume"]
        assert cli.main(words) == 2
        server.rules.clear()
        assert cli.main(words) == 0
        assert "and 500 kB that an earlier run has left" in capsys.readouterr().out
        assert cli.main([*words[:4], str(tmp_path / "again")]) == 0
    seen = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("out", "again")]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_runs_are_gone_on_with(number, tmp_path, capsys, reference):
    """The server gives a byte more only when it is told to: the run is killed while it waits."""
    waits = []

    def slow(h, a):
        if a.first == 0:
            return False
        said = f"Content-Range: bytes {a.first}-{a.last}/{len(TINY)}\r\nETag: {h.state.etag(a.path)}\r\n"
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {a.last + 1 - a.first}\r\n{said}\r\n"
        h.wfile.write(head.encode() + TINY[a.first : a.first + 400_000])
        h.wfile.flush()
        waits.append(1)
        time.sleep(60)
        return h.cut()

    with serving({MODEL: TINY}, [slow]) as server:
        words = ["fetch", server.url + MODEL, "--head", "-o", str(tmp_path / "out"), "--resume"]
        child = subprocess.Popen([sys.executable, "-m", "mtpref", *words], stderr=subprocess.DEVNULL)
        while not waits:
            assert child.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        child.send_signal(number)
        child.wait(30)
        left = set(os.listdir(tmp_path))
        assert "out" not in left
        assert PARTS in left
        server.rules.clear()
        assert cli.main(words) == 0
    assert (tmp_path / "out").read_bytes() == reference
    assert os.listdir(tmp_path) == ["out"]
