import numpy as np
import pytest

from tests.discovery.points import by_variance
from twcli.discovery.discriminants import Discriminant
from twcli.discovery.given import complete, enough_given, self_trained

ROWS = 400


def two_distinctions(seed, rows=ROWS):
    """(points, what they differ in most, what is meant): two strategies that differ less than two
    lengths do.
    """
    rng = np.random.default_rng(seed)
    length, meant = rng.integers(2, size=(2, rows))
    points = rng.normal(size=(rows, 12))
    points[:, 0] += 12 * length
    points[:, 1] += 5 * meant
    return by_variance(points), length, meant


def some_of(truth, count, seed):
    """The truth (N,) of a few random rows of each latent, -1 for all others."""
    rng = np.random.default_rng(seed)
    given = np.full(len(truth), -1)
    for latent in np.unique(truth):
        rows = rng.choice(np.flatnonzero(truth == latent), count, replace=False)
        given[rows] = latent
    return given


def right(completed, truth, given):
    others = given < 0
    return float((completed.posterior_NK.argmax(1) == truth)[others].mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("single", [True, False])
def test_a_few_given_names_say_which_distinction_is_meant(seed, single):
    points, length, meant = two_distinctions(seed)
    sizes = np.ones(ROWS, int) if single else np.full(ROWS // 4, 4)
    given = some_of(meant, 20, seed)
    completed = complete(points, given, Discriminant.fit(points, length, 2), sizes, seed=0)
    assert np.mean(length == meant) < 0.6  # so the clusters say nothing of it
    assert right(completed, meant, given) > 0.95
    assert completed.agreement == pytest.approx(right(completed, meant, given), abs=0.1)
    assert np.array_equal(completed.discriminant(points), completed.posterior_NK)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_agree_are_kept_and_take_the_given_names(seed):
    """Two names of each are too few to learn directions from, and enough to tell which is which."""
    points, length, _ = two_distinctions(seed)
    clusters = Discriminant.fit(points, 1 - length, 2)
    given = some_of(length, 2, seed)
    completed = complete(points, given, clusters, np.ones(ROWS, int), seed=0)
    assert np.array_equal(completed.posterior_NK[:, ::-1], clusters(points))
    assert right(completed, length, given) == completed.agreement == 1


@pytest.mark.parametrize("seed", range(3))
def test_names_by_chance_are_predicted_by_chance(seed):
    points, length, _ = two_distinctions(seed)
    names = np.random.default_rng([seed, 1]).integers(2, size=ROWS)
    given = some_of(names, 60, seed)
    completed = complete(points, given, Discriminant.fit(points, length, 2), np.ones(ROWS, int), 0)
    assert completed.agreement < 0.62


def test_all_names_given_are_measured_by_each_other():
    points, length, meant = two_distinctions(0)
    wrong = meant.copy()
    wrong[:40] = 1 - wrong[:40]
    clusters = Discriminant.fit(points, length, 2)
    completed = complete(points, wrong, clusters, np.ones(ROWS, int), 0)
    assert completed.agreement == pytest.approx(0.9, abs=0.03)


def test_a_latent_of_few_rows_is_kept():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 600, p=[0.7, 0.25, 0.05])
    points = 6 * np.eye(3, 10)[truth] + rng.normal(size=(600, 10))
    found = self_trained(points, some_of(truth, 5, 0), 3)(points).argmax(1)
    assert np.mean(found == truth) > 0.98 and np.mean(found[truth == 2] == 2) > 0.9


@pytest.mark.parametrize(
    ("given", "latents", "enough"),
    [
        ([0, 0, 1, 1, -1], 2, True),
        ([0, 0, 1, -1, -1], 2, False),
        ([0, 0, 1, 1, -1], 3, False),
        ([-1, -1], 2, False),
        ([], 2, False),
    ],
)
def test_every_latent_needs_two_names(given, latents, enough):
    assert enough_given(np.array(given, int), latents) is enough
