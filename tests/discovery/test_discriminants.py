import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from tests.discovery.points import unequal
from twcli.discovery.discriminants import DOUBT, Discriminant, leave_out, out_of_fold


def test_a_discriminant_names_other_rows():
    rng = np.random.default_rng(0)
    points, truth = unequal(rng)
    others, expected = unequal(rng)
    posterior = Discriminant.fit(points, truth, 3)(others)
    assert (posterior.argmax(1) == expected).mean() > 0.97
    assert posterior.sum(1) == pytest.approx(np.ones(400)) and posterior.min() >= DOUBT / 3 * 0.99


def test_a_class_of_one_row_is_left_out():
    points = np.random.default_rng(0).normal(size=(41, 3))
    points[:20] += 9
    clusters = np.repeat([0, 2, 1], [20, 20, 1])
    discriminant = Discriminant.fit(points, clusters, 3)
    assert discriminant.names.tolist() == [0, 2]
    posterior = discriminant(points)
    assert (posterior[:40].argmax(1) == clusters[:40]).all()
    assert posterior[:, 1] == pytest.approx(np.full(41, DOUBT / 3))


def test_a_single_class_is_certain_and_none_is_chance():
    points = np.random.default_rng(0).normal(size=(10, 3))
    posterior = Discriminant.fit(points, np.full(10, 1), 3)(points)
    assert posterior == pytest.approx(np.tile([DOUBT / 3, 1 - 2 * DOUBT / 3, DOUBT / 3], (10, 1)))
    nothing = Discriminant.fit(points[:2], np.array([0, 1]), 3)(points)  # one row each
    assert nothing == pytest.approx(np.full((10, 3), 1 / 3))


def test_points_of_no_width_say_nothing_of_two_classes():
    posterior = Discriminant.fit(np.zeros((10, 0)), np.arange(10) % 2, 2)(np.zeros((4, 0)))
    assert posterior == pytest.approx(np.full((4, 2), 0.5))


def test_no_row_is_named_by_a_discriminant_that_saw_its_prompt():
    """Each prompt has a place of its own, and names that are random from prompt to prompt."""
    rng = np.random.default_rng(0)
    sizes = np.full(60, 4)
    prompt_N = np.repeat(np.arange(60), 4)
    points = np.eye(60)[prompt_N] + 0.01 * rng.normal(size=(240, 60))
    clusters = rng.integers(2, size=60)[prompt_N]
    posterior = out_of_fold(points, clusters, sizes, 2, rng)
    assert (posterior.argmax(1) == clusters).mean() < 0.65
    seen = Discriminant.fit(points, clusters, 2)(points)
    assert (seen.argmax(1) == clusters).mean() > 0.95


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
