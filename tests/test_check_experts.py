"""mtpref check and probe on heads with experts: no sound one accused, a sick one told by its part or not at all.

The sound one is the tiny model cut into experts (tests/expert_cut.py).
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import mtpref
from mtpref.architectures import ARCHITECTURES
from mtpref.architectures.transforms import ZERO_CENTRED
from mtpref.base.errors import MtprefError
from mtpref.heads.check import check_path
from mtpref.heads.check.changes import changes
from mtpref.heads.check.parts import PARTS, said, shifted_norms, without
from mtpref.heads.check.running import run
from mtpref.heads.convert import run as converting
from mtpref.heads.inspect.report import describe_file, open_to_inspect
from mtpref.heads.pairs import with_head, without_head
from mtpref.measure.probe.controls import controls, head_without, verdict
from mtpref.spec.kinds import NOTHING
from tests import broken_heads, micro_moe
from tests.broken_heads import HEAD, TINY, edited, write
from tests.expert_cut import write_cut

MODELS = ("micro-qwen35moe-f32", "micro-qwen3next-fused-f32", "micro-glm4moe-f32", "micro-hy_v3-fused-f32")


def of(name, edit):
    return edited(lambda other: other == f"{HEAD}{name}.weight", edit)


def exchanged(a, b):
    names = {f"{HEAD}{a}.weight": f"{HEAD}{b}.weight", f"{HEAD}{b}.weight": f"{HEAD}{a}.weight"}
    return lambda kv, tensors: (kv, [(names.get(name, name), *rest) for name, *rest in tensors])


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    return write_cut(tmp_path_factory.mktemp("cut") / "cut.gguf")


def said_of(report):
    return {(f.id, f.what) for f in report.findings if f.severity in ("fail", "warning")}


def test_a_sound_head_with_experts_is_called_sound(cut):
    assert not said_of(check_path(cut, fast=True))
    model = mtpref.load(cut).core
    ran, found = run(model, 192)
    assert {f.id for f in found} == {"acceptance"}, found
    assert ran.a[0].value > 0.7
    assert verdict(ran.controls).startswith("verdict: the head is above every"), verdict(ran.controls)
    tried = {t.variant.name for t in changes(model, controls(model))}
    assert {"no-ffn", "no-experts", "no-shared-expert", "even attention"} <= tried


def test_the_cut_model_computes_what_the_tiny_one_does(cut):
    """But for sums in another order, and activations that are rounded to other codes for it."""
    models = [mtpref.load(path).core for path in (TINY, cut)]
    a, b = (model.trunk(model.new_state(), [5, 6, 7], n_logits=3).logits for model in models)
    assert np.square(a - b).sum() < 1e-3 * np.square(a).sum()


def test_a_stack_of_noise_is_told_where_the_trunk_s_are_none(cut, tmp_path):
    """Here each of the trunk's is given a direction that stands out, as long training leaves one."""

    def trained(x):
        return x + 2 * x.std() * np.ones((x.shape[1], 1)) @ np.random.default_rng(0).choice([-1, 1], (1, x.shape[2]))

    def change(kv, tensors):
        of_trunk = edited(lambda n: n.endswith("ffn_up_exps.weight") and not n.startswith(HEAD), trained)
        return of("ffn_up_exps", broken_heads.noise)(*of_trunk(kv, tensors))

    report = check_path(write(tmp_path / "x.gguf", change, cut), fast=True)
    assert said_of(report) == {("random-matrix", f"{HEAD}ffn_up_exps.weight")}


@pytest.mark.parametrize(
    ("name", "edit", "id"),
    [
        ("ffn_gate_inp", lambda x: 0 * x, "tensor-zero"),
        ("ffn_down_shexp", lambda x: 0 * x, "tensor-zero"),
        ("ffn_up_exps", lambda x: 0 * x, "tensor-zero"),
        ("ffn_gate_inp_shexp", lambda x: 0 * x, "gate-zero"),
    ],
)
def test_what_values_show_is_said_of_the_tensor_alone(cut, tmp_path, name, edit, id):
    report = check_path(write(tmp_path / "x.gguf", of(name, edit), cut), fast=True)
    assert said_of(report) == {(id, f"{HEAD}{name}.weight")}, report.lines()


