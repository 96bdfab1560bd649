from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from twcli.discovery.merging import best_merge


def unsure(rng, truth, clusters, share=0.4):
    """The names, some of them replaced by random ones."""
    return np.where(rng.random(len(truth)) < share, rng.integers(clusters, size=len(truth)), truth)


def test_clusters_that_halves_confuse_are_merged():
    """Two strategies of two clusters each, and halves that agree on the strategies alone."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=400)
    pairs = [tuple(2 * truth + rng.integers(2, size=400) for _ in range(2)) for _ in range(2)]
    assert best_merge(pairs, 4, 2).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_pair_is_that_of_the_best_kappa(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice(5, 300, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    pairs = [(unsure(rng, truth, 5), unsure(rng, truth, 5)) for _ in range(3)]
    kappas = {}
    for first, second in combinations(range(5), 2):
        names = np.where(np.arange(5) == second, first, np.arange(5))
        kappas[first, second] = np.mean(
            [cohen_kappa_score(names[one], names[other]) for one, other in pairs]
        )
    merge = best_merge(pairs, 5, 4)
    assert sorted(set(merge)) == [0, 1, 2, 3]
    (merged,) = np.flatnonzero(np.bincount(merge) == 2)
    first, second = np.flatnonzero(merge == merged)
    assert kappas[first, second] == pytest.approx(max(kappas.values()))


def test_many_clusters_are_merged_in_no_time():
    """Their partitions are too many to try."""
    rng = np.random.default_rng(0)
    truth = rng.integers(64, size=4000)
    pairs = [(np.where(truth < 3, rng.integers(3, size=4000), truth), truth)]
    merge = best_merge(pairs, 64, 62)
    assert set(merge) == set(range(62)) and merge[0] == merge[1] == merge[2]
