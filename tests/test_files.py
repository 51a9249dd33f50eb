"""The door to users' files: what may be opened, how long that takes, and that no output is an input of the same run."""

import ast
import contextlib
import gzip
import json
import os
import shutil
import socket
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.faults.diagnose import read_rates
from mtpref.files import doors as files
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.look.llama_cpp.log import MAX_LOG_BYTES, read_runs
from tests.samples import diagonal

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from fuzzing.catalogue import MICRO, cli_outcome

ROOT = Path(__file__).parent.parent
PACKAGE = Path(mtpref.__file__).parent
LOG = ROOT / "tests" / "data" / "llama_cpp" / "broken" / "healthy.micro-60-f32.log.gz"

# THE DOOR IS THE ONLY ONE

ALWAYS = {"memmap", "fromfile", "tofile", "genfromtxt", "loadtxt", "savetxt", "read_bytes", "read_text", "write_bytes",
          "write_text", "mmap", "ZipFile", "GzipFile", "mkstemp", "NamedTemporaryFile", "unlink", "rmtree"}  # fmt: skip
OF_MODULES = {"open", "replace", "rename", "link", "symlink", "remove", "move", "copy", "copy2", "copyfile"}
MODES = ("r", "w", "a", "x", "rb", "wb", "ab", "xb", "r+b", "w+b")
# File -> calls that are there for a reason: the doors themselves, the package's own files, folders of its own making.
DOORS = {
    "files/doors.py": {"os.open"},
    "files/gguf/whole.py": {"os.open", "open", "path.unlink", "os.link", "os.replace", "shutil.rmtree"},
    "files/gguf/folder.py": {"os.open", "open", "os.link", "os.symlink", "os.rename", "shutil.rmtree"},  # whole folders
    "files/holes.py": {"os.open"},  # of a file that the door has opened
    "heads/into_hf/plan.py": {"self.rename"},  # of tensors
    "files/remote/spool.py": {
        "os.open",
        "self.folder / name.unlink",
    },  # bytes of unfinished outputs, in a folder of its own
    "heads/fetch/checkpoint.py": {  # copies of small files, in a folder of its own
        "self.copies / name.write_bytes",
        "path.read_bytes",
        "self.copies / INDEX.read_bytes",
    },
    "files/tensor_files/npz.py": {"zipfile.ZipFile"},  # of a file that the door has opened
    "golden/gen.py": {"os.replace", "shutil.rmtree"},  # a whole folder, after check_output_folder
    "golden/sources.py": {"path.read_text"},  # sources of the specification
    "kernels/__init__.py": {"path.read_bytes"},  # sources of the kernels
    "kernels/compiling/cache.py": {
        "os.open",
        "open",
        "os.replace",
        "temporary.unlink",
    },  # compiled code, in a folder of its own
    "front/learn/chapter.py": {"self.path.read_text"},  # a chapter
    "look/html/page.py": {"files('mtpref') / 'look' / 'html' / name.read_text"},  # the package's own data
    "faults/diagnose/rates.py": {"files('mtpref') / 'faults' / 'diagnose' / 'signatures.json'.read_text"},
    "front/cli/__init__.py": {"os.open", "open"},  # /dev/null
    "front/cli/docs.py": {"path.read_text", "pages[name].read_text"},  # the package's own pages
    "front/cli/writing.py": {"open"},  # a file of ours, for -o -
}


def opening_calls(tree: ast.AST) -> set[str]:
    """Calls that open, make or remove a file, as they are written; text.replace and the like are no such calls."""
    found = set()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        if isinstance(call.func, ast.Name) and call.func.id == "open":
            found.add("open")
        elif isinstance(call.func, ast.Attribute):
            name, of = call.func.attr, ast.unparse(call.func.value)
            # Path.open has a mode or nothing, Path.replace and rename one argument; others' methods have more.
            mode = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
            is_path = (name == "open" and (not call.args or mode in MODES)) or (
                name in ("replace", "rename") and len(call.args) == 1
            )
            if name in ALWAYS or is_path or (name in OF_MODULES and of in ("os", "io", "gzip", "shutil")):
                found.add(f"{of}.{name}")
    return found


