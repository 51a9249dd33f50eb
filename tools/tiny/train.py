"""Training of the trunk, then of the MTP block behind the finished trunk, under a wall-clock or step budget.

Trunk phase: cross entropy against the text; the MTP block takes no part.
Head phase: the trunk (with the embeddings that the head shares) is frozen. Loss = L_1 + chain_weight x (L_2 + L_3);
L_s, of chain depth s, is the head's cross entropy against the trunk's distribution. So nothing bends the trunk towards
its head, and the acceptance is what a head can reach.
Batches depend on (seed, step) alone, so a run with ``steps`` set repeats exactly on one machine, thread count and torch
version; with a time budget the clock drives the schedule and two runs differ.
Where the CPU multiplies bfloat16 in hardware, matrix products are taken in it, with float32 weights, norms and sums.
"""

from __future__ import annotations

import csv
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtpref.base.errors import MtprefError

from .model import TinyModel
from .optim import make_optimizers
from .text import Tokens

LOG_FIELDS = (
    "step", "phase", "elapsed_s", "tokens", "seq_len", "depth", "lr_scale", "loss",
    "val_loss_trunk", "val_loss_mtp", "val_a1", "val_a2", "val_a3",
)  # fmt: skip


@dataclass(frozen=True)
class TrainPlan:
    """Everything that shapes a run. Exactly one of ``budget_s`` and ``steps`` ends it.

    code_share: share of the tokens that is code. bfloat16: whether products are taken in it.
    """

    seed: int = 1
    budget_s: float | None = None
    steps: int | None = None
    batch_tokens: int = 4096
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    chain_weight: float = 0.5
    head_share: float = 0.25
    code_share: float = 0.2
    bfloat16: bool = False
    val_every_s: float = 240.0
    checkpoint_every_s: float = 300.0


@dataclass(frozen=True)
class Moment:
    """What the schedule says at one point: window length, chain steps trained, factor on the learning rates, phase."""

    seq_len: int
    depth: int
    lr_scale: float
    head_only: bool


def moment_at(plan: TrainPlan, progress: float) -> Moment:
    """The schedule. ``progress`` is the part of the budget spent, 0 to 1.

    Trunk phase: windows of 512 tokens, at the end of 1024; the learning rate is warmed up over the first 2 %, flat to
    40 %, then linear to 0.01. Head phase, the last ``head_share`` of the budget: chain depth 1, then 2, then 3, the
    learning rate warmed up over 2 % and linear to 0.01.
    """
    part = progress / (1.0 - plan.head_share)
    if part < 1.0:
        down = min(1.0, max(0.01, (1.0 - part) / 0.6))
        return Moment(512 if part < 0.85 else 1024, 1, min(1.0, 0.02 + part / 0.02) * down, False)
    part = (progress - (1.0 - plan.head_share)) / plan.head_share
    depth = 1 if part < 0.3 else 2 if part < 0.55 else 3
    return Moment(512, depth, min(1.0, 0.02 + part / 0.02) * max(0.01, 1.0 - part), True)


def soft_cross_entropy(logits: Tensor, target_log_probs: Tensor) -> Tensor:
    """Mean over rows of -sum p_target log softmax(logits): the KL divergence up to the target's entropy."""
    return -(target_log_probs.exp() * F.log_softmax(logits, -1)).sum(-1).mean()


def trunk_loss(model: TinyModel, window: Tensor) -> Tensor:
    """Cross entropy of the trunk against the text."""
    logits = model.logits(model.model(window[:, :-1]))
    return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def head_loss(model: TinyModel, window: Tensor, depth: int, chain_weight: float, cell_zero: bool) -> Tensor:
    """L_1 + chain_weight x (L_2 + L_3); deeper steps are trained on half of the rows. The trunk gets no gradient."""
    ids = window[:, :-1]
    with torch.no_grad():
        hidden = model.model(ids)
        teacher = F.log_softmax(model.logits(hidden), -1)
    skip = 0 if cell_zero else 1
    n_chain = ids.shape[0] if depth == 1 else max(1, ids.shape[0] // 2)
    chain = model.draft_hidden(ids[:n_chain], hidden[:n_chain], depth, cell_zero)
    rows = chain[0]
    if n_chain < ids.shape[0]:
        rows = torch.cat([rows, *model.draft_hidden(ids[n_chain:], hidden[n_chain:], 1, cell_zero)], 0)
    loss = soft_cross_entropy(model.logits(rows), teacher[:, skip:])
    for level in range(1, depth):
        scores = model.logits(chain[level][:, level:])
        loss = loss + chain_weight * soft_cross_entropy(scores, teacher[:n_chain, skip + level :])
    return loss


@torch.no_grad()
def validate(model: TinyModel, window: Tensor, with_head: bool) -> dict[str, float]:
    """Held-out losses and teacher-forced agreement with the trunk's argmax at chain depths 1..3, in float32."""
    ids, targets = window[:, :-1], window[:, 1:]
    hidden = model.model(ids)
    logits = model.logits(hidden)
    result = {"val_loss_trunk": float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))}
    if not with_head:
        return result
    choice = logits.argmax(-1)
    for level, out in enumerate(model.draft_hidden(ids, hidden, 3)):
        scores = model.logits(out)
        if level == 0:
            result["val_loss_mtp"] = float(F.cross_entropy(scores.flatten(0, 1), targets.flatten()))
        result[f"val_a{level + 1}"] = float((scores.argmax(-1) == choice)[:, level:].float().mean())
    return result


