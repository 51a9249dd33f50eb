"""`inspect --memory`: the table of a head's states is what files, loader and runs really take."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtpref.engine.decode import Options
from mtpref.engine.memory import head_memory, measured
from mtpref.files.gguf import WriteOptions, open_gguf, write_gguf
from mtpref.front import api, cli
from mtpref.heads import extract, strip, write_contents
from mtpref.heads.inspect.table import STATES, memory_table, n_cells
from tests.gguf_copy import copy_of
from tests.micro_moe import NAMES, standard

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref/data/tiny.gguf"
MODELS = [TINY, ROOT / "golden/models/micro-60-f32.gguf"]
MOE = [*(name for name in NAMES if name.endswith("-f32") and "-30-" not in name), "micro-deepseek4-f32"]


def rows(path, **more):
    table = memory_table(path, **more)
    return table, {row["state"]: row for row in table["rows"]}


@pytest.fixture
def parts(tmp_path):
    def split(path):
        with open_gguf(path) as f:
            write_contents(tmp_path / "trunk.gguf", strip(f), WriteOptions())
            write_contents(tmp_path / "mtp.gguf", extract(f), WriteOptions())
        return tmp_path / "trunk.gguf", tmp_path / "mtp.gguf"

    return split


@pytest.mark.parametrize("path", [*MODELS, *MOE], ids=lambda p: p if isinstance(p, str) else p.stem)
def test_on_disk_and_weights(path, parts):
    """Sizes of files that were not written yet; what is read is what the loaded model has."""
    path = standard(path) if isinstance(path, str) else path
    table, found = rows(path)
    trunk, head = parts(path)
    assert list(found) == list(STATES)
    assert found["none"]["disk"] == [trunk.stat().st_size]
    assert found["off"]["disk"] == found["on"]["disk"] == [path.stat().st_size]
    assert found["on-md"]["disk"] == [trunk.stat().st_size, head.stat().st_size]
    assert [found[s]["weights"] - found["none"]["weights"] for s in STATES] == [
        head_memory(api.load(file, model_draft=draft, mtp=mtp).core).weights
        for file, draft, mtp in ((trunk, None, True), (path, None, False), (path, None, True), (trunk, head, True))
    ]
    assert table["trunk"] + table["head"] == sum(t.n_bytes for t in open_gguf(path).tensors.values())
    alone, only = rows(trunk)
    assert (list(only), only["none"]) == (["none"], found["none"])
    assert (alone["files"]["head"], alone["head"], alone["shared"]) == (None, 0, 0)


def allocated(state):
    return sum(layer.arrays[s.name].nbytes for layer in state.layers for s in layer.specs if s.positional)


@pytest.mark.parametrize("is_on", [False, True])
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_caches(path, is_on):
    """KV cells and states that a run has allocated."""
    model = api.load(path, kv_type="F16", kv_type_draft="F16", mtp=is_on)
    options = Options(n_predict=90, spec_type="draft-mtp" if is_on else "none")
    state = model.generate([1, 2, 3], options).finish().state
    kv = allocated(state)
    n_tokens = kv // memory_table(path)["kv_cell"]["trunk"]
    assert n_tokens == n_cells(n_tokens)
    _, found = rows(path, n_ctx=n_tokens)
    row = found["on" if is_on else "off"]
    assert row["kv"] == kv + measured(state)["kv"]
    assert row["recurrent"] == measured(state)["recurrent"]
    assert (row["rollback"] > 0) == is_on


RESIDENT = """
import json, mmap, struct, sys
from mtpref.engine.decode import Options
from mtpref.files.gguf import open_gguf
from mtpref.front import api

path, is_on = sys.argv[1], sys.argv[2] == "on"
with open_gguf(path) as f:
    spans = {n: (t.offset, t.offset + t.n_bytes) for n, t in f.tensors.items()}
