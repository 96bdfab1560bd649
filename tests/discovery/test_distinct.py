import numpy as np
import pytest

from tests.conftest import centred, matched
from twcli.discovery.centring import Space
from twcli.discovery.distinct import (
    alternatives,
    assign,
    best_clustering,
    best_count,
    constrained_kmeans,
)


def test_assignment_is_distinct_within_a_prompt_even_where_the_nearest_is_shared():
    centroids = np.array([[0.0], [10.0]])
    points = np.array([[1.0], [2.0], [9.0], [8.0]])
    assert assign(points, [2, 2], centroids).tolist() == [0, 1, 1, 0]


def test_more_completions_than_clusters_share_the_nearest():
    centroids = np.array([[0.0], [10.0]])
    assert assign(np.array([[0.0], [1.0], [10.0]]), [3], centroids).tolist() == [0, 0, 1]


def test_names_are_synchronised_across_prompts(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(1)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(10)]
    clusters, score, agreement = best_clustering(starts, [points], sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.98
    assert 0 < agreement <= 1 and 0.5 < score <= 1
    start = 0
    for size in sizes:
        assert len(set(clusters[start : start + size])) == size
        start += size


def test_points_without_directions_are_no_error():
    clusters, score, _ = best_clustering(
        [np.array([0, 1, 1, 0])], [np.zeros((4, 0))], [2, 2], 2, np.random.default_rng(0)
    )
    assert sorted(clusters[:2]) == [0, 1] and score == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_of_two_namings_that_y_tells_the_one_that_its_beginning_tells_is_taken(seed):
    """Four strategies; of the last two one turns out long, which of them hangs on x. All of y tells
    that best, its beginning cannot.
    """
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.permutation(4) for _ in range(300)])
    turned = np.repeat(rng.integers(2, size=300), 4)
    long = np.where((truth >= 2) & (turned == 1), 5 - truth, truth)
    points = np.concatenate([2 * np.eye(4)[truth], 3 * np.eye(4)[long]], axis=1) + 0.4 * rng.normal(
        size=(1200, 8)
    )
    points -= np.repeat(points.reshape(300, 4, 8).mean(1), 4, axis=0)
    beginning, sizes = points[:, :4], [4] * 300

    def found(views):
        draws = np.random.default_rng(seed)
        starts = [constrained_kmeans(view, sizes, 4, draws) for view in views for _ in range(4)]
        return best_clustering(starts, views, sizes, 4, draws)[0]

    assert matched(found([points]), long, 4) > 0.98 and matched(long, truth, 4) < 0.8
    assert matched(found([points, beginning]), truth, 4) > 0.98


@pytest.mark.parametrize("prompts", [0, 1, 100])
def test_strategies_that_begin_alike_are_distinguished_by_what_follows(prompts, strategies):
    """The beginning says nothing but in a few prompts, all of which may stand in one half."""
    points, sizes, truth = strategies
    beginning = np.where(
        np.repeat(np.arange(len(sizes)) < prompts, sizes)[:, None], 1e-3 * points, 0
    )
    rng = np.random.default_rng(1)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(6)]
    clusters, score, _ = best_clustering(starts, [points, beginning], sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.98 and np.isfinite(score)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_clusters_is_found(count):
    """A vector a strategy plus noise in the first half of the features;
    weaker noise in the other half.
    """
    rng = np.random.default_rng(count)
    centroids, sizes, points = rng.normal(size=(count, 12)), [], []
    for _ in range(400):
        chosen = rng.choice(count, rng.integers(2, min(count, 4) + 1), replace=False)
        values = centroids[chosen] + 0.3 * rng.normal(size=(len(chosen), 12))
        points.append(np.concatenate([values, 0.2 * rng.normal(size=(len(chosen), 40))], axis=1))
        points[-1] -= points[-1].mean(0)
        sizes.append(len(chosen))
    features = np.split(np.concatenate(points).astype(np.float32), [12], axis=1)
    space, steps = Space.fit(features, 0), []
    kinds = [space.scaled(features, kinds) for kinds in ((0,), (1,), (0, 1))]
    found, gains = best_count(space(features), kinds, sizes, 0, steps.append)
    assert found == count
    assert list(gains) == list(range(2, count + 4)) and steps == [1] * len(gains)


def test_clusters_that_meet_in_no_prompt_are_one_choice():
    """Three strategies; the first two are each cut in two by x, at different x,
    and one cluster is empty.
    """
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(300), 3)
    strategies = np.concatenate([rng.permutation(3) for _ in range(300)])
    cut = (
        strategies
        + 3 * ((strategies == 0) & (prompts % 2 == 0))
        + 3 * ((strategies == 1) & (prompts % 3 == 0))
    )
    assert sorted(set(cut)) == [0, 1, 2, 3, 4]
    for clusters, latents in ((strategies, 3), (cut, 6)):
        assert alternatives(clusters, [3] * 300, latents) == 3


def test_clusters_that_meet_now_and_then_are_two_choices():
    """Two strategies that stand beside each other in a fifth of the prompts
    where chance would have both.
    """
    both, one, other = [0, 1] * 20, [0, 2] * 80, [1, 2] * 80
    assert alternatives(np.array(both + one + other), [2] * 180, 3) == 3
    assert alternatives(np.array(both[:4] + one + other), [2] * 162, 3) == 2


def test_too_few_prompts_say_nothing_about_meetings():
    assert alternatives(np.array([0, 2] * 4 + [1, 2] * 4), [2] * 8, 3) == 3


@pytest.mark.parametrize("seed", range(3))
def test_names_of_pairs_are_synchronised(pairs, seed):
    features, sizes, truth = pairs
    points, rng = centred(features, sizes, True), np.random.default_rng(seed)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(10)]
    clusters, _, _ = best_clustering(starts, [points], sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.97
