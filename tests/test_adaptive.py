"""Adaptive draft length: each rule against a model that is nothing but its words, in fractions; then in the loop."""

import re
import shlex
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtpref
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Token, Verified
from mtpref.engine.decode import STRATEGIES, AdaptiveConfig, Options, PolicyConfig, SamplingConfig
from mtpref.front import cli
from mtpref.spec import P_ONE
from mtpref.spec import policy as adaptive
from mtpref.spec.policy import MAX_SILENT, N_BINS, PRIOR, AdaptiveState, Chain, FixedAdaptive

HEURISTIC, EXPECTED = FixedAdaptive(rule="heuristic"), FixedAdaptive(rule="expected")
PAGE = (Path(__file__).parent.parent / "docs/adaptive.md").read_text(encoding="utf-8")
PROMPT = "Ruby wanted a drum."


# --------------------------------------------------------------------------------------------- heuristic


def naive_lengths(n_max, history):
    """The longest draft of each round. history: (drafted, accepted) where a round may draft, None where it may not."""
    lengths, length = [], n_max
    for outcome in history:
        lengths.append(length)
        if outcome is None or outcome[0] == 0:
            continue
        length = min(n_max, length + 2) if outcome[0] == outcome[1] else max(1, length - 1)
    return lengths


@pytest.mark.parametrize("n_max", range(1, 5))
def test_heuristic_follows_its_words_for_every_history_of_four_rounds(n_max):
    outcomes = [None, *((n, k) for n in range(n_max + 1) for k in range(n + 1))]
    for history in product(outcomes, repeat=4 if n_max < 4 else 3):
        state, lengths, real = AdaptiveState(), [], []
        for outcome in history:
            length = adaptive.adaptive_limit(HEURISTIC, state, n_max)
            lengths.append(length)
            n_drafted, n_accepted = outcome or (0, 0)
            n_drafted = min(n_drafted, length)
            n_accepted = min(n_accepted, n_drafted)
            real.append(None if outcome is None else (n_drafted, n_accepted))
            limit = 0 if outcome is None else n_max
            state = adaptive.after_adaptive_round(HEURISTIC, state, [P_ONE] * n_drafted, n_accepted, limit)
        assert lengths == naive_lengths(n_max, real), history


def test_a_limit_cut_by_the_budget_never_makes_the_next_draft_shorter_than_the_rule_says():
    state = AdaptiveState(length=4)
    assert adaptive.adaptive_limit(HEURISTIC, state, 2) == 2
    assert adaptive.after_adaptive_round(HEURISTIC, state, [P_ONE] * 2, 2, 2).length == 4
    assert adaptive.after_adaptive_round(HEURISTIC, state, [P_ONE] * 2, 1, 2).length == 3


# ---------------------------------------------------------------------------------------------- expected


class NaiveChain:
    """A round's expected tokens and cost, as fractions of a token and of a plain pass."""

    def __init__(self, draft, row):
        self.draft, self.row = draft, row
        self.alive, self.tokens, self.spent = Fraction(1), Fraction(1), Fraction(1)

    def wants_step(self, mean):
        return self.row + self.draft == 0 or self.alive * mean / (self.draft + self.row) > self.tokens / self.spent

    def wants_row(self, a):
        return self.row == 0 or self.alive * a / self.row > self.tokens / (self.spent + self.draft)

    def grow(self, a):
        self.alive *= a
        self.tokens += self.alive
        self.spent += self.draft + self.row


