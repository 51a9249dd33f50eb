"""Verbs on files of architectures that are data sheets alone (tests/toys.py): what derives from the sheet, derives."""

from dataclasses import replace

import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import write_gguf
from mtpref.front.cli import main
from mtpref.heads.check.changes import changes
from mtpref.heads.inspect import inspect_file
from mtpref.look.selftest.bench import trunk_digest
from mtpref.measure.probe.controls import controls
from tests import toys
from tests.models import run_decoder


@pytest.fixture(params=list(toys.TOYS))
def sheet(request, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, request.param, toys.TOYS[request.param])
    return toys.TOYS[request.param]


@pytest.fixture
def file(sheet, tmp_path):
    write_gguf(tmp_path / "toy.gguf", toys.keys(sheet), toys.tensors(sheet))
    return tmp_path / "toy.gguf"


def test_a_whole_file_has_no_problems_and_its_blocks_are_told_by_their_tensors(sheet, file):
    report = inspect_file(file)
    assert report["problems"] == []
    assert report["mtp"]["status"] == "present"
    assert len(report["mtp"]["blocks"]) == sheet.n_heads
    found = [(row["kind"], row["found"]) for row in report["layers"]["blocks"]]
    blocks = sheet.layers.first(1, toys.N_LAYER)
    assert found == [(block.name,) * 2 for block in blocks] + [("mtp", "mtp")] * sheet.n_heads


def test_a_missing_tensor_and_a_missing_alternative_are_told(sheet, file):
    lost = ("blk.0.ffn_up.weight", "blk.1.ffn_exps.weight")
    write_gguf(file, toys.keys(sheet), (t for t in toys.tensors(sheet) if t[0] not in lost))
    missing = [p for p in inspect_file(file)["problems"] if "missing" in p]
    wanted = ["blk.0.ffn_up.weight is missing"]
    if sheet.name != "toywide":
        wanted.append("blk.1.ffn_old.weight is missing")  # the last alternative, as the loader says
    assert missing == wanted


def test_the_other_alternative_is_as_good(sheet, file):
    def renamed():
        for name, kind, shape, values in toys.tensors(sheet):
            if name.endswith("ffn_exps.weight"):
                name, shape, values = name.replace("exps", "old"), shape[1:], values[0]
            yield name, kind, shape, values

    write_gguf(file, toys.keys(sheet), renamed())
    assert inspect_file(file)["problems"] == []


def test_a_head_may_have_alternatives_too(sheet, file, monkeypatch):
    both = replace(sheet.head.block, tensors=(*sheet.head.block.tensors, *toys.STACK[1:]))
    monkeypatch.setitem(ARCHITECTURES, sheet.name, new := replace(sheet, head=replace(sheet.head, block=both)))
    write_gguf(file, toys.keys(new), toys.tensors(new))
    report = inspect_file(file)
    assert report["problems"] == []
    assert [block["missing"] for block in report["mtp"]["blocks"]] == [[]] * sheet.n_heads


def test_check_finds_it_sound_and_quantize_makes_a_file_that_is(file, tmp_path, capsys):
    assert main(["check", "--fast", str(file)]) == 0
    assert main(["quantize", str(file), str(tmp_path / "q.gguf"), "Q8_0"]) == 0
    assert main(["check", "--fast", str(tmp_path / "q.gguf")]) == 0
    assert "NOT sound" not in capsys.readouterr().out


def test_selftests_digest_of_the_trunk_leaves_out_the_cells_of_every_head(file):
    model = load(file, make_recipe("exact"))
    plain, warm = (run_decoder(model, [7, 3, 40], 6, spec_type=kind).decoder.state for kind in ("none", "draft-mtp"))
    assert plain.n_past == warm.n_past
    assert trunk_digest(plain) == trunk_digest(warm)


def test_what_check_tries_is_made_of_the_parts_that_the_head_has(sheet, file):
    model = load(file)
    tried = changes(model, controls(model))
    norms = {name for one in tried for name in one.norms}
    assert {"attn_norm", "ffn_norm", "enorm", "hnorm"} <= norms
    assert not norms & {"post_attention_norm", "attn_q_norm"}
    assert "even attention" not in {one.variant.name for one in tried}
