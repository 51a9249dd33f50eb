"""extract, strip and graft: round trips, llama.cpp's own files, refusals, doubts, the proof."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.engine.model import load
from mtpref.files.gguf import WriteOptions, open_gguf, write_gguf, write_shards
from mtpref.front import cli
from mtpref.heads import extract, graft, layout_of, strip, write_contents
from mtpref.heads.checkpoint import checkpoint_source
from mtpref.heads.contents import source_of
from mtpref.heads.convert import Settings, convert
from mtpref.heads.hf import open_checkpoint
from mtpref.heads.match import doubts
from mtpref.heads.pairs import size_label
from mtpref.heads.proof import prove
from mtpref.heads.quantize import Settings as QuantizeSettings
from mtpref.heads.quantize import Wanted, quantize_file
from mtpref.spec.quants import dequantize
from tests.gguf_copy import copy_of, llama_speculative
from tests.head_files import head_of, trunk_of
from tests.hf_folder import read_state, write_checkpoint
from tests.micro_moe import standard

ROOT = Path(__file__).parent.parent
TINY = ROOT / "mtpref/data/tiny.gguf"
MICRO = ROOT / "golden/models/micro-60-f32.gguf"
FREE = WriteOptions()


def split_of(model: Path, folder: Path) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    with open_gguf(model) as f:
        write_contents(folder / "mtp.gguf", extract(f), FREE)
        write_contents(folder / "trunk.gguf", strip(f), FREE)
    return folder / "trunk.gguf", folder / "mtp.gguf"


def join(trunk: Path, source: Path, out: Path) -> Path:
    with open_gguf(trunk) as t, open_gguf(source) as s:
        write_contents(out, graft(t, s).contents, FREE)
    return out


def rewritten(path: Path, out: Path, *, keys=None, tensors=None, drop=()) -> Path:
    """A copy with other keys (None: without) and other or fewer tensors."""
    kv, items = copy_of(path)
    kv = [(k, (keys or {}).get(k, v), kind) for k, v, kind in kv if (keys or {}).get(k, v) is not None]
    items = [(n, *(tensors or {}).get(n, rest)) for n, *rest in items if n not in drop]
    write_gguf(out, kv, items)
    return out


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
    for refuse in (load, lambda path: quantize_file(path, tmp_path / "q.gguf", QuantizeSettings(Wanted("Q4_0")))):
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


@pytest.mark.parametrize("name", ["micro-qwen35moe-f32", "micro-qwen3next-fused-f32"])
def test_models_with_experts_are_split_and_joined(name, tmp_path, capsys):
    trunk, head = split_of(standard(name), tmp_path)
    out = tmp_path / "out.gguf"
    assert cli.main(["graft", str(trunk), str(head), "-o", str(out)]) == 0
    assert "not probed" not in capsys.readouterr().err
    assert out.read_bytes() == standard(name).read_bytes()
    with open_gguf(MICRO) as f, open_gguf(trunk) as t, pytest.raises(MtprefError, match=r"key general.architecture is"):
        graft(t, f)


# REFUSALS

REFUSED = {
    "qwen35.embedding_length": (128, "embedding_length is 128, expected 256 as in"),
    "qwen35.attention.head_count": (8, "attention.head_count is 8, expected 4 as in"),
    "qwen35.rope.freq_base": (1e6, "rope.freq_base is 1000000.0, expected 10000.0"),
    "tokenizer.ggml.pre": ("qwen2", "tokenizer.ggml.pre is 'qwen2', expected 'qwen35'"),
    "qwen35.block_count": (6, r"the number of trunk layers \(qwen35.block_count - "),
    "general.architecture": ("qwen35moe", "key general.architecture is|is missing"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_head_of_another_model_is_refused(key, tmp_path):
    value, line = REFUSED[key]
    other = rewritten(TINY, tmp_path / "other.gguf", keys={key: value})
    with pytest.raises(MtprefError, match=line):
        join(TINY, other, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_one_other_token_is_named(tmp_path):
    with open_gguf(TINY) as f:
        tokens = f.kv["tokenizer.ggml.tokens"].to_bytes_list()
    tokens[77] = b"other"
    other = rewritten(TINY, tmp_path / "other.gguf", keys={"tokenizer.ggml.tokens": tokens})
    with pytest.raises(MtprefError, match=r"element 77 \(tokenizer.ggml.tokens\) is 'other', expected"):
        join(TINY, other, tmp_path / "out.gguf")


def test_one_other_merge_is_named(tmp_path):
    with open_gguf(TINY) as f:
        merges = f.kv["tokenizer.ggml.merges"].to_bytes_list()
    merges[5:7] = merges[6:4:-1]
    other = rewritten(TINY, tmp_path / "other.gguf", keys={"tokenizer.ggml.merges": merges})
    with pytest.raises(MtprefError, match=r"element 5 \(tokenizer.ggml.merges\) is "):
        join(TINY, other, tmp_path / "out.gguf")
    kv, items = copy_of(TINY)
    bare = tmp_path / "bare.gguf"
    write_gguf(bare, [pair for pair in kv if pair[0] != "tokenizer.ggml.merges"], items)
    assert join(TINY, bare, tmp_path / "out.gguf").read_bytes() == TINY.read_bytes()


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    name = "blk.4.attn_k.weight"
    other = rewritten(TINY, tmp_path / "o.gguf", tensors={name: ("F32", (64, 256), np.zeros((64, 256), np.float32))})
    with pytest.raises(MtprefError, match=r"blk.4.attn_k.weight has shape \(64, 256\), expected \(128, 256\)"):
        join(TINY, other, tmp_path / "out.gguf")


def test_what_has_no_head_and_what_has_no_trunk(tmp_path):
    trunk, head = split_of(TINY, tmp_path)
    bad = rewritten(TINY, tmp_path / "bad.gguf", drop=["blk.4.nextn.eh_proj.weight", "blk.4.attn_q.weight"])
    stray = rewritten(TINY, tmp_path / "stray.gguf", keys={"qwen35.nextn_predict_layers": 0, "qwen35.block_count": 3})
    behind = rewritten(trunk, tmp_path / "behind.gguf", keys={"qwen35.block_count": 3})
    for make, path, line in (
        (extract, trunk, "no MTP head .* put one in with mtpref graft"),
        (strip, trunk, "no MTP head"),
        (extract, head, "holds no trunk .* a head already|is an MTP head already"),
        (strip, head, "holds an MTP head and no trunk"),
        (extract, bad, r"the MTP head is incomplete, 2 tensors are missing \(blk.4.nextn.eh_proj.weight, "),
        (
            strip,
            stray,
            r"nextn tensors in blk.4, no key .*, and key qwen35.block_count is 3: which",
        ),
        (strip, behind, r"11 tensors of blocks behind qwen35.block_count = 3 .*, none of them an MTP head's"),
    ):
        with open_gguf(path) as f, pytest.raises(MtprefError, match=line):
            make(f)
    with pytest.raises(MtprefError, match="no MTP head, expected one"):
        join(trunk, trunk, tmp_path / "x")
    with pytest.raises(MtprefError, match=r"an MTP head without blk.4.nextn.eh_proj.weight"):
        join(trunk, bad, tmp_path / "x")
    with pytest.raises(MtprefError, match=r"holds no trunk .* the order is: mtpref graft TRUNK HEAD"):
        join(head, trunk, tmp_path / "x")


ODD_VALUES = [
    ("", "str"), ("x" * 3000, "str"), (b"\xff\xfe", "str"), (0, "u32"), (2**32 - 1, "u32"), (-1, "i32"), (True, "bool"),
    (float("nan"), "f32"), ([], "arr:i32"), (["a"], "arr:str"), ([1, 2, 3], "arr:u32"), ([True] * 5, "arr:bool"),
]  # fmt: skip


def damaged(raw: bytes, kv, items, random_, path: Path) -> None:
    """The micro model with other header bytes, or with other keys and tensors."""
    if random_.random() < 0.5:
        broken = bytearray(raw)
        for _ in range(random_.choice((1, 1, 2, 4))):
            broken[random_.randrange(7712)] = random_.choice((0, 1, 255, random_.randrange(256)))
        path.write_bytes(broken)
        return
    kv, items = [pair for pair in kv if pair[0] != "general.alignment"], list(items)
    for _ in range(random_.choice((1, 2, 3))):
        i, j = random_.randrange(1, len(kv)), random_.randrange(len(items))
        if random_.random() < 0.6:
            kv[i] = (kv[i][0], *random_.choice(ODD_VALUES))
        else:
            items[j] = (items[j][0], "F32", (4,), np.zeros(4, np.float32))
    write_gguf(path, kv, items)


def test_damaged_files_end_in_one_line_or_a_file(tmp_path):
    random_ = random.Random(5)
    raw, (kv, items) = MICRO.read_bytes(), copy_of(MICRO)
    ends = {"file": 0, "refused": 0}
    with open_gguf(MICRO) as good:
        for _ in range(120):
            damaged(raw, kv, items, random_, tmp_path / "bad.gguf")
            for make in (extract, strip, lambda f: graft(f, good).contents, lambda f: graft(good, f).contents):
                try:
                    with open_gguf(tmp_path / "bad.gguf") as bad:
                        write_contents(tmp_path / "out.gguf", make(bad), FREE)
                    ends["file"] += 1
                except MtprefError:  # one line by construction; anything else fails here
                    ends["refused"] += 1
    assert min(ends.values()) > 50


def test_a_trimmed_head_brings_its_ids_and_rows(tmp_path):
    """Embedded: its own nextn.shared_head_head beside d2t. Alone: output.weight holds the rows, and moves."""
    kv, items = copy_of(MICRO)
    ids, rows = np.arange(0, 256, 2, dtype=np.int64), np.ones((128, 64), np.float32)
    _, bare = head_of(kv, items)
    alone = [*bare, ("d2t", "I64", (128,), ids), ("output.weight", "F32", (128, 64), rows)]
    write_gguf(tmp_path / "alone.gguf", kv, alone)
    out = join(MICRO, tmp_path / "alone.gguf", tmp_path / "out.gguf")
    with open_gguf(out) as f:
        assert f.tensors["blk.4.nextn.shared_head_head.weight"].shape == (128, 64)
        assert f.tensors["d2t"].shape == (128,)
        assert "output.weight" not in f.tensors
    again = join(MICRO, split_of(out, tmp_path)[1], tmp_path / "again.gguf")
    assert again.read_bytes() == out.read_bytes()
    write_gguf(tmp_path / "alone.gguf", kv, alone[:-1])
    with pytest.raises(MtprefError, match=r"d2t is there and neither .* nor output.weight"):
        join(MICRO, tmp_path / "alone.gguf", out)


# DOUBTS AND PROOF


def test_doubts(tmp_path):
    _, items = copy_of(TINY)
    by_name = {n: (t, s, d) for n, t, s, d in items}
    norm = by_name["output_norm.weight"][2].copy().view(np.float32)
    norm[[3, 9]] *= 1.5
    embd = by_name["token_embd.weight"]
    one = rewritten(TINY, tmp_path / "norm.gguf", tensors={"output_norm.weight": ("F32", norm.shape, norm)})
    rolled = np.roll(dequantize(embd[0], embd[2], embd[1]), 5, axis=0)
    two = rewritten(TINY, tmp_path / "embd.gguf", tensors={"token_embd.weight": ("F32", embd[1], rolled)})
    fine = dequantize(embd[0], embd[2], embd[1])
    same = rewritten(TINY, tmp_path / "f32.gguf", tensors={"token_embd.weight": ("F32", embd[1], fine)})
    with open_gguf(TINY) as t:
        for path, expected in ((one, "output_norm.weight differs .* in 2 of 256 values"), (two, "token_embd.weight")):
            with open_gguf(path) as s:
                found = doubts(source_of(t), source_of(s))
            assert len(found) == 1
            assert re.search(expected, found[0])
        for path in (TINY, same):
            with open_gguf(path) as s:
                assert doubts(source_of(t), source_of(s)) == []


def test_the_probe_tells_a_head_from_one_of_another_trunk(tmp_path):
    """Another trunk's hidden rows have other axes: the head's columns for them are permuted."""
    proof = prove(TINY, 96)
    assert proof.belongs is True
    _, items = copy_of(TINY)
    name = "blk.4.nextn.eh_proj.weight"
    t, shape, raw = next(rest for n, *rest in items if n == name)
    weight = dequantize(t, raw, shape)
    order = np.random.default_rng(0).permutation(256)
    weight[:, 256:] = weight[:, 256:][:, order]
    other = rewritten(TINY, tmp_path / "other.gguf", tensors={name: ("F32", shape, weight)})
    foreign = prove(join(TINY, other, tmp_path / "out.gguf"), 96)
    assert foreign.belongs is False
    assert foreign.rate.value < proof.rate.value / 2
    assert "NOT proven" in foreign.lines()[1]


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
