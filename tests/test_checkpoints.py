"""Quantised checkpoints, folder by folder: llama.cpp's files, the float folder's bytes, every verb, what is refused."""

import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf
from mtpref.files.tensor_files.safetensors import SafetensorsFile, write_safetensors
from mtpref.front.cli import main
from mtpref.heads.check.against import Other, compare
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import open_checkpoint
from tests.hf_folder import bf16_bits, read_state, write_checkpoint
from tests.moe_folder import CONFIGS, state, tokenizer
from tests.quantised_folder import CASES, Parts, case_folder, is_linear, rounded, write_quantised, write_tensors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import record_checkpoints as recorder
finally:
    sys.path.pop(0)

RECORDED = Path(__file__).parent / "data" / "checkpoints.json"
TINY = read_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(case, architecture) -> its folder."""

    @lru_cache
    def made(name, arch="qwen35moe"):
        path = tmp_path_factory.mktemp("hf") / "Tiny-5M"
        return case_folder(path, CASES[name], *_model(arch))

    return made


def _model(arch):
    """Tensors, config.json and tokenizer."""
    return TINY if arch == "qwen35" else (state(arch), CONFIGS[arch], tokenizer(arch))


def float_twin(source, path, arch):
    """The same values as a folder of float tensors: F32 where they were quantised."""
    arrays, bf16 = {}, set()
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.names:
            arrays[name] = checkpoint.values(name)
            if checkpoint.dtype(name) == "BF16":
                arrays[name] = bf16_bits(arrays[name])
                bf16.add(name)
    _, config, words = _model(arch)
    write_checkpoint(path, {"lm_head.weight": np.zeros((1, 1), np.float32)}, config, words)
    write_safetensors(path / "model.safetensors", arrays, frozenset(bf16))
    return path


def converted(source, target, **settings):
    made = convert(source, target, Settings(**settings))
    return made, target.read_bytes()


# WHAT IS WRITTEN


@pytest.mark.parametrize("outtype", recorder.TYPES)
@pytest.mark.parametrize("name", [name for name, _ in recorder.folders()])
@pytest.mark.covering
def test_the_file_is_llama_cpps(folder, tmp_path, name, outtype):
    convert(folder(name), tmp_path / "out.gguf", Settings(outtype=outtype, keeps_codes=False))
    assert recorder.digest(tmp_path / "out.gguf") == json.loads(RECORDED.read_text())[f"{name} {outtype}"]


@pytest.mark.oracle
@pytest.mark.skipif("MTPREF_LLAMA_CPP" not in os.environ, reason="MTPREF_LLAMA_CPP does not name a llama.cpp tree")
def test_live_converter():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="llama.cpp's converter needs torch and transformers")
    assert recorder.record_folders(os.environ["MTPREF_LLAMA_CPP"]) == json.loads(RECORDED.read_text())


@pytest.mark.parametrize("arch", ["qwen35", "qwen35moe", "deepseek2"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.covering
def test_the_file_is_that_of_the_float_folder(folder, tmp_path, name, arch):
    source = folder(name, arch)
    twin = float_twin(source, tmp_path / "float" / "Tiny-5M", arch)
    _, theirs = converted(twin, tmp_path / "b.gguf", outtype="q8_0")
    _, ours = converted(source, tmp_path / "a.gguf", outtype="q8_0", keeps_codes=False)
    assert ours == theirs
    if CASES[name].is_head:
        n_linear = sum(is_linear(n, x) for n, x in _model(arch)[0].items())
        with open_checkpoint(source) as checkpoint:
            assert sum(checkpoint.formats().values()) == n_linear


@pytest.mark.parametrize("arch", ["qwen35", "qwen35moe", "deepseek2"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.keeps])
@pytest.mark.covering
def test_codes_are_kept_where_a_type_holds_the_same_values(folder, tmp_path, name, arch):
    made, _ = converted(folder(name, arch), tmp_path / "a.gguf", outtype="f32")
    has_kept = CASES[name].is_head or arch != "qwen35"  # a dense model has no experts
    assert (made.types.get(CASES[name].keeps, 0) > 5) == has_kept
    convert(folder(name, arch), tmp_path / "b.gguf", Settings(outtype="f32", keeps_codes=False))
    with open_gguf(tmp_path / "a.gguf") as kept, open_gguf(tmp_path / "b.gguf") as plain:
        assert list(kept.tensors) == list(plain.tensors)
        for tensor in kept.tensors:
            a, b = (np.concatenate([*file.decoded(file.tensors[tensor])]) for file in (kept, plain))
            assert np.array_equal(a, b), tensor


def test_groups_of_several_formats_in_one_folder(tmp_path, capsys):
    """INT4 experts, FP8 attention, INT8 linear attention and BF16 elsewhere: each by itself, as config.json says."""
    named, config, words = _model("qwen35moe")
    parts = {"mlp.experts": "int4", "self_attn": "fp8 blocks compressed", "linear_attn": "int8"}
    made = {part: CASES[case] for part, case in parts.items()}
    groups = {part: case.config["config_groups"]["group_0"] for part, case in made.items()}
    said = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}

    def encode(name, x):
        case = next((case for part, case in made.items() if part in name), None)
        return case.make(x) if case is not None and is_linear(name, x) else None

    source = write_quantised(tmp_path / "q" / "Tiny-5M", named, {**config, "quantization_config": said}, words, encode)
    with open_checkpoint(source) as checkpoint:
        kinds = {kind.split(",")[0] for kind in checkpoint.formats()}
        assert kinds == {"INT4", "FP8 E4M3", "INT8"}
    _, theirs = converted(float_twin(source, tmp_path / "f" / "Tiny-5M", "qwen35moe"), tmp_path / "b.gguf")
    _, ours = converted(source, tmp_path / "a.gguf", keeps_codes=False)
    assert ours == theirs
    config_path = source / "config.json"
    config_path.write_text(
        config_path.read_text().replace('"block_structure": [24, 40]', '"block_structure": [128, 128]')
    )
    assert main(["convert", str(source), "-o", str(tmp_path / "out.gguf")]) == 2
    assert "self_attn.k_proj.weight_scale: shape (2, 2), expected (1, 1)" in capsys.readouterr().err


# ONE LINE FOR WHAT CANNOT BE READ

NAME = "model.layers.3.self_attn.q_proj"
FP8, PACKED, GPTQ, AWQ, MXFP4 = "fp8 blocks", "int4 zeros", "gptq", "awq", "mxfp4"


def changed(folder, tmp_path, name, change, config=None):
    """A copy of a case's folder whose parts of one tensor were changed: change(parts by ending, types)."""
    source = folder(name)
    path = tmp_path / "hf"
    shutil.copytree(source, path)
    file = SafetensorsFile(path / "model.safetensors")
    arrays = {n: file.codes(n, slice(None)).reshape(file.shape(n)) for n in file.names}
    types = {n: file.dtype(n) for n in file.names}
    file.close()
    own = {n.removeprefix(f"{NAME}."): arrays.pop(n) for n in list(arrays) if n.startswith(f"{NAME}.")}
    kinds = {part: types.pop(f"{NAME}.{part}") for part in own}
    change(own, kinds)
    arrays |= {f"{NAME}.{part}": np.ascontiguousarray(x) for part, x in own.items()}
    types |= {f"{NAME}.{part}": kinds.get(part, "") for part in own}
    bf16 = frozenset(n for n in arrays if types[n] == "BF16")
    small = {n: types[n] for n in arrays if types[n].startswith("F8")}
    write_safetensors(path / "model.safetensors", arrays, bf16, small)
    if config is not None:
        old = json.loads((path / "config.json").read_text())
        config(old["quantization_config"])
        (path / "config.json").write_text(json.dumps(old))
    return path


