"""The log parser on the recordings: what it reads agrees with the logs' own counts."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.look.llama_cpp import log as llama_log

DATA = Path(__file__).resolve().parent / "data" / "llama_cpp"
RECORDINGS = sorted(DATA.glob("*.log.gz"))
RUNS = [(path.name, i, run) for path in RECORDINGS for i, run in enumerate(llama_log.read_runs(path))]
every_run = pytest.mark.parametrize("run", [r for _, _, r in RUNS], ids=[f"{n.split('.')[0]}-{i}" for n, i, _ in RUNS])


def test_there_are_recordings_with_every_verdict():
    rounds = [r for _, _, run in RUNS for r in run.log.rounds]
    assert len(RUNS) >= 16
    assert any(r.n_draft == 0 for r in rounds)
    assert any(0 == r.n_accepted < r.n_draft for r in rounds)
    assert any(0 < r.n_accepted < r.n_draft for r in rounds)
    assert any(r.n_accepted == r.n_draft == 3 for r in rounds)


@pytest.mark.parametrize("run", [r for n, i, r in RUNS if i == 0 and n.startswith("micro-")])
def test_micro_recordings_hold_for_the_standard_models(run):
    sums = dict(reversed(line.split()) for line in (DATA.parent / "micro" / "SHA256SUMS").read_text().splitlines())
    assert run.header["model_sha256"] == sums[run.header["model"]]


@every_run
def test_rounds_agree_with_the_summary(run):
    rounds, summary = run.log.rounds, run.log.summary
    assert summary["n_draft"] == int(run.header["n_max"])
    assert summary["n_drafted"] == sum(r.n_draft for r in rounds)
    assert summary["n_accept"] == sum(r.n_accepted for r in rounds)
    assert summary["n_predict"] == len(run.log.ids)


@every_run
def test_rounds_agree_with_the_statistics(run):
    rounds, statistics = run.log.rounds, run.log.statistics
    _, n_asked, n_judged = run.log.calls
    n_drafting = sum(r.n_draft > 0 for r in rounds)
    assert n_asked == len(rounds)
    # A round that p_min left without a draft is judged or not: llama.cpp keeps no rule about it.
    assert n_drafting <= n_judged <= n_asked
    assert statistics["gen drafts"] == n_drafting
    assert statistics["acc drafts"] == sum(r.n_accepted > 0 for r in rounds)
    assert statistics["gen tokens"] == sum(r.n_draft for r in rounds)
    assert statistics["acc tokens"] == sum(r.n_accepted for r in rounds)
    for i, rate in enumerate(run.log.rates):
        assert rate == pytest.approx(sum(r.n_accepted > i for r in rounds) / n_judged, abs=6e-4)


@every_run
def test_steps_are_complete_and_sorted(run):
    for r in run.log.rounds:
        assert [step.pos for step in r.steps] == list(range(len(r.steps)))
        for step in r.steps:
            p = [c.p for c in step.candidates]
            assert len(p) == 3
            assert p == sorted(p, reverse=True)
        assert r.n_accepted <= r.n_draft <= len(r.steps) <= int(run.header["n_max"])


@every_run
def test_p_min_ends_a_draft_at_the_first_improbable_token(run):
    p_min = float(run.header["p_min"])
    for r in run.log.rounds:
        assert all(step.candidates[0].p >= p_min - 5e-4 for step in r.steps[: r.n_draft])
        assert all(step.candidates[0].p > p_min - 5e-4 for step in r.steps[:-1])


@pytest.mark.parametrize(("name", "i", "run"), [row for row in RUNS if row[0].startswith("micro-")])
def test_emitted_ids_spell_the_text_the_run_wrote(name, i, run):
    prompt = [int(part) for part in run.header["prompt_ids"].strip("[]").split(",")]
    text = "".join(f"{i:x}" for i in prompt + run.log.ids)
    assert repr(text) == run.header["stdout"]


def test_greedy_text_does_not_depend_on_the_draft_length():
    texts: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for name, _, run in RUNS:
        texts.setdefault((name, run.header["prompt"]), set()).add(tuple(run.log.ids[:48]))
    assert all(len(group) == 1 for group in texts.values())


def test_pieces_may_hold_quotes_and_newlines():
    raw = (
        "0.00.1 D spec  draft:  - seq_id 0, draft candidate   0, pos   0:     10 (   0.500) '\n'\n"
        "0.00.1 D spec  draft:  - seq_id 0, draft candidate   1, pos   0:     11 (   0.250) '''\n"
        "0.00.1 D spec  draft:  - seq_id 0, draft candidate   2, pos   0:     12 (   0.125) 'it's\n\n'\n"
        "text0.00.2 D accepted 1/1 draft tokens, the last target token is: (7)\n"
    )
    (only,) = llama_log.parse(raw).rounds
    assert [c.piece for c in only.steps[0].candidates] == ["\n", "'", "it's\n\n"]
    assert only.emitted == [10, 7]


RAW = (DATA / "micro-60-f32.raw.log").read_text()


def test_a_raw_log_tells_its_settings_and_that_it_is_complete():
    log = llama_log.parse(RAW)
    assert log.settings == {"n_max": 3, "n_min": 0, "p_min": 0.0}
    assert log.is_complete
    assert log.unfinished == []
    assert log.ids == llama_log.read_runs(DATA / "micro-60-f32.log.gz")[2].log.ids[: len(log.ids)]


@pytest.mark.parametrize("at", range(0, len(RAW), 97))
def test_a_log_may_end_anywhere(at):
    whole, cut = llama_log.parse(RAW), llama_log.parse(RAW[:at])
    assert cut.rounds == whole.rounds[: len(cut.rounds)]
    assert not cut.is_complete or cut.ids == whole.ids
    following = whole.rounds[len(cut.rounds)].steps if cut.unfinished else []
    for step, theirs in zip(cut.unfinished, following, strict=False):
        assert step.candidates == theirs.candidates[: len(step.candidates)]


@pytest.mark.parametrize("text", ["1", "7", "12", "2026"])
def test_digits_of_the_text_in_front_of_a_time_begin_no_run(text):
    """After a newline of the text its next tokens, on stdout, stand in front of a line of stderr."""
    lines = RAW.splitlines()
    for i in [i for i, line in enumerate(lines) if "accepted" in line][2::5]:
        lines[i] = text + lines[i]
    found = llama_log.parse_all("\n".join(lines))
    assert [log.rounds for log in found] == [llama_log.parse(RAW).rounds]
    twice = llama_log.parse_all("\n".join(lines) + "\n" + RAW)
    assert [len(log.rounds) for log in twice] == 2 * [len(found[0].rounds)]


@pytest.mark.parametrize("line", ["draft candidate   0, pos   1", "accepted 1/3"])
def test_a_log_with_a_line_missing_in_the_middle_is_refused(line):
    lines = RAW.splitlines()
    i = next(i for i, text in enumerate(lines) if line in text)
    with pytest.raises(MtprefError, match="no line missing"):
        llama_log.parse("\n".join(lines[:i] + lines[i + 1 :]))


@pytest.mark.parametrize("nan", ["nan", "    -nan", "-nan(ind)"])
def test_a_draft_of_nan_is_told_as_such(nan):
    """Nothing is missing where llama.cpp's head gives NaN, as an assistant's does after a prompt of one token."""
    line = next(line for line in RAW.splitlines() if "draft candidate   0, pos   1" in line)
    number = line.rpartition(" (")[2].partition(")")[0]
    with pytest.raises(MtprefError, match=r"round \d+: the p of candidate 0 of pos 1 is nan: .*one token"):
        llama_log.parse(RAW.replace(line, line.replace(f"({number})", f"({nan})"), 1))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"", "no draft candidate"), (b"\x00\xff" * 5000, "no draft candidate"),
     (b"draft candidate 0, pos 0: 1 ( 0.5) 'x" * 20000, "no draft candidate")],
)  # fmt: skip
def test_foreign_files_are_refused(tmp_path, raw, reason):
    (tmp_path / "x.log").write_bytes(raw)
    with pytest.raises(MtprefError, match=reason):
        llama_log.read_runs(tmp_path / "x.log")


def test_damaged_and_oversized_files_are_refused(tmp_path, monkeypatch):
    packed = (DATA / "micro-60-f32.log.gz").read_bytes()
    for i, raw in enumerate([packed[: len(packed) // 2], b"no gzip", packed[:200] + b"x" * 50 + packed[250:]]):
        (tmp_path / f"{i}.log.gz").write_bytes(raw)
        with pytest.raises(MtprefError, match="no draft candidate" if raw == b"no gzip" else "cannot be read"):
            llama_log.read_runs(tmp_path / f"{i}.log.gz")
    with pytest.raises(MtprefError, match="cannot be read"):
        llama_log.read_runs(tmp_path / "absent.log")
    monkeypatch.setattr(llama_log, "MAX_LOG_BYTES", 1000)
    with pytest.raises(MtprefError, match="expected the log of a shorter run"):
        llama_log.read_runs(DATA / "micro-60-f32.log.gz")


@pytest.mark.parametrize("path", sorted(DATA.glob("*.results.gguf")), ids=lambda p: p.stem)
def test_results_hold_finite_logits_for_every_token_and_no_folder(path):
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t.data for t in reader.tensors}
    logits = tensors["logits"].reshape(len(tensors["tokens"]), -1)
    assert len(tensors["tokens"]) >= 2
    assert np.isfinite(logits).all()
    assert "/" not in reader.get_field("path_model").contents()