def test_only_the_door_opens_users_files():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("learn/chapters/") and (calls := opening_calls(ast.parse(path.read_text()))):
            found[name] = calls
    assert found == DOORS


def test_the_parser_of_this_test_sees_every_way_to_open():
    for text in ("open(p)", "p.open('rb')", "Path(p).open()", "p.read_bytes()", "Path(p).read_text()", "os.open(p, 0)",
                 "np.memmap(p)", "gzip.open(p)", "zipfile.ZipFile(p)", "os.replace(a, b)", "p.write_bytes(x)",
                 "mmap.mmap(1, 0)", "path.replace(b)", "shutil.copy2(a, b)", "p.unlink()"):  # fmt: skip
        assert opening_calls(ast.parse(text)), text
    assert not opening_calls(
        ast.parse("a.replace('x', 'y'); session.open(model, 1, say); names.remove(n); replace(a, b=1)")
    )


# AN OUTPUT IS NO INPUT


@pytest.fixture
def bench(tmp_path):
    """A model, a text, a trace, a log, ids: what verbs read."""
    shutil.copy(MICRO, tmp_path / "m.gguf")
    (tmp_path / "t.txt").write_bytes(b"a text of some words. " * 40)
    (tmp_path / "x.jsonl").write_bytes(b'{"event": "RunStarted"}\n')
    (tmp_path / "ids").write_bytes(b"1\n2\n3\n")
    return tmp_path


