"""Servers that break the rules: whatever they do, `mtpref fetch` ends in one line, soon, and leaves nothing behind."""

import functools
import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from mtpref.files import remote
from mtpref.front import cli
from tests.hf_folder import read_state, write_checkpoint
from tests.range_server import serving

TINY = (Path(__file__).parent.parent / "mtpref/data/tiny.gguf").read_bytes()
MODEL, CONFIG, INDEX, WHOLE = (
    "/m/tiny.gguf",
    "/ck/config.json",
    "/ck/model.safetensors.index.json",
    "/ck/model.safetensors",
)
OK206 = b"HTTP/1.1 206 Partial Content\r\n"
SOON = 2.0  # seconds
MEMORY = 64 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("hf") / "hf", *read_state())
    return {MODEL: TINY} | {f"/ck/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The limits of the command line with less patience: what is tested is that there is an end."""
    limits = functools.partial(remote.Limits, tries=4, pause=0.01, longest=0.03)
    monkeypatch.setattr(remote, "Limits", limits)


# EVERY REQUEST


def raw(*pieces):
    """An answer of these bytes, whatever was asked."""
    return lambda h, a: h.raw(b"".join(pieces))


def status(code, *headers):
    return raw(f"HTTP/1.1 {code} Said\r\nContent-Length: 0\r\n".encode(), *headers, b"\r\n")


def moved(to):
    return lambda h, a: h.answer(302, b"", {"Location": to})


def partial(content_range, n, **headers):
    """A 206 with this Content-Range and n bytes."""
    return lambda h, a: h.answer(206, TINY[:n], {"Content-Range": content_range} | headers)


def ranged(shift=0, more=0, size=0):
    """The bytes that were asked for, announced or given a little off."""

    def rule(h, a):
        first, last = a.first + shift, min(a.last, len(TINY) - 1) + shift + more
        said = f"bytes {first}-{last}/{len(TINY) + size}"
        return h.answer(206, TINY[first : last + 1], {"Content-Range": said})

    return rule


def circle(h, a):
    return h.answer(301, b"", {"Location": "/a" if a.path == "/b" else "/b"})


def longer_and_longer(h, a):
    return h.answer(307, b"", {"Location": f"{a.path}x"})


def stalled(h, a):
    time.sleep(1.5)
    return h.cut()


def trickled(h, a):
    return h.endless(OK206 + b"Content-Length: 262144\r\nContent-Range: bytes 0-262143/4289888\r\n\r\n", b"G", 0.02)


CHUNKED = b"Transfer-Encoding: chunked\r\nContent-Range: bytes 0-262143/4289888\r\n\r\n"

# name -> (rule, a part of the line); of every request for the model's file
EVERY = {
    "no ranges": (lambda h, a: h.answer(200, TINY), "does not give parts of a file"),
    "no ranges, endless": (lambda h, a: h.endless(b"HTTP/1.1 200 OK\r\n\r\n", TINY[:65536]), "does not give parts"),
    "no range named": (lambda h, a: h.answer(206, TINY[:100]), "names the range 'none'"),
    "nonsense for a range": (partial("bytes 0-x/9", 10), "names the range"),
    "negative range": (partial("bytes -5-9/99", 10), "names the range"),
    "unknown size": (partial("bytes 0-262143/*", 262144), "names the range"),
    "range of another unit": (partial("lines 0-262143/4289888", 262144), "names the range"),
    "digits of another script": (
        partial("bytes 0-\N{SUPERSCRIPT TWO}/9".encode().decode("latin-1"), 10),
        "names the range",
    ),
    "another beginning": (ranged(shift=1), "was asked for bytes 0 to 262143 and gives 1 to 262144"),
    "one byte too many": (ranged(more=1), "and gives 0 to 262144"),
    "end before beginning": (partial("bytes 0-0/0", 0), "the file is empty"),
    "range beyond the end": (partial("bytes 0-262143/1000", 262144), "gives 0 to 262143 of 1000"),
    "impossible size": (partial(f"bytes 0-262143/{10**15}", 262144), f"of {10**15}"),
    "a byte at a time": (partial("bytes 0-0/4289888", 1), "gives 0 to 0"),
    "other length than range": (partial("bytes 0-262143/4289888", 99), "announces bytes 0 to 262143 and sends 99"),
    "several ranges": (
        lambda h, a: h.answer(206, b"--x", {"Content-Type": "multipart/byteranges; boundary=x"}),
        "names the range",
    ),
    "gzip after identity": (
        raw(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-262143/4289888\r\nContent-Length: 262144\r\n"
            b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n\r\n",
            TINY[:262144],
        ),
        "packs what it sends (gzip)",
    ),
    "gzip": (partial("bytes 0-262143/4289888", 262144, **{"Content-Encoding": "gzip"}), "packs what it sends (gzip)"),
    "endless body in chunks": (
        lambda h, a: h.endless(OK206 + CHUNKED, b"1\r\nG\r\n" * 4096),
        "begins with 'GGGG', expected 'GGUF'",
    ),
    "a chunk of nonsense": (raw(OK206, CHUNKED, b"zz\r\n"), "cannot be read"),
    "a chunk without end": (lambda h, a: h.endless(OK206 + CHUNKED, b"1" * 65536), "no HTTP"),
    "many headers": (raw(OK206, b"X: y\r\n" * 200, b"\r\n"), "no HTTP"),
    "one huge header": (lambda h, a: h.endless(OK206 + b"X: ", b"y" * 65536), "endless headers"),
    "endless headers": (lambda h, a: h.endless(OK206, b"X: y\r\n" * 50), "no HTTP"),
    "continue for ever": (lambda h, a: h.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99), "endless headers"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "no HTTP"),
    "another HTTP": (raw(b"HTTP/9.9 200 OK\r\n\r\n"), "no HTTP"),
    "a number without end": (raw(b"HTTP/1.1 " + b"2" * 5000 + b"\r\n\r\n"), "no HTTP"),
    "zeros": (raw(bytes(5000)), "no HTTP"),
    "nothing": (lambda h, a: h.cut(), "cannot be read"),
    "cut in the headers": (raw(OK206 + b"Content-"), "(HTTP 206 to a range)|names the range"),
    "silence": (stalled, "cannot be read"),
    "slow headers": (lambda h, a: h.endless(OK206, b"X", 0.02), "no answer in time|no whole answer in time"),
    "a trickle": (trickled, "bytes a second"),
    "to file:": (moved("file:///etc/passwd"), "scheme 'file'"),
    "to ftp:": (moved("ftp://127.0.0.1/x"), "scheme 'ftp'"),
    "to data:": (moved("data:text/plain,GGUF"), "scheme 'data'"),
    "to http elsewhere": (moved("http://198.51.100.7/x.gguf"), "expected https (http is read from this machine"),
    "to a name that looks like here": (moved("http://localhost.example.org/"), "expected https"),
    "to a user": (moved("http://me:secret@127.0.0.1/x"), "a user name in a URL"),
    "to nowhere": (moved(""), "does not say where to"),
    "to no URL": (moved("http://[::1"), "no URL"),
    "to a port that is none": (moved("http://127.0.0.1:99999/"), "no URL"),
    "to blanks": (moved("http://127.0.0.1/a b"), "blanks"),
    "to a very long URL": (moved("/" + "a" * 20000), "20"),
    "in a circle": (circle, "redirects in a circle"),
    "to itself": (lambda h, a: h.answer(308, b"", {"Location": a.path}), "redirects in a circle"),
    "on and on": (longer_and_longer, "more than 5 times"),
    "bad request": (status(400), "the server refuses (HTTP 400)"),
    "no token": (status(401), "wants a token; set HF_TOKEN"),
    "forbidden": (status(403), "(HTTP 403)"),
    "not there": (status(404), "not found"),
    "gone": (status(410), "gone (HTTP 410)"),
    "no such range": (status(416), "does not give bytes 0 to 262143 (HTTP 416)"),
    "an empty file": (status(416, b"Content-Range: bytes */0\r\n"), "the file is empty"),
    "for legal reasons": (status(451), "(HTTP 451)"),
    "always busy": (status(503), "busy (HTTP 503) (4 tries)"),
    "always 500": (status(500), "busy (HTTP 500) (4 tries)"),
    "too many requests": (status(429, b"Retry-After: 9999\r\n"), "asks to wait 9999 s"),
    "wait for ever": (status(503, b"Retry-After: 99999999999999999999999\r\n"), "asks to wait"),
    "wait for nonsense": (status(503, b"Retry-After: soon\r\n"), "(4 tries)"),
    "not modified": (status(304), "HTTP 304 to a range"),
    "status 999": (status(999), "(HTTP 999)"),
    "no content": (status(204), "HTTP 204 to a range"),
}
PATIENT = {"silence", "slow headers", "a trickle"}


