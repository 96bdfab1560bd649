import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from twcli.clustering import (
    CrossValidation,
    _independent_directions,
    alternatives,
    assign,
    best_clustering,
    best_count,
    constrained_kmeans,
    told_apart,
)
from twcli.spaces import Centring, Space, in_pairs, whitened


def matched(clusters, truth, latents):
    counts = np.zeros((latents, truth.max() + 1))
    np.add.at(counts, (clusters, truth), 1)
    return counts[linear_sum_assignment(-counts)].sum() / len(truth)


def test_assignment_is_distinct_within_a_prompt_even_where_the_nearest_is_shared():
    centroids = np.array([[0.0], [10.0]])
    points = np.array([[1.0], [2.0], [9.0], [8.0]])
    assert assign(points, [2, 2], centroids).tolist() == [0, 1, 1, 0]


def test_more_completions_than_clusters_share_the_nearest():
    centroids = np.array([[0.0], [10.0]])
    assert assign(np.array([[0.0], [1.0], [10.0]]), [3], centroids).tolist() == [0, 0, 1]


@pytest.fixture(scope="module")
def strategies():
    """(points, sizes, truth): a vector a strategy plus a prompt offset ten times its size and noise; 2 to 4 completions."""
    rng = np.random.default_rng(0)
    centroids = 2 * rng.normal(size=(4, 6))
    sizes, truth, points = [], [], []
    for _ in range(150):
        chosen = rng.choice(4, rng.integers(2, 5), replace=False)
        values = centroids[chosen] + 20 * rng.normal(size=6) + 0.4 * rng.normal(size=(len(chosen), 6))
        points.append(values - values.mean(0))
        sizes.append(len(chosen))
        truth.append(chosen)
    return np.concatenate(points), sizes, np.concatenate(truth)


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


def test_exchanged_names_of_a_pair_are_found_and_put_right(strategies):
    points, sizes, truth = strategies
    exchanged = truth.copy()
    some = np.repeat(np.random.default_rng(3).random(len(sizes)) < 0.5, sizes)
    exchanged[some & (truth == 0)], exchanged[some & (truth == 1)] = 1, 0
    judge = CrossValidation([points], sizes, 4, np.random.default_rng(1))
    score = judge.assign(exchanged)[1]
    assert matched(exchanged, truth, 4) < 0.8
    clusters, better = max(judge.search(exchanged, score), key=lambda result: result[1])
    assert better > score
    assert matched(clusters, truth, 4) > 0.98


