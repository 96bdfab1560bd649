import numpy as np
import pytest
from sklearn.cluster import KMeans

from tests.conftest import matched
from tests.discovery.points import by_variance, crossed, rare_and_wordy, two_alike, unequal
from twcli.discovery.discriminants import discriminant_points
from twcli.discovery.score import expected_share_right
from twcli.discovery.search import _Rows, search
from twcli.discovery.ways import Way, Weights, even_weights, ways_of


def share_right(result, latents):
    return expected_share_right(
        result.stability_beyond_chance, result.above_noise, result.generalisation, latents
    )


def found(points, latents, sizes=None, seed=0, **how):
    sizes = [1] * len(points) if sizes is None else sizes
    return search([points] * 3, np.ones(len(points)), sizes, latents, seed, **how)


@pytest.mark.slow
def test_clusters_of_unequal_size_are_found(all_ways):
    points, truth = unequal(np.random.default_rng(0))
    steps = []
    result = found(by_variance(points), 3, advance=steps.append)
    assert matched(result.posterior_NK.argmax(1), truth, 3) >= 0.98
    assert result.stability > 0.97
    assert result.above_noise > 0.9
    assert result.generalisation > 0.9
    assert share_right(result, 3) > 0.98
    assert result.posterior_NK.sum(1) == pytest.approx(np.ones(400))
    assert steps == [1] * len(ways_of(3, 3))
    named = result.discriminant(discriminant_points([by_variance(points)] * 3))
    assert matched(named.argmax(1), truth, 3) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("latents", [2, 4])
def test_noise_is_not_stable(all_ways, latents):
    points = np.random.default_rng(0).normal(size=(300, 30))
    result = found(points, latents)
    assert result.above_noise < 0.3
    assert share_right(result, latents) < 1 / latents + 0.1


@pytest.mark.slow
def test_strategies_can_be_found_below_wordings_that_differ_more(all_ways):
    """Wordings far apart may group as stably as strategies do: not every such set is named right,
    but one that k-means never finds is found.
    """
    shares = []
    for seed in range(2):
        points, wording, truth = crossed(np.random.default_rng(seed))
        points = by_variance(points)
        spread = [
            sum(
                (groups == g).sum() * ((points[groups == g].mean(0)) ** 2).sum()
                for g in np.unique(groups)
            )
            for groups in (wording, truth)
        ]
        assert spread[0] > 10 * spread[1]
        plain = KMeans(3, n_init=5, random_state=0).fit_predict(points)
        assert matched(plain, truth, 3) < 0.6
        result = found(points, 3, seed=seed)
        shares.append(matched(result.posterior_NK.argmax(1), truth, 3))
    assert max(shares) >= 0.98


@pytest.mark.slow
def test_the_seed_decides():
    points = np.random.default_rng(0).normal(size=(120, 12))
    one, same, other = (found(points, 3, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.posterior_NK, same.posterior_NK)
    assert (one.stability, one.above_noise) == (same.stability, same.above_noise)
    assert not np.array_equal(one.posterior_NK, other.posterior_NK)


@pytest.mark.slow
def test_only_some_prompts_are_searched_and_all_rows_named(monkeypatch):
    monkeypatch.setattr("twcli.discovery.search.SEARCHED_ROWS", 150)
    points, truth = unequal(np.random.default_rng(1))
    fitted, fit = [], KMeans.fit

    def watched(means, rows, *args, **how):
        fitted.append(len(rows))
        return fit(means, rows, *args, **how)

    monkeypatch.setattr(KMeans, "fit", watched)
    result = found(by_variance(points), 3, sizes=[4] * 100)
    assert max(fitted) == 152 and matched(result.posterior_NK.argmax(1), truth, 3) > 0.97


@pytest.mark.parametrize("count", [8, 3])
def test_points_without_directions_or_with_few_rows_are_no_error(count):
    for points in (np.zeros((count, 0)), np.zeros((count, 3)), np.eye(count)[:, :3]):
        result = found(points, 2)
        assert result.posterior_NK.shape == (count, 2)
        assert result.posterior_NK.sum(1) == pytest.approx(np.ones(count))


def test_a_rare_strategy_is_found_before_a_frequent_one_is_cut():
    points, truth = rare_and_wordy(np.random.default_rng(0))
    every, one = np.ones(600, bool), np.ones(600)
    way = Way(0, 12)
    plain = way.name([points], Weights(one, (one,)), 4, every, 0)
    even = way.name([points], Weights(one, (even_weights(points, one, every),)), 4, every, 0)
    assert matched(plain, truth, 4) < 0.9 < 0.97 < matched(even, truth, 4)


def test_a_latent_that_was_asked_for_is_not_left_without_rows(monkeypatch):
    """Three even clusters are as stable as four of which two are more alike than the others."""
    points, truth = two_alike(np.random.default_rng(0))
    united = np.minimum(truth, 2)

    def namings(rows, ways, latents, advance=None):
        tried = np.array([united, truth])
        halves = np.broadcast_to(tried[:, None, None], (2, len(rows.halvings), 2, len(truth)))
        return tried, halves

    monkeypatch.setattr(_Rows, "namings", namings)
    result = found(points, 4)
    assert matched(result.posterior_NK.argmax(1), truth, 4) >= 0.99
