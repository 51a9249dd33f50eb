"""Muon for the inner matrices, AdamW for everything else.

Muon (K. Jordan et al., 2024): momentum, then the update replaced by its nearest semi-orthogonal matrix,
found by a quintic Newton-Schulz iteration. Matrices of one shape are processed together.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(updates: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton-Schulz on a stack (n, rows, cols): singular values are driven towards 1. bfloat16 is enough for it."""
    a, b, c = NEWTON_SCHULZ
    tall = updates.shape[1] > updates.shape[2]
    x = updates.transpose(1, 2) if tall else updates
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.transpose(1, 2) if tall else x).to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; every parameter must be a matrix."""

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(updates, self.dtype), strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "buffer" not in state:
            state["buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["buffer"].lerp_(parameter.grad, 1.0 - momentum)
        return parameter.grad.lerp(state["buffer"], momentum)


def make_optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for 2-D weights at least 64 wide on both sides, except the embedding; AdamW for the rest."""
    inner: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_inner = parameter.ndim == 2 and min(parameter.shape) >= 64 and "embed_tokens" not in name
        (inner if is_inner else other).append(parameter)
    return [
        Muon(inner, muon_lr, weight_decay=0.1, dtype=dtype),
        torch.optim.AdamW(other, adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]
