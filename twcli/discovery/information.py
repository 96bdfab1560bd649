"""Mutual information I(z; y): of a posterior, and of two namings by their table. In nats."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr


def information(mean_K: ArrayLike, mean_entropy: float) -> tuple[float, float]:
    """(mutual information I(z; y) in nats, effective number of latents) of a posterior.

    Args:
        mean_K: the posterior's mean over records.
        mean_entropy: the mean of its entropy over the same records, in nats.
    """
    mean_K = np.asarray(mean_K, np.float64)
    entropy_of_mean = float(entr(mean_K).sum())
    return max(entropy_of_mean - mean_entropy, 0.0), math.exp(entropy_of_mean)


def mutual_information(table: np.ndarray) -> float:
    """Nats that one naming says about the other.

    Args:
        table: (K, C) their contingency table, of any weights that are not all 0.
    """
    joint = table / table.sum()
    apart = entr(joint.sum(0)).sum() + entr(joint.sum(1)).sum()
    return max(float(apart - entr(joint).sum()), 0.0)
