"""Dumps and their comparison."""

import json

import numpy as np
import pytest

import mtpref
from mtpref.files.gguf import open_gguf, write_gguf
from mtpref.front.cli import main
from mtpref.look.compare import compare_files, render
from mtpref.look.dump import record, write_dump

PROMPT = "def main("


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "a.gguf"
    model = mtpref.load(numerics="exact")
    ids = model.encode(PROMPT)
    recorder = record(model.core, ids, ".")
    write_dump(path, model.core, ids, recorder.tensors)
    return path, model, ids, recorder


def test_a_dump_holds_trunk_and_head_under_cb_names_in_execution_order(dumped):
    path, model, ids, recorder = dumped
    n_layer, n = model.core.config.n_layer, len(ids)
    with open_gguf(path) as file:
        for name in ("attn_norm-0", "q_conv_predelta-0", "Qcur-3", f"l_out-{n_layer - 1}", "h_nextn", "result_output",
                     f"mtp_eh_proj-{n_layer}", f"mtp_attn_out-{n_layer}", "mtp_result_output"):  # fmt: skip
            assert name in file.tensors, name
        assert file.tensors["result_output"].shape == (n, model.core.n_vocab)
        assert list(file.get("mtpref.dump.order")) == list(recorder.tensors)
        assert file.data("tokens").view(np.int32).tolist() == ids


def test_dumped_logits_are_those_of_a_plain_run(dumped):
    _, model, ids, recorder = dumped
    out = model.core.trunk(model.core.new_state(), ids, n_logits=len(ids))
    assert np.array_equal(recorder.tensors["result_output"], out.logits)


def test_a_file_equals_itself(dumped):
    comparison = compare_files(dumped[0], dumped[0])
    assert comparison.first_divergence is None
    assert all(d.is_bit_equal and d.nmse == 0.0 for d in comparison.differences)


def test_the_first_divergence_is_the_first_in_execution_order(dumped, tmp_path):
    path, model, ids, recorder = dumped
    tensors = {name: array.copy() for name, array in recorder.tensors.items()}
    tensors["ffn_out-2"][1] += 0.5
    tensors["attn_norm-1"][2, 0] += 1.0
    write_dump(tmp_path / "b.gguf", model.core, ids, dict(sorted(tensors.items())))
    comparison = compare_files(path, tmp_path / "b.gguf")
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.name == "attn_norm-1"
    assert comparison.first_divergence.worst_row == 2
    assert [d.name for d in comparison.differences if d.exceeds(1e-6)] == ["attn_norm-1", "ffn_out-2"]
    a, b = recorder.tensors["ffn_out-2"].astype(np.float64), tensors["ffn_out-2"].astype(np.float64)
    found = next(d for d in comparison.differences if d.name == "ffn_out-2")
    assert found.nmse == pytest.approx(((a - b) ** 2).sum() / (a**2).sum())
    assert found.max_abs == pytest.approx(0.5, rel=1e-5)
    assert "first divergence (NMSE > 1e-06), in execution order: attn_norm-1" in render(comparison)


def test_shapes_missing_names_and_non_finite_values_are_named(tmp_path):
    def write(name, tensors):
        kv = [("general.architecture", "x", "str")]
        write_gguf(tmp_path / name, kv, [(n, "F32", a.shape, a) for n, a in tensors.items()])
        return tmp_path / name

    one = np.ones((2, 3), np.float32)
    a = write("a.gguf", {"x": one, "y": one, "z": one, "only_a": one})
    b = write("b.gguf", {"x": np.ones((3, 2), np.float32), "y": one * np.nan, "z": one, "only_b": one})
    comparison = compare_files(a, b)
    by_name = {d.name: d for d in comparison.differences}
    assert "shapes (3, 2) and (2, 3)" in by_name["x"].note
    assert by_name["y"].note == "not finite"
    assert by_name["z"].is_bit_equal
    assert (comparison.only_a, comparison.only_b) == (["only_a"], ["only_b"])
    json.dumps(comparison.to_json(), allow_nan=False)


def test_exit_codes_tell_equal_from_different(dumped, tmp_path, capsys):
    other = tmp_path / "other.gguf"
    assert main(["dump", "-p", PROMPT, "--tensors", "^l_out", "-o", str(other)]) == 0
    assert main(["compare", str(dumped[0]), str(dumped[0])]) == 0
    assert main(["compare", str(dumped[0]), str(other), "--limit", "1e-9"]) == 1
    assert main(["compare", str(dumped[0]), str(other), "--limit", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", str(dumped[0]), str(other), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_divergence"] == "l_out-0"
