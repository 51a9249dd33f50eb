"""A plan as lines for people.

Owns the words. It must not compute anything but how a number is written.
"""

from collections.abc import Sequence

from mtpref.engine.decode import STRATEGIES
from mtpref.measure.bench import Costs
from mtpref.measure.plan.report import Line, Plan
from mtpref.measure.probe.count import Estimate
from mtpref.measure.probe.render import table


def lines(found: Plan, *, is_whole: bool = False) -> list[str]:
    """The plan. is_whole: with the rates of every setting, not of the few alone."""
    rates = [*_few(found), "", *_rates(found)] if is_whole else _few(found)
    return [*found.notes, *_costs(found), "", *_acceptance(found), "", *rates, "", *_ceilings(found), "", *_best(found)]


def _costs(found: Plan) -> list[str]:
    costs, n = found.costs.costs, found.settings.n_max
    about = f", {found.costs.about}" if found.costs.about else ""
    n_samples = len(found.costs.samples)
    how = "one sample" if n_samples == 1 else f"means of {n_samples} samples"
    head = f"costs of {found.costs.engine}{about}: milliseconds, {how}"
    out = [head, *table(["tokens", "verify", "keeping states", "without logits", "head"], _passes(costs, n))]
    drafts = ", ".join(f"{trim.name} ({trim.n_rows} rows) {costs.draft_at(trim.n_rows):.3f}" for trim in found.trims)
    out.append(f"draft step: {drafts}")
    if costs.chain:
        steps = ", ".join(f"{k}: {costs.step_at(k, found.trims[0].n_rows):.3f}" for k in range(1, n + 1))
        out.append(f"draft steps of the chain, step k over k rows ({found.trims[0].name}): {steps}")
    out.append(
        f"roll back: choose a state {costs.choose:.3f}, copy {costs.checkpoint:.3f}, put back {costs.restore:.3f}; "
        f"the rest of a round {costs.round:.3f}, of a token {costs.token:.3f}"
    )
    if found.experts:
        out.append(_experts(found))
    if found.costs.assumed:
        out.append("not in the file, taken as: " + ", ".join(found.costs.assumed))
    return out


def _experts(found: Plan) -> str:
    """Distinct experts a layer by tokens of a pass: of the texts, and of the passes that were timed."""
    theirs = found.experts_of_costs
    by_width = []
    for w, n in sorted(found.experts.items()):
        by_width.append(f"{w}: {n:.1f}" + (f" (timed with {theirs[w]:.1f})" if w in theirs else ""))
    taken = "passes are priced with those of the texts" if theirs else "the costs do not say theirs: taken as they are"
    return f"distinct experts a layer in a pass of so many tokens of the texts: {', '.join(by_width)}; {taken}"


def _passes(costs: Costs, n_max: int) -> list[list[str]]:
    return [
        [
            str(n),
            f"{costs.verify_at(n, keep=False):.3f}",
            f"{costs.verify_at(n, keep=True):.3f}",
            f"{costs.replay_at(n):.3f}",
            f"{costs.catch_up_at(n):.3f}",
        ]
        for n in range(1, n_max + 2)
    ]


def _acceptance(found: Plan) -> list[str]:
    prompts = "1 prompt" if found.n_prompts == 1 else f"{found.n_prompts} prompts"
    head = f"acceptance: {found.n_tokens} tokens after {prompts}; a_k, the first k drafted tokens are all right"
    rates = list(found.acceptance.values())
    rows = [[f"a_{k + 1}", *(own[k].shown(2) for own in rates)] for k in range(found.settings.n_max)]
    return [head, *table(["", *found.acceptance], rows)]


def few(found: Plan) -> list[Line]:
    """Plain decoding, and the settings that no other beats at once in speed, states kept and flags, slowest first; and
    the fastest one that drafts, if it is not among them."""
    everything = [found.plain, *found.lines]

    def price(line: Line) -> tuple[float, int, int]:
        return -(line.rate.value or 0.0), states_kept(line), line.flags.count("--")

    def is_beaten(line: Line) -> bool:
        own = price(line)
        others = (price(other) for other in everything if other is not line)
        return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others)

    chosen = [line for line in everything if line is found.plain or not is_beaten(line)]
    fastest = max(found.lines, key=lambda line: line.rate.value or 0.0)
    return sorted([*chosen, *([] if fastest in chosen else [fastest])], key=lambda line: line.rate.value or 0.0)


