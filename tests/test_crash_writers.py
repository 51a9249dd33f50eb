"""Writing verbs are killed at random moments (a few; tools/crash_writers.py: a thousand) and meet a full disk."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize(
    ("n", "seed"), [(12, 3), pytest.param(36, 3, marks=pytest.mark.slow), pytest.param(36, 4, marks=pytest.mark.slow)]
)
def test_killed_writers_leave_nothing_half_done(tmp_path, n, seed):
    from crash_writers import SIGNALS, crash

    tally = crash(tmp_path, n, seed=seed, n_megabytes=4, has_tmpfs=False)
    assert tally.problems == []
    assert tally.n == n
    assert {what for what, _ in tally.ends} == {s.name for s in SIGNALS} | {"full disk"}


def test_writers_that_share_only_a_folder_never_mix(tmp_path):
    """Two first processes of PID namespaces, threads, planted links."""
    import random

    from crash_writers import Tally
    from rival_writers import rival_rounds

    tally = Tally()
    rival_rounds(tmp_path, 3, random.Random(4), tally, 1 << 20)
    assert tally.problems == []
    assert sum(tally.ends.values()) == 9


def test_the_judge_sees_mixed_files(tmp_path):
    from rival_writers import TARGET, _judge

    for raw, ends in ((b"\1" * 4 + b"\2" * 4, {1: 0, 2: 0}), (b"\1" * 7, {1: 0}), (b"\1" * 8, {1: 2, 2: 0})):
        (tmp_path / TARGET).write_bytes(raw)
        assert _judge(tmp_path, 8, ends)
    assert not _judge(tmp_path, 8, {1: 0, 2: 0})


def test_the_judge_sees_half_files(tmp_path):
    """What would pass if nothing could be wrong: a half target, a stray temporary, an older file that is gone."""
    import signal

    from crash_writers import Bench, _judge

    bench = Bench(tmp_path, 1, only="strip")
    whole = bench.expected["strip"]["m.gguf"]
    for left, number, older in (
        ({"m.gguf": whole[:-9]}, signal.SIGKILL, None),
        ({"m.gguf": whole, ".m.gguf.7.mtpref-tmp": b"x"}, signal.SIGTERM, None),
        ({}, signal.SIGINT, b"older"),
        ({"m.gguf": whole, "other": b""}, signal.SIGINT, None),
    ):
        bench.reset()
        for name, raw in left.items():
            (bench.out / name).write_bytes(raw)
        assert _judge(bench, "strip", number, older)[0]
    bench.reset()
    (bench.out / "m.gguf").write_bytes(whole)
    assert _judge(bench, "strip", signal.SIGKILL, None) == ([], "complete")
