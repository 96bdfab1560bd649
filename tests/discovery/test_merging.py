from itertools import product

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from twcli.discovery.merging import agreement_of_merges, best_merge, merges


@pytest.mark.parametrize(("clusters", "latents"), [(4, 2), (5, 3), (6, 4)])
def test_each_way_to_merge_comes_once(clusters, latents):
    """Of all assignments, those that are equal up to the new names count once (Stirling)."""
    every = {
        tuple(map(first.index, string))
        for string in product(range(latents), repeat=clusters)
        if len(set(string)) == latents
        for first in [list(dict.fromkeys(string))]
    }
    assert set(map(tuple, merges(clusters, latents).tolist())) == every
    assert len(merges(clusters, latents)) == len(every)


def test_agreement_is_that_of_the_merged_names():
    rng = np.random.default_rng(0)
    one = rng.integers(5, size=200)
    other = np.where(rng.random(200) < 0.6, one, rng.integers(5, size=200))
    ways = merges(5, 3)
    expected = [cohen_kappa_score(way[one], way[other]) for way in ways]
    assert agreement_of_merges(ways, [(one, other)] * 2) == pytest.approx(np.array(expected))


def test_clusters_that_halves_confuse_are_merged():
    """Two strategies of two clusters each, and halves that agree on the strategies alone."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=400)
    fine = 2 * truth + rng.integers(2, size=400)
    pairs = [tuple(2 * truth + rng.integers(2, size=400) for _ in range(2))]
    merge = best_merge(pairs, 4, 2)
    assert len(np.unique(merge[fine] + 2 * truth)) == 2
