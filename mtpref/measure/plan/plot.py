"""A plan as a picture: tokens per second by draft length, per strategy and rule, and the ceilings.

Owns the drawing. Needs matplotlib, which is an extra of the package.
"""

from pathlib import Path
from typing import Any

from mtpref.engine.decode import STRATEGIES
from mtpref.files.gguf import write_whole
from mtpref.measure.plan.report import Line, Plan
from mtpref.measure.probe.plot import check_plot


def write_plot(found: Plan, path: str) -> None:
    """Draw the plan to FILE.png or FILE.svg, whole or not at all.

    Errors   MtprefError as `probe.plot.check_plot`, and for a target that cannot be written
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    full = found.trims[0].name
    own = [line for line in found.lines if line.setting.trim == full]
    _curves(left, found, [(s, [x for x in own if x.strategy == s and x.rule == "-"]) for s in STRATEGIES])
    left.set(title=f"strategies ({full} head)")
    way = found.best.strategy
    rules = list(dict.fromkeys(line.rule for line in found.lines))
    trimmed = [
        (t.name, [x for x in found.lines if x.setting.trim == t.name and x.strategy == way and x.rule == "-"])
        for t in found.trims[1:]
    ]
    ruled = [
        (rule if rule != "-" else f"{full} head", [x for x in own if x.strategy == way and x.rule == rule])
        for rule in rules
    ]
    _curves(middle, found, [*ruled, *trimmed])
    middle.set(title=f"rules and heads ({way})")
    for ceiling in found.ceilings:
        right.plot(range(len(ceiling.measured)), ceiling.measured, marker="o", label=ceiling.name)
    right.set(title="ceilings", xlabel="longest draft n", ylabel="tokens per trunk pass")
    right.legend(fontsize="small")
    kind = Path(path).suffix.lower()[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=120, metadata=metadata))


def _curves(axis: Any, found: Plan, curves: list[tuple[str, list[Line]]]) -> None:
    plain = found.plain.rate.value or 0.0
    axis.axhline(plain, color="0.6", linewidth=1, label="plain decoding")
    for name, own in curves:
        if not own:
            continue
        rates = [line.rate for line in own]
        values = [rate.value or 0.0 for rate in rates]
        errors = None
        if all(rate.low is not None for rate in rates):
            errors = [
                [v - (r.low or 0.0) for v, r in zip(values, rates, strict=True)],
                [(r.high or 0.0) - v for v, r in zip(values, rates, strict=True)],
            ]
        axis.errorbar([line.n for line in own], values, yerr=errors, marker="o", capsize=2, label=name)
    axis.set(xlabel="longest draft n", ylabel="tokens per second", ylim=(0, None))
    axis.legend(fontsize="small")
