"""Quantised checkpoints, folder by folder: llama.cpp's files, the float folder's bytes, every verb, one line for the rest."""

import json
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.gguf import open_gguf
from mtpref.files.tensor_files.safetensors import write_safetensors
from mtpref.front.cli import main
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import open_checkpoint
from tests.hf_folder import bf16_bits, read_state, write_checkpoint
from tests.moe_folder import CONFIGS, state, tokenizer
from tests.quantised_folder import CASES, case_folder, is_linear, write_quantised

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
        return case_folder(path, CASES[name], *(TINY if arch == "qwen35" else _moe()))

    return made


def _moe():
    return state("qwen35moe"), CONFIGS["qwen35moe"], tokenizer("qwen35moe")


def float_twin(source, path, arch):
    """The same values as a folder of float tensors: F32 where they were quantised."""
    arrays, bf16 = {}, set()
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.names:
            arrays[name] = checkpoint.values(name)
            if checkpoint.dtype(name) == "BF16":
                arrays[name] = bf16_bits(arrays[name])
                bf16.add(name)
    _, config, words = TINY if arch == "qwen35" else _moe()
    write_checkpoint(path, {"lm_head.weight": np.zeros((1, 1), np.float32)}, config, words)
    write_safetensors(path / "model.safetensors", arrays, frozenset(bf16))
    return path


def converted(source, target, **settings):
    made = convert(source, target, Settings(**settings))
    return made, target.read_bytes()


# WHAT IS WRITTEN


@pytest.mark.parametrize("outtype", recorder.TYPES)
@pytest.mark.parametrize("name", [name for name, _ in recorder.folders()])
def test_the_file_is_llama_cpps(folder, tmp_path, name, outtype):
    convert(folder(name), tmp_path / "out.gguf", Settings(outtype=outtype, keeps_codes=False))
    assert recorder.digest(tmp_path / "out.gguf") == json.loads(RECORDED.read_text())[f"{name} {outtype}"]


@pytest.mark.oracle
@pytest.mark.skipif("MTPREF_LLAMA_CPP" not in os.environ, reason="MTPREF_LLAMA_CPP does not name a llama.cpp tree")
def test_live_converter():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="llama.cpp's converter needs torch and transformers")
    assert recorder.record_folders(os.environ["MTPREF_LLAMA_CPP"]) == json.loads(RECORDED.read_text())


@pytest.mark.parametrize("arch", ["qwen35", "qwen35moe"])
@pytest.mark.parametrize("name", CASES)
def test_the_file_is_that_of_the_float_folder(folder, tmp_path, name, arch):
    source = folder(name, arch)
    twin = float_twin(source, tmp_path / "float" / "Tiny-5M", arch)
    _, theirs = converted(twin, tmp_path / "b.gguf", outtype="q8_0")
    _, ours = converted(source, tmp_path / "a.gguf", outtype="q8_0", keeps_codes=False)
    assert ours == theirs
    if CASES[name].is_head:
        n_linear = sum(is_linear(n, x) for n, x in (TINY if arch == "qwen35" else _moe())[0].items())
        with open_checkpoint(source) as checkpoint:
            assert sum(checkpoint.formats().values()) == n_linear


@pytest.mark.parametrize("arch", ["qwen35", "qwen35moe"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.keeps])
def test_codes_are_kept_where_a_type_holds_the_same_values(folder, tmp_path, name, arch):
    made, _ = converted(folder(name, arch), tmp_path / "a.gguf", outtype="f32")
    has_kept = CASES[name].is_head or arch == "qwen35moe"  # a dense model has no experts
    assert (made.types.get(CASES[name].keeps, 0) > 5) == has_kept
    convert(folder(name, arch), tmp_path / "b.gguf", Settings(outtype="f32", keeps_codes=False))
    with open_gguf(tmp_path / "a.gguf") as kept, open_gguf(tmp_path / "b.gguf") as plain:
        assert list(kept.tensors) == list(plain.tensors)
        for tensor in kept.tensors:
            a, b = (np.concatenate([*file.decoded(file.tensors[tensor])]) for file in (kept, plain))
            assert np.array_equal(a, b), tensor
