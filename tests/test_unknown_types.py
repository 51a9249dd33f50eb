"""A tensor type that mtpref does not know: bytes are copied, nothing is said of values, nobody is called unsound."""

from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, tensor_bytes, write_gguf
from mtpref.files.gguf.writer import Verbatim
from mtpref.front.cli import main
from mtpref.heads.check import check_path
from tests.broken_heads import BROKEN, TINY, write
from tests.gguf_copy import copy_of

HEAD_MATRIX, TRUNK_MATRIX = "blk.4.ffn_down.weight", "blk.1.ffn_down.weight"
NEW = 77  # a type id that ggml does not have yet


def with_type(path: Path, names: dict[str, int], source: Path = TINY) -> Path:
    """The file with the type ids of some tensors replaced; not a byte else is changed."""
    raw = bytearray(source.read_bytes())
    for name, type_id in names.items():
        at = raw.index(len(name).to_bytes(8, "little") + name.encode()) + 8 + len(name)
        at += 4 + 8 * int.from_bytes(raw[at : at + 4], "little")
        raw[at : at + 4] = type_id.to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def contents(path: Path) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    with open_gguf(path) as file:
        return {t.name: (t.type_id, t.shape, file.data(t).tobytes()) for t in file.tensors.values()}


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", [HEAD_MATRIX, TRUNK_MATRIX, "blk.4.nextn.enorm.weight"])
def test_verbs_that_copy_bytes_work_and_check_cannot_judge(tmp_path, capsys, name):
    model = with_type(tmp_path / "m.gguf", {name: NEW})
    head, trunk, joined = (tmp_path / f"{part}.gguf" for part in ("head", "trunk", "joined"))
    assert run(capsys, "extract", model, "-o", head)[0] == 0
    assert run(capsys, "strip", model, "-o", trunk)[0] == 0
    code, _, err = run(capsys, "graft", trunk, head, "-o", joined)
    assert (code, "not probed" in err, "type-77" in err) == (0, True, True)
    assert contents(joined) == contents(model)
    code, out, _ = run(capsys, "inspect", model)
    assert code == 0
    assert f"tensor {name} has type id 77, which mtpref does not know" in out
    for fast in ([], ["--fast"]):
        code, out, _ = run(capsys, "check", *fast, model)
        assert code == 3
        assert "verdict: cannot judge: something that this version of mtpref does not know" in out
        assert f"CANNOT  unsupported: type type-77: {name}: values cannot be read" in out
        assert "FAIL" not in out
    assert check_path(model).to_json()["is_sound"] is None


@pytest.mark.parametrize("type_name", ["I32", "Q8_1"])
def test_a_type_of_known_size_without_a_decoder_is_no_fault_either(tmp_path, type_name):
    kv, tensors = copy_of(TINY)
    shape = next(t[2] for t in tensors if t[0] == TRUNK_MATRIX)
    data = np.zeros(tensor_bytes(type_name, shape), np.uint8)
    other = [(TRUNK_MATRIX, type_name, shape, data) if t[0] == TRUNK_MATRIX else t for t in tensors]
    write_gguf(tmp_path / "m.gguf", kv, other)
    report = check_path(tmp_path / "m.gguf")
    assert report.is_sound is None
    assert {f.id for f in report.findings if f.severity == "fail"} == set()


def test_a_damaged_head_is_unsound_whatever_else_is_unknown(tmp_path, capsys):
    broken = write(tmp_path / "broken.gguf", BROKEN["W13 hidden half zero"][0])
    code, out, _ = run(capsys, "check", with_type(tmp_path / "m.gguf", {TRUNK_MATRIX: NEW}, broken))
    assert code == 1
    assert "verdict: NOT sound" in out


def test_a_pre_tokenizer_that_is_not_known_cannot_be_judged(tmp_path, capsys):
    kv, tensors = copy_of(TINY)
    kv = [(key, "qwen9" if key == "tokenizer.ggml.pre" else value, kind) for key, value, kind in kv]
    write_gguf(tmp_path / "m.gguf", kv, tensors)
    code, out, _ = run(capsys, "check", tmp_path / "m.gguf")
    assert (code, "unsupported: tokenizer.ggml.pre: qwen9" in out) == (3, True)


def test_a_tensor_that_nothing_reads_may_have_any_type(tmp_path):
    kv, tensors = copy_of(TINY)
    first, rest = tensors[0], tensors[1:]
    write_gguf(tmp_path / "extra.gguf", kv, [("blk.0.extra.weight", *first[1:]), first, *rest])
    model = with_type(tmp_path / "m.gguf", {"blk.0.extra.weight": NEW}, tmp_path / "extra.gguf")
    report = check_path(model)
    assert report.was_run
    assert report.is_sound


