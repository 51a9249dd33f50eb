"""mtpref check: what is broken is found and named, what is sound is left alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mtpref.check import CATALOGUE, check_path
from mtpref.cli import main
from mtpref.errors import MtprefError
from mtpref.gguf import write_shards
from mtpref.probe.count import Estimate, is_sure
from tests import broken_heads
from tests.broken_heads import BROKEN, HEALTHY_TYPES, TINY, in_type, write
from tests.gguf_copy import copy_of
from tests.hf_folder import read_state, write_checkpoint

ROOT = Path(__file__).parent.parent
MICRO = ROOT / "golden" / "models" / "micro-60-f32.gguf"
# What only another file can tell: the head drafts nearly as before, and no change of one thing makes it better.
ONLY_AGAINST = ("W8b block scales of the neighbour",)


def ids(report, *severities):
    return {f.id for f in report.findings if f.severity in (severities or ("fail",))}


@pytest.mark.parametrize("label", [label for label in BROKEN if label not in ONLY_AGAINST])
def test_each_way_of_breaking_a_head_is_found(tmp_path, label):
    change, expected = BROKEN[label]
    report = check_path(write(tmp_path / "x.gguf", change))
    assert ids(report) & set(expected), report.lines()
    assert not report.is_sound


def test_the_change_that_mends_a_norm_is_named(tmp_path):
    change, _ = BROKEN["W3 enorm and hnorm twice"]
    report = check_path(write(tmp_path / "x.gguf", change))
    assert [f.what for f in report.findings if f.id == "norm-convention"] == ["1 taken from enorm and hnorm"]
    change, _ = BROKEN["W1 +1 missing in the head"]
    report = check_path(write(tmp_path / "x.gguf", change))
    assert [f.what for f in report.findings if f.id == "norm-convention"] == ["1 added to all norms of the head"]


@pytest.mark.parametrize(("kind", "head_only"), [*((kind, False) for kind in HEALTHY_TYPES), ("Q4_0", True)])
def test_no_false_alarm_in_any_type(tmp_path, kind, head_only):
    report = check_path(write(tmp_path / "x.gguf", in_type(kind, head_only=head_only)))
    assert not ids(report, "fail", "warning"), report.lines()
    assert report.was_run


@pytest.mark.parametrize("model", sorted((ROOT / "golden" / "models").glob("micro-*.gguf")), ids=lambda p: p.stem)
def test_no_false_alarm_on_planted_models(model):
    assert check_path(model).is_sound


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


def test_fast_reads_no_tensor_whole(monkeypatch, tmp_path):
    read = []
    for room in ("check.static", "gguf.reader"):
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


@pytest.mark.parametrize("label", [*ONLY_AGAINST, "W4 partly loaded", "W3 enorm and hnorm twice", "G1 halves swapped"])
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
    from mtpref.transforms import ZERO_CENTRED, hf_to_gguf_name

    def is_norm(name):
        return (
            hf_to_gguf_name(name, 4).removeprefix("blk.").split(".", 1)[-1] in ZERO_CENTRED
            or name == "model.norm.weight"
        )

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
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (ok|note|warning|fail) \|", page, re.M))
    assert rows == {id: kind.severity for id, kind in CATALOGUE.items()}
    for kind in CATALOGUE.values():
        assert kind.meaning in page
