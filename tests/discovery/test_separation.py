import numpy as np
import pytest

from twcli.discovery.separation import FAR_ENOUGH, ClusterSums


def evenness(points, clusters, count):
    return ClusterSums.of(points, clusters, count).evenness()


def points_around(means, rows, rng, spread=0.05):
    """(points, clusters) of so many rows around each mean."""
    clusters = np.repeat(np.arange(len(means)), rows)
    return means[clusters] + spread * rng.normal(size=(len(clusters), means.shape[1])), clusters


@pytest.mark.parametrize(("nearest", "expected"), [(1.0, 1 / (3 * FAR_ENOUGH)), (2.7, 1.0)])
def test_evenness_is_the_smallest_distance_over_most_of_the_median_one(nearest, expected):
    means = np.array([[0.0, 0.0], [nearest, 0.0], [0.0, 3.0]])
    points, clusters = points_around(means, [200, 100, 50], np.random.default_rng(0))
    assert evenness(points, clusters, 3) == pytest.approx(expected, abs=0.02)


def test_a_frequent_cluster_that_is_cut_in_two_is_uneven():
    rng = np.random.default_rng(0)
    points, clusters = points_around(np.eye(4), [300, 100, 100, 30], rng)
    cut = np.where((clusters == 0) & (points[:, 0] > 1), 4, clusters)
    assert evenness(points, clusters, 4) > 0.95
    assert evenness(points, cut, 5) < 0.2


def test_few_rows_are_not_far_apart_by_chance():
    """The expectation of squared distances does not depend on the number of rows: clusters of
    three rows of the same distribution are as near as those of a thousand.
    """
    rng = np.random.default_rng(0)
    squared = []
    for _ in range(300):
        rows = np.array([3, 3, 100, 100])
        points, clusters = points_around(np.zeros((4, 6)), rows, rng, spread=1.0)
        own = ClusterSums.of(points, clusters, 4)
        squared.append(own.squared_distances())
    mean = np.mean(squared, axis=0)
    error = np.std(squared, axis=0) / np.sqrt(len(squared))
    assert (np.abs(mean) < 4 * error).all()


def test_sums_of_unions_are_those_of_the_united_clusters():
    rng = np.random.default_rng(1)
    points, clusters = points_around(rng.normal(size=(5, 30)), [9, 4, 20, 3, 8], rng, 0.7)
    united = ClusterSums.of(points, clusters, 5).united(1, 3)
    names = np.array([0, 1, 2, 1, 3])
    again = ClusterSums.of(points, names[clusters], 4)
    assert united.evenness() == pytest.approx(again.evenness())
    assert united.count_C.tolist() == again.count_C.tolist()


@pytest.mark.parametrize("clusters", [[0, 0, 0, 0], [0, 1, 0, 1], [3, 1, 1, 3]])
def test_fewer_than_three_clusters_are_even(clusters):
    assert evenness(np.arange(8.0).reshape(4, 2), np.array(clusters), 4) == 1.0


def test_points_without_directions_and_clusters_of_one_row_have_a_value():
    assert evenness(np.empty((4, 0)), np.arange(4), 4) == 0.0
    assert 0.0 <= evenness(np.eye(4), np.arange(4), 4) <= 1.0
