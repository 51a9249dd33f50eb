"""extract, strip and graft: round trips, llama.cpp's own files, the commands."""

import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.files.gguf import open_gguf, write_gguf, write_shards
from mtpref.front import cli
from mtpref.heads import graft, layout_of, strip, write_contents
from mtpref.heads.checkpoint import checkpoint_source
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import open_checkpoint
from mtpref.heads.pairs import size_label
from mtpref.heads.quantize import Settings as QuantizeSettings
from mtpref.heads.quantize import Wanted, quantize_file
from mtpref.spec.quants import dequantize
from tests.gguf_copy import copy_of, llama_speculative
from tests.head_files import head_of, trunk_of
from tests.head_surgery import FREE, MICRO, TINY, join, rewritten, split_of
from tests.hf_folder import read_state, write_checkpoint
from tests.micro_moe import standard

# ROUND TRIPS


@pytest.mark.parametrize("model", [TINY, MICRO], ids=["tiny", "micro"])
def test_extract_strip_graft_gives_the_file_back(model, tmp_path):
    trunk, head = split_of(model, tmp_path)
    assert join(trunk, head, tmp_path / "back.gguf").read_bytes() == model.read_bytes()
    assert join(trunk, model, tmp_path / "back.gguf").read_bytes() == model.read_bytes()
    assert join(model, head, tmp_path / "back.gguf").read_bytes() == model.read_bytes()


def test_the_parts_are_those_of_the_rule(tmp_path):
    trunk, head = split_of(TINY, tmp_path)
    parts = copy_of(TINY)
    for path, make in ((trunk, trunk_of), (head, head_of)):
        write_gguf(tmp_path / "other.gguf", *make(*parts))
        assert path.read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_shards_in_and_out(tmp_path):
    kv, tensors = copy_of(TINY)
    write_shards(tmp_path / "in", kv, tensors, max_tensors=13, first_is_empty=True)
    first = next(tmp_path.glob("in-00001-of-*.gguf"))
    trunk, head = split_of(first, tmp_path)
    with open_gguf(first) as t, open_gguf(head) as s:
        paths = write_contents(tmp_path / "out.gguf", graft(t, s).contents, FREE, max_bytes=10**6)
    assert [p.name for p in paths] == [f"out-{i + 1:05d}-of-00005.gguf" for i in range(5)]
    assert join(paths[0], head, tmp_path / "one.gguf").read_bytes() == TINY.read_bytes()
    assert join(trunk, head, tmp_path / "one.gguf").read_bytes() == TINY.read_bytes()


def test_in_another_order_tensors_and_keys_are_equal(tmp_path):
    """A head in front of its trunk: nothing in the parts says that, so it goes to the end."""
    kv, tensors = copy_of(MICRO)
    write_gguf(tmp_path / "m.gguf", kv, [*tensors[-15:], *tensors[:-15]])
    back = join(*split_of(tmp_path / "m.gguf", tmp_path), tmp_path / "back.gguf")
    with open_gguf(tmp_path / "m.gguf") as a, open_gguf(back) as b:
        assert dict(a.kv).keys() == dict(b.kv).keys()
        assert set(a.tensors) == set(b.tensors)
        assert all((a.data(name) == b.data(name)).all() for name in a.tensors)
    whole = join(tmp_path / "trunk.gguf", tmp_path / "m.gguf", tmp_path / "whole.gguf")
    assert whole.read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_a_trunk_that_declares_a_lost_head_is_repaired_and_stripped(tmp_path):
    with open_gguf(TINY) as f:
        names = layout_of(f).names
    lost = rewritten(TINY, tmp_path / "lost.gguf", drop=names)
    _, head = split_of(TINY, tmp_path)
    assert join(lost, head, tmp_path / "back.gguf").read_bytes() == TINY.read_bytes()
    with open_gguf(lost) as f:
        write_contents(tmp_path / "stripped.gguf", strip(f), FREE)
    assert (tmp_path / "stripped.gguf").read_bytes() == (tmp_path / "trunk.gguf").read_bytes()


