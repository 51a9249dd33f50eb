"""deepseek4's files: two into one only where streams are put together alike, checkpoints, quantise, faults."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject, is_possible
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.heads.quantize import MIXTURES, Settings, Wanted, quantize_file
from mtpref.heads.quantize.collect import Collector, run_text, stacks_of, watched
from tests.gguf_copy import copy_of
from tests.hf_folder import write_checkpoint
from tests.micro_moe import standard
from tests.moe_folder import CONFIGS, folder, state, tokenizer
from tests.samples import one_in
from tests.test_moe_model import edited

ROOT = Path(__file__).parent.parent
PLAIN, TRUNK, HEAD = "micro-deepseek4-f32", "micro-deepseek4-trunk-f32", "micro-deepseek4-head-f32"
QUANTISED = json.loads((ROOT / "tests" / "data" / "quantized_streams.json").read_text())
NAME = "output_hc_fn.weight"


def told(capsys, *words, code=2):
    """The one line of a verb that fails."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    return err


def tensors(path):
    with open_gguf(path) as file:
        return {name: (t.type_name, t.shape, file.data(name).tobytes()) for name, t in file.tensors.items()}


# TWO FILES AND ONE


def test_a_head_with_streams_of_its_own_is_not_put_into_the_trunks_file(tmp_path, capsys):
    err = told(capsys, "graft", standard(TRUNK), standard(HEAD), "-o", tmp_path / "x.gguf", "--no-probe")
    assert f"tensor {NAME} differs" in err
    assert "keep two files" in err
    assert not (tmp_path / "x.gguf").exists()


def test_one_whose_streams_are_the_trunks_is(tmp_path):
    assert main(["extract", str(standard(PLAIN)), "-o", str(tmp_path / "head.gguf")]) == 0
    assert main(["graft", str(standard(TRUNK)), str(tmp_path / "head.gguf"), "-o", str(tmp_path / "x.gguf"),
                 "--no-probe"]) == 0  # fmt: skip
    assert tensors(tmp_path / "x.gguf") == tensors(standard(PLAIN))


def test_a_single_value_of_another_stream_is_enough(tmp_path, capsys):
    kv, found = copy_of(standard(PLAIN))
    made = []
    for name, kind, shape, data in found:
        if name == "output_hc_base.weight":
            data = np.array(data)
            data[0] ^= 1
        made.append((name, kind, shape, data))
    write_gguf(tmp_path / "other.gguf", kv, made)
    err = told(capsys, "graft", standard(TRUNK), tmp_path / "other.gguf", "-o", tmp_path / "x.gguf", "--no-probe")
    assert "output_hc_base.weight differs" in err


def test_arrays_of_blocks_are_cut_with_the_head_and_grow_with_it(tmp_path):
    main(["strip", str(standard(PLAIN)), "-o", str(tmp_path / "t.gguf")])
    with open_gguf(tmp_path / "t.gguf") as file:
        assert [len(file.kv[f"deepseek4.{key}"]) for key in ("swiglu_clamp_exp", "attention.compress_ratios")] == [4, 4]
    load(tmp_path / "t.gguf")


def test_a_head_file_without_its_streams_is_refused(tmp_path):
    edited(standard(HEAD), tmp_path / "h.gguf", {}, drop=("output_hc",))
    with pytest.raises(MtprefError, match=rf"tensor {NAME} is missing"):
        load(standard(TRUNK), model_draft=tmp_path / "h.gguf")


def test_a_counted_head_that_is_not_there_makes_no_layer_the_head(tmp_path):
    """llama.cpp looks for eh_proj and takes every block for the trunk's where it is not there."""
    edited(standard(TRUNK), tmp_path / "t.gguf", {"nextn_predict_layers": (1, "u32")})
    model, whole = load(tmp_path / "t.gguf"), load(standard(TRUNK))
    assert len(model.layers) == 4
    assert "every block is taken for the trunk's" in model.notes[0]
    a, b = (m.trunk(m.new_state(), [1, 2, 3], n_logits=1).logits for m in (model, whole))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(("value", "found"), [(8, "holds 8, expected 0 .. 7"), (-1, "holds -1, expected 0 .. 7")])
