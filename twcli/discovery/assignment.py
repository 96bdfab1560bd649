"""Which latent each completion takes, where distinct completions of one prompt
must take distinct latents.

That constraint is what names the strategies: a latent that writes two strategies for one prompt, or
two latents that write the same, cost likelihood, so the assignment that fits best gives each latent
one strategy for all prompts.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

ENUMERATED = 200  # assignments of one prompt, up to which all are tried


def assign_groups(cost_NK: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Latents (N,) of rows that stand prompt by prompt, all of them distinct: the
    cheapest assignment (Hungarian).

    Where a prompt has more rows than there are latents, each latent takes one and the others take
    the one that costs them least, so that all together are cheapest.

    Args:
        cost_NK: cost of each latent for each row; only differences within a row matter.
        sizes: rows of each prompt, in order.
    """
    latents = cost_NK.argmin(1)  # what a single row takes anyway
    K = cost_NK.shape[1]
    sizes_P = np.asarray(sizes, np.int64)
    starts_P = np.cumsum(sizes_P) - sizes_P
    for size in np.unique(sizes_P[sizes_P > 1]).tolist():
        starts = starts_P[sizes_P == size]
        if size <= K and math.perm(K, size) <= ENUMERATED:
            # All prompts of one size at once: a call for each would take longer
            # than trying everything.
            ways_MR = np.asarray(list(permutations(range(K), size)))
            total_PM = sum(cost_NK[starts + row][:, ways_MR[:, row]] for row in range(size))
            latents[starts[:, None] + np.arange(size)] = ways_MR[total_PM.argmin(1)]
        else:
            for start in starts.tolist():
                cost_RK = cost_NK[start : start + size]
                # Over the least, which is what a row costs that no latent takes.
                rows, columns = linear_sum_assignment(cost_RK - cost_RK.min(1, keepdims=True))
                latents[start + rows] = columns
    return latents


def anchored(cost_NK: np.ndarray, cluster_N: np.ndarray, nats: float) -> np.ndarray:
    """`cost_NK` with so much more for every latent but the row's cluster;
    as it is where that is -1.
    """
    elsewhere_NK = cluster_N[:, None] != np.arange(cost_NK.shape[1])
    return cost_NK + nats * (elsewhere_NK & (cluster_N >= 0)[:, None])


def assign_rows(cost_NK: np.ndarray, prompt_N: np.ndarray, hash_NH: np.ndarray) -> np.ndarray:
    """Latents (N,) of rows in any order, equal completions of a prompt together.

    Args:
        prompt_N: rows of one prompt share a number.
        hash_NH: content of each row; equal rows take the same latent.
    """
    keys = np.concatenate([prompt_N.astype(">i8").reshape(-1, 1).view(np.uint8), hash_NH], axis=1)
    # sorted by prompt
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    sizes = np.unique(prompt_N[first], return_counts=True)[1]
    return assign_groups(cost_NK[first], sizes.tolist())[inverse.reshape(-1)]