def refused(capsys, argv, folder, *, soon=SOON):
    """The one line of a run that is refused; nothing is left in the folder."""
    begin = time.monotonic()
    code = cli.main([str(word) for word in argv])
    seconds = time.monotonic() - begin
    done = capsys.readouterr()
    lines = done.err.splitlines()
    assert (code, done.out, len(lines)) == (2, "", 1), done
    assert seconds < soon, done.err
    assert list(folder.iterdir()) == []
    return lines[0]


@pytest.mark.parametrize("name", EVERY)
def test_every_answer_is_wrong(name, files, tmp_path, capsys):
    rule, text = EVERY[name]
    patience = ["--timeout", "0.2"] if name in PATIENT else []
    with serving(files, [rule]) as server:
        line = refused(
            capsys, ["fetch", f"{server.url}{MODEL}", "--head", "-o", tmp_path / "out.gguf", *patience], tmp_path
        )
    assert any(one in line for one in text.split("|")), line
    assert len(line) < 2100


@pytest.mark.parametrize(
    "name", ["no ranges, endless", "endless body in chunks", "one huge header", "a chunk without end"]
)
def test_memory_is_bounded(name, files, tmp_path, capsys):
    with serving(files, [EVERY[name][0]]) as server:
        refused(capsys, ["fetch", f"{server.url}{MODEL}"], tmp_path)  # what is imported stays
        tracemalloc.start()
        try:
            refused(capsys, ["fetch", f"{server.url}{MODEL}"], tmp_path, soon=8.0)
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()


