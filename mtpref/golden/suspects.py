"""From the cases that fail to the faults that would fail just these.

Owns the ranking. What fails under which fault is golden/kill_matrix.json, which tools/kill_matrix.py measures.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mtpref.base.errors import MtprefError
from mtpref.base.typed import parse_json, read
from mtpref.files.doors import read_regular

N_SUSPECTS = 5
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class _Entry:
    killed_by: list[str]


@dataclass(frozen=True)
class Suspect:
    """A fault that could explain the cases that fail.

    likeness   cases that both fail, over cases that either fails (Jaccard), 1 for the very same set
    n_shared      failed cases that the fault explains; n_failed: of so many; n_fault: cases that the fault fails
    """

    fault: str
    likeness: float
    n_shared: int
    n_failed: int
    n_fault: int


def rank(root: Path, failed: Collection[str], passed: Collection[str]) -> list[Suspect]:
    """Faults by how alike their set of failing cases is to the port's, among the cases that were judged; best first.

    Empty where nothing failed, or the folder has no kill matrix.
    """
    try:
        raw = read_regular(root / "kill_matrix.json", "kill_matrix.json", "expected JSON", MAX_BYTES)
        table = read(dict[str, _Entry], parse_json(raw), "kill_matrix.json")
    except MtprefError:
        return []
    killed_by = {id: set(entry.killed_by) for id, entry in table.items()}
    mine, judged = set(failed), set(failed) | set(passed)
    found = []
    for fault, cases in killed_by.items():
        theirs = cases & judged
        if shared := len(theirs & mine):
            found.append(Suspect(fault, shared / len(theirs | mine), shared, len(mine), len(theirs)))
    return sorted(found, key=lambda s: (-s.likeness, s.fault))[:N_SUSPECTS]
