import numpy as np
import pytest
from sklearn.cluster import KMeans

from tests.conftest import matched
from twcli.discovery.score import expected_share_right
from twcli.discovery.search import (
    DOUBT,
    Discriminant,
    Way,
    Weights,
    discriminant_points,
    even_weights,
    matched_share,
    matching,
    out_of_fold,
    relabelled,
    search,
    ways_of,
)


def unequal(rng, count=400):
    """Points of three clusters with three fifths, three tenths and a tenth of the rows."""
    truth = rng.choice(3, count, p=[0.6, 0.3, 0.1])
    return 5 * np.eye(3, 10)[truth] + rng.normal(size=(count, 10)), truth


def crossed(rng, wordings=12, strategies=3, times=20):
    """Points of twelve wordings far apart, each of which comes with three strategies that differ
    a little, alike in all wordings.
    """
    wording, truth = (
        part.ravel() for part in np.divmod(np.arange(wordings * strategies * times), strategies)
    )
    order = rng.permutation(len(truth))
    wording, truth = wording[order] % wordings, truth[order]
    points = 6 * rng.normal(size=(wordings, 20))[wording]
    points[:, 10:] += 1.5 * rng.normal(size=(strategies, 10))[truth]
    return points + 0.4 * rng.normal(size=points.shape), wording, truth


def by_variance(points):
    """Directions by falling variance."""
    centred = points - points.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2].T


def plainly(weight_N):
    return Weights(weight_N, (weight_N,))


def share_right(result, latents):
    return expected_share_right(
        result.stability, result.above_noise, result.generalisation, latents
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
    assert result.above_noise < 0.2
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


def test_the_seed_decides():
    points = np.random.default_rng(0).normal(size=(120, 12))
    one, same, other = (found(points, 3, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.posterior_NK, same.posterior_NK)
    assert (one.stability, one.above_noise) == (same.stability, same.above_noise)
    assert not np.array_equal(one.posterior_NK, other.posterior_NK)


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


@pytest.mark.parametrize("count", [8, 3])
def test_points_without_directions_or_with_few_rows_are_no_error(count):
    for points in (np.zeros((count, 0)), np.zeros((count, 3)), np.eye(count)[:, :3]):
        result = found(points, 2)
        assert result.posterior_NK.shape == (count, 2)
        assert result.posterior_NK.sum(1) == pytest.approx(np.ones(count))


# the discriminant


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


# names that are matched


def test_matched_shares_by_hand():
    one, other = np.array([0, 0, 0, 1, 1, 2]), np.array([2, 2, 0, 0, 0, 1])
    names, rows = matching(one, other, 3)
    assert (names.tolist(), rows) == ([2, 0, 1], 5.0)
    assert matched_share(one, other, 3) == 5 / 6
    assert relabelled(one, other, 3).tolist() == [2, 2, 2, 0, 0, 1]
    assert matched_share(one, one, 3) == 1.0
    assert matched_share(np.zeros(4, int), np.arange(4), 4) == 1 / 4


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


def rare_and_wordy(rng, shares=(0.55, 0.25, 0.15, 0.05), rows=600, wordings=8):
    """Strategies of unequal frequency with as many wordings each: the frequent one's wordings
    differ about as much as the rare ones' strategies do.
    """
    truth = rng.choice(len(shares), rows, p=shares)
    wording = rng.integers(wordings, size=rows)
    strategies = 4 * np.linalg.qr(rng.normal(size=(12, len(shares))))[0].T
    forms = 3 * rng.normal(size=(len(shares), wordings, 12)) / np.sqrt(12)
    points = strategies[truth] + forms[truth, wording]
    return by_variance(points + 0.3 * rng.normal(size=points.shape)), truth


def test_a_rare_strategy_is_found_before_a_frequent_one_is_cut():
    points, truth = rare_and_wordy(np.random.default_rng(0))
    every, one = np.ones(600, bool), np.ones(600)
    way = Way(0, 12)
    plain = way.name([points], plainly(one), 4, every, 0)
    even = way.name([points], Weights(one, (even_weights(points, one, every),)), 4, every, 0)
    assert matched(plain, truth, 4) < 0.9 < 0.97 < matched(even, truth, 4)
