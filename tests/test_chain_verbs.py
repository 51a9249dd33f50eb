"""Verbs on models with a chain of heads: step35 and mimo2."""

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.heads.convert import Settings, convert
from mtpref.measure.probe.texts import Window
from mtpref.measure.probe.walk import Variant, walk
from tests import chain_folder, naive_chain
from tests.micro_moe import CHAINS, standard
from tests.test_moe_model import edited

RECORDED = json.loads((Path(__file__).parent / "data" / "converted_chains.json").read_text())
STEP, MIMO = "micro-step35-q8_0", "micro-mimo2-q8_0"
PROMPT = "hello world of things"


@pytest.fixture
def run(capsys):
    def made(*words, code=0):
        capsys.readouterr()
        got = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert got == code, err[-2000:]
        return out, err

    return made


@lru_cache
def text_of(name):
    """A text that the trunk writes itself."""
    model = load(standard(name), make_recipe("exact"))
    state, ids = model.new_state(), [17, 40, 3, 255, 12]
    state_ids = list(ids)
    for _ in range(20):
        out = model.trunk(state, state_ids, n_logits=1)
        state_ids = [int(np.argmax(out.logits[0]))]
        ids += state_ids
    return model, ids


# HEADS


@pytest.mark.parametrize("name", CHAINS)
def test_trunk_and_heads_come_apart_and_together_again(name, run, tmp_path):
    trunk, head, whole = (tmp_path / f"{part}.gguf" for part in ("trunk", "mtp-head", "whole"))
    run("strip", standard(name), "-o", trunk)
    run("extract", standard(name), "-o", head)
    run("graft", trunk, head, "-o", whole, "--no-probe")
    assert whole.read_bytes() == standard(name).read_bytes()
    n_heads = 1 if "one" in name else 3
    for file, n_blocks in ((trunk, 4), (head, 4 + n_heads)):
        with open_gguf(file) as opened:
            arch = opened.kv["general.architecture"]
            assert opened.kv[f"{arch}.block_count"] == n_blocks
            assert len(opened.kv[f"{arch}.attention.sliding_window_pattern"]) == n_blocks
        assert run("inspect", file)[0].rstrip().endswith("problems (0)\n  none")
    with open_gguf(head) as opened:
        assert ("rope_freqs.weight" in opened.tensors) == ("fused" in name)


def counts(err):
    return re.findall(r"^n_(?:drafted|accept) .*$", err, re.MULTILINE)


@pytest.mark.parametrize("name", [STEP, "micro-step35-90-fused-f32", "micro-mimo2-90-own-f32"])
def test_heads_in_a_file_of_their_own_draft_alike(name, run, tmp_path):
    trunk, head = tmp_path / "trunk.gguf", tmp_path / "head.gguf"
    run("strip", standard(name), "-o", trunk)
    run("extract", standard(name), "-o", head)
    words = ("-p", PROMPT, "-n", 24, "--spec-draft-n-max", 3)
    out, err = run("generate", "-m", standard(name), *words)
    apart, err2 = run("generate", "-m", trunk, "-md", head, *words)
    assert out == apart
    assert counts(err) == counts(err2) != []
    assert "a chain of 3 heads" in err


def test_factors_of_another_head_are_refused(run, tmp_path):
    name = "micro-step35-90-fused-f32"
    run("strip", standard(name), "-o", tmp_path / "trunk.gguf")
    without = edited(tmp_path / "trunk.gguf", tmp_path / "without.gguf", {}, drop=("rope_freqs",))
    _, err = run("graft", without, standard(name), "-o", tmp_path / "x.gguf", "--no-probe", code=2)
    assert "tensor rope_freqs.weight is not that of" in err


def test_a_shape_that_one_block_alone_has_wrong_is_found(run, tmp_path):
    keys = {"attention.head_count": ([4, 6, 6, 4, 6, 6, 6], "arr:i32")}
    out, _ = run("inspect", edited(standard("micro-step35-f32"), tmp_path / "bad.gguf", keys))
    assert "blk.5.attn_gate.weight: shape (4, 64), expected (6, 64)" in out
    assert "blk.4.attn_gate" not in out.split("problems")[1]


