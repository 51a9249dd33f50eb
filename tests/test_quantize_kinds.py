"""Importance matrices and calibrated heads of streams, of windows with sinks, of chains and of blocks side by side."""

import pytest

from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from tests.micro_moe import standard

pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
# A trunk's and a head's matrix, and tensors that keep their type.
FILES = {
    "micro-deepseek4-f32": ("blk.0.attn_output_a.weight", ("blk.4.attn_q_b.weight",), "blk.0.ffn_gate_tid2eid.weight"),
    "micro-step35-f32": (
        "blk.1.attn_gate.weight",
        ("blk.4.attn_q.weight", "blk.5.attn_q.weight"),
        "blk.1.attn_q_norm.weight",
    ),
    "micro-mimo2-f32": (
        "blk.1.attn_q.weight",
        ("blk.4.attn_qkv.weight", "blk.5.attn_qkv.weight"),
        "blk.1.attn_norm.weight",
    ),
    "micro-cohere2moe-f32": ("blk.1.attn_q.weight", ("blk.4.attn_q.weight",), "blk.1.attn_norm.weight"),
    "micro-nemotron_h_moe-f32": ("blk.0.ssm_in.weight", ("blk.4.attn_q.weight",), "blk.0.ssm_a"),
    "micro-bailingmoe3-f32": ("blk.0.ssm_f_a.weight", ("blk.4.attn_q_a.weight",), "blk.0.ssm_conv1d_k.weight"),
}
USUAL = ("micro-deepseek4-f32", "micro-step35-f32")


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_an_importance_matrix_and_a_calibrated_head(name, tmp_path, capsys):
    matrix, heads, kept = FILES[name]
    model, text = str(standard(name)), str(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text("some text, and more of it, that reaches a few experts alone")
    assert main(["imatrix", "-m", model, "-f", text, "-o", str(tmp_path / "i.gguf")]) == 0
    with open_gguf(tmp_path / "i.gguf") as file:
        assert f"{matrix}.in_sum2" in file.tensors
        assert f"{kept}.in_sum2" not in file.tensors
    more = ["--imatrix", str(tmp_path / "i.gguf"), "--mtp-type", "Q4_0", "--method", "gptq", "--calibration", text]
    out = str(tmp_path / "out.gguf")
    assert main(["quantize", model, out, "Q4_0", *more]) == 0
    with open_gguf(out) as file, open_gguf(model) as source:
        assert {file.tensors[one].type_name for one in (matrix, *heads)} == {"Q4_0"}
        assert file.tensors[kept].type_name == source.tensors[kept].type_name
    capsys.readouterr()
    assert main(["generate", "-m", out, "-p", "some text", "-n", "8"]) == 0
    assert "n_drafted" in capsys.readouterr().err