def states_kept(line: Line) -> int:
    """Copies of the recurrent state that a round keeps: what the roll back costs in memory."""
    return {"snapshot": line.n + 1, "replay": 1, "two-phase": 0}[line.strategy] if line.n else 0


def _few(found: Plan) -> list[str]:
    chosen = few(found)
    n = 1 + len(found.lines)
    plain = found.plain.rate.value or 0.0
    digits = _digits(chosen)
    rows = [
        [
            f"{line.rate.value or 0:.{digits}f}" + ("*" if line is found.best else " "),
            f"{(line.rate.value or 0) / plain:.2f}" if plain else "-",
            str(states_kept(line)),
            "plain decoding: --spec-type none" if line is found.plain else line.flags,
        ]
        for line in chosen
    ]
    return [
        f"tokens per second: {len(chosen)} of {n} settings, those that no other beats in speed, states kept and flags "
        "at once; * the best",
        *table(["tokens/s", "to plain", "states", "setting"], _aligned(rows, 3)),
        f"all {n}: mtpref plan --all" if len(chosen) < n else "",
    ]


def _digits(chosen: Sequence[Line]) -> int:
    """Decimals that show four figures of the fastest."""
    fastest = max((line.rate.value or 0.0 for line in chosen), default=0.0)
    return 0 if fastest >= 1000 else 1 if fastest >= 100 else 2


def _aligned(rows: list[list[str]], n: int, first: int = 0) -> list[list[str]]:
    """n columns of numbers from `first` on, points under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        [c.rjust(w) if first <= i < first + n else c for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]


def _rates(found: Plan) -> list[str]:
    n_max, digits = found.settings.n_max, _digits(found.lines)
    star = "*" if found.best is found.plain else ""
    out = [f"tokens per second by longest draft n; n = 0, plain decoding: {_rate(found.plain.rate)}{star}; * the best"]
    rows = []
    rules = list(dict.fromkeys(line.rule for line in found.lines))
    for trim in found.trims:
        for strategy in STRATEGIES:
            for rule in rules:
                own = [x for x in found.lines if (x.setting.trim, x.strategy, x.rule) == (trim.name, strategy, rule)]
                cells = [f"{x.rate.value or 0:.{digits}f}" + ("*" if x is found.best else " ") for x in own]
                rows.append([trim.name, strategy, rule, *cells])
    titles = ["head", "roll back", "rule", *(f"n={n}" for n in range(1, n_max + 1))]
    return [*out, *table(titles, _aligned(rows, n_max, 3))]


def _rate(rate: Estimate) -> str:
    ends = "" if rate.low is None or rate.high is None else f" [{rate.low:.4g}, {rate.high:.4g}]"
    return f"{rate.value or 0:.4g}{ends}"


def _ceilings(found: Plan) -> list[str]:
    titles = ["tokens per trunk pass", *(f"n={n}" for n in range(1, found.settings.n_max + 1))]
    rows = []
    for ceiling in found.ceilings:
        rows.append([ceiling.name, *_numbers(ceiling.measured[1:])])
        rows.append(
            [f"  if every draft were right (n={len(ceiling.all_accepted) - 1})", f"{ceiling.all_accepted[-1]:.2f}"]
        )
    width = len(titles)
    return [
        "ceilings: what no engine exceeds at this acceptance, drafts and roll back free, every pass at one price",
        *table(titles, [[*row, *[""] * (width - len(row))] for row in rows]),
    ]


def _numbers(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _best(found: Plan) -> list[str]:
    best, alike = found.best, found.alike
    out = [f"best: {best.flags}", f"  {_rate(best.rate)} tokens per second, {_times(found)}"]
    if best.rate.low is None:
        return [*out, "  no interval: it takes 10 prompts or more"]
    if not alike:
        return [*out, "  surely faster than every other setting of the table"]
    if best.n == 0:
        nearest = max(alike, key=lambda line: line.rate.value or 0.0)
        return [*out, f"  the drafts do not pay at these costs, as far as this shows; nearest: {nearest.flags} "
                f"({_rate(nearest.rate)})"]  # fmt: skip
    simplest = min(alike, key=_simplicity)
    return [*out, f"  not surely faster than {len(alike)} others; the simplest of them: {simplest.flags} "
            f"({_rate(simplest.rate)})"]  # fmt: skip


def _times(found: Plan) -> str:
    return "plain decoding" if found.best.n == 0 else f"{found.speed_up.shown(2)} times plain decoding"


def _simplicity(line: Line) -> tuple[int, int, int]:
    """Plain decoding first, then few flags, then short drafts."""
    return line.n > 0, line.flags.count("--"), line.n
