"""Data sheets: what each says of itself holds together, and what derives from it is what other rooms do."""

import pytest

from mtpref.architectures import ARCHITECTURES, gguf_to_hf_name, hf_to_gguf_name, tensors_of
from mtpref.architectures.dims import ONE, Named
from mtpref.architectures.sheet import Hyper
from mtpref.base.errors import MtprefError
from mtpref.heads.quantize.mixture import Item, category, is_quantizable
from mtpref.spec.config import Metadata

SHEETS = list(ARCHITECTURES.values())
N_LAYER = 4
# The numbers that a file gives beside its hyper-parameters.
COUNTED = {"n_vocab", "n_draft_vocab"}


@pytest.fixture(params=SHEETS, ids=lambda sheet: sheet.name)
def sheet(request):
    return request.param


def tensors(sheet):
    """(whole name in a file of N_LAYER layers, tensor), each that the sheet lists once for each kind of block."""
    yield from ((t.name, t) for t in sheet.tensors)
    for block in sheet.layers.all_blocks():
        yield from ((t.at(0).name, t) for t in block.all_tensors())
    if sheet.head:
        yield from ((t.at(N_LAYER).name, t) for t in sheet.head.all_tensors())


def named_with_blocks(sheet):
    """The same, each with what tells which block its layer is."""
    for block in sheet.layers.all_blocks():
        yield from (([block] * N_LAYER, t.at(0).name, t) for t in block.all_tensors())
    yield from ((None, name, t) for name, t in tensors(sheet) if not name.startswith("blk.0."))


def test_a_dim_prints_as_it_is_written_and_has_a_value_once_its_names_have():
    a, b = Named("a"), Named("b")
    dim = 2 * a * b + a * 3 + 1
    assert str(dim) == "2*a*b + 3*a + 1"
    assert dim.value({"a": 5, "b": 7}) == 2 * 5 * 7 + 15 + 1
    assert dim.value({"a": 5}) is None


def test_every_name_in_a_shape_is_a_hyper_parameter(sheet):
    known = {hyper.name for hyper in sheet.hypers} | COUNTED
    for name, tensor in tensors(sheet):
        assert {n for dim in tensor.shape for n in dim.names} <= known, name


def test_hyper_parameters_have_keys_of_their_own(sheet):
    assert len({hyper.name for hyper in sheet.hypers}) == len(sheet.hypers)
    keys = [hyper.key for hyper in sheet.hypers]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(hyper, Hyper) and hyper.key for hyper in sheet.hypers)


def test_a_block_lists_a_tensor_once(sheet):
    for block in sheet.blocks:
        names = [tensor.name for tensor in tensors_of(block.tensors)]
        assert len(set(names)) == len(names), block.name


def test_marks_tell_the_blocks_of_a_trunk_apart(sheet):
    blocks = [block for block in sheet.layers.all_blocks() if not block.looks_like]
    assert {b.looks_like for b in sheet.layers.all_blocks()} <= {"", *(b.name for b in blocks)}
    if hasattr(sheet.layers, "of_tensors"):
        for block in blocks:
            assert sheet.layers.of_tensors([t.name for t in block.all_tensors()]) is block
        assert sheet.layers.of_tensors(["attn_norm.weight"]) is None
        return
    for block in blocks:
        own = {t.name for t in block.all_tensors()}
        others = {t.name for other in blocks if other is not block for t in other.all_tensors()}
        assert any(name.startswith(block.marks) for name in own)
        assert not any(name.startswith(block.marks) for name in others), block.name


def test_the_quantisers_category_is_llama_cpps_by_name(sheet):
    for name, tensor in tensors(sheet):
        shape = tuple(1 if dim is ONE else 2 for dim in tensor.shape)
        assert category(name) == tensor.role, name
        kind = "F32" if tensor.below is None else "I32"
        assert is_quantizable(Item(name, kind, shape)) == tensor.is_quantised, name


def test_names_go_to_a_checkpoint_and_back(sheet):
    if sheet.hf is None:
        pytest.skip(f"checkpoints of {sheet.name} are not known")
    for blocks, name, tensor in named_with_blocks(sheet):
        if tensor.hf:
            hf = gguf_to_hf_name(sheet, name, N_LAYER, blocks).replace("{e}", "7")
            assert hf_to_gguf_name(sheet, hf, N_LAYER, blocks) == name


def test_a_fused_tensor_names_parts_that_exist(sheet):
    names = {t.hf for block in sheet.blocks for t in block.all_tensors()}
    for fused in sheet.hf.fused if sheet.hf else ():
        assert set(fused.parts) <= names
        assert fused.hf not in names


def test_a_missing_key_is_refused_when_it_is_asked_for_and_not_before(sheet):
    values = sheet.values(Metadata({"general.architecture": sheet.name}, "m.gguf"))
    assert len(values) == len(sheet.hypers)
    with pytest.raises(MtprefError, match=rf"key {sheet.name}\.embedding_length is missing"):
        values["n_embd"]
