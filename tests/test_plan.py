"""The plan: its replay against real runs, its prices against a sum in plain words, its report and its refusals."""

import json
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import AdaptiveConfig, Decoder, Options, PolicyConfig, SamplingConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.front import cli
from mtpref.measure.bench.costs import Costs, CostSet, between
from mtpref.measure.plan import Continuation, Setting, Tally, plan, prompts_of, record, replay
from mtpref.measure.plan.price import all_accepted, milliseconds, round_cost
from mtpref.measure.plan.record import Drafted as Drafts
from mtpref.measure.plan.record import trims_of
from mtpref.measure.plan.render import few, lines, states_kept
from mtpref.measure.plan.report import Settings
from mtpref.measure.probe import Text
from mtpref.spec import P_ONE
from tests.micro_moe import standard
from tests.models import CONTRACTS, micro, prompt_of, with_eog, without_head

SETTINGS = [
    *(PolicyConfig(n_max=n) for n in (1, 2, 3, 5)),
    PolicyConfig(n_max=5, p_min=1 / 2),
    PolicyConfig(n_max=5, p_min=1 / 2, n_min=2),
    PolicyConfig(n_max=3, cooldown=1),
    PolicyConfig(n_max=3, cooldown=2, cooldown_after=2),
]
RULES = [
    AdaptiveConfig(),
    AdaptiveConfig(rule="heuristic"),
    AdaptiveConfig(rule="expected", draft_cost=1 / 4, row_cost=1 / 16),
]


def real_tally(model, text, setting, strategy="snapshot", sampling=None):
    """What the loop itself counts."""
    options = Options(
        n_predict=text.budget,
        spec_type="draft-mtp",
        policy=setting.policy,
        rollback=strategy,
        adaptive=setting.adaptive,
        sampling=sampling or SamplingConfig(),
    )
    decoder = Decoder(model, model.new_state(len(text.prompt) + text.budget + 20), options)
    rounds, steps = Counter(), Counter()
    for event in decoder.run(list(text.prompt)):
        if isinstance(event, Verified):
            rounds[len(event.draft_ids), event.n_accepted] += 1
        elif isinstance(event, Drafted):
            steps.update(range(len(event.steps)))
    s = decoder.statistics
    assert steps.total() == s.passes["mtp_draft"]
    return Tally(s.n_predict - text.n_before, rounds, steps, s.n_cooldown_rounds, True)


def recorded(model, n_predict=32, n_max=5, trims=("full",), sampling=None, seeds=(0, 1)):
    prompts = [("text", tuple(prompt_of(7, seed))) for seed in seeds]
    return record(model, prompts, trims_of(model, trims), n_max, n_predict, sampling)


# ---------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("accept", [30, 60, 90])
def test_the_replay_counts_what_a_run_counts(accept):
    model = micro(accept)
    for text in recorded(model, n_predict=24):
        for policy, rule in product(SETTINGS, RULES if accept == 60 else RULES[:1]):
            setting = Setting("full", policy, rule)
            assert replay(text, setting) == real_tally(model, text, setting), (policy, rule)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_it_does_so_under_every_contract(contract):
    model = micro(60, contract=contract)
    for text in recorded(model, seeds=(3,)):
        assert text.n_before == ("prompt_end=whole" in contract)
        for policy in SETTINGS[1:5]:
            setting = Setting("full", policy)
            assert replay(text, setting) == real_tally(model, text, setting), policy


def test_it_does_so_with_a_trimmed_head_and_every_strategy():
    model = micro(60)
    trims = trims_of(model, ["full", "128"])
    for text in recorded(model, trims=("full", "128")):
        for strategy in ("snapshot", "replay", "two-phase"):
            setting = Setting("first 128", PolicyConfig(n_max=3))
            assert replay(text, setting) == real_tally(trims[1].head, text, setting, strategy)


def test_it_does_so_for_a_text_that_ends_early():
    model = micro(90)
    [text] = recorded(model, seeds=(0,))
    model = with_eog(model, text.ids[11], text.ids[17])
    [short] = recorded(model, seeds=(0,))
    assert len(short.ids) < short.budget
    for policy, rule in product(SETTINGS, RULES):
        setting = Setting("full", policy, rule)
        assert replay(short, setting) == real_tally(model, short, setting), (policy, rule)


