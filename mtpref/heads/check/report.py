"""A check from end to end: a path in, findings and a verdict out, as lines and as JSON.

Owns the order of the parts, the verdict and the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpref.architectures import ARCHITECTURES, describe_assistant
from mtpref.base.errors import MtprefError, NotFiniteError, UnsupportedError
from mtpref.engine.model import Model, load
from mtpref.files.chat import chat_prompt, find_template
from mtpref.files.finite_weights import check_tensors
from mtpref.files.gguf import GgufFile
from mtpref.files.identify import HEAD_ONLY
from mtpref.heads.check import marks, static
from mtpref.heads.check.against import Other, compare
from mtpref.heads.check.checkpoint import check_folder
from mtpref.heads.check.findings import CANNOT, CATALOGUE, FAIL, NOTE, OK, SYMPTOMS, WARNING, Finding
from mtpref.heads.check.running import Ran, run
from mtpref.heads.check.sampling import samples
from mtpref.heads.hf import is_checkpoint
from mtpref.heads.inspect.layers import Problem
from mtpref.heads.inspect.report import describe_file, open_to_inspect
from mtpref.heads.proof import BLOCK
from mtpref.measure.probe.controls import MAIN
from mtpref.measure.probe.count import difference, judge
from mtpref.measure.probe.walk import Progress, Variant, walk_all

SCHEMA = "mtpref-check-1"
BLOCKING = ("head-dropped", "head-absent", "head-apart", "head-undeclared", "head-incomplete", "heads-overcounted",
            "shards-missing",
            "cannot-load", "unsupported", "not-finite")  # fmt: skip
OF_NO_HEAD = ("head-absent", "head-dropped", "head-apart")  # of a trunk whose head is in a file of its own
LOCATED = ("norm-convention", "exchanged", "part-harmful", "trunk-part-harmful", "tensor-zero", "tensor-few-values",
           "tensor-doubled", "random-matrix")  # fmt: skip
MARKS = {OK: "ok     ", NOTE: "note   ", WARNING: "warning", CANNOT: "CANNOT ", FAIL: "FAIL   "}


@dataclass
class Report:
    """findings in the order in which they were made"""

    path: str
    against: str | None
    was_run: bool
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_sound(self) -> bool | None:
        """None: it cannot be judged."""
        found = {f.severity for f in self.findings}
        return False if FAIL in found else None if CANNOT in found else True

    @property
    def verdict(self) -> str:
        failed = [f for f in self.findings if f.severity == FAIL]
        if self.is_sound is None:
            kind = CATALOGUE[next(f.id for f in self.findings if f.severity == CANNOT)]
            return f"verdict: cannot judge: {kind.meaning}; {kind.remedy}"
        if failed:
            first = next((f for f in failed if f.id not in SYMPTOMS), failed[0])
            kind = CATALOGUE[first.id]
            where = f" ({first.what})" if first.id in LOCATED else ""
            return f"verdict: NOT sound: {kind.meaning}{where}; {first.remedy}"
        warned = [CATALOGUE[f.id] for f in self.findings if f.severity == WARNING]
        if warned:
            return f"verdict: the head is there; look at the warning: {warned[0].meaning}; {warned[0].remedy}"
        ran = "" if self.was_run else "; it was not run"
        alone = "" if self.against is not None else " that the file alone can show"
        return f"verdict: the head is there and nothing is wrong with it{alone}{ran}"

    def lines(self) -> list[str]:
        out = [f"{MARKS[f.severity]} {f.id}: {f.what}: {f.text}" for f in self.findings]
        return [*out, self.verdict]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "path": self.path,
            "against": self.against,
            "is_sound": self.is_sound,
            "was_run": self.was_run,
            "findings": [f.to_json() for f in self.findings],
            "verdict": self.verdict,
        }


def check_path(
    path: str | Path,
    *,
    model_draft: str | Path | None = None,
    against: str | Path | None = None,
    fast: bool = False,
    n_positions: int = 384,
    progress: Progress | None = None,
) -> Report:
    """Check a GGUF file or a checkpoint folder.

    model_draft  the head in a file of its own, which is checked with the trunk of `path`, whatever head that has
    against      another quantisation of the model, or the checkpoint it comes from
    fast         headers and samples alone, nothing is run and no tensor is read whole
    n_positions  at most so many of each of two built-in texts
    Errors       MtprefError for a path that is neither, and for other architectures
    """
    report = Report(str(path), None if against is None else str(against), False)
    settings = _Settings(model_draft, against, fast, n_positions, progress, report)
    if model_draft is not None and against is not None:
        raise MtprefError(
            "`against`: it compares one file, expected it without `model_draft`; compare trunk and head apart"
        )
    if is_checkpoint(path):
        if model_draft is not None:
            raise MtprefError(f"`model_draft`: {path} is a folder, expected a GGUF file; convert it")
        if against is not None:
            raise MtprefError(
                f"`against`: {path} is a folder, expected a GGUF file to compare; convert it, or give "
                "the folder as `against` of the file"
            )
        report.findings += check_folder(path, fast=fast, check_file=lambda file: _check_file(file, settings))
    else:
        report.findings += _check_file(Path(path), settings)
    return report


@dataclass
class _Settings:
    model_draft: str | Path | None
    against: str | Path | None
    fast: bool
    n_positions: int
    progress: Progress | None
    report: Report


def _check_file(path: Path, settings: _Settings) -> list[Finding]:
    file, alone = open_to_inspect(path)
    with file:
        if alone is not None and "general.architecture" not in file.kv:
            raise MtprefError(alone)  # a later file of a split model, whose keys are all in the first
        seen, problems = describe_file(file, alone)
        found, arch = _look(path, file, seen, problems, settings), seen["architecture"]
    if settings.model_draft is not None:
        found = [f for f in found if f.id not in OF_NO_HEAD] + _look_at_head(Path(settings.model_draft), arch, settings)
    if settings.fast:
        return [*found, Finding("not-run", "the head", "--fast")]
    blocking = next((f for f in found if f.id in BLOCKING), None)
    if blocking is not None:
        return [*found, Finding("not-run", "the head", f"{blocking.id} comes first")]
    return found + _run(path, settings)


def _look(
    path: Path, file: GgufFile, seen: dict[str, Any], problems: Sequence[Problem], settings: _Settings
) -> list[Finding]:
    """What needs no run."""
    if seen["what"] is not None:
        how = "; to check it with its trunk: mtpref check TRUNK -md HEAD" if seen["what"] == HEAD_ONLY else ""
        raise MtprefError(f"{path}: this is {seen['what']}{how}")
    if seen["architecture"] not in ARCHITECTURES:
        raise MtprefError(
            f"{path}: architecture {seen['architecture']!r}, expected {' or '.join(ARCHITECTURES)}; "
            "mtpref inspect shows what is in it"
        )
    found = check_header(file, seen, problems)
    il = _head_layer(seen)
    found += samples(file)
    if il is not None:
        sheet = ARCHITECTURES[seen["architecture"]]
        found += static.norms_never_loaded(file, sheet, il) + static.spectra(file, sheet, il)
        found += static.norms(file, sheet, il, [row["kind"] for row in seen["layers"]["blocks"]])
    if not settings.fast:
        found += _finite(file)
        if settings.against is not None:
            found += _compare(file, settings.against, static.stand_ins(seen))
    return found


def _look_at_head(path: Path, arch: str, settings: _Settings) -> list[Finding]:
    """What needs no run of a head in a file of its own: its tensors, types and values. arch: of the trunk"""
    file, alone = open_to_inspect(path)
    with file:
        seen, problems = describe_file(file, alone)
        own = seen["architecture"]
        if seen["what"] not in (None, HEAD_ONLY, describe_assistant(own)):
            raise MtprefError(f"{path}: this is {seen['what']}, expected a stand-alone MTP head")
        if own != arch and not (own in ARCHITECTURES and ARCHITECTURES[own].target == arch):
            text = f"{path.name} is of {own!r}, expected {arch!r}: the head belongs to another model"
            return [Finding("cannot-load", "general.architecture", text)]
        found = static.inventory(seen, problems)
        found += static.unreadable(file, {f.what for f in found if f.id == "unused-tensor"})
        il = _head_layer(seen)
        if il is not None:
            found += static.norms_never_loaded(file, ARCHITECTURES[arch], il)
        found += samples(file)
        return found if settings.fast else found + _finite(file)


def check_header(file: GgufFile, seen: dict[str, Any], problems: Sequence[Problem]) -> list[Finding]:
    """What the header alone says of an open model: no byte of a tensor is read.

    seen, problems   what inspect says of the file, whose architecture is known
    """
    found = static.inventory(seen, problems)
    found += static.counts(file) + static.trailing(file)
    found += static.unreadable(file, {f.what for f in found if f.id == "unused-tensor"})
    found += marks.of_gguf(seen["general"])
    found += static.tokenizer(file)
    return found


def _head_layer(seen: dict[str, Any]) -> int | None:
    blocks = seen["mtp"]["blocks"]
    return blocks[0]["index"] if blocks and seen["mtp"]["status"] in ("present", "incomplete") else None


def _finite(file: GgufFile) -> list[Finding]:
    """The first bad value of each tensor that has one."""
    found = []
    for name in file.tensors:
        try:
            check_tensors(file, [name])
        except MtprefError as error:
            found.append(Finding("not-finite", name, str(error).removeprefix(f"{file.label}: ")))
    return found


def _compare(file: GgufFile, against: str | Path, stand_ins: dict[str, str]) -> list[Finding]:
    other = Other(against)
    try:
        return compare(file, other, stand_ins)
    finally:
        other.close()


def _run(path: Path, settings: _Settings) -> list[Finding]:
    try:
        model = load(path, model_draft=settings.model_draft)
    except UnsupportedError as error:
        return [Finding("unsupported", "load", str(error))]
    except MtprefError as error:
        id = "d2t" if "d2t" in str(error) else "cannot-load"
        return [Finding(id, "load", str(error))]
    if not model.has_mtp:
        return [Finding("cannot-load", "load", "no head after loading, expected one")]
    found = [Finding("tokenizer-note", "tokenizer", note) for note in model.vocab.notes]
    found += _template(model)
    if model.has_assistant:
        text = (
            "the run of check is one of heads with cells of their own, and this one is an assistant; what it accepts: "
            "`mtpref probe -m TARGET -md ASSISTANT -f TEXT`"
        )
        return [*found, Finding("not-run", "the head", text)]
    try:
        ran, more = run(model, settings.n_positions, settings.progress)
    except NotFiniteError as error:
        return [*found, Finding("not-finite-run", "a built-in text", str(error))]
    settings.report.was_run = True
    found += more
    against = settings.against
    if against is not None and not is_checkpoint(against):
        found += _beside(ran, against, settings)
    return found


def _beside(ran: Ran, against: str | Path, settings: _Settings) -> list[Finding]:
    """Acceptance of both, each against its own trunk, at the same positions of the same text."""
    try:
        other = load(against)
    except MtprefError as error:
        return [Finding("not-run", "the other file", str(error))]
    if not other.has_mtp:
        return [Finding("not-run", "the other file", "it has no head")]
    windows = [seen.window for seen in ran.seen]
    if any(max(window.ids) >= other.n_vocab for window in windows):
        return []
    try:
        seen = walk_all(other, windows, [Variant(MAIN, other, len(ran.a))], settings.progress)
    except NotFiniteError as error:
        return [Finding("not-run", "the other file", str(error))]
    theirs = judge(seen, MAIN, "trunk", BLOCK)
    less = difference(ran.judged(), theirs)
    text = f"a_1 {ran.a[0].shown()} here, {theirs.unconditional()[0].shown()} there, difference {less.shown()}"
    id = "against-worse" if less.high is not None and less.high < 0 else "against-acceptance"
    return [Finding(id, f"{ran.n_positions} positions", text)]


def _template(model: Model) -> list[Finding]:
    """Render one user message; what the prompt ends in is what the first draft sees."""
    if "tokenizer.chat_template" not in model.kv:
        return []
    try:
        template = find_template(model.kv)
        prompt = chat_prompt(template, model.vocab, [{"role": "user", "content": "Hello"}], {}, None)
    except MtprefError as error:
        return [Finding("template", "tokenizer.chat_template", str(error))]
    return [Finding("template-ok", "tokenizer.chat_template", f"a prompt ends in {prompt.text[-24:]!r}")]
