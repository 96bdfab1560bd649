"""Finer clusters merged into as many as are wanted.

A frequent strategy with many wordings is cut in two before a rare one is found, so the right K
clusters may be unions of K + 2. Pairs are merged one after the other, each time those after which
halves of the prompts agree most, beyond chance.

Shapes: N rows, C clusters, K < C clusters after merging.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twcli.discovery.matching import contingency

FINER = 2  # more clusters than are wanted, which are then merged
TINY = 1e-12


def best_merge(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], clusters: int, latents: int
) -> np.ndarray:
    """The merge (C,) of C clusters into K, greedily by the mean agreement of pairs of namings.

    Args:
        pairs: (N,) int below C each, two namings under the same names.
    """
    tables = [
        contingency(one_N, other_N, clusters, clusters) / len(one_N) for one_N, other_N in pairs
    ]
    merge_C = np.arange(clusters)
    for _ in range(clusters - latents):
        first, second = _best_pair(tables)
        merge_C[merge_C == second] = first
        merge_C[merge_C > second] -= 1
        tables = [_united(table, first, second) for table in tables]
    return merge_C


def _best_pair(tables: Sequence[np.ndarray]) -> tuple[int, int]:
    """The two clusters, the smaller number first, after whose union the mean agreement beyond
    chance (Cohen's kappa) is largest.

    Args:
        tables: (C, C) each, shares of the rows under each pair of names.
    """
    kappa_CC = np.zeros_like(tables[0])
    for table in tables:
        chance_CC = np.outer(table.sum(1), table.sum(0))
        agree_CC = table.trace() + table + table.T
        chance_CC = chance_CC.trace() + chance_CC + chance_CC.T
        kappa_CC += (agree_CC - chance_CC) / (1 - chance_CC + TINY)
    firsts, seconds = np.triu_indices(len(kappa_CC), 1)
    best = int(kappa_CC[firsts, seconds].argmax())
    return int(firsts[best]), int(seconds[best])


def _united(table_CC: np.ndarray, first: int, second: int) -> np.ndarray:
    """The table (C - 1, C - 1) once the second cluster is counted to the first."""
    united = table_CC.copy()
    united[first] += united[second]
    united[:, first] += united[:, second]
    return np.delete(np.delete(united, second, 0), second, 1)
