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
from mtpref.heads.hf import Checkpoint, Inventory, TextConfig, gguf_tensors, open_checkpoint, text_config

SMALL = 256 << 20  # bytes of tensors that are converted and run without being asked
MAX_NAMED = 8


def check_folder(path: str | Path, *, fast: bool, check_file: Callable[[Path], list[Finding]]) -> list[Finding]:
    """Findings on a folder; check_file: what is done with the converted file."""
    with open_checkpoint(path) as checkpoint:
        config = text_config(checkpoint.config, checkpoint.label)
        found = gguf_tensors(checkpoint, config)
        findings = _inventory(config, found)
        findings += marks.of_checkpoint(checkpoint.config, checkpoint.metadata, bool(found.n_mtp))
        n_bytes = sum(np.prod(part.shape, dtype=np.int64) * 4 for part in found.parts)
        settings = Settings(outtype="bf16", which="both" if found.n_mtp else "trunk")
        try:
            findings += [Finding("tokenizer-note", "conversion", note) for note in _planned(checkpoint, settings)]
        except MtprefError as error:
            return [
                *findings,
                Finding("cannot-convert", "conversion", str(error).removeprefix(f"{checkpoint.label}: ")),
            ]
    if fast or n_bytes > SMALL or found.unmapped:
        why = "--fast" if fast else "larger than 256 MiB: convert it and check the file"
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


def _planned(checkpoint: Checkpoint, settings: Settings) -> list[str]:
    """What a conversion says of the pre-tokenizer; MtprefError for whatever it refuses, but tensors without a place."""
    made = plan(checkpoint, replace(settings, allow_unmapped=True))
    return [note for note in made.notes if "pre-tokenizer" in note]


def _inventory(config: TextConfig, found: Inventory) -> list[Finding]:
    declared = config.n_heads or 0
    out = []
    if not found.n_mtp:
        id, text = ("head-dropped", f"{declared} declared, no mtp.* tensor there") if declared else (
            "head-absent", "none declared, no mtp.* tensor there")  # fmt: skip
        out.append(Finding(id, "mtp_num_hidden_layers", text))
    elif not declared:
        out.append(Finding("config-undeclared", "mtp_num_hidden_layers", "absent or 0, and mtp.* tensors are there"))
    if found.unmapped:
        named = ", ".join(printable(name) for name in found.unmapped[:MAX_NAMED])
        out.append(Finding("unmapped", f"{len(found.unmapped)} tensors", named))
    return out
