"""The cache of compiled kernels: whatever is wrong with a file or a folder, the run goes on and one line says so."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from mtpref import kernels

if not kernels.available():
    pytest.skip("NUMBA_DISABLE_JIT is set: nothing is compiled", allow_module_level=True)

from mtpref.kernels import choices
from mtpref.kernels.compiling import cache, compile

ROOT = Path(__file__).parent.parent
LOGITS = np.array([[1, 5, 3, 5]], np.float32)
SETUP = "import numpy as np, mtpref.kernels as k\n"
ARGMAX = SETUP + "print(k.argmax(np.array([[1, 5, 3, 5]], np.float32))[0], k.compile_seconds() > 0)"


def fresh() -> compile.Kernel:
    """A small kernel that this process has neither compiled nor loaded."""
    kernel = choices._argmax
    return compile.Kernel(kernel.dispatcher.py_func, kernel.signature, False)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two empty cache folders; nothing has been said yet."""
    found = (tmp_path / "one", tmp_path / "two")
    monkeypatch.setattr(kernels, "cache_folders", lambda: found)
    monkeypatch.setattr(cache, "_said", set())
    monkeypatch.setattr(cache, "_full", set())
    return found


@pytest.fixture
def compiled(monkeypatch):
    """Counts compilations."""
    seen = []
    monkeypatch.setattr(compile, "_listener", lambda: seen.append(1))
    return seen


def run(kernel: compile.Kernel) -> int:
    out = np.empty(1, np.int64)
    kernel(LOGITS, out)
    return int(out[0])


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def with_digest(content: bytes) -> bytes:
    return cache.MAGIC + hashlib.sha256(content).digest() + content


def flipped(raw: bytes) -> bytes:
    return raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:]


class Explodes:
    def __reduce__(self):
        return (int, ("no number",))


DAMAGE = {
    "empty": lambda raw: b"",
    "header alone": lambda raw: raw[:48],
    "cut short": lambda raw: raw[: len(raw) // 2],
    "one byte short": lambda raw: raw[:-1],
    "one bit of the machine code": flipped,
    "garbage": lambda raw: os.urandom(len(raw)),
    "zeros": lambda raw: bytes(len(raw)),
    "another program's file": lambda raw: pickle.dumps("0.60.0") + raw,
    "a pickle of something else": lambda raw: with_digest(pickle.dumps([1, 2, 3])),
    "a pickle that raises": lambda raw: with_digest(pickle.dumps(Explodes())),
    "half a pickle": lambda raw: with_digest(raw[48:2000]),
    "too large": None,
    "a folder": None,
    "a fifo": None,
    "a link to a device": None,
}


def damage(path: Path, kind: str) -> None:
    change = DAMAGE[kind]
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    elif kind == "too large":
        os.truncate(path, cache.MAX_BYTES + 1)
    else:
        path.unlink()
        if kind == "a folder":
            path.mkdir()
        elif kind == "a fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The file of the kernel, compiled once: its name and its bytes."""
    folder = tmp_path_factory.mktemp("sound") / "cache"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "cache_folders", lambda: (folder,))
        assert run(fresh()) == 1
    path = only_file(folder)
    return path.name, path.read_bytes()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_compiled_again_and_replaced(sound, folders, compiled, caplog, kind):
    name, raw = sound
    folders[0].mkdir()
    path = folders[0] / name
    path.write_bytes(raw)
    assert run(fresh()) == 1
    assert (len(compiled), caplog.messages) == (0, [])
    damage(path, kind)
    assert run(fresh()) == 1
    assert len(compiled) == 1
    assert str(path) in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert len(caplog.messages) == (2 if kind == "a folder" else 1)  # that cannot be replaced
    assert run(fresh()) == 1
    assert len(compiled) == 1
    assert not list(folders[0].glob("*.tmp"))


def test_a_warm_cache_compiles_nothing_and_says_nothing(folders, compiled, caplog):
    assert run(fresh()) == run(fresh()) == 1
    assert (len(compiled), caplog.messages) == (1, [])


def test_a_folder_that_cannot_be_written_is_read_and_another_is_written(folders, compiled, caplog):
    folders[0].write_text("no folder")
    run(fresh())
    assert only_file(folders[1]).suffix == ".kernel"
    assert caplog.messages == [
        f"kernel cache: {folders[0]} cannot be written (File exists); {folders[1]} is used"
    ] or caplog.messages == [f"kernel cache: {folders[0]} cannot be written (Not a directory); {folders[1]} is used"]
    run(fresh())
    assert (len(compiled), len(caplog.messages)) == (1, 1)