# WHILE THE HEAD IS READ


def after(first, rule):
    """The rule for requests from this byte on, those before by the book."""
    return lambda h, a: a.first is not None and a.first >= first and rule(h, a)


def changed(h, a, **headers):
    last = min(a.last, len(TINY) - 1)
    said = {"Content-Range": f"bytes {a.first}-{last}/{len(TINY)}", "ETag": h.state.etag(a.path)} | headers
    return h.answer(206, TINY[a.first : last + 1], said)


LATER = {
    "another version": (lambda h, a: changed(h, a, ETag='"other"'), "changed on the server while it was read"),
    "no version any more": (lambda h, a: changed(h, a, ETag=""), "now 4289888 bytes, without a version"),
    "another size": (
        lambda h, a: changed(h, a, **{"Content-Range": f"bytes {a.first}-{min(a.last, len(TINY) - 1)}/{1 << 30}"}),
        f"now {1 << 30} bytes",
    ),
    "the whole file": (lambda h, a: h.answer(200, TINY, {"ETag": h.state.etag(a.path)}), "HTTP 200 to a range"),
    "another range": (lambda h, a: changed(h, a, **{"Content-Range": f"bytes 0-9/{len(TINY)}"}), "gives 0 to 9"),
    "not there any more": (lambda h, a: h.answer(404, b""), "not found"),
    "cut, again and again": (
        lambda h, a: h.raw(
            OK206
            + f"ETag: {h.state.etag(a.path)}\r\nContent-Length: {a.last - a.first + 1}\r\n"
            f"Content-Range: bytes {a.first}-{a.last}/{len(TINY)}\r\n\r\n".encode()
        ),
        "the connection was cut (4 tries)",
    ),
    "a body without end": (
        lambda h, a: h.endless(
            OK206
            + f"ETag: {h.state.etag(a.path)}\r\nTransfer-Encoding: chunked\r\n"
            f"Content-Range: bytes {a.first}-{a.last}/{len(TINY)}\r\n\r\n".encode(),
            b"1\r\nG\r\n" * 4096,
        ),
        "",
    ),
    "refused": (lambda h, a: h.answer(403, b""), "(HTTP 403)"),
    "away": (lambda h, a: h.answer(302, b"", {"Location": "file:///etc/passwd"}), "scheme 'file'"),
}


