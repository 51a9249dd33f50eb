"""Checks a plan against runs: what `mtpref plan` expects of settings, and what the loop then does on this machine.

    python tools/check_plan.py [-m MODEL] [-f FILE ...] [--prompts N] [--predict N] [--repeats N]

Costs are measured, the settings below are planned, and each is run on the same prompts, all in turn. The counts
(rounds, drafted, accepted, draft steps) must be equal. Rates are compared: `off` is planned / run - 1 of the whole time
of all runs, each planned with the mean of the costs measured right before and right after its turn, since the speed of
a shared machine drifts by more than a plan may be off.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import mtpref
from mtpref.base.events import Drafted, PromptProgress, Verified
from mtpref.engine.decode import AdaptiveConfig, Decoder, Options, PolicyConfig, most_drafted
from mtpref.engine.model import Model
from mtpref.front.cli.options import set_threads
from mtpref.measure.bench import Costs, measure_costs
from mtpref.measure.bench.costs import mean_costs
from mtpref.measure.plan import Continuation, Setting, Tally, prompts_of, record, replay
from mtpref.measure.plan.price import milliseconds
from mtpref.measure.plan.record import Trim, trims_of
from mtpref.measure.probe import read_texts


@dataclass(frozen=True)
class Case:
    """A setting under a strategy."""

    name: str
    strategy: str
    setting: Setting


def cases(trims: Sequence[Trim]) -> list[Case]:
    """The settings; where a chain of heads cannot draft so many tokens, those that it can."""
    full, trimmed = trims[0].name, trims[-1].name
    out = [Case("plain", "snapshot", Setting(full, PolicyConfig(n_max=0)))]
    for strategy in ("snapshot", "replay", "two-phase"):
        for n in (1, 2, 3, 4, 8):
            out.append(Case(f"{strategy} n={n}", strategy, Setting(full, PolicyConfig(n_max=n))))
    out += [
        Case(f"snapshot n=2, {trimmed}", "snapshot", Setting(trimmed, PolicyConfig(n_max=2))),
        Case("snapshot n=4, p_min 0.5", "snapshot", Setting(full, PolicyConfig(n_max=4, p_min=0.5))),
        Case("snapshot n=3, cooldown 1", "snapshot", Setting(full, PolicyConfig(n_max=3, cooldown=1))),
        Case(
            "snapshot n=4, heuristic",
            "snapshot",
            Setting(full, PolicyConfig(n_max=4), AdaptiveConfig(rule="heuristic")),
        ),
        Case(
            "snapshot n=8, expected", "snapshot", Setting(full, PolicyConfig(n_max=8), AdaptiveConfig(rule="expected"))
        ),
    ]
    return [case for case in out if most_drafted(trims[0].head, case.setting.policy.n_max) == case.setting.policy.n_max]


def run(model: Model, case: Case, text: Continuation, trims: Sequence[Trim]) -> tuple[float, Tally]:
    """Milliseconds of one run, its prompt apart, and what it counted."""
    policy, trim = case.setting.policy, next(t for t in trims if t.name == case.setting.trim)
    spec_type = "draft-mtp" if policy.n_max else "none"
    options = Options(
        n_predict=text.budget,
        spec_type=spec_type,
        policy=policy,
        rollback=case.strategy,
        adaptive=case.setting.adaptive,
    )
    decoder = Decoder(trim.head, model.new_state(len(text.prompt) + text.budget + 20), options)
    start, rounds, steps = 0.0, Counter[tuple[int, int]](), Counter[int]()
    for event in decoder.run(list(text.prompt)):
        if isinstance(event, PromptProgress):
            start = time.perf_counter()
        elif isinstance(event, Drafted):
            steps.update(range(len(event.steps)))
        elif isinstance(event, Verified):
            rounds[len(event.draft_ids), event.n_accepted] += 1
    ms = 1000 * (time.perf_counter() - start)
    s = decoder.statistics
    n_tokens = s.n_predict - text.n_before
    return ms, Tally(n_tokens, rounds, steps, s.n_cooldown_rounds, policy.n_max > 0)


def planned(costs: Costs, case: Case, tally: Tally, trims: Sequence[Trim]) -> float:
    n_rows = next(t for t in trims if t.name == case.setting.trim).n_rows
    return milliseconds(costs, case.strategy, tally, n_rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model")
    parser.add_argument("-f", "--file", nargs="+", default=["README.md", "docs/glossary.md"])
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--predict", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--n-max", type=int, default=8)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    set_threads(args.threads)
    model = mtpref.load(args.model).core
    trims = trims_of(model, ["full", str(min(32768, model.n_head_rows // 4))])
    prompts = prompts_of(read_texts(args.file, model.vocab), args.prompts, args.prompt_tokens)
    n_max = most_drafted(model, args.n_max)
    texts = record(model, prompts, trims, n_max, args.predict)
    context = texts[0].prompt + texts[0].ids[: args.predict // 2]
    table = cases(trims)
    heads = [trim.head for trim in trims]

    def measured(warm: bool = False) -> Costs:
        return measure_costs(model, context, heads, n_max, 1, warm=warm).costs

    spent: dict[str, list[tuple[float, float]]] = {case.name: [] for case in table}
    before = measured(warm=True)
    for i in range(args.repeats):
        for text in texts:
            turn = []
            for case in table:
                ms, tally = run(model, case, text, trims)
                assert tally == replay(text, case.setting), f"{case.name}: the run's counts differ from the plan's"
                turn.append((case, ms, tally))
            after = measured()
            costs, before = mean_costs((before, after)), after
            for case, ms, tally in turn:
                spent[case.name].append((planned(costs, case, tally, trims), ms))
        print(f"repeat {i + 1} of {args.repeats}", file=sys.stderr, flush=True)
    n_tokens = sum(len(text.ids) - text.n_before for text in texts)
    print(f"{args.model or 'embedded tiny model'}: {len(texts)} prompts, {n_tokens} tokens, {args.repeats} repeats")
    print(f"{'setting':28s} {'planned t/s':>12s} {'run t/s':>9s} {'off':>7s}")
    worst = 0.0
    for case in table:
        plan_ms, run_ms = (sum(values) / args.repeats for values in zip(*spent[case.name], strict=True))
        off = run_ms / plan_ms - 1
        worst = max(worst, abs(off))
        plan, real = 1000 * n_tokens / plan_ms, 1000 * n_tokens / run_ms
        print(f"{case.name:28s} {plan:12.1f} {real:9.1f} {100 * off:+6.1f}%")
    print(f"largest difference: {100 * worst:.1f} %; counts equal in every run")
    return int(worst > 0.10)


if __name__ == "__main__":
    sys.exit(main())
