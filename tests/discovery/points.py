"""Points of clusters that are known, for several tests."""

import numpy as np


def unequal(rng, count=400):
    """Points of three clusters with three fifths, three tenths and a tenth of the rows."""
    truth = rng.choice(3, count, p=[0.6, 0.3, 0.1])
    return 5 * np.eye(3, 10)[truth] + rng.normal(size=(count, 10)), truth


def crossed(rng, wordings=12, strategies=3, times=20):
    """Points of twelve wordings far apart, each of which comes with three strategies that differ
    a little, alike in all wordings.
    """
    wording, truth = (
        part.ravel() for part in np.divmod(np.arange(wordings * strategies * times), strategies)
    )
    order = rng.permutation(len(truth))
    wording, truth = wording[order] % wordings, truth[order]
    points = 6 * rng.normal(size=(wordings, 20))[wording]
    points[:, 10:] += 1.5 * rng.normal(size=(strategies, 10))[truth]
    return points + 0.4 * rng.normal(size=points.shape), wording, truth


def by_variance(points):
    """Directions by falling variance."""
    centred = points - points.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2].T


def rare_and_wordy(rng, shares=(0.55, 0.25, 0.15, 0.05), rows=600, wordings=8):
    """Strategies of unequal frequency with as many wordings each: the frequent one's wordings
    differ about as much as the rare ones' strategies do.
    """
    truth = rng.choice(len(shares), rows, p=shares)
    wording = rng.integers(wordings, size=rows)
    strategies = 4 * np.linalg.qr(rng.normal(size=(12, len(shares))))[0].T
    forms = 3 * rng.normal(size=(len(shares), wordings, 12)) / np.sqrt(12)
    points = strategies[truth] + forms[truth, wording]
    return by_variance(points + 0.3 * rng.normal(size=points.shape)), truth


def two_alike(rng, rows=400, near=0.55):
    """Four strategies, two of which lie apart about half as far as the others."""
    means = 4 * np.linalg.qr(rng.normal(size=(16, 16)))[0][:4]
    middle = means[2:].mean(0)
    means[2:] = middle + near * (means[2:] - middle)
    truth = rng.integers(4, size=rows)
    return by_variance(means[truth] + 0.5 * rng.normal(size=(rows, 16))), truth
