"""The recorder of transformers' values: what can be said of it without torch, and one small run with it."""

import numpy as np
import pytest

from tests.random_weights import random_weights
from tools import record_hf


def test_chosen_rows_hold_the_first_and_the_last():
    assert record_hf.chosen_rows(24, 4) == [0, 8, 15, 23]
    assert record_hf.chosen_rows(3, 8) == [0, 1, 2]
    assert record_hf.chosen_rows(5, 1) == [0, 4]
    assert record_hf.chosen_rows(1, 6) == [0]


def test_epsilon_of_a_gguf_becomes_the_decimal_it_stands_for():
    assert record_hf.decimal_eps(float(np.float32(1e-6))) == 1e-6
    assert record_hf.decimal_eps(float(np.float32(1e-5))) == 1e-5


def test_written_file_has_the_same_bytes_each_time(tmp_path):
    arrays = {"a": np.arange(3.0), "b": np.asarray("text")}
    record_hf.write_npz(tmp_path / "1.npz", arrays)
    record_hf.write_npz(tmp_path / "2.npz", arrays)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.npz", "2.npz"]


def test_missing_model_is_one_line_and_exit_2(tmp_path, capsys):
    out = tmp_path / "o.npz"
    assert record_hf.main(["--gguf", str(tmp_path / "no.gguf"), "--tokens", "1,2", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_gguf_needs_tokens_and_out(capsys):
    with pytest.raises(SystemExit) as stop:
        record_hf.main(["--gguf", "a.gguf"])
    assert stop.value.code == 2
    assert "--tokens" in capsys.readouterr().err


@pytest.mark.oracle
def test_committed_values_are_what_transformers_gives_now():
    pytest.importorskip("torch", reason="torch is not installed (extra: oracle)")
    pytest.importorskip(
        "transformers.models.qwen3_5", reason="transformers with Qwen3.5 is not installed (extra: oracle)"
    )
    case = record_hf.CASES["agreeing_head"]
    weights, hparams, flags, tokens = record_hf.build("agreeing_head")
    assert weights.keys() == random_weights(case["seed"], hparams, extra=case["extra"]).keys()
    fresh = record_hf.record(weights, hparams, flags, tokens, 6)
    with np.load(record_hf.DEFAULT_OUT) as committed:
        names = {n.removeprefix("agreeing_head.") for n in committed if n.startswith("agreeing_head.")}
        assert names == set(fresh)
        for name in names:
            assert np.allclose(committed[f"agreeing_head.{name}"], fresh[name], rtol=1e-9, atol=1e-12), name
