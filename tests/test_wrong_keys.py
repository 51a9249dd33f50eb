"""Keys that are wrong and shaped like right ones: inspect, check and a run refuse the same files, in the same words."""

import tracemalloc

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.files.gguf import open_gguf
from mtpref.front.cli import main
from tests.micro_moe import standard
from tests.test_moe_model import edited

MODELS = ("micro-deepseek4-f32", "micro-deepseek32-f32", "micro-mimo2-90-own-f32", "micro-step35-f32")


def told(capsys, path):
    """What inspect, check and a load say of a file, each in one line; check's exit code says so too."""
    out = []
    for words in (("inspect", path), ("check", "--fast", path)):
        capsys.readouterr()
        assert main([str(word) for word in words]) == (words[0] == "check")
        said = capsys.readouterr()
        out.append(" ".join((said.out + said.err).split()))
    with pytest.raises(MtprefError) as refused:
        load(path)
    return [*out, str(refused.value)]


@pytest.mark.parametrize("more", [-1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_block_count_is_told_as_such(name, more, tmp_path, capsys):
    with open_gguf(standard(name)) as file:
        n_blocks = file.kv[f"{name.split('-')[1]}.block_count"]
    path = edited(standard(name), tmp_path / "m.gguf", {"block_count": (n_blocks + more, "u32")})
    words = f"block_count is {n_blocks + more}, and the file has blk.0 to blk.{n_blocks - 1}, the last"
    for text in told(capsys, path):
        assert words in text
        assert f"expected {n_blocks};" in text
        assert "graft FILE FILE" not in text


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("name", MODELS)
def test_an_epsilon_that_makes_nan_is_refused(name, value, tmp_path, capsys):
    path = edited(standard(name), tmp_path / "m.gguf", {"attention.layer_norm_rms_epsilon": (value, "f32")})
    for text in told(capsys, path):
        assert "attention.layer_norm_rms_epsilon is" in text


@pytest.mark.parametrize("width", [32, 96, 100])
def test_a_key_that_cannot_be_rotated_is_refused(width, tmp_path):
    """llama.cpp stops: GGML_ASSERT(ggml_nelements(a) == ne0*ne1)."""
    path = edited(standard(MODELS[0]), tmp_path / "m.gguf", {"attention.indexer.key_length": (width, "u32")})
    with pytest.raises(MtprefError, match=f"indexer.key_length is {width}, expected a multiple of 64"):
        load(path)


@pytest.mark.parametrize("name", MODELS[2:])
def test_a_chain_that_is_counted_too_long_is_refused(name, tmp_path, capsys):
    """The first block that the key counts is a trunk layer: it would be left out, and no head be found."""
    path = edited(standard(name), tmp_path / "m.gguf", {"nextn_predict_layers": (4, "u32")})
    with pytest.raises(MtprefError, match=r"nextn_predict_layers is 4, and blk\.3 has no nextn tensor: it is a trunk"):
        load(path)
    assert main(["check", "--fast", str(path)]) == 1


@pytest.mark.parametrize("value", [2**24])
def test_a_count_of_heads_beyond_belief_costs_no_memory(value, tmp_path):
    """No list of as many numbers is made of it (2^31 of them would take 17 GB and minutes)."""
    path = edited(standard("micro-bailingmoe3-f32"), tmp_path / "m.gguf", {"nextn_predict_layers": (value, "u32")})
    tracemalloc.start()
    try:
        with pytest.raises(MtprefError, match=f"nextn_predict_layers is {value}, expected"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()
