"""The verbs on the layout of a very large model: 61 layers, 384 experts, 14 files, 587 GB of which 10 MB are there."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.gguf import WriteOptions, open_gguf, write_gguf
from mtpref.heads import extract, graft, write_contents

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
try:
    import measure_layout as layout
finally:
    sys.path.pop(0)

PEAK, SECONDS = 300e6, 60.0
FREE = WriteOptions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("layout")
    if not layout.has_holes(path):
        pytest.skip(f"the file system of {path} keeps no holes")
    return path


@pytest.mark.parametrize(
    ("n_layer", "n_expert", "n_files"), [(6, 384, 4), pytest.param(61, 384, 14, marks=pytest.mark.slow)]
)
def test_seconds_and_megabytes(folder, n_layer, n_expert, n_files):
    shape = layout.shape_of(n_layer=n_layer, n_expert=n_expert)
    folder = folder / str(n_layer)
    for name, has_head in (("whole", True), ("trunk", False)):
        layout.make(folder / name / "m", shape, n_files=n_files, has_head=has_head)
        files = list((folder / name).iterdir())
        assert len(files) == n_files
        assert sum(path.stat().st_size for path in files) > 9e9 * (n_layer - 1)
        assert sum(512 * path.stat().st_blocks for path in files) < 20e6
    seen = {}
    for name, command in layout.verbs(folder).items():
        found = seen[name] = layout.measure(name, command, folder)
        print(found)
        assert found.code == (name == "check --fast"), found  # matrices of zeros are no model
        assert found.peak < PEAK
        assert found.seconds < SECONDS
        assert found.n_disk < 20e6
    # The head's block is 9.7 GB of which 0.1 MB are there; of the trunk's 61 layers it is 5 MB, of keys and names 5.
    assert seen["inspect"].n_read == seen["check --fast"].n_read == 0
    assert seen["extract"].n_read < 5e5
    assert seen["graft --as-shard"].n_read < 5e5
    assert 10e9 < seen["extract"].n_apparent < 11e9
    assert seen["strip"].n_apparent > 9e9 * (n_layer - 1)
    assert seen["graft"].n_apparent - seen["strip"].n_apparent > 9e9
    assert 9e9 < seen["graft --as-shard"].n_apparent < 10e9  # what is new; the trunk's files are links
    with open_gguf(next(folder.glob("sharded/*-00001-of-*.gguf"))) as file:
        own = [t.shard for t in file.tensors.values() if t.name.startswith(f"blk.{n_layer}.")]
        assert own == [n_files] * len(own)
        assert len(own) == 22
        assert (file.kv["split.count"], file.kv["deepseek2.block_count"]) == (n_files + 1, n_layer + 1)
        assert file.kv["deepseek2.nextn_predict_layers"] == 1


def test_holes_are_zeros_in_every_copy(folder):
    """A layout small enough to be read whole, with data at places of its own between the holes."""
    shape = layout.shape_of(n_layer=2, n_expert=4, n_embd=256, n_ff_exp=256, n_ff=512, n_vocab=512, n_latent=256,
                            n_q_latent=256, n_embd_head=320, n_embd_head_v=256)  # fmt: skip
    first = layout.make(folder / "small/m", shape, n_files=3, has_head=True)
    rng = np.random.default_rng(3)
    with open_gguf(first) as file:
        places = [(part.path, part.data_offset, part.path.stat().st_size) for part in file.others]
    for path, start, end in places:
        with open(path, "r+b") as raw:
            for at in rng.integers(start, end - 5000, 7):
                raw.seek(int(at))
                raw.write(rng.bytes(int(rng.integers(1, 5000))))
    assert layout.has_holes(folder)
    with open_gguf(first) as file:
        assert 0 < sum(map(file.n_held, file.tensors.values())) < sum(t.n_bytes for t in file.tensors.values())
        data = {name: file.data(name).tobytes() for name in file.tensors}
        write_contents(folder / "head.gguf", extract(file), FREE)
        write_contents(folder / "whole.gguf", graft(file, file).contents, FREE)
        tensors = [(t.name, t.type_name, t.shape, file.data(t)) for t in file.tensors.values()]
        kv = [(k, file.kv.raw(k) if file.kv.kind(k) == "str" else file.kv[k], file.kv.kind(k)) for k in file.kv]
        write_gguf(folder / "plain.gguf", [p for p in kv if not p[0].startswith("split.")], tensors)
    for path in (folder / "head.gguf", folder / "whole.gguf"):
        with open_gguf(path) as file:
            assert all(file.data(name).tobytes() == data[name] for name in file.tensors)
    assert (folder / "whole.gguf").read_bytes() == (folder / "plain.gguf").read_bytes()
    assert 512 * (folder / "whole.gguf").stat().st_blocks < 512 * (folder / "plain.gguf").stat().st_blocks


def test_a_hole_at_the_end_counts(tmp_path):
    from mtpref.files.gguf import Copied
    from mtpref.files.holes import Hole

    ends = Copied(lambda: [np.ones(8, np.uint8), Hole(4096 * 5)], lambda: 8)
    write_gguf(tmp_path / "a.gguf", [], [("x", "I8", (8 + 4096 * 5,), ends)])
    write_gguf(
        tmp_path / "b.gguf", [], [("x", "I8", (8 + 4096 * 5,), np.r_[np.ones(8), np.zeros(4096 * 5)].astype("i1"))]
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_file_that_was_replaced_meanwhile_is_all_data(tmp_path):
    """What its path leads to now says nothing of the holes of what is mapped."""
    from mtpref.files.gguf import Copied
    from mtpref.files.holes import Hole

    path = tmp_path / "a.gguf"
    write_gguf(path, [], [("x", "I8", (1 << 20,), np.ones(1 << 20, np.int8))])
    with open_gguf(path) as file:
        write_gguf(path, [], [("x", "I8", (1 << 20,), Copied(lambda: [Hole(1 << 20)], lambda: 0))])
        info = file.tensors["x"]
        assert file.n_held(info) == 1 << 20
        assert sum(int(piece.sum()) for piece in file.copied(info)) == 1 << 20
