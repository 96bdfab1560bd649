"""Many reasonable ways to cluster points: which features, how many directions, k-means or a
Gaussian mixture.

Clusters of wordings may hide what differs across all wordings, so each way is also tried on what is
left after fine clusters' means are taken out (alternative clustering). A frequent strategy lies
densely and a rare one sparsely, and k-means would cut the former before it finds the latter: rows
are weighted by the inverse of the density around them, so that a strategy counts by the variety of
its completions, not by their number.

Shapes: N rows, D directions, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.mixture import GaussianMixture

from twcli.discovery.discriminants import sums

KMEANS_DIRECTIONS = (6, 12, 24, 48)
OTHER_DIRECTIONS = (12, 24, 48)
FINE_CLUSTERS = (3, 5)  # times K, whose means are taken out
NEIGHBOURS = 0.01  # share of the rows, whose median distance is the scale of a density
RESTARTS = 4
REGULARISATION = 1e-3  # of the mean variance, on a mixture's covariances
LEAST_ROWS = 4  # a cluster, in each half
TINY = 1e-12


@dataclass(frozen=True)
class Weights:
    """How much rows count where they are averaged.

    Attributes:
        plain_N: (N,) by their number of tokens.
        even: for each view (N,), by `even_weights`.
    """

    plain_N: np.ndarray
    even: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Way:
    """One way to cluster points.

    Attributes:
        view: which view is clustered.
        directions: leading ones of it.
        fine: clusters whose means are taken out of the first view beforehand; 0 for none.
        mixture: Gaussians of one covariance, which start from k-means, in its place.
    """

    view: int
    directions: int
    fine: int = 0
    mixture: bool = False

    def name(
        self,
        views: Sequence[np.ndarray],
        weights: Weights,
        latents: int,
        fitted_N: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Clusters of all rows by what is fitted to some of them.

        Args:
            views: (N, D) of each view.
            latents: K.
            fitted_N: (N,) bool, the rows to fit to.

        Returns:
            (N,) int.
        """
        points, weight_N = views[self.view], weights.even[self.view]
        if self.fine:
            weight_N = weights.plain_N
            points = self._without_fine_clusters(views, weight_N, fitted_N, seed)
        points = points[:, : self.directions]
        if not points.shape[1]:
            return np.zeros(len(points), np.int64)
        means = kmeans(points[fitted_N], weight_N[fitted_N], latents, seed)
        if not self.mixture:
            return means.predict(points).astype(np.int64)
        mixture = GaussianMixture(
            latents,
            covariance_type="tied",
            means_init=means.cluster_centers_,
            reg_covar=REGULARISATION * float(points[fitted_N].var()) + 1e-12,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fair clustering all the same
            return mixture.fit(points[fitted_N]).predict(points).astype(np.int64)

    def _without_fine_clusters(
        self,
        views: Sequence[np.ndarray],
        weight_N: np.ndarray,
        fitted_N: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The first view minus the means of fine clusters of this way's view."""
        seen = views[self.view][:, : max(KMEANS_DIRECTIONS)]
        fine = min(self.fine, int(fitted_N.sum()) // LEAST_ROWS)
        if fine < 2 or not seen.shape[1]:
            return views[0]
        clusters = kmeans(seen[fitted_N], weight_N[fitted_N], fine, seed)
        counts = np.bincount(clusters.labels_, minlength=fine)
        totals = sums(views[0][fitted_N], clusters.labels_, fine)
        means = totals / np.maximum(counts, 1)[:, None]
        left = views[0] - means[clusters.predict(seen)]
        if not left.shape[1]:
            return left
        with np.errstate(invalid="ignore"):  # nothing may be left over
            count = min(self.directions, *left[fitted_N].shape)
            axes = PCA(count, random_state=0).fit(left[fitted_N])
        return axes.transform(left)


def ways_of(latents: int, views: int) -> list[Way]:
    """All ways that are tried for K clusters."""
    found = []
    for view in range(views):
        found += [Way(view, directions) for directions in KMEANS_DIRECTIONS]
        for times in FINE_CLUSTERS:
            ends = min(OTHER_DIRECTIONS), max(OTHER_DIRECTIONS)
            found += [Way(view, directions, fine=times * latents) for directions in ends]
        found += [Way(view, directions, mixture=True) for directions in OTHER_DIRECTIONS]
    return found


def even_weights(points: np.ndarray, weight_N: np.ndarray, used_N: np.ndarray) -> np.ndarray:
    """Weights (N,) that count each region of the points alike, however densely rows lie there.

    A row's weight is divided by a Gaussian kernel density, whose width is the median distance to
    the row that `NEIGHBOURS` of all are nearer than. Rows that are not used keep theirs.
    """
    seen = points[used_N][:, : max(KMEANS_DIRECTIONS)]
    if len(seen) < 2 or not seen.shape[1]:
        return weight_N
    squared_NN = euclidean_distances(seen.astype(np.float32), squared=True)
    nearest = max(2, round(NEIGHBOURS * len(seen)))
    ordered_NN = np.partition(squared_NN, min(nearest, len(seen) - 1))
    width = float(np.median(ordered_NN[:, nearest]))
    density_N = np.exp(squared_NN / -(width + TINY)).sum(1)
    even_N = weight_N.copy()
    even_N[used_N] /= density_N
    even_N[used_N] *= weight_N[used_N].mean() / even_N[used_N].mean()
    return even_N


def kmeans(points: np.ndarray, weight: np.ndarray, clusters: int, seed: int) -> KMeans:
    """k-means of weighted points.

    Args:
        points: (N, D).
        weight: (N,).
    """
    clusters = min(clusters, len(points))
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some clusters stay empty, which is no error here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(clusters, n_init=RESTARTS, random_state=seed)
        return means.fit(points, sample_weight=weight)
