"""Finer clusters merged into as many as are wanted.

A frequent strategy with many wordings is cut in two before a rare one is found, so the right K
clusters may be unions of finer ones. Pairs are merged one after the other, each time those after
which halves of the prompts agree most, beyond chance, and clusters lie apart most evenly: halves
alone would as soon unite two rare strategies as the two parts of a frequent one.

Shapes: N rows, C clusters, K < C clusters after merging.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twcli.discovery.matching import contingency
from twcli.discovery.separation import ClusterSums

FINER = (3, 5)  # more clusters than are wanted, by turns, which are then merged
TINY = 1e-12


def best_merge(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], clusters: ClusterSums, latents: int
) -> np.ndarray:
    """The merge (C,) of C clusters into K, greedily by the mean agreement of pairs of namings times
    the evenness of the clusters.

    Args:
        pairs: (N,) int below C each, two namings under the same names.
        clusters: those to merge.
    """
    count = len(clusters.count_C)
    tables = []
    for one_N, other_N in pairs:
        counts = contingency(one_N, other_N, count, count)
        tables.append(counts / len(one_N))
    merge_C = np.arange(count)
    for _ in range(count - latents):
        first, second = _best_pair(tables, clusters)
        merge_C[merge_C == second] = first
        merge_C[merge_C > second] -= 1
        tables = [_united(table, first, second) for table in tables]
        clusters = clusters.united(first, second)
    return merge_C


def _best_pair(tables: Sequence[np.ndarray], clusters: ClusterSums) -> tuple[int, int]:
    """The two clusters, the smaller number first, after whose union agreement times evenness is
    largest.
    """
    agreement_CC = _agreement_of_unions(tables)
    firsts, seconds = np.triu_indices(len(agreement_CC), 1)
    agreements = agreement_CC[firsts, seconds]
    best, most = 0, -np.inf
    for pair in np.argsort(-agreements, kind="stable"):
        if agreements[pair] <= max(most, 0.0):  # evenness is at most 1: no later pair is better
            break
        value = agreements[pair] * clusters.united(firsts[pair], seconds[pair]).evenness()
        if value > most:
            best, most = pair, value
    return int(firsts[best]), int(seconds[best])


def _agreement_of_unions(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Mean agreement beyond chance (Cohen's kappa) after the union of each two clusters.

    Args:
        tables: (C, C) each, shares of the rows under each pair of names.

    Returns:
        (C, C), which has a meaning off the diagonal.
    """
    kappa_CC = np.zeros_like(tables[0])
    for table in tables:
        chance_CC = np.outer(table.sum(1), table.sum(0))
        agree_CC = table.trace() + table + table.T
        chance_CC = chance_CC.trace() + chance_CC + chance_CC.T
        kappa_CC += (agree_CC - chance_CC) / (1 - chance_CC + TINY)
    return kappa_CC / len(tables)


def _united(table_CC: np.ndarray, first: int, second: int) -> np.ndarray:
    """The table (C - 1, C - 1) once the second cluster is counted to the first."""
    united = table_CC.copy()
    united[first] += united[second]
    united[:, first] += united[:, second]
    return np.delete(np.delete(united, second, 0), second, 1)