@pytest.mark.parametrize("name", LATER)
def test_the_server_goes_wrong_under_way(name, files, tmp_path, capsys):
    rule, text = LATER[name]
    with serving(files, [after(300_000, rule)]) as server:
        assert cli.main(["fetch", f"{server.url}{MODEL}"]) == 0  # the header is all right
        capsys.readouterr()
        if name == "a body without end":  # the bytes that were asked for, then more: those are not read
            assert cli.main(["fetch", f"{server.url}{MODEL}", "--head", "-o", str(tmp_path / "out.gguf")]) == 0
            return
        line = refused(capsys, ["fetch", f"{server.url}{MODEL}", "--head", "-o", tmp_path / "out.gguf"], tmp_path)
        assert text in line


def test_what_comes_after_a_body_is_not_read(files, tmp_path, capsys):
    """Trailers without end, after the very bytes that were asked for."""

    def rule(h, a):
        last = min(a.last, len(TINY) - 1)
        said = f"Transfer-Encoding: chunked\r\nContent-Range: bytes {a.first}-{last}/{len(TINY)}\r\n\r\n".encode()
        body = TINY[a.first : last + 1]
        return h.endless(OK206 + said + b"%x\r\n" % len(body) + body + b"\r\n0\r\n", b"X: y\r\n" * 4096)

    with serving(files, [rule]) as server:
        assert cli.main(["fetch", f"{server.url}{MODEL}", "--head", "-o", str(tmp_path / "out.gguf")]) == 0
        assert "neither ETag nor Last-Modified" not in capsys.readouterr().out


# CONTENTS


def text(n):
    return struct.pack("<Q", n)


