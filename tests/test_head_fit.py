"""Whether a head fits a trunk: refusals of extract, strip and graft, doubts, the proof."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.heads import extract, graft, strip, write_contents
from mtpref.heads.contents import source_of
from mtpref.heads.match import doubts
from mtpref.heads.proof import prove
from mtpref.spec.quants import dequantize
from tests.gguf_copy import copy_of
from tests.head_files import head_of
from tests.head_surgery import FREE, MICRO, TINY, join, rewritten, split_of

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
        (strip, behind, r"11 tensors of blocks after qwen35.block_count = 3 .*, none of them an MTP head's"),
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