def test_it_does_so_for_a_sampled_text_under_match():
    model, sampling = micro(60), SamplingConfig(temp=0.8, seed=5)
    for text in recorded(model, sampling=sampling):
        setting = Setting("full", PolicyConfig(n_max=3))
        assert replay(text, setting) == real_tally(model, text, setting, sampling=sampling)


def test_residual_is_refused_because_its_text_depends_on_the_drafts():
    with pytest.raises(MtprefError, match="residual draws its drafts"):
        recorded(micro(60), sampling=SamplingConfig(temp=1.0, accept="residual"))


def test_what_is_recorded_is_what_a_run_drafts():
    model = micro(60)
    [text] = recorded(model, seeds=(2,))
    decoder = Decoder(
        model, model.new_state(60), Options(n_predict=32, spec_type="draft-mtp", policy=PolicyConfig(n_max=5))
    )
    for event in decoder.run(list(text.prompt)):
        if isinstance(event, Drafted):
            at = event.pos0 - (len(text.prompt) - 1)
            assert text.drafts["full"].ids[at][: len(event.ids)] == list(event.ids)


def test_a_draft_is_never_longer_than_the_budget_leaves():
    text = Continuation("t", (1, 2), (5, 6, 7), 0, 3, frozenset(), {"full": Drafts([[9, 9, 9]] * 3, [[P_ONE] * 3] * 3)})
    assert replay(text, Setting("full", PolicyConfig(n_max=3))).rounds == Counter({(2, 0): 1, (1, 0): 1, (0, 0): 1})


# ----------------------------------------------------------------------------------------------- price


COSTS = Costs(
    plain=10,
    verify={2: 12, 3: 14, 5: 18},
    verify_keep={2: 13, 3: 16, 5: 22},
    replay={1: 9, 2: 11},
    draft={100: 1, 300: 2},
    catch_up={1: 0.5, 2: 0.7},
    choose=0.25,
    checkpoint=0.125,
    restore=0.0625,
    round=0.03,
    token=0.01,
)


@pytest.mark.parametrize(
    ("strategy", "drafted", "accepted", "ms"),
    [
        ("snapshot", 0, 0, 10),
        ("snapshot", 2, 0, 16.25),
        ("snapshot", 3, 3, 19.25),
        ("replay", 2, 2, 14.125),
        ("replay", 2, 1, 14.125 + 0.0625 + 11),
        ("replay", 2, 0, 14.125 + 0.0625 + 9),
        ("two-phase", 2, 0, 10),
        ("two-phase", 2, 2, 30),
    ],
)
def test_what_a_round_costs(strategy, drafted, accepted, ms):
    assert round_cost(COSTS, strategy, drafted, accepted) == pytest.approx(ms, rel=1e-12)


def test_a_run_costs_its_rounds_its_draft_steps_and_the_rest():
    tally = Tally(7, Counter({(2, 1): 3, (0, 0): 1}), Counter({0: 3, 1: 3}), 0, True)
    drafted = 16.25 + 0.7 + 0.03 + 2 * 0.01
    plain = 10 + 0.5 + 0.03 + 0.01
    assert milliseconds(COSTS, "snapshot", tally, 200) == pytest.approx(3 * drafted + plain + 6 * 1.5, rel=1e-12)


def test_without_drafts_the_head_costs_nothing():
    tally = Tally(2, Counter({(0, 0): 2}), Counter(), 0, False)
    assert milliseconds(COSTS, "snapshot", tally, 100) == pytest.approx(2 * 10.04, rel=1e-12)


@pytest.mark.parametrize(("n", "ms"), [(1, 10), (2, 12), (4, 16), (5, 18), (7, 22)])
def test_costs_between_two_widths_lie_on_a_line(n, ms):
    assert COSTS.verify_at(n, keep=False) == ms


def test_a_line_never_goes_below_nothing():
    assert between({2: 4.0, 4: 1.0}, 9) == 0.0
    assert between({5: 3.0}, 1) == 3.0


def test_two_phase_never_beats_plain_decoding_and_snapshot_gives_n_plus_one_if_all_is_right():
    free = Costs(plain=1, verify={2: 1}, draft={1: 0})
    for n in range(1, 9):
        whole = all_accepted(1, n)
        assert whole.n_tokens / milliseconds(free, "two-phase", whole, 1) == 1
        assert whole.n_tokens / milliseconds(free, "snapshot", whole, 1) == n + 1


# ---------------------------------------------------------------------------------------------- report


@lru_cache
def some_texts(accept, seeds):
    return recorded(micro(accept), 24, 4, ("full", "128"), seeds=seeds)