GGUF = b"GGUF" + struct.pack("<I", 3)
CONTENTS = {
    "a page": (b"<!doctype html><title>Sign in</title>", "perhaps an HTML page"),
    "nothing of a GGUF": (b"GGUF", "cut short"),
    "a text of a petabyte": (GGUF + text(0) + text(1) + text(1) + b"k" + struct.pack("<I", 8) + text(1 << 50), "needs"),
    "a million keys": (GGUF + text(0) + text(1 << 40), "keys declared"),
    "tensors beyond the end": (TINY[:100_000], "cut short"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_there_is_no_model(name, tmp_path, capsys):
    body, expected = CONTENTS[name]
    with serving({MODEL: body}) as server:
        assert expected in refused(capsys, ["fetch", f"{server.url}{MODEL}"], tmp_path)


@pytest.mark.parametrize("kind", ["a text", "an array of bytes", "strings"])
def test_a_header_without_end(kind, tmp_path, capsys):
    """A file of terabytes, all of it header: refused where no real header is as long."""
    size = 1 << 42
    begin = GGUF + text(0) + text(2) + text(1) + b"k"
    begin += {
        "a text": struct.pack("<I", 8) + text(1 << 41),
        "an array of bytes": struct.pack("<II", 9, 0) + text(1 << 41),
        "strings": struct.pack("<II", 9, 8) + text(1 << 20) + text(1 << 41),
    }[kind]

    def rule(h, a):
        body = (begin + bytes(1 << 20))[a.first : a.last + 1].ljust(a.last + 1 - a.first, b"\0")
        return h.answer(206, body, {"Content-Range": f"bytes {a.first}-{a.last}/{size}"})

    with serving({}, [rule]) as server:
        line = refused(capsys, ["fetch", f"{server.url}{MODEL}"], tmp_path)
        assert "a header of more than 134 MB" in line
        assert len(server.asked) < 12


def index(weights):
    return json.dumps({"metadata": {}, "weight_map": weights}).encode()


HEAD = "mtp.fc.weight"
CHECKPOINTS = {
    "no config": ({CONFIG: None}, "no config.json there"),
    "config is no JSON": ({CONFIG: b"<html>"}, "no JSON"),
    "config is an array": ({CONFIG: b"[]"}, "expected a JSON object"),
    "config of another model": ({CONFIG: b'{"architectures": ["LlamaForCausalLM"]}'}, "LlamaForCausalLM"),
    "config nests for ever": ({CONFIG: b'{"a":' * 100_000}, "config.json"),
    "config of 5 MB": ({CONFIG: b'{"a": "' + b"x" * (5 << 20) + b'"}'}, "expected at most 4.19 MB"),
    "index is no JSON": ({INDEX: b"{"}, "index.json"),
    "index names a file above": (
        {INDEX: index({HEAD: "../../etc/passwd.safetensors"})},
        "expected a .safetensors file",
    ),
    "index names a URL": ({INDEX: index({HEAD: "http://x/y.safetensors"})}, "expected a .safetensors file"),
    "index names a file with a zero byte": ({INDEX: index({HEAD: "a\0b.safetensors"})}, "expected a .safetensors file"),
    "index names a file of colours": ({INDEX: index({HEAD: "\x1b[31m.safetensors"})}, "expected a .safetensors file"),
    "index names a file that is not there": ({INDEX: index({HEAD: "model-9.safetensors"})}, "not found"),
    "index names a thousand files": (
        {INDEX: index({f"mtp.{i}": f"model-{i}.safetensors" for i in range(1000)})},
        "a head in 1000 files",
    ),
    "index lists other tensors": ({INDEX: index({HEAD: "model.safetensors", "mtp.x": "model.safetensors"})}, "mtp.x"),
    "weights of nothing": ({WHOLE: b""}, "empty"),
    "weights of zeros": ({WHOLE: bytes(1000)}, "damaged"),
    "weights with a header of a petabyte": ({WHOLE: text(1 << 50) + b"{}"}, "a header of 1125899906842624 bytes"),
    "weights that are a page": ({WHOLE: b"<!doctype html><title>Sign in</title>"}, "damaged"),
    "no weights": ({WHOLE: None}, "not found"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_there_is_no_checkpoint(name, files, tmp_path, capsys):
    changes, expected = CHECKPOINTS[name]
    there = {path: body for path, body in {**files, **changes}.items() if body is not None}
    with serving(there) as server:
        for words in ([], ["--head", "-o", tmp_path / "out"]):
            line = refused(capsys, ["fetch", f"{server.url}/ck/", *words], tmp_path)
            assert expected in line
            assert "mtpref-fetch-" not in line, "the name of a copy, for that of the file"


@pytest.mark.parametrize("name", ["an endless config", "an endless index", "an endless tokenizer"])
def test_small_files_without_end(name, files, tmp_path, capsys):
    suffix = {"config": "config.json", "index": "index.json", "tokenizer": "tokenizer.json"}[name.split()[-1]]

    def endless(h, a):
        is_it = a.path.endswith((f"/{suffix}", f".{suffix}"))
        return is_it and h.endless(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536)

    with serving(files, [endless]) as server:
        line = refused(capsys, ["fetch", f"{server.url}/ck/", "--head", "-o", tmp_path / "out"], tmp_path)
        assert "expected a small file" in line


# NAMES

NAMES = {
    "http://example.org/m.gguf": "expected https (http is read from this machine alone",
    "ftp://example.org/m.gguf": "scheme 'ftp'",
    "file:///etc/passwd.gguf": "scheme 'file'",
    "m.gguf": "no scheme and no host",
    "https://": "no host",
    "https://me:secret@example.org/m.gguf": "a user name in a URL",
    "https://exa mple.org/m.gguf": "blanks",
    "https://example.org/a\nb.gguf": "blanks",
    "https://example.org:99999999/m.gguf": "no URL",
    "https://[::1/m.gguf": "no URL",
    "https://example.org/" + "a" * 20_000 + ".gguf": "a URL of 20025 characters",
    "https://example.org/m.bin": "expected a URL that ends in .gguf",
    "https://\N{SNOWMAN}" + "a" * 80 + ".org/m.gguf": "no URL",
    "hf:": "expected hf:ORG/NAME",
    "hf:name": "expected hf:ORG/NAME",
    "hf:../../etc/passwd": "no name of a repository",
    "hf:org/name/more": "no name of a repository",
    "hf:org/na me": "expected hf:ORG/NAME",
    "hf:org/name@": "expected hf:ORG/NAME",
    "http://127.0.0.1:1/m.gguf": "cannot be read",
    "https://127.0.0.1:1/m.gguf": "cannot be read",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(name, tmp_path, capsys):
    line = refused(capsys, ["fetch", name], tmp_path)
    assert NAMES[name] in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--head"], "--head: expected -o OUT"),
        (["-o", "x.gguf"], "-o: expected --head"),
        (["--timeout", "0"], "--timeout: 0.0 is out of range"),
        (["--timeout", "nan"], "--timeout: nan is out of range"),
        (["--head", "-o", "x", "--json"], "--json: expected it without --head"),
    ],
)
def test_flags_that_contradict(words, expected, tmp_path, capsys):
    assert expected in refused(capsys, ["fetch", "https://127.0.0.1:1/m.gguf", *words], tmp_path)
