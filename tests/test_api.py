"""The library's front door."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import mtpref
from mtpref.base.events import RunEnded, RunStarted, Token
from mtpref.files.gguf import WriteOptions
from mtpref.front.api import Run
from mtpref.front.cli.flags import FLAGS
from mtpref.golden.gen import Plan as GoldenPlan
from mtpref.heads.convert.run import Settings as ConvertSettings
from mtpref.heads.quantize import Wanted
from mtpref.heads.quantize.run import Settings as QuantizeSettings
from mtpref.measure.bench.report import Settings as BenchSettings
from mtpref.measure.plan.report import Settings as PlanSettings
from mtpref.measure.probe.report import Settings as ProbeSettings
from mtpref.spec.policy import FixedPolicy

ROOT = Path(__file__).parent.parent


def test_events_come_in_order_and_tokens_make_the_text():
    model = mtpref.load()
    run = model.generate("Once upon a time", mtpref.Options(n_predict=12))
    events = list(run)
    tokens = [event for event in events if isinstance(event, Token)]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    assert [token.id for token in tokens] == run.ids
    assert run.text == b"".join(token.piece for token in tokens).decode("utf-8", "replace")
    assert [token.pos for token in tokens] == list(range(len(run.prompt_ids), len(run.prompt_ids) + 12))


def test_a_state_that_is_used_again_gives_the_same_run():
    model = mtpref.load(numerics="exact")
    state = model.core.new_state(64)
    first = model.generate("A letter came for", mtpref.Options(n_predict=8), state=state).finish()
    digest = state.digest()
    model.generate("class A:", mtpref.Options(n_predict=8), state=state).finish()
    again = model.generate("A letter came for", mtpref.Options(n_predict=8), state=state).finish()
    assert again.ids == first.ids
    assert state.digest() == digest


def test_the_spec_and_the_kernels_give_the_same_bits():
    prompt = "def f(x):"
    for numerics in ("ggml", "exact"):
        fast = mtpref.load(numerics=numerics)
        slow = mtpref.load(numerics=numerics, use_kernels=False)
        ids = fast.encode(prompt)
        states = [fast.core.new_state(), slow.core.new_state()]
        a = fast.core.trunk(states[0], ids, n_logits=len(ids))
        b = slow.core.trunk(states[1], ids, n_logits=len(ids))
        assert np.array_equal(a.logits.view(np.uint32), b.logits.view(np.uint32))
        assert states[0].digest() == states[1].digest()


def test_token_ids_can_be_given_and_bad_ones_are_refused():
    model = mtpref.load()
    ids = model.encode("A letter came for")
    assert model.generate(ids, mtpref.Options(n_predict=3)).finish().ids == (
        model.generate("A letter came for", mtpref.Options(n_predict=3)).finish().ids
    )
    with pytest.raises(mtpref.MtprefError, match="not in the vocabulary"):
        model.generate([10**6], mtpref.Options(n_predict=1, spec_type="none")).finish()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, mtpref; print(sorted(set(sys.modules) & {'numba', 'numpy', 'tokenizers', 'gguf'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mtpref.nonsense


def test_what_there_is_can_be_listed_and_everything_listed_is_there():
    code = "import mtpref; print(*dir(mtpref))"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert set(mtpref.__all__) <= set(listed.split())
    for name in mtpref.__all__:
        assert getattr(mtpref, name) is not None
    told = {kind.__name__ for kind in get_args(mtpref.Event)}
    taken = {"AdaptiveConfig", "PolicyConfig", "SamplingConfig", "Session", "ModelState", "Drafter", "ChatPrompt"}
    assert told | taken <= set(mtpref.__all__)


BAD = [
    ("Options", {"policy": 3}, "Options.policy: 3 is out of place, expected PolicyConfig"),
    ("Options", {"policy": FixedPolicy()}, "Options.policy: a FixedPolicy object is out of place"),
    ("Options", {"stop": "ab"}, "Options.stop: 'ab' is no list"),
    ("Options", {"stop": ["a", 1]}, "Options.stop: 1 is out of place, expected a string"),
    ("Options", {"n_predict": 2.0}, "Options.n_predict: 2.0 is no integer"),
    ("Options", {"n_batch": True}, "Options.n_batch: True is no integer"),
    ("Options", {"rollback": ["snapshot"]}, "Options.rollback: a list is unknown|Options.rollback: .* is unknown"),
    ("PolicyConfig", {"p_min": 1 << 31}, "PolicyConfig.p_min: .* is out of range, expected 0 .. 1"),
    ("PolicyConfig", {"p_min": float("nan")}, "PolicyConfig.p_min: nan is out of range"),
    ("PolicyConfig", {"n_max": 1, "n_min": 2}, "PolicyConfig.n_min: 2 is more than PolicyConfig.n_max 1"),
    ("AdaptiveConfig", {"draft_cost": 17}, "AdaptiveConfig.draft_cost: 17 is out of range, expected 0 .. 16 plain"),
    ("SamplingConfig", {"seed": 1 << 5000}, "SamplingConfig.seed: .* is out of range"),
    ("SamplingConfig", {"temp": "hot"}, "SamplingConfig.temp: 'hot' is no number"),
    ("SamplingConfig", {"ignore_eos": 1}, "SamplingConfig.ignore_eos: 1 is out of place, expected True or False"),
    ("SamplingConfig", {"samplers": ("top_k", "top_k")}, "SamplingConfig.samplers: top_k;top_k names one twice"),
    ("RopeOverrides", {"freq_scale": "x"}, "RopeOverrides.freq_scale: 'x' is no number"),
    ("RopeOverrides", {"n_ctx_orig": 1.5}, "RopeOverrides.n_ctx_orig: 1.5 is no integer"),
    ("MtpContract", {"hidden": "banana"}, "MtpContract.hidden: 'banana' is unknown"),
]


@pytest.mark.parametrize(("name", "values", "told"), BAD)
def test_a_bad_setting_is_refused_where_it_is_built_in_the_librarys_words(name, values, told):
    with pytest.raises(mtpref.SettingError, match=f"^({told})") as refused:
        getattr(mtpref, name)(**values)
    assert "--" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("make", "values", "told"),
    [
        (WriteOptions, {"inputs": "model.gguf"}, "WriteOptions.inputs: 'model.gguf' is no list"),
        (WriteOptions, {"force": "no"}, "WriteOptions.force: 'no' is out of place"),
        (WriteOptions, {"progress": 3}, "WriteOptions.progress: 3 is out of place, expected a function"),
        (ConvertSettings, {"outtype": "q3"}, "convert.Settings.outtype: 'q3' is unknown, expected one of f32"),
        (Wanted, {"mixture": "Q9"}, "quantize.Wanted.mixture: 'Q9' is unknown"),
        (ProbeSettings, {"n_ctx": 1}, "probe.Settings.n_ctx: 1 is out of range"),
        (PlanSettings, {"p_mins": (0.5, 2)}, "plan.Settings.p_mins: 2 is out of range"),
        (BenchSettings, {"widths": (1,)}, "bench.Settings.widths: 1 is out of range"),
        (GoldenPlan, {"rows": "some"}, "golden.Plan.rows: 'some' is unknown, expected one of last, all"),
        (GoldenPlan, {"rows": (-1,)}, "golden.Plan.rows: -1 is out of range"),
        (GoldenPlan, {"rollbacks": ("none",)}, "golden.Plan.rollbacks: 'none' is unknown"),
        (QuantizeSettings, {"wanted": "Q4_0"}, "quantize.Settings.wanted: 'Q4_0' is out of place, expected Wanted"),
    ],
)
def test_settings_of_commands_are_validated_too(make, values, told):
    with pytest.raises(mtpref.SettingError, match=f"^{told}"):
        make(**values)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: mtpref.load(kv_type="Q8_0"), "kv_type: 'Q8_0' is unknown, expected one of F32, F16, BF16"),
        (lambda: mtpref.load(kv_type_draft=1), "kv_type_draft: 1 is unknown, expected one of F32, F16, BF16"),
        (lambda: mtpref.load(3), "path: 3 is out of place, expected a string or Path"),
        (lambda: mtpref.load(contract=None), "contract: None is out of place, expected a string or MtpContract"),
        (lambda: mtpref.load(mtp="no"), "mtp: 'no' is out of place, expected True or False"),
        (lambda: mtpref.load(rope="yarn"), "rope: 'yarn' is out of place, expected RopeOverrides"),
        (lambda: mtpref.load().new_session(-1), r"n_ctx: -1 is out of range, expected 0 \.\. "),
        (lambda: mtpref.load().new_session("64"), "n_ctx: '64' is no integer"),
        (lambda: mtpref.load().new_session(checkpoint_every=-1), "checkpoint_every: -1 is out of range"),
        (lambda: mtpref.Session(mtpref.load().core, n_checkpoints=True), "n_checkpoints: True is no integer"),
        (lambda: mtpref.load().core.new_state(1.5), "n_ctx: 1.5 is no integer"),
        (lambda: mtpref.load().generate("x", {"n_predict": 3}), "options: .* is out of place, expected Options"),
        (lambda: mtpref.load().generate("x", n_ctx=-3), "n_ctx: -3 is out of range"),
        (lambda: mtpref.load().generate("x", session=4), "session: 4 is out of place, expected Session"),
    ],
)
def test_a_bad_argument_is_refused_where_it_is_given(make, told):
    with pytest.raises(mtpref.SettingError, match=f"^{told}"):
        make()


@pytest.mark.parametrize(
    "make",
    [Wanted, ConvertSettings, QuantizeSettings, ProbeSettings, PlanSettings, BenchSettings, GoldenPlan, WriteOptions],
)
def test_settings_take_keywords_alone(make):
    with pytest.raises(TypeError, match="positional"):
        make("x")


def test_probabilities_are_floats_outside_and_integers_inside_and_numpys_numbers_will_do():
    policy = mtpref.PolicyConfig(p_min=0.9, n_max=np.int64(2))
    assert policy.fixed() == FixedPolicy(n_max=2, p_min=int(0.9 * 2**32))
    assert type(policy.n_max) is int
    assert mtpref.PolicyConfig(p_min=np.float32(0.5)).fixed().p_min == 1 << 31
    assert mtpref.Options(stop=["a"], draft_ids=np.arange(3)).draft_ids == (0, 1, 2)
    settings = mtpref.Options(policy=policy, adaptive=mtpref.AdaptiveConfig(rule="expected", row_cost=0.5)).to_json()
    assert (settings["policy"]["p_min"], settings["adaptive"]["row_cost"]) == (int(0.9 * 2**32), 1 << 31)
    with pytest.raises(TypeError, match="positional"):
        mtpref.Options(48)


def test_p_min_as_a_probability_shuts_the_gate():
    def drafted(p_min):
        options = mtpref.Options(n_predict=24, policy=mtpref.PolicyConfig(p_min=p_min))
        return mtpref.load().generate("Once upon a time", options).finish().statistics.n_drafted

    assert drafted(0.0) > drafted(0.9)
    assert drafted(1.0) == 0


def test_every_setting_that_the_command_line_spells_exists():
    owners = {
        **{name: getattr(mtpref, name) for name in ("AdaptiveConfig", "Options", "PolicyConfig", "SamplingConfig")},
        **{"RopeOverrides": mtpref.RopeOverrides, "convert.Settings": ConvertSettings, "quantize.Wanted": Wanted},
        **{"probe.Settings": ProbeSettings, "plan.Settings": PlanSettings, "bench.Settings": BenchSettings},
        **{"quantize.Settings": QuantizeSettings, "WriteOptions": WriteOptions},
    }
    for name in FLAGS:
        owner, dot, field = name.rpartition(".")
        assert not dot or name == "Session.save" or field in {f.name for f in fields(owners[owner])}, name
    error = mtpref.SettingError("PolicyConfig.n_min", "3 is more than {n_max} 2", n_max="PolicyConfig.n_max")
    assert str(error) == "PolicyConfig.n_min: 3 is more than PolicyConfig.n_max 2"
    assert error.told(FLAGS) == "--spec-draft-n-min: 3 is more than --spec-draft-n-max 2"


def test_a_stream_is_the_text_in_pieces_and_whole_characters():
    model = mtpref.load()
    options = mtpref.Options(n_predict=24, stop=("\n",))
    run = model.generate("Once upon a time", options)
    assert "".join(run.stream()) == run.text == model.generate("Once upon a time", options).finish().text
    events = [
        mtpref.Token(0, 1, b"\xc3", "plain", False, b"\xc3"),
        mtpref.Token(1, 2, b"\xa4<", "plain", False, b"\xa4<"),
    ]
    events += [mtpref.Token(2, 3, b"\xe2", "plain", False, b"\xe2"), mtpref.RunEnded("length")]
    given = Run(run._decoder, [1], iter(events))
    assert list(given.stream()) == ["\u00e4<", "\ufffd"]
    shown = given._repr_html_()
    assert "&lt;" in shown
    assert "\u00e4<" not in shown


def test_a_model_a_session_and_a_run_say_what_they_are():
    model = mtpref.load()
    session = model.new_session(64)
    run = model.generate("def f(x):", mtpref.Options(n_predict=4), session=session)
    assert repr(run).startswith("<mtpref.Run: not begun, ")
    run.finish()
    assert re.search(r"ended \(length\), \d+ \+ 4 tokens, \d+ of \d+ drafted tokens accepted, text '", repr(run))
    assert re.search(r"LanguageModel 'mtpref-tiny': 4 layers, 2048 tokens, an MTP head, ggml numerics", repr(model))
    assert re.search(r"Session: \d+ of 64 positions used, checkpoints at \[\d", repr(session))


BAD_ARGUMENTS = [
    ({"prompt": None}, "prompt: None is out of place, expected a text, token ids or a ChatPrompt"),
    ({"prompt": b"abc"}, "prompt: a bytes object is out of place"),
    ({"prompt": [1.5]}, "prompt: 1.5 is no integer, expected an integer$"),
    ({"prompt": [True]}, "prompt: True is no integer"),
    ({"prompt": np.array([0.5])}, "prompt: 0.5 is no integer"),
    ({"prompt": [1 << 70]}, "prompt: token id .* is not in the vocabulary, expected 0 .. 2047"),
    ({"options": {"n_predict": 3}}, "options: a dict object is out of place, expected Options"),
    ({"n_ctx": -1}, "n_ctx: -1 is out of range"),
    ({"n_ctx": 1.5}, "n_ctx: 1.5 is no integer"),
    ({"state": 3}, "state: 3 is out of place, expected ModelState"),
    ({"session": 3}, "session: 3 is out of place, expected Session"),
    ({"drafter": mtpref.NoDrafter}, "drafter: the class NoDrafter is out of place"),
]


@pytest.mark.parametrize(("values", "told"), BAD_ARGUMENTS)
def test_generate_refuses_what_it_cannot_take_at_the_call(values, told):
    with pytest.raises(mtpref.SettingError, match=f"^{told}"):
        mtpref.load().generate(**{"prompt": "a"} | values)


def test_generate_does_not_pass_over_what_contradicts_the_session():
    model = mtpref.load()
    session = model.new_session(64)
    with pytest.raises(mtpref.SettingError, match="state: it is given beside a session"):
        model.generate("a", session=session, state=model.core.new_state(64))
    with pytest.raises(mtpref.SettingError, match="n_ctx: 32, expected that of the session, 64"):
        model.generate("a", session=session, n_ctx=32)
    model.generate("a", mtpref.Options(n_predict=1), session=session, n_ctx=64).finish()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"path": ""}, "path: '' is out of place, expected a file's name"),
        ({"path": 0}, "path: 0 is out of place"),
        ({"model_draft": 3}, "model_draft: 3 is out of place"),
        ({"contract": None}, "contract: None is out of place, expected a string or MtpContract"),
        ({"rope": 3}, "rope: 3 is out of place, expected RopeOverrides"),
        ({"use_kernels": "no"}, "use_kernels: 'no' is out of place, expected True or False"),
        ({"mtp": "no"}, "mtp: 'no' is out of place"),
        ({"repack": 0}, "repack: 0 is out of place"),
        ({"check_tensors": None}, "check_tensors: None is out of place"),
    ],
)
def test_load_refuses_what_it_cannot_take(values, told):
    with pytest.raises(mtpref.SettingError, match=f"^{told}"):
        mtpref.load(**values)


def test_what_a_model_makes_is_validated_where_it_is_built(tmp_path):
    model = mtpref.load()
    for call, told in [
        (lambda: model.new_session(-1), "n_ctx: -1 is out of range"),
        (lambda: model.new_session(checkpoint_every=-1), "checkpoint_every: -1 is out of range"),
        (lambda: mtpref.Session(model.core, n_checkpoints="x"), "n_checkpoints: 'x' is no integer"),
        (lambda: model.core.new_state("x"), "n_ctx: 'x' is no integer"),
        (lambda: model.new_session(8).save(3), "path: 3 is out of place"),
        (lambda: model.load_session(3), "path: 3 is out of place"),
        (lambda: model.encode(3), "text: 3 is out of place"),
        (lambda: model.encode("a", limit="x"), "limit: 'x' is no integer"),
        (lambda: model.chat_template(3), "template: 3 is out of place"),
        (lambda: model.chat_prompt("hi", template="chatml"), "messages: 'hi' is out of place"),
        (lambda: model.chat_prompt([], template="chatml", now=3), "now: 3 is out of place, expected datetime"),
    ]:
        with pytest.raises(mtpref.SettingError, match=f"^{told}"):
            call()