def test_a_lost_head_whose_block_is_not_counted_either_costs_no_trunk_layer(tmp_path):
    """The key is left, block_count is the trunk's: the last trunk layer is not the head."""
    trunk, head = split_of(TINY, tmp_path)
    kv, items = copy_of(trunk)
    at = next(i for i, pair in enumerate(kv) if pair[0] == "qwen35.ssm.conv_kernel")
    kv.insert(at, ("qwen35.nextn_predict_layers", 1, "u32"))
    write_gguf(tmp_path / "lost.gguf", kv, items)
    with open_gguf(tmp_path / "lost.gguf") as f:
        assert (layout_of(f).n_trunk, layout_of(f).names) == (4, ())
        write_contents(tmp_path / "stripped.gguf", strip(f), FREE)
    assert (tmp_path / "stripped.gguf").read_bytes() == trunk.read_bytes()
    with open_gguf(join(tmp_path / "lost.gguf", head, tmp_path / "out.gguf")) as f:
        assert len(f.tensors) == 70


def test_what_a_head_alone_reads_and_a_whole_model_does_not_is_said(tmp_path):
    trunk, head = split_of(TINY, tmp_path)
    with open_gguf(trunk) as t, open_gguf(head) as h, open_gguf(TINY) as whole:
        [note] = graft(t, h).notes
        assert note.startswith("token_embd.weight of the head's file is left out")
        assert graft(t, whole).notes == []
    bare = rewritten(head, tmp_path / "bare.gguf", drop=("blk.4.nextn.shared_head_norm.weight",))
    with open_gguf(trunk) as t, open_gguf(bare) as h:
        assert "token_embd.weight, output_norm.weight of the head's file are left out" in graft(t, h).notes[0]


@pytest.mark.parametrize("key", [None, 0])
def test_an_undeclared_head_is_no_trunk_layer(tmp_path, key):
    """The engine refuses it, quantize too; graft of the file with itself declares it."""
    stray = rewritten(TINY, tmp_path / "stray.gguf", keys={"qwen35.nextn_predict_layers": key})
    for refuse in (
        load,
        lambda path: quantize_file(path, tmp_path / "q.gguf", QuantizeSettings(wanted=Wanted(mixture="Q4_0"))),
    ):
        with pytest.raises(MtprefError, match=r"blk\.4\.nextn\.enorm\.weight is there.*mtpref graft FILE FILE"):
            refuse(stray)
    assert join(stray, stray, tmp_path / "out.gguf").stat().st_size == TINY.stat().st_size
    load(tmp_path / "out.gguf")


@pytest.mark.parametrize("n_block", [4, 5], ids=["not counted", "counted as trunk"])
def test_a_head_that_no_key_declares_is_taken_for_one(n_block, tmp_path):
    """What a converter does that knows the tensors and not the keys."""
    keys = {"qwen35.nextn_predict_layers": None, "qwen35.block_count": n_block}
    keys["qwen35.attention.recurrent_layers"] = [True, True, True, False, False][:n_block]
    stray = tmp_path / "stray.gguf"
    kv, items = copy_of(TINY)
    write_gguf(stray, [(k, keys.get(k, v), kind) for k, v, kind in kv if keys.get(k, v) is not None], items)
    _, head = split_of(TINY, tmp_path / "good")
    split = split_of(stray, tmp_path / "split")
    assert split[0].read_bytes() == (tmp_path / "good/trunk.gguf").read_bytes()
    assert join(stray, head, tmp_path / "out.gguf").read_bytes() == TINY.read_bytes()
    mended = join(stray, stray, tmp_path / "out.gguf")
    for path, same in ((mended, TINY), (split[1], head)):
        with open_gguf(path) as a, open_gguf(same) as b:
            assert {k: _plain(a.kv[k]) for k in a.kv} == {k: _plain(b.kv[k]) for k in b.kv}
            assert list(a.tensors) == list(b.tensors)


def _plain(value):
    return value.to_numpy().tolist() if hasattr(value, "to_numpy") and value.element_type != "str" else str(value)[-40:]


