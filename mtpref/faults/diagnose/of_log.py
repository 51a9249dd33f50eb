"""Entrance (b) as a report."""

from collections.abc import Sequence

from mtpref.engine.model import Model
from mtpref.faults.diagnose.evidence_log import LogDiagnosis, Progress, Replayed, diagnose_runs
from mtpref.faults.diagnose.forced import Seen, is_drawn, near_gap_of
from mtpref.faults.diagnose.port_run import PortRun
from mtpref.faults.diagnose.report import Report, causes_of, listed, name_of
from mtpref.faults.diagnose.separate import telling_tensor
from mtpref.faults.diagnose.unexplained import Unexplained
from mtpref.look.llama_cpp.rounds import UNTOLD

SETTLES = (
    "what settles it: -m the very file that the port ran (another quantisation gives such tokens), a run with "
    "--temp 0, a longer log"
)


def diagnose_log(model: Model, runs: Sequence[PortRun], progress: Progress | None = None) -> Report:
    """Which hypothesis drafts and emits the port's very tokens.

    Errors  MtprefError where the runs cannot be the model's
    """
    found = diagnose_runs(model, runs, progress)
    return Report(
        "log", found.verdict, _headline(found), _looked_at(found), causes_of(found.groups),
        _divergence(found.divergence, found.verdict), _experiment(found), found.invisible,
    )  # fmt: skip


def _headline(found: LogDiagnosis) -> str:
    top = found.groups[0]
    if found.verdict == "undecided":
        return f"CANNOT TELL: {_doubt(found)}"
    if found.open is not None:
        return f"NONE OF THE KNOWN: {_open(found.open)}"
    if found.verdict == "healthy":
        own = found.base.contract_name
        contract = top.best.hypothesis.title.removeprefix("contract ") if top.best.hypothesis.kind == "preset" else own
        what = "drafted token" if all(map(is_drawn, found.runs)) else "token"
        return f"HEALTHY, contract {contract}: every {what} is what the healthy run gives, but for near ties"
    return f"FOUND: {name_of(top.ids)}"


def _open(open: Unexplained) -> str:
    of = f"{open.n} of {open.n_all}"
    if open.kind == "target":
        return f"{of} emitted tokens are not the target's best under any hypothesis; was it run with --temp 0?"
    if open.kind == "length":
        return f"{of} drafts are longer than the settings allow"
    if open.kind == "p":
        return f"no hypothesis gives the port's probabilities: {of} are far off"
    return f"no hypothesis gives enough of the port's tokens: {of} drafted ones are left"


def _doubt(found: LogDiagnosis) -> str:
    """What is in doubt of a run that is healthy but for it."""
    seen, open = found.divergence, found.open
    where = "" if seen is None else f"; {_divergence(seen, found.verdict)}"
    if open is None:
        assert found.rival is not None
        gain = found.rival.log_likelihood - found.groups[0].best.log_likelihood
        return (
            f"{found.rival.hypothesis.id} explains more than healthy by {gain:.1f} nats, chance may do as much{where}"
        )
    things = {"target": "emitted tokens", "draft": "drafted tokens", "length": "lengths of drafts"}[open.kind]
    apart = "" if open.kind == "length" or seen is None else f", {seen.gap:.2g} standard deviations apart"
    return f"healthy but for {open.n} of {open.n_all} {things}{where}{apart}; no near tie, and too little to accuse"


def _looked_at(found: LogDiagnosis) -> list[str]:
    n_rounds, n_drafted = sum(len(run.rounds) for run in found.runs), sum(run.n_drafted for run in found.runs)
    n_accepted = sum(r.n_accepted for run in found.runs for r in run.rounds)
    base = found.base
    lines = [
        f"{len(found.runs)} runs, {n_rounds} rounds, {n_drafted} drafted tokens of which {n_accepted} were accepted",
        f"{len(found.replayed)} hypotheses, laid over {base.recipe.numerics} numerics and {base.kv_type} KV",
    ]
    lines += [f"its loop: {loop}" for loop in sorted({run.loop for run in found.runs} - {""})]
    best = found.replayed[found.groups[0].best.hypothesis.id]
    n_rerouted = sum(s.is_rerouted and not s.is_hit for s in best.seen)
    if n_rerouted:
        lines.append(
            f"{n_rerouted} tokens differ after a near tie of a router or indexer (gap below {near_gap_of(base):g}), "
            "which may have chosen another expert, or other cells"
        )
    drawn = sum(map(is_drawn, found.runs))
    if drawn:
        lines.append(f"{drawn} runs at a temperature: emitted tokens were drawn, and only drafts were looked at")
    if found.impossible:
        lines.append(f"not possible along these tokens: {listed(found.impossible)}")
    return lines


def _divergence(seen: Seen | None, verdict: str) -> str | None:
    if seen is None:
        return None
    what = {"draft": "drafted", "target": "emitted", "length": "drafted this many tokens:"}[seen.kind]
    whose = "the healthy run" if verdict in ("found", "undecided") else "the best hypothesis"
    return f"round {seen.round}: the port {what} {seen.port}, {whose} {seen.own}"


def _experiment(found: LogDiagnosis) -> str | None:
    if found.verdict == "undecided":
        return SETTLES
    if found.open is not None:
        greedy = "run it with --temp 0 (llama-server: temperature 0); " if found.open.kind == "target" else ""
        return greedy + (
            "check that -m is the very file that the port ran and that prompt ids and rounds are in order; then --dump"
        )
    if found.verdict == "healthy":
        return None
    rivals = [s.hypothesis for group in found.groups[:2] for s in group.members][:6]
    best = rivals[0]
    ids = [*found.runs[0].prompt_ids, *(i for r in found.runs[0].rounds for i in r.emitted if i != UNTOLD)][:64]
    same = []
    for rival in rivals[1:]:
        a, b = found.replayed[best.id], found.replayed[rival.id]
        telling = telling_tensor(found.base, ids, best, rival)
        if telling is not None:
            return f"{best.id} against {rival.id}: dump {telling[0]} (they differ by {telling[1]:.1e}) and use --dump"
        apart = _parted(a, b)
        if apart is not None:
            return f"{best.id} against {rival.id}: they part in {apart}; a longer log tells more"
        same.append(rival.id)
    return f"{listed([best.id, *same])} give the same tokens here and the same tensors: they may be one mistake"


def _parted(a: Replayed, b: Replayed) -> str | None:
    """Where two hypotheses draft differently along this log."""
    apart = [x for x, y in zip(a.seen, b.seen, strict=False) if x.kind == y.kind and x.own != y.own]
    return f"{len(apart)} of {len(a.seen)} tokens, first in round {apart[0].round}" if apart else None