def test_an_expert_that_is_not_there_is_refused(value, found, tmp_path):
    kv, made = copy_of(standard(PLAIN))
    bad = np.full(1, value, "<i4").view(np.uint8)
    made = [(n, k, s, np.concatenate([bad, d[4:]]) if n.endswith("tid2eid.weight") else d) for n, k, s, d in made]
    write_gguf(tmp_path / "bad.gguf", kv, made)
    with pytest.raises(MtprefError, match=f"ffn_gate_tid2eid.weight {found}"):
        load(tmp_path / "bad.gguf")


# CHECKPOINTS


def test_a_checkpoint_becomes_what_its_tensors_are(tmp_path):
    named, n = state("deepseek4"), 4
    assert main(["convert", str(folder(tmp_path / "hf", "deepseek4", dtype="F32")), "-o", str(tmp_path / "c.gguf"),
                 "--outtype", "f32"]) == 0  # fmt: skip
    with open_gguf(tmp_path / "c.gguf") as file:

        def values(name, dtype=np.float32):
            return file.data(name).view(dtype).reshape(file.tensors[name].shape)

        both = np.concatenate([named["mtp.0.e_proj.weight"], named["mtp.0.h_proj.weight"]], axis=1)
        assert np.array_equal(values(f"blk.{n}.nextn.eh_proj.weight"), both)
        assert np.array_equal(values("blk.0.ffn_gate_tid2eid.weight", np.int32), named["layers.0.ffn.gate.tid2eid"])
        assert np.array_equal(values("blk.1.attn_output_a.weight"), named["layers.1.attn.wo_a.weight"])
        assert np.array_equal(values("blk.1.attn_compressor_ape.weight"), named["layers.1.attn.compressor.ape"])
        assert np.array_equal(values(NAME), named["hc_head_fn"])
        for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            stack = np.stack([named[f"mtp.0.ffn.experts.{e}.{theirs}.weight"] for e in range(6)])
            assert np.array_equal(values(f"blk.{n}.ffn_{ours}_exps.weight"), stack)
        assert "blk.0.exp_probs_b.bias" not in file.tensors
        assert list(file.kv["deepseek4.attention.compress_ratios"]) == [4, 128, 0, 4, 0]
        assert len(file.kv["deepseek4.swiglu_clamp_exp"]) == 5
    assert load(tmp_path / "c.gguf").has_mtp


def other_head(named):
    return named | {"mtp.0.hc_head_fn": named["hc_head_fn"] + np.float32(1)}


def test_a_checkpoint_whose_head_has_streams_of_its_own_becomes_two_files(tmp_path, capsys):
    source = write_checkpoint(tmp_path / "hf", other_head(state("deepseek4")), CONFIGS["deepseek4"],
                              tokenizer("deepseek4"), dtype="F32")  # fmt: skip
    err = told(capsys, "convert", source, "-o", tmp_path / "c.gguf")
    assert "mtp.0.hc_head_fn" in err
    assert "make two files" in err
    for flag in ("--mtp", "--no-mtp"):
        assert main(["convert", str(source), "-o", str(tmp_path / f"c{flag}.gguf"), "--outtype", "f32", flag]) == 0
    a, b = (tensors(tmp_path / f"c{flag}.gguf") for flag in ("--no-mtp", "--mtp"))
    assert a[NAME] != b[NAME]
    model = load(tmp_path / "c--no-mtp.gguf", model_draft=tmp_path / "c--mtp.gguf")
    assert not np.array_equal(model.heads[0].weights.roots["output_hc_fn.weight"].raw,
                              model.weights.roots["output_hc_fn.weight"].raw)  # fmt: skip