def test_a_head_of_another_type_keeps_its_type_and_the_trunk_its_bytes(tmp_path):
    kv, items = copy_of(TINY)
    with open_gguf(TINY) as f:
        names = set(layout_of(f).names)
    plain = [(n, "F32", s, dequantize(t, d, s)) if n in names else (n, t, s, d) for n, t, s, d in items]
    write_gguf(tmp_path / "f32.gguf", kv, plain)
    out = join(TINY, tmp_path / "f32.gguf", tmp_path / "out.gguf")
    with open_gguf(out) as f, open_gguf(TINY) as t:
        assert {f.tensors[n].type_name for n in names} == {"F32"}
        assert all((f.data(n) == t.data(n)).all() for n in t.tensors if n not in names)


# LLAMA.CPP


def converted(folder, out, outtype):
    """Trunk and head, the trunk, the head, as llama.cpp's converter writes them: test_convert.py holds them to that."""
    paths = [out / f"{which}.gguf" for which in ("both", "trunk", "mtp")]
    for path, which in zip(paths, ("both", "trunk", "mtp"), strict=True):
        convert(folder, path, Settings(outtype=outtype, which=which))
    return paths


def join_checkpoint(trunk, folder, out, outtype):
    with open_gguf(trunk) as t, open_checkpoint(folder) as checkpoint:
        source, notes = checkpoint_source(checkpoint, outtype)
        write_contents(out, graft(t, source).contents, FREE)
    return out.read_bytes(), notes


@pytest.mark.parametrize(("dtype", "outtype"), [("BF16", "q8_0"), ("F32", "f32")])
@pytest.mark.parametrize("own_output", [False, True], ids=["tied", "own-output"])
def test_the_parts_are_the_converters_byte_for_byte(tmp_path, dtype, outtype, own_output):
    state, config, tokenizer = read_state()
    if own_output:
        state["lm_head.weight"] = state["model.embed_tokens.weight"][::-1].copy()
        config = {**config, "tie_word_embeddings": False}
    folder = write_checkpoint(tmp_path / "Tiny-5M", state, config, tokenizer, dtype=dtype)
    both, trunk, mtp = converted(folder, tmp_path, outtype)
    split = split_of(both, tmp_path / "split")
    assert split[0].read_bytes() == trunk.read_bytes()
    assert split[1].read_bytes() == mtp.read_bytes()
    assert join(trunk, mtp, tmp_path / "back.gguf").read_bytes() == both.read_bytes()
    assert join_checkpoint(trunk, folder, tmp_path / "back.gguf", outtype) == (both.read_bytes(), [])


def test_a_checkpoint_in_several_files_says_where_the_head_stands(tmp_path):
    """Its head is spread over the files, so the parts alone do not say where; extract and strip do not care."""
    folder = write_checkpoint(tmp_path / "Tiny-5M", *read_state(), n_files=2)
    both, trunk, mtp = converted(folder, tmp_path, "q8_0")
    split = split_of(both, tmp_path / "split")
    assert split[0].read_bytes() == trunk.read_bytes()
    assert split[1].read_bytes() == mtp.read_bytes()
    assert join_checkpoint(trunk, folder, tmp_path / "back.gguf", "q8_0")[0] == both.read_bytes()
    assert join(trunk, both, tmp_path / "back.gguf").read_bytes() == both.read_bytes()


