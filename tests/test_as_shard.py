"""`graft --as-shard`: a head as one file more of a split model, its other files linked."""

import os
import tempfile
from pathlib import Path

import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import WriteOptions, open_gguf, open_one, write_shards
from mtpref.files.gguf.folder import how_kept
from mtpref.front import cli
from mtpref.heads import graft, write_contents
from tests.gguf_copy import copy_of, llama_cpp, llama_speculative
from tests.head_surgery import FREE, MICRO, TINY, join, split_of
from tests.micro_moe import standard

ARCHS = ("qwen35moe", "qwen3next", "glm4moe", "hy_v3", "deepseek2", "deepseek4")
MODELS = [TINY, MICRO, *(f"micro-{arch}-f32" for arch in ARCHS)]


def model_file(model: str | Path) -> Path:
    return model if isinstance(model, Path) else standard(model)


def parts(model: str | Path, folder: Path, *, empty: bool = True, name: str = "trunk") -> tuple[Path, Path]:
    """(first file of the trunk in several, the head)."""
    trunk, head = split_of(model_file(model), folder / "parts")
    kv, tensors = copy_of(trunk)
    (folder / name).mkdir()
    paths = write_shards(folder / name / "m", kv, tensors, max_tensors=20, first_is_empty=empty)
    return paths[0], head


def run(*words: object) -> int:
    return cli.main(["graft", "--as-shard", "--no-probe", *map(str, words)])


def first_of(folder: Path) -> Path:
    [path] = folder.glob("*-00001-of-*.gguf")
    return path


def refusal(capsys, *words: object) -> str:
    assert run(*words) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err.split("error:")[-1]
    return err