WRONG = {
    "half of eh_proj": (lambda x: x.pop("mtp.0.h_proj.weight"), "mtp.0.h_proj.weight is missing beside"),
    "another height": (lambda x: x.update({"mtp.0.h_proj.weight": np.zeros((32, 64), np.float32)}), "as many rows"),
    "a table of floats": (
        lambda x: x.update({"layers.0.ffn.gate.tid2eid": np.zeros((288, 2), np.float32)}), "a table of I32 or I64"
    ),
    "an expert too many": (
        lambda x: x.update({"layers.0.ffn.gate.tid2eid": np.full((288, 2), 6, np.int64)}), "holds 6, expected 0 .. 5"
    ),
    "no table": (lambda x: x.pop("layers.0.ffn.gate.tid2eid"), "blk.0.ffn_gate_tid2eid.weight"),
    "a weight of integers": (
        lambda x: x.update({"layers.1.attn.wkv.weight": np.zeros((32, 64), np.int64)}), "expected floats"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_is_not_whole_is_refused(case, tmp_path, capsys):
    change, text = WRONG[case]
    named = state("deepseek4")
    change(named)
    source = write_checkpoint(tmp_path / "hf", named, CONFIGS["deepseek4"], tokenizer("deepseek4"), dtype="F32")
    assert text in told(capsys, "convert", source, "-o", tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()


# QUANTISE


@pytest.mark.parametrize("third", one_in(3, range(3)))
@pytest.mark.parametrize("name", QUANTISED)
def test_quantize_is_llama_quantize_byte_for_byte(name, third, tmp_path):
    """Tables of integers are copied; MXFP4_MOE is among the mixtures."""
    pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
    recorded = QUANTISED[name]
    assert hashlib.sha256(standard(name).read_bytes()).hexdigest() == recorded["model"]
    assert set(recorded["files"]) == set(MIXTURES)
    for mixture, digest in list(recorded["files"].items())[third::3]:
        target = tmp_path / f"{mixture}.gguf"
        quantize_file(standard(name), target, Settings(wanted=Wanted(mixture=mixture, pure_llama=True)))
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest, mixture


def test_a_table_comes_through_with_its_bytes(tmp_path):
    target = tmp_path / "q.gguf"
    quantize_file(standard(PLAIN), target, Settings(wanted=Wanted(mixture="Q8_0")))
    name = "blk.0.ffn_gate_tid2eid.weight"
    assert tensors(target)[name] == tensors(standard(PLAIN))[name]


def test_inputs_of_grouped_and_stream_products_are_seen(tmp_path):
    import mtpref

    core, ids = mtpref.load(str(standard(PLAIN)), numerics="exact").core, list(range(3, 43))
    rows = {}
    core.trunk(core.new_state(), ids, n_logits=0, tap=lambda n, x: rows.setdefault(n, np.array(x, np.float64)))
    collector = Collector(stacks_of(core))
    run_text(watched(core, collector.see), ids, n_ctx=512)
    sums, counts = collector.sums["blk.1.attn_output_a.weight"]
    groups = rows["attn_derope-1"].reshape(40, 2, 64)
    assert np.allclose(np.ravel(sums), (groups**2).sum(axis=(0, 1)), rtol=1e-6)
    assert np.ravel(counts).tolist() == [80]
    for name in ("blk.1.hc_attn_fn.weight", "blk.0.indexer.proj.weight", "blk.4.nextn.eh_proj.weight"):
        assert (np.ravel(collector.sums[name][0]) > 0).all()


# FAULTS


def test_a_fault_of_a_step_that_no_layer_calls_is_refused():
    model = load(standard(PLAIN), make_recipe("ggml"))
    for id in ("G2-pre-norm-hidden", "G3-no-attention", "G5b-no-rope", "E9-shared-forgotten", "C1-chain-pre-norm"):
        assert not is_possible(FAULTS[id], model)
        with pytest.raises(MtprefError, match="it cannot be in this model"):
            inject(model, FAULTS[id])
    for id in ("W1-norm-shift", "C3-last-verify-row", "E2-selection-unbiased", "K1-prompt-one-short"):
        assert is_possible(next(f for known, f in FAULTS.items() if known.split("-")[0] == id.split("-")[0]), model)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("compress_ratios", [0, 128, 0, 128, 0], "has no layer of ratio 4: llama.cpp dies of such a file when it is"),
        ("key_length", 64, "indexer.key_length is 64, as attention.key_length: llama.cpp dies of such a file"),
    ],
)
def test_what_llama_cpp_dies_of_is_said(tmp_path, capsys, key, value, words):
    pairs, held = copy_of(standard(PLAIN))
    name = f"deepseek4.attention.{key}"
    write_gguf(tmp_path / "m.gguf", [(k, value if k == name else x, kind) for k, x, kind in pairs], held)
    main(["inspect", str(tmp_path / "m.gguf")])
    assert words in " ".join(capsys.readouterr().out.split())