MODEL = ["-m", "m.gguf"]
SHORT = [*MODEL, "-n", "2"]
CLASHES = {
    "trace over the model": (["generate", *SHORT, "-p", "a", "--trace", "m.gguf"], "m.gguf"),
    "trace over the prompt": (["generate", *SHORT, "-f", "t.txt", "--trace", "t.txt"], "t.txt"),
    "trace over the head": (["generate", *SHORT, "-p", "a", "-md", "ids", "--trace", "ids"], "ids"),
    "trace over ids": (["generate", *SHORT, "-p", "a", "--spec-draft-vocab", "ids", "--trace", "ids"], "ids"),
    "trace over a template": (
        ["generate", *SHORT, "-p", "a", "--chat", "--chat-template", "t.txt", "--trace", "t.txt"],
        "t.txt",
    ),
    "cache over the prompt": (["generate", *SHORT, "-f", "t.txt", "--prompt-cache", "t.txt"], "t.txt"),
    "cache over the model": (["generate", *SHORT, "-p", "a", "--prompt-cache", "m.gguf"], "m.gguf"),
    "cache and trace": (["generate", *SHORT, "-p", "a", "--prompt-cache", "n", "--trace", "./n"], None),
    "ids over the text": (["draft-vocab", *MODEL, "-f", "t.txt", "-n", "9", "--no-measure", "-o", "t.txt"], "t.txt"),
    "ids over the model": (["draft-vocab", *MODEL, "-f", "t.txt", "-n", "9", "--no-measure", "-o", "m.gguf"], "m.gguf"),
    "dump over the model": (["dump", *MODEL, "-p", "a", "-o", "m.gguf"], "m.gguf"),
    "dump over the prompt": (["dump", *MODEL, "-f", "t.txt", "-o", "t.txt"], "t.txt"),
    "page over the trace": (["trace", "html", "x.jsonl", "-o", "x.jsonl"], "x.jsonl"),
    "report over a dump": (["compare", "m.gguf", "m.gguf", "--html", "m.gguf"], "m.gguf"),
    "costs over the text": (["plan", *MODEL, "-f", "t.txt", "--save-costs", "t.txt"], "t.txt"),
    "imatrix over the text": (["imatrix", *MODEL, "-f", "t.txt", "-o", "t.txt", "--force"], "t.txt"),
    "quantised over its imatrix": (["quantize", "m.gguf", "ids", "Q8_0", "--imatrix", "ids", "--force"], "ids"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_no_verb_writes_over_what_it_reads(bench, name):
    argv, lost = CLASHES[name]
    before = {path.name: path.read_bytes() for path in bench.iterdir()}
    code, out, err = cli_outcome(argv, bench)
    assert (code, out) == (2, ""), err
    expected = "is one of the inputs" if lost else "is named for two outputs"
    assert expected in err.splitlines()[-1], err
    assert {path.name: path.read_bytes() for path in bench.iterdir()} == before


@pytest.mark.parametrize("kind", ["symbolic", "hard", "other spelling"])
def test_links_to_an_input_are_known(bench, kind):
    name = "link" if kind != "other spelling" else "../" + bench.name + "/m.gguf"
    if kind == "symbolic":
        (bench / "link").symlink_to("m.gguf")
    elif kind == "hard":
        os.link(bench / "m.gguf", bench / "link")
    code, _, err = cli_outcome(["generate", *SHORT, "-p", "a", "--trace", name], bench)
    assert code == 2
    assert "is one of the inputs" in err
    assert (bench / "m.gguf").read_bytes() == MICRO.read_bytes()


def test_a_cache_is_brought_up_to_date_and_may_be_read_alone(bench):
    argv = ["generate", *SHORT, "-p", "a", "--prompt-cache", "c"]
    for more in ([], [], ["--prompt-cache-ro"]):
        assert cli_outcome([*argv, *more], bench)[0] == 0
    held = (bench / "c").read_bytes()
    code, _, err = cli_outcome([*argv, "--prompt-cache-ro", "--trace", "c"], bench)
    assert (code, "is one of the inputs" in err) == (2, True)
    assert (bench / "c").read_bytes() == held


def test_a_refused_run_keeps_an_older_trace_and_a_good_one_replaces_it(bench):
    (bench / "old.jsonl").write_bytes(b"older\n" * 100_000)
    assert cli_outcome(["generate", *SHORT, "-p", "", "--trace", "old.jsonl"], bench)[0] == 2
    assert (bench / "old.jsonl").read_bytes() == b"older\n" * 100_000
    assert cli_outcome(["generate", *SHORT, "-p", "a", "--trace", "old.jsonl"], bench)[0] == 0
    assert {json.loads(line)["event"] for line in (bench / "old.jsonl").read_bytes().splitlines()} >= {"RunStarted"}


def test_vectors_do_not_replace_a_folder_that_holds_an_input(bench):
    (bench / "g").mkdir()
    (bench / "g" / "manifest.json").write_bytes(b"{}")
    shutil.move(bench / "t.txt", bench / "g" / "t.txt")
    code, _, err = cli_outcome(["golden", "gen", *MODEL, "-f", "g/t.txt", "-n", "0", "-o", "g"], bench)
    assert code == 2
    assert "one of the inputs" in err
    assert (bench / "g" / "t.txt").exists()


def test_a_library_may_replace_what_it_has_read(tmp_path):
    from mtpref.files.gguf import write_whole

    (tmp_path / "f").write_bytes(b"old")
    assert files.read_regular(tmp_path / "f", "f", "expected", 9) == b"old"
    write_whole(tmp_path / "f", b"new")
    with files.guarded():
        files.read_regular(tmp_path / "f", "f", "expected", 9)
        with pytest.raises(MtprefError, match="is one of the inputs"):
            write_whole(tmp_path / "f", b"newer")


# WHAT IS NO FILE


@pytest.fixture
def odd(bench):
    os.mkfifo(bench / "pipe")
    (bench / "zero").symlink_to("/dev/zero")
    (bench / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(bench)
        listening.bind("socket")
        os.chdir(here)
        yield bench


READERS = {
    "model": ["inspect", "ODD"],
    "head": ["generate", *SHORT, "-p", "a", "-md", "ODD"],
    "prompt": ["generate", *SHORT, "-f", "ODD"],
    "ids": ["generate", *SHORT, "-p", "a", "--spec-draft-vocab", "ODD"],
    "template": ["generate", *SHORT, "-p", "a", "--chat", "--chat-template", "ODD"],
    "cache": ["generate", *SHORT, "-p", "a", "--prompt-cache", "ODD"],
    "trace": ["trace", "show", "ODD"],
    "page": ["trace", "html", "ODD", "-o", "page.html"],
    "tensors": ["compare", "m.gguf", "ODD"],
    "log": ["compare-log", *MODEL, "-p", "a", "ODD"],
    "port": ["diagnose", *MODEL, "-p", "a", "--log", "ODD"],
    "dump": ["diagnose", *MODEL, "-p", "a", "--dump", "ODD"],
    "texts": ["probe", *MODEL, "-f", "ODD"],
    "corpus": ["draft-vocab", *MODEL, "-f", "ODD", "-n", "9", "--no-measure", "-o", "out"],
    "costs": ["plan", *MODEL, "-f", "t.txt", "--costs", "ODD"],
    "imatrix": ["quantize", "m.gguf", "out", "Q8_0", "--imatrix", "ODD"],
    "to quantise": ["quantize", "ODD", "out", "Q8_0"],
}


@pytest.mark.parametrize(("name", "kind"), diagonal(tuple(READERS), ("pipe", "zero", "folder", "socket")))
def test_what_is_no_file_is_refused_at_once(odd, name, kind):
    start = time.process_time()
    code, out, err = cli_outcome([kind if word == "ODD" else word for word in READERS[name]], odd)
    assert (code, out) == (2, ""), err
    words = {"pipe": ("a pipe",), "zero": ("a device",), "folder": ("a folder", "directory"), "socket": ("a socket",)}
    assert any(word in err.splitlines()[-1] for word in words[kind]), err
    assert time.process_time() - start < 2


@pytest.mark.parametrize("file", ["manifest.json", "L0-dequantize/dequantize.json"])
@pytest.mark.parametrize("kind", ["zero", "pipe"])
def test_a_golden_folder_that_points_outside_ends(odd, file, kind):
    manifest = json.loads((ROOT / "golden" / "manifest.json").read_bytes())
    suite = next(s["path"] for s in manifest["suites"])
    (odd / "g" / suite).parent.mkdir(parents=True)
    shutil.copy(ROOT / "golden" / "manifest.json", odd / "g")
    target = odd / "g" / (file if file == "manifest.json" else suite)
    target.unlink(missing_ok=True)
    target.symlink_to(odd / kind)
    for verb in (["list"], ["check"], ["export", "--format", "npz", "-o", "out"]):
        code, _, err = cli_outcome(["golden", verb[0], "g", *verb[1:]], odd)
        assert code == 2
        assert ("a device" if kind == "zero" else "a pipe") in err


# TEXTS COME THROUGH PIPES


def fed(path: Path, raw: bytes) -> threading.Thread:
    """A pipe, and a thread that writes to it."""
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: path.write_bytes(raw))
    thread.start()
    return thread


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_log_comes_through_a_pipe(tmp_path, is_packed):
    from mtpref.faults.diagnose import read_port_runs

    raw = LOG.read_bytes() if is_packed else gzip.decompress(LOG.read_bytes())
    thread = fed(tmp_path / "pipe", raw)
    found = read_port_runs(tmp_path / "pipe")
    thread.join()
    assert [run.rounds for run in found] == [run.rounds for run in read_port_runs(LOG)]


def test_prompts_and_traces_come_through_pipes(bench):
    thread = fed(bench / "pipe", b"a text")
    assert cli_outcome(["generate", *SHORT, "-f", "pipe", "--trace", "x.jsonl"], bench)[0] == 0
    thread.join()
    shown = cli_outcome(["trace", "show", "x.jsonl"], bench)
    thread = fed(bench / "pipe2", (bench / "x.jsonl").read_bytes())
    assert cli_outcome(["trace", "show", "pipe2"], bench) == shown
    thread.join()


def test_a_pipe_s_reader_sees_a_trace(bench):
    os.mkfifo(bench / "pipe")
    seen = []
    thread = threading.Thread(target=lambda: seen.append((bench / "pipe").read_bytes()))
    thread.start()
    time.sleep(0.2)
    assert cli_outcome(["generate", *SHORT, "-p", "a", "--trace", "pipe"], bench)[0] == 0
    thread.join()
    assert b"RunEnded" in seen[0]
    code, _, err = cli_outcome(["generate", *SHORT, "-p", "a", "--trace", "pipe"], bench)
    assert (code, "a pipe that nobody reads" in err) == (2, True)


@pytest.mark.parametrize("cut", [0, 1, 7, 1 << 16])
def test_packed_pieces_are_the_text(tmp_path, cut):
    raw = b"".join(b"line %d\r\n" % i for i in range(300_000))
    archives = gzip.compress(raw[:cut]) + gzip.compress(raw[cut:])
    (tmp_path / "x").write_bytes(archives)
    with files.open_text(tmp_path / "x", "x", "expected") as file:
        pieces = list(files.unpacked(file, "x", "expected"))
    assert b"".join(pieces) == raw
    assert max(map(len, pieces)) <= files.PIECE
    (tmp_path / "x").write_bytes(archives[:-9])
    with files.open_text(tmp_path / "x", "x", "expected") as file, pytest.raises(MtprefError, match="ends early"):
        list(files.unpacked(file, "x", "expected"))


# WHAT IT COSTS


def peak_of(run) -> int:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_small_archive_of_a_large_log_costs_no_more_than_the_limit(tmp_path):
    (tmp_path / "x.log.gz").write_bytes(gzip.compress(bytes(2 * MAX_LOG_BYTES)))

    def run():
        with pytest.raises(MtprefError, match="more than 32 MiB"):
            read_runs(tmp_path / "x.log.gz")

    assert peak_of(run) < 2 * MAX_LOG_BYTES + (16 << 20)


def test_a_large_imatrix_is_not_read_whole(tmp_path):
    from mtpref.heads.quantize.importance import read_importance

    for start in (
        b"\0\0\0\0",
        b"\1\0\0\0" + b"\1\0\0\0a" + b"\1\0\0\0" + (1 << 24).to_bytes(4, "little"),
        b"\xff\xff\0\0",
    ):
        with (tmp_path / "i.dat").open("wb") as file:
            file.write(start)
            file.truncate(3 << 30)

        def run():
            with contextlib.suppress(MtprefError):
                read_importance(tmp_path / "i.dat")

        assert peak_of(run) < 200 << 20


def test_the_tiny_model_is_found_by_its_own_name():
    with files.open_regular(tiny_path(), "tiny", "expected") as file:
        assert file.read(4) == b"GGUF"


LINE = "draft acceptance rate = 0.36667 (44 accepted / 120 generated)\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_logs_as_powershell_writes_them(tmp_path, capsys, encoding):
    log = tmp_path / "run.log"
    log.write_bytes(LINE.replace("\n", "\r\n").encode(encoding))
    found = read_rates(log)
    assert found is not None
    assert (found.accepted, found.drafted) == (44, 120)
    log.write_bytes('{"schema": "mtpref-run-1", "prompt_ids": [1], "rounds": []}'.encode("utf-8-sig"))
    assert main(["diagnose", "--log", str(log), "-m", "no-such.gguf"]) == 2  # refused before a model is looked for
    assert f"{log}: run.rounds is a list of length 0" in capsys.readouterr().err


def test_zeros_after_an_archive_are_no_archive(tmp_path):
    log = tmp_path / "run.log.gz"
    packed = gzip.compress(LINE.encode())
    log.write_bytes(packed + bytes(700) + packed + bytes(100_000))
    found = read_rates(log)
    assert found is not None
    assert (found.accepted, found.drafted) == (88, 240)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that opens and cannot be read")
def test_a_file_that_opens_and_cannot_be_read_is_the_one_that_is_named():
    with pytest.raises(MtprefError, match=r"^/proc/self/mem: cannot be read \(Input/output error\); expected a log"):
        read_rates("/proc/self/mem")