# Attention with sinks has no kernel: the second file takes a quarter of a minute.
@pytest.mark.parametrize("name", [STEP, pytest.param(MIMO, marks=pytest.mark.slow)])
def test_check_runs_every_head(name, run):
    found = json.loads(run("check", standard(name), "--json")[0])["findings"]
    bad = {f["id"] for f in found if f["severity"] in ("fail", "warning", "cannot-judge")}
    assert bad == {"no-text"}  # planted models read no text
    text = next(f["text"] for f in found if f["id"] == "acceptance")
    assert 0.3 < float(re.search(r"a_1 (\S+)", text)[1]) < 0.95


# RUNS


@pytest.mark.parametrize("name", ["micro-step35-f32", "micro-mimo2-90-own-f32"])
def test_probed_drafts_are_those_of_the_oracle(name):
    """Head i in step i from every position, whatever was drafted from the others."""
    model, ids = text_of(name)
    hparams, weights = naive_chain.load(standard(name))
    positions = list(range(3, 20))
    for n_batch in (512, 7):
        window = Window(0, "text", 0, tuple(ids), tuple(positions))
        seen = walk(model, window, [Variant("own", model, 5)], whole_chains=True, n_batch=n_batch, poison=True)
        for row, position in zip(seen.heads["own"].draft, positions, strict=True):
            assert row[:3].tolist() == naive_chain.draft(weights, hparams, ids[: position + 1], 5)
            assert row[3:].tolist() == [-1, -1]


@pytest.mark.parametrize("name", [STEP, MIMO])
def test_runs_of_the_other_verbs(name, run, tmp_path):
    out, _ = run("selftest", "-m", standard(name), "--quick", "--json")
    found = {row["check"]: row["result"] for row in json.loads(out)["checks"]}
    assert "FAIL" not in found.values()
    out, _ = run("story", "-m", standard(name), "-p", PROMPT, "-n", 12)
    assert "12 / 12 = 1.00" in out
    run("golden", "gen", "-m", standard(name), "-p", PROMPT, "-o", tmp_path / "golden", "-n", 6)
    assert "passed" in "".join(run("golden", "check", tmp_path / "golden", "-m", standard(name))).lower()
    run("dump", "-m", standard(name), "-p", PROMPT, "-o", tmp_path / "dump.gguf")
    with open_gguf(tmp_path / "dump.gguf") as file:
        names = {tensor.split(".")[-1] for tensor in file.tensors}
    assert {"ffn_moe_topk-2", "mtp_eh_proj-4", "mtp_eh_proj-5", "mtp_eh_proj-6", "h_nextn", "result_output"} <= names
    assert "no tensor differs" in run("compare", tmp_path / "dump.gguf", tmp_path / "dump.gguf")[0]


# CHECKPOINTS


@pytest.mark.parametrize("case", RECORDED)
def test_converted_files_are_those_of_llama_cpp(case, tmp_path):
    arch, dtype, outtype, mode = case.split()
    source = chain_folder.folder(tmp_path / "Tiny-5M", arch, dtype=dtype, n_files=2)
    convert(source, tmp_path / "out.gguf", Settings(outtype=outtype, which=mode, pre=chain_folder.PRE))
    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == RECORDED[case]


@pytest.mark.parametrize("arch", chain_folder.CONFIGS)
def test_a_checkpoints_heads_go_into_a_trunk(arch, run, tmp_path):
    source = chain_folder.folder(tmp_path / "hf", arch, dtype="F32")
    for which, flag in (("whole", []), ("trunk", ["--no-mtp"])):
        run("convert", source, "-o", tmp_path / f"{which}.gguf", "--outtype", "f32", *flag)
    words = ("-o", tmp_path / "made.gguf", "--outtype", "f32", "--no-probe")
    run("graft", tmp_path / "trunk.gguf", source, *words)
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_probe_refuses_rows_that_heads_hold_back(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("abcdefgh" * 8)
    words = ["probe", "-m", str(standard("micro-step35-f32")), "-f", str(tmp_path / "t.txt")]
    assert main([*words, "--contract", "catch_up=delayed"]) == 2
    assert "catch_up is delayed, expected target" in capsys.readouterr().err
