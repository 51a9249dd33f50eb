"""A trace in one normal form for programs: a JSON object for each run's start, each round and each run's end.

Owns that form (docs/trace.md). Tokens stand with the draft and the verdict that they belong to.
"""

from dataclasses import asdict
from typing import Any

from mtpref.base.events import PromptProgress, RunEnded, RunStarted
from mtpref.look.trace.names import Names
from mtpref.look.trace.rounds import Round

SCHEMA = "mtpref-trace-show-1"


class Records:
    """Numbers the runs, and learns the texts of tokens on the way."""

    def __init__(self, names: Names | None = None) -> None:
        self.names = names or Names()
        self._n_runs = 0

    def record(self, item: RunStarted | PromptProgress | Round | RunEnded) -> dict[str, Any] | None:
        """None for progress: it says nothing that lasts."""
        if isinstance(item, PromptProgress):
            return None
        if isinstance(item, RunStarted):
            self._n_runs += 1
            names = ("model", "numerics", "contract", "settings", "prompt_ids", "n_reused")
            return {"schema": SCHEMA, "kind": "run", "run": self._n_runs} | {n: getattr(item, n) for n in names}
        if isinstance(item, RunEnded):
            return {"kind": "end", "run": self._n_runs, "reason": item.reason, "statistics": item.statistics}
        for token in item.tokens:
            self.names.learn(token.id, token.piece)
        return {"kind": "round", "run": self._n_runs} | self._round(item)

    def _round(self, r: Round) -> dict[str, Any]:
        d, v, b = r.drafted, r.verified, r.rolled_back
        return {
            "round": r.number,
            "pos0": d.pos0 if d else v.pos0 if v else None,
            "id_last": d.id_last if d else None,
            "n_cooldown": d.n_cooldown if d else 0,
            "n_accepted": v.n_accepted if v else None,
            "draft": [self._drafted(r, i) for i in range(len(d.ids))] if d else [],
            "not_proposed": [asdict(step) for step in d.steps[len(d.ids) :]] if d else [],
            "target": [self._target(r, i) for i in range(len(v.target_ids))] if v else [],
            "rolled_back": {k: x for k, x in asdict(b).items() if k != "round"} if b else None,
            "tokens": [
                {"pos": t.pos, "id": t.id, "text": _text(t.piece), "source": t.source, "is_eog": t.is_eog, "u": t.u}
                for t in r.tokens
            ],
        }

    def _drafted(self, r: Round, i: int) -> dict[str, Any]:
        d, v = r.drafted, r.verified
        assert d is not None
        step = d.steps[i] if i < len(d.steps) else None
        rank = step.candidates.index(d.ids[i]) if step is not None and d.ids[i] in step.candidates else None
        return {
            "pos": d.pos0 + 1 + i,
            "id": d.ids[i],
            "text": _text(self.names.piece(d.ids[i])),
            "p": step.p[rank] if step is not None and rank is not None else None,
            "rank": rank,
            "q": step.q if step is not None else None,
            "u": step.u if step is not None else None,
            "verdict": v.verdicts[i] if v is not None and i < len(v.verdicts) else None,
        }

    def _target(self, r: Round, i: int) -> dict[str, Any]:
        v = r.verified
        assert v is not None
        draw = asdict(v.draws[i]) if v.draws else None
        return {"pos": v.pos0 + 1 + i, "id": v.target_ids[i], "text": _text(self.names.piece(v.target_ids[i])),
                "margin": v.margins[i], "is_near_tie": v.near_ties[i], "draw": draw,
                **({"router_gap": v.router_gaps[i]} if v.router_gaps else {})}  # fmt: skip


def _text(piece: bytes | None) -> str | None:
    return None if piece is None else piece.decode("utf-8", "backslashreplace")
