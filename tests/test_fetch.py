"""`mtpref fetch` on a server that plays by the rules, as servers do: ranges, redirects, cuts, tokens, repositories."""

import base64
import functools
import importlib.util
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from mtpref.files import remote
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.files.remote.address import parse_address
from mtpref.files.remote.http import Client, Token
from mtpref.files.remote.hub import name_of_page
from mtpref.files.tensor_files.safetensors import SafetensorsFile, write_safetensors
from mtpref.front import cli
from mtpref.heads.hf import open_checkpoint
from tests.gguf_copy import copy_of
from tests.hf_folder import bf16_bits, read_state, write_checkpoint
from tests.range_server import serving

ROOT = Path(__file__).parent.parent
TINY_PATH = ROOT / "mtpref/data/tiny.gguf"
TINY = TINY_PATH.read_bytes()
MODEL = "/m/tiny.gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub (extra: hub)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "Limits", functools.partial(remote.Limits, pause=0.01, longest=0.03))


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path_factory):
    """No token of the machine's own."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path_factory.mktemp("no") / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def run(capsys, *words):
    code = cli.main(["fetch", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def ranges(server, path=MODEL):
    return [(a.first, a.last) for a in server.asked if a.path == path]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What `extract` makes of the file."""
    path = tmp_path_factory.mktemp("reference") / "mtp.gguf"
    assert cli.main(["extract", str(TINY_PATH), "-o", str(path)]) == 0
    return path.read_bytes()


# GGUF


def test_a_look_reads_the_header_and_nothing_else(capsys):
    with serving({MODEL: TINY}) as server:
        code, out, err = run(capsys, server.url + MODEL)
        assert (code, err) == (0, "")
        assert ranges(server) == [(0, 262143)]
    assert "MTP head: present (blocks declared: 1)" in out
    assert "ok      types: types: F32: nextn.enorm" in out
    assert "verdict: the head is there and nothing is wrong with it that the file alone can show; it was not run" in out
    assert "read 262 kB of 4.29 MB in 1 request; 4.03 MB saved" in out


def test_the_header_is_judged_as_a_file_is(tmp_path, capsys):
    """The same findings as `check --fast`, of those that headers give."""
    with serving({MODEL: TINY}) as server:
        _, out, _ = run(capsys, server.url + MODEL, "--json")
    seen = json.loads(out)
    assert cli.main(["check", "--fast", "--json", str(TINY_PATH)]) == 0
    local = json.loads(capsys.readouterr().out)
    assert [f for f in seen["check"]["findings"] if f["id"] != "not-run"] == [
        f for f in local["findings"] if f["id"] != "not-run"
    ]
    assert cli.main(["inspect", "--json", str(TINY_PATH)]) == 0
    inspected = json.loads(capsys.readouterr().out)
    differ = {key for key in inspected if inspected[key] != seen["contents"][key]}
    assert differ == {"file"}
    assert seen["contents"]["file"]["bytes"] == len(TINY) == seen["read"]["n_model_bytes"]
    assert (seen["schema"], seen["read"]["n_bytes"]) == ("mtpref-fetch-1", 262144)


def test_the_head_is_what_extract_writes(tmp_path, capsys, reference):
    with serving({MODEL: TINY}) as server:
        code, out, _ = run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")
        assert code == 0
        assert len(ranges(server)) == 3, "embeddings and head lie apart: a request for each, and the header's"
    assert (tmp_path / "mtp.gguf").read_bytes() == reference
    assert "17 tensors, 1.4 MB\nread 1.66 MB of 4.29 MB in 3 requests; 2.63 MB saved" in out
    assert os.listdir(tmp_path) == ["mtp.gguf"]


