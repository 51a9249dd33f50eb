"""A report as a picture: acceptance by draft position, calibration, context and controls.

Owns the drawing. Needs matplotlib, which is an extra of the package.
"""

from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import write_whole
from mtpref.measure.probe.count import Estimate
from mtpref.measure.probe.report import Report

FORMATS = (".png", ".svg")


def check_plot(path: str) -> None:
    """Refuse early what would fail after the work.

    Errors   MtprefError for another ending, or without matplotlib
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise MtprefError(f"`plot`: {path} ends in none of {', '.join(FORMATS)}, expected one of them")
    if not Path(path).absolute().parent.is_dir():
        raise MtprefError(f"`plot`: {path}: the folder does not exist, expected one that does")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MtprefError(
            "`plot`: matplotlib is not installed, expected it; try: pip install matplotlib, or leave "
            "`plot` out: the terminal chart needs nothing"
        ) from None


def write_plot(report: Report, path: str) -> None:
    """Draw the report to a file, whole or not at all.

    Errors   MtprefError as `check_plot`, and for a target that cannot be written
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _by_draft(axes[0][0], report)
    _calibration(axes[0][1], report)
    _bars(axes[1][0], "a_1 by context", [(g.name, g.unconditional[0]) for g in report.contexts])
    controls = [("head", report.trunk.unconditional[0]), *((c.name, c.rate) for c in report.controls)]
    _bars(axes[1][1], "a_1 of the head and of controls", controls)
    figure.suptitle(f"{report.reached[0]} positions, contract {report.contract}, numerics {report.numerics}")
    kind = Path(path).suffix.lower()[1:]
    # Neither date nor program inside.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=120, metadata=metadata))


def _by_draft(axis: Any, report: Report) -> None:
    for group, label in ((report.trunk, "against the trunk"), (report.text, "against the text")):
        values, errors = _with_errors(group.unconditional)
        axis.errorbar(range(1, len(values) + 1), values, yerr=errors, marker="o", capsize=3, label=label)
    axis.set(title="unconditional acceptance", xlabel="draft position", ylim=(0, 1))
    axis.set_xticks(range(1, len(report.trunk.unconditional) + 1))
    axis.legend()


def _calibration(axis: Any, report: Report) -> None:
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for found in report.calibrations:
        bins = [b for b in found.bins if b.n]
        axis.plot([b.mean for b in bins], [b.right for b in bins], marker="o", label=found.what)
    axis.set(title="calibration", xlabel="the head's p", ylabel="share accepted", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize="small")


def _bars(axis: Any, title: str, rows: list[tuple[str, Estimate]]) -> None:
    values, errors = _with_errors([estimate for _, estimate in rows])
    axis.barh([name for name, _ in rows], values, xerr=errors, capsize=3)
    axis.invert_yaxis()
    axis.set(title=title, xlim=(0, 1))


def _with_errors(estimates: list[Estimate]) -> tuple[list[float], list[list[float]]]:
    values = [e.value or 0.0 for e in estimates]
    nan = float("nan")
    below = [nan if e.low is None else v - e.low for v, e in zip(values, estimates, strict=True)]
    above = [nan if e.high is None else e.high - v for v, e in zip(values, estimates, strict=True)]
    return values, [below, above]