def test_gates_that_are_zero_in_every_layer_are_made_so(cut, tmp_path):
    change = edited(lambda name: name.endswith("ffn_gate_inp_shexp.weight"), lambda x: 0 * x)
    assert not said_of(check_path(write(tmp_path / "x.gguf", change, cut), fast=True))


# label -> (how, words of which one must stand in what is said; none: nothing need be said, and nothing else may)
EXPERTS = ("the experts", "the feed-forward")
SHARED = ("the shared expert", "the feed-forward")
ORDER = [1, 0, 2, 3, 4, 5, 6, 7]
SICK = {
    "gate and up of the experts exchanged": (
        exchanged("ffn_gate_exps", "ffn_up_exps"),
        ("gate and up of the experts",),
    ),
    "gate and up of the shared expert exchanged": (exchanged("ffn_gate_shexp", "ffn_up_shexp"), ()),
    "router zero": (of("ffn_gate_inp", lambda x: 0 * x), ("ffn_gate_inp",)),
    "router permuted": (of("ffn_gate_inp", lambda x: x[ORDER]), ()),
    "router negated": (of("ffn_gate_inp", lambda x: -x), ()),
    "shared expert zero": (of("ffn_down_shexp", lambda x: 0 * x), ("ffn_down_shexp",)),
    "shared expert tenfold": (of("ffn_down_shexp", lambda x: 10 * x), SHARED),
    "experts tenfold": (of("ffn_down_exps", lambda x: 10 * x), EXPERTS),
    "halves of eh_proj exchanged": (edited(broken_heads.is_eh_proj, broken_heads.swap_halves), ("swapped",)),
    "enorm and hnorm exchanged": (exchanged("nextn.enorm", "nextn.hnorm"), ()),
}
ALLOWED = {
    "gate and up of the shared expert exchanged": SHARED,
    "router permuted": EXPERTS,
    "router negated": EXPERTS,
    "enorm and hnorm exchanged": ("enorm", "hnorm"),
    "shared expert zero": SHARED,
}
UNCLEAR = ("head-unclear", "head-useless", "head-ignores-trunk")


@pytest.mark.slow
@pytest.mark.parametrize("label", SICK)
def test_a_sick_head_is_told_by_its_part_or_said_to_be_unclear(cut, tmp_path, label):
    change, words = SICK[label]
    report = check_path(write(tmp_path / "x.gguf", change, cut))
    found = [f for f in report.findings if f.severity in ("fail", "warning")]
    allowed = (*words, *ALLOWED.get(label, ()))
    assert not words or any(word in f.what + f.text for f in found for word in words), report.lines()
    assert all(f.id in UNCLEAR or any(word in f.what for word in allowed) for f in found), report.lines()
    assert found or "that the file alone can show" in report.verdict


@pytest.mark.parametrize("name", MODELS)
def test_a_part_of_any_kind_can_be_left_out_of_a_head(name):
    """Without both parts the block gives what comes into it; without one, another row than with it."""
    model = mtpref.load(micro_moe.standard(name)).core
    il, hidden = model.config.n_layer, np.full((2, model.heads[0].n_hidden), 0.5, np.float32)

    def rows(changed):
        seen = {}
        changed.mtp(changed.new_state(), [3, 4], hidden, 0, n_logits=1, tap=seen.__setitem__)
        return seen[f"mtp_eh_proj-{il}"], seen[f"mtp_l_out-{il}"]

    entered, whole = rows(model)
    for part in PARTS:
        assert not np.array_equal(rows(head_without(model, part))[1], whole), part
    assert np.array_equal(rows(head_without(head_without(model, "mixer"), "ffn"))[1], entered)


@pytest.mark.parametrize("name", MODELS)
def test_a_part_of_any_kind_can_be_left_out_of_a_trunk(name):
    model = mtpref.load(micro_moe.standard(name)).core
    for il, layer in enumerate(model.layers):
        idle = replace(
            model, layers=(*model.layers[:il], without(without(layer, "mixer"), "ffn"), *model.layers[il + 1 :])
        )
        seen = {}
        idle.trunk(idle.new_state(), [3, 4], n_logits=1, tap=seen.__setitem__)
        into = seen[f"l_out-{il - 1}"] if il else seen["model.input_embed"]
        assert np.array_equal(seen[f"l_out-{il}"], into)