@pytest.mark.parametrize("empty", [True, False], ids=["first file empty", "first file full"])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m if isinstance(m, str) else m.stem)
@pytest.mark.covering
def test_it_is_what_graft_writes_in_files_of_which_most_are_the_trunks(model, empty, tmp_path):
    first, head = parts(model, tmp_path, empty=empty)
    before = {path: path.read_bytes() for path in first.parent.iterdir()}
    assert run(first, head, "-o", tmp_path / "out") == 0
    whole = join(tmp_path / "parts/trunk.gguf", head, tmp_path / "whole.gguf")
    n = len(before) + 1
    made = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in made] == [f"m-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    for old, new in zip(sorted(before)[1:], made[1:-1], strict=True):
        assert old.samefile(new)
    with open_gguf(made[0]) as a, open_gguf(whole) as b, open_one(sorted(before)[0]) as old:
        assert {k for k in a.kv if not k.startswith("split.")} == set(b.kv)
        assert all(_raw(a, key) == _raw(b, key) for key in b.kv)
        assert (a.kv["split.count"], a.kv["split.tensors.count"]) == (n, len(b.tensors))
        assert set(a.tensors) == set(b.tensors)
        assert all(a.data(name).tobytes() == b.data(name).tobytes() for name in b.tensors)
        assert [name for name, info in a.tensors.items() if info.shard == 0] == list(old.tensors)
        own = {name for name, info in a.tensors.items() if info.shard == n - 1}
    with open_gguf(whole) as b, open_gguf(tmp_path / "parts/trunk.gguf") as t:
        assert own == set(b.tensors) - set(t.tensors)
    assert {path: path.read_bytes() for path in before} == before
    with open_gguf(made[0]) as a:  # and what it is made of comes out of it again
        write_contents(tmp_path / "again.gguf", graft(a, a).contents, FREE)
    assert (tmp_path / "again.gguf").read_bytes() == whole.read_bytes()


def _raw(file, key):
    value = file.kv.raw(key) if file.kv.kind(key) == "str" else file.kv[key]
    if not hasattr(value, "element_type"):
        return value
    return value.to_bytes_list() if value.element_type == "str" else value.to_numpy().tolist()


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, head = parts(TINY, tmp_path)
    for name in ("a", "b"):
        assert run(first, head, "-o", tmp_path / name) == 0
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_a_new_head_takes_the_place_of_the_last_file_that_holds_the_old_one(tmp_path, capsys):
    first, head = parts(TINY, tmp_path)
    assert run(first, head, "-o", tmp_path / "one") == 0
    capsys.readouterr()
    assert run(first_of(tmp_path / "one"), TINY, "-o", tmp_path / "two") == 0
    err = capsys.readouterr().err
    assert "m-00005-of-00005.gguf held the trunk's own head and nothing else: it is left out" in err
    assert "own head of 15 tensors is replaced" in err
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_what_it_says(tmp_path, capsys):
    first, head = parts(TINY, tmp_path, empty=False)
    assert run(first, head, "-o", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "4 files, 2 of them new: 15 tensors of the head, 2.32 MB written; 2 are the trunk's" in out
    assert "the trunk's first file holds 20 tensors: it is written again, its 1.48 MB as they are" in err
    assert "the 2 files between first and last say split.count and split.tensors.count as before" in err
    path = str(first_of(tmp_path / "out"))
    for words in (["inspect", path], ["check", "--fast", path]):
        assert cli.main(words) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "files 2 to 3 of 4: split.count is 3; a head was put beside them (graft --as-shard)" in said
    assert cli.main(["inspect", str(first)]) == 0
    assert "split.count is" not in capsys.readouterr().out


# LINKS


def test_symbolic_links_and_copies(tmp_path):
    first, head = parts(TINY, tmp_path)
    linked = tmp_path / "links"  # as a download's cache has them
    linked.mkdir()
    for path in first.parent.iterdir():
        (linked / path.name).symlink_to(path)
    for flag in ("--symlink", "--copy", None):
        out = tmp_path / f"out{flag}"
        assert run(linked / first.name, head, *([flag] if flag else []), "-o", out) == 0
        for old, new in zip(sorted(first.parent.iterdir())[1:], sorted(out.iterdir())[1:-1], strict=True):
            assert new.is_symlink() == (flag == "--symlink")
            assert old.samefile(new) == (flag != "--copy")
            assert old.read_bytes() == new.read_bytes()
            assert flag != "--symlink" or Path(os.readlink(new)) == old.resolve()


def test_across_devices_a_copy_is_said(tmp_path, capsys, monkeypatch):
    first, head = parts(TINY, tmp_path)
    shm = Path("/dev/shm")
    if shm.is_dir() and shm.stat().st_dev != tmp_path.stat().st_dev and os.access(shm, os.W_OK):
        with tempfile.TemporaryDirectory(dir=shm) as name:
            _across(first, head, Path(name) / "out", capsys)
    else:
        pytest.skip("one device alone")


def _across(first, head, out, capsys):
    assert run(first, head, "-o", out) == 0
    assert f"{out} is on another device than the trunk: 3 files, 3.39 MB, are copied; --symlink links them" in " ".join(
        capsys.readouterr().err.split()
    )
    for old, new in zip(sorted(first.parent.iterdir())[1:], sorted(out.iterdir())[1:-1], strict=True):
        assert not new.is_symlink()
        assert old.read_bytes() == new.read_bytes()
    assert how_kept([], out, "hard") == "hard"
    assert run(first, head, "--symlink", "-o", out.with_name("linked")) == 0
    assert "copied" not in capsys.readouterr().err


def test_links_that_are_refused_name_the_way_out(tmp_path, capsys, monkeypatch):
    first, head = parts(TINY, tmp_path)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    err = refusal(capsys, first, head, "-o", tmp_path / "out")
    assert "a hard link to it is refused (Operation not permitted)" in err
    assert "try --symlink or --copy" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "trunk"]


# REFUSALS


def test_refusals(tmp_path, capsys):
    first, head = parts(TINY, tmp_path)
    out = tmp_path / "out"
    assert "a model in one file, expected the first of a split one" in refusal(
        capsys, tmp_path / "parts/trunk.gguf", head, "-o", out
    )
    for flags, said in (
        (["--split-max-tensors", "3"], "--split-max-tensors: the head is one file"),
        (["--split-max-size", "3G"], "--split-max-size: the head is one file"),
    ):
        assert said in refusal(capsys, first, head, *flags, "-o", out)
    assert cli.main(["graft", str(first), str(head), "--symlink", "-o", str(out)]) == 2
    assert "--symlink: says how files come into a new folder" in capsys.readouterr().err
    assert "is a folder that holds files, expected a new one" in refusal(capsys, first, head, "-o", first.parent)
    assert "is there and is no folder" in refusal(capsys, first, head, "-o", head)
    assert not out.exists()
    other = split_of(model_file("micro-qwen35moe-f32"), tmp_path / "other")[1]
    assert "the head belongs to another model" in refusal(capsys, first, other, "-o", out)
    kv, tensors = copy_of(TINY)
    paths = write_shards(tmp_path / "w", kv, tensors, max_tensors=40)
    assert "with tensors of the trunk beside it or elsewhere" in refusal(capsys, paths[0], head, "-o", out)
    assert not out.exists()


@pytest.mark.parametrize("flag", ["--as-shard", "--hf"])
def test_a_folder_does_not_go_to_standard_output(flag, tmp_path, capsys):
    words = [str(tmp_path / "trunk"), str(tmp_path / "head"), "-o", "-"]
    assert cli.main(["graft", flag, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        err == "mtpref graft: error: -o: what is made is a folder, which standard output cannot take; expected a name\n"
    )


def test_an_empty_folder_is_taken_and_its_parents_are_made(tmp_path):
    first, head = parts(TINY, tmp_path)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a/b"):
        assert run(first, head, "-o", out) == 0
        assert len(list(out.iterdir())) == 5


def test_too_little_space_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    import shutil

    first, head = parts(TINY, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert run(first, head, "-o", tmp_path / "linked") == 0  # a link takes nothing
    assert "needs 4.29 MB" in refusal(capsys, first, head, "--copy", "-o", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linked", "parts", "trunk"]


def test_a_temporary_folder_is_no_model_and_is_removed_by_the_next_write(tmp_path, capsys):
    first, head = parts(TINY, tmp_path)
    assert run(first, head, "-o", tmp_path / "out") == 0
    left = tmp_path / ".out.0a1b.mtpref-tmp"
    (tmp_path / "out").rename(left)
    with pytest.raises(MtprefError, match="the temporary of a write of out that was killed"):
        open_gguf(first_of(left))
    assert "the name of a temporary" in refusal(capsys, first, head, "-o", left)
    assert run(first, head, "-o", tmp_path / "out") == 0
    assert not left.exists()


def test_a_folder_that_came_to_be_meanwhile_is_not_replaced(tmp_path):
    from mtpref.files.gguf import write_folder
    from mtpref.files.gguf.whole import Part

    def write(file):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/x").write_bytes(b"theirs")

    with pytest.raises(MtprefError, match="holds files"):
        write_folder(tmp_path / "out", [Part(Path("a"), 1, write)], [], "hard", WriteOptions())
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "x"]
    with pytest.raises(MtprefError, match="a would be there twice"):
        write_folder(tmp_path / "two", [Part(Path("a"), 1, write)] * 2, [], "hard", WriteOptions())


# STOCK


@pytest.mark.parametrize("empty", [True, False], ids=["first file empty", "first file full"])
@pytest.mark.parametrize(
    "model",
    [TINY, "micro-deepseek2-f32", "micro-glm4moe-f32", "micro-deepseek4-f32"],
    ids=["tiny", "mla", "glm", "streams"],
)
def test_stock_llama_cpp_loads_it_and_drafts(model, empty, tmp_path):
    llama_cpp("llama-speculative-simple")
    first, head = parts(model, tmp_path, empty=empty)
    assert run(first, head, "-o", tmp_path / "out") == 0
    whole = join(tmp_path / "parts/trunk.gguf", head, tmp_path / "whole.gguf")
    flags = ["--spec-type", "draft-mtp", "--spec-draft-n-max", 3, "--temp", 0, "-n", 24, "--no-repack"]
    a, b = (llama_speculative("-m", path, *flags, "-p", "Once upon a time")
            for path in (first_of(tmp_path / "out"), whole))  # fmt: skip
    assert (a[0], a[1].strip()) == (b[0], b[1].strip())
    assert int(dict(a[0])["drafted"]) > 0
