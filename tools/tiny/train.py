"""Training of trunk and MTP block together, then of the MTP block alone, under a wall-clock or step budget.

Loss = L_0 + mtp_weight x (L_1 + chain_weight x (L_2 + L_3)).
L_0 is the trunk's cross entropy against the text; from 40 % of the joint phase on its target is 0.7 text + 0.3 the
head's (detached) distribution at the same position: mutual learning (Zhang et al., 2017).
L_s, of chain depth s, is the head's cross entropy against the trunk's (detached) distribution; in the first quarter
0.3 of its target is the text.
Batches depend on (seed, step) alone, so a run with ``steps`` set repeats exactly on one machine and thread count;
with a time budget the clock drives the schedule and two runs differ.
"""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtpref.base.errors import MtprefError

from .model import TinyModel
from .optim import make_optimizers

LOG_FIELDS = (
    "step", "phase", "elapsed_s", "tokens", "seq_len", "depth", "lr_scale", "loss_trunk", "loss_mtp",
    "val_loss_trunk", "val_loss_mtp", "val_a1", "val_a2", "val_a3",
)  # fmt: skip


@dataclass(frozen=True)
class TrainPlan:
    """Everything that shapes a run. Exactly one of ``budget_s`` and ``steps`` ends it."""

    seed: int = 1
    budget_s: float | None = None
    steps: int | None = None
    batch_tokens: int = 4096
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    mtp_weight: float = 0.5
    chain_weight: float = 0.5
    head_share: float = 1 / 7
    val_every_s: float = 180.0
    checkpoint_every_s: float = 300.0


@dataclass(frozen=True)
class Moment:
    """What the schedule says at one point of the run.

    seq_len: window length; depth: chain steps trained; hard_share: share of the text in the head's target;
    mutual_share: share of the head's distribution in the trunk's target; lr_scale: factor on both learning rates;
    head_only: the trunk is frozen.
    """

    seq_len: int
    depth: int
    hard_share: float
    mutual_share: float
    lr_scale: float
    head_only: bool


def moment_at(plan: TrainPlan, progress: float, step: int) -> Moment:
    """The schedule. ``progress`` is the part of the budget spent, 0 to 1.

    Joint phase: windows of 256, then 512, then 1024 tokens; chain depth 1, then 2, then 3; learning rate warmed up
    over 40 steps, flat to 30 % of the phase, then linear to 0.01. Head phase, the last ``head_share`` of the budget:
    only the MTP block learns, at depth 3, from half the learning rate down.
    """
    joint = progress / (1.0 - plan.head_share)
    if joint >= 1.0:
        left = (1.0 - progress) / plan.head_share
        return Moment(512, 3, 0.0, 0.0, 0.5 * max(0.01, left), True)
    return Moment(
        seq_len=256 if joint < 0.7 else 512 if joint < 0.92 else 1024,
        depth=1 if joint < 0.45 else 2 if joint < 0.75 else 3,
        hard_share=0.3 if joint < 0.25 else 0.0,
        mutual_share=0.0 if joint < 0.4 else 0.3,
        lr_scale=min(1.0, (step + 1) / 40) * min(1.0, max(0.01, (1.0 - joint) / 0.7)),
        head_only=False,
    )


def batch_at(stream: np.ndarray, seed: int, step: int, seq_len: int, batch_tokens: int) -> Tensor:
    """Windows of seq_len + 1 tokens at starts drawn from (seed, step); int64 (batch, seq_len + 1)."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(stream) - seq_len - 1, size=max(1, batch_tokens // seq_len))
    return torch.from_numpy(stream[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))


def soft_cross_entropy(logits: Tensor, target_log_probs: Tensor) -> Tensor:
    """Mean over rows of -sum p_target log softmax(logits): the KL divergence up to the target's entropy."""
    return -(target_log_probs.exp() * F.log_softmax(logits, -1)).sum(-1).mean()


def losses(model: TinyModel, window: Tensor, plan: TrainPlan, moment: Moment, cell_zero: bool) -> tuple[Tensor, Tensor]:
    """(trunk loss, MTP loss) of one batch; deeper chain steps are trained on half of the rows."""
    depth, hard_share = moment.depth, moment.hard_share
    ids, targets = window[:, :-1], window[:, 1:]
    with torch.set_grad_enabled(not moment.head_only):
        hidden = model.model(ids)
        logits = model.logits(hidden)
        loss_trunk = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    teacher = F.log_softmax(logits.detach(), -1)
    skip = 0 if cell_zero else 1
    n_chain = ids.shape[0] if depth == 1 else max(1, ids.shape[0] // 2)
    chain = model.draft_hidden(ids[:n_chain], hidden[:n_chain], depth, cell_zero)
    rows = chain[0]
    if n_chain < ids.shape[0]:
        rows = torch.cat([rows, *model.draft_hidden(ids[n_chain:], hidden[n_chain:], 1, cell_zero)], 0)

    def head_loss(out: Tensor, lo: int, n_seq: int) -> Tensor:
        scores = model.logits(out[:, lo:])
        soft = soft_cross_entropy(scores, teacher[:n_seq, skip + lo :])
        if hard_share == 0.0:
            return soft
        hard = F.cross_entropy(scores.flatten(0, 1), targets[:n_seq, skip + lo :].flatten())
        return hard_share * hard + (1.0 - hard_share) * soft

    loss_mtp = head_loss(rows, 0, ids.shape[0])
    if moment.mutual_share > 0.0:
        with torch.no_grad():
            peer = F.log_softmax(model.logits(rows), -1)
        mutual = soft_cross_entropy(logits[:, skip:], peer)
        loss_trunk = (1.0 - moment.mutual_share) * loss_trunk + moment.mutual_share * mutual
    for level in range(1, depth):
        loss_mtp = loss_mtp + plan.chain_weight * head_loss(chain[level], level, n_chain)
    return loss_trunk, loss_mtp


@torch.no_grad()
def validate(model: TinyModel, stream: np.ndarray, n_seq: int = 24, seq_len: int = 256) -> dict[str, float]:
    """Held-out losses and teacher-forced agreement with the trunk's argmax at chain depths 1..3."""
    starts = np.linspace(0, len(stream) - seq_len - 2, n_seq).astype(np.int64)
    window = torch.from_numpy(stream[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))
    ids, targets = window[:, :-1], window[:, 1:]
    hidden = model.model(ids)
    logits = model.logits(hidden)
    result = {"val_loss_trunk": float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))}
    choice = logits.argmax(-1)
    for level, out in enumerate(model.draft_hidden(ids, hidden, 3)):
        scores = model.logits(out)
        if level == 0:
            result["val_loss_mtp"] = float(F.cross_entropy(scores.flatten(0, 1), targets.flatten()))
        result[f"val_a{level + 1}"] = float((scores.argmax(-1) == choice)[:, level:].float().mean())
    return result