class Trainer:
    """One run: model, optimizers, clock, log. ``run`` returns when the budget is spent."""

    def __init__(self, model: TinyModel, train: Tokens, held_out: Tokens, plan: TrainPlan, work: Path) -> None:
        if (plan.budget_s is None) == (plan.steps is None):
            raise MtprefError("training: give either a time budget or a number of steps, not both and not neither")
        self.model, self.train, self.plan, self.work = model, train, plan, work
        self.dtype = torch.bfloat16 if plan.bfloat16 else torch.float32
        self.optimizers = make_optimizers(model.model, plan.muon_lr, plan.adam_lr, self.dtype)
        self.held_out = torch.from_numpy(held_out.batch([0], 16, 513, plan.code_share))
        self.step, self.tokens, self.spent = 0, 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.head_only = False

    def enter_head_phase(self) -> None:
        """Freeze the trunk (with the embeddings it shares with the head) and start fresh optimizers."""
        self.head_only = True
        self.model.zero_grad(set_to_none=True)  # or the trunk's last gradient would count when the head's is clipped
        for parameter in self.model.model.parameters():
            parameter.requires_grad_(False)
        self.optimizers = make_optimizers(self.model.mtp, self.plan.muon_lr, self.plan.adam_lr, self.dtype)

    def progress(self) -> float:
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        assert self.plan.budget_s is not None
        return self.spent / self.plan.budget_s

    def run(self) -> None:
        started = time.monotonic() - self.spent
        next_val = self.spent + min(30.0, self.plan.val_every_s)
        next_save = self.spent + self.plan.checkpoint_every_s
        sums = torch.zeros(2)
        while (progress := self.progress()) < 1.0:
            entering = moment_at(self.plan, progress).head_only and not self.head_only
            if entering:
                if sums[1]:
                    self.record(progress, sums)
                    sums.zero_()
                self.enter_head_phase()
            sums += torch.tensor([self.update(progress), 1.0])
            self.spent = time.monotonic() - started
            if self.spent >= next_val or self.progress() >= 1.0:
                self.record(progress, sums)
                sums.zero_()
                next_val = time.monotonic() - started + self.plan.val_every_s
            if self.spent >= next_save:
                self.save()
                next_save = self.spent + self.plan.checkpoint_every_s
        self.save()

    def update(self, progress: float) -> float:
        plan, moment = self.plan, moment_at(self.plan, progress)
        n_rows = max(1, plan.batch_tokens // moment.seq_len)
        window = torch.from_numpy(self.train.batch([plan.seed, self.step], n_rows, moment.seq_len + 1, plan.code_share))
        for optimizer, base in zip(self.optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * moment.lr_scale
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
            if self.head_only:
                loss = head_loss(self.model, window, moment.depth, plan.chain_weight, self.step % 2 == 0)
            else:
                loss = trunk_loss(self.model, window)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.tokens += n_rows * moment.seq_len
        return float(loss.detach())

    def record(self, progress: float, sums: Tensor) -> None:
        moment = moment_at(self.plan, progress)
        row: dict[str, Any] = {
            "step": self.step,
            "phase": "head" if self.head_only else "trunk",
            "elapsed_s": round(self.spent),
            "tokens": self.tokens,
            "seq_len": moment.seq_len,
            "depth": moment.depth,
            "lr_scale": round(moment.lr_scale, 4),
            "loss": round(float(sums[0] / sums[1]), 4),
        }
        measured = validate(self.model, self.held_out, self.head_only)
        row.update({key: round(value, 4) for key, value in measured.items()})
        self.rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        write_log(self.work / "training-log.csv", self.rows)

    def save(self) -> None:
        """Checkpoint under a temporary name, then renamed."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step, "tokens": self.tokens, "spent": self.spent, "rows": self.rows,
            "head_only": self.head_only, "run": self.identity(),
        }  # fmt: skip
        torch.save(state, self.work / "checkpoint.pt.tmp")
        os.replace(self.work / "checkpoint.pt.tmp", self.work / "checkpoint.pt")

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on: the plan and how much text there is."""
        return {**asdict(self.plan), "story tokens": len(self.train.stories), "code tokens": len(self.train.code)}

    def resume(self) -> bool:
        """Continue from a checkpoint of the same plan if one is there."""
        path = self.work / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=False)
        for what, now in self.identity().items():
            if state["run"][what] != now:
                raise MtprefError(
                    f"{path}: made with {what} {state['run'][what]}, now it is {now}; "
                    "expected the same command as before, or another --work"
                )
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
        writer = csv.DictWriter(handle, LOG_FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
