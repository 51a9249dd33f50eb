"""Stock llama.cpp's logs of models with experts: every loop, event by event; none of them is accused, sick ones are."""

import gzip
import json
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, RolledBack, Token, Verified
from mtpref.engine.decode import WITH_CORRECTION, Decoder, Options, PolicyConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.faults import FAULTS, inject
from mtpref.faults.diagnose import PortRound, PortRun, diagnose_log, read_port_runs, render
from mtpref.faults.diagnose.forced import Seen
from mtpref.faults.diagnose.unexplained import unexplained
from mtpref.front.cli import main
from mtpref.look.compare import compare_log
from mtpref.look.llama_cpp.log import parse, read_runs
from mtpref.look.llama_cpp.rounds import UNTOLD
from mtpref.spec.contract import parse_contract
from tests.micro_moe import NAMES, standard

RECORDINGS = Path(__file__).parent / "data" / "llama_cpp" / "moe"
F32 = [part for flag in ("-ctk", "-ctv", "-ctkd", "-ctvd") for part in (flag, "f32")]
NEXT = "micro-qwen3next-f32"
REPLAYED = [name for name in NAMES if "qwen3next" in name]
FAST = (NEXT, "micro-glm4moe-groups-f32")


def rest_is_slow(fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@lru_cache(maxsize=3)
def model_of(name, replay="right"):
    recipe = make_recipe("ggml", parse_contract(f"replay={replay}"))
    return mtpref.LanguageModel(load(standard(name), recipe, kv_type="F32", kv_type_draft="F32"))


@lru_cache(maxsize=4)
def runs_of(name):
    return read_runs(RECORDINGS / f"{name}.log.gz")


def events_of(model, run, rollback=WITH_CORRECTION):
    policy = PolicyConfig(n_max=int(run.header["n_max"]), p_min=float(run.header["p_min"]))
    options = Options(n_predict=len(run.log.ids) + 4, policy=policy, rollback=rollback)
    return list(model.generate(json.loads(run.header["prompt_ids"]), options))


def compared(run, events):
    return compare_log(run.log, events, p_min=float(run.header["p_min"]), p_limit=0.001)


# ------------------------------------------------------------------------------------------- what a log tells


def test_a_round_that_was_run_again_tells_what_it_drafted_and_not_its_correction():
    log = runs_of(NEXT)[1].log
    again = [r for r in log.rounds if r.is_replayed]
    assert len(again) == log.n_partial == 7
    assert all(r.n_accepted < r.n_draft == len(r.draft) for r in again)
    assert all(r.emitted == [*r.draft[: r.n_accepted], UNTOLD, r.id_last] for r in again)
    assert len(log.ids) == 42
    # The text that llama.cpp wrote has the corrections: here a token's text is its id, in two hexadecimal digits.
    text = bytes.fromhex(runs_of(NEXT)[1].header["stdout"].strip("'"))[-42:]
    assert all(told in (UNTOLD, written) for told, written in zip(log.ids, text, strict=True))
    own = [e.id for e in events_of(model_of(NEXT, "stale"), runs_of(NEXT)[1]) if isinstance(e, Token)]
    assert own[:42] == list(text)


DRAFT = "".join(f"draft candidate   0, pos   {i}:     {10 + i} (   0.900) 'x'\n" for i in range(3))
LAST = "draft tokens, the last target token is: (7)\n"


def test_a_replay_that_parts_again_ends_with_what_stays():
    log = parse(
        f"{DRAFT}partial acceptance: 2 < 3, restoring checkpoint\n"
        f"partial acceptance: 1 < 3, restoring checkpoint\naccepted 2/2 {LAST}"
    )
    assert [(r.n_accepted, r.n_draft, r.emitted) for r in log.rounds] == [(1, 3, [10, UNTOLD, 7])]


@pytest.mark.parametrize(
    "text",
    [
        f"partial acceptance: 1 < 3, restoring checkpoint\naccepted 3/3 {LAST}",
        f"partial acceptance: 3 < 3, restoring checkpoint\naccepted 4/4 {LAST}",
        "partial acceptance: 1 < 3, restoring checkpoint\npartial acceptance: 1 < 5, restoring checkpoint\n",
        f"partial acceptance: 1 < 9, restoring checkpoint\naccepted 2/2 {LAST}",
    ],
)
def test_lines_that_contradict_each_other_are_refused(text):
    with pytest.raises(MtprefError, match="no line missing"):
        parse(DRAFT + text)


# ------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("replay", ["right", "stale"])
def test_the_text_is_the_same_and_nothing_is_drafted_after_the_correction(replay):
    model, run = model_of(NEXT, replay), runs_of(NEXT)[1]
    events = events_of(model, run)
    plain = [e.id for e in events_of(model, run, "snapshot") if isinstance(e, Token)]
    assert [e.id for e in events if isinstance(e, Token)] == plain
    drafted = [e for e in events if isinstance(e, Drafted)]
    verified = [e for e in events if isinstance(e, Verified)]
    back = {e.round for e in events if isinstance(e, RolledBack)}
    assert back == {v.round for v in verified if v.n_accepted < len(v.draft_ids)}
    assert len(back) > 5
    for before, after in pairwise(drafted):
        assert (not after.steps) == (before.round in back)


def _layers(state):
    return [*state.layers, *(head.layer for head in state.heads)]


def test_the_loops_leave_the_same_state():
    """From the right pairing; they differ in what is drafted."""
    core = model_of(NEXT).core
    found = {}
    for rollback in ("replay", WITH_CORRECTION):
        for n_predict in range(20, 24):
            state = core.new_state(64)
            events = list(Decoder(core, state, Options(n_predict=n_predict, rollback=rollback)).run([114, 55, 73, 107]))
            assert any(isinstance(e, RolledBack) for e in events)
            found[rollback, state.n_past] = state
    both = [n for rollback, n in found if rollback == "replay" and (WITH_CORRECTION, n) in found]
    assert both
    for n in both:
        a, b = found["replay", n], found[WITH_CORRECTION, n]
        assert np.array_equal(a.pending_h, b.pending_h)
        for x, y in zip(_layers(a), _layers(b), strict=True):
            for spec in x.specs:
                end = n if spec.positional else None
                assert np.array_equal(x.arrays[spec.name][:end], y.arrays[spec.name][:end]), spec.name


@pytest.mark.parametrize(
    "name", [n if n == NEXT else pytest.param(n, marks=pytest.mark.slow) for n in REPLAYED if n.endswith("f32")]
)
def test_every_draft_p_and_decision_of_the_replaying_loop_is_llama_cpps(name):
    n_events = n_drafted = n_accepted = n_again = 0
    for run in runs_of(name):
        found = compared(run, events_of(model_of(name, "stale"), run))
        assert found.differences == []
        assert found.max_p_error < 0.0007
        n_events += found.n_candidates + found.n_rounds
        n_drafted += sum(r.n_draft for r in run.log.rounds)
        n_accepted += sum(r.n_accepted for r in run.log.rounds)
        n_again += found.n_untold
    print(f"{name}: {n_events} events, {n_again} replays, acceptance {n_accepted / n_drafted:.2f}")
    assert n_events > 100
    assert n_again >= 15
    assert 0.5 < n_accepted / n_drafted < 0.9


@pytest.mark.parametrize(("replay", "rollback"), [("right", WITH_CORRECTION), ("stale", "replay")])
def test_half_of_the_loop_is_not_llama_cpps(replay, rollback):
    model = model_of(NEXT, replay)
    found = [compared(run, events_of(model, run, rollback)) for run in runs_of(NEXT)[1::3]]
    assert any(f.first_divergence is not None or f.n_rounds < 0.7 * f.n_rounds_theirs for f in found)


def test_a_draft_that_was_refused_though_it_is_right_is_told():
    """The correction is not in the log, but it is not the token that was refused."""
    run = runs_of(NEXT)[1]
    i, whole = next(
        (i, r) for i, r in enumerate(run.log.rounds) if not r.is_replayed and r.n_accepted == r.n_draft == 3
    )
    rounds = [*run.log.rounds]
    rounds[i] = replace(whole, n_accepted=1, is_replayed=True, id_last=whole.id_last)
    first = compared(replace(run, log=replace(run.log, rounds=rounds)), events_of(model_of(NEXT, "stale"), run))
    assert first.first_divergence.what == "token"
    assert first.first_divergence.theirs == f"not {whole.draft[1]}"


def test_the_token_that_ends_a_text_may_stand_twice():
    """llama.cpp names it as the last of its round, the row after it was run for nothing."""
    run = runs_of(NEXT)[0]
    events = events_of(model_of(NEXT, "stale"), run)
    whole = next(i for i, r in enumerate(run.log.rounds) if not r.is_replayed and r.n_accepted == r.n_draft)
    n_before = sum(len(r.emitted) for r in run.log.rounds[:whole])
    end = [e for e in events if isinstance(e, Token)][n_before]
    events = [replace(e, is_eog=True) if e == end else e for e in events]
    rounds = [*run.log.rounds[:whole], replace(run.log.rounds[whole], id_last=end.id)]
    log = replace(run.log, rounds=rounds)
    assert compared(replace(run, log=log), events).differences == []
    more = replace(log, rounds=[*rounds, run.log.rounds[whole + 1]])
    assert compared(replace(run, log=more), events).first_divergence.ours == "(the end)"


# --------------------------------------------------------------------------------------------- compare-log


@pytest.mark.parametrize("name", rest_is_slow(FAST))
def test_compare_log_calls_every_recording_healthy_and_says_its_loop(name, capsys):
    code = main(["compare-log", "-m", str(standard(name)), *F32, str(RECORDINGS / f"{name}.log.gz"), "--json"])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    found = json.loads(captured.out)
    assert len(found) == 6
    n_hardly = sum(record["is_hardly_compared"] for record in found)
    print(
        f"{name}: {sum(r['n_candidates'] for r in found)} candidates, "
        f"{sum(r['n_near_ties'] for r in found)} near ties, "
        f"p within {max(r['max_p_error'] for r in found):.4f}, {n_hardly} of 6 runs hardly compared"
    )
    for run, record in zip(runs_of(name), found, strict=True):
        loop = "replay-with-correction" if run.log.n_partial else "in place"
        is_told = any(r.n_accepted < r.n_draft for r in run.log.rounds)
        assert (loop in record["loop"]) == is_told
        assert ("replay=stale" in record["loop"]) == (run.log.n_partial > 0)
    if name.endswith("f32"):
        assert not any(record["differences"] for record in found)


def test_compare_log_finds_the_right_pairing_too(tmp_path, capsys):
    """An engine that replays but pairs the first cell rightly: drafts and p are its own."""
    run, lines = runs_of(NEXT)[4], []
    for r in _rounds(events_of(model_of(NEXT, "right"), run))[:12]:
        for pos, step in enumerate(r["drafted"].steps):
            for rank in range(3):
                p = f"{step.p[rank]:8.3f}"
                lines.append(f"draft candidate {rank:3}, pos {pos:3}: {step.candidates[rank]:6} ({p}) 'x'")
        a, n, alone = r["verified"].n_accepted, len(r["drafted"].ids), r["alone"]
        if alone is not None:
            lines.append(f"partial acceptance: {a} < {n}, restoring checkpoint")
        told = (a + 1, a + 1, alone) if alone is not None else (a, n, r["verified"].target_ids[-1])
        lines.append("accepted {}/{} draft tokens, the last target token is: ({})".format(*told))
    path = tmp_path / "right.log"
    path.write_text("\n".join([*lines, ""]))
    args = ["-m", str(standard(NEXT)), *F32, "--ids", run.header["prompt_ids"].replace(" ", ""), str(path)]
    assert main(["compare-log", *args, "--spec-draft-n-max", "3"]) == 0
    out = capsys.readouterr().out
    assert "--contract replay=right" in out
    assert "no event differs" in out


def _rounds(events):
    """Drafts and verdicts; `alone`: the token of the round without a draft after one that was accepted in part."""
    out = []
    for drafted, verified in zip(
        [e for e in events if isinstance(e, Drafted)], [e for e in events if isinstance(e, Verified)], strict=True
    ):
        if not drafted.steps and out:
            out[-1]["alone"] = verified.target_ids[-1]
        else:
            out.append({"drafted": drafted, "verified": verified, "alone": None})
    return [r for r in out if r["alone"] is not None or r["verified"].n_accepted == len(r["drafted"].ids)]


def test_another_models_log_is_not_healthy(capsys):
    """The same shape from another seed."""
    path = RECORDINGS / "micro-qwen3next-fused-f32.log.gz"
    assert main(["compare-log", "-m", str(standard(NEXT)), *F32, "--run", "0", str(path)]) == 1
    assert "first divergence: round 0" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ diagnose


def port_runs(name, tmp_path):
    path = tmp_path / f"{name}.log"
    path.write_bytes(gzip.decompress((RECORDINGS / f"{name}.log.gz").read_bytes()))
    return read_port_runs(path, which="all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_diagnose_calls_every_recording_healthy_and_says_its_loop(name, tmp_path):
    report = diagnose_log(model_of(name).core, port_runs(name, tmp_path)[1::3])
    assert report.verdict == "healthy", render(report)
    assert "its loop: " in render(report)


def test_diagnose_says_which_loop_a_stock_run_had(tmp_path):
    run = port_runs(NEXT, tmp_path)[1]
    run = replace(run, rounds=run.rounds[:6])
    assert sum(UNTOLD in r.emitted for r in run.rounds) >= 1
    report = diagnose_log(model_of(NEXT).core, [run])
    assert report.verdict == "healthy", render(report)
    assert report.headline.startswith("HEALTHY, contract llama.cpp,replay=stale: every token")
    assert "its loop: a draft accepted in part is run again with the correction in it" in render(report)


def port_of(model, n_rounds, replay="stale"):
    """What an engine of that model prints whose loop replays with the correction in the batch."""
    model = mtpref.LanguageModel(model)
    events = list(model.generate([114, 55, 73, 107], Options(n_predict=60, rollback=WITH_CORRECTION)))
    rounds = []
    for d, v in zip(
        [e for e in events if isinstance(e, Drafted)], [e for e in events if isinstance(e, Verified)], strict=True
    ):
        last = UNTOLD if v.n_accepted < len(d.ids) else v.target_ids[-1]
        p = tuple(s.p[0] for s in d.steps[: len(d.ids)])
        rounds.append(PortRound(tuple(d.ids), v.n_accepted, (*d.ids[: v.n_accepted], last), None, p))
    return PortRun("port", (114, 55, 73, 107), tuple(rounds[:n_rounds]), settings={"rollback": WITH_CORRECTION})


@pytest.mark.slow
def test_a_replay_from_the_right_row_is_healthy_too():
    report = diagnose_log(model_of(NEXT).core, [port_of(model_of(NEXT, "right").core, 40)])
    assert report.verdict == "healthy", render(report)
    assert report.headline.startswith("HEALTHY, contract llama.cpp: ")


@pytest.mark.slow
@pytest.mark.parametrize("id", ["C4-same-token-pairing", "V1-lax-accept", "S2-no-rollback"])
def test_a_mistake_in_that_loop_is_no_healthy_run(id):
    report = diagnose_log(model_of(NEXT).core, [port_of(inject(model_of(NEXT, "stale").core, FAULTS[id]), 40)])
    assert report.verdict != "healthy", render(report)


def test_what_differs_after_a_routers_near_tie_is_no_doubt():
    def seen(gap, *, is_hit=False, **more):
        return Seen(0, 1, 1 if is_hit else 2, 0.0 if is_hit else gap, 1.0, 0.5, 0.5005, **more)

    hits = [seen(0, is_hit=True)] * 40
    assert unexplained([*hits, seen(0.2)]).is_doubt
    assert unexplained([*hits, seen(0.2, is_rerouted=True)]) is None
    assert not unexplained([*hits, *[seen(0.2, is_rerouted=True)] * 4]).is_doubt
    target = [seen(0, is_hit=True, kind="target")] * 40
    assert unexplained([*hits, *target, seen(0.3, kind="target", is_rerouted=True)]) is None
    assert unexplained([*hits, *target, seen(0.7, kind="target", is_rerouted=True)]).kind == "target"
    assert unexplained([*hits, *target, *[seen(0.3, kind="target")] * 2]).kind == "target"
