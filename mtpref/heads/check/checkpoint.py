"""A checkpoint folder before conversion: is its head there, declared, and of one convention?

Owns the static findings on folders. Small ones are converted to a temporary file, which is then checked as any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtpref.base.errors import MtprefError
from mtpref.files.gguf import printable
from mtpref.heads.check import marks
from mtpref.heads.check.findings import Finding
from mtpref.heads.convert import Settings, convert, plan
from mtpref.heads.hf import Checkpoint, Inventory, TextConfig, gguf_tensors, open_checkpoint, refuse_apart, text_config
from mtpref.heads.hf.checkpoint import INDEX

SMALL = 256 << 20  # bytes of tensors that are converted and run without being asked
MAX_NAMED = 8


def check_folder(path: str | Path, *, fast: bool, check_file: Callable[[Path], list[Finding]]) -> list[Finding]:
    """Findings on a folder; check_file: what is done with the converted file."""
    with open_checkpoint(path) as checkpoint:
        config = text_config(checkpoint.config, checkpoint.label)
        refuse_apart(config, checkpoint.label)
        found = gguf_tensors(checkpoint, config)
        findings = folder_findings(checkpoint, config, found)
        findings += marks.of_checkpoint(checkpoint.config, checkpoint.metadata, bool(found.n_mtp))
        n_bytes = sum(np.prod(part.shape, dtype=np.int64) * 4 for part in found.parts)
        unread, broken = _trunk_faults(checkpoint, found)
        alone = bool(found.n_mtp and unread and not broken)  # the head can be judged, the trunk cannot
        settings = Settings(outtype="bf16", which="mtp" if alone else "both" if found.n_mtp else "trunk")
        try:
            notes = _planned(checkpoint, settings)
            findings += [Finding("tokenizer-note", "conversion", note) for note in notes]
        except MtprefError as error:
            return [
                *findings,
                Finding("cannot-convert", "conversion", str(error).removeprefix(f"{checkpoint.label}: ")),
            ]
    if fast or n_bytes > SMALL or found.unmapped or alone:
        why = "--fast" if fast else "larger than 256 MiB: convert it and check the file"
        why = "the trunk cannot be read; `mtpref graft` puts the head into a GGUF of it" if alone else why
        return [*findings, Finding("not-run", "the head", why)]
    with tempfile.TemporaryDirectory(prefix="mtpref-check-") as folder:
        target = Path(folder) / "converted.gguf"
        try:
            convert(path, target, settings)
        except MtprefError as error:
            return [*findings, Finding("cannot-convert", "conversion", str(error))]
        if found.n_mtp:
            findings += check_file(target)
    return findings


def folder_findings(checkpoint: Checkpoint, config: TextConfig, found: Inventory) -> list[Finding]:
    """What config.json and the names, shapes and types of the tensors say."""
    return _inventory(config, found) + _stored(checkpoint, found)


def _planned(checkpoint: Checkpoint, settings: Settings) -> list[str]:
    """What a conversion says of the pre-tokenizer; MtprefError for whatever it refuses, but tensors without a place."""
    made = plan(checkpoint, replace(settings, allow_unmapped=True), needs_shared=settings.which != "mtp")
    return [note for note in made.notes if "pre-tokenizer" in note]


def _stored(checkpoint: Checkpoint, found: Inventory) -> list[Finding]:
    """How tensors are stored, and which of them cannot be read."""
    out = [Finding("stored-as", f"{n} tensors", kind) for kind, n in sorted(checkpoint.formats().items())]
    out += [Finding("head-beside", name, f"not in {INDEX}, and it is read") for name in checkpoint.unlisted]
    unread, _ = _trunk_faults(checkpoint, found)
    if unread:
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        out.append(Finding("trunk-unread", "conversion", f"{unread[0]}{more}"))
    return out


def _trunk_faults(checkpoint: Checkpoint, found: Inventory) -> tuple[list[str], list[str]]:
    """What is wrong with tensors of the trunk: those in a format that is not read, and the others."""
    foreign = {tensor.fault for tensor in map(checkpoint.stored, checkpoint.names) if tensor.is_foreign}
    texts = [text for is_head, text in found.faults if not is_head] + list(found.shared_faults.values())
    return [text for text in texts if text in foreign], [text for text in texts if text not in foreign]


def _inventory(config: TextConfig, found: Inventory) -> list[Finding]:
    declared, hf = config.n_heads or 0, config.sheet.hf
    field, names = (hf.n_heads, f"{hf.head.format(il=config.n_layer, i=0)}*") if hf else ("", "")
    out = []
    if not found.n_mtp:
        id, text = ("head-dropped", f"{declared} declared, no {names} tensor there") if declared else (
            "head-absent", f"none declared, no {names} tensor there")  # fmt: skip
        out.append(Finding(id, field, text))
    elif not declared and hf is not None and hf.says_heads:
        out.append(Finding("config-undeclared", field, f"absent or 0, and {names} tensors are there"))
    if found.unmapped:
        named = ", ".join(printable(name) for name in found.unmapped[:MAX_NAMED])
        out.append(Finding("unmapped", f"{len(found.unmapped)} tensors", named))
    return out
