from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from twcli.discovery.merging import best_merge
from twcli.discovery.separation import ClusterSums


def unsure(rng, truth, clusters, share=0.4):
    """The names, some of them replaced by random ones."""
    return np.where(rng.random(len(truth)) < share, rng.integers(clusters, size=len(truth)), truth)


def apart(names, clusters):
    """Sums of clusters that are all equally far apart."""
    return ClusterSums.of(np.eye(clusters)[names], names, clusters)


def test_clusters_that_halves_confuse_are_merged():
    """Two strategies of two clusters each, and halves that agree on the strategies alone."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=400)
    pairs = [tuple(2 * truth + rng.integers(2, size=400) for _ in range(2)) for _ in range(2)]
    assert best_merge(pairs, apart(pairs[0][0], 4), 2).tolist() == [0, 0, 1, 1]


def test_near_clusters_are_merged_where_halves_agree_on_all():
    """A frequent strategy of two near clusters, and three rare ones far from them and each other:
    merging any two leaves halves agreed.
    """
    rng = np.random.default_rng(0)
    names = rng.choice(5, 500, p=[0.35, 0.35, 0.1, 0.1, 0.1])
    means = np.eye(5)
    means[1] = means[0] + 0.3 * means[1]
    points = means[names] + 0.1 * rng.normal(size=(500, 5))
    merge = best_merge([(names, names)], ClusterSums.of(points, names, 5), 4)
    assert merge.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_the_pair_is_that_of_the_best_kappa_times_evenness(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice(5, 300, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    points = rng.normal(size=(5, 3))[truth] + 0.3 * rng.normal(size=(300, 3))
    pairs = [(unsure(rng, truth, 5), unsure(rng, truth, 5)) for _ in range(3)]
    values = {}
    for first, second in combinations(range(5), 2):
        names = np.where(np.arange(5) == second, first, np.arange(5))
        names[np.arange(5) > second] -= 1
        kappa = np.mean([cohen_kappa_score(names[one], names[other]) for one, other in pairs])
        values[first, second] = kappa * ClusterSums.of(points, names[truth], 4).evenness()
    merge = best_merge(pairs, ClusterSums.of(points, truth, 5), 4)
    assert sorted(set(merge)) == [0, 1, 2, 3]
    (merged,) = np.flatnonzero(np.bincount(merge) == 2)
    first, second = np.flatnonzero(merge == merged)
    assert values[first, second] == pytest.approx(max(values.values()))


def test_many_clusters_are_merged_in_no_time():
    """Their partitions are too many to try."""
    rng = np.random.default_rng(0)
    truth = rng.integers(64, size=4000)
    pairs = [(np.where(truth < 3, rng.integers(3, size=4000), truth), truth)]
    merge = best_merge(pairs, apart(truth, 64), 62)
    assert set(merge) == set(range(62)) and merge[0] == merge[1] == merge[2]
