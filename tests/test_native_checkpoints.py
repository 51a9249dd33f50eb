"""Checkpoints in the number formats that their makers ship (tests/native_folder.py), from the folder to a run.

What llama.cpp's converter makes of the same folders is recorded (tools/record_converted.py --native): the same keys,
and every tensor has its bytes once the values are in the type that it chose.
"""

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.heads.check.against import Other, compare
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import open_checkpoint
from mtpref.heads.hf.formats.scaled import RANKS, ranks_of
from mtpref.heads.into_hf import Settings as GraftSettings
from mtpref.heads.into_hf import graft_hf
from mtpref.spec.quants import quantize
from tests import chain_folder, moe_folder, native_folder
from tests.gguf_copy import copy_of
from tests.moe_folder import tokenizer
from tests.quantised_folder import Parts, spread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
try:
    import record_converted as recorder
finally:
    sys.path.pop(0)

RECORDED = json.loads((Path(__file__).parent / "data" / "converted_native.json").read_text())
ARCHS = tuple(native_folder.ENCODERS)
N_CODES = {"deepseek4": (44, 90), "deepseek2": (112, 0), "mimo2": (22, 36)}  # tensors in FP8, in FP4


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return lru_cache(lambda arch: native_folder.folder(tmp_path_factory.mktemp(arch) / "Tiny-5M", arch))


@pytest.mark.parametrize("which", ["mtp", "trunk"])
@pytest.mark.parametrize("arch", ARCHS)
def test_it_is_the_file_of_the_same_values_in_float(arch, which, native, tmp_path):
    floats = native_folder.floats(tmp_path / "Tiny-5M", arch)
    for name, folder in (("own", native(arch)), ("floats", floats)):
        convert(folder, tmp_path / f"{name}.gguf", Settings(outtype="f32", which=which, keeps_codes=False))
    assert (tmp_path / "own.gguf").read_bytes() == (tmp_path / "floats.gguf").read_bytes()


@pytest.mark.parametrize("case", recorder.NATIVE)
def test_tensors_and_keys_are_those_of_llama_cpps_converter(case, native, tmp_path):
    arch, which = case.split()
    made = convert(native(arch), tmp_path / "x.gguf", Settings(outtype="f32", which=which))
    theirs = RECORDED[case]
    assert set(made.types) >= ({"MXFP4"} if N_CODES[arch][1] else {"F32"})
    ours = recorder.digests(tmp_path / "x.gguf")
    del ours["keys"]["general.file_type"], theirs["keys"]["general.file_type"]  # of other types
    assert ours["keys"] == theirs["keys"]
    assert set(ours["tensors"]) == set(theirs["tensors"])
    with open_gguf(tmp_path / "x.gguf") as file:
        for name, (kind, shape, digest) in theirs["tensors"].items():
            info = file.tensors[name]
            data = file.data(name)
            if info.type_name != kind:
                data = quantize(kind, data.view(np.float32).reshape(-1, info.shape[-1]))
            assert list(info.shape) == shape, name
            assert hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:16] == digest, name


@pytest.mark.parametrize("arch", ARCHS)
def test_it_runs_and_is_what_the_folder_stands_for(arch, native, tmp_path):
    """The default conversion: BF16; 4-bit codes stay, and are the values that the other file has in BF16."""
    ids, logits = [5, 250, 17, 3, 99, 40], []
    for folder, name in ((native(arch), "own"), (native_folder.floats(tmp_path / "Tiny-5M", arch), "floats")):
        convert(folder, tmp_path / f"{name}.gguf", Settings(outtype="bf16"))
        model = load(tmp_path / f"{name}.gguf", make_recipe("exact", use_kernels=False))
        assert model.has_mtp
        logits.append(model.trunk(model.new_state(), ids, n_logits=1).logits)
    assert np.array_equal(*logits)
    other = Other(native(arch))
    with open_gguf(tmp_path / "own.gguf") as file:
        assert {one.id for one in compare(file, other)} == {"against-values"}
    other.close()
    notes = " ".join(convert(native(arch), tmp_path / "own.gguf", Settings()).notes)
    n_fp8, n_fp4 = N_CODES[arch]
    assert f"{n_fp8} tensors are stored as FP8 E4M3, blocks of 128x128" in notes
    assert not n_fp4 or f"{n_fp4} tensors are stored as MXFP4" in notes


@pytest.mark.parametrize(("n_before", "told"), [(None, False), (7, False), (8, True)])
def test_a_window_that_engines_read_otherwise_is_told(n_before, told, tmp_path):
    more = {} if n_before is None else {"sliding_window_size": n_before}
    config = {**chain_folder.CONFIGS["mimo2"], **more}
    path = tmp_path / "Tiny-5M"
    native_folder.write_folder(path, chain_folder.state("mimo2"), config, lambda name, x: None, tokenizer("hy_v3"))
    made = convert(path, tmp_path / "x.gguf", Settings())
    assert ("sliding_window_size, 8 cells before it: 9" in " ".join(made.notes)) is told
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.get("mimo2.attention.sliding_window") == 8


def test_a_table_is_compared_number_by_number(native, tmp_path):
    convert(native("deepseek4"), tmp_path / "own.gguf", Settings(which="trunk"))
    kv, held = copy_of(tmp_path / "own.gguf")
    name = "blk.0.ffn_gate_tid2eid.weight"
    held = [(n, kind, shape, data.copy()) for n, kind, shape, data in held]
    next(data for n, _, _, data in held if n == name).reshape(-1)[4] ^= 1
    write_gguf(tmp_path / "other.gguf", kv, held)
    for there in (native("deepseek4"), tmp_path / "own.gguf"):
        other = Other(there)
        with open_gguf(tmp_path / "other.gguf") as file:
            assert [one.what for one in compare(file, other) if one.id == "against-value"] == [name]
        other.close()


