"""mtpref quantize and imatrix: llama.cpp's types and bytes where they are asked for, and the head kept where not."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from mtpref.heads.check import check_path
from mtpref.heads.quantize import MIXTURES, Settings, Wanted, plan_types, quantize_file
from mtpref.heads.quantize.collect import Collector, run_text, watched
from mtpref.heads.quantize.importance import read_importance, write_importance
from mtpref.heads.quantize.mixture import Item, fitting
from mtpref.spec.quants import dequantize
from tests.broken_heads import edited, in_type, is_eh_proj, one_nan, write
from tests.gguf_copy import llama_cpp
from tests.quantize_cases import TINY_IMATRIX, TINY_MIXTURES, write_tiny
from tools import record_quantisers

pytest.importorskip("libgguf", reason="K-quants need the extra quantize")
RECORDED = json.loads((Path(__file__).parent / "data" / "quantized.json").read_text())
HEAD = "blk.4."


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("q"))


@pytest.fixture(scope="module")
def importance(source):
    return source.with_name(TINY_IMATRIX)


def quantized(source, tmp_path, mixture, **wanted):
    target = tmp_path / "out.gguf"
    return quantize_file(source, target, Settings(wanted=Wanted(mixture=mixture, **wanted))), target


def types_of(path):
    with open_gguf(path) as file:
        return {t.name: t.type_name for t in file.tensors.values()}


# LLAMA.CPP'S MIXTURES


@pytest.mark.parametrize("mixture", [name for name in TINY_MIXTURES if " " not in name])
def test_pure_llama_is_llama_quantize_byte_for_byte(source, tmp_path, mixture):
    """Against recorded hashes; test_live_llama_quantize makes them anew."""
    _, target = quantized(source, tmp_path, mixture, pure_llama=True)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == RECORDED[mixture]


@pytest.mark.parametrize("mixture", ["Q4_K_M", "Q4_0"])
def test_an_importance_matrix_gives_llama_quantizes_bytes(source, importance, tmp_path, mixture):
    found = read_importance(importance)
    settings = Settings(
        wanted=Wanted(mixture=mixture, pure_llama=True, has_imatrix=True),
        importance=found,
        importance_name=TINY_IMATRIX,
    )
    quantize_file(source, tmp_path / "out.gguf", settings)
    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == RECORDED[mixture + " imatrix"]


def test_live_llama_quantize():
    assert record_quantisers.record_tiny(llama_cpp("llama-quantize")) == RECORDED


def model_of(n_blocks, n_embd=256, n_ff=512):
    """Names and shapes of a qwen35 model whose every fourth layer is attention, and the last an MTP block."""
    items = [Item("token_embd.weight", "F32", (1000, n_embd)), Item("output_norm.weight", "F32", (n_embd,))]
    for i in range(n_blocks):
        is_head = i == n_blocks - 1
        names = (
            ["attn_q", "attn_k", "attn_v", "attn_output"]
            if is_head or i % 4 == 3
            else ["attn_qkv", "attn_gate", "ssm_out"]
        )
        names += ["ffn_gate", "ffn_up"] + (["nextn.eh_proj"] if is_head else [])
        items += [Item(f"blk.{i}.{name}.weight", "F32", (n_embd, n_embd)) for name in names]
        items.append(Item(f"blk.{i}.ffn_down.weight", "F32", (n_embd, n_ff)))
    return items


@pytest.mark.parametrize(("n_trunk", "changed"), [(24, []), (32, []), (40, []), (64, []), (60, [52])])
def test_the_head_moves_the_other_layers_types_only_where_it_is_known_to(n_trunk, changed):
    """A block more changes n by one: layer 52 of 60 falls from Q6_K to Q4_K."""
    alone = plan_types(model_of(n_trunk + 1)[:-8], Wanted(mixture="Q4_K_M", pure_llama=True), n_trunk, 0)
    both = plan_types(model_of(n_trunk + 1), Wanted(mixture="Q4_K_M", pure_llama=True), n_trunk + 1, 1)
    differ = sorted({int(name.split(".")[1]) for name in alone if alone[name] != both[name]})
    assert [i for i in differ if i < n_trunk] == changed


def test_llama_quantize_makes_the_join_four_bits_and_mtpref_does_not():
    pure = plan_types(model_of(25), Wanted(mixture="Q4_K_M", pure_llama=True), 25, 1)
    kept = plan_types(model_of(25), Wanted(mixture="Q4_K_M"), 25, 1)
    assert pure["blk.24.nextn.eh_proj.weight"] == "Q4_K"
    assert pure["blk.24.attn_v.weight"] == pure["blk.24.ffn_down.weight"] == "Q6_K"
    assert {kept[name] for name in kept if name.startswith("blk.24.")} == {"Q8_0"}
    assert all(kept[name] == pure[name] for name in kept if not name.startswith("blk.24."))


def test_rows_that_a_block_does_not_divide_fall_back():
    assert [fitting(kind, 288) for kind in ("Q4_K", "Q5_K", "Q6_K", "Q8_0")] == ["Q5_0", "Q5_1", "Q8_0", "Q8_0"]
    assert fitting("Q4_K", 100) == "F16"
    assert {kind for kind, _ in MIXTURES.values()} >= {"Q4_K", "Q6_K"}


# THE HEAD


def test_by_default_the_head_stays_at_q8_0_and_is_said(source, tmp_path, capsys):
    target = tmp_path / "out.gguf"
    assert main(["quantize", str(source), str(target), "Q4_0"]) == 0
    kinds = types_of(target)
    assert {kinds[name] for name in kinds if name.startswith(HEAD) and "norm" not in name} == {"Q8_0"}
    assert kinds["blk.0.ffn_gate.weight"] == "Q4_0"
    assert "MTP head: 8 Q8_0; " in capsys.readouterr().out


def test_mtp_type_and_overrides(source, tmp_path):
    wanted = {"mtp_type": "F16", "overrides": ((r"blk\.0\.ffn_down", "Q6_K"), (r"eh_proj", "F32"))}
    _, target = quantized(source, tmp_path, "Q4_0", **wanted)
    kinds = types_of(target)
    assert kinds["blk.0.ffn_down.weight"] == "Q6_K"
    assert kinds[HEAD + "nextn.eh_proj.weight"] == "F32"
    assert kinds[HEAD + "attn_q.weight"] == "F16"
    with pytest.raises(MtprefError, match="no tensor's name matches"):
        quantized(source, tmp_path, "Q4_0", overrides=(("nothing", "Q8_0"),))
    with pytest.raises(MtprefError, match="no regular expression"):
        quantized(source, tmp_path, "Q4_0", overrides=(("(", "Q8_0"),))


def test_the_result_runs_and_is_sound(source, tmp_path):
    _, target = quantized(source, tmp_path, "Q4_K_M")
    assert check_path(target).is_sound
    run = mtpref.load(str(target)).generate("Once upon a time", mtpref.Options(n_predict=24))
    for _ in run:
        pass
    assert run.statistics.n_accepted > 5


def test_values_are_near(source, tmp_path):
    _, target = quantized(source, tmp_path, "Q6_K")
    with open_gguf(source) as a, open_gguf(target) as b:
        for info in b.tensors.values():
            x, y = (
                dequantize(t.type_name, f.data(t), t.shape).astype(float)
                for f, t in ((a, a.tensors[info.name]), (b, info))
            )
            assert np.linalg.norm(x - y) <= 0.03 * np.linalg.norm(x)


def test_pieces_do_not_matter(source, tmp_path, monkeypatch):
    _, target = quantized(source, tmp_path, "Q4_K_M")
    whole = target.read_bytes()
    monkeypatch.setattr("mtpref.files.gguf.reader.PIECE_VALUES", 5000)
    _, target = quantized(source, tmp_path, "Q4_K_M")
    assert target.read_bytes() == whole


# REFUSALS


def test_what_is_quantised_already_is_refused(tmp_path):
    q8 = write(tmp_path / "q8.gguf", in_type("Q8_0"))
    with pytest.raises(MtprefError, match="is Q8_0 already"):
        quantized(q8, tmp_path, "Q4_0")
    quantize_file(q8, tmp_path / "out.gguf", Settings(wanted=Wanted(mixture="Q4_0"), allow_requantize=True))


def test_nan_is_named_and_nothing_is_left(source, tmp_path):
    bad = write(tmp_path / "bad.gguf", edited(is_eh_proj, one_nan), source)
    with pytest.raises(MtprefError, match=r"eh_proj\.weight holds NaN or infinity"):
        quantized(bad, tmp_path, "Q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


def test_the_library_is_asked_for_before_a_byte_is_written(source, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "libgguf", None)
    with pytest.raises(MtprefError, match="pip install libgguf"):
        quantized(source, tmp_path, "Q4_K_M")
    assert not (tmp_path / "out.gguf").exists()
    quantized(source, tmp_path, "Q4_0", overrides=(("token_embd", "Q8_0"),))  # needs none


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tensor", "x"],
        ["--tensor", "x=Q9"],
        ["--mtp-type", "Q9"],
        ["--mtp-type", "Q8_0", "--pure-llama"],
        ["--imatrix", "no"],
    ],
)
def test_bad_options_end_in_one_line(source, tmp_path, capsys, arguments):
    assert main(["quantize", str(source), str(tmp_path / "out.gguf"), "Q4_0", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# IMPORTANCE


def test_importance_is_the_mean_square_of_what_goes_in(tmp_path):
    model = mtpref.load().core
    ids = model.vocab.encode("def main(argv):\n    return 0\n")
    seen, rows = Collector(), {}

    def see(name, x):
        seen.see(name, x)
        rows.setdefault(name, []).append(x.copy())

    assert run_text(watched(model, see), ids, n_ctx=512) == 1
    for name, (total, n) in seen.sums.items():
        x = np.concatenate(rows[name]).astype(np.float64)
        assert n == len(x) == len(ids)
        assert np.allclose(total, (x**2).sum(0))
    assert sum(name.startswith(HEAD) for name in seen.sums) == 8
    write_importance(tmp_path / "i.gguf", seen.sums, ["t"], 1, 512)
    found = read_importance(tmp_path / "i.gguf")
    name = HEAD + "nextn.eh_proj.weight"
    assert np.allclose(found.columns[name], seen.sums[name][0] / seen.sums[name][1], rtol=1e-6)
    assert found.datasets == ("t",)


def test_watching_changes_no_bit():
    model = mtpref.load().core
    ids = model.vocab.encode("import os\n")
    a, b = (m.trunk(m.new_state(len(ids)), ids, n_logits=1) for m in (model, watched(model, lambda name, x: None)))
    assert np.array_equal(a.logits, b.logits)


def test_the_head_of_one_text_is_what_the_loop_feeds_it():
    """Pairing: the head's first product has the embedding of x_p beside the hidden row of p - 1."""
    model = mtpref.load().core
    ids = model.vocab.encode("a b c d")
    rows = {}
    run_text(watched(model, lambda name, x: rows.setdefault(name, x.copy())), ids, n_ctx=512)
    x = rows[HEAD + "nextn.eh_proj.weight"]
    hidden = model.trunk(model.new_state(len(ids)), ids, n_logits=0).hidden.post
    n = x.shape[1] // 2
    hnorm = model.heads[0].weights.hnorm
    expected = model.recipe.ops.rms_norm(hidden, hnorm, model.config.rms_eps)
    assert np.array_equal(x[1:, n:], expected[:-1])
    assert not np.any(x[0, n:])  # position 0 has no row before it