model = api.load(path, mtp=is_on, repack=False)
options = Options(n_predict=24, spec_type="draft-mtp" if is_on else "none")
model.generate("def read(path):", options).finish()
page, there = mmap.PAGESIZE, set()
with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", 0) as pages:
    for line in maps:
        fields = line.split()
        if fields[-1].endswith(path):
            first, end = (int(x, 16) for x in fields[0].split("-"))
            pages.seek(first // page * 8)
            raw = pages.read((end - first) // page * 8)
            offset = int(fields[2], 16) // page
            there |= {offset + i for i, (e,) in enumerate(struct.iter_unpack("<Q", raw)) if e >> 63}
def resident(names):
    wanted = {p for n in names for p in range(spans[n][0] // page, -(-spans[n][1] // page))}
    return len(wanted & there) * page, len(wanted) * page
head = [n for n in spans if n.startswith("blk.4.")]
print(json.dumps({"head": resident(head), "trunk": resident(set(spans) - set(head))}))
"""


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs /proc/self/pagemap (Linux)")
def test_pages_of_a_head_that_is_off_are_not_in_memory(tmp_path, monkeypatch):
    """What the loader really takes: which pages of the mapped file a run has, by the system's own account.

    A system maps up to 2 MB around a page that is read: tensors lie further apart here.
    """
    path = tmp_path / "tiny.gguf"
    kv, tensors = copy_of(TINY)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a file of 280 MB that is gone before it is on a disk
    write_gguf(path, [*kv, ("general.alignment", 4 << 20, "u32")], tensors)
    _, found = rows(path)
    for state in ("off", "on"):
        command = [sys.executable, "-c", RESIDENT, str(path), state]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        seen = json.loads(done.stdout)
        if seen["trunk"][0] == 0:
            pytest.skip("/proc/self/pagemap shows no page here")
        whole_pages = {part: n_pages - sizes for part, (sizes, n_pages) in seen.items()}
        assert whole_pages["trunk"] == 0, "all of the trunk"
        assert found["none"]["weights"] <= seen["trunk"][0] < found["none"]["weights"] + 70 * mmap.PAGESIZE
        head = found[state]["weights"] - found["none"]["weights"]
        assert head <= seen["head"][0] <= head + (15 * mmap.PAGESIZE if head else 0)
    path.unlink()


def test_text_and_json(capsys):
    assert cli.main(["inspect", "--memory", str(TINY)]) == 0
    out = capsys.readouterr().out
    assert "MTP head                  on disk                      mapped   weights read  KV" in out
    assert "in the file, off          4.29 MB                      4.29 MB  3.38 MB       2.1 MB   215 kB  0 B" in out
    assert "off   weights T, and up to H more where it reads the file ahead or locks it; KV n k_t; state R" in out
    assert "T = 3.38 MB, R = 215 kB, k_t = 512 B, H = 841 kB, S = 557 kB, k_h = 512 B" in out
    assert cli.main(["inspect", "--memory", "--json", "-c", "100", str(TINY)]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["schema"], table["n_ctx"], table["rows"][0]["kv"]) == ("mtpref-memory-1", 100, 128 * 512)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        ("head", "an MTP head without its trunk"),
        ("damaged", "its MTP head is incomplete"),
        ("llama", "the sizes of other caches are not known"),
        ("shard", "files missing beside it"),
    ],
)
def test_refusals(make, expected, tmp_path, parts, capsys):
    path = tmp_path / "m-00001-of-00002.gguf"
    kv, tensors = copy_of(TINY)
    if make == "head":
        path = parts(TINY)[1]
    elif make == "damaged":
        write_gguf(path, kv, [t for t in tensors if "eh_proj" not in t[0]])
    elif make == "llama":
        write_gguf(path, [("general.architecture", "llama", "str")], tensors[:1])
    else:
        split = [("split.no", 0, "u16"), ("split.count", 2, "u16"), ("split.tensors.count", len(tensors), "i32")]
        write_gguf(path, [*kv, *split], tensors)
    assert cli.main(["inspect", "--memory", str(path)]) == 2
    err = capsys.readouterr().err
    assert (expected in err, len(err.splitlines())) == (True, 1), err


@pytest.mark.parametrize("words", [["--memory", "-c", "0"], ["--memory", "-c", "9999999999"], ["-c", "5"]])
def test_flags(words, capsys):
    assert cli.main(["inspect", str(TINY), *words]) == 2
    assert "--ctx-size" in capsys.readouterr().err
