"""Entrance (a) as a report."""

from collections.abc import Sequence
from dataclasses import replace

from mtpref.base.errors import MtprefError
from mtpref.engine.model import Model
from mtpref.faults.diagnose.evidence_dump import DumpDiagnosis, Progress, gather, judge
from mtpref.faults.diagnose.hypotheses import with_kv, with_other_numerics
from mtpref.faults.diagnose.near_ties import is_told_elsewhere
from mtpref.faults.diagnose.port_tensors import PortTensors
from mtpref.faults.diagnose.report import Report, causes_of, listed, name_of
from mtpref.faults.diagnose.separate import telling_tensor

A_LOG = "a log of a run shows them: mtpref diagnose --log FILE"


def diagnose_dump(
    model: Model, port: PortTensors, ids: Sequence[int] | None = None, progress: Progress | None = None
) -> Report:
    """Which hypothesis reproduces the port's tensors.

    ids     the tokens, where the file does not hold them
    Errors  MtprefError without tokens, with tokens that contradict the file's, or where no tensor can be compared
    """
    tokens = _tokens(model, port, ids)
    found = judge(gather(model, port, tokens, progress))
    base = model if found.evidence.numerics == model.recipe.numerics else with_other_numerics(model)
    base = base if found.evidence.kv_type == model.kv_type else with_kv(found.evidence.kv_type)(base)
    if found.doubt is not None and not _is_told_elsewhere(base, port, found):
        found = replace(found, verdict="undecided", near=found.doubt)
    skipped = [f"{len(port.skipped)} tensors of the file are no plain floats: {listed(list(port.skipped))}"]
    return Report(
        "dump", found.verdict, _headline(found, model), _looked_at(found, port), causes_of(found.groups),
        found.divergence, _experiment(base, tokens, found, port), found.invisible, skipped * bool(port.skipped),
    )  # fmt: skip


def _is_told_elsewhere(model: Model, port: PortTensors, found: DumpDiagnosis) -> bool:
    harmless = next(group for group in found.groups if group.is_harmless)
    rivals = found.groups[0].best.hypothesis, harmless.best.hypothesis
    return is_told_elsewhere(model, port, found.evidence, found.floor, *rivals)


def _tokens(model: Model, port: PortTensors, ids: Sequence[int] | None) -> list[int]:
    tokens = port.ids if ids is None else [int(i) for i in ids]
    if tokens is None:
        raise MtprefError(
            f"{port.label}: no tensor `tokens` (I32) in it, expected the ids that the port ran; give the "
            "prompt with `prompt_ids`"
        )
    if port.ids is not None and tokens != port.ids:
        raise MtprefError(
            f"{port.label}: its {len(port.ids)} tokens are not the {len(tokens)} given, expected the "
            "same; leave `every prompt` away"
        )
    if not 1 <= len(tokens) <= model.config.n_ctx_train:
        raise MtprefError(f"{port.label}: {len(tokens)} tokens, expected 1 .. {model.config.n_ctx_train}, the context")
    return tokens


def _headline(found: DumpDiagnosis, model: Model) -> str:
    top = found.groups[0]
    if found.near is not None:
        name, token, gap = found.near
        return (
            f"CANNOT TELL: {found.divergence} parts after a near tie of a router or indexer ({name}, token {token}: "
            f"{gap:.1e}); another expert there, or other cells, are no mistake"
        )
    if found.verdict == "unknown":
        return f"NONE OF THE KNOWN: no hypothesis reproduces {found.divergence}"
    if found.verdict == "healthy":
        contract = model.contract_name
        name = contract if top.best.hypothesis.kind != "preset" else top.best.hypothesis.title.removeprefix("contract ")
        return f"HEALTHY, contract {name}: every tensor is what the healthy run gives, but for noise"
    return f"FOUND: {name_of(top.ids)}"


def _looked_at(found: DumpDiagnosis, port: PortTensors) -> list[str]:
    evidence = found.evidence
    lines = [
        f"{len(evidence.names)} tensors of {len(evidence.ids)} tokens, {len(evidence.hypotheses)} hypotheses",
        f"noise {found.floor:.1e} (relative squared distance), {evidence.numerics} numerics and "
        f"{evidence.kv_type} cells come nearest",
    ]
    if evidence.unknown:
        lines.append(f"not comparable: {listed(evidence.unknown)}")
    if evidence.impossible:
        lines.append(f"not possible in this model: {listed(evidence.impossible)}")
    return lines


def _experiment(model: Model, ids: list[int], found: DumpDiagnosis, port: PortTensors) -> str | None:
    top = found.groups[0]
    if found.near is not None:
        return (
            f"dump the tokens before number {found.near[1]}, or other ones: a choice within the noise decides nothing"
        )
    if found.verdict == "unknown":
        return f"look at what makes {found.divergence}: what is in front of it is right; is it the same model file?"
    if found.verdict == "healthy":
        return f"{len(found.invisible)} hypotheses leave no trace in a dump; {A_LOG}" if found.invisible else None
    best, same = top.best.hypothesis, []
    for rival in [*(s.hypothesis for s in top.members[1:]), found.groups[1].best.hypothesis]:
        telling = telling_tensor(model, ids, best, rival)
        if telling is None:
            same.append(rival.id)
            continue
        name, apart = telling
        where = "is in this dump and decided" if name in port.tensors else "is not in this dump: dump it too"
        also = f"; {listed([best.id, *same])} give the same tensors in any dump of a prompt" if same else ""
        return f"{best.id} against {rival.id}: {name} differs most (by {apart:.1e}); it {where}{also}"
    return f"{listed([best.id, *same])} give the same tensors in any dump of a prompt; {A_LOG}"