def test_a_checkpoint_gives_its_head_in_the_type_that_is_asked_for(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "hf", *read_state(), dtype="F32")
    trunk, _ = split_of(TINY, tmp_path)
    out = tmp_path / "out.gguf"
    assert cli.main(["graft", str(trunk), str(folder), "-o", str(out), "--outtype", "q8_0", "--no-probe"]) == 0
    with open_gguf(out) as a, open_gguf(TINY) as b:
        assert set(a.tensors) == set(b.tensors)
        q8 = [name for name, info in b.tensors.items() if info.type_name == "Q8_0"]
        assert all((a.data(name) == b.data(name)).all() for name in q8)
    assert cli.main(["graft", str(trunk), str(folder), "-o", str(folder / "model.safetensors"), "--force"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert cli.main(["graft", str(trunk), str(TINY), "-o", str(out), "--outtype", "f32"]) == 2
    assert "whose head keeps its types" in capsys.readouterr().err


def test_a_checkpoint_without_head_or_of_another_model(tmp_path, capsys):
    state, config, tokenizer = read_state()
    trunk, _ = split_of(TINY, tmp_path)
    bare = {name: x for name, x in state.items() if not name.startswith("mtp.")}
    without = write_checkpoint(tmp_path / "a", bare, {**config, "mtp_num_hidden_layers": 0}, tokenizer)
    other = write_checkpoint(tmp_path / "b", state, {**config, "rms_norm_eps": 1e-5}, tokenizer)
    for folder, line in ((without, "no tensor of an MTP head"), (other, "layer_norm_rms_epsilon is 9.99")):
        assert cli.main(["graft", str(trunk), str(folder), "-o", str(tmp_path / "x")]) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("shapes", "label"),
    [
        ([("a", (1000, 172))], "172K"),
        ([("a", (752_393_024,))], "752M"),
        ([("x_exps.weight", (8, 1000, 1000)), ("y", (500_000,))], "8x1.5M"),
    ],
)
def test_size_label(shapes, label):
    assert size_label(shapes) == label


@pytest.mark.parametrize("name", ["micro-qwen35moe-f32", "micro-qwen3next-f32"])
def test_models_with_experts_are_split_and_joined(name, tmp_path, capsys):
    trunk, head = split_of(standard(name), tmp_path)
    out = tmp_path / "out.gguf"
    assert cli.main(["graft", str(trunk), str(head), "-o", str(out)]) in (0, 1)  # 1: a planted head hardly needs rows
    assert "not probed" not in capsys.readouterr().err
    assert out.read_bytes() == standard(name).read_bytes()
    with open_gguf(MICRO) as f, open_gguf(trunk) as t, pytest.raises(MtprefError, match=r"key general.architecture is"):
        graft(t, f)


# STOCK LLAMA.CPP


def test_stock_llama_cpp_drafts_with_every_file(tmp_path):
    """The same counts and the same text from the model, the grafted ones, and trunk and head apart."""
    options = ["-p", "def read_lines(path):\n", "-n", "48", "--temp", "0", "--spec-type", "draft-mtp"]
    options += ["--spec-draft-n-max", "3", "-c", "256", "-t", "1", "-fa", "off", "-fit", "off"]
    counts, text = llama_speculative("-m", TINY, *options)
    assert dict(counts)["accept"] != "0"
    trunk, head = split_of(TINY, tmp_path)
    back = join(trunk, head, tmp_path / "back.gguf")
    with open_gguf(trunk) as t, open_gguf(head) as s:
        shards = write_contents(tmp_path / "s.gguf", graft(t, s).contents, FREE, max_tensors=25)
    for arguments in (["-m", back], ["-m", shards[0]], ["-m", trunk, "-md", head]):
        assert llama_speculative(*arguments, *options) == (counts, text)
    folder = write_checkpoint(tmp_path / "hf", *read_state(), dtype="F32")
    join_checkpoint(trunk, folder, tmp_path / "hf.gguf", "q8_0")
    assert llama_speculative("-m", tmp_path / "hf.gguf", *options) == (counts, text)


# COMMANDS


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(TINY.read_bytes())
    assert cli.main(["extract", "tiny.gguf"]) == 0
    assert cli.main(["strip", "tiny.gguf", "-o", "trunk.gguf"]) == 0
    assert cli.main(["graft", "trunk.gguf", "mtp-tiny.gguf", "-o", "back.gguf", "--no-probe"]) == 0
    assert (tmp_path / "back.gguf").read_bytes() == TINY.read_bytes()
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "mtp-tiny.gguf: 17 tensors, 1.4 MB"
    assert cli.main(["graft", "trunk.gguf", "mtp-tiny.gguf", "-o", "back.gguf"]) == 2
    assert "exists, expected a new name; give another -o, or --force" in capsys.readouterr().err
    assert cli.main(["graft", "trunk.gguf", "mtp-tiny.gguf", "-o", "mtp-tiny.gguf", "--force"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert cli.main(["strip", "tiny.gguf", "-o", "s", "--split-max-size", "1M"]) == 0
    assert cli.main(["extract", "back.gguf", "-o", "x", "--split-max-size", "1T"]) == 2
    assert "expected a whole number and M or G" in capsys.readouterr().err
