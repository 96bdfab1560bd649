import numpy as np
import pytest

from twcli.discovery import repeating
from twcli.discovery.discriminants import Discriminant
from twcli.discovery.number import (
    LEAST_SHARE,
    SURE,
    TOLERANCE,
    Count,
    agreement,
    best_count,
    counts_of,
    likelier_number,
    nesting,
    plausibility,
)
from twcli.discovery.search import Found


def named(clusters, latents, nats=1.0, used=None, stability=1.0, evenness=1.0):
    """What was found, by hand."""
    found = Found(
        np.eye(latents)[np.array(clusters)],
        Discriminant(None, np.array([]), latents),
        stability=stability,
        above_noise=0.9,
        generalisation=0.9,
        information=nats,
        evenness=evenness,
    )
    return Count(latents, latents if used is None else used, found)


def counted(points, numbers):
    return counts_of(numbers, [points] * 3, np.ones(len(points)), [1] * len(points), 0)


@pytest.mark.slow
def test_three_clusters_are_three():
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=240)
    steps = []
    points = 6 * np.eye(3, 8)[truth] + rng.normal(size=(240, 8))
    counts = counts_of([2, 3, 4, 5], [points] * 3, np.ones(240), [1] * 240, 0, steps.append)
    assert [count.latents for count in counts] == [2, 3, 4, 5] and steps == [1] * 4
    assert best_count(counts).latents == 3
    assert counts[1].found.stability > 0.97 and counts[1].used == 3


@pytest.mark.slow
@pytest.mark.parametrize(("near", "expected"), [(9, 2), (25, 4)])
def test_kinds_of_kinds_are_nested(all_ways, near, expected):
    """Two kinds far apart, each of two that are less far: both numbers are stable, and the larger
    one lies in the smaller one. Kinds that are almost as far apart are kinds of their own.
    """
    rng = np.random.default_rng(0)
    coarse, fine = rng.integers(2, size=(2, 300))
    points = rng.normal(size=(300, 8))
    points[:, 0] += 40 * coarse
    points[:, 1] += near * fine
    two, three, four = counted(points, [2, 3, 4])
    assert min(two.found.stability, four.found.stability) > 0.97
    assert nesting(four, two) == pytest.approx(1.0, abs=0.01)
    assert nesting(four, two) > nesting(named(rng.integers(4, size=300), 4), two) + 0.3
    assert best_count([two, three, four]).latents == expected


def test_nesting_and_agreement_by_hand():
    coarse = named([0, 0, 0, 1, 1, 1], 2)
    assert nesting(named([0, 0, 1, 2, 2, 2], 3), coarse) == 1.0
    assert nesting(named([0, 0, 1, 1, 2, 2], 3), coarse) == 5 / 6
    assert agreement(named([0, 0, 1, 2, 2, 2], 3), coarse) == 5 / 6
    assert agreement(coarse, named([1, 1, 1, 0, 0, 0], 2)) == 1.0


def test_of_the_numbers_of_most_support_the_smallest_is_taken():
    def best(*figures):
        return best_count([named([0, 1], k, nats) for k, nats in figures]).latents

    near, far = 1 - 0.9 * TOLERANCE, 1 - 1.1 * TOLERANCE
    assert best((2, near), (3, 1.0), (4, 0.8)) == 2
    assert best((2, far), (3, 1.0), (4, 0.8)) == 3
    assert best((2, 0.6), (3, 0.8), (4, 0.99)) == 4


@pytest.mark.slow
def test_processes_side_by_side_change_no_figure(all_ways):
    rng = np.random.default_rng(0)
    points = 6 * np.eye(3, 8)[rng.integers(3, size=60)] + rng.normal(size=(60, 8))
    views, ones = [points] * 3, [1] * 60
    alone = counts_of([2, 3], views, np.ones(60), ones, 0)
    both = counts_of([2, 3], views, np.ones(60), ones, 0, workers=2)
    assert [one.support for one in alone] == [one.support for one in both]
    for one, other in zip(alone, both, strict=True):
        assert np.array_equal(one.found.posterior_NK, other.found.posterior_NK)


def test_nats_count_as_far_as_the_search_repeats_itself_and_clusters_lie_apart():
    steady = named([0, 1], 2, 0.7)
    fickle = named([0, 1], 3, 0.9, stability=0.9)  # two clusters of two rows: 0.8 beyond chance
    cut = named([0, 1], 3, 0.9, evenness=0.7)
    assert steady.support == pytest.approx(0.7)
    assert fickle.support == pytest.approx(0.9 * 0.8**4)
    assert cut.support == pytest.approx(0.9 * 0.7**1.5)
    assert best_count([steady, fickle, cut]).latents == 2
    assert named([0, 1], 2, stability=0.3).support == 0.0  # less than chance


def test_a_number_of_far_more_support_is_advised():
    counts = [named([0, 1], 2, 0.2), named([0, 1], 3, 0.9), named([0, 1], 4, 0.5)]
    assert likelier_number(counts, 2) == 3
    assert likelier_number(counts, 3) is None and likelier_number(counts, 4) is None
    assert likelier_number(counts, 5) is None and likelier_number([], 2) is None


def test_a_number_is_as_plausible_as_it_has_support():
    counts = [named([0, 1], latents, nats) for latents, nats in enumerate((1.0, 0.9, 1.0), 2)]
    shares = plausibility(counts)
    assert shares.sum() == pytest.approx(1) and shares[0] == pytest.approx(shares[2])
    assert shares[1] / shares[0] == pytest.approx(0.9**SURE)
    nothing = plausibility([named([0, 1], 2, 0.0), named([0, 1], 3, 0.0)])
    assert nothing == pytest.approx([0.5, 0.5])


def test_a_number_whose_clusters_are_not_all_there_is_not_taken():
    empty = named([0, 1], 4, 0.99, used=3)
    assert best_count([named([0, 1], 2, 0.9), empty]).latents == 2
    assert best_count([empty]).latents == 4  # there is no other


@pytest.mark.slow
def test_a_handful_of_rows_is_no_cluster():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 4))
    points[:100, 0] += 12
    points[:2] += [0, 90, 0, 0]
    (three,) = counted(points, [3])
    shares = three.found.posterior_NK.mean(0)
    assert three.used == (shares >= LEAST_SHARE).sum() == 2


def test_a_number_whose_rows_all_have_one_latent_is_shown_at_chance():
    """Halves agree on it fully, and nothing can be nested in it."""
    one, three = named([0] * 30, 2), named([0, 1, 2] * 10, 3)
    shown = repeating._shown([one, three], 2)
    assert shown[0]["stability"] == 1.0 and shown[0]["score"] == 0.5
    assert shown[1]["score"] > 0.8
    assert repeating._nested([one, three], 2) is None
    two = named([0, 1, 1] * 10, 2)
    assert "nested in these 2" in repeating._nested([two, three], 2)
