"""How well clusters hold for kinds of completions that were not seen.

A strategy shows in each of its wordings, so the rows of one wording can be named by what the others
show. Wordings that were only put together cannot be named in this way, however stable their
cluster is. So rows are divided into sub-kinds by what their clusters leave over, and each sub-kind
is predicted by discriminants that were fitted to all others: leave-cluster-out cross-validation
(Kramer and Gedeck 2010). On natural data this ranks namings better than stability alone.

Names that agree are not worth much where nearly all rows have the same: what they say is measured
as well, with rows weighted by variety.

Shapes: N rows, D directions, K clusters, G sub-kinds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from twcli.discovery.discriminants import leave_out, without_means
from twcli.discovery.information import mutual_information
from twcli.discovery.matching import agreement_beyond_chance, contingency

SUBKINDS = (4, 8, 16)  # numbers of them, over which the measure is averaged
SUBKIND_DIRECTIONS = 24  # leading ones of a view, in which sub-kinds are found
RESTARTS = 2


@dataclass(frozen=True)
class Generalisation:
    """How names compare with their predictions from other sub-kinds.

    Attributes:
        agreement: beyond chance (Cohen's kappa): 1 where each sub-kind is named right by all
            others, 0 where no better than by chance.
        information: what the predictions say about the names, of log K nats: from 0 to 1.
    """

    agreement: float
    information: float

    @classmethod
    def of(
        cls,
        views: Sequence[np.ndarray],
        points: np.ndarray,
        clusters_N: np.ndarray,
        weight_N: np.ndarray,
        latents: int,
        seed: int,
    ) -> Generalisation:
        """Of clusters (N,), int from 0 to K - 1.

        Args:
            views: (N, D) each, in which sub-kinds are found.
            points: (N, D) what discriminants see.
            weight_N: (N,) how much each row counts to the information.
        """
        if len(np.unique(clusters_N)) < 2:
            return cls(0.0, 0.0)
        agreements, informations = [], []
        for view in views:
            left = without_means(view[:, :SUBKIND_DIRECTIONS], clusters_N)
            for count in SUBKINDS:
                subkind_N = _subkinds(left, count, seed)
                predicted_N = leave_out(points, clusters_N, subkind_N, latents)
                table_KK = contingency(clusters_N, predicted_N, latents, latents, weight_N)
                agreements.append(agreement_beyond_chance(clusters_N, predicted_N, latents))
                informations.append(mutual_information(table_KK) / math.log(latents))
        return cls(max(0.0, float(np.mean(agreements))), float(np.mean(informations)))


def _subkinds(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Clusters (N,) from 0 of points that need not all differ."""
    count = min(count, len(points))
    if count < 2 or not (points != points[0]).any():
        return np.arange(len(points)) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than sub-kinds
        return KMeans(count, n_init=RESTARTS, random_state=seed).fit(points).labels_