def test_without_any_folder_nothing_is_kept_and_all_works(folders, compiled, caplog):
    for folder in folders:
        folder.write_text("no folder")
    assert run(fresh()) == run(fresh()) == 1
    assert len(compiled) == 2
    assert [m.rpartition(";")[2] for m in caplog.messages] == [
        f" {folders[1]} is used",
        " there is no other",
        " set NUMBA_CACHE_DIR to one that can",
    ]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=300)


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE")
def test_a_full_disk(tmp_path):
    """A limit on the size of files is a disk that fills in the middle of a write."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n{ARGMAX}; print(k.cache_folder())"
    )
    found = python(code, NUMBA_CACHE_DIR=str(tmp_path / "a"), TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))
    assert found.stdout.split() == ["1", "True", "None"]
    lines = found.stderr.splitlines()
    assert len(lines) == 3
    assert "File too large" in lines[0]
    assert "compiled kernels are not kept" in lines[2]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_clone_and_an_installed_package_share_one_cache(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mtpref", tmp_path / "clone" / "mtpref", ignore=ignored)
    code = SETUP + "told = []; k.when_compiling(lambda: told.append(1))\n" + ARGMAX + "; print(len(told), k.__file__)"
    for place, n_compiled in ((ROOT, "1"), (tmp_path / "clone", "0")):
        found = python(code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=str(place), PYTHONSAFEPATH="1")
        assert found.stderr == ""
        assert found.stdout.split()[2] == n_compiled
        assert Path(found.stdout.split()[3]).is_relative_to(place)


def test_processes_that_compile_the_same_kernel_at_once(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ARGMAX]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) for _ in range(4)]
    for process in running:
        assert process.communicate(timeout=300) == ("1 True\n", "")
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".kernel"}


def test_every_kernel_has_a_file_of_its_own():
    names = []
    for path in sorted((ROOT / "mtpref" / "kernels").rglob("*.py")):
        module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        own = {id(v): v for v in vars(module).values() if isinstance(v, compile.Kernel)}.values()
        names += [v.dispatcher._cache.name for v in own if v.dispatcher.py_func.__module__ == module.__name__]
    assert len(names) > 30
    assert len(names) == len(set(names))


def test_whatever_kernels_are_made_of_counts_in_the_name_of_their_folder():
    counted = {str(path) for path in kernels._sources()}
    rooms = ("mtpref.kernels", "mtpref.spec")
    loaded = {name: str(m.__file__) for name, m in list(sys.modules.items()) if name.startswith(rooms)}
    assert "mtpref.spec.ops.compose" in loaded
    assert set(loaded.values()) <= counted


def test_the_clock_stands_still_while_a_kernel_is_compiled(folders):
    before, stopped = kernels.clock(), kernels.compile_seconds()
    fresh().compile()
    took = kernels.compile_seconds() - stopped
    assert took > 0.02
    assert kernels.clock() - before < took


CALLS = """
import numpy as np, sys
from mtpref.kernels.products import in_place, rows

f32 = np.float32
w = np.arange(6 * 16, dtype=f32).reshape(16, 6)
x, y = np.ones((1, 6), f32), np.zeros((1, 16), f32)
raw = w.view(np.uint8).reshape(-1)


def caller():
    in_place.exact_rows_f32(raw, np.zeros((1, 1), np.int32), x, np.zeros((1, 1), np.int32), y, 0, 1)


def callee():
    rows.rows_float(0, raw, 24, x, y, 0, 16)


for name in sys.argv[1:]:
    y[:] = 0
    globals()[name]()
    assert np.array_equal(y[0], w.sum(1)), name
print([len(k.dispatcher.overloads) for k in (in_place.exact_rows_f32, rows.rows_float)])
"""


@pytest.mark.parametrize("order", [["caller", "callee"], ["callee", "caller"]])
def test_a_kernel_that_another_calls_has_one_signature_whichever_is_compiled_first(tmp_path, order):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for names in (order, order[::-1], order[1:]):  # the second and third take what the first has left on the disk
        done = subprocess.run([sys.executable, "-c", CALLS, *names], env=environment, capture_output=True, text=True)
        assert (done.stderr, max(json.loads(done.stdout))) == ("", 1), names
