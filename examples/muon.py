"""Muon (Jordan et al. 2024): momentum whose direction is orthogonalised, matrix by matrix.

What `torch.optim.Muon` does, at a twelfth of its time on a CPU that only emulates products in
bfloat16, where they took half of every step of `entangle.py`: matrices of one shape go through
float32 together. Its roundings to bfloat16 are kept: they are noise, and the iteration makes steps
of it in directions that have next to no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

# A quintic whose slope at zero is large; repeated, it takes every singular value into 0.7 to
# 1.2 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
REPEATED = 5
SMALLEST = 1e-7  # norm of a gradient that is divided by


class Muon(torch.optim.Optimizer):
    """Of matrices that all have a gradient at every step; with Nesterov's momentum
    and decoupled weight decay.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        alike: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            alike.setdefault(matrix.shape, []).append(matrix)
        super().__init__(
            [{"params": group} for group in alike.values()],
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum},
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:  # of one shape
            matrices, lr, momentum = group["params"], group["lr"], group["momentum"]
            gradient_NRC = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            if not state:
                state["average"] = torch.zeros_like(gradient_NRC)
            average_NRC = state["average"].lerp_(gradient_NRC, 1 - momentum)
            rows, columns = matrices[0].shape
            for matrix, direction_RC in zip(
                matrices, orthogonal(gradient_NRC.lerp(average_NRC, momentum)), strict=True
            ):
                matrix.mul_(1 - lr * group["weight_decay"]).sub_(
                    direction_RC, alpha=lr * math.sqrt(max(1, rows / columns))
                )


def orthogonal(matrix_NRC: torch.Tensor) -> torch.Tensor:
    """(N, R, C) with about the singular vectors of each matrix, and singular
    values near 1 (Newton-Schulz).
    """
    if matrix_NRC.shape[1] > matrix_NRC.shape[2]:
        return orthogonal(matrix_NRC.mT).mT
    a, b, c = COEFFICIENTS
    x = rounded(matrix_NRC)
    x = rounded(x / rounded(x.norm(dim=(1, 2), keepdim=True)).clamp(min=SMALLEST))
    for _ in range(REPEATED):
        gram = rounded(x @ x.mT)
        x = rounded(
            torch.baddbmm(x, rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c)), x, beta=a)
        )
    return x


def rounded(x: torch.Tensor) -> torch.Tensor:
    """To the nearest bfloat16, in float32."""
    return x.bfloat16().float()