def test_every_part_of_every_sheet_has_its_words():
    for sheet in ARCHITECTURES.values():
        for block in (*sheet.blocks, *(sheet.head.blocks if sheet.head else ())):
            words = ("attention (attn_*)", "attention (attn_*, indexer.*)", "DeltaNet (attn_*, ssm_*)")
            if "selected" in block.name:
                words = ("attention (attn_*, indexer.*, indexer_*)",)
            if block.mixer != NOTHING:
                others = ("Mamba-2 (ssm_*)", "Kimi delta attention (attn_*, ssm_*)")
                assert said(block, "mixer") in (*words, *others)
            if block.ffn != NOTHING:
                assert said(block, "ffn").startswith("feed-forward (")
            assert {"attn_norm.weight", "attn_q_norm.weight"} & set(shifted_norms(block))
            if any(tensor.change == ZERO_CENTRED for tensor in block.all_tensors()):
                assert "ssm_norm.weight" not in shifted_norms(block)


@pytest.mark.parametrize(("name", "arch"), [("micro-glm4moe-f32", "glm4moe"), ("micro-hy_v3-f32", "hy_v3")])
def test_a_key_that_counts_too_many_heads_is_named_with_what_is_missing(tmp_path, name, arch):
    source = micro_moe.standard(name)
    path = write(tmp_path / "x.gguf", broken_heads.with_key(f"{arch}.nextn_predict_layers", 2, "u32"), source)
    report = check_path(path)
    found = [f for f in report.findings if f.id == "heads-overcounted"]
    assert [f.what for f in found] == ["blk.3.nextn.eh_proj.weight"]
    assert "the trunk loses its last layers" in report.verdict
    file, alone = open_to_inspect(path)
    with file:
        _, problems = describe_file(file, alone)
    assert any(f"key {arch}.nextn_predict_layers is 2, too many" in p.text for p in problems)
    with pytest.raises(MtprefError, match=r"blk\.3 has no nextn tensor: it is a trunk layer, .* expected 1"):
        mtpref.load(path)
    lost = check_path(write(tmp_path / "y.gguf", broken_heads.dropped(broken_heads.is_eh_proj), source))
    assert ("head-incomplete", "blk.4.nextn.eh_proj.weight") in said_of(lost)


def test_arrays_of_one_entry_a_block_are_cut_and_joined_by_the_sheet():
    keys = [
        ("glm4moe.block_count", 3, "u32"),
        ("glm4moe.expert_used_count", np.array([2, 2, 4]), "arr:u32"),
        ("glm4moe.rope.dimension_sections", np.array([1, 2, 3, 4]), "arr:i32"),
        ("glm4moe.nextn_predict_layers", 1, "u32"),
    ]
    trunk = {key: value for key, value, _ in without_head(keys, "glm4moe", 2)}
    assert trunk["glm4moe.expert_used_count"].tolist() == [2, 2]
    assert trunk["glm4moe.rope.dimension_sections"].tolist() == [1, 2, 3, 4]
    whole = {key: value for key, value, _ in with_head(without_head(keys, "glm4moe", 2), keys, "glm4moe", 2, 1)}
    assert whole["glm4moe.expert_used_count"].tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("declared", "present", "message"),
    [(2, 2, ""), (1, 2, "have 2 MTP blocks"), (2, 1, "have 1 MTP block,"), (3, 3, "expected at most 2")],
)
def test_as_many_heads_are_converted_as_the_sheet_allows(declared, present, message):
    sheet = replace(ARCHITECTURES["qwen35"], n_heads=2)
    config, notes = SimpleNamespace(sheet=sheet, n_heads=declared, n_layer=4), []
    arguments = (SimpleNamespace(label="x"), config, SimpleNamespace(n_mtp=present), converting.Settings(), notes)
    if message:
        with pytest.raises(MtprefError, match=message):
            converting._n_mtp(*arguments)
    else:
        assert converting._n_mtp(*arguments) == present