class Trainer:
    """One run: model, optimizers, clock, log. ``run`` returns when the budget is spent."""

    def __init__(self, model: TinyModel, train: np.ndarray, held_out: np.ndarray, plan: TrainPlan, work: Path) -> None:
        if (plan.budget_s is None) == (plan.steps is None):
            raise MtprefError("training: give either a time budget or a number of steps, not both and not neither")
        self.model, self.train, self.held_out, self.plan, self.work = model, train, held_out, plan, work
        self.optimizers = make_optimizers(model, plan.muon_lr, plan.adam_lr)
        self.step, self.tokens, self.spent = 0, 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.head_only = False

    def enter_head_phase(self) -> None:
        """Freeze the trunk (with the embeddings it shares with the head) and start fresh optimizers."""
        self.head_only = True
        for parameter in self.model.model.parameters():
            parameter.requires_grad_(False)
        self.optimizers = make_optimizers(self.model.mtp, self.plan.muon_lr, self.plan.adam_lr)

    def progress(self) -> float:
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        assert self.plan.budget_s is not None
        return self.spent / self.plan.budget_s

    def run(self) -> None:
        started = time.monotonic() - self.spent
        next_val = self.spent + min(30.0, self.plan.val_every_s)
        next_save = self.spent + self.plan.checkpoint_every_s
        sums = torch.zeros(3)
        while (progress := self.progress()) < 1.0:
            sums += torch.tensor([*self.update(progress), 1.0])
            self.spent = time.monotonic() - started
            if self.spent >= next_val or self.progress() >= 1.0:
                self.record(progress, sums)
                sums.zero_()
                next_val = time.monotonic() - started + self.plan.val_every_s
            if self.spent >= next_save:
                self.save()
                next_save = self.spent + self.plan.checkpoint_every_s
        self.save()

    def update(self, progress: float) -> tuple[float, float]:
        plan, moment = self.plan, moment_at(self.plan, progress, self.step)
        if moment.head_only and not self.head_only:
            self.enter_head_phase()
        window = batch_at(self.train, plan.seed, self.step, moment.seq_len, plan.batch_tokens)
        for optimizer, base in zip(self.optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * moment.lr_scale
            optimizer.zero_grad(set_to_none=True)
        loss_trunk, loss_mtp = losses(self.model, window, plan, moment, self.step % 2 == 0)
        (loss_trunk + plan.mtp_weight * loss_mtp).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.tokens += window.shape[0] * moment.seq_len
        return float(loss_trunk.detach()), float(loss_mtp.detach())

    def record(self, progress: float, sums: Tensor) -> None:
        moment = moment_at(self.plan, progress, self.step)
        row: dict[str, Any] = {
            "step": self.step,
            "phase": "head" if moment.head_only else "joint",
            "elapsed_s": round(self.spent),
            "tokens": self.tokens,
            "seq_len": moment.seq_len,
            "depth": moment.depth,
            "lr_scale": round(moment.lr_scale, 4),
            "loss_trunk": round(float(sums[0] / sums[2]), 4),
            "loss_mtp": round(float(sums[1] / sums[2]), 4),
        }
        row.update({key: round(value, 4) for key, value in validate(self.model, self.held_out).items()})
        self.rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        write_log(self.work / "training-log.csv", self.rows)

    def save(self) -> None:
        """Checkpoint under a temporary name, then renamed."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step, "tokens": self.tokens, "spent": self.spent, "rows": self.rows,
            "head_only": self.head_only,
        }  # fmt: skip
        torch.save(state, self.work / "checkpoint.pt.tmp")
        os.replace(self.work / "checkpoint.pt.tmp", self.work / "checkpoint.pt")

    def resume(self) -> bool:
        """Continue from a checkpoint of the same plan if one is there."""
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        if state.get("head_only", False):
            self.enter_head_phase()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens = state["step"], state["tokens"]
        self.spent, self.rows = state["spent"], state["rows"]
        return True


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """The training log as CSV, rewritten whole."""
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, LOG_FIELDS, restval="joint", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
