"""The matrices of an indexer in importance matrices and in a calibrated head."""

import numpy as np
import pytest

import mtpref
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.heads.quantize.collect import Collector, run_text, stacks_of, watched
from tests.micro_moe import standard

pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
FILES = {"micro-deepseek32-f32": (0, 1, 2, 3), "micro-glm-dsa-f32": (0, 2)}


@pytest.mark.parametrize("name", FILES)
def test_an_indexers_matrices_have_the_squares_of_what_they_are_multiplied_with(name):
    model, ids = mtpref.load(str(standard(name)), numerics="exact").core, list(range(3, 43))
    rows = {}
    model.trunk(model.new_state(), ids, n_logits=0, tap=lambda n, x: rows.setdefault(n, np.array(x, np.float64)))
    collector = Collector(stacks_of(model))
    run_text(watched(model, collector.see), ids, n_ctx=512)
    found = collector.sums
    with open_gguf(standard(name)) as file:
        assert set(found) <= set(file.tensors)  # products with cells and with the rotation are none of a file's tensors
    for il in FILES[name]:
        for part in ("attn_k", "proj"):
            sums, count = found[f"blk.{il}.indexer.{part}.weight"]
            assert np.allclose(sums, (rows[f"attn_norm-{il}"] ** 2).sum(axis=0), rtol=1e-6)
            assert count == len(ids)
        low, main_low = (found[f"blk.{il}.{part}.weight"][0] for part in ("indexer.attn_q_b", "attn_q_b"))
        assert np.array_equal(low, main_low)
    assert len([n for n in found if "indexer" in n]) == 3 * len(FILES[name])  # none of the head's


@pytest.mark.parametrize("name", FILES)
def test_an_importance_matrix_is_made_and_taken(name, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("some text, and more of it, that an indexer has to choose from" * 2)
    words = ["imatrix", "-m", str(standard(name)), "-f", str(tmp_path / "text.txt"), "-o", str(tmp_path / "i.gguf")]
    assert main(words) == 0
    with open_gguf(tmp_path / "i.gguf") as file:
        assert "blk.2.indexer.attn_k.weight.in_sum2" in file.tensors
        assert not [n for n in file.tensors if not n.startswith(("blk.", "output", "token_embd"))]
    out = str(tmp_path / "out.gguf")
    assert main(["quantize", str(standard(name)), out, "Q4_0", "--imatrix", str(tmp_path / "i.gguf")]) == 0
    with open_gguf(out) as file:
        assert file.tensors["blk.2.indexer.attn_q_b.weight"].type_name == "Q4_0"
        assert file.tensors["blk.2.indexer.k_norm.bias"].type_name == "F32"
    capsys.readouterr()
    assert main(["generate", "-m", out, "-p", "some text that is long enough", "-n", "8"]) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_head_is_calibrated_and_written(name, tmp_path):
    (tmp_path / "text.txt").write_text("some text that reaches a few experts alone, and those not often")
    more = ["--mtp-type", "Q4_0", "--method", "gptq", "--calibration", str(tmp_path / "text.txt")]
    assert main(["quantize", str(standard(name)), str(tmp_path / "out.gguf"), "Q8_0", *more]) == 0
    with open_gguf(tmp_path / "out.gguf") as file:
        types = {n.removeprefix("blk.4."): t.type_name for n, t in file.tensors.items() if "blk.4." in n}
    assert {types[f"attn_{part}.weight"] for part in ("k_b", "v_b", "q_a", "q_b", "kv_a_mqa", "output")} == {"Q4_0"}
    assert {types[f"ffn_{part}_exps.weight"] for part in ("gate", "up", "down")} == {"Q4_0"}
    assert types["attn_kv_a_norm.weight"] == types["ffn_gate_inp.weight"] == "F32"
    # Nothing runs through the indexer of a head, so it is rounded plainly.
    assert types.get("indexer.attn_k.weight", "Q4_0") == "Q4_0"
