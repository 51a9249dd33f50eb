"""mtpref quantize and imatrix of files with experts: llama.cpp's bytes, matrices of experts one by one."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.heads.quantize import MIXTURES, Settings, Wanted, plan_types, quantize_file
from mtpref.heads.quantize.collect import Collector, product_of, run_text, stacks_of, watched
from mtpref.heads.quantize.importance import Importance, read_importance, write_importance
from mtpref.heads.quantize.mixture import Item, is_quantizable
from tests import quantize_cases as cases
from tests.gguf_copy import llama_cpp
from tests.micro_moe import standard
from tests.samples import one_in

pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
RECORDED = json.loads((Path(__file__).parent / "data" / "quantized_moe.json").read_text())


@pytest.fixture(scope="module", params=RECORDED)
def case(request, tmp_path_factory):
    """(name, file), the importance matrix beside it."""
    path = tmp_path_factory.mktemp("case") / "in.gguf"
    arch, _, name = request.param.partition(" ")
    return request.param, cases.write_case(path, arch, name)


def quantized(path, tmp_path, key, **wanted):
    mixture, _, weighted = key.partition(" ")
    found = read_importance(path.parent / cases.IMATRIX) if weighted else None
    chosen = Wanted(mixture=mixture, has_imatrix=found is not None, **wanted)
    settings = Settings(wanted=chosen, importance=found, importance_name=cases.IMATRIX)
    return quantize_file(path, tmp_path / "out.gguf", settings), tmp_path / "out.gguf"


# LLAMA.CPP'S MIXTURES


@pytest.mark.parametrize("third", one_in(3, range(3)))
@pytest.mark.covering
def test_pure_llama_is_llama_quantize_byte_for_byte(case, third, tmp_path):
    """Every mixture of every architecture with experts, against recorded types and hashes."""
    name, path = case
    assert set(RECORDED[name]) >= set(MIXTURES)
    start = (third + list(RECORDED).index(name)) % 3
    for key, recorded in list(RECORDED[name].items())[start::3]:
        (tmp_path / key).mkdir()
        _, target = quantized(path, tmp_path / key, key, pure_llama=True)
        with open_gguf(target) as file:
            assert cases.told([t.type_name for t in file.tensors.values()]) == recorded["types"], key
        assert hashlib.sha256(target.read_bytes()).hexdigest() == recorded["sha256"], key


def test_the_recorded_files_tell_the_rules_apart():
    """What is recorded differs where a rule that is easily missed is missed."""
    by_block = RECORDED["qwen35moe wide"]["Q4_K_S"]["types"]
    assert "Q5_K" in by_block
    eight, three = (RECORDED[f"glm4moe {name}"]["Q4_K_M"]["types"] for name in ("eight", "wide"))
    assert "Q8_0" in eight
    assert "Q8_0" not in three
    assert "MXFP4" in RECORDED["hy_v3 wide"]["MXFP4_MOE"]["types"]
    assert "F16" in RECORDED["hy_v3 ragged"]["Q4_K_M"]["types"]


def test_live_llama_quantize(case, tmp_path):
    name, path = case
    program = str(llama_cpp("llama-quantize"))
    for key, recorded in RECORDED[name].items():
        flags = ["--imatrix", cases.IMATRIX] if key.endswith("imatrix") else []
        command = [program, *flags, path.name, str(tmp_path / "t.gguf"), key.partition(" ")[0], "1"]
        subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
        assert hashlib.sha256((tmp_path / "t.gguf").read_bytes()).hexdigest() == recorded["sha256"], key


def downs(n_blocks, n_expert, mixture="Q4_K_M"):
    """Type -> the blocks whose ffn_down_exps has it, of a model with a shared expert in every block."""
    items = [Item("token_embd.weight", "F32", (1000, 256))]
    for i in range(n_blocks):
        items.append(Item(f"blk.{i}.ffn_down_exps.weight", "F32", (max(n_expert, 2), 256, 256)))
        items.append(Item(f"blk.{i}.ffn_down_shexp.weight", "F32", (256, 256)))
    types = plan_types(items, Wanted(mixture=mixture, pure_llama=True), n_blocks, 1, n_expert=n_expert)
    found = {}
    for name, kind in types.items():
        if "exps" in name:
            assert types[name.replace("exps", "shexp")] == kind or n_expert < 2
            found.setdefault(kind, []).append(int(name.split(".")[1]))
    return found


def test_a_35b_has_21_blocks_of_more_bits():
    """By the number of the block; by a count of tensors it would be 31."""
    assert len(downs(41, 256)["Q6_K"]) == 21
    assert downs(41, 256)["Q6_K"][:6] == [0, 1, 2, 3, 4, 7]
    assert len(downs(41, 0)["Q6_K"]) == 31


def test_a_down_projection_of_no_block_is_refused_where_its_type_depends_on_it():
    for name in ("ffn_down.weight", "blk.9.ffn_down.weight"):
        with pytest.raises(MtprefError, match=rf"tensor {name}: expected one of blk\.0 to blk\.8"):
            plan_types([Item(name, "F32", (256, 256))], Wanted(mixture="Q4_K_M"), 9, 1, n_expert=4)
    dense = plan_types([Item("ffn_down.weight", "F32", (256, 256))], Wanted(mixture="Q4_0"), 9, 1)
    assert dense["ffn_down.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("shape", "counts"), [((256,), False), ((1, 256), False), ((2, 256), True), ((256, 1), True), ((3, 1, 256), True)]
)
def test_a_single_row_counts_as_a_vector(shape, counts):
    assert is_quantizable(Item("blk.0.ffn_gate_inp_shexp.weight", "F32", shape)) == counts


def test_the_head_is_kept_and_its_router_stays_float(tmp_path):
    _, target = quantized(standard("micro-qwen35moe-f32"), tmp_path, "Q4_0")
    with open_gguf(target) as file:
        head = {t.name: t.type_name for t in file.tensors.values() if t.name.startswith("blk.4.")}
    assert head["blk.4.ffn_down_exps.weight"] == head["blk.4.nextn.eh_proj.weight"] == "Q8_0"
    assert head["blk.4.ffn_gate_inp.weight"] == head["blk.4.ffn_gate_inp_shexp.weight"] == "F32"


def test_mxfp4_of_experts_runs(tmp_path):
    source = standard("micro-glm4moe-f32")
    _, target = quantized(source, tmp_path, "MXFP4_MOE")
    model = mtpref.load(str(target)).core
    ids = list(range(3, 20))
    models = (model, mtpref.load(str(source)).core)
    a, b = (m.trunk(m.new_state(len(ids)), ids, n_logits=1).logits for m in models)
    assert np.linalg.norm(a - b) < 0.5 * np.linalg.norm(b)


# IMPORTANCE OF EXPERTS


N_USED = 3  # of the planted models


def collected(name, ids):
    model = mtpref.load(str(standard(name)), numerics="exact").core
    seen, rows = Collector(stacks_of(model)), {}

    def see(product, x):
        seen.see(product, x)
        rows.setdefault(product, []).append(x.copy())

    run_text(watched(model, see), ids, n_ctx=512)
    return seen, {product: np.concatenate(xs).astype(np.float64) for product, xs in rows.items()}


@pytest.mark.parametrize("name", ["micro-glm4moe-groups-f32", "micro-qwen35moe-90-fused-f32", "micro-hy_v3-fused-f32"])
def test_each_expert_has_the_rows_that_were_routed_to_it(name):
    ids = [(7 * i * i + 3) % 251 for i in range(24)]
    seen, rows = collected(name, ids)
    with open_gguf(standard(name)) as file:
        assert set(seen.sums) <= set(file.tensors)
        stacks = {n for n, t in file.tensors.items() if len(t.shape) == 3}
    assert set(seen.stacks) == stacks == {n for n, (_, counts) in seen.sums.items() if np.ndim(counts)}
    for stack in stacks:
        totals, counts = seen.sums[stack]
        assert counts.sum() == len(ids) * N_USED
        assert seen.unreached().get(stack, 0) == np.count_nonzero(counts == 0)
        for e in range(len(counts)):
            x = next((x for p, x in rows.items() if product_of(p)[::2] == (stack, e)), np.zeros((0, totals.shape[1])))
            assert len(x) == counts[e]
            assert np.allclose(totals[e], (x**2).sum(0))


def test_products_are_named_for_tensor_part_and_expert():
    assert product_of("blk.0.attn_q.weight") == ("blk.0.attn_q.weight", "", None)
    assert product_of("blk.0.attn_qkv.weight/attn_k.weight") == ("blk.0.attn_qkv.weight", "attn_k.weight", None)
    assert product_of("a.weight[12]") == ("a.weight", "", 12)
    assert product_of("a.weight/b.weight[3]") == ("a.weight", "b.weight", 3)


def test_the_file_is_laid_out_as_llama_imatrix_does_it(tmp_path):
    sums = np.arange(6, dtype=np.float64).reshape(3, 2)
    write_importance(tmp_path / "i.gguf", {"e": (sums, np.array([2, 0, 4])), "d": (sums[2], 5)}, ["t"], 1, 512)
    with open_gguf(tmp_path / "i.gguf") as file:
        assert {n: t.shape for n, t in file.tensors.items()} == {
            "d.in_sum2": (2,), "d.counts": (1,), "e.in_sum2": (3, 2), "e.counts": (3, 1)
        }  # fmt: skip
    found = read_importance(tmp_path / "i.gguf")
    assert found.columns["e"].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0, 1.25]  # nothing seen: 1, as in llama-quantize
    assert found.columns["d"].tolist() == [np.float32(0.8), 1.0]
    assert found.unseen == {"e": 1}


def test_columns_of_other_experts_are_refused():
    found = Importance({"e": np.ones(6, np.float32)})
    assert found.of("e", (3, 8, 2)).shape == (3, 2)
    assert found.of("other", (3, 8, 2)) is None
    for shape in ((2, 8, 2), (8, 2), (3, 8, 3)):
        with pytest.raises(MtprefError, match="e has 6 columns, expected"):
            found.of("e", shape)


@pytest.mark.parametrize("count", [-1.0, np.nan, np.inf])
def test_a_count_that_is_none_is_refused(tmp_path, count):
    tensors = [
        ("a.in_sum2", "F32", (2, 1), np.ones((2, 1), np.float32)),
        ("a.counts", "F32", (2, 1), np.array([[1], [count]], np.float32)),
    ]
    write_gguf(tmp_path / "i.gguf", [("general.type", "imatrix", "str")], tensors)
    with pytest.raises(MtprefError, match="a number that is no count"):
        read_importance(tmp_path / "i.gguf")


def test_pieces_of_a_file_do_not_matter(tmp_path, monkeypatch):
    """Each expert keeps its own columns wherever a piece ends."""
    path = cases.write_case(tmp_path / "in.gguf", "glm4moe", "wide")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = quantized(path, tmp_path / "a", "Q4_0 imatrix")[1].read_bytes()
    monkeypatch.setattr("mtpref.files.gguf.reader.PIECE_VALUES", 800)
    assert quantized(path, tmp_path / "b", "Q4_0 imatrix")[1].read_bytes() == whole


def test_experts_that_no_text_reached_are_said(tmp_path, capsys):
    model, text = str(standard("micro-glm4moe-f32")), tmp_path / "t.txt"
    text.write_text("a text of a few tokens")
    out = tmp_path / "i.gguf"
    assert main(["imatrix", "-m", model, "-f", str(text), "-o", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "no text reached" in line]
    assert len(said) == 1
    assert " of 20 in blk.1, " in said[0]
    assert main(["quantize", model, str(tmp_path / "q.gguf"), "Q4_0", "--imatrix", str(out)]) == 0
    assert "has no row for" in capsys.readouterr().err
