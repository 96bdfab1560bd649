import numpy as np
import pytest

from tests.conftest import matched
from tests.discovery.points import by_variance, crossed
from twcli.discovery.ways import Way, Weights, even_weights, ways_of


def plainly(weight_N):
    return Weights(weight_N, (weight_N,))


def test_fine_clusters_are_taken_out_of_the_states():
    """One way alone: of the crossed points k-means finds wordings, and strategies once the means
    of fine clusters are gone.
    """
    points, _, truth = crossed(np.random.default_rng(0))
    views, every = [by_variance(points)], np.ones(len(points), bool)
    weight = plainly(np.ones(len(points)))
    plain = Way(0, 12).name(views, weight, 3, every, 0)
    alternative = Way(0, 12, fine=12).name(views, weight, 3, every, 0)
    assert matched(plain, truth, 3) < 0.6 < 0.9 < matched(alternative, truth, 3)


def test_ways_cover_all_views_and_kinds(all_ways):
    ways = ways_of(4, 3)
    assert len(set(ways)) == len(ways) == 33
    assert {way.view for way in ways} == {0, 1, 2}
    assert {way.mixture for way in ways} == {False, True}
    assert {way.fine for way in ways} == {0, 12, 20}


def test_short_rows_count_less_in_a_way():
    """Two clusters of long rows; short rows far away would take a cluster of their own."""
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [
            rng.normal(size=(50, 2)),
            rng.normal(size=(50, 2)) + np.array([8, 0]),
            0.1 * rng.normal(size=(6, 2)) + np.array([0, 60]),
        ]
    )
    every = np.ones(106, bool)
    weight, same = plainly(np.where(np.arange(106) < 100, 1.0, 0.001)), plainly(np.ones(106))
    by_length = Way(0, 2).name([points], weight, 2, every, 0)
    alike = Way(0, 2).name([points], same, 2, every, 0)
    truth = np.repeat([0, 1], 50)
    assert matched(by_length[:100], truth, 2) == 1 and matched(alike[:100], truth, 2) == 0.5


def test_dense_regions_count_no_more_than_sparse_ones():
    """Nine tenths of the rows in one place: it weighs as much as the other place, whose rows lie
    as they do; the total weight stays, and unused rows keep theirs.
    """
    rng = np.random.default_rng(0)
    place = np.repeat([0, 1], [540, 60])
    points = 0.1 * rng.normal(size=(600, 3)) + np.array([20.0, 0, 0]) * place[:, None]
    used = np.ones(600, bool)
    used[::50] = False
    weight = even_weights(points, np.full(600, 2.0), used)
    assert weight[~used] == pytest.approx(np.full((~used).sum(), 2.0))
    assert weight[used].mean() == pytest.approx(2.0)
    dense, sparse = (weight[used & (place == p)].sum() for p in (0, 1))
    assert 0.3 < dense / sparse < 3 < 9