def a_plan(costs=COSTS, seeds=range(11), accept=60, samples=()):
    trims = trims_of(micro(accept), ["full", "128"])
    texts = some_texts(accept, tuple(seeds))
    return plan(
        texts,
        trims,
        CostSet(costs, tuple(samples) or (costs,), "test"),
        Settings(n_max=4, p_mins=(0.0, 0.5), cooldowns=(1,)),
    )


def test_every_setting_is_in_the_table_and_the_best_is_the_fastest():
    found = a_plan()
    assert len(found.lines) == 2 * 4 * (2 + 1 + 2) * 3
    rates = [line.rate.value for line in [found.plain, *found.lines]]
    assert found.best.rate.value == max(rates)
    assert found.best.rate.low < found.best.rate.value < found.best.rate.high


def test_a_rate_is_tokens_by_time():
    found = a_plan()
    line = next(x for x in found.lines if x.strategy == "replay" and x.n == 3 and x.rule == "-")
    ms = milliseconds(COSTS, "replay", line.tally, 256 if line.setting.trim == "full" else 128)
    assert line.rate.value == pytest.approx(1000 * line.tally.n_tokens / ms)


def test_costs_decide_what_is_best():
    dear = Costs(plain=10, verify={2: 20, 9: 90}, draft={256: 10})
    assert a_plan(dear).best.flags == "--spec-type none"
    cheap = Costs(plain=10, verify={2: 10.1, 9: 10.8}, draft={256: 0.01})
    best = a_plan(cheap, accept=90).best
    assert best.n == 4
    assert best.strategy in ("snapshot", "replay")


def test_settings_that_chance_may_explain_are_said_to_be_alike():
    found = a_plan()
    assert found.best not in found.alike
    slow = Setting("full", PolicyConfig(n_max=4))
    away = next(x for x in found.lines if x.setting == slow and x.strategy == "two-phase")
    assert away not in found.alike


def test_uncertain_costs_widen_the_interval():
    shaken = [Costs(**{**COSTS.__dict__, "plain": COSTS.plain * f}) for f in (0.7, 1.0, 1.4)]
    sure, unsure = a_plan().best.rate, a_plan(samples=shaken).best.rate
    assert sure.value == unsure.value
    assert unsure.high - unsure.low > sure.high - sure.low


def test_fewer_than_ten_prompts_have_no_interval():
    found = a_plan(seeds=range(3))
    assert found.best.rate.low is None
    assert "no interval" in "\n".join(lines(found))


def test_acceptance_by_depth_is_the_share_of_right_prefixes():
    found = a_plan(seeds=range(2))
    texts = some_texts(60, (0, 1))
    right = [0] * 4
    counted = [0] * 4
    for text in texts:
        for at, ids in enumerate(text.drafts["full"].ids):
            own = text.ids[at : at + 4]
            for k in range(len(own)):
                counted[k] += 1
                right[k] += ids[: k + 1] == list(own[: k + 1])
    shares = [r / n for r, n in zip(right, counted, strict=True)]
    assert [e.value for e in found.acceptance["full"]] == pytest.approx(shares)


def test_ceilings_are_tokens_per_pass():
    found = a_plan()
    by_name = {c.name: c for c in found.ceilings}
    assert by_name["two-phase"].measured == pytest.approx([1.0] * 5)
    assert by_name["snapshot"].all_accepted == pytest.approx([1, 2, 3, 4, 5])
    for n in range(1, 5):
        assert by_name["replay"].measured[n] <= by_name["snapshot"].measured[n]
        assert by_name["snapshot, cooldown 1"].measured[n] <= by_name["snapshot"].measured[n]


def test_the_page_of_a_plan_says_what_it_was_made_of():
    text = "\n".join(lines(a_plan(), is_whole=True))
    for words in ("costs of test", "a_4", "n=4", "two-phase", "heuristic", "cooldown 1", "ceilings", "best: "):
        assert words in text


def test_a_plan_without_tokens_is_refused():
    with pytest.raises(MtprefError, match="nothing was generated"):
        plan([], trims_of(micro(60), ["full"]), CostSet(COSTS, (COSTS,), "test"), Settings(n_max=4))


# --------------------------------------------------------------------------------------------- prompts


