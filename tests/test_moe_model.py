"""Whole models with experts: against the float64 oracle, and against themselves in other batches, bit by bit."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.architectures import ARCHITECTURES
from mtpref.base.errors import MtprefError
from mtpref.engine.decode import STRATEGIES
from mtpref.engine.model import load, pair
from mtpref.engine.recipe import make_recipe
from mtpref.files.gguf import write_gguf
from mtpref.heads.inspect import inspect_file
from mtpref.spec import NO_CELL, Stack
from tests import naive, naive_dsa, naive_mla, naive_moe
from tests.gguf_copy import copy_of
from tests.micro_moe import NAMES, standard
from tests.models import prompt_of, run_decoder
from tests.roll_backs import check_partial_acceptance, check_roll_back
from tests.samples import diagonal

# Of every architecture: one with everything apart, one with projections or experts fused or in groups.
FILES = [name for name in NAMES if name.endswith("-f32") and "-30-" not in name]
PROMPT = [17, 40, 3, 255, 12, 12, 9, 200, 30, 1, 77]
LIMIT = {"exact": 1e-10, "ggml": 1e-9}


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@lru_cache(maxsize=8)
def model_of(name: str, numerics: str = "ggml", kv_type: str = "F32", use_kernels: bool | None = None):
    return load(standard(name), make_recipe(numerics, use_kernels=use_kernels), kv_type=kv_type, kv_type_draft=kv_type)


@lru_cache(maxsize=2)
def oracle(name: str):
    hparams, weights = naive_moe.load(standard(name))
    naively = {"deepseek2": naive_mla, "deepseek32": naive_dsa, "glm-dsa": naive_dsa}.get(hparams["arch"], naive_moe)
    out = naively.trunk(weights, hparams, PROMPT)
    shifted = np.concatenate([np.zeros((1, out.h_post.shape[1])), out.h_post[:-1]])
    return out, naively.mtp(weights, hparams, PROMPT, shifted, list(range(len(PROMPT))))


class Taken(dict):
    def __call__(self, name, array):
        self[name] = np.array(array)


def run_both(model, taken):
    state = model.new_state()
    out = model.trunk(state, PROMPT, n_logits=len(PROMPT), tap=taken)
    pairs = pair(model, PROMPT, out.hidden.post, 0, state.pending_h)
    return out, model.mtp(state, pairs.ids, pairs.rows, 0, n_logits=len(PROMPT), tap=taken)


@pytest.mark.parametrize("numerics", ["exact", "ggml"])
@pytest.mark.covering
def test_trunk_and_head_equal_the_naive_oracle(name, numerics):
    taken = Taken()
    ours, head = run_both(model_of(name, numerics, "F32", False), taken)
    trunk, mtp = oracle(name)
    assert naive.nmse(trunk.logits, ours.logits) < LIMIT[numerics]
    assert naive.nmse(mtp.logits, head.logits) < LIMIT[numerics]
    tensors = trunk.tensors | mtp.tensors
    shown = {n for n in tensors if n in taken}
    wanted = {"ffn_moe_logits", "ffn_moe_probs", "ffn_moe_weights", "ffn_moe_topk", "ffn_moe_out", "ffn_out", "l_out"}
    assert wanted <= {n.removeprefix("mtp_").rpartition("-")[0] for n in shown}
    for one in shown:
        assert naive.nmse(tensors[one], taken[one]) < LIMIT[numerics], one
    chosen = [taken[f"ffn_moe_topk-{il}"] for il in range(4) if f"ffn_moe_topk-{il}" in taken]
    assert [np.array_equal(a, r.ids) for a, r in zip(chosen, ours.routings, strict=True)] == [True] * len(chosen)
    assert len(head.routings) == 1


def test_kernels_and_specification_give_the_same_bits(name):
    for numerics in ("exact", "ggml"):
        a = run_both(model_of(name, numerics, "F32", False), Taken())
        b = run_both(model_of(name, numerics, "F32"), Taken())
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x.logits, y.logits)


@pytest.mark.parametrize("file", [*FILES, *(n for n in NAMES if not n.endswith("-f32"))])
def test_a_tokens_bits_are_the_same_alone_in_a_verify_batch_and_in_any_chunking(file):
    model, ids = model_of(file, "ggml", "F16"), prompt_of(40, 2)
    whole = model.new_state()
    out = model.trunk(whole, ids, n_logits=len(ids))
    for sizes in ([1] * 40, [4, 1, 9, 26], [39, 1]):
        state, at, logits = model.new_state(), 0, []
        for size in sizes:
            part = model.trunk(state, ids[at : at + size], n_logits=size)
            logits.append(part.logits)
            for routing, wanted in zip(part.routings, out.routings, strict=True):
                assert np.array_equal(routing.ids, wanted.ids[at : at + size])
                assert np.array_equal(routing.gap, wanted.gap[at : at + size])
            for chosen, wanted in zip(part.selections, out.selections, strict=True):
                n = chosen.cells.shape[1]
                assert np.array_equal(chosen.cells, wanted.cells[at : at + size, :n])
                assert (wanted.cells[at : at + size, n:] == NO_CELL).all()
                assert np.array_equal(chosen.gap, wanted.gap[at : at + size])
            at += size
        assert np.array_equal(np.concatenate(logits), out.logits)
        assert state.digest() == whole.digest()


@pytest.mark.parametrize(("name", "rollback"), diagonal(FILES, sorted(STRATEGIES)))
def test_all_roll_backs_give_the_tokens_and_the_state_of_plain_decoding(name, rollback):
    check_roll_back(model_of(name), PROMPT, rollback)


@pytest.mark.parametrize(("name", "rollback"), diagonal(FILES, sorted(STRATEGIES)))
def test_partial_acceptance_is_rolled_back(name, rollback):
    check_partial_acceptance(model_of(name), PROMPT, rollback)


# LOADING


def edited(path: Path, out: Path, keys: dict, drop: tuple[str, ...] = ()) -> Path:
    """A copy with keys changed (None: gone), and tensors gone."""
    kv, tensors = copy_of(path)
    arch = next(v for k, v, _ in kv if k == "general.architecture")
    arch = arch.decode() if isinstance(arch, bytes) else arch
    own = {f"{arch}.{key}": value for key, value in keys.items()}
    kv = [(k, own.get(k, (v, kind))[0], own.get(k, (v, kind))[1]) for k, v, kind in kv if own.get(k, (v,)) is not None]
    kv += [(k, *v) for k, v in own.items() if v is not None and k not in {name for name, _, _ in kv}]
    kept = [t for t in tensors if not drop or not t[0].startswith(drop)]
    write_gguf(out, kv, kept)
    return out


def test_stacks_are_views_of_the_file_and_fused_ones_are_held_as_two():
    for file in ("micro-qwen35moe-f32", "micro-qwen35moe-90-fused-f32"):
        layer = model_of(file).weights.layers[1]
        gate, up = layer["ffn_gate_exps.weight"], layer["ffn_up_exps.weight"]
        assert isinstance(gate, Stack)
        assert (gate.n_out, len(gate)) == (up.n_out, len(up)) == (32, 6 if "fused" not in file else 20)
        assert not gate.raw.flags.owndata
        held = "ffn_gate_up_exps.weight/ffn_gate_exps.weight" if "fused" in file else "ffn_gate_exps.weight"
        assert gate.name.endswith(held)
        assert "ffn_gate_up_exps.weight" not in layer


GLM, GROUPS, HY, QWEN = "micro-glm4moe-f32", "micro-glm4moe-groups-f32", "micro-hy_v3-f32", "micro-qwen35moe-f32"
BAD = {
    "no shared expert": (GLM, {"expert_shared_count": (0, "u32")}, "shared_count is 0, expected an int"),
    "too many used": (GLM, {"expert_used_count": (21, "u32")}, "at most expert_count = 20"),
    "groups of one": (GROUPS, {"expert_group_count": (20, "u32")}, "2 or more of the 20 experts"),
    "odd groups": (GROUPS, {"expert_group_count": (3, "u32")}, "groups of one size"),
    "all groups": (GROUPS, {"expert_group_used_count": (4, "u32")}, "1 to 3 of 4 groups"),
    "a group too small": (
        GROUPS,
        {"expert_group_used_count": (1, "u32"), "expert_used_count": (6, "u32")},
        "with 6 experts in them",
    ),
    "another gating": (HY, {"expert_gating_func": (4, "u32")}, r"gating_func is 4, expected 1 \(softmax"),
    "half a head turns": (HY, {"rope.dimension_count": (8, "u32")}, "expected 16 = attention.key_length"),
    "pictures": (GLM, {"rope.dimension_sections": ([2, 1, 1, 0], "arr:i32")}, "a model for pictures"),
    "no width": (QWEN, {"expert_feed_forward_length": None}, "qwen35moe.expert_feed_forward_length is missing"),
    "two heads": (GLM, {"nextn_predict_layers": (2, "u32"), "block_count": (6, "u32")}, "expected 0 or 1"),
    "a flag that is none": (HY, {"expert_weights_norm": (1, "u32")}, "expected true or false"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_are_refused_in_one_line(case, tmp_path):
    file, keys, message = BAD[case]
    path = edited(standard(file), tmp_path / "bad.gguf", keys)
    with pytest.raises(MtprefError, match=message) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    if case != "two heads":  # a count of heads is no fault of the file
        assert [p for p in inspect_file(path)["problems"] if re.search(message, p)] != []


@pytest.mark.parametrize("name", [QWEN, "micro-qwen3next-f32", GLM, HY])
def test_what_a_load_refuses_of_a_key_is_a_problem_that_inspect_names_and_the_other_way_round(name, tmp_path):
    """Each hyper-parameter left out, and of another type: with equal words, once."""
    path, arch = tmp_path / "bad.gguf", name.split("-")[1]
    for hyper in ARCHITECTURES[arch].hypers[1:]:  # without a count of blocks inspect reads no other
        for value in (None, ("many", "str")):
            edited(standard(name), path, {hyper.key: value})
            try:
                load(path)
                expected = None
            except MtprefError as error:
                expected = re.sub(r"^.*?: (.*?)(; try: .*)?$", r"\1", str(error))
            expected = expected if expected and "key " in expected else None  # a default that fits no tensor
            problems = [p for p in inspect_file(path)["problems"] if p.startswith("key ")]
            assert problems == ([] if expected is None else [expected]), hyper.key


@pytest.mark.parametrize("part", ["gate", "up", "down"])
@pytest.mark.parametrize("il", [1, 4])
def test_a_shared_expert_is_there_whole_or_not_at_all(part, il, tmp_path):
    name = f"blk.{il}.ffn_{part}_shexp.weight"
    keys, tensors = copy_of(standard(HY))
    write_gguf(tmp_path / "part.gguf", keys, [t for t in tensors if t[0] != name])
    assert inspect_file(tmp_path / "part.gguf")["problems"] == [f"{name} is missing"]
    with pytest.raises(MtprefError, match=f"tensor {name} is missing"):
        load(tmp_path / "part.gguf")
    write_gguf(tmp_path / "none.gguf", keys, [t for t in tensors if "_shexp" not in t[0]])
    assert inspect_file(tmp_path / "none.gguf")["problems"] == []
    assert "ffn_up_shexp.weight" not in load(tmp_path / "none.gguf").weights.layers[1]


def test_a_width_of_experts_falls_back_to_the_dense_width_shared_out(tmp_path):
    keys = {"expert_feed_forward_length": None, "feed_forward_length": (96, "u32")}
    model = load(edited(standard("micro-qwen35moe-f32"), tmp_path / "m.gguf", keys))
    assert model.weights.layers[0]["ffn_up_exps.weight"].n_out == 32
    keys = {"expert_shared_feed_forward_length": None, "feed_forward_length": (64, "u32")}
    assert load(edited(standard("micro-qwen35moe-f32"), tmp_path / "s.gguf", keys)).notes == ()


@pytest.mark.parametrize("file", ["micro-glm4moe-f32", "micro-hy_v3-f32"])
def test_a_trunk_that_counts_a_head_elsewhere_runs_and_says_so(file, tmp_path):
    trunk = edited(standard(file), tmp_path / "trunk.gguf", {}, drop=("blk.4.",))
    model = load(trunk)
    assert (model.mtp_status, model.heads) == ("none", ())
    assert "blk.4.nextn.eh_proj.weight is missing" in model.notes[0]
    whole = load(trunk, model_draft=standard(file))
    assert whole.mtp_status == "file"
    assert (
        run_decoder(whole, PROMPT, 8, n_max=2).ids == run_decoder(model_of(file, kv_type="F16"), PROMPT, 8, n_max=2).ids
    )


@pytest.mark.parametrize("file", ["micro-qwen35moe-f32", "micro-qwen3next-f32"])
def test_the_qwen_family_refuses_a_head_that_is_counted_and_not_there(file, tmp_path):
    with pytest.raises(MtprefError, match=r"tensor blk\.4\.nextn\.\w+\.weight is missing"):
        load(edited(standard(file), tmp_path / "trunk.gguf", {}, drop=("blk.4.",)))


def test_a_dense_head_after_layers_of_experts(tmp_path):
    """hy_v3: the head's block is dense where it has no router."""
    kv, tensors = copy_of(standard("micro-hy_v3-f32"))
    dense = [(f"blk.4.{n.split('.', 2)[2]}", *rest) for n, *rest in tensors if n.startswith("blk.0.ffn_")]
    kept = [t for t in tensors if not t[0].startswith(("blk.4.ffn_", "blk.4.exp_probs"))]
    write_gguf(tmp_path / "m.gguf", kv, [*kept, *dense])
    model = load(tmp_path / "m.gguf")
    assert model.notes == ()
    assert model.heads[0].layer.block.ffn.name == "swiglu_ffn"
    assert (
        run_decoder(model, PROMPT, 6, n_max=2).ids
        == run_decoder(model_of("micro-hy_v3-f32", kv_type="F16"), PROMPT, 6, n_max=2).ids
    )


