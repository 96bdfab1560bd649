"""How evenly clusters lie apart.

Strategies differ from each other about as much as any two of them do. A frequent one that was cut
in two leaves two means near each other, however stable the cut is, and the rare ones that were put
together for it are further apart than that. So a naming is measured by its two nearest clusters,
as in the index of Dunn (1974), against the distance that is usual between its clusters.

Shapes: N rows, D directions, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twcli.discovery.discriminants import sums

DIRECTIONS = 24  # leading ones of a view, in which clusters lie apart
FAR_ENOUGH = 0.8  # of the median distance, from which the smallest one is no sign of a cut
TINY = 1e-12


@dataclass(frozen=True)
class ClusterSums:
    """What the means of clusters, and of their unions, are computed from.

    Attributes:
        count_C: (C,) rows of each.
        sum_CD: (C, D) the sum of their points.
        square: the sum of all squared coordinates.
    """

    count_C: np.ndarray
    sum_CD: np.ndarray
    square: float

    @classmethod
    def of(cls, points: np.ndarray, clusters_N: np.ndarray, clusters: int) -> ClusterSums:
        """Of points (N, D) in the leading `DIRECTIONS` and their clusters (N,), int from 0."""
        seen = points[:, :DIRECTIONS]
        counts = np.bincount(clusters_N, minlength=clusters)
        square = float(np.einsum("nd,nd->", seen, seen, dtype=np.float64))
        return cls(counts, sums(seen, clusters_N, clusters), square)

    def united(self, first: int, second: int) -> ClusterSums:
        """Once the second cluster is counted to the first and those after it move up."""
        count_C, sum_CD = self.count_C.copy(), self.sum_CD.copy()
        count_C[first] += count_C[second]
        sum_CD[first] += sum_CD[second]
        return ClusterSums(np.delete(count_C, second), np.delete(sum_CD, second, 0), self.square)

    @property
    def used_share(self) -> float:
        """Of the clusters, those that have rows."""
        return float((self.count_C > 0).mean())

    def evenness(self) -> float:
        """The smallest distance between two means over `FAR_ENOUGH` of the median one: from 0,
        where two clusters are one, to 1. 1 where there are fewer than three clusters.
        """
        distances = np.sqrt(np.maximum(self.squared_distances(), 0.0))
        if len(distances) < 3:
            return 1.0
        usual = FAR_ENOUGH * float(np.median(distances))
        return min(float(distances.min()) / max(usual, TINY), 1.0)

    def squared_distances(self) -> np.ndarray:
        """(pairs,) unbiased, between the means of each two clusters that have rows.

        A mean of few rows is off by chance, which adds the variance of a row, divided by the
        number of rows, to a squared distance: it is subtracted, so that some may be negative.
        """
        filled = self.count_C > 0
        counts = self.count_C[filled]
        means = self.sum_CD[filled] / counts[:, None]
        lengths = np.einsum("cd,cd->c", means, means)
        free = max(int(counts.sum()) - len(counts), 1)
        variance = max(self.square - float(counts @ lengths), 0.0) / free
        own = lengths - variance / counts
        squared = own[:, None] + own - 2 * means @ means.T
        firsts, seconds = np.triu_indices(len(counts), 1)
        return squared[firsts, seconds]