def test_the_head_drafts(tmp_path, capsys):
    cli.main(["strip", str(TINY_PATH), "-o", str(tmp_path / "trunk.gguf")])
    with serving({MODEL: TINY}) as server:
        run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")
    texts = []
    for model in (["-m", TINY_PATH], ["-m", tmp_path / "trunk.gguf", "-md", tmp_path / "mtp.gguf"]):
        assert cli.main(["generate", *map(str, model), "-p", "def f(", "-n", "8", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["text"] == texts[1]["text"]
    assert texts[0]["ids"] == texts[1]["ids"]
    assert texts[0]["statistics"]["n_accept"] == texts[1]["statistics"]["n_accept"]


def test_to_standard_output(tmp_path, capfdbinary, reference):
    with serving({MODEL: TINY}) as server:
        assert cli.main(["fetch", server.url + MODEL, "--head", "-o", "-"]) == 0
    assert capfdbinary.readouterr().out == reference


def test_an_existing_file_and_force(tmp_path, capsys, reference):
    target = tmp_path / "mtp.gguf"
    target.write_bytes(b"mine")
    with serving({MODEL: TINY}) as server:
        code, _, err = run(capsys, server.url + MODEL, "--head", "-o", target)
        assert (code, target.read_bytes()) == (2, b"mine")
        assert "exists, expected a new name" in err
        assert ranges(server) == [(0, 262143)], "refused before the head is asked for"
        assert run(capsys, server.url + MODEL, "--head", "-o", target, "--force")[0] == 0
    assert target.read_bytes() == reference


def test_a_full_disk_is_seen_before_the_head_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    with serving({MODEL: TINY}) as server:
        code, _, err = run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")
        assert code == 2
        assert "needs 1.4 MB, its disk has 1 kB free" in err
        assert len(server.asked) == 1


def test_bytes_that_are_kept_need_room_beside_the_head(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 2_000_000))
    with serving({MODEL: TINY}) as server:
        code, _, err = run(capsys, server.url + MODEL, "--head", "--resume", "-o", tmp_path / "mtp.gguf")
        assert code == 2
        assert "needs 2.8 MB, its disk has 2 MB free" in err
        assert list(tmp_path.iterdir()) == []
        assert run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")[0] == 0


def test_progress(tmp_path, capsys, monkeypatch):
    from mtpref.front.cli import writing

    monkeypatch.setattr(writing, "INTERVAL_OF_LINES", 0)
    with serving({MODEL: TINY}) as server:
        words = (server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf", "--progress", "always")
        _, _, err = run(capsys, *words)
    assert "writing: 1.46 MB of 1.46 MB, 100 %" in err


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A whole model in several files."""
    folder = tmp_path_factory.mktemp("shards")
    from mtpref.files.gguf import write_shards

    kv, tensors = copy_of(TINY_PATH)
    paths = write_shards(folder / "m", kv, tensors, max_tensors=20)
    return {f"/s/{path.name}": path.read_bytes() for path in paths}


def test_a_model_in_several_files(shards, tmp_path, capsys, reference):
    first = "/s/m-00001-of-00004.gguf"
    assert first in shards
    with serving(shards) as server:
        code, out, _ = run(capsys, server.url + first)
        assert (code, len(server.asked)) == (0, 4)
        assert "in 4 files" in out
        assert run(capsys, server.url + first, "--head", "-o", tmp_path / "mtp.gguf")[0] == 0
        assert (tmp_path / "mtp.gguf").read_bytes() == reference
        code, _, err = run(capsys, f"{server.url}/s/m-00002-of-00004.gguf")
        assert code == 2
        assert "file 2 of 4 of a split model, expected the first" in err


def test_a_file_of_several_that_is_not_there(shards, tmp_path, capsys):
    there = {path: body for path, body in shards.items() if "00004-of" not in path}
    with serving(there) as server:
        code, out, _ = run(capsys, f"{server.url}/s/m-00001-of-00004.gguf")
        assert code == 1
        assert "shards-missing" in out
        code, _, err = run(capsys, f"{server.url}/s/m-00001-of-00004.gguf", "--head", "-o", tmp_path / "x.gguf")
        assert (code, os.listdir(tmp_path)) == (2, [])
        assert "m-00004-of-00004.gguf: not found" in err


def without(names):
    kv, tensors = copy_of(TINY_PATH)
    return kv, [one for one in tensors if not names(one[0])]


@pytest.mark.parametrize(
    ("kind", "code", "finding"),
    [("dropped", 1, "head-dropped"), ("part", 1, "head-incomplete"), ("absent", 1, "head-absent")],
)
def test_heads_that_are_not_whole(kind, code, finding, tmp_path, capsys):
    path = tmp_path / "m.gguf"
    if kind == "absent":
        cli.main(["strip", str(TINY_PATH), "-o", str(path)])
        capsys.readouterr()
    else:
        lost = {"dropped": lambda name: name.startswith("blk.4."), "part": lambda name: name.endswith("eh_proj.weight")}
        write_gguf(path, *without(lost[kind]))
    body = path.read_bytes()
    path.unlink()
    with serving({MODEL: body}) as server:
        found, out, _ = run(capsys, server.url + MODEL)
        assert (found, finding in out, "verdict: NOT sound" in out) == (code, True, True)
        found, _, err = run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "out.gguf")
        assert (found, os.listdir(tmp_path), len(err.splitlines())) == (2, [], 1)


@pytest.mark.parametrize(("arch", "code"), [("llama", 2), ("clip", 2)])
def test_other_models(arch, code, tmp_path, capsys):
    write_gguf(tmp_path / "m.gguf", [("general.architecture", arch, "str")], [])
    with serving({MODEL: (tmp_path / "m.gguf").read_bytes()}) as server:
        found, _, err = run(capsys, server.url + MODEL)
    assert found == code
    assert ("mtpref knows no head of another" in err) or ("this is a vision" in err)


def test_a_head_alone_is_said_to_be_one(capsys, reference):
    with serving({MODEL: reference}) as server:
        code, _, err = run(capsys, server.url + MODEL)
    assert code == 2
    assert "this is an MTP head without its trunk" in err


# THE SERVER


def cut_after(n_bytes, most=10**9):
    """Every answer ends after so many bytes of its body, as often as is said."""
    count = []

    def rule(h, a):
        last = min(a.last, len(TINY) - 1)
        if last + 1 - a.first <= n_bytes or len(count) >= most:
            return False
        count.append(a.first)
        said = f"Content-Range: bytes {a.first}-{last}/{len(TINY)}\r\nETag: {h.state.etag(a.path)}\r\n"
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {last + 1 - a.first}\r\n{said}\r\n"
        return h.raw(head.encode() + TINY[a.first : a.first + n_bytes])

    return rule


@pytest.mark.parametrize("n_bytes", [20_000, 100_001, 300_000])
def test_a_cut_connection_goes_on_where_it_was(n_bytes, tmp_path, capsys, reference, monkeypatch):
    """The first block is one piece: it is asked for again. What follows goes on byte by byte."""
    limits = functools.partial(remote.Limits, pause=0, tries=10_000)
    monkeypatch.setattr(remote, "Limits", limits)
    with serving({MODEL: TINY}, [lambda h, a: a.first > 0 and cut_after(n_bytes)(h, a)]) as server:
        code, out, _ = run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")
        asked = ranges(server)
    assert code == 0
    assert (tmp_path / "mtp.gguf").read_bytes() == reference
    assert "tries again" in out
    begun = [first for first, _ in asked]
    assert begun == sorted(begun), "never a byte twice"
    assert "read 1.66 MB of" in out


def test_tries_count_what_came(tmp_path, capsys, reference):
    """A connection that is cut every 150 kB is cut more often than there are tries in a row; progress counts."""
    with serving({MODEL: TINY}, [lambda h, a: a.first > 0 and cut_after(150_000)(h, a)]) as server:
        limits = remote.Limits(tries=3, progress=1 << 17)
        from mtpref.heads.fetch import look

        with Client(limits) as client, look(client, server.url + MODEL) as found:
            from mtpref.files.gguf import WriteOptions

            found.take(tmp_path / "mtp.gguf", WriteOptions())
            assert client.meter.n_retries > limits.tries
    assert (tmp_path / "mtp.gguf").read_bytes() == reference


def test_waits_grow_and_the_server_may_ask_for_more(tmp_path):
    waits = []

    def busy(h, a):
        codes = {0: (503, {}), 1: (429, {"Retry-After": "7"}), 2: (500, {}), 3: (502, {})}
        n = len(h.state.asked) - 1
        return n in codes and h.answer(codes[n][0], b"", codes[n][1])

    with serving({MODEL: TINY}, [busy]) as server:
        client = Client(remote.Limits(pause=0.5, longest=1.5), sleep=waits.append)
        from mtpref.files.remote import RemoteFile

        file = RemoteFile(client, parse_address(server.url + MODEL))
        assert file.size == len(TINY)
    assert waits == [0.5, 7.0, 1.5, 1.5]


def test_one_connection_serves_many_requests(shards, capsys):
    ports = set()

    def note(h, a):
        ports.add(h.client_address[1])
        return False

    with serving(shards, [note]) as server:
        assert run(capsys, f"{server.url}/s/m-00001-of-00004.gguf")[0] == 0
        assert len(server.asked) == 4
    assert len(ports) == 1


def test_an_idle_connection_that_the_server_closed_is_opened_again(shards, capsys):
    def closes(h, a):
        h.close_connection = True  # and does not say so
        return False

    with serving(shards, [closes]) as server:
        code, out, _ = run(capsys, f"{server.url}/s/m-00001-of-00004.gguf")
    assert code == 0
    assert "tries again" not in out


def test_a_server_without_versions_is_said_to_be_one(tmp_path, capsys, reference):
    def plain(h, a):
        last = min(a.last, len(TINY) - 1)
        return h.answer(206, TINY[a.first : last + 1], {"Content-Range": f"bytes {a.first}-{last}/{len(TINY)}"})

    with serving({MODEL: TINY}, [plain]) as server:
        code, out, _ = run(capsys, server.url + MODEL)
        assert code == 0
        assert "note    unversioned" in out


def test_a_small_file_may_come_whole(tmp_path, capsys):
    write_gguf(tmp_path / "m.gguf", [("general.architecture", "llama", "str")], [])
    body = (tmp_path / "m.gguf").read_bytes()
    with serving({MODEL: body}, [lambda h, a: h.answer(200, body)]) as server:
        assert "architecture 'llama'" in run(capsys, server.url + MODEL)[2]


def test_a_query_is_sent_and_never_shown(capsys):
    with serving({MODEL: TINY}, [lambda h, a: "key=secret" not in h.path and h.answer(403, b"")]) as server:
        code, out, _ = run(capsys, f"{server.url}{MODEL}?key=secret")
        assert (code, "secret" in out) == (0, False)
        code, _, err = run(capsys, f"{server.url}{MODEL}?key=secre")
        assert (code, "secre" in err) == (2, False)


# TOKENS


def bearers(server):
    return [a.headers.get("Authorization") for a in server.asked]


def test_a_token_stays_with_its_host():
    """The host redirects to another, which redirects back: the other never sees it, and the host not again."""
    with serving() as hub, serving() as other:
        hub.rules.append(
            lambda h, a: a.path == "/a" and h.answer(302, b"", {"Location": f"{other.url}/b", "X-Linked-Etag": '"x"'})
        )
        other.rules.append(lambda h, a: a.path == "/b" and h.answer(307, b"", {"Location": f"{hub.url}/c"}))
        hub.files["/c"] = b"found"
        with Client(token=Token(parse_address(hub.url).origin, "hf_secret")) as client:
            answer = client.get(parse_address(f"{hub.url}/a"))
            assert (answer.read(9), answer.linked) == (b"found", '"x"')
            answer.close()
        assert bearers(hub) == ["Bearer hf_secret", None]
        assert bearers(other) == [None]


def test_a_token_is_sent_along_a_redirect_within_its_host():
    with serving({"/c": b"found"}) as hub:
        hub.rules.append(lambda h, a: a.path == "/a" and h.answer(302, b"moved", {"Location": "/c"}))
        with Client(token=Token(parse_address(hub.url).origin, "hf_secret")) as client:
            client.get(parse_address(f"{hub.url}/a")).close()
        assert bearers(hub) == ["Bearer hf_secret"] * 2


def test_another_port_or_scheme_is_another_host():
    with serving({"/c": b"x"}) as server:
        for origin in (("https", "127.0.0.1", parse_address(server.url).port), ("http", "127.0.0.1", 1)):
            with Client(token=Token(origin, "hf_secret")) as client:
                client.get(parse_address(f"{server.url}/c")).close()
        assert bearers(server) == [None, None]
    assert "hf_secret" not in repr(Token(("https", "h", 1), "hf_secret"))


# REPOSITORIES


@pytest.fixture
def hub(monkeypatch):
    """A hub with one repository, whose files another host keeps."""
    import huggingface_hub.constants

    with serving() as front, serving() as store:

        def api(h, a):
            if not a.path.startswith("/api/models/org/name/revision/"):
                return False
            names = [{"rfilename": path} for path in front.names]
            return h.answer(200, json.dumps({"sha": COMMIT, "siblings": names}).encode())

        def resolve(h, a):
            begin = f"/org/name/resolve/{COMMIT}/"
            path = a.path.removeprefix(begin)
            if path == a.path or path not in front.names:
                return False
            linked = {"X-Linked-Etag": f'"{len(store.files["/" + path])}"'}
            return h.answer(302, b"Found", {"Location": f"{store.url}/{path}?signature=s3cret"} | linked)

        front.names, front.store = [], store
        front.rules += [api, resolve]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", front.url)
        template = f"{front.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield front


def fill(hub, files):
    hub.names += list(files)
    hub.store.files |= {f"/{path}": body for path, body in files.items()}


@needs_hub
def test_a_repository_with_one_model(hub, tmp_path, capsys, reference, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fill(hub, {"README.md": b"# A model", "tiny-Q8_0.gguf": TINY, "mmproj-tiny.gguf": b"", "mtp-tiny.gguf": reference})
    code, out, _ = run(capsys, "hf:org/name", "--head", "-o", tmp_path / "mtp.gguf")
    assert code == 0
    assert (tmp_path / "mtp.gguf").read_bytes() == reference
    assert set(bearers(hub)) == {"Bearer hf_secret"}
    assert set(bearers(hub.store)) == {None}
    assert "s3cret" not in out
    code, out, _ = run(capsys, "hf:org/name@main")
    assert code == 0
    assert f"hf:org/name@{COMMIT[:12]}:tiny-Q8_0.gguf: GGUF version 3" in out


@needs_hub
def test_names_that_cannot_be_printed_are_not_of_the_list(hub, folder, tmp_path, capsys):
    fill(hub, {path.name: path.read_bytes() for path in folder.iterdir()})
    fill(hub, {"mtp\0.safetensors": b"", "mtp\x1b[31m.safetensors": b""})
    code, _, err = run(capsys, "hf:org/name", "--head", "-o", tmp_path / "head")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == sorted(path.name for path in folder.iterdir())


def test_an_empty_coding_packs_nothing(capsys):
    def rule(h, a):
        last = min(a.last, len(TINY) - 1)
        said = {"Content-Range": f"bytes {a.first}-{last}/{len(TINY)}", "Content-Encoding": ""}
        return h.answer(206, TINY[a.first : last + 1], said)

    with serving({MODEL: TINY}, [rule]) as server:
        assert run(capsys, server.url + MODEL)[0] == 0


@needs_hub
def test_versions_are_the_hub_s_own(hub, tmp_path, capsys, reference):
    """The store may change its marks from host to host: what counts is the hub's."""
    fill(hub, {"m.gguf": TINY})
    marks = iter(range(10**6))
    hub.store.etag = lambda path: f'"{next(marks)}"'
    assert run(capsys, "hf:org/name", "--head", "-o", tmp_path / "mtp.gguf")[0] == 0
    assert (tmp_path / "mtp.gguf").read_bytes() == reference


@needs_hub
def test_one_of_several_models(hub, shards, capsys):
    fill(hub, {"m-Q4_0.gguf": TINY, "m-Q8_0.gguf": TINY, "sub/BF16/m-BF16.gguf": TINY})
    fill(hub, {path.replace("/s/m", "sub/m-F32"): body for path, body in shards.items()})
    code, _, err = run(capsys, "hf:org/name")
    assert code == 2
    assert "4 GGUF models (m-Q4_0.gguf, m-Q8_0.gguf, sub/BF16/m-BF16.gguf, sub/m-F32-00001-of-00004.gguf)" in err
    assert "say which: hf:org/name:m-Q4_0.gguf" in err
    for name, expected in (
        ("Q8_0", "m-Q8_0.gguf"),
        ("bf16", "m-BF16.gguf"),
        ("sub/BF16/m-BF16.gguf", "m-BF16.gguf"),
        ("F32", "m-F32-00001-of-00004.gguf"),
    ):
        code, out, _ = run(capsys, f"hf:org/name@refs/pr/1:{name}")
        assert (code, f":{expected}: GGUF version" in out) == (0, True), name
    code, _, err = run(capsys, "hf:org/name:Q2_K")
    assert code == 2
    assert "0 GGUF models that 'Q2_K' names" in err


@needs_hub
def test_no_such_repository(hub, capsys, monkeypatch):
    for name, expected in (
        ("hf:org/other", "no such repository or revision"),
        ("hf:org/name", "neither a GGUF file nor config.json"),
    ):
        code, _, err = run(capsys, name)
        assert (code, expected in err, len(err.splitlines())) == (2, True, 1), err


@needs_hub
@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"sha": "main", "siblings": []}', b"<html>", b'{"sha": null, "siblings": {}}']
)
def test_a_hub_that_answers_nonsense(answer, hub, capsys):
    hub.rules.insert(0, lambda h, a: h.answer(200, answer))
    code, _, err = run(capsys, "hf:org/name")
    assert (code, len(err.splitlines())) == (2, 1)