# MATRICES THAT WERE CUT OVER RANKS


def other_scales(tmp_path, change):
    """MiMo's folder with other scales of qkv_proj: `change` is given each by its name."""
    config, encode = native_folder.ENCODERS["mimo2"]

    def encoded(name, x):
        parts = encode(name, x)
        if name.endswith("qkv_proj.weight"):
            parts.arrays["weight_scale_inv"] = change(name, parts.arrays["weight_scale_inv"])
        return parts

    state = chain_folder.state("mimo2", config=config)
    return native_folder.write_folder(tmp_path / "hf", state, config, encoded, tokenizer("hy_v3"))


WHOLE = (".layers.0.", ".layers.3.")  # of the trunk: their scales cannot be those of a whole matrix


def is_whole(name):
    return name.startswith("model.layers.") and any(part in name for part in WHOLE)


def test_scales_of_whole_matrices_are_taken_as_such(tmp_path):
    """320 rows: 3 blocks are those of a matrix that was not cut, and so are the 4 of the others' 448 rows."""
    source = other_scales(tmp_path, lambda name, x: x[:3] if is_whole(name) else x)
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.names:
            if name.endswith("qkv_proj.weight"):
                assert checkpoint.stored(name).ranks == (1,)
                values = checkpoint.stored(name).raw.values(name)
                scale = checkpoint.stored(name).raw.values(f"{name}_scale_inv")
                assert np.array_equal(checkpoint.values(name), values * spread(scale, values.shape, 128, 128))


def test_scales_that_tell_no_number_of_ranks_are_refused(tmp_path):
    """Only matrices of 448 rows are in FP8: 4 blocks are 4 ranks' or those of the whole."""
    config, encode = native_folder.ENCODERS["mimo2"]
    state = chain_folder.state("mimo2", config=config)
    source = native_folder.write_folder(
        tmp_path / "hf", state, config, lambda name, x: None if is_whole(name) and "qkv" in name else encode(name, x),
        tokenizer("hy_v3"),
    )  # fmt: skip
    with pytest.raises(MtprefError, match=r"leaves open whether it was cut over 4 tensor-parallel ranks"):
        convert(source, tmp_path / "x.gguf", Settings())


def test_scales_of_different_numbers_of_ranks_are_refused(tmp_path):
    """320 rows over 8 ranks are 40 each, a block each."""
    source = other_scales(
        tmp_path, lambda name, x: np.repeat(x, 2, axis=0) if name.startswith("model.layers.0.") else x
    )
    with pytest.raises(
        MtprefError, match=r"scales are those of 8 tensor-parallel ranks, those of .* of 1 or 4, expected one"
    ):
        convert(source, tmp_path / "x.gguf", Settings())


def test_ranks_of_another_architecture_are_refused(tmp_path):
    """What a program saved whose rows nothing here puts together."""
    named = moe_folder.state("qwen35moe")
    qkv = np.zeros((4 * 280, 64), np.float32)
    named["model.layers.3.self_attn.qkv_proj.weight"] = qkv
    for part in "qkv":
        del named[f"model.layers.3.self_attn.{part}_proj.weight"]

    def encode(name, x):
        if not name.endswith("qkv_proj.weight"):
            return None
        scale = np.ones((4 * 3, 1), np.float32)
        return Parts({"weight": np.zeros(x.shape, np.uint8), "weight_scale_inv": scale}, {"weight": "F8_E4M3"})

    source = native_folder.write_folder(tmp_path / "hf", named, moe_folder.CONFIGS["qwen35moe"], encode,
                                        tokenizer("qwen35moe"))  # fmt: skip
    with pytest.raises(MtprefError, match="4 tensor-parallel ranks, whose rows mtpref puts together for others"):
        convert(source, tmp_path / "x.gguf", Settings())


def without_head(tmp_path, encode=None):
    """A base that lost its head."""
    config, own = native_folder.ENCODERS["mimo2"]
    state = chain_folder.state("mimo2", config=config)
    state = {name: x for name, x in state.items() if ".mtp." not in name}
    return native_folder.write_folder(tmp_path / "base", state, config, encode or own, tokenizer("hy_v3"))


def test_a_cut_head_goes_back_into_a_checkpoint_that_is_cut_alike(native, tmp_path):
    graft_hf(without_head(tmp_path), native("mimo2"), tmp_path / "whole", GraftSettings())
    for name, source in (("a", native("mimo2")), ("b", tmp_path / "whole")):
        convert(source, tmp_path / f"{name}.gguf", Settings(which="mtp", outtype="f32"))
    tensors = [recorder.digests(tmp_path / f"{name}.gguf")["tensors"] for name in "ab"]
    assert tensors[0] == tensors[1]


def test_a_cut_head_does_not_go_into_one_that_is_not(native, tmp_path):
    base = without_head(tmp_path, lambda name, x: None)
    with pytest.raises(MtprefError, match="cut over 4 tensor-parallel ranks, the base's over 1, expected codes that"):
        graft_hf(base, native("mimo2"), tmp_path / "whole", GraftSettings())


@pytest.mark.parametrize("n_row", [320, 448, 1024])
def test_shapes_of_scales_and_ranks(n_row):
    """Each number of ranks that the shape of its own scales allows; 1 where nothing was cut."""
    for n in RANKS:
        scale = (n * -(-(n_row // n) // 128), 2)
        assert n in ranks_of((n_row, 160), scale, (128, 128))
    assert ranks_of((n_row, 160), (999, 2), (128, 128)) == ()
    assert ranks_of((n_row, 160), (n_row // 128, 3), (128, 128)) == ()
