"""How well clusters hold for kinds of completions that were not seen.

A strategy shows in each of its wordings, so the rows of one wording can be named by what the others
show. Wordings that were only put together cannot be named in this way, however stable their
cluster is. So rows are divided into sub-kinds by what their clusters leave over, and each sub-kind
is predicted by discriminants that were fitted to all others: leave-cluster-out cross-validation
(Kramer and Gedeck 2010). On natural data this ranks namings better than stability alone.

Shapes: N rows, D directions, K clusters, G sub-kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.metrics import cohen_kappa_score

SUBKINDS = (4, 8, 16)  # numbers of them, over which the measure is averaged
SUBKIND_DIRECTIONS = 24  # leading ones of a view, in which sub-kinds are found
RESTARTS = 2
LEAST_ROWS = 2  # of a cluster, for a mean
TINY = 1e-9


def generalisation(
    views: Sequence[np.ndarray], points: np.ndarray, clusters_N: np.ndarray, latents: int, seed: int
) -> float:
    """Agreement beyond chance (Cohen's kappa) of clusters with their predictions from other
    sub-kinds: 1 where each sub-kind is named right by all others, 0 where no better than by chance.

    Args:
        views: (N, D) each; sub-kinds are found in the first and in the last.
        points: (N, D) what discriminants see.
        clusters_N: (N,) from 0 to K - 1.
    """
    if len(np.unique(clusters_N)) < 2:
        return 0.0
    found = []
    for view in (views[0], views[-1]):
        left = _without_means(view[:, :SUBKIND_DIRECTIONS], clusters_N)
        for count in SUBKINDS:
            subkind_N = _subkinds(left, count, seed)
            predicted_N = leave_out(points, clusters_N, subkind_N, latents)
            found.append(cohen_kappa_score(clusters_N, predicted_N))
    return max(0.0, float(np.mean(found)))


def _without_means(points: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """(N, D) each row minus the mean of its cluster."""
    _, place_N, count_K = np.unique(clusters_N, return_inverse=True, return_counts=True)
    sum_KD = np.zeros((len(count_K), points.shape[1]))
    np.add.at(sum_KD, place_N, points)
    return points - (sum_KD / count_K[:, None])[place_N]


def _subkinds(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Clusters (N,) from 0 of points that need not all differ."""
    count = min(count, len(np.unique(points, axis=0)))
    if count < 2:
        return np.arange(len(points)) % 2
    return KMeans(count, n_init=RESTARTS, random_state=seed).fit(points).labels_


def leave_out(
    points: np.ndarray, clusters_N: np.ndarray, fold_N: np.ndarray, latents: int
) -> np.ndarray:
    """Clusters (N,) of each fold's rows by linear discriminants of the other folds' rows.

    Their covariance within clusters is shrunk towards its diagonal by what is right for all rows
    (Ledoit and Wolf 2004). Sums of each fold are taken out of those of all rows, so that no fold
    costs another pass over the rows.

    Args:
        fold_N: (N,) from 0.
    """
    folds, D = int(fold_N.max()) + 1, points.shape[1]
    if not D:
        return clusters_N
    count_GK = np.zeros((folds, latents))
    sum_GKD = np.zeros((folds, latents, D))
    np.add.at(count_GK, (fold_N, clusters_N), 1)
    np.add.at(sum_GKD, (fold_N, clusters_N), points)
    square_GDD = np.stack([points[fold_N == g].T @ points[fold_N == g] for g in range(folds)])
    count_K, sum_KD, square_DD = count_GK.sum(0), sum_GKD.sum(0), square_GDD.sum(0)
    within = _without_means(points, clusters_N)
    shrinkage = ledoit_wolf_shrinkage(within / (within.std(0) + TINY), assume_centered=True)
    predicted_N = clusters_N.copy()
    for fold in range(folds):
        others_K = count_K - count_GK[fold]
        (here,) = np.nonzero(others_K >= LEAST_ROWS)
        if not len(here):
            continue
        shares = others_K[here] / others_K[here].sum()
        means = (sum_KD - sum_GKD[fold])[here] / others_K[here, None]
        square = (square_DD - square_GDD[fold]) / others_K.sum()
        covariance = square - (means * shares[:, None]).T @ means
        spread = np.diag(covariance).copy()
        covariance *= 1 - shrinkage
        np.fill_diagonal(covariance, spread + TINY)
        weights = np.linalg.solve(covariance, means.T)
        offsets = np.log(shares) - 0.5 * (means * weights.T).sum(1)
        held_N = fold_N == fold
        predicted_N[held_N] = here[(points[held_N] @ weights + offsets).argmax(1)]
    return predicted_N