def dat(entries, tail=b""):
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        raw = name.encode()
        out += (
            struct.pack("<i", len(raw))
            + raw
            + struct.pack("<ii", calls, len(values))
            + np.asarray(values, "<f4").tobytes()
        )
    return out + tail


def test_the_old_format(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(dat([("a.weight", 2, [2.0, 4.0])], struct.pack("<ii", 3, 1) + b"t"))
    found = read_importance(path)
    assert found.columns["a.weight"].tolist() == [1.0, 2.0]
    assert (found.n_chunks, found.datasets) == (3, ("t",))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1\0\0\0",
        dat([("a", 1, [float("nan")])]),
        dat([("a", 1, [-1.0])]),
        struct.pack("<i", -1),
        struct.pack("<ii", 1, 1 << 30),
    ],
)
def test_damaged_importance_is_refused(tmp_path, raw):
    (tmp_path / "i.dat").write_bytes(raw)
    with pytest.raises(MtprefError):
        read_importance(tmp_path / "i.dat")


def test_importance_of_another_model_is_refused(source, tmp_path):
    (tmp_path / "i.dat").write_bytes(dat([("blk.0.ffn_down.weight", 1, [1.0])]))
    settings = Settings(
        wanted=Wanted(mixture="Q4_0", has_imatrix=True),
        importance=read_importance(tmp_path / "i.dat"),
        importance_name="i.dat",
    )
    with pytest.raises(MtprefError, match="has 1 columns, expected 512"):
        quantize_file(source, tmp_path / "out.gguf", settings)
