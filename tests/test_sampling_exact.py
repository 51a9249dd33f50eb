"""Both acceptance rules keep the target's distribution: proven on small vocabularies by taking every branch.

The real loop runs, drafter, gates, strategies and all. Only the entries that turn a uniform number into a decision are
replaced: each asks a tape, which takes every possible decision in turn and multiplies their probabilities. That an
entry makes these decisions with these probabilities is shown apart (last here, and in tests/test_spec_sampling.py).
"""

import itertools
from collections import defaultdict
from functools import lru_cache

import numpy as np
import pytest

from mtpref import spec
from mtpref.base.events import Token, Verified
from mtpref.engine.decode import Decoder, MtpDrafter, Options, PolicyConfig, SamplingConfig, ScriptedDrafter, Statistics
from mtpref.engine.decode.drafters import Draft
from mtpref.engine.decode.options import AdaptiveConfig
from mtpref.engine.decode.sampling import SAMPLERS, Sampler
from tests.samples import diagonal
from tests.toy import ToyModel, ToyState

PROMPT = [1, 0]
CLOSE = 1e-12
FILTERS = {"temp": 1.3, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
OPEN = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@lru_cache(maxsize=4096)
def remembered(row, chain):
    return spec.filtered(np.frombuffer(row, np.float32), chain)


def distribution(row, chain):
    return remembered(row.tobytes(), tuple(chain))


class Tape:
    """Decisions of one run: the first ones given, the first possible one from there on."""

    def __init__(self, given):
        self.given, self.taken, self.n_choices, self.weight = given, [], [], 1.0

    def choose(self, weights):
        possible = [i for i, w in enumerate(weights) if w > 0]
        at = len(self.taken)
        pick = self.given[at] if at < len(self.given) else 0
        self.taken.append(pick)
        self.n_choices.append(len(possible))
        self.weight *= weights[possible[pick]]
        return possible[pick]

    def draw(self, dist, u):
        return int(dist.ids[self.choose([float(p) for p in dist.p])])

    def match(self, id_draft, dist, u):
        return self.draw(dist, u)

    def accept(self, p, q, u):
        accepted = min(1.0, p / q)
        return bool(self.choose([1.0 - accepted, accepted]))

    def steps(self):
        return {
            "target_distribution": distribution,
            "draw": self.draw,
            "match_token": self.match,
            "bonus_token": self.draw,
            "accept_residual": self.accept,
        }


def every_branch(run):
    """(weight, run(tape)) for every sequence of decisions."""
    waiting = [[]]
    while waiting:
        given = waiting.pop()
        tape = Tape(given)
        result = run(tape)
        yield tape.weight, result
        for i in range(len(given), len(tape.taken)):
            waiting += [[*tape.taken[:i], pick] for pick in range(1, tape.n_choices[i])]


def target_law(model, config, text, length):
    """Text -> probability, by the target alone: ends at `length` tokens or after an end of generation."""
    law = {(): 1.0}
    for _ in range(length):
        longer = defaultdict(float)
        for tail, weight in law.items():
            if tail and tail[-1] in model.vocab.eog_ids:
                longer[tail] += weight
                continue
            row = model.target((*text, *tail))
            if config.ignore_eos:
                row = spec.without_ids(row[None], model.vocab.eog_ids)[0]
            dist = distribution(row, config.chain)
            for id, p in zip(dist.ids, dist.p, strict=True):
                longer[(*tail, int(id))] += weight * float(p)
        law = longer
    return law


def first_round(model, options, drafter):
    """The tokens of the first round."""
    tokens, n_due = [], None
    for event in Decoder(model, ToyState(), options, drafter).run(PROMPT):
        if isinstance(event, Verified):
            n_due = event.n_accepted + 1
        if isinstance(event, Token):
            tokens.append(event.id)
            if len(tokens) == n_due:  # the next round is not asked for: it would branch for nothing
                break
    return tuple(tokens)


def law_of(config, policy, n, *, n_vocab=3, rollback="two-phase", whole=False, length=None, eog=frozenset(),
           n_draft_vocab=None, draft_ids=None, drafter=None, adaptive=None, **faults):  # fmt: skip
    """Text of n + 1 tokens -> probability: the first round by the loop (whole: all rounds), the rest by the target."""
    length = length or n + 1
    options = Options(
        n_predict=length, spec_type="draft-mtp", policy=policy, rollback=rollback, n_draft_vocab=n_draft_vocab,
        sampling=config, draft_ids=draft_ids, adaptive=adaptive or AdaptiveConfig(),
    )  # fmt: skip
    law = defaultdict(float)
    plain = ToyModel(n_vocab, 1.0, eog)

    def run(tape):
        model = ToyModel(n_vocab, 1.0, eog, **{**tape.steps(), **faults})
        made = drafter(model) if drafter else None
        if whole:
            return tuple(e.id for e in Decoder(model, ToyState(), options, made).run(PROMPT) if isinstance(e, Token))
        return first_round(model, options, made)

    n_branches = 0
    for weight, tokens in every_branch(run):
        n_branches += 1
        if tokens[-1] in eog:
            law[tokens] += weight
            continue
        for tail, p in target_law(plain, config, (*PROMPT, *tokens), length - len(tokens)).items():
            law[(*tokens, *tail)] += weight * p
    assert n_branches > 1
    return dict(law), target_law(plain, config, tuple(PROMPT), length)


def distance(laws):
    """Total variation."""
    got, expected = laws
    return 0.5 * sum(abs(got.get(t, 0.0) - expected.get(t, 0.0)) for t in {*got, *expected})


def config_of(accept="residual", **values):
    return SamplingConfig(**{**OPEN, **values}, accept=accept)


# ---------------------------------------------------------------------------------------------- the proof

GATES = [
    (n, p_min, n_min)
    for n in range(1, 5)
    for p_min in (0.0, 0.45, 0.65, 1.0)
    for n_min in sorted({0, 1, 2, n})
    if n_min <= n and (n_min == 0 or p_min not in (0.0, 1.0))
]


@pytest.mark.parametrize(("n", "p_min", "n_min"), GATES)
def test_residual_keeps_the_targets_distribution_with_every_gate(n, p_min, n_min):
    policy = PolicyConfig(n_max=n, n_min=n_min, p_min=p_min)
    assert distance(law_of(config_of(), policy, n, n_vocab=3 if n < 4 else 2)) < CLOSE


@pytest.mark.parametrize(
    "order", list(itertools.permutations(SAMPLERS)), ids=lambda order: "-".join(x[:5] for x in order)
)
def test_residual_keeps_the_targets_distribution_with_filters_in_any_order(order):
    config = SamplingConfig(**FILTERS, samplers=order, accept="residual")
    policy = PolicyConfig(n_max=2, n_min=2, p_min=0.4)
    assert distance(law_of(config, policy, 2, n_vocab=4)) < CLOSE


@pytest.mark.parametrize("rollback", ["snapshot", "replay"])
@pytest.mark.parametrize("n", [1, 2])
def test_residual_keeps_the_targets_distribution_where_all_rows_are_run_at_once(n, rollback):
    assert distance(law_of(config_of(), PolicyConfig(n_max=n), n, rollback=rollback)) < CLOSE


@pytest.mark.parametrize(
    "trimmed",
    [{"n_draft_vocab": 1}, {"n_draft_vocab": 2}, {"draft_ids": (2, 0)}, {"draft_ids": (2, 1), "n_draft_vocab": 1}],
)
def test_residual_keeps_the_targets_distribution_with_a_trimmed_head(trimmed):
    policy = PolicyConfig(n_max=2, p_min=0.6)
    assert distance(law_of(config_of(), policy, 2, **trimmed)) < CLOSE


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_residual_keeps_the_targets_distribution_around_an_end_of_generation(ignore_eos):
    config = config_of(ignore_eos=ignore_eos)
    assert distance(law_of(config, PolicyConfig(n_max=3), 3, eog=frozenset({2}))) < CLOSE


@pytest.mark.parametrize("cooldown", [0, 1, 2])
@pytest.mark.parametrize("p_min", [0.0, 0.6])
def test_residual_keeps_the_distribution_of_whole_texts_of_many_rounds(cooldown, p_min):
    policy = PolicyConfig(n_max=2, n_min=2, p_min=p_min, cooldown=cooldown)
    assert distance(law_of(config_of(), policy, 2, n_vocab=2, whole=True, length=5)) < CLOSE


# Rules whose drafts differ in length from branch to branch: the test asserts that they do.
ADAPTIVE = [
    AdaptiveConfig(rule="heuristic"),
    AdaptiveConfig(rule="expected", draft_cost=1 / 16, row_cost=1 / 4),
    AdaptiveConfig(rule="expected", draft_cost=1 / 8, row_cost=1 / 8),
]


@pytest.mark.parametrize(("accept", "n_min"), diagonal(("residual", "match"), (0, 2)))
@pytest.mark.parametrize("rule", ADAPTIVE, ids=lambda rule: f"{rule.rule}-{int(rule.row_cost * 8)}")
def test_an_adaptive_length_keeps_the_distribution_of_whole_texts_of_many_rounds(accept, rule, n_min):
    policy, lengths = PolicyConfig(n_max=3, n_min=n_min), set()

    def watched(draft, target, eog_ids):
        lengths.add(len(draft))
        return spec.accept_greedy(draft, target, eog_ids)

    laws = law_of(config_of(accept), policy, 3, n_vocab=2, whole=True, length=5, adaptive=rule, accept_greedy=watched)
    assert distance(laws) < CLOSE
    assert len(lengths) > 1


def scripted(model):
    return ScriptedDrafter([2, 2, 0], [[True, False, True]], len(PROMPT), 3)


def test_residual_keeps_the_targets_distribution_for_a_drafter_without_a_choice():
    assert distance(law_of(config_of(), PolicyConfig(n_max=3), 3, drafter=scripted)) < CLOSE


@pytest.mark.parametrize("n", [1, 2, 3])
def test_match_keeps_the_targets_distribution(n):
    policy = PolicyConfig(n_max=n, n_min=1, p_min=0.4)
    for config in (config_of("match"), SamplingConfig(**FILTERS)):
        assert distance(law_of(config, policy, n)) < CLOSE


# ----------------------------------------------------------------------------------- what must fail it

FAR = 1e-3


class Changed(MtpDrafter):
    """A drafter whose finished draft is cut by `rule(draft)` tokens: what a gate must not do."""

    def __init__(self, model, sampler, rule):
        super().__init__(model, Statistics(), None, sampler)
        self.rule = rule

    def draft(self, state, id_last, length):
        out = super().draft(state, id_last, length)
        n = self.rule(out)
        return Draft(out.ids[:n], out.steps, out.dists[:n])


def changed(rule, config):
    return lambda model: Changed(model, Sampler(model, config), rule)


class Unfiltered(Sampler):
    """A sampler that filters the target and not the draft."""

    def draft(self, row, pos, pos0):
        return Sampler(self._model, SamplingConfig(**OPEN, accept="residual")).draft(row, pos, pos0)


def unfiltered_draft(model):
    return MtpDrafter(model, Statistics(), None, Unfiltered(model, SamplingConfig(**FILTERS, accept="residual")))


def test_a_gate_that_looks_at_the_drawn_token_is_found():
    """The token's own probability instead of the best candidate's: a drawn token is thrown away for being unlikely."""

    def n_likely(draft):
        return next((i for i, step in enumerate(draft.steps) if step.q < 0.4), len(draft.ids))

    for n in (1, 2, 3):
        laws = law_of(config_of(), PolicyConfig(n_max=n), n, drafter=changed(n_likely, config_of()))
        assert distance(laws) > FAR


def test_an_adaptive_rule_that_weighs_the_drawn_token_is_found():
    """The gain of a draft from the probabilities of the tokens that were drawn, its last token given up if too low."""

    def n_worth(draft):
        survival = 1.0
        for i, step in enumerate(draft.steps):
            survival *= step.q
            if survival < 0.3:
                return i
        return len(draft.ids)

    laws = law_of(config_of(), PolicyConfig(n_max=3), 3, drafter=changed(n_worth, config_of()))
    assert distance(laws) > FAR


def test_a_draft_dropped_for_being_short_is_found():
    """llama.cpp's n_min: whether a draft is short follows from the tokens drawn."""
    policy = PolicyConfig(n_max=2, p_min=0.6)
    drop = changed(lambda draft: len(draft.ids) if len(draft.ids) >= 2 else 0, config_of())
    assert distance(law_of(config_of(), policy, 2, drafter=drop)) > FAR
    keep = changed(lambda draft: len(draft.ids), config_of())
    assert distance(law_of(config_of(), policy, 2, drafter=keep)) < CLOSE


FAULTS = {
    "lax test": {"accept_residual": lambda p, q, u: p > 0},
    "greedy verify": {"accept_residual": lambda p, q, u: p > 0.5},
    "no residual": {"residual": lambda id, target, draft: target},
    "greedy bonus": {"bonus_token": lambda target, u: target.best()},
    "unfiltered draft": {"drafter": unfiltered_draft},
    "unfiltered target": {"target_distribution": lambda row, chain: spec.filtered(row, [])},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_entry_is_found_and_a_draft_of_other_filters_is_none(fault):
    config = SamplingConfig(**FILTERS, accept="residual")
    found = distance(law_of(config, PolicyConfig(n_max=2), 2, n_vocab=4, **FAULTS[fault]))
    assert (found < CLOSE) if fault == "unfiltered draft" else (found > FAR)


def test_match_faults_of_one_entry_are_found():
    lax = {"match_token": lambda id, target, u: id if target.prob(id) > 0.1 else spec.draw(target, u)}
    greedy = {"match_token": lambda id, target, u: target.best()}
    for fault in (lax, greedy):
        model_law = law_of(config_of("match"), PolicyConfig(n_max=2), 2, **fault)
        assert distance(model_law) > FAR


def test_a_dropped_bonus_token_costs_length_and_not_the_distribution():
    """One entry again: of a wholly accepted draft the last token is counted as the target's own."""

    def without_bonus(draft, target, eog_ids):
        return min(spec.accept_greedy(draft, target, eog_ids), max(0, len(draft) - 1))

    laws = law_of(config_of("match"), PolicyConfig(n_max=2), 2, rollback="snapshot", accept_greedy=without_bonus)
    assert distance(laws) < CLOSE
    options = Options(n_predict=9, sampling=config_of(), policy=PolicyConfig(n_max=2), rollback="snapshot")
    events = list(Decoder(ToyModel(3, accept_greedy=without_bonus), ToyState(), options).run(PROMPT))
    assert max(e.n_accepted for e in events if isinstance(e, Verified)) == 1
    assert not [e for e in events if isinstance(e, Token) and e.source == "bonus"]


# -------------------------------------------------------------------- the entries, against their weights


def test_the_acceptance_test_is_true_for_the_share_of_numbers_that_the_tape_gives_it():
    n = 1 << 10
    for p, q in itertools.product((0, 1, 5, 512, 1023, 1024), (1, 5, 300, 1024)):
        share = sum(spec.accept_residual(p / n, q / n, i / n) for i in range(n))
        assert abs(share - min(1.0, p / q) * n) < 1
        assert (share == 0) == (p == 0)


def test_a_draw_takes_the_share_of_numbers_that_the_tape_gives_it():
    dist = spec.filtered(ToyModel(5).target((1, 2)), [])
    n = 1 << 12
    drawn = np.bincount([spec.draw(dist, i / n) for i in range(n)], minlength=5)
    assert np.abs(drawn / n - dist.p).max() < 2 / n