def put(part, at, value):
    def change(own, _):
        own[part] = own[part].copy()
        own[part].reshape(-1)[at] = value

    return change


def drop(*parts):
    return lambda own, kinds: [own.pop(part) for part in parts]


def cut(part, index):
    return lambda own, kinds: own.update({part: own[part][index]})


def add(**parts):
    return lambda own, kinds: own.update({part.replace("__", "."): np.asarray(x) for part, x in parts.items()})


def both(*changes):
    return lambda own, kinds: [change(own, kinds) for change in changes]


def plain(own, kinds):
    kinds.pop("weight")


def keep(own, kinds):
    pass


def groups(**weights):
    return lambda c: c["config_groups"]["group_0"]["weights"].update(weights)


Q, SCALE = f"{NAME}.weight", "weight_scale_inv"
BAD = {
    "FP8 without scales": (FP8, drop(SCALE), None, f"{Q} is F8_E4M3 and has no scales, expected {Q}_scale_inv"),
    "FP8 scales of another grid": (FP8, cut(SCALE, np.s_[1:]), None, f"{Q}_scale_inv: shape (7, 2), expected (8, 2)"),
    "FP8 NaN scale": (FP8, put(SCALE, 3, np.nan), None, f"{Q}_scale_inv: a scale is nan, expected finite"),
    "FP8 infinite scale": (FP8, put(SCALE, 3, np.inf), None, f"{Q}_scale_inv: a scale is inf, expected finite"),
    "scales of integers": (FP8, add(weight_scale_inv=np.ones((8, 2), np.int32)), None, "is I32, expected floats"),
    "FP8 block of config.json": (
        FP8, keep, lambda c: c.update(weight_block_size=[16, 16]), "shape (7, 2), expected (10, 4) for blocks"),
    "no block": (FP8, keep, lambda c: c.update(weight_block_size=[0, 16]), "weight_block_size[0] is 0"),
    "FP8 scales of float64": (
        FP8, add(weight_scale_inv=np.full((8, 2), 1e300)), None, f"{Q}_scale_inv: a scale is inf, expected finite"),
    "FP8 with two scales": (
        FP8, add(weight_scale=np.ones((8, 2), np.float32)), None,
        f"{Q} is stored as FP8 E4M3, blocks of 24x40 and has {Q}_scale beside it, expected no other part"),
    "scales without codes": (FP8, drop("weight"), None, f"{Q}_scale_inv is there and its codes are not"),
    "plain with scales": (
        FP8, both(drop("weight"), add(weight=np.zeros((192, 64), np.float32)), plain), None, "has model.layers.3"),
    "INT4 without scales": (PACKED, drop("weight_scale"), None, f"{Q}_packed has no scales, expected {Q}_scale"),
    "INT4 without a shape": (PACKED, drop("weight_shape"), None, f"has no {Q}_shape beside it"),
    "INT4 words beyond the shape": (
        PACKED, put("weight_shape", 1, 32), None, f"{Q}_packed: 8 words a row, expected 4 (4 bits) for"),
    "INT4 fewer words than the shape": (PACKED, cut("weight_packed", np.s_[:, :7]), None, f"{Q}_packed: 7 words a row"),
    "INT4 shape of nothing": (PACKED, put("weight_shape", 0, -1), None, f"{Q}_shape: (-1, 64), expected (192, "),
    "INT4 shape of floats": (PACKED, add(weight_shape=np.ones(2, np.float32)), None, "expected two whole numbers"),
    "INT4 groups that do not divide": (
        PACKED, both(cut("weight_scale", np.s_[:, :3]), cut("weight_zero_point", np.s_[:, :3])), None,
        f"{Q}_scale: 3 groups, expected a number that divides the 64 columns"),
    "INT4 zero points of another grid": (
        PACKED, cut("weight_zero_point", np.s_[1:]), None, f"{Q}_zero_point: I32 (23, 4), expected I32 (24, 4)"),
    "INT4 g_idx out of range": (
        PACKED, add(weight_g_idx=np.arange(64, dtype=np.int32) // 8), None, f"{Q}_g_idx: group 4, expected 0 .. 3"),
    "INT4 g_idx below 0": (
        PACKED, add(weight_g_idx=np.arange(64, dtype=np.int32) // 16 - 1), None, f"{Q}_g_idx: group -1, exp"),
    "INT4 g_idx of another length": (
        PACKED, add(weight_g_idx=np.zeros(63, np.int32)), None, f"{Q}_g_idx: I32 (63,), expected I32 (64,)"),
    "another group_size": (
        PACKED, keep, groups(group_size=128), "group_size 16, with zero points, config.json"),
    "another number of bits": (PACKED, keep, groups(num_bits=8), "8 words a row, expected 16 (8 bits) for the 64"),
    "symmetric by config.json": (PACKED, keep, groups(symmetric=True), "group_size 16, symmetric"),
    "no groups": (PACKED, keep, lambda c: c.update(config_groups=[]), "config_groups is an empty list"),
    "a group of text": (PACKED, keep, lambda c: c.update(config_groups={"g": "x"}), "config_groups.g is 'x'"),
    "left alone by config.json": (PACKED, keep, lambda c: c.update(ignore=[NAME]), "config leaves it alone"),
    "both plain and packed": (
        PACKED, add(weight=np.zeros((192, 64), np.float32)), None, f"{Q}_packed and {Q} both hold {Q}, expected one"),
    "GPTQ without zeros": (GPTQ, drop("qzeros"), None, f"{NAME}.qweight has no {NAME}.qzeros"),
    "GPTQ g_idx out of range": (GPTQ, put("g_idx", 5, 2), None, f"{NAME}.g_idx: group 2, expected 0 .. 1"),
    "GPTQ words beyond the inputs": (GPTQ, cut("g_idx", np.s_[:56]), None, f"{NAME}.qweight: 8 rows of words"),
    "GPTQ zeros of another grid": (GPTQ, cut("qzeros", np.s_[:, 1:]), None, f"{NAME}.qzeros: shape (2, 23), "),
    "GPTQ NaN scale": (GPTQ, put("scales", 3, np.nan), None, f"{NAME}.scales: a scale is nan"),
    "GPTQ of other bits": (GPTQ, keep, lambda c: c.update(bits=8), "config.json's quantization_config says int 8 bits"),
    "GPTQ of another group": (GPTQ, keep, lambda c: c.update(group_size=64), "group_size 32, config.json"),
    "GPTQ of Marlin": (
        GPTQ, keep, lambda c: c.update(checkpoint_format="marlin"), "is stored as GPTQ of the layout marlin, which"),
    "AWQ GEMV": (AWQ, keep, lambda c: c.update(version="gemv"), "is stored as AWQ of the layout gemv"),
    "AWQ of another width": (AWQ, cut("scales", np.s_[:, 1:]), None, f"{NAME}.qweight: shape (64, 24), expected 191"),
    "MXFP4 scales of another grid": (MXFP4, cut("scale", np.s_[:, 1:]), None, f"{NAME}.scale: shape (192, 1), "),
    "MXFP4 NaN scale": (
        MXFP4, lambda own, k: put("scale", 5, 255)(own, k), None, f"{NAME}.scale: a scale is nan"),
    "FP4 or INT8 of half the columns": (
        MXFP4, both(add(scale=np.ones((192, 2), np.float32)), lambda _, kinds: kinds.pop("scale")), None,
        f"{Q}: blk.3.attn_q.weight would have shape (192, 32), expected (192, 64)"),
    "NVFP4 with two scales of the matrix": (
        "nvfp4", add(weight_scale_2=np.ones(1, np.float32)), None, f"{Q} is stored as NVFP4 and has {Q}_scale_2"),
    "INT8 without scales": ("int8", drop("weight_scale"), None, f"{Q} is I8 (192, 64) and has no scales"),
    "FP4 of no scales": (MXFP4, drop("scale"), None, f"{Q} is I8 (192, 32) and has no scales"),
    "NVFP4 without the matrix's": (
        "nvfp4", drop("weight_global_scale"), None, f"{Q}_packed has no scale of the whole matrix"),
    "NVFP4 by zero": ("nvfp4", put("weight_global_scale", 0, 0), None, f"{Q}_global_scale: a scale is inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors_end_in_one_line_that_names_them(folder, tmp_path, capsys, case):
    name, change, config, says = BAD[case]
    path = changed(folder, tmp_path, name, change, config)
    code = main(["convert", str(path), "-o", str(tmp_path / "out.gguf")])
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if ": error: " in line]
    assert (code, len(lines)) == (2, 1), err
    assert says in lines[0]
    assert not list(tmp_path.glob("*out.gguf*"))


INTEGERS = {
    "a norm": ("mtp.norm.weight", np.int8, {}),
    "a vector of another name": ("mtp.layers.0.input_layernorm.weight", np.int64, {}),
    "a stack without scales": ("mtp.layers.0.mlp.experts.down_proj", np.int8, {}),
    "a stack with scales": ("mtp.layers.0.mlp.experts.down_proj", np.uint8, {"_scale": 6}),
    "a float stack with scales": ("mtp.layers.0.mlp.experts.down_proj", np.float32, {"_scale_inv": 6}),
}


@pytest.mark.parametrize("verb", ["convert", "graft", "check"])
@pytest.mark.parametrize("case", INTEGERS)
def test_integers_are_never_taken_for_the_values_of_a_weight(tmp_path, capsys, case, verb):
    """Not those of a vector or a stack either, whose names say nothing of codes; nor floats that have scales."""
    name, dtype, more = INTEGERS[case]
    named = state("qwen35moe", fused=True)
    source = write_quantised(tmp_path / "hf", named, CONFIGS["qwen35moe"], tokenizer("qwen35moe"), lambda *_: None)
    trunk, target = tmp_path / "trunk.gguf", tmp_path / "out.gguf"
    convert(source, trunk, Settings(which="trunk"))
    own = {name: np.ones(named[name].shape, dtype)} | {
        f"{name}{part}": np.ones(n, np.float32) for part, n in more.items()
    }
    arrays = {n: x for n, x in named.items() if n != name} | own
    write_safetensors(source / "model.safetensors", arrays, frozenset())
    args = {"convert": [str(source), "-o", str(target)], "check": ["--fast", str(source)],
            "graft": [str(trunk), str(source), "-o", str(target), "--no-probe"]}  # fmt: skip
    assert main([verb, *args[verb]]) == (1 if verb == "check" else 2)
    out, err = capsys.readouterr()
    text = " ".join((out if verb == "check" else err).split())
    assert f"{name} is {np.dtype(dtype).kind.upper()}{8 * np.dtype(dtype).itemsize}" in text
    assert ", expected floats, or codes" in text or "beside it, expected codes" in text
    assert not target.exists()


# THE HEAD ALONE


def foreign(x, name):
    """A matrix in a format that is not read: made-up codes under its names."""
    code = np.zeros(x.shape, np.uint8)
    parts = {
        "bitsandbytes 4-bit": {"weight": code, "weight.absmax": x[0], "weight.quant_map": x[0],
                               "weight.quant_state.bitsandbytes__nf4": code[0]},
        "bitsandbytes LLM.int8": {"weight": code.view(np.int8), "SCB": x[0], "weight_format": code[0]},
        "EXL2": {"q_weight": code.astype(np.int32), "q_scale": code, "q_groups": code[0], "q_scale_max": x[0]},
        "EXL3": {"trellis": code.astype(np.int16), "suh": x[0], "svh": x[0]},
        "MLX": {"weight": code.astype(np.uint32), "scales": x, "biases": x},
        "HQQ": {"W_q": code, "scale": x[0], "zero": x[0]},
        "AQLM": {"codes": code.view(np.int8), "codebooks": x, "scales": x[0]},
        "BitNet": {"weight": code, "weight_scale": x[0, :1]},
    }  # fmt: skip
    return Parts({part: np.ascontiguousarray(array) for part, array in parts[name].items()})


FOREIGN = ("bitsandbytes 4-bit", "bitsandbytes LLM.int8", "EXL2", "EXL3", "MLX", "HQQ", "AQLM", "BitNet")


def foreign_folder(path, name, *, is_head=False):
    def encode(tensor, x):
        is_left = not is_linear(tensor, x) or (tensor.startswith("mtp.") and not is_head)
        return None if is_left else foreign(x, name)

    return write_quantised(path, TINY[0], {**TINY[1], "quantization_config": {"quant_method": "x"}}, TINY[2], encode)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """The tiny model without its head, in BF16."""
    path = tmp_path_factory.mktemp("trunk")
    write_checkpoint(path / "Tiny-5M", *TINY)
    convert(path / "Tiny-5M", path / "trunk.gguf", Settings(which="trunk"))
    convert(path / "Tiny-5M", path / "whole.gguf", Settings())
    return path


@pytest.mark.parametrize("name", FOREIGN)
def test_another_format_is_named_and_its_float_head_serves(trunk, tmp_path, capsys, name):
    source = foreign_folder(tmp_path / "Tiny-5M", name)
    assert main(["convert", str(source), "-o", str(tmp_path / "out.gguf")]) == 2
    err = capsys.readouterr().err
    assert f"model.layers.0.linear_attn.in_proj_qkv.weight is stored as {name}, which mtpref does not read" in err
    assert "damaged" not in err
    assert main(["graft", str(trunk / "trunk.gguf"), str(source), "-o", str(tmp_path / "out.gguf"), "--no-probe"]) == 0
    assert (tmp_path / "out.gguf").read_bytes() == (trunk / "whole.gguf").read_bytes()
    assert ("adds 1 to norms" in capsys.readouterr().err) == (name == "MLX")
    assert main(["check", str(source)]) == 0
    out = capsys.readouterr().out
    assert "trunk-unread" in out
    assert "the head is there and nothing is wrong with it" in out


def test_a_head_in_another_format_is_refused_as_such(trunk, tmp_path, capsys):
    source = foreign_folder(tmp_path / "Tiny-5M", "EXL2", is_head=True)
    code = main(["graft", str(trunk / "trunk.gguf"), str(source), "-o", str(tmp_path / "out.gguf"), "--no-probe"])
    assert code == 2
    assert "mtp.layers.0." in (err := capsys.readouterr().err)
    assert "is stored as EXL2" in err
    assert main(["check", str(source)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "cannot-convert: conversion: mtp.layers.0." in out
    assert "is stored as EXL2" in out


@pytest.mark.parametrize("name", ["fp8 blocks", "int4", "awq", "gptq", "mxfp4", "nvfp4"])
def test_every_verb_takes_the_folder(folder, trunk, tmp_path, capsys, name):
    """graft, extract and check of a quantised folder are those of what convert makes of it."""
    source = folder(name, "qwen35")
    head, joined, whole = (str(tmp_path / f"{part}.gguf") for part in ("head", "joined", "whole"))
    assert main(["convert", str(source), "--mtp", "-o", str(tmp_path / "mtp.gguf")]) == 0
    assert main(["extract", str(source), "-o", head]) == 0
    assert Path(head).read_bytes() == (tmp_path / "mtp.gguf").read_bytes()
    assert main(["graft", str(trunk / "trunk.gguf"), str(source), "-o", joined, "--no-probe"]) == 0
    with open_gguf(joined) as a, open_gguf(head) as b:
        of_head = [n for n in b.tensors if n.startswith("blk.")]
        assert all(a.data(a.tensors[n]).tobytes() == b.data(b.tensors[n]).tobytes() for n in of_head)
    assert main(["convert", str(source), "-o", whole]) == 0
    capsys.readouterr()
    assert main(["check", "--fast", whole]) == 0
    assert main(["check", "--fast", str(source)]) == 0
    out = capsys.readouterr().out
    assert "stored-as" in out
    assert "the head is there" in out


def test_against_reads_what_the_folder_stands_for(folder, tmp_path, capsys):
    """No tensor of a converted file differs from its quantised source by more than its own type."""
    source = folder("gptq", "qwen35")
    convert(source, tmp_path / "a.gguf", Settings(outtype="bf16"))
    with open_gguf(tmp_path / "a.gguf") as file:
        other = Other(source)
        found = compare(file, other)
        other.close()
    assert [f.id for f in found] == ["against-values"]


def test_against_names_what_it_could_not_read(folder, trunk, tmp_path):
    """A tensor of the folder that cannot be read is not said to be absent, and why is said."""
    path = changed(lambda name: folder(name, "qwen35"), tmp_path, FP8, drop(SCALE))
    with open_gguf(trunk / "whole.gguf") as file:
        other = Other(path)
        found = {f.id: f for f in compare(file, other) if f.id in ("against-unread", "against-extra")}
        other.close()
    assert f"{Q} is F8_E4M3 and has no scales" in found["against-unread"].text
    assert found["against-extra"].what == "blk.3.attn_q.weight"
    assert "absent or unread there" in found["against-extra"].text


def test_graft_keeps_the_heads_own_embeddings_and_output(trunk, tmp_path, capsys):
    """`mtp.embed_tokens` and `mtp.lm_head` go into the file; what has no place is named, the head's first."""
    state, config, words = TINY
    own = {f"mtp.{part}.weight": state["model.embed_tokens.weight"] + 1 for part in ("embed_tokens", "lm_head")}
    more = {"a.weight": np.ones(3, np.float32), "mtp.odd.weight": np.ones(3, np.float32)}
    path = write_checkpoint(tmp_path / "hf", state | own | more, config, words)
    target = tmp_path / "out.gguf"
    assert main(["graft", str(trunk / "trunk.gguf"), str(path), "-o", str(target), "--no-probe"]) == 0
    assert "left out, since a qwen35 GGUF has no place for them: mtp.odd.weight, a.weight" in capsys.readouterr().err
    with open_gguf(target) as file:
        for part in ("embed_tokens", "shared_head_head"):
            values = np.concatenate([*file.decoded(file.tensors[f"blk.4.nextn.{part}.weight"])])
            wanted = rounded(state["model.embed_tokens.weight"] + 1, "BF16")
            assert np.array_equal(values.reshape(wanted.shape), wanted)


# A HEAD BESIDE THE MODEL


def split_folder(path, *, index=True, extra=None, name="mtp.safetensors"):
    """The tiny checkpoint with its head in a file that the index does not list."""
    state, config, words = TINY
    body = {n: x for n, x in state.items() if not n.startswith("mtp.")}
    head = {n: x for n, x in state.items() if n.startswith("mtp.")} | (extra or {})
    write_checkpoint(path, body, config, words, n_files=2 if index else 1)
    write_tensors(path / name, head, lambda *_: None)
    return path


@pytest.mark.parametrize("index", [True, False])
def test_a_head_that_the_index_does_not_list_is_found_and_said(trunk, tmp_path, capsys, index):
    source = split_folder(tmp_path / "Tiny-5M", index=index)
    assert main(["convert", str(source), "-o", str(tmp_path / "out.gguf")]) == 0
    assert "mtp.safetensors, which model.safetensors.index.json does not list, holds" in capsys.readouterr().err
    with open_gguf(tmp_path / "out.gguf") as a, open_gguf(trunk / "whole.gguf") as b:
        assert set(a.tensors) == set(b.tensors)
        assert all(a.data(a.tensors[n]).tobytes() == b.data(b.tensors[n]).tobytes() for n in a.tensors)
    assert main(["check", "--fast", str(source)]) == 0
    assert "head-beside: mtp.safetensors" in capsys.readouterr().out
    joined = str(tmp_path / "joined.gguf")
    assert main(["graft", str(trunk / "trunk.gguf"), str(source), "-o", joined, "--no-probe"]) == 0
    with open_gguf(joined) as file:
        assert "blk.4.nextn.eh_proj.weight" in file.tensors


def test_other_files_beside_the_model_are_left_alone(tmp_path):
    source = split_folder(tmp_path / "a", extra={"model.layers.0.mlp.up_proj.weight": np.zeros((2, 2), np.float32)})
    with open_checkpoint(source) as checkpoint:
        assert not checkpoint.unlisted
    (source / "mtp.safetensors").write_bytes(b"x")
    with pytest.raises(MtprefError, match=r"mtp\.safetensors: damaged"):
        open_checkpoint(source)
    (source / "mtp.safetensors").rename(source / "other.safetensors")
    with open_checkpoint(source) as checkpoint:
        assert not checkpoint.unlisted


def test_a_head_in_two_places_is_refused(tmp_path):
    state, config, words = TINY
    path = write_checkpoint(tmp_path / "hf", state, config, words)
    head = {n: x for n, x in state.items() if n.startswith("mtp.")}
    write_tensors(path / "mtp.safetensors", head, lambda *_: None)
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.unlisted  # the same names: a second copy, as it always was
    write_tensors(path / "mtp.safetensors", head | {"mtp.more.weight": state["mtp.fc.weight"]}, lambda *_: None)
    with pytest.raises(MtprefError, match=r"is in mtp\.safetensors and in a file of the model"):
        open_checkpoint(path)


# WHAT CONFIG.JSON SAYS


def test_check_counts_the_blocks_that_config_json_declares(tmp_path, capsys):
    state, config, words = TINY
    path = write_checkpoint(tmp_path / "hf", state, config | {"mtp_num_hidden_layers": 2}, words)
    assert main(["check", "--fast", str(path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "config.json says mtp_num_hidden_layers 2, the tensors have 1 MTP block, expected as many" in out


def test_a_dequantised_folder_whose_config_json_is_old_is_read(folder, tmp_path, capsys):
    state, config, words = TINY
    quantised = {**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    path = write_checkpoint(tmp_path / "hf", state, quantised, words)
    assert main(["convert", str(path), "-o", str(tmp_path / "out.gguf")]) == 0
    assert "config.json says that tensors are quantised (fp8); none of those" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["text_config", "quantize_config.json"])
def test_the_version_of_gptqs_zeros_is_found_where_programs_write_it(tmp_path, place):
    """Version 2 says so in config.json, in its text part, or in a file beside it; nothing else tells it from 1."""
    case = CASES["gptq v2 zeros"]
    path = case_folder(tmp_path / "hf", case, *TINY)
    with open_checkpoint(path) as checkpoint:
        wanted = checkpoint.values("model.layers.0.mlp.up_proj.weight")
    config = json.loads((path / "config.json").read_text())
    found = config.pop("quantization_config")
    if place == "text_config":
        config["text_config"] = {**config, "quantization_config": found}
    else:
        (path / place).write_text(json.dumps({k: v for k, v in found.items() if k != "quant_method"}))
    (path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(path) as checkpoint:
        assert np.array_equal(checkpoint.values("model.layers.0.mlp.up_proj.weight"), wanted)
    (path / "config.json").write_text(json.dumps({**config, "text_config": None}))
    (path / "quantize_config.json").unlink(missing_ok=True)
    with open_checkpoint(path) as checkpoint:
        assert not np.array_equal(checkpoint.values("model.layers.0.mlp.up_proj.weight"), wanted)


def test_scales_of_activations_are_left_out_and_said(tmp_path, capsys):
    case = CASES["fp8 tensor"]

    def encode(name, x):
        if not is_linear(name, x):
            return None
        made = case.make(x)
        made.arrays |= {"input_scale": np.ones(1, np.float32), "k_scale": np.ones(1, np.float32)}
        return made

    path = write_quantised(tmp_path / "hf", TINY[0], TINY[1], TINY[2], encode)
    assert main(["convert", str(path), "-o", str(tmp_path / "out.gguf")]) == 0
    assert "scales of activations or caches are left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fp8 blocks", "int4 zeros", "gptq desc_act", "nvfp4"])
def test_mutated_headers_end_in_one_line(folder, tmp_path, capsys, name):
    """Types, shapes and names of the parts, altered one after the other: a file that is written, or one line."""
    source = tmp_path / "hf"
    shutil.copytree(folder(name), source)
    path = source / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    own = [tensor for tensor in header if tensor.startswith(f"{NAME}.")]
    for tensor in own:
        for change in _mutations(header[tensor]):
            altered = {**header, tensor: change} if change else {n: h for n, h in header.items() if n != tensor}
            text = json.dumps(altered).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + data)
            code = main(["convert", str(source), "-o", str(tmp_path / "out.gguf"), "--force"])
            errors = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
            assert (code, len(errors)) in ((0, 0), (2, 1)), (tensor, change)
            assert code == 0 or NAME in errors[0], errors


def _mutations(entry):
    """Other types of the same size, other shapes of the same size, none at all."""
    shape, size = entry["shape"], {"I8": "U8", "U8": "F8_E4M3", "F8_E4M3": "F8_E5M2", "F8_E8M0": "I8", "I32": "F32",
                                   "F32": "U32", "BF16": "F16", "F16": "BF16", "I64": "F64"}  # fmt: skip
    yield {**entry, "dtype": size[entry["dtype"]]}
    yield {**entry, "shape": shape[::-1]}
    yield {**entry, "shape": [*shape, 1]}
    yield {**entry, "shape": [int(np.prod(shape))]}
    yield {**entry, "shape": [1, *shape]}
    yield {**entry, "shape": [0, *shape], "data_offsets": [0, 0]}
    start, end = entry["data_offsets"]
    yield {**entry, "shape": [], "data_offsets": [start, start + (end - start) // int(np.prod(shape))]}
    yield None
