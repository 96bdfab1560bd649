import numpy as np
import pytest

from tests.discovery.points import by_variance, crossed
from twcli.discovery.subkinds import Generalisation


def generalisation(views, points, clusters, latents, seed):
    weight = np.ones(len(clusters))
    return Generalisation.of(views, points, clusters, weight, latents, seed).agreement


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


def test_a_name_of_nearly_all_rows_agrees_and_says_little():
    points, _, truth = crossed(np.random.default_rng(0))
    points = by_variance(points)
    weight = np.ones(len(truth))
    few = np.where(np.arange(len(truth)) < 6, 1, 0)
    apart = points + 50.0 * few[:, None]
    each = Generalisation.of([points], points, truth, weight, 3, seed=0)
    rare = Generalisation.of([apart], apart, few, weight, 3, seed=0)
    assert each.agreement > 0.9 and rare.agreement > 0.9
    assert rare.information < 0.2 * each.information


def test_information_counts_rows_by_their_weight():
    """Rows without weight do not count: those of the others alone say the same."""
    points, _, truth = crossed(np.random.default_rng(0))
    points = by_variance(points)
    weight = (truth > 0).astype(float)
    found = Generalisation.of([points], points, truth, weight, 3, seed=0)
    assert found.information == pytest.approx(
        Generalisation.of([points], points, truth, 7 * weight, 3, seed=0).information
    )
    assert found.information < np.log(2) / np.log(3) + 0.02
