import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from tests.discovery.test_search import by_variance, crossed
from twcli.discovery.subkinds import generalisation, leave_out


def plainly_left_out(points, clusters, folds, latents):
    """Each fold by means and a shrunk covariance that are computed from the other rows."""
    means = np.array([points[clusters == k].mean(0) for k in range(latents)])
    within = points - means[clusters]
    shrinkage = ledoit_wolf_shrinkage(within / within.std(0), assume_centered=True)
    predicted = np.empty_like(clusters)
    for fold in np.unique(folds):
        held = folds == fold
        seen, named = points[~held], clusters[~held]
        centres = np.array([seen[named == k].mean(0) for k in range(latents)])
        covariance = np.cov((seen - centres[named]).T, bias=True)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
        precision = np.linalg.inv(covariance)
        shares = np.bincount(named, minlength=latents) / len(named)
        away = points[held][:, None] - centres
        distance = np.einsum("nkd,de,nke->nk", away, precision, away)
        predicted[held] = (np.log(shares) - distance / 2).argmax(1)
    return predicted


def test_left_out_folds_are_predicted_as_if_each_were_fitted_by_itself():
    rng = np.random.default_rng(0)
    clusters, folds = rng.integers(3, size=300), rng.integers(5, size=300)
    points = rng.normal(size=(3, 8))[clusters] + rng.normal(size=(300, 8)) * rng.gamma(2, size=8)
    expected = plainly_left_out(points, clusters, folds, 3)
    assert 0.3 < (expected == clusters).mean() < 0.95
    np.testing.assert_array_equal(leave_out(points, clusters, folds, 3), expected)


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
