"""Which latent each completion takes, where distinct completions of one prompt must take distinct latents.

That constraint is what names the strategies: a latent that writes two strategies for one prompt, or two latents that
write the same, cost likelihood, so the assignment that fits best gives each latent one strategy for all prompts.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def assign_groups(cost_NK: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Latents (N,) of rows that stand prompt by prompt, all of them distinct: the cheapest assignment (Hungarian).

    Where a prompt has more rows than there are latents, those that fit least take the one that costs them least.

    Args:
        cost_NK: cost of each latent for each row; only differences within a row matter.
        sizes: rows of each prompt, in order.
    """
    latents = cost_NK.argmin(1)
    start = 0
    for size in sizes:
        if size > 1:  # a single row takes its cheapest latent anyway
            rows, columns = linear_sum_assignment(cost_NK[start : start + size])
            latents[start + rows] = columns
        start += size
    return latents


def assign_rows(cost_NK: np.ndarray, prompt_N: np.ndarray, hash_NH: np.ndarray) -> np.ndarray:
    """Latents (N,) of rows in any order, equal completions of a prompt together.

    Args:
        prompt_N: rows of one prompt share a number.
        hash_NH: content of each row; equal rows take the same latent.
    """
    keys = np.concatenate([prompt_N.astype(">i8").reshape(-1, 1).view(np.uint8), hash_NH], axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)  # sorted by prompt
    sizes = np.unique(prompt_N[first], return_counts=True)[1]
    return assign_groups(cost_NK[first], sizes.tolist())[inverse.reshape(-1)]
