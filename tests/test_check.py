"""mtpref check: what is broken is found and named, what is sound is left alone."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import write_shards
from mtpref.front.cli import main
from mtpref.heads.check import CATALOGUE, check_path
from mtpref.heads.convert import Settings, convert
from mtpref.measure.probe.count import Estimate, is_sure
from tests import broken_heads
from tests.broken_heads import BROKEN, HEALTHY_TYPES, TINY, in_type, write
from tests.gguf_copy import copy_of
from tests.hf_folder import read_state, write_checkpoint
from tests.single_faults import FOUND, altered, faults_of, is_told_rightly, values

ROOT = Path(__file__).parent.parent
MICRO = ROOT / "golden" / "models" / "micro-60-f32.gguf"
# What only another file can tell: the head drafts nearly as before, and no change of one thing makes it better.
VALUES = values()
ONLY_AGAINST = ("W8b block scales of the neighbour",)
# Full checks that take seconds and find what another of them finds, or what a test with fast=True finds: slow.
SLOW_WAYS = (
    *("W2 +1 twice in the head", "W2b +1 twice in the trunk", "W2c layer norms raw", "W4 partly loaded"),
    *("W5 norm that does nothing", "W6 never loaded", "W13 hidden half zero", "embedding half zero"),
    *("embedding half random", "a matrix of zeros"),
)
# Findings of single faults that are made without a run, and those that the ways of breaking above are found by.
NEED_NO_RUN = {"random-matrix", "tensor-doubled", "tensor-few-values", "tensor-zero"}
FOUND_ABOVE = {"norm-convention", "trunk-norm-convention", "head-useless"}


def single_faults():
    """A fault for each other finding that needs a run; the others are slow."""
    seen = NEED_NO_RUN | FOUND_ABOVE
    for fault, found in FOUND.items():
        yield pytest.param(*fault, marks=pytest.mark.slow if seen & found else ())
        seen = seen | found


def ids(report, *severities):
    return {f.id for f in report.findings if f.severity in (severities or ("fail",))}


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    """The report of a file that is broken in one of the ways, checked once."""
    path = tmp_path_factory.mktemp("broken") / "x.gguf"
    return cache(lambda label: check_path(write(path, BROKEN[label][0])))


@pytest.mark.parametrize(
    "label",
    [
        pytest.param(label, marks=pytest.mark.slow if label in SLOW_WAYS else ())
        for label in BROKEN
        if label not in ONLY_AGAINST
    ],
)
def test_each_way_of_breaking_a_head_is_found(report_of, label):
    report = report_of(label)
    assert ids(report) & set(BROKEN[label][1]), report.lines()
    assert not report.is_sound


def test_the_change_that_mends_a_norm_is_named(report_of):
    report = report_of("W3 enorm and hnorm twice")
    assert [f.what for f in report.findings if f.id == "norm-convention"] == ["1 taken from enorm and hnorm"]
    report = report_of("W1 +1 missing in the head")
    assert [f.what for f in report.findings if f.id == "norm-convention"] == ["1 added to all norms of the head"]


@pytest.mark.parametrize(("name", "label"), list(single_faults()), ids=lambda text: text.replace(" ", "-"))
def test_a_single_fault_is_told_by_its_part_or_as_unclear(tmp_path, name, label):
    """tools/check_single_faults.py does the same for all tensors."""
    report = check_path(altered(tmp_path / "x.gguf", name, faults_of(name, VALUES)[label]))
    said = [f for f in report.findings if f.severity in ("fail", "warning")]
    assert {f.id for f in said} & FOUND[name, label], report.lines()
    assert all(is_told_rightly(name, f) for f in said), report.lines()
    assert "nothing is wrong" not in report.verdict


@pytest.mark.parametrize(
    ("name", "label"),
    [fault for fault, found in FOUND.items() if found <= NEED_NO_RUN],
    ids=lambda text: text.replace(" ", "-"),
)
def test_a_single_fault_that_shows_without_a_run_is_told_by_its_part(tmp_path, name, label):
    report = check_path(altered(tmp_path / "x.gguf", name, faults_of(name, VALUES)[label]), fast=True)
    said = [f for f in report.findings if f.severity in ("fail", "warning")]
    assert {f.id for f in said} & FOUND[name, label], report.lines()
    assert all(is_told_rightly(name, f) for f in said), report.lines()
    assert "nothing is wrong" not in report.verdict


def test_swapped_halves_are_the_verdict_and_what_they_explain_is_not(report_of):
    report = report_of("G1 halves swapped")
    assert "halves of eh_proj's input swapped" in report.verdict
    [found] = [f for f in report.findings if f.id == "halves-swapped"]
    assert float(re.search(r"gain (0\.\d+)", found.text)[1]) > 0.6
    assert "head-useless" in ids(report)


def test_a_small_gain_is_no_cause_and_a_trunk_is_not_mended_by_a_head(tmp_path):
    reversed_k = check_path(altered(tmp_path / "a.gguf", "blk.4.attn_k.weight", VALUES["blk.4.attn_k.weight"][::-1]))
    assert "norm-convention" not in ids(reversed_k, "fail", "warning")
    name = "blk.0.attn_qkv.weight"
    trunk = check_path(altered(tmp_path / "b.gguf", name, VALUES[name][::-1]))
    assert "graft" not in trunk.verdict
    assert "blk.0 DeltaNet" in trunk.verdict
    assert "head-not-judged" in ids(trunk, "note") or len(ids(trunk)) == 1


@pytest.mark.parametrize(
    ("tensor", "remedy"), [("blk.2.ffn_up", "get the trunk anew"), ("blk.4.ffn_up", "`mtpref graft` puts in")]
)
def test_another_head_is_advised_for_a_head_s_zeros_alone(tmp_path, tensor, remedy):
    change = broken_heads.edited(lambda name: name == f"{tensor}.weight", lambda x: 0 * x)
    report = check_path(write(tmp_path / "m.gguf", change), fast=True)
    assert f"zero ({tensor}.weight); {remedy}" in report.verdict
    assert ("graft" in report.verdict) == tensor.startswith("blk.4")


def test_a_matrix_in_another_s_place_is_not_called_noise(tmp_path):
    def swap(kv, tensors):
        names = {"blk.4.attn_k.weight": "blk.4.attn_v.weight", "blk.4.attn_v.weight": "blk.4.attn_k.weight"}
        return kv, [(names.get(name, name), *rest) for name, *rest in tensors]

    assert "random-matrix" not in ids(check_path(write(tmp_path / "m.gguf", swap), fast=True))
    noise = broken_heads.random_parts("attn_k")
    assert "random-matrix" in ids(check_path(write(tmp_path / "m.gguf", noise), fast=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_is_said_in_findings_alone(tmp_path, value):
    change = broken_heads.edited(lambda name: name == "blk.4.ffn_up.weight", lambda x: np.full_like(x, value), "F32")
    check_path(write(tmp_path / "m.gguf", change), fast=True)


def test_a_head_is_not_run_on_weights_that_are_no_numbers(tmp_path):
    report = check_path(write(tmp_path / "x.gguf", BROKEN["NaN in a norm"][0]))
    assert not report.was_run
    assert "not-run" in ids(report, "note")


@pytest.mark.parametrize(
    ("kind", "head_only", "is_fast"),
    [
        pytest.param(*case, is_fast, marks=() if is_fast or case == ("Q4_0", False) else pytest.mark.slow)
        for case in [*((kind, False) for kind in HEALTHY_TYPES), ("Q4_0", True)]
        for is_fast in (True, False)
    ],
)
def test_no_false_alarm_in_any_type(tmp_path, kind, head_only, is_fast):
    report = check_path(write(tmp_path / "x.gguf", in_type(kind, head_only=head_only)), fast=is_fast)
    assert not ids(report, "fail", "warning"), report.lines()
    assert report.was_run != is_fast


@pytest.mark.parametrize("model", sorted((ROOT / "golden" / "models").glob("micro-*.gguf")), ids=lambda p: p.stem)
def test_no_false_alarm_on_planted_models(model):
    """Their ids are hashes: that is said as a warning, and nothing of the trunk."""
    report = check_path(model)
    assert report.is_sound
    assert ids(report, "warning") == {"no-text"}
    assert "head is there" in report.verdict


@pytest.mark.parametrize(
    "label", ["W11 head dropped, key kept", "W13 hidden half zero", "W6 never loaded", "eh_proj lost"]
)
def test_fast_finds_what_needs_no_run(tmp_path, label):
    change, expected = BROKEN[label]
    report = check_path(write(tmp_path / "x.gguf", change), fast=True)
    assert ids(report) & set(expected)
    assert not report.was_run


@pytest.mark.parametrize("step", [1, -1])
def test_fast_suspects_all_layer_norms_together_and_never_one(tmp_path, step):
    layer = broken_heads.norms(*broken_heads.LAYER, step=step)
    assert "norms-suspect" in ids(check_path(write(tmp_path / "a.gguf", layer), fast=True), "warning")
    one = broken_heads.norms("attn_norm", step=step)
    assert "norms-suspect" not in ids(check_path(write(tmp_path / "b.gguf", one), fast=True), "warning")


def test_fast_does_not_suspect_layer_norms_that_disagree(tmp_path):
    """No converter adds 1 to some and takes 1 from others."""
    up, down = broken_heads.LAYER[:2], broken_heads.LAYER[2:]
    raised, lowered = broken_heads.norms(*up, step=1), broken_heads.norms(*down, step=-1)
    report = check_path(write(tmp_path / "m.gguf", lambda *parts: lowered(*raised(*parts))), fast=True)
    assert "norms-suspect" not in ids(report, "warning")


@pytest.mark.parametrize(("share", "counts"), [(1e-4, True), (0.01, False)])
def test_a_half_of_eh_proj_that_is_next_to_nothing_counts_as_zero(tmp_path, share, counts):
    def faded(x):
        x = x.copy()
        x[:, : x.shape[1] // 2] *= share
        return x

    change = broken_heads.edited(lambda name: name == "blk.4.nextn.eh_proj.weight", faded, "F32")
    found = ids(check_path(write(tmp_path / "m.gguf", change), fast=True), "fail")
    assert ("eh-proj-half-zero" in found) == counts


@pytest.mark.parametrize(("id", "is_wrong"), [(2047, False), (2048, True)])
def test_a_special_token_is_one_of_the_vocabulary(tmp_path, id, is_wrong):
    path = write(tmp_path / "m.gguf", broken_heads.with_key("tokenizer.ggml.padding_token_id", id, "u32"))
    found = [f.what for f in check_path(path, fast=True).findings if f.id == "tokenizer"]
    assert found == (["tokenizer.ggml.padding_token_id"] if is_wrong else [])


def test_fast_reads_no_tensor_whole(monkeypatch, tmp_path):
    read = []
    for room in ("heads.check.sampling", "files.gguf.reader"):
        monkeypatch.setattr(
            f"mtpref.{room}.dequantize", lambda kind, raw, shape: read.append(shape) or np.ones(shape, np.float32)
        )
    check_path(TINY, fast=True)
    assert max(np.prod(shape) for shape in read) <= 256 * 512


def test_a_missing_shard_is_named(tmp_path):
    kv, tensors = copy_of(TINY)
    paths = write_shards(tmp_path / "m", kv, tensors, max_tensors=30)
    paths[-1].unlink()
    report = check_path(paths[0], fast=True)
    assert "shards-missing" in ids(report)


def test_a_later_file_of_a_split_model_names_the_first(tmp_path):
    paths = write_shards(tmp_path / "m", *copy_of(TINY), max_tensors=30)
    with pytest.raises(MtprefError, match=r"file 2 of 3 of a split model, expected the first; give .*00001-of-00003"):
        check_path(paths[1], fast=True)


def test_another_pre_tokenizer_than_the_architectures_is_noted(tmp_path):
    path = write(tmp_path / "x.gguf", broken_heads.with_key("tokenizer.ggml.pre", "llama-bpe", "str"))
    [note] = [f for f in check_path(path, fast=True).findings if f.id == "tokenizer-note"]
    assert "llama-bpe, where qwen35 models have qwen35" in note.text


def test_a_gain_must_be_large_and_sure():
    assert is_sure(Estimate(0.2, 0.12, 0.28))
    assert not is_sure(Estimate(0.2, 0.05, 0.35))  # 2.6 standard errors: chance has thirty tries
    assert not is_sure(Estimate(0.01, 0.009, 0.011))
    assert not is_sure(Estimate(0.5))


# AGAINST


def test_another_quantisation_is_the_same_model(tmp_path):
    report = check_path(write(tmp_path / "x.gguf", in_type("Q4_0")), against=TINY)
    assert report.is_sound, report.lines()
    assert {"against-values"} <= ids(report, "ok")
    assert any(f.id.startswith(("against-acceptance", "against-worse")) for f in report.findings)


@pytest.mark.parametrize(
    "label",
    [
        *ONLY_AGAINST,
        "G1 halves swapped",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("W4 partly loaded", "W3 enorm and hnorm twice")),
    ],
)
def test_values_that_no_type_explains_are_named(tmp_path, label):
    report = check_path(write(tmp_path / "x.gguf", BROKEN[label][0]), against=TINY)
    named = [f.what for f in report.findings if f.id == "against-value"]
    assert named
    assert all(what.startswith(broken_heads.HEAD) for what in named)


def test_a_tensor_that_only_one_has(tmp_path):
    path = write(tmp_path / "x.gguf", BROKEN["eh_proj lost"][0])
    assert "against-missing" in ids(check_path(path, against=TINY))
    assert "against-extra" in ids(check_path(TINY, against=path), "note")


def test_the_checkpoint_that_a_file_comes_from(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", *read_state())
    report = check_path(TINY, against=folder)
    assert report.is_sound, report.lines()
    assert "against-values" in ids(report, "ok")
    broken = write(tmp_path / "x.gguf", BROKEN["W1 +1 missing in the head"][0])
    named = {f.what for f in check_path(broken, against=folder).findings if f.id == "against-value"}
    assert len(named) == 7


# FOLDERS


def test_a_checkpoint_folder_is_converted_and_run(tmp_path):
    folder = write_checkpoint(tmp_path / "hf", *read_state())
    report = check_path(folder)
    assert report.is_sound
    assert report.was_run


def test_norms_that_an_exporter_has_shifted_already(tmp_path):
    """MLX saves norms with their 1 added; converted once more, the whole model is wrong."""
    state, config, tokenizer = read_state()
    from mtpref.architectures import ARCHITECTURES, place_of
    from mtpref.architectures.transforms import ZERO_CENTRED

    def is_norm(name):
        return place_of(ARCHITECTURES["qwen35"], name, 4).tensor.change is ZERO_CENTRED

    shifted = {name: x + 1 if is_norm(name) else x for name, x in state.items()}
    folder = write_checkpoint(tmp_path / "hf", shifted, config, tokenizer)
    assert "trunk-norm-convention" in ids(check_path(folder))


def test_a_dropped_head_and_who_may_have_dropped_it(tmp_path):
    state, config, tokenizer = read_state()
    state = {name: x for name, x in state.items() if not name.startswith("mtp.")}
    folder = write_checkpoint(tmp_path / "hf", state, config | {"transformers_version": "5.2.0"}, tokenizer)
    report = check_path(folder)
    assert ids(report) == {"head-dropped"}
    assert [f.what for f in report.findings if f.id == "dropper"] == ["transformers"]


def test_config_json_that_does_not_know_its_head(tmp_path):
    state, config, tokenizer = read_state()
    config = {key: value for key, value in config.items() if key != "mtp_num_hidden_layers"}
    report = check_path(write_checkpoint(tmp_path / "hf", state, config, tokenizer), fast=True)
    assert "config-undeclared" in ids(report, "note")


@pytest.mark.parametrize("fast", [True, False])
def test_check_and_convert_refuse_the_same_folders(tmp_path, fast):
    state, config, tokenizer = read_state()
    folders = {
        "two blocks declared, one there": (state, config | {"mtp_num_hidden_layers": 2}),
        "a tensor of the head lost": ({n: x for n, x in state.items() if n != "mtp.fc.weight"}, config),
        "a tensor of the trunk lost": ({n: x for n, x in state.items() if n != "model.norm.weight"}, config),
    }
    for i, (weights, keys) in enumerate(folders.values()):
        folder = write_checkpoint(tmp_path / str(i), weights, keys, tokenizer)
        with pytest.raises(MtprefError) as refused:
            convert(folder, tmp_path / "x.gguf", Settings())
        [finding] = [f for f in check_path(folder, fast=fast).findings if f.severity == "fail"]
        assert finding.id == "cannot-convert"
        assert finding.text in str(refused.value)


def test_the_folder_of_an_adapter_is_named_as_one(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for refuse in (check_path, lambda path: convert(path, tmp_path / "x.gguf", Settings())):
        with pytest.raises(MtprefError, match=r"a LoRA adapter.*merge it into its base model"):
            refuse(tmp_path)


# THE COMMAND


def test_exit_codes_and_json(tmp_path, capsys):
    assert main(["check", "--fast", "--json", str(TINY)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "mtpref-check-1"
    assert found["is_sound"]
    assert set(found) == {"schema", "path", "against", "is_sound", "was_run", "findings", "verdict"}
    assert all(set(f) == {"id", "severity", "what", "text", "remedy"} for f in found["findings"])
    broken = write(tmp_path / "x.gguf", BROKEN["W11 head dropped, key kept"][0])
    assert main(["check", "--fast", str(broken)]) == 1
    assert "FAIL    head-dropped" in capsys.readouterr().out
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    assert main(["check", str(tmp_path / "no.gguf")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(MtprefError, match="is a folder"):
        check_path(write_checkpoint(tmp_path / "hf", *read_state()), against=TINY)


def test_the_page_has_every_finding():
    page = (ROOT / "docs" / "keeping-the-head.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (ok|note|warning|cannot-judge|fail) \|", page, re.M))
    assert rows == {id: kind.severity for id, kind in CATALOGUE.items()}
    for kind in CATALOGUE.values():
        assert kind.meaning in page


def test_bytes_after_the_last_tensor_are_said_and_padding_is_not(tmp_path):
    path = tmp_path / "m.gguf"
    for extra, is_said in ((0, False), (880, True)):
        path.write_bytes(TINY.read_bytes() + bytes(extra))
        found = [f for f in check_path(path, fast=True).findings if f.id == "trailing-bytes"]
        assert bool(found) == is_said
    assert "880 bytes after" in found[0].text


# A HEAD IN A FILE OF ITS OWN


def apart(tmp_path, source):
    """Trunk and head of a file."""
    trunk, head = tmp_path / "trunk.gguf", tmp_path / "mtp-head.gguf"
    assert main(["strip", str(source), "-o", str(trunk)]) == 0
    assert main(["extract", str(source), "-o", str(head)]) == 0
    return trunk, head


def said(report, id):
    return next(f.text for f in report.findings if f.id == id)


def test_a_head_in_a_file_of_its_own_is_judged_as_in_one(tmp_path):
    trunk, head = apart(tmp_path, TINY)
    found, whole = check_path(trunk, model_draft=head, n_positions=64), check_path(TINY, n_positions=64)
    assert found.is_sound
    assert found.was_run
    assert said(found, "acceptance") == said(whole, "acceptance")
    assert said(found, "types") == said(whole, "types")


@pytest.mark.parametrize("label", ["W1 +1 missing in the head", "W13 hidden half zero"])
def test_a_broken_head_in_a_file_of_its_own_is_found(tmp_path, label):
    change, expected = BROKEN[label]
    trunk, head = apart(tmp_path, write(tmp_path / "x.gguf", change))
    report = check_path(trunk, model_draft=head, n_positions=128)
    assert not report.is_sound
    assert ids(report) & set(expected)


def test_a_head_of_another_model_is_refused_with_and_without_a_run(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    trunk, _ = apart(tmp_path, TINY)
    _, other = apart(tmp_path / "other", MICRO.with_name("nano-deepseek2-q8_0.gguf"))
    for flags in ([], ["--fast"]):
        capsys.readouterr()
        assert main(["check", str(trunk), "-md", str(other), *flags]) == 1
        out = " ".join(capsys.readouterr().out.split())
        assert "the head belongs to another model" in out
        assert "NOT sound" in out


def test_a_head_alone_and_what_cannot_be_asked_end_in_one_line(tmp_path, capsys):
    trunk, head = apart(tmp_path, TINY)
    for words, line in (
        ([head], "to check it with its trunk: mtpref check TRUNK -md HEAD"),
        ([trunk, "-md", head, "--against", TINY], "expected it without -md"),
        ([trunk, "-md", tmp_path / "none.gguf"], "cannot be read"),
        ([trunk, "-md", ROOT / "README.md"], "README.md"),
    ):
        capsys.readouterr()
        assert main(["check", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("longer", [None, 0, 1, 2])
def test_bytes_after_the_last_tensor_of_a_file_of_several(longer, tmp_path):
    main(["strip", str(TINY), "--split-max-tensors", "20", "-o", str(tmp_path / "m.gguf")])
    paths = sorted(tmp_path.glob("m-*.gguf"))
    assert len(paths) == 3
    if longer is not None:
        paths[longer].write_bytes(paths[longer].read_bytes() + bytes(880))
    found = [f for f in check_path(paths[0], fast=True).findings if f.id == "trailing-bytes"]
    assert [(f.what, f.text.partition(" after ")[0]) for f in found] == (
        [] if longer is None else [(str(paths[longer]), "880 bytes")]
    )
