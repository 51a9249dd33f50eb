"""The tool that compares weight types with llama.cpp: its importance matrix, and one type live."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mtpref.files.gguf import open_gguf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
try:
    import measure_types
finally:
    sys.path.pop(0)


def test_flat_importance_matrix_has_a_weight_of_one_for_each_column(tmp_path):
    source = ROOT / "tests" / "data" / "micro" / "micro-60-q8_0.gguf"
    measure_types.write_flat_imatrix(source, tmp_path / "imatrix.gguf")
    with open_gguf(source) as model, open_gguf(tmp_path / "imatrix.gguf") as file:
        matrices = {info.name: info.shape for info in model.tensors.values() if len(info.shape) == 2}
        assert set(file.tensors) == {f"{name}.{part}" for name in matrices for part in ("in_sum2", "counts")}
        for name, shape in matrices.items():
            sums = file.data(f"{name}.in_sum2").view(np.float32)
            assert sums.tolist() == [1.0] * shape[1]


def test_types_of_a_file_are_counted_most_frequent_first():
    counted = measure_types.types_in(ROOT / "tests" / "data" / "micro" / "micro-60-q8_0.gguf")
    assert counted.startswith("Q8_0 x")


def test_a_live_llama_cpp_agrees_on_a_tiled_type(capsys):
    root = os.environ.get("MTPREF_LLAMA_CPP")
    if not root:
        pytest.skip("set MTPREF_LLAMA_CPP=DIR to a llama.cpp tree that was built in DIR/build")
    bin_dir = Path(root) / "build" / "bin"
    assert measure_types.main(["--llama-bin", str(bin_dir), "--type", "IQ4_NL", "--type", "Q5_1"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["IQ4_NL", "Q5_1"]
    assert all(float(row[2]) < 5e-4 for row in rows)
    assert all(float(row[3]) < 2e-3 for row in rows)


def test_a_program_that_is_missing_is_one_line(tmp_path, capsys):
    assert measure_types.main(["--llama-bin", str(tmp_path), "--type", "Q4_0"]) == 2
    assert "llama-quantize" in capsys.readouterr().err
