"""What a head costs: the header's sums, the model's sums, and what a run really allocates are the same numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtpref import kernels
from mtpref.engine.decode import Options
from mtpref.engine.decode.options import PolicyConfig
from mtpref.engine.memory import HeadMemory, head_memory, measured
from mtpref.files.gguf import WriteOptions, open_gguf
from mtpref.front import api, cli
from mtpref.heads import extract, strip, write_contents
from mtpref.heads.inspect import inspect_file
from mtpref.spec.ops import compose
from tests.micro_moe import NAMES, standard

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref/data/tiny.gguf"
MICRO = ROOT / "golden/models/micro-60-f32.gguf"


@pytest.fixture
def parts(tmp_path):
    with open_gguf(TINY) as f:
        write_contents(tmp_path / "trunk.gguf", strip(f), WriteOptions())
        write_contents(tmp_path / "mtp.gguf", extract(f), WriteOptions())
    return tmp_path / "trunk.gguf", tmp_path / "mtp.gguf"


@pytest.mark.parametrize("path", [TINY, MICRO], ids=["tiny", "micro"])
@pytest.mark.parametrize("kv_type", ["F16", "F32"])
def test_header_and_model_agree(path, kv_type):
    report = inspect_file(path)["mtp_memory"]
    cost = head_memory(api.load(path, kv_type_draft=kv_type).core)
    assert cost.weights == report["on"]["weights"] == report["file"]
    assert cost.kv_cell == report["on"][f"kv_{kv_type.lower()}"]
    assert cost.pending == report["on"]["pending"]
    assert cost.recurrent == report["recurrent_state"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-f32") and "-30-" not in name])
def test_header_and_model_agree_with_experts(name):
    """Stacks count whole, also those that gate and up share."""
    report, cost = inspect_file(standard(name))["mtp_memory"], head_memory(api.load(standard(name)).core)
    assert cost.weights == report["on"]["weights"] == report["file"] > 0
    assert (cost.kv_cell, cost.pending) == (report["on"]["kv_f16"], report["on"]["pending"])
    assert cost.recurrent == report["recurrent_state"]


def test_the_sums_by_hand():
    """tiny: n_embd 256, 2 KV heads of 64, S 64, H_k 2, H_v 4, d_conv 4, three DeltaNet layers, Q8_0."""
    cost = head_memory(api.load(TINY).core)
    assert cost.kv_cell == 2 * 2 * 64 * 2
    assert cost.recurrent == 3 * 4 * (3 * (2 * 2 + 4) * 64 + 4 * 64 * 64)
    q8 = 256 * 512 + 512 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 512 * 256
    assert cost.weights == q8 * 34 // 32 + 4 * (5 * 256 + 2 * 64)
    assert (cost.kv(100), cost.rollback("snapshot", 3)) == (51200, 3 * cost.recurrent)
    assert (cost.rollback("replay", 3), cost.rollback("two-phase", 3)) == (cost.recurrent, 0)


def test_absent_and_off_cost_nothing(parts):
    for model in (api.load(parts[0]), api.load(TINY, mtp=False)):
        assert head_memory(model.core) == HeadMemory()
        run = model.generate("def f(", Options(n_predict=8, spec_type="none")).finish()
        assert measured(run.state)["kv"] == 0
        assert measured(run.state)["planes"] == head_memory(api.load(TINY).core).recurrent  # of one token
    report = inspect_file(TINY)["mtp_memory"]
    assert report["off"] == report["absent"] == {"weights": 0, "kv_f16": 0, "kv_f32": 0, "pending": 0}
    assert inspect_file(parts[0])["mtp_memory"] is None


def test_a_stand_alone_head_brings_its_embeddings(parts):
    cost = head_memory(api.load(parts[0], model_draft=parts[1]).core)
    report = inspect_file(parts[1])["mtp_memory"]
    assert cost.weights == report["on"]["weights"]
    assert cost.weights == head_memory(api.load(TINY).core).weights + 2048 * 256 * 34 // 32


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("n_max", [1, 3])
def test_what_a_run_allocates(n_max, is_fused):
    """KV cells come in powers of two; a verify batch keeps n_max + 1 states where plain decoding keeps one. The kernel
    of a whole layer keeps the state before the batch, the one after it, and the rows that lie between them."""
    model = api.load(TINY)
    if not is_fused:
        recipe = model.core.recipe.with_ops(delta_layer=compose.delta_layer)
        model.core = replace(model.core, recipe=recipe)
    elif not kernels.available():
        pytest.skip("NUMBA_DISABLE_JIT is set: no kernels")
    cost = head_memory(model.core)
    run = model.generate("The pie was gone.", Options(n_predict=40, policy=PolicyConfig(n_max=n_max)))
    most = 0
    for _ in run:
        most = max(most, measured(run.state)["planes"])
    got = measured(run.state)
    n_cells = got["kv"] // cost.kv_cell
    assert got["kv"] == cost.kv(n_cells)
    assert n_cells == max(64, 1 << int(np.ceil(np.log2(run.state.heads[0].n_cells))))
    assert got["recurrent"] == cost.recurrent
    assert got["pending"] == cost.pending
    if is_fused:
        assert 2 * cost.recurrent < most < 3 * cost.recurrent
    else:
        assert most >= cost.recurrent + cost.rollback("snapshot", n_max)


def test_inspect_and_generate_say_it(capsys):
    assert cli.main(["inspect", str(TINY)]) == 0
    out = capsys.readouterr().out
    assert "memory of the MTP head\n  absent  nothing\n  off     nothing: its 841.2 kB in the file are not read" in out
    assert "on      weights 841.2 kB; KV of a token 512 bytes in f16, 1.0 kB in f32; hidden row 1.0 kB" in out
    assert cli.main(["generate", "-p", "def f(", "-n", "4", "--json"]) == 0
    done = capsys.readouterr()
    assert "memory of the head: weights 841 kB, KV 512 B a token, roll back 645 kB" in done.err
    record = json.loads(done.out)["memory"]
    assert record["head"] == head_memory(api.load(TINY).core).to_json()
    assert record["allocated"]["kv"] == 64 * 512
    assert cli.main(["generate", "-p", "def f(", "-n", "4", "--spec-type", "none"]) == 0
    assert "memory of the head: nothing; its tensors in the file are not read" in capsys.readouterr().err