def test_the_same_model_in_the_other_layout_gives_the_same_logits(tmp_path):
    """Separate projections of a fused file: written out by hand, with the rows of each key head."""
    kv, tensors = copy_of(standard("micro-qwen3next-fused-f32"))
    made = []
    for n, kind, shape, data in tensors:
        x = data.view(np.float32).reshape(shape) if kind == "F32" else data
        if n.endswith("ssm_in.weight"):
            groups = x.reshape(2, -1, shape[1])  # two key heads: q 16, k 16, v 48, z 48
            parts = [groups[:, a:b].reshape(-1, shape[1]) for a, b in ((0, 16), (16, 32), (32, 80), (80, 128))]
            made.append((n.replace("ssm_in", "attn_qkv"), "F32", (160, shape[1]), np.concatenate(parts[:3])))
            made.append((n.replace("ssm_in", "attn_gate"), "F32", (96, shape[1]), np.ascontiguousarray(parts[3])))
        elif n.endswith("ffn_gate_up_exps.weight"):
            for part, rows in (("gate", slice(0, 32)), ("up", slice(32, 64))):
                half = np.ascontiguousarray(x[:, rows])
                made.append((n.replace("gate_up", part), "F32", half.shape, half))
        else:
            made.append((n, kind, shape, data))
    write_gguf(tmp_path / "m.gguf", kv, made)
    a, b = load(tmp_path / "m.gguf"), model_of("micro-qwen3next-fused-f32", "ggml", "F16")
    outs = [m.trunk(m.new_state(), PROMPT, n_logits=4).logits for m in (a, b)]
    assert a.notes == ()
    assert np.array_equal(*outs)
