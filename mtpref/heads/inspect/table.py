"""What a model takes with and without its MTP head: on disk, mapped, read, in caches. `mtpref inspect --memory`.

From the header alone. Rows are the states of a head: none, in the file and off, in the file and on, in a file of its
own and on. The first lines are what mtpref's loader takes; the last are sums for any engine that maps its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpref.architectures import ARCHITECTURES
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, human_bytes, printable
from mtpref.heads.inspect.layers import read_layout
from mtpref.heads.inspect.memory import Sums, sums
from mtpref.heads.inspect.report import describe_file, open_to_inspect
from mtpref.heads.split import extract, strip
from mtpref.spec.state import MIN_CELLS

SCHEMA = "mtpref-memory-1"
N_CTX, N_MAX = 4096, 3  # what is assumed where nothing is said: tokens, tokens of a draft
MAX_CTX = 1 << 31
KV_TYPE = "F16"
STATES = {
    "none": "no head",
    "off": "in the file, off",
    "on": "in the file, on",
    "on-md": "in a file of its own, on",
}


def memory_table(path: str | Path, n_ctx: int = N_CTX, n_max: int = N_MAX) -> dict[str, Any]:
    """The table of a file; MtprefError for one that is no whole model, or whose head is not whole.

    n_ctx        tokens in the caches    n_max: of a draft
    files        bytes of the file as it is, of the trunk and of the head in files of their own (None: no head)
    trunk        bytes of the trunk's tensors: T    head: of the head's: H
    shared       of the trunk's tensors that the head uses, which a file of its own has once more: S
    kv_cell      bytes of a token in the trunk's KV (k_t) and in the head's (k_h), f16
    recurrent    one copy of the trunk's recurrent state: R
    rows         state; disk: bytes of each file; mapped, weights (read, and resident), kv, recurrent, rollback
    """
    if not 1 <= n_ctx <= MAX_CTX:
        raise MtprefError(f"`n_ctx`: {n_ctx} is out of range, expected 1 .. {MAX_CTX}")
    f, alone = open_to_inspect(path)
    with f:
        if alone is not None:
            raise MtprefError(alone)
        return _table(f, n_ctx, n_max)


def _table(f: GgufFile, n_ctx: int, n_max: int) -> dict[str, Any]:
    seen, _ = describe_file(f, None)
    if seen["what"] is not None:
        raise MtprefError(f"{f.label}: this is {seen['what']}")
    if not seen["supported"]:
        raise MtprefError(
            f"{f.label}: architecture {printable(str(seen['architecture']))!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}: the sizes of other caches are not known"
        )
    head = seen["mtp"]
    found = sums(f, read_layout(f, seen["architecture"], True, []), head)
    if found is None:
        raise MtprefError(
            f"{f.label}: its MTP head is {head['status']}, expected it whole or absent; mtpref check says more"
        )
    has_head = head["status"] == "present"
    files = {"bundled": f.n_bytes if has_head else None, "trunk": f.n_bytes, "head": None}
    total, shared = sum(t.n_bytes for t in f.tensors.values()), 0
    if has_head:
        files |= {"trunk": strip(f).file_bytes, "head": extract(f).file_bytes}
        used = {t["from"] for block in head["blocks"] for t in block["tensors"] if t["source"] == "fallback"}
        shared = sum(f.tensors[name].n_bytes for name in used if name in f.tensors and not name.startswith("blk."))
    trunk = total - found.weights
    return {
        "schema": SCHEMA,
        "path": str(f.path),
        "architecture": seen["architecture"],
        "n_ctx": n_ctx,
        "n_max": n_max,
        "kv_type": KV_TYPE,
        "files": files,
        "trunk": trunk,
        "head": found.weights,
        "shared": shared,
        "kv_cell": {"trunk": found.trunk_cell[KV_TYPE], "head": found.head_cell[KV_TYPE]},
        "recurrent": found.recurrent,
        "rows": _rows(found, files, trunk, shared, n_ctx, n_max),
    }


def _rows(
    found: Sums, files: dict[str, int | None], trunk: int, shared: int, n_ctx: int, n_max: int
) -> list[dict[str, Any]]:
    cells = n_cells(n_ctx)
    off, on = cells * found.trunk_cell[KV_TYPE], cells * (found.trunk_cell[KV_TYPE] + found.head_cell[KV_TYPE])

    def row(state: str, disk: Sequence[int | None], weights: int, kv: int, n_copies: int) -> dict[str, Any]:
        sizes = [n for n in disk if n is not None]
        return {
            "state": state,
            "disk": sizes,
            "mapped": sum(sizes),
            "weights": weights,
            "kv": kv,
            "recurrent": found.recurrent,
            "rollback": n_copies * found.recurrent,
        }

    rows = [row("none", [files["trunk"]], trunk, off, 0)]
    if files["bundled"] is not None:
        rows += [
            row("off", [files["bundled"]], trunk, off, 0),
            row("on", [files["bundled"]], trunk + found.weights, on, n_max),
            row("on-md", [files["trunk"], files["head"]], trunk + found.weights + shared, on, n_max),
        ]
    return rows


def n_cells(n_tokens: int) -> int:
    """KV cells that mtpref allocates for so many tokens: a power of two."""
    return max(MIN_CELLS, 1 << (n_tokens - 1).bit_length())


def render_table(table: dict[str, Any]) -> list[str]:
    """The table for people."""
    head = ("MTP head", "on disk", "mapped", "weights read", "KV", "state", "roll back")
    cells = [head, *(_cells(row) for row in table["rows"])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    shown = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    begin = f"{printable(table['path'], 400)}: {table['n_ctx']} tokens in the caches, KV in f16"
    drafts = f", drafts of up to {table['n_max']}" if table["files"]["head"] is not None else ""
    return [begin + drafts, *(f"  {line}" for line in shown), "", *_formula(table)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    sizes = [human_bytes(n) for n in row["disk"]]
    disk = sizes[0] if len(sizes) == 1 else f"{human_bytes(sum(row['disk']))} ({' + '.join(sizes)})"
    rest = (human_bytes(row[name]) for name in ("mapped", "weights", "kv", "recurrent", "rollback"))
    return (STATES[row["state"]], disk, *rest)


def _formula(table: dict[str, Any]) -> list[str]:
    cell = table["kv_cell"]
    sizes = f"T = {human_bytes(table['trunk'])}, R = {human_bytes(table['recurrent'])}, k_t = {cell['trunk']} B"
    if table["files"]["head"] is None:
        return [
            f"an engine that maps its file, for a context of n tokens: weights T, KV n k_t, state R for each sequence; "
            f"{sizes}"
        ]
    return [
        "an engine that maps its files, for a context of n tokens:",
        "  off   weights T, and up to H more where it reads the file ahead or locks it; KV n k_t; state R",
        "  on    weights T + H; KV n (k_t + k_h); state R, and R for each token of a draft that it can take back",
        "  -md   weights T + H + S, as the head's own file has what both use once more; the rest as on",
        f"  {sizes}, H = {human_bytes(table['head'])}, S = {human_bytes(table['shared'])}, k_h = {cell['head']} B",
    ]