def test_running_one_is_one_line(tmp_path, capsys):
    model = with_type(tmp_path / "m.gguf", {TRUNK_MATRIX: NEW})
    code, out, err = run(capsys, "generate", "-m", model, "-p", "x", "-n", 2)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"tensor {TRUNK_MATRIX} has type type-77, expected one of F32" in err


def test_graft_with_probe_refuses_before_it_writes(tmp_path, capsys):
    model, out = with_type(tmp_path / "m.gguf", {HEAD_MATRIX: NEW}), tmp_path / "out.gguf"
    code, _, err = run(capsys, "graft", model, model, "--probe", "-o", out)
    assert (code, err.count("\n"), out.exists()) == (2, 1, False)
    assert f"--probe: tensor {HEAD_MATRIX} has type type-77" in err


def test_against_a_file_of_an_unknown_type_says_what_was_not_compared(tmp_path):
    report = check_path(TINY, against=with_type(tmp_path / "m.gguf", {HEAD_MATRIX: NEW}))
    assert [f.what for f in report.findings if f.id == "against-skipped"] == [HEAD_MATRIX]
    assert report.is_sound


def test_shards_keep_the_bytes(tmp_path, capsys):
    model = with_type(tmp_path / "m.gguf", {HEAD_MATRIX: NEW, TRUNK_MATRIX: NEW + 1})
    assert run(capsys, "graft", model, model, "--split-max-tensors", 9, "-o", tmp_path / "s.gguf")[0] == 0
    first = next(tmp_path.glob("s-00001-of-*.gguf"))
    assert contents(first) == contents(model)
    assert run(capsys, "graft", first, first, "-o", tmp_path / "whole.gguf")[0] == 0
    assert contents(tmp_path / "whole.gguf") == contents(model)


def test_quantize_copies_what_it_keeps_and_refuses_what_it_cannot_read(tmp_path, capsys):
    name = "blk.4.nextn.enorm.weight"
    model = with_type(tmp_path / "m.gguf", {name: NEW})
    out = tmp_path / "q.gguf"
    assert run(capsys, "quantize", model, out, "Q8_0", "--allow-requantize")[0] == 0
    assert contents(out)[name] == contents(model)[name]
    model = with_type(tmp_path / "m.gguf", {TRUNK_MATRIX: NEW})
    code, _, err = run(capsys, "quantize", model, tmp_path / "r.gguf", "Q4_0", "--allow-requantize")
    assert (code, err.count("\n"), (tmp_path / "r.gguf").exists()) == (2, 1, False)
    assert f"{TRUNK_MATRIX} has type type-77, expected one that can be read" in err


def test_a_smaller_alignment_is_refused(tmp_path):
    """992 bytes at an alignment of 64 look like 1024; a reader that knows the type would look 32 bytes earlier."""
    raw = np.zeros(1024, np.uint8)
    tensors = [
        ("x", "type-77", (8,), Verbatim(lambda: [raw], lambda: 1024, 1024, 64)),
        ("y", "F32", (1,), np.ones(1, np.float32)),
    ]
    with pytest.raises(MtprefError, match="alignment 64, expected at most 32"):
        write_gguf(tmp_path / "a.gguf", [], tensors)
    write_gguf(tmp_path / "b.gguf", [("general.alignment", 64, "u32")], tensors)
    with open_gguf(tmp_path / "b.gguf") as file:
        assert (file.tensors["x"].n_bytes, file.data("y").view("<f4")[0]) == (1024, 1)
    with pytest.raises(MtprefError, match="type type-77, expected a ggml name"):
        write_gguf(tmp_path / "c.gguf", [], [("x", "type-77", (8,), raw)])


@pytest.mark.parametrize("kind", ["IQ2_XS", "iq4_nl", "Q2_0", "Q3_K_M"])
def test_types_that_only_llama_cpp_writes_have_a_road(tmp_path, capsys, kind):
    code, _, err = run(capsys, "quantize", TINY, tmp_path / "x.gguf", kind)
    assert (code, err.count("\n")) == (2, 1)
    assert "mtpref strip" in err
    assert f"trunk.gguf small.gguf {kind.upper()}, mtpref graft small.gguf" in err
    code, _, err = run(capsys, "quantize", TINY, tmp_path / "x.gguf", "Q8_0", "--mtp-type", "IQ4_XS")
    assert (code, "llama-quantize --tensor-type NAME=IQ4_XS writes it" in err) == (2, True)


def test_a_type_that_nobody_has_has_none(tmp_path, capsys):
    code, _, err = run(capsys, "quantize", TINY, tmp_path / "x.gguf", "Q9_9")
    assert (code, err.count("\n"), "llama" in err) == (2, 1, False)
