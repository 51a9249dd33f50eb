"""What a context costs in memory: exactly its KV cells; and tools/measure_scaling.py. No time is judged."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest

import mtpref

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
try:
    import measure_scaling
finally:
    sys.path.pop(0)


@pytest.fixture(scope="module")
def points():
    return measure_scaling.measure(mtpref.load(mtp=False).core, [32, 64, 160])


def test_state_grows_by_its_attention_cells_and_by_nothing_else(points):
    model = mtpref.load(mtp=False).core
    cells = measure_scaling.bytes_per_token(model)
    [attention] = [layer.cfg for layer in model.layers if layer.kind.name == "gated_attention"]
    assert cells == 2 * attention.n_head_kv * attention.n_embd_head * 2
    for a, b in pairwise(points):
        assert b.state_bytes - a.state_bytes == cells * (b.n - a.n)


def test_every_length_has_its_times(points):
    assert [p.n for p in points] == [32, 64, 160]
    for p in points:
        assert p.token_ms > p.attention_ms > 0
        assert p.token_ms > p.delta_ms > 0
        assert p.resident > p.state_bytes
    assert points[0].prompt_s < points[1].prompt_s < points[2].prompt_s


def test_the_program_prints_a_line_for_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure_scaling.py", "--contexts", "16,32"])
    measure_scaling.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("context")
    assert [line.split()[0] for line in lines[1:3]] == ["16", "32"]
    said, arithmetic = lines[3].removeprefix("state per token: ").split(" bytes, arithmetic says ")
    assert said == arithmetic
