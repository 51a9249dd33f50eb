"""The self test: every check passes on healthy models, and each one fails when what it checks is broken."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mtpref import kernels, load
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import Options
from mtpref.engine.session import Session
from mtpref.faults import find_fault, inject
from mtpref.front.api import tiny_path
from mtpref.front.cli import main
from mtpref.look import selftest
from mtpref.look.llama_cpp.limits import LIMITS, limits_of
from mtpref.look.llama_cpp.log import Candidate, LlamaLog, Round, Step
from mtpref.look.selftest import CHECKS, Bench, Failed, Skipped, numerics, peers, run_checks
from mtpref.spec.state import ModelState
from tests.models import MICRO, micro, with_eog, without_head

BY_NAME = {check.name: check for check in CHECKS}
HERE = tuple(check for check in CHECKS if not check.llama)

pytestmark = pytest.mark.skipif(not kernels.available(), reason="hundreds of passes: with the kernels only")


def bench_of(model, path=None, **sizes):
    size = replace(selftest.quick(model), **sizes)
    return Bench(model, size, path or MICRO / "micro-60-q8_0.gguf")


def tiny():
    return load().core


def made(name, model, **sizes):
    return BY_NAME[name].run(bench_of(model, **sizes))


def with_nudge(model, entry, when, far=False):
    """The model whose table entry changes one bit of its result, or far more, when `when(args)` says so.

    In `ggml` numerics a bit may vanish in the next quantisation of activations.
    """
    op = getattr(model.recipe.ops, entry)

    def nudged(*args, **kwargs):
        out = op(*args, **kwargs)
        if when(*args):
            first = out[0] if isinstance(out, tuple) else out
            flat = first.reshape(-1)
            flat[:1] = flat[:1] + np.float32(1) if far else np.nextafter(flat[:1], np.float32(9))
        return out

    return replace(model, recipe=model.recipe.with_ops(**{entry: nudged}))


# HEALTHY


@pytest.mark.parametrize("accept", [30, 60, 90])
def test_every_check_passes_on_micro_models(accept):
    bench = bench_of(micro(accept), MICRO / f"micro-{accept}-q8_0.gguf")
    results = list(run_checks(bench, HERE))
    assert {r.check.name: r.found for r in results if r.verdict == "FAIL"} == {}
    # Skipped: the tokenizer makes hashes, and --quick compiles for no other target.
    assert {r.check.name for r in results if r.verdict == "SKIP"} <= {"tokenizer", "instruction set", "threads"}


@pytest.mark.parametrize("model", [tiny, lambda: micro(60, "exact")], ids=["tiny", "exact"])
def test_every_check_passes_on_the_tiny_model_and_in_exact_numerics(model):
    bench = bench_of(model(), tiny_path())
    results = list(run_checks(bench, HERE))
    assert {r.check.name: r.found for r in results if r.verdict == "FAIL"} == {}
    assert {r.check.name for r in results if r.verdict == "SKIP"} <= {"instruction set", "threads", "tokenizer"}


def test_a_full_run_varies_more():
    full, quick = selftest.full(tiny()), selftest.quick(tiny())
    assert full.n_predict > quick.n_predict
    assert set(full.widths) == set(range(1, 9))
    assert full.is_full
    assert not quick.is_full
    assert "rolled back by 1 to 3" in made("checkpoints", micro(60))


def test_made_drafts_are_accepted_in_part_whatever_the_head():
    found = made("made drafts", without_head(micro(60)))
    n_accepted, n_drafted = (int(found.split(" of ")[i].split()[-1 if i == 1 else 0]) for i in (1, 2))
    assert 0 < n_accepted < n_drafted


def test_a_text_that_ends_early_is_no_failure():
    plain = bench_of(micro(60)).run(Options(n_predict=12, spec_type="none"))
    model = with_eog(micro(60), plain.ids[5])
    object.__setattr__(
        model, "vocab", SimpleNamespace(**vars(model.vocab), encode=micro(60).vocab.encode, piece=model.vocab.piece)
    )
    for name in ("made drafts", "MTP drafts", "match", "residual"):
        made(name, model)


def test_without_a_head_its_checks_are_skipped():
    model = without_head(micro(60))
    model = replace(model, kv={k: v for k, v in model.kv.items() if "nextn" not in k})
    for name in ("MTP drafts", "match", "residual", "MTP head", "head's aim"):
        with pytest.raises(Skipped, match="no MTP head"):
            made(name, model)


# BROKEN


@pytest.mark.parametrize("entry", ["swiglu", "rms_norm", "attention", "delta_rule", "mul_mat", "get_rows", "rope"])
def test_a_kernel_that_is_off_by_one_bit_fails(entry):
    model = micro(60)
    with pytest.raises(Failed, match=f"{entry}.*differ"):
        made("kernels", with_nudge(model, entry, lambda *args: True))


def test_a_wrong_choice_of_token_fails():
    model = micro(60)
    recipe = model.recipe.with_ops(argmax=lambda logits: model.recipe.ops.argmax(logits) + 1)
    with pytest.raises(Failed, match="argmax"):
        made("kernels", replace(model, recipe=recipe))


def test_numbers_that_depend_on_the_batch_fail():
    model = with_nudge(micro(60), "swiglu", lambda gate, up: gate.shape[0] == 2, far=True)
    with pytest.raises(Failed, match="width 2"):
        made("verify widths", model)
    with pytest.raises(Failed, match="chunks of 2"):
        made("prompt chunks", model, chunks=(1, 2))


def test_numbers_that_depend_on_the_threads_fail():
    if kernels.n_threads() == 1:
        pytest.skip("one thread")
    before = kernels.n_threads()
    model = with_nudge(micro(60), "swiglu", lambda gate, up: kernels.n_threads() > 1, far=True)
    with pytest.raises(Failed, match="threads"):
        made("threads", model)
    assert kernels.n_threads() == before


def test_numbers_that_depend_on_the_instruction_set_fail(monkeypatch):
    answers = []
    run = subprocess.run

    def remember(*args, **kwargs):
        answers.append(answers[0] if answers else run(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(numerics.subprocess, "run", remember)
    assert "equal logits" in made("instruction set", micro(60), is_full=True)
    with pytest.raises(Failed, match="plain x86-64"):
        made("instruction set", with_nudge(micro(60), "swiglu", lambda *args: True, True), is_full=True)


def test_state_that_is_not_rolled_back_fails():
    model = inject(micro(60), find_fault("S3-conv-window-kept"))
    for name in ("made drafts", "MTP drafts", "residual"):
        with pytest.raises(Failed, match=r"snapshot|replay|two-phase"):
            made(name, model)


def test_a_lax_verification_fails():
    model = micro(30)
    steps = model.recipe.steps
    lax = replace(model, recipe=model.recipe.with_steps(accept_greedy=lambda draft, target, eog: len(draft)))
    with pytest.raises(Failed):
        made("MTP drafts", lax)
    kept = replace(model, recipe=model.recipe.with_steps(match_token=lambda id, target, u: id))
    with pytest.raises(Failed, match="match"):
        made("match", kept)
    assert steps.accept_greedy is not None


def test_a_restore_that_forgets_recurrent_state_fails(monkeypatch):
    restore = ModelState.restore

    def forgetful(self, checkpoint):
        kept = [dict(layer.arrays) for layer in self.layers]
        restore(self, checkpoint)
        for layer, arrays in zip(self.layers, kept, strict=True):
            layer.arrays.update({s.name: arrays[s.name] for s in layer.specs if not s.positional})

    monkeypatch.setattr(ModelState, "restore", forgetful)
    with pytest.raises(Failed, match="restore"):
        made("checkpoints", micro(60))


def test_planes_of_another_token_fail(monkeypatch):
    choose = ModelState.choose_plane
    monkeypatch.setattr(ModelState, "choose_plane", lambda self, n: choose(self, n - 1))
    with pytest.raises(Failed, match="by planes"):
        made("checkpoints", micro(60))


def test_a_state_file_that_loses_a_bit_fails(monkeypatch):
    read = Session.load.__func__

    def lossy(cls, *args, **kwargs):
        session = read(cls, *args, **kwargs)
        session.state.pending_h = session.state.pending_h + np.float32(1)
        return session

    monkeypatch.setattr(Session, "load", classmethod(lossy))
    with pytest.raises(Failed, match="read from a file"):
        made("sessions", micro(60))


class BrokenVocab:
    """A vocabulary that loses the last byte of every text."""

    def __init__(self, vocab):
        self._vocab = vocab

    def __getattr__(self, name):
        return getattr(self._vocab, name)

    def detokenize(self, ids):
        return self._vocab.detokenize(ids)[:-1]


def test_text_that_does_not_come_back_fails():
    model = tiny()
    with pytest.raises(Failed, match="comes back"):
        made("tokenizer", replace(model, vocab=BrokenVocab(model.vocab)))


def test_a_head_with_nan_or_without_tensors_fails():
    model = micro(60)
    mtp = model.heads[0].weights
    for norm, words in ((mtp.enorm * np.float32(np.nan), "NaN"), (mtp.enorm * np.float32(0), "zero")):
        broken = model.with_head(enorm=norm)
        with pytest.raises(Failed, match=words):
            made("MTP head", broken)
    with pytest.raises(Failed, match="not there"):
        made("MTP head", without_head(model))


@pytest.mark.parametrize("fault", ["G1-concat-swapped", "W1-norm-shift-missing"])
def test_a_head_that_is_fed_wrongly_is_no_better_than_a_control(fault):
    with pytest.raises(Failed, match="no better than with shuffled"):
        made("head's aim", inject(tiny(), find_fault(fault)))


def test_a_head_that_does_not_see_the_hidden_state_fails():
    model = tiny()
    with pytest.raises(Failed, match="no better than with shuffled hidden rows"):
        made("head's aim", model.with_head(hnorm=model.heads[0].weights.hnorm * np.float32(1e-6)))


# LLAMA.CPP, FAKED BY OUR OWN RESULTS


class Fake:
    """Programs that answer as mtpref does, save for what a test changes."""

    def __init__(self, model, change=lambda kind, value: value):
        self.model, self.change = peers._with_f32_kv(model), change

    def tokenize(self, path, text):
        return self.change("ids", self.model.vocab.encode(text))

    def logits(self, path, text, folder):
        ids = self.model.vocab.encode(text)
        logits = self.model.trunk(self.model.new_state(512), ids, n_logits=len(ids)).logits
        return ids, self.change("logits", logits)

    def speculative(self, path, text, n_predict, n_max, p_min):
        options = Options(n_predict=n_predict, policy=replace(Options().policy, n_max=n_max, p_min=p_min))
        events = list(load_run(self.model, self.model.vocab.encode(text), options))
        log = LlamaLog()
        for d in (e for e in events if isinstance(e, Drafted)):
            v = next(e for e in events if isinstance(e, Verified) and e.round == d.round)
            steps = [
                Step(i, [Candidate(s.candidates[k], round(s.p[k], 3), "") for k in range(3)])
                for i, s in enumerate(d.steps)
            ]
            log.rounds.append(Round(steps, v.n_accepted, len(d.ids), v.target_ids[-1]))
        log.summary["n_predict"] = len(log.ids)
        return self.change("log", log)


def load_run(model, ids, options):
    from mtpref.engine.decode import Decoder

    return Decoder(model, model.new_state(512), options).run(ids)


def faked(monkeypatch, name, model, change=lambda kind, value: value):
    monkeypatch.setattr(peers, "_programs", lambda bench: Fake(model, change))
    return made(name, model, is_full=True)


def test_programs_that_agree_pass(monkeypatch):
    model = tiny()
    assert "equal ids" in faked(monkeypatch, "llama.cpp tokens", model)
    assert "NMSE 0.0e+00" in faked(monkeypatch, "llama.cpp logits", model)
    assert "0 near ties" in faked(monkeypatch, "llama.cpp drafts", model)


def test_other_ids_fail(monkeypatch):
    with pytest.raises(Failed, match=r"llama\.cpp has"):
        faked(monkeypatch, "llama.cpp tokens", tiny(), lambda kind, ids: [*ids[:-1], 0])


def test_logits_beyond_the_limit_of_the_weight_type_fail(monkeypatch):
    noise = np.random.default_rng(0).standard_normal(2048).astype(np.float32)
    faked(monkeypatch, "llama.cpp logits", tiny(), lambda kind, x: x + np.float32(0.001) * noise)
    with pytest.raises(Failed, match="limit"):
        faked(monkeypatch, "llama.cpp logits", tiny(), lambda kind, x: x + np.float32(0.5) * noise)


@pytest.mark.parametrize("what", ["candidate", "p", "verdict"])
def test_other_decisions_fail(what, monkeypatch):
    def change(kind, log):
        r = log.rounds[1]
        c = r.steps[0].candidates
        if what == "verdict":
            r.id_last += 1
        else:
            c[0] = Candidate(c[0].id + (what == "candidate"), c[0].p - 0.3 * (what == "p"), "")
        return log

    with pytest.raises(Failed, match=r"llama\.cpp|not"):
        faked(monkeypatch, "llama.cpp drafts", tiny(), change)


def test_a_log_without_rounds_is_not_a_pass(monkeypatch):
    with pytest.raises(Skipped, match="no round"):
        faked(monkeypatch, "llama.cpp drafts", tiny(), lambda kind, log: LlamaLog())


def test_another_contract_is_not_compared_with_llama_cpp(monkeypatch):
    with pytest.raises(Skipped, match="contract"):
        faked(monkeypatch, "llama.cpp drafts", micro(60, contract="training"))


def test_limits_follow_the_coarsest_weight_type():
    assert limits_of(tiny().type_names)[1] == "Q8_0"


# TABLE


def check(name, verdict):
    def run(bench):
        if verdict == "FAIL":
            raise Failed("bad")
        if verdict == "SKIP":
            raise Skipped("why")
        if verdict == "stop":
            raise ZeroDivisionError("x / 0")
        return "good"

    return selftest.Check(name, "means", run)


def test_whatever_stops_a_check_is_its_verdict_and_the_next_one_runs():
    checks = tuple(check(v, v) for v in ("FAIL", "stop", "SKIP", "PASS"))
    results = list(run_checks(bench_of(micro(60)), checks))
    assert [r.verdict for r in results] == ["FAIL", "FAIL", "SKIP", "PASS"]
    assert "ZeroDivisionError" in results[1].found


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("SKIP", 0), ("FAIL", 1)])
def test_the_exit_code_is_1_where_a_check_fails(verdict, code, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "CHECKS", (check("first", "PASS"), check("second", verdict)))
    assert main(["selftest"]) == code
    out = capsys.readouterr().out
    assert verdict in out
    assert "\x1b" not in out
    assert main(["selftest", "--json"]) == code
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "mtpref-selftest-1"
    assert [c["result"] for c in record["checks"]] == ["PASS", verdict]
    assert record["counts"][verdict] >= 1


@pytest.mark.parametrize("width", ["60", "80", "200"])
def test_the_table_fits_the_width(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["selftest", "--quick", "--only", "kernels", "--only", "MTP head"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= int(width)
    assert lines[-1] == "2 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize(
    "argv", [["--only", "none"], ["--llama-bin", "/nonexistent"], ["-m", "/nonexistent.gguf"], ["-t", "0"]]
)
def test_bad_use_ends_in_one_line(argv, capsys):
    assert main(["selftest", *argv]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_folder_without_the_programs_is_a_finding_that_names_them(tmp_path, capsys):
    assert main(["selftest", "--only", "llama.cpp tokens", "--llama-bin", str(tmp_path)]) == 1
    assert "llama-tokenize" in " ".join(capsys.readouterr().out.split())


# THE PAGE


def test_the_page_names_every_check_and_limit():
    page = (Path(__file__).parent.parent / "docs" / "checks.md").read_text(encoding="utf-8")
    page = page[page.index("\n## Self test") :]
    assert re.findall(r"^\| ([a-zA-Z'. ]+?) \| [^|]{9,} \| [^|]{9,} \|$", page, re.M)[1:] == [c.name for c in CHECKS]
    for name, limits in LIMITS.items():
        row = re.search(rf"^\| {'others' if name == 'other' else name} \|(.*)\|$", page, re.M)
        assert [float(x) for x in row[1].split("|")] == [limits.ggml, limits.exact, limits.p, limits.margin]