def test_prompts_are_spread_over_their_texts():
    texts = [Text("a", tuple(range(100))), Text("b", tuple(range(1000, 1060)))]
    prompts = prompts_of(texts, 5, 20)
    assert [label for label, _ in prompts] == ["a", "a", "a", "b", "b"]
    assert [ids[0] for _, ids in prompts] == [0, 40, 80, 1000, 1040]
    assert all(len(ids) == 20 for _, ids in prompts)


def test_a_short_text_gives_fewer_prompts_and_none_twice():
    prompts = prompts_of([Text("a", tuple(range(30)))], 5, 20)
    assert [ids[0] for _, ids in prompts] == [0]


# ------------------------------------------------------------------------------------------ command line


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.py"
    path.write_text("def read_lines(path):\n    with open(path) as file:\n        return file.readlines()\n" * 12)
    return path


@pytest.fixture
def costs_file(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"schema": "mtpref-costs-1", "engine": "port", "plain": 10, "verify": {"2": 11, "4": 13},
                                "draft": {"2048": 1.5}}))  # fmt: skip
    return path


SMALL = ["--prompts", "2", "--prompt-tokens", "8", "-n", "8", "--spec-draft-n-max", "2", "--samples", "1"]


def test_the_command_prints_a_plan_and_says_what_it_assumed(text_file, costs_file, capsys):
    assert cli.main(["plan", "-f", str(text_file), "--costs", str(costs_file), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "costs of port" in out
    assert "not in the file, taken as: verify_keep = verify" in out
    assert "best: --spec-" in out


def test_json_costs_and_plot(text_file, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra: plot)")
    costs, plot = tmp_path / "mine.json", tmp_path / "plan.svg"
    arguments = ["plan", "-f", str(text_file), *SMALL, "--save-costs", str(costs), "--plot", str(plot), "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "mtpref-plan-1"
    assert found["best"]["tokens_per_second"]["value"] > 0
    assert plot.read_text().startswith("<?xml")
    saved = json.loads(costs.read_text())
    assert saved["schema"] == "mtpref-costs-1"
    assert {"1", "2", "3"} >= set(saved["verify"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trims", "full,0"], "--trims: 0 is out of range"),
        (["--trims", "full,full"], "given twice"),
        (["--p-mins", "a"], "--p-mins: 'a' is no list"),
        (["--p-mins", "1.5"], "--p-mins: 1.5 is out of range"),
        (["--cooldowns", "-1"], "--cooldowns: '-1' is no list"),
        (["--prompts", "0"], "--prompts: 0 is out of range"),
        (["--spec-draft-n-max", "17"], "--spec-draft-n-max: 17 is out of range"),
        (["--costs", "nowhere.json"], "--costs nowhere.json: cannot be read"),
        (["--costs", "a", "--save-costs", "b"], "both are given"),
        (["--plot", "plan.pdf"], "--plot: plan.pdf"),
        (["--temp", "1", "--spec-accept", "residual"], "residual draws its drafts"),
    ],
)
def test_bad_arguments_are_one_line(text_file, arguments, words, capsys):
    assert cli.main(["plan", "-f", str(text_file), "-n", "2", "--prompts", "1", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error


def test_a_model_without_a_head_is_refused():
    with pytest.raises(MtprefError, match="no MTP head"):
        recorded(without_head(micro(60)))


# ------------------------------------------------------------------------------------------ what is printed


def test_the_few_are_those_that_no_other_beats_and_plain_decoding():
    found = a_plan()
    chosen = few(found)
    everything = [found.plain, *found.lines]

    def price(line):
        return line.rate.value, -states_kept(line), -line.flags.count("--")

    for line in everything:
        beaten = any(
            all(a >= b for a, b in zip(price(x), price(line), strict=True)) and price(x) != price(line)
            for x in everything
        )
        kept = any(line is one for one in chosen)
        assert kept or beaten or line is found.plain
    assert found.plain in chosen
    assert found.best in chosen
    assert any(line.n for line in chosen)
    rates = [line.rate.value for line in chosen]
    assert rates == sorted(rates)


def test_the_table_has_the_ratio_aligned_digits_and_one_star():
    found = a_plan()
    for is_whole in (False, True):
        text = lines(found, is_whole=is_whole)
        start = next(i for i, line in enumerate(text) if line.startswith("tokens/s"))
        rows = list(text[start + 1 : start + 1 + len(few(found))])
        assert len({row.index(".") for row in rows if "." in row.split()[0]}) <= 1
        assert sum("*" in row.split()[0] for row in rows) == 1
        ratio = float(next(row for row in rows if "*" in row.split()[0]).split()[1])
        assert ratio == pytest.approx(found.best.rate.value / found.plain.rate.value, abs=0.005)
        assert any("mtpref plan --all" in line for line in text) == (len(few(found)) < 1 + len(found.lines))
        grid = [line for line in text if line.startswith(("full ", "first "))]
        assert bool(grid) == is_whole
        assert len({len(line.rstrip("* ")) for line in grid}) <= 2
    best_is_plain = replace(found, best=found.plain)
    assert any(row.startswith("tokens per second by") and "*;" in row for row in lines(best_is_plain, is_whole=True))


# ---------------------------------------------------------------------------------------------- a chain of heads

CHAIN = Costs(plain=10, verify={2: 12, 4: 16}, draft={100: 1.5, 50: 1.0}, chain={1: 1.5, 2: 2.5, 3: 3.0},
              catch_up={1: 0.5, 2: 1.25, 4: 2.75})  # fmt: skip


def chained(name="micro-step35-f32"):
    return load(standard(name), make_recipe("ggml"))


@pytest.mark.parametrize("setting", [PolicyConfig(n_max=n) for n in (1, 3)] + [PolicyConfig(n_max=3, p_min=0.6)])
def test_a_chains_record_gives_the_counts_of_a_run_step_by_step(setting):
    model = chained()
    for text in recorded(model, n_predict=16, n_max=5):
        assert {len(ids) for ids in text.drafts["full"].ids} <= {1, 2, 3}
        tally = replay(text, Setting("full", setting))
        assert tally == real_tally(model, text, Setting("full", setting))
        rows = sum((step + 1) * n for step, n in tally.steps.items())
        assert rows == run_rows(model, text, setting)


def run_rows(model, text, policy):
    """Rows that the heads drafted with."""
    decoder = Decoder(model, model.new_state(100), Options(n_predict=text.budget, policy=policy))
    for _ in decoder.run(list(text.prompt)):
        pass
    return decoder.statistics.tokens["mtp_draft"]


def test_a_step_of_a_chain_is_priced_by_its_rows():
    tally = Tally(9, Counter({(3, 1): 2, (1, 1): 1}), Counter({0: 3, 1: 2, 2: 2}), 0, True)
    rounds = 2 * (16 + 1.25) + 12 + 1.25
    steps = 3 * 1.5 + 2 * 2.5 + 2 * 3.0
    assert milliseconds(CHAIN, "snapshot", tally, 100) == pytest.approx(rounds + steps, rel=1e-12)
    trimmed = steps - 7 * 0.5
    assert milliseconds(CHAIN, "snapshot", tally, 50) == pytest.approx(rounds + trimmed, rel=1e-12)


def test_costs_that_do_not_say_a_chains_steps_take_them_from_catching_up_and_say_so():
    own = replace(CHAIN, chain={})
    found = CostSet(own, (own,), "port").for_chain(3)
    assert found.costs.chain == {1: 1.5, 2: 1.5 + 0.75 / 3, 3: 1.5 + 1.5 / 3}
    assert found.samples == (found.costs,)
    assert "chain = draft, and catch_up / 3 for further rows" in found.assumed
    assert CostSet(CHAIN, (CHAIN,), "port").for_chain(3).costs is CHAIN
    assert CostSet(own, (own,), "port").for_chain(0).costs is own


def test_a_plan_of_a_chain_stops_at_its_heads_and_says_so():
    model = chained()
    trims = trims_of(model, ["full"])
    own = replace(CHAIN, draft={256: 1.5})
    costs = CostSet(own, (own,), "port")
    found = plan(recorded(model, n_predict=12, n_max=3), trims, costs, Settings(n_max=8))
    assert max(line.n for line in found.lines) == found.settings.n_max == 3
    (note,) = found.notes
    assert all(words in note for words in ("n_max 8", "3 heads", "at most 3"))
    text = "\n".join(lines(found))
    assert note in text
    assert "step k over k rows (full): 1: 1.500, 2: 2.500, 3: 3.000" in text
    assert found.to_json()["notes"] == [note]
    expected = next(x for x in found.lines if x.rule == "expected" and x.n == 3)
    assert expected.setting.adaptive.draft_cost == pytest.approx((1.5 + 2.5 + 3.0) / 3 / 10)
    assert not plan(recorded(micro(60)), trims_of(micro(60), ["full"]), costs, Settings(n_max=5)).notes
