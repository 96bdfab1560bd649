"""Linear discriminants: rows are named by what holds for other rows of the same names.

Shapes: N rows that lie prompt by prompt, D directions, K clusters, G folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from twcli.discovery.matching import contingency

FOLDS = 5  # of the prompts
DOUBT = 1e-3  # least probability of any cluster, shared out evenly: no feature is ever that sure
LEAST_ROWS = 2  # of a cluster, for a mean
TINY = 1e-9


@dataclass(frozen=True)
class Discriminant:
    """P(z | points) by linear discriminants with a shrunk covariance (Ledoit and Wolf 2004).

    Attributes:
        fitted: None where the rows had one cluster only.
        names: (C,) the clusters that the rows had.
        latents: K.
    """

    fitted: LinearDiscriminantAnalysis | None
    names: np.ndarray
    latents: int

    @classmethod
    def fit(cls, points: np.ndarray, clusters_N: np.ndarray, latents: int) -> Discriminant:
        """Linear discriminant analysis of rows whose clusters are known.

        Args:
            points: (N, D).
            clusters_N: (N,) int below `latents`.
        """
        names, counts = np.unique(clusters_N, return_counts=True)
        names = names[counts > 1]
        kept = np.isin(clusters_N, names)
        if len(names) < 2 or not points.shape[1]:
            return cls(None, names, latents)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        lda.fit(points[kept], clusters_N[kept])
        return cls(lda, names, latents)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, K)."""
        posterior_NK = np.full((len(points), self.latents), 1 / self.latents)
        if self.fitted is not None:
            posterior_NK[:] = 0.0
            posterior_NK[:, self.names] = self.fitted.predict_proba(points)
        elif len(self.names) == 1:
            posterior_NK[:] = np.eye(self.latents)[self.names[0]]
        return (1 - DOUBT) * posterior_NK + DOUBT / self.latents


def discriminant_points(views: Sequence[np.ndarray]) -> np.ndarray:
    """What the discriminant sees: the states, and everything.

    Args:
        views: (N, D) of each view.

    Returns:
        (N, sum of the two D).
    """
    return np.concatenate([views[0], views[-1]], axis=1)


def out_of_fold(
    points: np.ndarray,
    clusters_N: np.ndarray,
    sizes_P: np.ndarray,
    latents: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """P(z | points) (N, K), each row by a discriminant of other prompts' rows."""
    fold_N = prompt_folds(sizes_P, rng)
    posterior_NK = (1 - DOUBT) * np.eye(latents)[clusters_N] + DOUBT / latents
    for fold in range(FOLDS):
        held = fold_N == fold
        if held.all() or not held.any():
            continue
        others = ~held
        fitted = Discriminant.fit(points[others], clusters_N[others], latents)
        posterior_NK[held] = fitted(points[held])
    return posterior_NK


def prompt_folds(sizes_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) the fold of each row: that of its prompt."""
    return np.repeat(rng.permutation(len(sizes_P)) % FOLDS, sizes_P)


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
    count_GK = contingency(fold_N, clusters_N, folds, latents)
    sum_GKD = sums(points, fold_N * latents + clusters_N, folds * latents)
    sum_GKD = sum_GKD.reshape(folds, latents, D)
    square_GDD = np.stack([points[fold_N == g].T @ points[fold_N == g] for g in range(folds)])
    count_K, sum_KD, square_DD = count_GK.sum(0), sum_GKD.sum(0), square_GDD.sum(0)
    within = without_means(points, clusters_N)
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


def sums(points: np.ndarray, group_N: np.ndarray, groups: int) -> np.ndarray:
    """The sum of each group's rows.

    Args:
        points: (N, D).
        group_N: int below `groups`.

    Returns:
        (groups, D).
    """
    member_GN = np.eye(groups)[:, group_N]
    return member_GN @ points


def without_means(points: np.ndarray, clusters_N: np.ndarray) -> np.ndarray:
    """Each row minus the mean of its cluster.

    Args:
        points: (N, D).
        clusters_N: int, any numbers.

    Returns:
        (N, D).
    """
    _, place_N, count_K = np.unique(clusters_N, return_inverse=True, return_counts=True)
    means_KD = sums(points, place_N, len(count_K)) / count_K[:, None]
    return points - means_KD[place_N]