def test_the_score_ranks_clusterings_as_their_alignment_does(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(2)
    judge = CrossValidation([points], sizes, 4, rng)
    scores = []
    for right in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
        prompts = np.repeat(rng.random(len(sizes)) < right, sizes)
        shuffled = np.concatenate([rng.permutation(4)[part] for part in np.split(truth, np.cumsum(sizes)[:-1])])
        scores.append(judge.assign(np.where(prompts, truth, shuffled))[1])
    assert scores == sorted(scores)


def test_mending_moves_the_wrong_ones(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(3)
    start = np.where(rng.random(len(truth)) < 0.6, truth, rng.integers(4, size=len(truth)))
    assert matched(start, truth, 4) < 0.75
    clusters, _ = CrossValidation([points], sizes, 4, rng).mend(start)
    assert matched(clusters, truth, 4) > 0.98


def test_whitening_gives_unit_covariance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    values -= values.mean(0)
    white = whitened(values, 5, 0)
    assert white.shape == (500, 5)
    assert np.allclose(white.T @ white / 500, np.eye(5), atol=1e-8)


def test_both_kinds_of_features_have_the_same_say():
    rng = np.random.default_rng(0)
    kinds = (100 * rng.normal(size=(300, 50)), 0.01 * rng.normal(size=(300, 10)))
    space = Space.fit(kinds, 0)
    shares = [(np.square(kind * scale)).sum() for kind, scale in zip(kinds, space.scales, strict=True)]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    assert np.square(space(kinds)[0]).sum() == pytest.approx(sum(shares), rel=1e-6)  # all directions are kept


def test_features_without_variance_are_no_error():
    constant = (np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32))
    (points,) = Space.fit(constant, 0)(constant)
    assert points.shape == (4, 0)
    clusters, score, _ = best_clustering([np.array([0, 1, 1, 0])], [points], [2, 2], 2, np.random.default_rng(0))
    assert sorted(clusters[:2]) == [0, 1] and score == 0


def test_each_view_sees_its_kinds_alone():
    rng = np.random.default_rng(0)
    kinds = [rng.normal(size=(300, 5)).astype(np.float32) for _ in range(3)]
    space = Space.fit(kinds, 0, views=((0, 1, 2), (1,)))
    changed = [kinds[0] + 1, kinds[1], kinds[2] * 2]
    (whole, one), (other_whole, other_one) = space(kinds), space(changed)
    assert whole.shape == (300, 15) and one.shape == (300, 5)
    assert np.array_equal(one, other_one) and not np.allclose(whole, other_whole)


@pytest.mark.parametrize("seed", range(3))
def test_of_two_namings_that_y_tells_the_one_that_its_beginning_tells_is_taken(seed):
    """Four strategies; of the last two one turns out long, which of them hangs on x. All of y tells that best, its beginning cannot."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.permutation(4) for _ in range(300)])
    turned = np.repeat(rng.integers(2, size=300), 4)
    long = np.where((truth >= 2) & (turned == 1), 5 - truth, truth)
    points = np.concatenate([2 * np.eye(4)[truth], 3 * np.eye(4)[long]], axis=1) + 0.4 * rng.normal(size=(1200, 8))
    points -= np.repeat(points.reshape(300, 4, 8).mean(1), 4, axis=0)
    beginning, sizes = points[:, :4], [4] * 300

    def found(views):
        draws = np.random.default_rng(seed)
        starts = [constrained_kmeans(view, sizes, 4, draws) for view in views for _ in range(4)]
        return best_clustering(starts, views, sizes, 4, draws)[0]

    assert matched(found([points]), long, 4) > 0.98 and matched(long, truth, 4) < 0.8
    assert matched(found([points, beginning]), truth, 4) > 0.98


@pytest.mark.parametrize("prompts", [0, 1, 100])
def test_strategies_that_begin_alike_are_told_by_what_follows(prompts, strategies):
    """The beginning says nothing but in a few prompts, all of which may stand in one half."""
    points, sizes, truth = strategies
    beginning = np.where(np.repeat(np.arange(len(sizes)) < prompts, sizes)[:, None], 1e-3 * points, 0)
    rng = np.random.default_rng(1)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(6)]
    clusters, score, _ = best_clustering(starts, [points, beginning], sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.98 and np.isfinite(score)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_number_of_clusters_is_found(count):
    """A vector a strategy plus noise in the first half of the features; weaker noise in the other half."""
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
    """Three strategies; the first two are each cut in two by x, at different x, and one cluster is empty."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(300), 3)
    strategies = np.concatenate([rng.permutation(3) for _ in range(300)])
    cut = strategies + 3 * ((strategies == 0) & (prompts % 2 == 0)) + 3 * ((strategies == 1) & (prompts % 3 == 0))
    assert sorted(set(cut)) == [0, 1, 2, 3, 4]
    for clusters, latents in ((strategies, 3), (cut, 6)):
        assert alternatives(clusters, [3] * 300, latents) == 3


def test_clusters_that_meet_now_and_then_are_two_choices():
    """Two strategies that stand beside each other in a fifth of the prompts where chance would have both."""
    both, one, other = [0, 1] * 20, [0, 2] * 80, [1, 2] * 80
    assert alternatives(np.array(both + one + other), [2] * 180, 3) == 3
    assert alternatives(np.array(both[:4] + one + other), [2] * 162, 3) == 2


def test_too_few_prompts_say_nothing_about_meetings():
    assert alternatives(np.array([0, 2] * 4 + [1, 2] * 4), [2] * 8, 3) == 3


# the score of a run


def share(points, sizes, soft):
    told, attainable = told_apart(points, sizes, soft, seed=0)
    return told.sum() / attainable.sum()


def test_the_score_of_names_that_hold_for_all_prompts_is_near_one(strategies):
    points, sizes, truth = strategies
    assert 0.9 < share(points, sizes, np.eye(4)[truth]) < 1.02


def test_the_score_of_latents_that_say_nothing_is_zero(strategies):
    points, sizes, truth = strategies
    assert share(points, sizes, np.full((len(truth), 4), 0.25)) == pytest.approx(0, abs=1e-12)
    random = np.random.default_rng(5).integers(4, size=len(truth))
    assert abs(share(points, sizes, np.eye(4)[random])) < 0.15


def test_the_score_falls_with_every_prompt_whose_names_are_its_own(strategies):
    points, sizes, truth = strategies
    rng, scores = np.random.default_rng(6), []
    for right in (0.2, 0.4, 0.6, 0.8, 1.0):
        prompts = np.repeat(rng.random(len(sizes)) < right, sizes)
        shuffled = np.concatenate([rng.permutation(4)[part] for part in np.split(truth, np.cumsum(sizes)[:-1])])
        scores.append(share(points, sizes, np.eye(4)[np.where(prompts, truth, shuffled)]))
    assert scores == sorted(scores) and scores[0] < 0.5


def test_the_score_falls_with_certainty(strategies):
    points, sizes, truth = strategies
    scores = [share(points, sizes, (1 - doubt) * np.eye(4)[truth] + doubt / 4) for doubt in (0.9, 0.5, 0.1)]
    assert scores == sorted(scores)


def test_more_completions_than_latents_can_still_score_one():
    """Six completions of each prompt, two of either of three kinds: no more than three latents can be apart."""
    rng = np.random.default_rng(0)
    truth = np.tile([0, 0, 1, 1, 2, 2], 200)
    points = 3 * np.eye(3)[truth] + 0.05 * rng.normal(size=(1200, 3))
    points -= np.repeat(points.reshape(200, 6, 3).mean(1), 6, axis=0)
    assert 0.95 < share(points, [6] * 200, np.eye(3)[truth]) < 1.02


# prompts with two completions each


@pytest.fixture(scope="module")
def pairs():
    """(features of one kind, sizes, truth): a vector a strategy, and twelve dimensions of which half hold the prompt's content."""
    rng = np.random.default_rng(11)
    centroids = np.concatenate([2 * rng.normal(size=(4, 6)), np.zeros((4, 6))], axis=1)
    truth = np.array([rng.choice(4, 2, replace=False) for _ in range(400)])
    content = rng.normal(size=(400, 1, 12)) * np.repeat([0.5, 20], 6)
    features = centroids[truth] + content + 0.4 * rng.normal(size=(400, 2, 12))
    return features.reshape(800, 12).astype(np.float32), [2] * 400, truth.ravel()


def centred(features, sizes, keep):
    features = features.copy()
    Centring.fit((features,), sizes, keep=keep)((features,), sizes)
    return features


def test_differences_of_pairs_leave_the_partners_name_as_good_as_ones_own(pairs):
    features, sizes, truth = pairs
    partners = truth.reshape(-1, 2)[:, ::-1].ravel()
    scores = {keep: [CrossValidation([centred(features, sizes, keep)], sizes, 4, np.random.default_rng(1)).assign(names)[1]
                     for names in (truth, partners)] for keep in (False, True)}
    assert scores[False][0] == pytest.approx(scores[False][1], abs=1e-5)
    assert scores[True][0] > scores[True][1] + 0.2


@pytest.mark.parametrize("seed", range(3))
def test_names_of_pairs_are_synchronised(pairs, seed):
    features, sizes, truth = pairs
    points, rng = centred(features, sizes, True), np.random.default_rng(seed)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(10)]
    clusters, _, _ = best_clustering(starts, [points], sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.97


def test_what_stays_of_the_prompts_means_is_no_larger_than_the_differences(pairs):
    features, sizes, _ = pairs
    kept = centred(features, sizes, True)
    means, apart = kept.reshape(-1, 2, 12).mean(1).std(0), centred(features, sizes, False).std(0)
    assert (means <= 1.01 * apart).all() and means.min() > 0.1
    assert np.allclose(kept - means_of(kept), centred(features, sizes, False), atol=1e-4)
    assert np.allclose(means_of(centred(features, sizes, False)), 0, atol=1e-5)


def means_of(features):
    return features.reshape(-1, 2, features.shape[1]).mean(1).repeat(2, axis=0)


def test_a_centring_serves_other_prompts_and_features_without_spread(pairs):
    features, sizes, _ = pairs
    constant = np.concatenate([features, np.ones((800, 1), np.float32)], axis=1)
    fitted = Centring.fit((constant,), sizes, keep=True)
    others = constant[:4] + 1
    whole = constant.copy()
    fitted((whole,), sizes)
    fitted((others,), [2, 2])
    assert np.isfinite(whole).all() and (whole[:, -1] == 0).all()
    assert np.allclose((others - whole[:4])[:, :-1], fitted.shares[0][:-1], atol=1e-4)


def test_only_a_few_prompts_of_more_make_pairs():
    assert in_pairs([2] * 19 + [3]) and not in_pairs([2] * 8 + [3, 4])


def test_signs_are_sought_along_the_axes_where_no_direction_can_be_told_from_a_normal_one(monkeypatch):
    def fails(*_):
        raise ValueError("array must not contain infs or NaNs")

    monkeypatch.setattr("twcli.clustering.FastICA.fit", fails)
    assert np.array_equal(_independent_directions(np.ones((9, 3), np.float32)), np.eye(3))
