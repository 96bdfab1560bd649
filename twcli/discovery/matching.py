"""Two namings of the same rows: which names of one are which of the other.

Shapes: N rows, K clusters.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def contingency(
    one_N: np.ndarray,
    other_N: np.ndarray,
    ones: int,
    others: int,
    weight_N: np.ndarray | None = None,
) -> np.ndarray:
    """(ones, others) int, rows under each pair of names; or their weights, float.

    Args:
        one_N, other_N: (N,) int from 0, below `ones` and `others`.
        weight_N: (N,) how much each row counts; None for 1.
    """
    counts = np.bincount(one_N * others + other_N, weight_N, minlength=ones * others)
    return counts.reshape(ones, others)


def matching(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> tuple[np.ndarray, float]:
    """(names (K,) of `other` for those of `one`, rows that then agree): one to one (Hungarian)."""
    counts_KK = contingency(one_N, other_N, latents, latents)
    rows, columns = linear_sum_assignment(-counts_KK)
    names_K = np.empty(latents, np.int64)
    names_K[rows] = columns
    return names_K, float(counts_KK[rows, columns].sum())


def matched_share(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> float:
    """Share of rows on which two namings agree, their names matched one to one."""
    _, matched = matching(one_N, other_N, latents)
    return matched / len(one_N)


def relabelled(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> np.ndarray:
    """One naming under the names of another, as far as they agree.

    Args:
        one_N, other_N: (N,) int below `latents`.

    Returns:
        (N,) int.
    """
    names_K, _ = matching(one_N, other_N, latents)
    return names_K[one_N]


def agreement_beyond_chance(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> float:
    """Cohen's kappa of two namings under the same names: 1 where they agree on all rows, 0 where no
    more than by chance. 0 where both have one name alone.
    """
    table_KK = contingency(one_N, other_N, latents, latents) / len(one_N)
    chance = float(table_KK.sum(0) @ table_KK.sum(1))
    return beyond_chance(float(table_KK.trace()), chance)


def beyond_chance(share: float, chance: float) -> float:
    """A share on the scale on which `chance` is 0 and 1 is 1; 0 where chance gives all."""
    if chance < 1:
        return (share - chance) / (1 - chance)
    return 0.0
