"""pass@k and what is built on it, against exact fractions, enumeration and simulation."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from twcli.evaluation import sampling
from twcli.evaluation.sampling import Draws, Mixture


def exact(total, correct, k):
    return 1 - Fraction(comb(total - correct, k), comb(total, k))


def make_draws(prompts, strata=None, *, correct=None, strategies=None, texts=None, order=None):
    prompts = np.asarray(prompts)
    nothing = np.zeros(len(prompts), int)
    return Draws(
        prompts,
        nothing if strata is None else np.asarray(strata),
        np.full(len(prompts), np.nan) if correct is None else np.asarray(correct, float),
        nothing - 1 if strategies is None else np.asarray(strategies),
        nothing if texts is None else np.asarray(texts),
        order,
    )


@pytest.mark.parametrize("total", [1, 2, 7, 16, 200, 1000])
def test_pass_at_k_is_the_closed_form(total):
    for correct in sorted({0, 1, total // 3, total - 1, total}):
        for k in sorted({1, 2, total // 2, total} - {0}):
            if k > total:
                continue
            found = sampling.pass_at_k(np.array(total), np.array(correct), k)
            assert abs(float(found) - float(exact(total, correct, k))) < 1e-12


def test_more_samples_than_draws_are_unknown():
    assert np.isnan(sampling.pass_at_k(np.array(3), np.array(1), 4))
    assert sampling.pass_at_k(np.array(3), np.array(3), 0) == 0


def test_pass_at_k_of_prompts_is_the_closed_form():
    rng = np.random.default_rng(0)
    prompts = rng.permutation(np.repeat(np.arange(20), 16))
    correct = (rng.random(320) < 0.3).astype(float)
    ks = np.arange(1, 17)
    found = sampling.success(make_draws(prompts, correct=correct), 20, 1, ks)
    for p in range(20):
        hits = int(correct[prompts == p].sum())
        for k in ks:
            assert abs(found[p, k - 1] - float(exact(16, hits, int(k)))) < 1e-12


def test_unknown_verdicts_are_no_samples():
    draws = make_draws([0, 0, 0, 1, 1, 1], correct=[1, np.nan, 0, np.nan, np.nan, 1])
    found = sampling.success(draws, 2, 1, np.array([1, 2, 3]))
    np.testing.assert_allclose(found, [[0.5, 1, np.nan], [1, np.nan, np.nan]])


@pytest.mark.parametrize("k", range(1, 7))
def test_an_even_division_is_the_mean_over_all_choices(k):
    """Enumerates which strata get one more sample, and which of their draws are taken."""
    correct = [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]]
    strata = 4
    draws = make_draws(
        np.zeros(12, int), np.repeat(np.arange(strata), 3), correct=np.ravel(correct)
    )
    each, more = divmod(k, strata)
    fails = Fraction(0)
    for extra in combinations(range(strata), more):
        product = Fraction(1)
        for j in range(strata):
            choices = list(combinations(correct[j], each + (j in extra)))
            product *= Fraction(sum(not any(c) for c in choices), len(choices))
        fails += product
    fails /= comb(strata, more)
    found = sampling.success(draws, 1, strata, np.array([k]))
    assert abs(found[0, 0] - float(1 - fails)) < 1e-12


def test_many_strata_do_not_overflow():
    strata = 400
    draws = make_draws(
        np.zeros(2 * strata, int), np.repeat(np.arange(strata), 2), correct=np.ones(2 * strata)
    )
    assert sampling.success(draws, 1, strata, np.array([200, 600]))[0].tolist() == [1, 1]


def test_a_division_by_an_order():
    order = np.array([[1, 0, 1, 1]])
    draws = make_draws([0] * 6, [0, 1, 1, 1, 1, 0], correct=[1, 0, 0, 1, 0, 0], order=order)
    found = sampling.success(draws, 1, 2, np.arange(1, 5))[0]
    expected = [
        Fraction(1, 4),
        1 - Fraction(3, 4) * Fraction(1, 2),
        1 - Fraction(1, 2) * Fraction(1, 2),
        1 - Fraction(1, 4) * Fraction(1, 2),
    ]
    np.testing.assert_allclose(found, [float(e) for e in expected], atol=1e-12)


def test_the_proportional_order_is_nested_and_keeps_shares():
    shares = np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.5, 0.5, 0.0]])
    order = sampling.proportional_order(shares, 20)
    counts = (order[:, :, None] == np.arange(3)).sum(1)
    assert counts.tolist() == [[12, 6, 2], [2, 2, 16], [10, 10, 0]]
    assert np.array_equal(order[:, :7], sampling.proportional_order(shares, 7))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_kinds_are_what_enumeration_counts(k):
    kinds = [0, 0, 1, -1]
    draws = make_draws([0] * 4 + [1] * 4, strategies=[*kinds, 2, 2, 2, 2])
    expected = np.mean([len({c for c in chosen if c >= 0}) for chosen in combinations(kinds, k)])
    found = sampling.kinds(draws, draws.strategies, 2, 1, np.array([k]))[:, 0]
    np.testing.assert_allclose(found, [expected, 1.0], atol=1e-12)


def test_kinds_of_an_even_division():
    draws = make_draws([0] * 4, [0, 0, 1, 1], strategies=[0, 0, 1, -1])
    found = sampling.kinds(draws, draws.strategies, 1, 2, np.array([1, 2, 4, 5]))[0]
    np.testing.assert_allclose(found, [0.75, 1.5, 2.0, np.nan], atol=1e-12)


def test_estimates_are_unbiased():
    """Over 1,500 independent draws, the mean estimate is the probability that the samples have."""
    rng = np.random.default_rng(1)
    rates = np.array([0.1, 0.6, 0.3])
    estimates = []
    for _ in range(1500):
        correct = rng.random((3, 4)) < rates[:, None]
        draws = make_draws([0] * 12, np.repeat(np.arange(3), 4), correct=correct.ravel())
        estimates.append(sampling.success(draws, 1, 3, np.array([4]))[0, 0])
    fails = 1 - rates
    truth = 1 - fails.prod() * fails.mean()
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error


@pytest.mark.slow
def test_intervals_cover():
    """95 % intervals over prompts, for pass@4 from 8 draws and for a paired difference, hold the
    truth in 93 to 97 % of 1,000 simulated evaluations.
    """
    rng = np.random.default_rng(2)
    P, covered, paired = 150, 0, 0
    # success rates Beta(1, 2): E (1 - p)^4 = B(1, 6) / B(1, 2) = 1/3; Beta(2, 2): 1/7
    truth = 2 / 3, 6 / 7
    for number in range(1000):
        easier = rng.beta(2, 2, P)
        harder = rng.beta(1, 2, P)
        columns = [
            sampling.pass_at_k(np.full(P, 8), rng.binomial(8, rates), 4)
            for rates in (harder, easier)
        ]
        means = sampling.resample(np.stack(columns, axis=1), 400, number)
        low, high = sampling.interval(means[:, 0])
        covered += low <= truth[0] <= high
        low, high = sampling.interval(means[:, 1] - means[:, 0])
        paired += low <= truth[1] - truth[0] <= high
    assert 930 <= covered <= 970
    assert 930 <= paired <= 970


def test_a_resample_is_the_same_for_all_columns_and_leaves_out_what_is_unknown():
    values = np.arange(10.0)
    means = sampling.resample(np.stack([values, 2 * values], axis=1), 50, 0)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    gaps = np.array([[1.0], [np.nan], [3.0]])
    assert sampling.mean(gaps).tolist() == [2.0]
    drawn = sampling.resample(gaps, 200, 0)[:, 0]
    possible = np.array([1, 5 / 3, 2, 7 / 3, 3])
    drawn = drawn[np.isfinite(drawn)]
    assert 150 < len(drawn) < 200  # one in 27 holds the gap alone
    assert np.abs(drawn[:, None] - possible).min(1).max() < 1e-12
    assert sampling.interval(np.full(5, np.nan)) is None


def test_samples_saved_of_known_curves():
    k = np.arange(1, 17)
    slow, fast = 1 - 0.9**k, 1 - 0.9 ** (4 * k)
    target, reference, samples = sampling.samples_saved(slow, fast)
    assert target == slow[-1] and reference == 16 and abs(samples - 4) < 1e-9
    target, reference, samples = sampling.samples_saved(fast, slow)  # the other way round
    assert target == slow[-1] and samples == 16 and abs(reference - 4) < 1e-9
    assert sampling.samples_saved(slow, slow)[1:] == (16, 16)
    flat = np.full(16, 0.5)
    assert sampling.samples_saved(flat, flat)[1:] == (1, 1)
    both = sampling.samples_saved(np.stack([slow, slow]), np.stack([fast, slow]))
    np.testing.assert_allclose(both[2], [4, 16])


def test_samples_between_whole_ones():
    curve = np.array([0.2, 0.4, 0.8])
    targets = np.array([0.1, 0.2, 0.3, 0.5, 0.8, 0.9])
    found = sampling.samples_for(np.broadcast_to(curve, (6, 3)), targets)
    np.testing.assert_allclose(found, [1, 1, 1.5, 2.25, 3, np.nan])


FREQUENT_AND_RARE = Mixture(
    weights=np.array([0.3, 0.4, 0.2, 0.1]),
    frequencies=np.tile([0.88, 0.1, 0.02], (4, 1)),
    accuracies=np.array([[0.9, 0.9, 0], [0.9, 0.05, 0], [0.05, 0.9, 0], [0.02, 0.02, 0]]),
)


def test_a_mixture_predicts_what_its_draws_do():
    """Two strategies that solve different prompts, 88 to 10: from 16 draws of 400 prompts the
    predicted curves are those of the mixture that they were drawn from.
    """
    rng = np.random.default_rng(3)
    truth, P, N = FREQUENT_AND_RARE, 400, 16
    kind = rng.choice(4, P, p=truth.weights)
    prompts = np.repeat(np.arange(P), N)
    strategies = rng.choice(3, P * N, p=truth.frequencies[0])
    right = rng.random(P * N) < truth.accuracies[kind[prompts], strategies]
    draws = make_draws(prompts, correct=right, strategies=np.where(strategies < 2, strategies, -1))
    fitted = sampling.fit_mixture(draws, P, 0)
    for by_frequency in (False, True):
        np.testing.assert_allclose(
            fitted.divided(N, 2, by_frequency=by_frequency),
            truth.divided(N, 2, by_frequency=by_frequency),
            atol=0.04,
        )


def test_draws_of_no_strategy_are_drawn_under_a_latent_too():
    mixture = Mixture(np.ones(1), np.array([[0.72, 0.08, 0.2]]), np.array([[0.5, 1.0, 0.25]]))
    first = mixture.divided(2, 2, by_frequency=True)
    own, other = 0.8 * 0.5 + 0.2 * 0.25, 0.8 * 1.0 + 0.2 * 0.25
    np.testing.assert_allclose(first, [own, 1 - (1 - own) ** 2], atol=1e-12)
    even = mixture.divided(2, 2, by_frequency=False)
    np.testing.assert_allclose(even, [(own + other) / 2, 1 - (1 - own) * (1 - other)], atol=1e-12)


def test_a_mixture_of_one_strategy_predicts_no_gain():
    rng = np.random.default_rng(4)
    draws = make_draws(
        np.repeat(np.arange(50), 8), correct=rng.random(400) < 0.4, strategies=np.zeros(400, int)
    )
    fitted = sampling.fit_mixture(draws, 50, 0)
    alone = 1 - 0.6 ** np.arange(1, 9)
    np.testing.assert_allclose(fitted.divided(8, 4, by_frequency=False), alone, atol=0.06)
    unknown = make_draws(np.zeros(4, int), correct=np.ones(4))
    assert sampling.fit_mixture(unknown, 1, 0) is None


def test_samples_named_at_random_save_nothing():
    """A run whose latents all write the frozen mixture, or whose router draws them at random."""
    rng = np.random.default_rng(5)
    truth, P, N = FREQUENT_AND_RARE, 300, 16
    kind = rng.choice(4, P, p=truth.weights)
    prompts = np.repeat(np.arange(P), N)
    curves = []
    for strata in (np.zeros(P * N, int), np.tile(np.arange(N) % 2, P)):
        strategies = rng.choice(3, P * N, p=truth.frequencies[0])
        right = rng.random(P * N) < truth.accuracies[kind[prompts], strategies]
        draws = make_draws(prompts, strata, correct=right)
        curves.append(sampling.success(draws, P, 1 + strata.max(), np.arange(1, N + 1)))
    both = np.concatenate(curves, axis=1)
    drawn = sampling.resample(both, 500, 0)
    _, reference, samples = sampling.samples_saved(drawn[:, :N], drawn[:, N:])
    low, high = sampling.interval(reference / samples)
    assert low < 1 < high