counts = st.lists(st.tuples(st.integers(0, 63), st.floats(0, 1)), min_size=N_BINS, max_size=N_BINS)
costs = st.integers(1, 4 * 64).map(lambda k: k * (P_ONE // 64))
probabilities = st.lists(st.integers(0, P_ONE), min_size=1, max_size=6)


@given(counts, costs, costs, probabilities)
def test_expected_decides_as_the_fractions_do_but_for_a_hair(counts, draft, row, ps):
    """Survival is rounded down to 2**-32 at each token: decisions may differ only where both sides agree to 1e-7."""
    judged = tuple(n for n, _ in counts)
    state = AdaptiveState(judged=judged, accepted=tuple(int(n * share) for n, share in counts))
    cfg = FixedAdaptive(rule="expected", draft_cost=draft, row_cost=row)
    chain, naive = Chain(), NaiveChain(Fraction(draft, P_ONE), Fraction(row, P_ONE))
    mean = Fraction(PRIOR + sum(state.accepted), PRIOR + sum(judged))
    for p in ps:
        at = min(N_BINS - 1, p * N_BINS // P_ONE)
        a = (PRIOR * Fraction(p, P_ONE) + state.accepted[at]) / (PRIOR + judged[at])
        for got, wanted, rate in (
            (adaptive.worth_a_step(cfg, state, chain), naive.wants_step(mean), naive.alive * mean),
            (adaptive.worth_a_row(cfg, state, chain, p), naive.wants_row(a), naive.alive * a),
        ):
            sides = (rate / naive.row, naive.tokens / (naive.spent + naive.draft))
            steps = (rate / (naive.row + naive.draft), naive.tokens / naive.spent)
            is_close = any(abs(x - y) < 1e-6 * max(x, y, 1) for x, y in (sides, steps))
            assert got == wanted or is_close
        chain = adaptive.longer(state, chain, p)
        naive.grow(a)
        assert chain.n <= len(ps)
        assert 0 <= naive.alive - Fraction(chain.survival, P_ONE) < Fraction(8 * chain.n, P_ONE)


@pytest.mark.parametrize("p", [0, 1, P_ONE // 3, P_ONE - 1, P_ONE])
def test_a_probability_without_evidence_stands_for_itself_and_evidence_outweighs_it(p):
    assert abs(adaptive.calibrated(AdaptiveState(), p) - p) <= 1
    at = min(N_BINS - 1, p * N_BINS // P_ONE)
    for share, expected in ((0, 0.0), (56, 1.0)):
        judged = tuple(56 if i == at else 0 for i in range(N_BINS))
        state = AdaptiveState(judged=judged, accepted=tuple(share if i == at else 0 for i in range(N_BINS)))
        assert abs(adaptive.calibrated(state, p) / P_ONE - expected) <= PRIOR / (PRIOR + 56)


def test_only_judged_tokens_are_learnt_from_and_old_evidence_fades():
    ps = [P_ONE // 16 * (2 * i + 1) for i in range(4)]  # the middles of four bins
    state = adaptive.after_adaptive_round(EXPECTED, AdaptiveState(), ps, 2, 4)
    assert state.judged[:5] == (1, 1, 1, 0, 0)
    assert state.accepted[:5] == (1, 1, 0, 0, 0)
    for _ in range(500):
        state = adaptive.after_adaptive_round(EXPECTED, state, [P_ONE], 1, 1)
    assert 32 <= state.judged[-1] < adaptive.N_REMEMBERED
    for _ in range(60):
        state = adaptive.after_adaptive_round(EXPECTED, state, [P_ONE], 0, 1)
    assert adaptive.calibrated(state, P_ONE) < P_ONE // 2


def test_a_rule_that_has_lost_faith_tries_again_after_a_while():
    state = AdaptiveState(judged=(60,) * N_BINS, accepted=(0,) * N_BINS)
    tried = []
    for _ in range(3 * (MAX_SILENT + 1)):
        tries = adaptive.worth_a_step(EXPECTED, state, Chain())
        assert tries == adaptive.worth_a_row(EXPECTED, state, Chain(), 0)
        tried.append(tries)
        state = adaptive.after_adaptive_round(EXPECTED, state, [0] * tries, 0, 1)
    assert [i for i, t in enumerate(tried) if t] == [MAX_SILENT, 2 * MAX_SILENT + 1, 3 * MAX_SILENT + 2]


def test_rounds_that_may_not_draft_teach_nothing():
    for cfg in (HEURISTIC, EXPECTED):
        state = AdaptiveState(2, (3,) * N_BINS, (1,) * N_BINS, 5)
        assert adaptive.after_adaptive_round(cfg, state, [], 0, 0) == state


def test_n_min_is_never_undercut_once_a_draft_has_begun():
    chain = Chain(1, 0, P_ONE)
    assert not adaptive.worth_a_step(EXPECTED, AdaptiveState(), chain, 1)
    assert adaptive.worth_a_step(EXPECTED, AdaptiveState(), chain, 2)
    assert adaptive.worth_a_row(EXPECTED, AdaptiveState(), chain, 0, 2)
    assert not adaptive.worth_a_row(EXPECTED, AdaptiveState(), Chain(), 0, 2)


def test_free_drafts_are_as_long_as_allowed_and_dear_ones_do_not_happen():
    free, dear = (
        FixedAdaptive(rule="expected", draft_cost=0, row_cost=0),
        FixedAdaptive(rule="expected", draft_cost=2 * P_ONE, row_cost=2 * P_ONE),
    )
    assert adaptive.worth_a_row(free, AdaptiveState(), Chain(), 1)
    assert not adaptive.worth_a_step(dear, AdaptiveState(), Chain())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("always",), "AdaptiveConfig.rule: 'always'"),
        (("expected", -1), "AdaptiveConfig.draft_cost: -1"),
        (("expected", 0, 17 * P_ONE), "AdaptiveConfig.row_cost"),
    ],
)
def test_an_impossible_rule_is_refused_by_its_name(values, named):
    with pytest.raises(MtprefError, match=f"^{named}"):
        FixedAdaptive(*values)


# ---------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def tiny():
    return mtpref.load()


def texts(model, prompt, cfg, **values):
    public = AdaptiveConfig(rule=cfg.rule, draft_cost=cfg.draft_cost / P_ONE, row_cost=cfg.row_cost / P_ONE)
    options = Options(n_predict=48, adaptive=public, **values)
    run = model.generate(prompt, options, n_ctx=128)
    events = list(run)
    return run.ids, events, run


@pytest.mark.parametrize("cfg", [HEURISTIC, EXPECTED], ids=lambda cfg: cfg.rule)
@pytest.mark.parametrize("rollback", STRATEGIES)
def test_the_greedy_text_is_that_of_plain_decoding(tiny, cfg, rollback):
    plain = tiny.generate(PROMPT, Options(n_predict=48, spec_type="none"), n_ctx=128).finish().ids
    ids, events, run = texts(tiny, PROMPT, cfg, policy=PolicyConfig(n_max=6), rollback=rollback)
    assert ids == plain
    lengths = {len(e.ids) for e in events if isinstance(e, Drafted)}
    assert len(lengths) > 2
    assert max(lengths) <= 6
    assert run.statistics.n_trunk_passes < len(plain) or rollback == "two-phase"


@pytest.mark.parametrize("cfg", [HEURISTIC, EXPECTED], ids=lambda cfg: cfg.rule)
def test_match_gives_plain_samplings_text_at_the_same_seed(tiny, cfg):
    sampling = SamplingConfig(temp=0.9, seed=5)
    plain = tiny.generate(PROMPT, Options(n_predict=48, spec_type="none", sampling=sampling), n_ctx=128).finish().ids
    assert texts(tiny, PROMPT, cfg, policy=PolicyConfig(n_max=6), sampling=sampling)[0] == plain


def test_what_the_rule_remembers_is_what_the_run_showed(tiny):
    """The decoder's memory against the trace alone."""
    _, events, run = texts(tiny, PROMPT, EXPECTED, policy=PolicyConfig(n_max=4))
    judged, accepted, steps = 0, 0, []
    for event in events:
        if isinstance(event, Drafted):
            steps = event.steps
        if isinstance(event, Verified):
            judged += min(len(event.draft_ids), event.n_accepted + 1)
            accepted += event.n_accepted
            assert len(steps) - len(event.draft_ids) in (0, 1)
    state = run._decoder.length.learnt
    assert judged < adaptive.N_REMEMBERED  # nothing faded
    assert (sum(state.judged), sum(state.accepted)) == (judged, accepted)


def test_a_cost_changes_the_length_of_drafts(tiny):
    def mean_length(row):
        cfg = FixedAdaptive(rule="expected", draft_cost=0, row_cost=int(row * P_ONE))
        statistics = texts(tiny, PROMPT, cfg, policy=PolicyConfig(n_max=8))[2].statistics
        return statistics.n_drafted / statistics.n_rounds

    lengths = [mean_length(row) for row in (0.0, 0.2, 0.9)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 2 * lengths[-1]


def test_the_commands_of_the_page_give_the_text_of_plain_decoding(capfd):
    block = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1]
    assert cli.main(["generate", "-p", "Once upon a time", "-n", "48", "--spec-type", "none"]) == 0
    plain = capfd.readouterr().out
    for line in block.splitlines():
        program, *argv = shlex.split(line)
        assert (program, cli.main(argv)) == ("mtpref", 0)
        assert capfd.readouterr().out == plain


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--spec-adaptive-costs", "0.1,0.1"], "--spec-adaptive-costs: only the rule expected"),
        (["--spec-adaptive", "expected", "--spec-adaptive-costs", "0.1"], "--spec-adaptive-costs: '0.1' is not"),
        (
            ["--spec-adaptive", "expected", "--spec-adaptive-costs", "1,99"],
            "costs: 99 is out of range",
        ),
        (["--spec-adaptive", "expected", "--spec-adaptive-costs", "nan,1"], "--spec-adaptive-costs: 'nan,1' is not"),
    ],
)
def test_wrong_costs_are_refused_in_one_line(argv, named, capfd):
    assert cli.main(["generate", "-p", "x", "-n", "1", *argv]) == 2
    err = capfd.readouterr().err
    assert named in err
    assert "Traceback" not in err


def test_the_settings_of_a_run_name_the_rule(tiny):
    started = texts(tiny, PROMPT, HEURISTIC)[1][0]
    assert started.settings["adaptive"]["rule"] == "heuristic"
    assert [e for e in texts(tiny, PROMPT, HEURISTIC)[1] if isinstance(e, Token)]
