"""The random-model maker: deterministic, readable, right shapes, sane scales, any piece size."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import make_random  # noqa: E402

from mtpref import load  # noqa: E402

SMALL = [
    *("--n-embd", "128", "--n-layer", "4", "--n-ff", "256", "--n-vocab", "600", "--n-head", "4"),
    *("--head-dim", "32", "--n-rot", "16", "--state-size", "32", "--n-k-head", "2", "--n-v-head", "4"),
]


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0"])
def test_matrices_have_the_scale_of_their_rows(type_name, tmp_path):
    path = tmp_path / "m.gguf"
    assert make_random.main(["-o", str(path), "--type", type_name, *SMALL]) == 0
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        if values.ndim == 2 and values.size > 1000:
            assert np.std(values) * values.shape[1] ** 0.5 == pytest.approx(1, rel=0.1), tensor.name


@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K"])
def test_k_blocks_have_the_scale_of_their_rows(type_name):
    raw = np.concatenate(list(make_random.matrix_pieces(1, "w", (300, 512), type_name)))
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name])
    assert np.isfinite(values).all()
    assert np.std(values) * 512**0.5 == pytest.approx(1, rel=0.05)
    assert abs(np.mean(values)) < 0.1 * np.std(values)


# Small ones of every architecture: in these sizes, and what each needs beside them.
OTHERS = {
    "35b-a3b": [*SMALL, "--n-expert", "5", "--n-expert-used", "2", "--n-ff-exp", "64", "--set", "n_ff_shexp=32"],
    "next-80b-a3b": [*SMALL, "--n-expert", "5", "--n-expert-used", "2", "--n-ff-exp", "64", "--set", "n_ff_shexp=32"],
    "glm-4.5-air": [*SMALL[:16], "--n-head-kv", "2", "--n-expert", "5", "--n-expert-used", "2", "--n-ff-exp", "64"],
    "hy3": [
        *SMALL[:16],
        "--n-head-kv",
        "2",
        "--n-expert",
        "5",
        "--n-expert-used",
        "2",
        "--n-ff-exp",
        "64",
        "--set",
        "n_ff_shexp=32",
    ],
}


_SMALL_SPARSE = ["--n-embd", "64", "--n-layer", "4", "--n-vocab", "600", "--n-head", "2", "--n-expert", "4"]
_SMALL_SPARSE += ["--n-expert-used", "2", "--n-ff-exp", "32", "--set", "n_q_latent=32"]
SPARSE = {
    "deepseek-v3.2": ["--n-ff", "64", "--set", "n_dense=1", "--set", "n_expert_group=2"],
    "deepseek-v4-flash": ["--head-dim", "64", "--n-rot", "8", "--set", "n_output_group=2", "--set", "n_best=3"],
}


@pytest.mark.parametrize("shape", SPARSE)
def test_shapes_with_chosen_cells_load_and_run(shape, tmp_path):
    path = tmp_path / "m.gguf"
    more = ["--set", "n_expert_group_used=1"] if shape == "deepseek-v3.2" else []
    assert make_random.main(["-o", str(path), "--shape", shape, *SPARSE[shape], *more, *_SMALL_SPARSE]) == 0
    model = load(path)
    assert not model.core.notes
    out = model.core.trunk(model.core.new_state(40), list(range(33)), n_logits=3)
    assert np.isfinite(out.logits).all()
    if shape == "deepseek-v4-flash":
        assert list(model.core.weights.layers[0]["ffn_gate_tid2eid.weight"].shape) == [600, 2]
        assert [("attn_compressor_kv.weight" in w, "indexer.proj.weight" in w) for w in model.core.weights.layers] == [
            (False, False), (False, False), (True, True), (True, False),
        ]  # fmt: skip


@pytest.mark.parametrize("shape", OTHERS)
def test_every_shape_loads_and_runs(shape, tmp_path):
    path = tmp_path / "m.gguf"
    arguments = [word for word in OTHERS[shape] if word != "--n-ff" or shape not in ("35b-a3b", "next-80b-a3b")]
    if len(arguments) < len(OTHERS[shape]):
        arguments.remove("256")
    if shape == "hy3":
        del arguments[arguments.index("--n-rot") : arguments.index("--n-rot") + 2]
    assert make_random.main(["-o", str(path), "--shape", shape, *arguments]) == 0
    model = load(path)
    assert not model.core.notes
    out = model.core.trunk(model.core.new_state(8), [1, 2, 3], n_logits=3)
    assert np.isfinite(out.logits).all()
    assert len(out.routings) == sum("ffn_gate_inp.weight" in layer for layer in model.core.weights.layers) > 0
    assert len(model.core.heads) == 1


def test_the_shape_of_35b_a3b_is_the_real_one():
    _, shape = make_random.parse_args(["-o", "unused.gguf", "--shape", "35b-a3b", "--set", "n_expert=128"])
    tensors = {name: dims for name, _, dims, _ in make_random.random_tensors(shape, 1, "Q8_0")}
    assert tensors["blk.39.ffn_gate_exps.weight"] == (128, 512, 2048)
    assert tensors["blk.0.ffn_down_shexp.weight"] == (2048, 512)
    assert tensors["blk.3.attn_q.weight"] == (2 * 16 * 256, 2048)
    with pytest.raises(ValueError, match="n_experts"):
        make_random.parse_args(["-o", "unused.gguf", "--set", "n_experts=3"])


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_K"])
def test_bytes_do_not_depend_on_the_piece_size(type_name, tmp_path, monkeypatch):
    files = []
    sizes = [*SMALL, "--n-embd", "256", "--n-v-head", "8"]  # rows that K blocks divide
    for piece in (1 << 18, 1 << 10):
        monkeypatch.setattr(make_random, "PIECE", piece)
        assert make_random.main(["-o", str(tmp_path / "m.gguf"), "--type", type_name, *sizes, "--n-head", "8"]) == 0
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1]


def test_the_default_shape_is_the_0_8b_model():
    _, shape = make_random.parse_args(["-o", "unused.gguf"])
    tensors = {name: dims for name, _, dims, _ in make_random.random_tensors(shape, 1, "Q8_0")}
    assert tensors["token_embd.weight"] == (248320, 1024)
    assert tensors["blk.0.attn_qkv.weight"] == (3 * 2048, 1024)
    assert tensors["blk.3.attn_q.weight"] == (2 * 8 * 256, 1024)
    assert tensors["blk.24.nextn.eh_proj.weight"] == (1024, 2048)
    assert "output.weight" not in tensors


def test_every_merge_of_the_made_up_bpe_gives_a_token(tmp_path):
    make_random.main(["-o", str(tmp_path / "m.gguf"), "--tokenizer", "gpt2", *SMALL])
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    assert len(tokens) == len(set(tokens)) == 600
    assert [merge.replace(" ", "") for merge in merges] == tokens[256:-1]
    assert {part for merge in merges for part in merge.split(" ")} <= set(tokens)


def test_a_row_that_no_block_fits_is_refused(tmp_path, capsys):
    assert make_random.main(["-o", str(tmp_path / "m.gguf"), *SMALL, "--n-ff", "100"]) == 2
    assert "rows of 100 values, expected a multiple of 32 for type Q8_0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
