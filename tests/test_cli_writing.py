"""How a write shows its progress."""

import io

from mtpref.front.cli.writing import ProgressLine, progress_text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def clock(monkeypatch, times):
    times = iter(times)
    monkeypatch.setattr("mtpref.front.cli.writing.time.monotonic", lambda: next(times))


def test_rate_and_time_left():
    assert progress_text(10**9, 4 * 10**9, 2.0) == "1 GB of 4 GB, 25 %, 500 MB/s, 6 s left"
    assert progress_text(10**9, 10**12, 1.0) == "1 GB of 1 TB, 0 %, 1 GB/s, 16 min 39 s left"
    assert progress_text(10**9, 10**13, 1.0).endswith("2 h 46 min left")
    assert progress_text(5, 5, 1.0) == "5 B of 5 B, 100 %, 5 B/s"
    assert progress_text(0, 0, 0.0) == "0 B of 0 B, 100 %, 0 B/s"


def test_a_terminal_has_one_line_that_ends_complete(monkeypatch):
    clock(monkeypatch, [0.0, 0.01, 1.0, 1.01, 1.02])
    stream = Terminal()
    line = ProgressLine(stream)
    for n in (1, 50, 60, 100):
        line.show(n, 100)
    line.end()
    assert [part.split(",")[0] for part in stream.getvalue().split("\r")[1:]] == [
        "writing: 50 B of 100 B",
        "writing: 100 B of 100 B",
    ]
    assert stream.getvalue().endswith("\n")


def test_a_quick_write_and_a_pipe_say_nothing(monkeypatch):
    clock(monkeypatch, [0.0, 0.01, 0.02, 0.0, 9.0])
    quick, pipe = Terminal(), io.StringIO()
    line = ProgressLine(quick)
    line.show(1, 2)
    line.show(2, 2)
    line.end()
    assert quick.getvalue() == ""
    assert not ProgressLine(pipe).is_on


def test_a_log_has_lines(monkeypatch):
    clock(monkeypatch, [0.0, 1.0, 2.5, 3.0, 5.0])
    stream = io.StringIO()
    line = ProgressLine(stream, "always")
    for n in (1, 2, 3, 4):
        line.show(n, 4)
    line.end()
    assert stream.getvalue() == "writing: 2 B of 4 B, 50 %, 1 B/s, 3 s left\nwriting: 4 B of 4 B, 100 %, 1 B/s\n"
