"""Checks of the loop: text with drafts is text without, whatever is drafted and however it is rolled back."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mtpref.engine.decode import STRATEGIES, Options, PolicyConfig, SamplingConfig, ScriptedDrafter
from mtpref.look.selftest.bench import Bench, Failed, Outcome, Skipped

SEED = 20231
SAMPLING = SamplingConfig(temp=0.8, seed=SEED)
# Which of the drafted tokens are right, over and over: whole drafts, partial ones, none, so that every kind of roll
# back occurs.
SCRIPT = [[True, False, True], [False], [True, True, True], [True, True, False], [False, True, True]]


def plain(bench: Bench, sampling: SamplingConfig) -> Outcome:
    """Decoding without drafts."""
    n = bench.size.n_predict
    return bench.run(Options(n_predict=n, spec_type="none", sampling=sampling))


def made_drafts(bench: Bench) -> str:
    """Drafts that are right and wrong by a script: no head is needed, and every roll back is exercised."""
    bench.say("plain decoding")
    expected = plain(bench, SamplingConfig())
    # After the end of the text the script needs tokens too; which ones does not matter.
    known = [*expected.ids, *bench.prompt]
    runs = []
    for rollback in STRATEGIES:
        bench.say(f"made drafts, roll back by {rollback}")
        drafter = ScriptedDrafter(known, SCRIPT * bench.size.n_predict, len(bench.prompt), bench.model.n_vocab)
        options = Options(n_predict=bench.size.n_predict, rollback=rollback, policy=PolicyConfig(n_max=3))
        found = bench.run(options, drafter)
        _expect_equal(f"roll back by {rollback}", found, expected)
        runs.append(found)
    return _told(expected, runs, f"by {', '.join(STRATEGIES)}")


def mtp_drafts(bench: Bench) -> str:
    """The MTP head's drafts: each roll back, each draft length, cooldown, p_min."""
    _need_head(bench)
    expected = plain(bench, SamplingConfig())
    longest = max(bench.size.draft_lengths)
    settings: list[tuple[str, PolicyConfig]] = [
        *((rollback, PolicyConfig(n_max=longest)) for rollback in STRATEGIES),
        *(("snapshot", PolicyConfig(n_max=n)) for n in bench.size.draft_lengths if n != longest),
        *([("snapshot", PolicyConfig(n_max=longest, cooldown=1))] if bench.size.is_full else []),
        ("replay", PolicyConfig(n_max=longest, cooldown=2, p_min=0.5)),
    ]
    runs = []
    for rollback, policy in settings:
        what = _describe(rollback, policy)
        bench.say(f"MTP drafts, {what}")
        found = bench.run(Options(n_predict=bench.size.n_predict, policy=policy, rollback=rollback))
        _expect_equal(what, found, expected)
        runs.append(found)
    whole = {run.whole for run in runs if run.n_past == runs[0].n_past}
    if len(whole) > 1:
        raise Failed("the head's state differs between settings that give the same text, expected equal bits")
    return _told(expected, runs, f"in {len(settings)} settings")


def match_at_a_seed(bench: Bench) -> str:
    """Sampling: by `match` the drawn text is that of plain sampling, token for token."""
    _need_head(bench)
    expected = plain(bench, SAMPLING)
    runs = []
    for rollback in _some(bench):
        bench.say(f"match, roll back by {rollback}")
        found = bench.run(Options(n_predict=bench.size.n_predict, rollback=rollback, sampling=SAMPLING))
        _expect_equal(f"match, roll back by {rollback}", found, expected)
        runs.append(found)
    return _told(expected, runs, f"at temperature {SAMPLING.temp:g}, seed {SEED}")


def residual_at_a_seed(bench: Bench) -> str:
    """Sampling: `residual` keeps the distribution, not the text; but the text may not depend on the roll back."""
    _need_head(bench)
    sampling = replace(SAMPLING, accept="residual")
    runs = []
    for rollback in _some(bench):
        bench.say(f"residual, roll back by {rollback}")
        runs.append(bench.run(Options(n_predict=bench.size.n_predict, rollback=rollback, sampling=sampling)))
        _expect_equal(f"residual, roll back by {rollback} against {next(iter(STRATEGIES))}", runs[-1], runs[0])
    return _told(runs[0], runs, f"by {', '.join(_some(bench))}")


def _some(bench: Bench) -> list[str]:
    """The ways to roll back; --quick leaves out the last."""
    return list(STRATEGIES) if bench.size.is_full else list(STRATEGIES)[:2]


def _need_head(bench: Bench) -> None:
    if not bench.model.has_mtp:
        raise Skipped("the file has no MTP head")


def _describe(rollback: str, policy: PolicyConfig) -> str:
    more = f", cooldown {policy.cooldown}" if policy.cooldown else ""
    return f"drafts of up to {policy.n_max}, roll back by {rollback}{more}" + (", p_min 0.5" if policy.p_min else "")


def _expect_equal(what: str, found: Outcome, expected: Outcome) -> None:
    """The same ids, the same margin at every position, the same state of the trunk.

    A margin is the difference of two logits, as a float64: wrong state shows in it long before a token changes.
    """
    if found.ids != expected.ids:
        at = next((i for i, (a, b) in enumerate(zip(found.ids, expected.ids, strict=False)) if a != b), None)
        where = f"token {at} is {found.ids[at]}, not {expected.ids[at]}" if at is not None else "another length"
        raise Failed(f"{what}: the text differs: {where}")
    both = found.margins.keys() & expected.margins.keys()
    wrong = sorted(pos for pos in both if found.margins[pos] != expected.margins[pos])
    if wrong:
        raise Failed(
            f"{what}: the same text, but the logits differ at {len(wrong)} of {len(both)} positions, first "
            f"at {wrong[0]}"
        )
    if found.n_past == expected.n_past and found.trunk != expected.trunk:
        raise Failed(f"{what}: the same text and logits, but another model state at the end")


def _told(expected: Outcome, runs: Sequence[Outcome], how: str) -> str:
    total: Counter[str] = Counter()
    for run in runs:
        total["drafted"] += run.statistics.n_drafted
        total["accepted"] += run.statistics.n_accepted
    return (
        f"{len(runs)} runs of {len(expected.ids)} tokens {how}: equal text, logits and state; "
        f"{total['accepted']} of {total['drafted']} drafted tokens accepted"
    )
