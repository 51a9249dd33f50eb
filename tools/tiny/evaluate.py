"""What torch measures on held-out text: losses, and the agreement of the MTP block with the trunk, teacher-forced.

a_s is the share of positions where chain depth s picks the trunk's own argmax, every earlier draft step being
the text itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .model import TinyModel
from .text import Tokens


@torch.no_grad()
def teacher_forced(
    model: TinyModel, held_out: Tokens, code_share: float, seq_len: int = 512, n_seq: int = 32
) -> dict[str, float]:
    """Losses per token and agreement a1..a3 over windows of held-out text: code_share 0 stories, 1 code."""
    hits, counts = [0.0] * 3, [0] * 3
    loss_trunk = loss_mtp = 0.0
    for window in torch.from_numpy(held_out.batch([1], n_seq, seq_len + 1, code_share)):
        ids, targets = window[None, :-1], window[1:]
        hidden = model.model(ids)
        logits = model.logits(hidden)
        loss_trunk += float(F.cross_entropy(logits[0], targets)) / n_seq
        for level, out in enumerate(model.draft_hidden(ids, hidden, 3)):
            scores = model.logits(out)
            if level == 0:
                loss_mtp += float(F.cross_entropy(scores[0], targets)) / n_seq
            same = (scores.argmax(-1) == logits.argmax(-1))[0, level:]
            hits[level] += float(same.sum())
            counts[level] += len(same)
    rates = {f"a{level + 1}": hits[level] / counts[level] for level in range(3)}
    return {"loss_trunk": loss_trunk, "loss_mtp": loss_mtp, **rates, "positions": counts[0]}
