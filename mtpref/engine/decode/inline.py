"""The inline drafter: an MTP head that runs inside the trunk's pass, as in llama.cpp PR #20700.

Owns the choice of the row that the draft is read from. It must not know why a row was rejected. The right row gives
MtpDrafter's drafts of one token, bit for bit.

In the inline design every row of a trunk batch goes on through the head: row t pairs the token that the trunk chose
there with the trunk's hidden row t (S20), so the head's row t proposes the token after that choice. The draft is one
token, read from the last row of the last batch. After a rejection that row belongs to the rejected token: it continues
a text that was never written. Rows stay stale until a draft is accepted by chance, or a round decodes one token alone.
Where a rejected token is never run (two-phase), or the kept ones are run again (replay), the last row is the right one.

Here the head runs when the draft is read, not inside the trunk's pass. Only the last of its rows is used, and a row's
bits do not depend on when it is computed. The head's cells of rejected rows are cut, as those of the trunk's attention
(in the PR the head's KV is one more layer of the trunk's cache, and is cut with it).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtpref.base.errors import MtprefError
from mtpref.engine.decode.drafters import Draft, HeadDrafter, HeadRun, read_head
from mtpref.engine.decode.lengths import DraftLength
from mtpref.spec.state import ModelState

ROWS = ("last", "right")


@dataclass
class InlineDrafter(HeadDrafter):
    """Drafts of one token. One run each: the rejected rows of a run are not those of the next.

    row             last: the last row of the last batch (the PR's rule), stale after a rejection;
                    right: the row of the last token that was kept
    """

    row: str = "last"
    _stale_ids: list[int] = field(default_factory=list)
    _stale_rows: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def __post_init__(self) -> None:
        if self.row not in ROWS:
            raise MtprefError(f"inline drafter: row {self.row!r} is unknown, expected one of {', '.join(ROWS)}")

    @property
    def is_stale(self) -> bool:
        """Whether the row that the next draft is read from belongs to a rejected token."""
        return bool(self._stale_ids)

    def propose(self, state: ModelState, id_last: int, length: DraftLength) -> Draft:
        """The head's rows from the one of id_last on; the last of them proposes."""
        pos0, drafted = state.n_past, Draft()
        ids, hidden = [id_last], state.pending_h[None]
        if self.is_stale:
            ids, hidden = ids + self._stale_ids, np.concatenate([hidden, self._stale_rows])
        run = HeadRun(0, ids, hidden, pos0, pos0 + 1)
        read_head(self, state, run, length, drafted, self.cells(state, id_last))
        self.statistics.count_pass("mtp_draft", len(ids))
        self.model.recipe.steps.trim_mtp(state, pos0)
        return drafted

    def saw(self, row_ids: Sequence[int], hidden: NDArray[np.float32], n_kept: int) -> None:
        """Keep the rows from the first rejected one on: the trunk's choice there, and its hidden row."""
        if self.row == "right":
            return
        self._stale_rows = hidden[n_kept:].copy()
        self._stale_ids = list(row_ids[n_kept : len(hidden)])
