"""The MTP head's file: stand-alone heads and their trunk, what stands in for what, heads that are off."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import Options
from mtpref.engine.model import load
from mtpref.engine.session.identity import head_id, trunk_id
from mtpref.files.gguf import GgufFile, write_gguf, write_shards
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.spec import quants
from mtpref.spec.rope_scaling import RopeOverrides
from tests.gguf_copy import copy_of, llama_cpp, llama_speculative
from tests.gguf_from_weights import write_model
from tests.head_files import head_of, n_trunk_layers, trunk_of, write_pair
from tests.models import MICRO, prompt_of, run_decoder
from tests.random_weights import random_weights
from tests.samples import some_examples
from tests.test_gguf_reader import one_line_refusals

PROMPT = "Once upon a time"
HPARAMS = {
    "block_count": 3, "nextn_predict_layers": 1, "context_length": 256, "embedding_length": 64,
    "feed_forward_length": 64, "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 32,
    "attention.value_length": 32, "attention.layer_norm_rms_epsilon": 1e-6, "full_attention_interval": 2,
    "rope.dimension_count": 16, "rope.dimension_sections": [3, 3, 2, 0], "rope.freq_base": 1e4, "ssm.conv_kernel": 4,
    "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 2, "ssm.inner_size": 32, "n_vocab": 40,
}  # fmt: skip
OPTIONAL = ("output", "shared_head_norm", "embed_tokens", "shared_head_head")


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory):
    return write_pair(tiny_path(), tmp_path_factory.mktemp("pair"))


def random_model(folder: Path, extra: tuple[str, ...] = ()) -> Path:
    return write_model(folder / "model.gguf", random_weights(7, HPARAMS, extra=extra), HPARAMS, "F32")


def runs_alike(a, b, n_predict=20) -> None:
    """Whole runs of two models with the same tokens: every draft, every decision, the model state at the end."""
    prompt = [i % a.n_vocab for i in prompt_of(12)]
    x, y = (run_decoder(m, prompt, n_predict, n_ctx=128, n_max=3) for m in (a, b))
    keep = ("Drafted", "Verified", "Token", "RolledBack")
    events = [[e for e in run.events if type(e).__name__ in keep] for run in (x, y)]
    assert events[0] == events[1]
    assert x.decoder.state.digest() == y.decoder.state.digest()


# SAME BITS


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
def test_trunk_and_head_in_two_files_are_the_model_in_one(tiny_pair, numerics):
    trunk, head = tiny_pair
    whole = mtpref.load(numerics=numerics)
    split = mtpref.load(trunk, numerics=numerics, model_draft=head)
    assert split.has_mtp
    assert split.core.mtp_status == "file"
    runs = [m.generate(PROMPT, Options(n_predict=32), n_ctx=128).finish() for m in (whole, split)]
    assert runs[0].ids == runs[1].ids
    assert runs[0].statistics.to_json()["n_accept"] == runs[1].statistics.to_json()["n_accept"] > 0
    runs_alike(whole.core, split.core)


@pytest.mark.parametrize("extra", [(), ("output",), OPTIONAL[1:], OPTIONAL])
def test_every_layout_of_a_head_gives_the_same_run(tmp_path, extra):
    model = random_model(tmp_path, extra)
    trunk, head = write_pair(model, tmp_path)
    runs_alike(load(model), load(trunk, model_draft=head))


@pytest.mark.parametrize("accept", [30, 90])
def test_micro_models_in_two_files_keep_their_acceptance(tmp_path, accept):
    model = MICRO / f"micro-{accept}-q8_0.gguf"
    trunk, head = write_pair(model, tmp_path)
    runs_alike(load(model), load(trunk, model_draft=head))


def test_head_and_trunk_may_be_split_into_shards(tmp_path):
    model = random_model(tmp_path)
    parts = copy_of(model)
    trunk = write_shards(tmp_path / "trunk", *trunk_of(*parts), max_tensors=7, first_is_empty=True)
    head = write_shards(tmp_path / "mtp", *head_of(*parts), max_tensors=3)
    runs_alike(load(model), load(trunk[0], model_draft=head[0]))


def test_a_saved_state_goes_with_the_head_wherever_its_file_is(random_pair, tmp_path):
    """Ids of trunk and head are those of the model in one file, and no path counts."""
    folder, trunk, head = random_pair
    whole, split = load(folder / "model.gguf"), load(trunk, model_draft=head)
    elsewhere = load(trunk, model_draft=head.rename(tmp_path / "other-name.gguf"))
    (tmp_path / "other-name.gguf").rename(head)
    assert len({trunk_id(model) for model in (whole, split, elsewhere, load(trunk))}) == 1
    assert len({head_id(model) for model in (whole, split, elsewhere)}) == 1
    assert head_id(load(trunk)) == head_id(load(folder / "model.gguf", mtp=False)) == ""


# WHAT STANDS IN


def test_a_heads_own_tensors_serve_it_and_are_named(tiny_pair):
    mtp = load(tiny_pair[0], model_draft=tiny_pair[1]).heads[0].weights
    assert mtp.file.endswith("mtp-head.gguf")
    assert mtp.borrowed == ()
    assert mtp.origin["embed_tokens"] == mtp.origin["shared_head_head"] == "token_embd.weight"


def test_another_output_in_the_head_gives_the_head_its_logits(tmp_path):
    """As a draft model of its own, in llama.cpp: nothing of the trunk's is used where the head's file has it."""
    model = random_model(tmp_path, ("output",))
    trunk, _ = write_pair(model, tmp_path)
    kv, tensors = head_of(*copy_of(model))
    tensors = [(n, t, s, np.zeros_like(x) if n == "output.weight" else x) for n, t, s, x in tensors]
    write_gguf(tmp_path / "zero.gguf", kv, tensors)
    own, zero = load(model), load(trunk, model_draft=tmp_path / "zero.gguf")
    hidden = np.ones((1, 64), np.float32)
    logits = [m.mtp(m.new_state(8), [1], hidden, 0, n_logits=1).logits for m in (own, zero)]
    assert logits[0].any()
    assert not logits[1].any()
    trunk_logits = [m.trunk(m.new_state(8), [1], n_logits=1).logits.tobytes() for m in (own, zero)]
    assert trunk_logits[0] == trunk_logits[1]


def test_a_head_without_output_is_tied_to_its_own_embeddings_with_a_note(tmp_path):
    model = random_model(tmp_path, ("output",))
    trunk, _ = write_pair(model, tmp_path)
    kv, tensors = head_of(*copy_of(model))
    write_gguf(tmp_path / "tied.gguf", kv, [t for t in tensors if t[0] != "output.weight"])
    core = load(trunk, model_draft=tmp_path / "tied.gguf")
    assert core.heads[0].weights.origin["shared_head_head"] == "token_embd.weight"
    assert core.heads[0].weights.borrowed == ()
    assert any("tied.gguf has no output.weight" in note for note in core.notes)


def test_what_a_head_lacks_is_borrowed_with_a_note(tmp_path):
    model = random_model(tmp_path, ("output",))
    trunk, _ = write_pair(model, tmp_path)
    kv, tensors = head_of(*copy_of(model))
    write_gguf(tmp_path / "bare.gguf", kv, [t for t in tensors if t[0].startswith("blk.")])
    core = load(trunk, model_draft=tmp_path / "bare.gguf")
    assert core.heads[0].weights.borrowed == ("embed_tokens", "shared_head_norm", "shared_head_head")
    assert core.heads[0].weights.origin["shared_head_head"] == "output.weight"
    assert any("bare.gguf has no token_embd.weight and no output_norm.weight" in note for note in core.notes)
    runs_alike(load(model), core)


def test_a_head_file_goes_before_the_models_own_and_that_is_said(tiny_pair, tmp_path, capfdbinary):
    core = load(tiny_path(), model_draft=tiny_pair[1])
    assert core.mtp_status == "file"
    assert core.notes == (f"{tiny_path()} has an MTP head of its own; that of mtp-head.gguf is used (-md)",)
    code = main(["generate", "-md", str(tiny_pair[1]), "-p", "x", "-n", "2"])
    err = capfdbinary.readouterr().err.decode()
    assert code == 0
    assert "that of mtp-head.gguf is used (-md)" in err
    assert "with its embed_tokens = token_embd.weight, " in err
    assert "shared with the trunk" not in err


def test_a_whole_model_can_lend_its_head(tiny_pair):
    core = load(tiny_pair[0], model_draft=tiny_path())
    assert any("tiny.gguf holds a whole model; only its MTP head is read" in note for note in core.notes)
    runs_alike(load(tiny_path()), core)


def test_names_of_the_option_are_those_of_llama_cpp(tiny_pair, capfdbinary):
    texts = set()
    for flag in ("-md", "--model-draft", "--spec-draft-model"):
        assert main(["generate", "-m", str(tiny_pair[0]), flag, str(tiny_pair[1]), "-p", PROMPT, "-n", "6"]) == 0
        out, err = capfdbinary.readouterr()
        assert b"MTP: on" in err
        texts.add(out)
    assert len(texts) == 1


# MISMATCHES

MISMATCHES = {
    "architecture": ({"general.architecture": ("qwen3next", "str")}, "key general.architecture is 'qwen3next', "
                     "expected 'qwen35' as in "),
    "no head": ({"qwen35.nextn_predict_layers": (0, "u32")}, "no MTP head (key qwen35.nextn_predict_layers is absent"),
    "two heads": ({"qwen35.nextn_predict_layers": (2, "u32"), "qwen35.block_count": (4, "u32")},
                  "nextn_predict_layers is 2, expected 0 or 1"),
    "embedding_length": ({"qwen35.embedding_length": (32, "u32")}, "key qwen35.embedding_length is 32, expected 64"),
    "layers": ({"qwen35.block_count": (4, "u32")}, "the number of trunk layers (qwen35.block_count - "
               "qwen35.nextn_predict_layers) is 3, expected 2"),
    "epsilon": ({"qwen35.attention.layer_norm_rms_epsilon": (1e-5, "f32")}, "layer_norm_rms_epsilon is 9.99"),
    "freq_base": ({"qwen35.rope.freq_base": (1e6, "f32")}, "key qwen35.rope.freq_base is 1000000.0, expected 10000.0"),
    "dimension_count": ({"qwen35.rope.dimension_count": (8, "u32")},
                        "key qwen35.rope.dimension_count is 8, expected 16"),
    "sections": ({"qwen35.rope.dimension_sections": ([1, 1, 1, 5], "arr:i32")},
                 "key qwen35.rope.dimension_sections is (1, 1, 1, 5), expected (3, 3, 2, 0)"),
    "scaling": ({"qwen35.rope.scaling.type": ("yarn", "str"), "qwen35.rope.scaling.factor": (4.0, "f32")},
                "RoPE scaling (qwen35.rope.scaling.*) is 'type yarn, freq_scale 0.25, "),
    "tokenizer": ({"tokenizer.ggml.model": ("gpt2", "str")}, "key tokenizer.ggml.model is 'gpt2', expected 'test'"),
    "pre": ({"tokenizer.ggml.pre": ("qwen2", "str")}, "key tokenizer.ggml.pre is 'qwen2', expected absent"),
    "n_tokens": ({"tokenizer.ggml.tokens": ([f"t{i}" for i in range(39)], "arr:str")},
                 "the number of tokens (tokenizer.ggml.tokens) is 39, expected 40"),
    "a token": ({"tokenizer.ggml.tokens": ([f"t{i + (i == 17)}" for i in range(40)], "arr:str")},
                "token 17 (tokenizer.ggml.tokens) is 't18', expected 't17'"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "key tokenizer.ggml.tokens is missing"),
    "projector": ({"general.type": ("mmproj", "str")}, "this is a vision or audio projector"),
    "lora": ({"general.type": ("adapter", "str")}, "this is an adapter (LoRA)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    return folder, *write_pair(random_model(folder), folder)


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_head_of_another_model_is_refused(random_pair, tmp_path, capfdbinary, case):
    changes, expected = MISMATCHES[case]
    _, trunk, head = random_pair
    kv, tensors = copy_of(head)
    if case == "layers":
        tensors = [(name.replace("blk.2.", "blk.3."), *rest) for name, *rest in tensors]
    pairs = {key: (value, kind) for key, value, kind in kv} | changes
    write_gguf(tmp_path / "mtp-x.gguf", [(k, *v) for k, v in pairs.items() if v is not None], tensors)
    code = main(["generate", "-m", str(trunk), "-md", str(tmp_path / "mtp-x.gguf"), "-p", "x"])
    out, err = capfdbinary.readouterr()
    line = err.decode().strip()
    assert (code, out, line.count("\n")) == (2, b"", 0)
    assert "mtp-x.gguf: " in line
    assert expected in line


def test_rope_keys_that_change_no_angle_may_differ(random_pair, tmp_path):
    """A type and an original context without a factor; a base that the caller sets for both."""
    _, trunk, head = random_pair
    kv, tensors = copy_of(head)
    kv = [(k, 1e6 if k == "qwen35.rope.freq_base" else v, kind) for k, v, kind in kv]
    more = [("qwen35.rope.scaling.type", "none", "str"), ("qwen35.rope.scaling.original_context_length", 99, "u32")]
    write_gguf(tmp_path / "mtp-x.gguf", [*kv, *more], tensors)
    assert load(trunk, model_draft=tmp_path / "mtp-x.gguf", rope=RopeOverrides(freq_base=1e5)).has_mtp


@pytest.mark.parametrize(
    ("drop", "shape", "expected"),
    [
        ("blk.2.nextn.eh_proj.weight", None, "tensor blk.2.nextn.eh_proj.weight is missing"),
        ("blk.2.attn_k.weight", None, "tensor blk.2.attn_k.weight is missing"),
        ("blk.2.nextn.hnorm.weight", (63,), "tensor blk.2.nextn.hnorm.weight has shape (63,), expected (64,)"),
        ("token_embd.weight", (39, 64), "the number of rows of token_embd.weight is 39, expected 40"),
    ],
)
def test_a_head_with_wrong_tensors_is_refused(random_pair, tmp_path, drop, shape, expected):
    _, trunk, head = random_pair
    kv, tensors = copy_of(head)
    kept = [t for t in tensors if t[0] != drop]
    if shape is not None:
        kept.append((drop, "F32", shape, np.zeros(shape, np.float32)))
    write_gguf(tmp_path / "mtp-x.gguf", kv, kept)
    with pytest.raises(MtprefError) as caught:
        load(trunk, model_draft=tmp_path / "mtp-x.gguf")
    assert "mtp-x.gguf: " in str(caught.value)
    assert expected in str(caught.value)


def test_files_that_are_no_head_are_refused(random_pair, tmp_path):
    _, trunk, head = random_pair
    with pytest.raises(MtprefError, match=r"trunk.gguf: no MTP head"):
        load(trunk, model_draft=trunk)
    with pytest.raises(MtprefError, match=r"this is an MTP head without its trunk .*; give the trunk with -m and this"):
        load(head)
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(MtprefError, match=r"empty.gguf: the file is empty"):
        load(trunk, model_draft=tmp_path / "empty.gguf")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"general.type": ("mmproj", "str")}, "this is a vision or audio projector"),
        ({"general.type": ("adapter", "str")}, "this is an adapter"),
        ({"general.architecture": ("clip", "str")}, "this is a vision or audio projector"),
        (
            {"general.architecture": ("llama4", "str")},
            "architecture 'llama4' is not supported, expected one of: bailingmoe3, cohere2moe, deepseek2",
        ),
        ({"general.architecture": ("mtpref-dump", "str")}, "a dump of activations"),
        ({"general.architecture": None}, "key general.architecture is missing"),
    ],
)
def test_a_model_that_is_none_is_named(random_pair, tmp_path, keys, expected):
    kv, tensors = copy_of(random_pair[0] / "model.gguf")
    pairs = {key: (value, kind) for key, value, kind in kv} | keys
    write_gguf(tmp_path / "x.gguf", [(k, *v) for k, v in pairs.items() if v is not None], tensors)
    with pytest.raises(MtprefError) as caught:
        load(tmp_path / "x.gguf")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_weights_is_named(random_pair, tmp_path):
    kv, _ = copy_of(random_pair[0] / "model.gguf")
    write_gguf(tmp_path / "vocab.gguf", kv, [])
    with pytest.raises(MtprefError, match="this is a vocabulary without weights"):
        load(tmp_path / "vocab.gguf")


EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@settings(max_examples=some_examples(150))
@given(edits=EDITS)
def test_mutated_heads_raise_nothing_but_a_refusal(random_pair, edits):
    folder, trunk, head = random_pair
    raw = bytearray(head.read_bytes())
    n_header = raw.index(b"blk.2.ffn_down.weight")
    for where, new in edits:
        at = int(where * n_header)
        raw[at : at + len(new)] = new
    path = folder / "mutated.gguf"
    path.write_bytes(raw)
    for files in ({"path": trunk, "model_draft": path}, {"path": path}, {"path": path, "mtp": False}):
        with one_line_refusals():
            load(**files)


# OFF


class Reads:
    """What is materialised: tensor data handed out, vectors decoded."""

    def __init__(self, monkeypatch) -> None:
        self.names: set[str] = set()
        self.n_decoded = 0
        data, decode = GgufFile.data, quants.dequantize

        def spy_data(file, tensor):
            self.names.add(tensor if isinstance(tensor, str) else tensor.name)
            return data(file, tensor)

        def spy_decode(*args):
            self.n_decoded += 1
            return decode(*args)

        monkeypatch.setattr(GgufFile, "data", spy_data)
        monkeypatch.setattr(quants, "dequantize", spy_decode)


def test_a_head_that_is_off_is_never_read(monkeypatch, tiny_pair):
    kv, _ = copy_of(tiny_path())
    prefix = f"blk.{n_trunk_layers(kv)}."
    reads = Reads(monkeypatch)
    on = mtpref.load()
    assert any(name.startswith(prefix) for name in reads.names)
    n_with_head, reads.n_decoded = reads.n_decoded, 0
    reads.names.clear()
    off = mtpref.load(mtp=False, check_tensors=True)
    n_off = reads.n_decoded
    text = off.generate(PROMPT, n_ctx=64).finish().ids
    assert not any(name.startswith(prefix) for name in reads.names)
    reads.n_decoded = 0
    mtpref.load(tiny_pair[0])
    assert n_off == reads.n_decoded < n_with_head
    assert (off.core.mtp_status, off.has_mtp, off.core.heads) == ("off", False, ())
    assert off.core.notes == ()
    with pytest.raises(MtprefError, match=r"the MTP head was not loaded \(mtp=False\); use Options.spec_type none"):
        off.generate(PROMPT, Options(spec_type="draft-mtp"))
    assert off.core.new_state(64).heads == []
    assert text == on.generate(PROMPT, n_ctx=64).finish().ids


def test_spec_type_none_leaves_the_head_in_the_file(monkeypatch, capfdbinary, tiny_pair):
    reads = Reads(monkeypatch)
    argv = ["generate", "-p", "x", "-n", "2", "--spec-type", "none", "-md", str(tiny_pair[1])]
    assert main(argv) == 0
    err = capfdbinary.readouterr().err.decode()
    assert not any(".nextn." in name for name in reads.names)
    assert "MTP: off, though the file has a head" in err
    assert f"-md {tiny_pair[1]}: not read, drafting is off" in err


def test_a_head_that_is_off_is_still_checked_by_its_header(random_pair, tmp_path):
    kv, tensors = copy_of(random_pair[0] / "model.gguf")
    write_gguf(tmp_path / "x.gguf", kv, [t for t in tensors if "eh_proj" not in t[0]])
    with pytest.raises(MtprefError, match=r"tensor blk.2.nextn.eh_proj.weight is missing"):
        load(tmp_path / "x.gguf", mtp=False)


# CHECK TENSORS


@pytest.mark.parametrize(("where", "name"), [("model", "blk.0.ffn_up.weight"), ("head", "blk.2.nextn.enorm.weight")])
def test_nan_weights_are_named_at_load(random_pair, tmp_path, capfdbinary, where, name):
    _, trunk, head = random_pair
    source = head if where == "head" else trunk
    kv, tensors = copy_of(source)
    bad = {n: x.view("<f4") for n, t, _, x in tensors if n == name and t == "F32"}
    bad[name][5] = np.nan
    write_gguf(tmp_path / "x.gguf", kv, tensors)
    files = ["-m", str(trunk), "-md", str(tmp_path / "x.gguf")] if where == "head" else ["-m", str(tmp_path / "x.gguf")]
    assert main(["generate", *files, "-p", "x", "-n", "1", "--check-tensors"]) == 2
    err = capfdbinary.readouterr().err.decode()
    assert f"x.gguf: tensor {name} (F32): " in err
    assert "value 5: value is NaN, expected a finite number" in err


def test_sound_weights_pass(tiny_pair):
    assert mtpref.load(check_tensors=True).has_mtp
    assert mtpref.load(tiny_pair[0], model_draft=tiny_pair[1], check_tensors=True).has_mtp


# LLAMA.CPP


def test_llama_cpp_drafts_alike_from_two_files(tmp_path):
    """Stock llama-speculative-simple with -m trunk -md head: the counts and the text of the model in one file."""
    program = llama_cpp("llama-speculative-simple")
    trunk, head = write_pair(tiny_path(), tmp_path)
    options = ["-p", PROMPT, "-n", "32", "--temp", "0", "--spec-type", "draft-mtp", "--spec-draft-n-max", "3"]
    options += ["-c", "256", "-t", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-ctkd", "f32", "-ctvd", "f32"]
    counts, text = llama_speculative("-m", tiny_path(), *options)
    assert len(text) > 40
    assert llama_speculative("-m", trunk, "-md", head, *options) == (counts, text)
    bare = tmp_path / "bare.gguf"
    kv, tensors = head_of(*copy_of(tiny_path()))
    write_gguf(bare, kv, [t for t in tensors if t[0].startswith("blk.")])
    done = subprocess.run([program, "-m", trunk, "-md", bare, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "token_embd.weight" in done.stdout + done.stderr