@needs_hub
def test_a_list_without_end(hub, capsys):
    hub.rules.insert(0, lambda h, a: h.endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536))
    code, _, err = run(capsys, "hf:org/name")
    assert code == 2
    assert "more than 33.6 MB" in err


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://huggingface.co/org/name", "hf:org/name"),
        ("https://huggingface.co/org/name/", "hf:org/name"),
        ("https://hf.co/org/name/tree/v1.0", "hf:org/name@v1.0"),
        ("https://huggingface.co/org/name/blob/main/a/m-Q8_0.gguf", "hf:org/name@main:a/m-Q8_0.gguf"),
        ("https://huggingface.co/org/name/resolve/main/m.gguf", None),
        ("https://huggingface.co/org", None),
        ("https://example.org/org/name", None),
    ],
)
def test_a_page_of_the_hub_is_the_name_of_a_repository(url, name):
    """What a browser shows is what one copies."""
    assert name_of_page(parse_address(url)) == name


@needs_hub
def test_offline(hub, capsys, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, _, err = run(capsys, "hf:org/name")
    assert (code, hub.asked) == (2, [])
    assert "HF_HUB_OFFLINE is set" in err


@needs_hub
def test_a_token_with_a_line_break_is_refused(hub, capsys, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_a\r\nX: y")
    code, _, err = run(capsys, "hf:org/name")
    assert (code, hub.asked) == (2, [])
    assert "HF_TOKEN" in err


def test_without_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = run(capsys, "hf:org/name")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "needs the package huggingface_hub" in err
    assert "pip install 'mtpref[hub]'" in err


def test_urls_need_no_extra():
    """Nothing that is heavy is imported for a URL."""
    with serving({MODEL: TINY}) as server:
        code = (
            "import sys; from mtpref.front import cli; code = cli.main(['fetch', sys.argv[1]]);"
            "print(sorted({'huggingface_hub', 'fsspec', 'requests', 'httpx', 'numba'} & set(sys.modules)), code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, server.url + MODEL], capture_output=True, text=True, timeout=60
        )
    assert done.stdout.splitlines()[-1] == "[] 0", done


# CHECKPOINTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "model", *read_state())


def in_files(folder, to):
    """The same checkpoint in three files with an index, the head in the last, its fc in another."""
    shutil.copytree(folder, to)
    file = SafetensorsFile(to / "model.safetensors")
    groups, where = {1: [], 2: [], 3: []}, {}
    for i, name in enumerate(file.names):
        groups[2 if name == "mtp.fc.weight" else 3 if name.startswith("mtp.") else 1 + i % 2].append(name)
    for no, names in groups.items():
        target = f"model-{no:05d}-of-00003.safetensors"
        arrays = {name: bf16_bits(file.values(name)) for name in names}
        write_safetensors(to / target, arrays, bf16=frozenset(names))
        where |= dict.fromkeys(names, target)
    file.close()
    (to / "model.safetensors").unlink()
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return to


def served(folder, prefix="/ck"):
    return {f"{prefix}/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("layout", ["one file", "three files"])
def test_the_head_of_a_checkpoint(layout, folder, tmp_path, capsys):
    """The small folder converts to the very bytes that the whole one does, and is grafted."""
    whole = folder if layout == "one file" else in_files(folder, tmp_path / "a" / "model")
    with serving(served(whole)) as server:
        code, out, _ = run(capsys, f"{server.url}/ck/")
        assert code == 0
        assert "MTP head: 15 tensors, 1.58 MB, in" in out
        assert "ok      types: types: BF16: " in out
        small = tmp_path / "model"
        code, out, _ = run(capsys, f"{server.url}/ck/config.json", "--head", "-o", small)
        assert code == 0
        assert "17 tensors, 2.62 MB" in out
    assert {"config.json", "tokenizer.json"} < set(os.listdir(small)) <= set(os.listdir(whole))
    assert (small / "config.json").read_bytes() == (whole / "config.json").read_bytes()
    with open_checkpoint(small) as opened:
        assert all(name.startswith("mtp.") or "embed_tokens" in name or "norm" in name for name in opened.names)
    made = []
    for source in (whole, small):
        target = tmp_path / "made.gguf"
        assert cli.main(["convert", "--mtp", str(source), "-o", str(target)]) == 0
        made.append(target.read_bytes())
        target.unlink()
    assert made[0] == made[1]
    cli.main(["strip", str(TINY_PATH), "-o", str(tmp_path / "trunk.gguf")])
    words = ["graft", tmp_path / "trunk.gguf", small, "--no-probe", "-o", tmp_path / "joined.gguf"]
    assert cli.main([str(word) for word in words]) == 0
    with open_gguf(tmp_path / "joined.gguf") as joined:
        assert "blk.4.nextn.eh_proj.weight" in joined.tensors


def test_the_same_folder_twice_is_the_same_bytes(folder, tmp_path, capsys):
    with serving(served(folder)) as server:
        for name in ("a", "b"):
            assert run(capsys, f"{server.url}/ck/", "--head", "-o", tmp_path / name)[0] == 0
    seen = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert seen[0] == seen[1]


def test_a_folder_is_never_replaced(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    with serving(served(folder)) as server:
        code, _, err = run(capsys, f"{server.url}/ck/", "--head", "-o", tmp_path / "out", "--force")
        assert code == 2
        assert "several files cannot be replaced in one step" in err
        code, _, err = run(capsys, f"{server.url}/ck/", "--head", "-o", "-")
        assert code == 2
        assert "standard output cannot take" in err
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_only_files_that_hold_the_head_are_opened(folder, tmp_path, capsys):
    whole = in_files(folder, tmp_path / "model")
    where = json.loads((whole / "model.safetensors.index.json").read_text())["weight_map"]
    where |= {f"model.layers.0.extra{i}": f"model-extra-{i}.safetensors" for i in range(3)}
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with serving(served(whole)) as server:
        assert run(capsys, f"{server.url}/ck/")[0] == 0
        assert not any("extra" in a.path for a in server.asked)


def test_a_head_in_a_file_of_its_own(folder, tmp_path, capsys):
    """mtp.safetensors beside a model whose index does not list it."""
    whole = in_files(folder, tmp_path / "a" / "model")
    file = SafetensorsFile(folder / "model.safetensors")
    trunk = [name for name in file.names if not name.startswith("mtp.")]
    for path in whole.glob("*.safetensors"):
        path.unlink()
    for target, names in (("model-1.safetensors", trunk), ("mtp.safetensors", sorted(set(file.names) - set(trunk)))):
        arrays = {name: bf16_bits(file.values(name)) for name in names}
        write_safetensors(whole / target, arrays, bf16=frozenset(names))
    index = {"weight_map": dict.fromkeys(trunk, "model-1.safetensors")}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    with serving(served(whole)) as server:
        code, out, _ = run(capsys, f"{server.url}/ck/", "--head", "-o", tmp_path / "model")
    assert (code, "17 tensors" in out) == (0, True)
    made = []
    for source in (whole, tmp_path / "model"):
        assert cli.main(["convert", "--mtp", str(source), "-o", str(tmp_path / "x.gguf"), "--force"]) == 0
        made.append((tmp_path / "x.gguf").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["dropped", "part"])
def test_checkpoints_whose_head_is_not_whole(kind, tmp_path, capsys):
    state, config, tokenizer = read_state()
    lost = {"dropped": lambda name: name.startswith("mtp."), "part": lambda name: name == "mtp.fc.weight"}[kind]
    left = {name: x for name, x in state.items() if not lost(name)}
    whole = write_checkpoint(tmp_path / "model", left, config, tokenizer)
    with serving(served(whole)) as server:
        code, out, _ = run(capsys, f"{server.url}/ck/")
        assert code == 1
        assert ("head-dropped" if kind == "dropped" else "nextn.eh_proj.weight") in out
        code, _, err = run(capsys, f"{server.url}/ck/", "--head", "-o", tmp_path / "out")
        assert (code, len(err.splitlines()), (tmp_path / "out").exists()) == (2, 1, False)


@needs_hub
def test_a_checkpoint_of_a_repository(hub, folder, tmp_path, capsys):
    whole = in_files(folder, tmp_path / "a" / "model")
    fill(hub, {path.name: path.read_bytes() for path in whole.iterdir()})
    assert run(capsys, "hf:org/name")[0] == 0
    n_asked = len(hub.asked)
    assert n_asked == 1 + 2 + 3, "the list, config and index, and three files: nothing that the list lacks"
    hub.names.remove("model-00001-of-00003.safetensors")
    code, _, err = run(capsys, "hf:org/name")
    assert code == 2, "it holds what the head shares"
    assert "no file model-00001-of-00003.safetensors there" in err


def test_json_of_a_checkpoint(folder, capsys):
    with serving(served(folder)) as server:
        code, out, _ = run(capsys, f"{server.url}/ck/", "--json")
    seen = json.loads(out)
    assert (code, seen["contents"]["architecture"], seen["check"]["is_sound"]) == (0, "qwen35", True)
    assert len(seen["contents"]["tensors"]) == 17
    assert seen["read"]["n_saved"] > 7_000_000


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here, to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    paths = [folder / "key.pem", folder / "cert.pem"]
    command = ["openssl", *words.split(), "-keyout", str(paths[0]), "-out", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[0])
    return paths[1], context


def test_https(certificate, tmp_path, capsys, monkeypatch, reference):
    path, context = certificate
    with serving({MODEL: TINY}, tls=context) as server, serving({MODEL: TINY}) as plain:
        code, _, err = run(capsys, server.url + MODEL)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "its certificate is not valid" in err
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert run(capsys, server.url + MODEL, "--head", "-o", tmp_path / "mtp.gguf")[0] == 0
        assert (tmp_path / "mtp.gguf").read_bytes() == reference
        server.rules.append(lambda h, a: h.answer(302, b"", {"Location": plain.url + MODEL}))
        code, _, err = run(capsys, server.url + MODEL)
        assert (code, plain.asked) == (2, [])
        assert "expected https again" in err


def test_a_proxy(certificate, capsys, monkeypatch):
    """CONNECT goes to the proxy, with its own password; loopback goes by none."""
    path, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with serving({MODEL: TINY}, tls=context) as server, serving() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:pass@"))
        monkeypatch.setenv("no_proxy", "")
        assert run(capsys, server.url + MODEL)[0] == 0
        assert proxy.asked == []
        code, _, err = run(capsys, "https://model.example.org/m.gguf")
        assert (code, len(err.splitlines())) == (2, 1)
        assert "pass" not in err
    secret = base64.b64encode(b"me:pass").decode()
    assert secret not in err
