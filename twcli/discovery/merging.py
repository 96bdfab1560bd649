"""Finer clusters merged into as many as are wanted.

A frequent strategy with many wordings is cut in two before a rare one is found, so the right K
clusters may be unions of K + 2: of those that halves of the prompts agree on most, beyond chance.

Shapes: N rows, C clusters, K < C clusters after merging, M ways to merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

FINER = 2  # more clusters than are wanted, which are then merged
TINY = 1e-12


@lru_cache
def merges(clusters: int, latents: int) -> np.ndarray:
    """All ways to merge C clusters into K.

    Returns:
        (M, C) int, the new cluster of each: restricted growth strings, none of K left empty.
    """
    strings = [[0]]
    for _ in range(clusters - 1):
        strings = [
            [*string, new] for string in strings for new in range(min(max(string) + 2, latents))
        ]
    return np.array([string for string in strings if max(string) == latents - 1])


def agreement_of_merges(
    merge_MC: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Agreement beyond chance (Cohen's kappa) of namings, once their clusters are merged.

    Args:
        pairs: (N,) int below C each, two namings under the same names.

    Returns:
        (M,) means over the pairs.
    """
    clusters = merge_MC.shape[1]
    together_MCC = merge_MC[:, :, None] == merge_MC[:, None, :]
    kappa_M = np.zeros(len(merge_MC))
    for one_N, other_N in pairs:
        table = np.bincount(one_N * clusters + other_N, minlength=clusters**2)
        table_CC = table.reshape(clusters, clusters) / len(one_N)
        chance_CC = np.outer(table_CC.sum(1), table_CC.sum(0))
        agree_M = (together_MCC * table_CC).sum((1, 2))
        chance_M = (together_MCC * chance_CC).sum((1, 2))
        kappa_M += (agree_M - chance_M) / (1 - chance_M + TINY)
    return kappa_M / len(pairs)


def best_merge(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], clusters: int, latents: int
) -> np.ndarray:
    """The merge (C,) of C clusters into K that halves of the prompts agree on most.

    Args:
        pairs: (N,) int below C each, two namings under the same names.
    """
    merge_MC = merges(clusters, latents)
    return merge_MC[agreement_of_merges(merge_MC, pairs).argmax()]
