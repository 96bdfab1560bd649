import numpy as np
import pytest

from tests.discovery.points import by_variance, crossed
from twcli.discovery.subkinds import generalisation


def test_strategies_carry_over_to_other_wordings_and_wordings_put_together_do_not():
    points, wording, truth = crossed(np.random.default_rng(0))
    points = by_variance(points)
    together = np.random.default_rng(1).permutation(12)[wording] % 3
    views = [points, points]
    assert generalisation(views, points, truth, 3, seed=0) > 0.95
    assert generalisation(views, points, together, 3, seed=0) < 0.5


def test_names_at_random_carry_over_to_nothing():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 20))
    assert generalisation([points], points, rng.integers(4, size=400), 4, seed=0) < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_value(seed):
    points, _, truth = crossed(np.random.default_rng(0))
    one, other = (generalisation([points], points, truth, 3, seed=seed) for _ in range(2))
    assert one == other


def test_one_cluster_says_nothing():
    points = np.random.default_rng(0).normal(size=(40, 5))
    assert generalisation([points], points, np.zeros(40, int), 3, seed=0) == 0.0


def test_equal_points_and_clusters_of_one_row_are_no_error():
    points = np.zeros((30, 4))
    points[15:] = 1.0
    clusters = np.repeat([0, 1], 15)
    assert generalisation([points], points, clusters, 2, seed=0) == pytest.approx(1.0)
    clusters[0] = 2
    assert 0.0 <= generalisation([points], points, clusters, 4, seed=0) <= 1.0
