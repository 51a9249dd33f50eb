"""Matrices of heads (attn_k_b, attn_v_b) in importance matrices and in a calibrated head: each has its own rows."""

import numpy as np
import pytest

import mtpref
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.heads.quantize.collect import Collector, run_text, stacks_of, watched
from tests.micro_moe import standard

pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
FILE = "micro-deepseek2-f32"


def test_each_heads_matrix_has_the_squares_of_its_own_rows():
    model, ids = mtpref.load(str(standard(FILE)), numerics="exact").core, list(range(3, 43))
    rows = {}
    model.trunk(model.new_state(), ids, n_logits=0, tap=lambda n, x: rows.setdefault(n, np.array(x, np.float64)))
    collector = Collector(stacks_of(model))
    run_text(watched(model, collector.see), ids, n_ctx=512)
    found = collector.sums
    assert collector.unreached().keys() <= {n for n in found if "_exps" in n}
    for il in range(4):
        sums, counts = found[f"blk.{il}.attn_k_b.weight"]
        queries = rows[f"q-{il}"].reshape(len(ids), 6, 72)[:, :, :64]
        assert np.allclose(sums, (queries**2).sum(axis=0), rtol=1e-6)
        assert list(counts) == [len(ids)] * 6
        sums, _ = found[f"blk.{il}.attn_v_b.weight"]
        assert sums.shape == (6, 32)
        assert (sums > 0).all()


def test_a_head_is_calibrated_and_written(tmp_path):
    (tmp_path / "text.txt").write_text("some text that reaches a few experts alone, and those not often")
    more = ["--mtp-type", "Q4_0", "--method", "gptq", "--calibration", str(tmp_path / "text.txt")]
    assert main(["quantize", str(standard(FILE)), str(tmp_path / "out.gguf"), "Q8_0", *more]) == 0
    with open_gguf(tmp_path / "out.gguf") as file:
        types = {name.removeprefix("blk.4."): t.type_name for name, t in file.tensors.items() if "blk.4." in name}
    assert {types[f"attn_{part}.weight"] for part in ("k_b", "v_b", "q_a", "q_b", "kv_a_mqa", "output")} == {"Q4_0"}
    assert types["attn_kv_a_norm.weight"] == types["ffn_gate_inp.weight"] == "F32"
