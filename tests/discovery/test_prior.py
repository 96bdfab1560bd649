import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp, softmax

from twcli.discovery import prior as prior_module
from twcli.discovery.prior import (
    ENUMERATED,
    LatentPrior,
    assign_groups,
    assign_rows,
    fit_prior,
    identical_pairs,
    one_string_a_strategy,
    without_spares,
)

UNEVEN = np.array([0.6, 0.3, 0.1])


def even(latents):
    return np.full(latents, 1 / latents)


# the cheapest assignment of distinct completions to distinct latents


def test_distinct_completions_of_a_prompt_take_distinct_latents():
    cost = np.array([[1.0, 2.0], [0.0, 5.0], [3.0, 1.0]])
    assert assign_groups(cost, [2, 1]).tolist() == [1, 0, 1]


def test_more_completions_than_latents():
    cost = np.array([[0.0, 9.0], [1.0, 9.0], [9.0, 0.0]])
    assert assign_groups(cost, [3]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [4, 5])
def test_more_completions_than_latents_are_cheapest_together_however_long_each_is(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.normal(size=(size, 3))
        latent = assign_groups(cost, [size])
        ways = [(*way, *set(range(size)) - set(way)) for way in permutations(range(size), 3)]
        assert cost[range(size), latent].sum() == pytest.approx(
            min(
                cost[list(way[:3]), range(3)].sum() + cost[list(way[3:])].min(1).sum()
                for way in ways
            )
        )
        assert (
            assign_groups(cost + 10 * rng.normal(size=(size, 1)), [size]).tolist()
            == latent.tolist()
        )


def test_rows_in_any_order_equal_ones_together():
    rng = np.random.default_rng(0)
    distinct = LatentPrior(UNEVEN, math.inf)
    prompt = np.array([7, 3, 7, 3, 7, 300])
    content = np.array([[1, 9], [2, 2], [1, 9], [2, 3], [4, 4], [1, 9]], np.uint8)
    cost = rng.random((6, 3))
    cost[2] = cost[0]
    latents = assign_rows(distinct, -cost, prompt, content)
    assert latents[0] == latents[2] != latents[4]
    assert latents[1] != latents[3]
    assert latents[5] == cost[5].argmin()
    assert latents[[1, 3]].tolist() == linear_sum_assignment(cost[[1, 3]])[1].tolist()
    order = rng.permutation(6)
    assert (
        assign_rows(distinct, -cost[order], prompt[order], content[order]).tolist()
        == latents[order].tolist()
    )


@pytest.mark.parametrize(("latents", "size"), [(4, 3), (5, 5), (7, 4), (6, 2)])
def test_groups_of_any_size_take_the_cheapest_distinct_latents(latents, size):
    rng = np.random.default_rng(0)
    sizes = [size, 1, size, 2]
    cost = rng.normal(size=(sum(sizes), latents))
    latent = assign_groups(cost, sizes)
    for end, rows in zip(np.cumsum(sizes), sizes, strict=True):
        block, chosen = cost[end - rows : end], latent[end - rows : end]
        least = min(block[range(rows), way].sum() for way in permutations(range(latents), rows))
        assert len(set(chosen)) == rows
        assert block[range(rows), chosen].sum() == pytest.approx(least)


# the posterior


def brute_force(prior, log_likelihood):
    """(marginals (m, K), log marginal likelihood, likeliest assignment) of one prompt, as the
    definition has it.
    """
    m, K = log_likelihood.shape
    ways = list(product(range(K), repeat=m))
    before = np.array(
        [
            sum(math.log(prior.proportions[k]) for k in way)
            - prior.repulsion * sum(a == b for a, b in combinations(way, 2))
            for way in ways
        ]
    )
    joint = before + [sum(log_likelihood[j, k] for j, k in enumerate(way)) for way in ways]
    weight = np.exp(joint - logsumexp(joint))
    marginals = np.array(
        [
            [sum(w for w, way in zip(weight, ways, strict=True) if way[j] == k) for k in range(K)]
            for j in range(m)
        ]
    )
    return marginals, logsumexp(joint) - logsumexp(before), ways[int(joint.argmax())]


@pytest.mark.parametrize("repulsion", [0.0, 0.7, 3.0])
@pytest.mark.parametrize(("size", "latents"), [(1, 3), (2, 2), (3, 3), (4, 3), (3, 4), (5, 2)])
def test_the_posterior_is_that_of_all_joint_assignments(size, latents, repulsion):
    rng = np.random.default_rng(size)
    for proportions in (even(latents), rng.dirichlet(np.full(latents, 2.0))):
        prior = LatentPrior(proportions, repulsion)
        likelihood = 2 * rng.normal(size=(3 * size, latents))
        posterior, evidence = prior.posterior(likelihood, [size] * 3)
        best = prior.assign(likelihood, [size] * 3)
        for p in range(3):
            rows = slice(p * size, (p + 1) * size)
            marginals, log_evidence, way = brute_force(prior, likelihood[rows])
            assert np.allclose(posterior[rows], marginals, atol=1e-9)
            assert evidence[p] == pytest.approx(log_evidence, abs=1e-9)
            assert best[rows].tolist() == list(way)


def test_prompts_of_several_sizes_are_distinguished_from_each_other():
    rng = np.random.default_rng(0)
    prior, sizes = LatentPrior(UNEVEN, 1.5), [2, 1, 3, 2, 1]
    likelihood = rng.normal(size=(9, 3))
    posterior, evidence = prior.posterior(likelihood, sizes)
    for p, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        marginals, log_evidence, _ = brute_force(prior, likelihood[end - size : end])
        assert np.allclose(posterior[end - size : end], marginals)
        assert evidence[p] == pytest.approx(log_evidence)


@pytest.mark.parametrize("sizes", [[1] * 12, [4, 8], [12]])
def test_without_repulsion_rows_are_independent(sizes):
    """Whether the posterior is enumerated or by mean field."""
    likelihood = np.random.default_rng(0).normal(size=(12, 3))
    posterior, evidence = LatentPrior(UNEVEN, 0.0).posterior(likelihood, sizes)
    alone = likelihood + np.log(UNEVEN)
    assert np.allclose(posterior, softmax(alone, axis=1), atol=1e-9)
    rows = logsumexp(alone, axis=1)
    starts = np.cumsum(sizes) - sizes
    assert np.allclose(evidence, np.add.reduceat(rows, starts))
    assert (LatentPrior(UNEVEN, 0.0).assign(likelihood, sizes) == alone.argmax(1)).all()


@pytest.mark.parametrize("repulsion", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_the_normaliser_is_the_sum_over_all_assignments(size, repulsion):
    prior = LatentPrior(UNEVEN, repulsion)
    total = sum(
        math.prod(UNEVEN[list(way)])
        * math.exp(-repulsion * sum(a == b for a, b in combinations(way, 2)))
        for way in product(range(3), repeat=size)
    )
    assert prior.log_normaliser(size) == pytest.approx(math.log(total), abs=1e-9)


@pytest.mark.parametrize("repulsion", [0.25, 1.0])
def test_mean_field_is_close_to_the_sum_over_all_assignments(repulsion, monkeypatch):
    """Eight completions of three strategies, as certain as features make them; 3^8 is more than is
    enumerated.
    """
    rng = np.random.default_rng(1)
    assert 3**8 > ENUMERATED
    truth = np.array([0, 1, 2] * 3)[:8]
    likelihood = np.concatenate(
        [4 * np.eye(3)[rng.permutation(truth)] + 0.5 * rng.normal(size=(8, 3)) for _ in range(20)]
    )
    prior = LatentPrior(np.array([0.4, 0.35, 0.25]), repulsion)
    found, bound = prior.posterior(likelihood, [8] * 20)
    monkeypatch.setattr(prior_module, "ENUMERATED", 3**8)
    exact, evidence = prior.posterior(likelihood, [8] * 20)
    assert np.abs(found - exact).mean() < 0.02 and np.abs(found - exact).max() < 0.15
    assert (bound <= evidence + 1e-9).all() and (evidence - bound).mean() < 0.3
    alone = softmax(likelihood + np.log(prior.proportions), axis=1)
    assert np.abs(found - exact).mean() < 0.5 * np.abs(alone - exact).mean()


@pytest.mark.parametrize("sizes", [[1, 3, 2, 4], [50, 2]])
def test_an_infinite_repulsion_is_the_cheapest_distinct_assignment(sizes):
    likelihood = np.random.default_rng(0).normal(size=(sum(sizes), 4))
    prior = LatentPrior(np.array([0.7, 0.1, 0.1, 0.1]), math.inf)
    assert (prior.assign(likelihood, sizes) == assign_groups(-likelihood, sizes)).all()
    posterior, evidence = prior.posterior(likelihood, sizes)
    assert np.isfinite(posterior).all() and np.isfinite(evidence).all()
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        if size == 4:  # all four latents are taken
            assert np.allclose(posterior[end - size : end].sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("repulsion", [0.0, 0.5, math.inf])
def test_a_prompt_of_fifty_completions(repulsion):
    rng = np.random.default_rng(3)
    truth = rng.integers(3, size=50)
    likelihood = 6 * np.eye(3)[truth] + rng.normal(size=(50, 3))
    posterior, (evidence,) = LatentPrior(UNEVEN, repulsion).posterior(likelihood, [50])
    assert posterior.shape == (50, 3) and np.allclose(posterior.sum(1), 1)
    assert np.isfinite(evidence)
    assert np.isfinite(LatentPrior(UNEVEN, repulsion).log_normaliser(50))
    if not math.isinf(repulsion):
        assert (posterior.argmax(1) == truth).mean() > 0.95


def test_equal_rows_of_a_prompt_take_the_same_latent_and_count_once():
    """The first two rows are one string, so that only two strings repel each other."""
    likelihood = np.array([[1.0, 0.9], [1.0, 0.9], [1.0, 0.0], [1.0, 0.9]])
    prompt, content = np.array([5, 5, 5, 6]), np.array([[1], [1], [2], [1]], np.uint8)
    latents = assign_rows(LatentPrior(even(2), 3.0), likelihood, prompt, content)
    assert latents.tolist() == [1, 1, 0, 0]
    assert assign_rows(LatentPrior(even(2), 0.0), likelihood, prompt, content).tolist() == [0] * 4
    noisy = likelihood + np.array([[0, 0], [0, 9], [0, 0], [0, 0]])  # of equal rows the first
    assert assign_rows(LatentPrior(even(2), 0.0), noisy, prompt, content).tolist() == [0] * 4


def test_frequent_latents_have_a_say_where_the_repulsion_is_finite():
    likelihood = np.array([[0.0, 0.5]])
    assert LatentPrior(np.array([0.9, 0.1]), 0.0).assign(likelihood, [1]).tolist() == [0]
    assert LatentPrior(np.array([0.9, 0.1]), math.inf).assign(likelihood, [1]).tolist() == [1]


def test_a_prior_without_the_latents_to_spare():
    kept = without_spares(LatentPrior(np.array([0.5, 0.25, 0.15, 0.1]), 0.5), 2)
    assert kept.proportions.tolist() == pytest.approx([2 / 3, 1 / 3]) and kept.repulsion == 0.5
    assert kept.latents == 2


# fitted


def noisy_posteriors(rng, truth, latents, proportions):
    """What features of some overlap say of rows whose latents are `truth`."""
    points = 2.0 * np.eye(latents)[truth] + 0.8 * rng.normal(size=(len(truth), latents))
    log_likelihood = -((points[:, None] - 2.0 * np.eye(latents)) ** 2).sum(2) / (2 * 0.8**2)
    return softmax(log_likelihood + np.log(proportions), axis=1)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_repulsion_is_found_where_latents_are_drawn_independently(size):
    rng = np.random.default_rng(size)
    truth = rng.choice(3, 400 * size, p=UNEVEN)
    prior = fit_prior(noisy_posteriors(rng, truth, 3, UNEVEN), [size] * 400)
    assert prior.repulsion == 0.0
    assert np.abs(prior.proportions - UNEVEN).max() < 0.03


@pytest.mark.parametrize("size", [2, 3])
def test_a_large_repulsion_is_found_where_no_latent_repeats_in_a_prompt(size):
    rng = np.random.default_rng(size)
    truth = np.concatenate([rng.permutation(4)[:size] for _ in range(400)])
    prior = fit_prior(noisy_posteriors(rng, truth, 4, even(4)), [size] * 400)
    assert prior.repulsion >= 4.0
    assert np.abs(prior.proportions - 0.25).max() < 0.03


def test_a_repulsion_in_between_is_found():
    """Latents drawn from the prior itself, by all assignments of three rows."""
    rng = np.random.default_rng(0)
    ways = np.array(list(product(range(3), repeat=3)))
    shared = sum((ways[:, i] == ways[:, j]).astype(float) for i, j in combinations(range(3), 2))
    weight = np.exp(-1.0 * shared)
    truth = ways[rng.choice(27, 1500, p=weight / weight.sum())].ravel()
    prior = fit_prior(noisy_posteriors(rng, truth, 3, even(3)), [3] * 1500)
    assert prior.repulsion in (0.5, 1.0, 2.0)


def test_one_completion_a_prompt_says_nothing_about_repulsion():
    posterior = np.eye(3)[np.arange(60) % 3]
    assert fit_prior(posterior, [1] * 60).repulsion == 0.0


def test_one_large_prompt_does_not_speak_for_all_and_copies_of_a_file_say_nothing():
    prompt = np.repeat(np.arange(101), [4] * 100 + [300])
    content = np.arange(len(prompt)).astype("<u8").view(np.uint8).reshape(-1, 8).repeat(2, axis=1)
    content[400:640] = content[400]
    assert 0.3 < identical_pairs(prompt, content) < 0.35  # 299 of 599, times 0.64
    content[400:] = np.arange(1000, 1300).astype("<u8").view(np.uint8).reshape(-1, 8).repeat(2, 1)
    twice = np.concatenate([prompt, prompt]), np.concatenate([content, content])
    assert identical_pairs(*twice) == 0.0
    assert identical_pairs(twice[0][:-1], twice[1][:-1]) > 0.0


def test_identical_completions_show_that_a_strategy_is_one_string():
    posterior = np.eye(2)[np.repeat(np.arange(20) % 2, 2)]  # which by itself repels nothing
    assert math.isinf(fit_prior(posterior, [2] * 20, one_string=True).repulsion)
    assert not math.isinf(fit_prior(posterior, [2] * 20).repulsion)
    # sum pi^2 is 0.46, half of which
    assert one_string_a_strategy(0.231, UNEVEN) and not one_string_a_strategy(0.229, UNEVEN)


def test_identical_pairs_by_hand():
    """Three pairs in the first prompt, one of them equal; one pair in the second, and a string that
    stands in two prompts is no pair.
    """
    prompt = np.array([0, 1, 0, 0, 1, 2])
    content = np.zeros((6, 16), np.uint8)
    content[:, 0] = [1, 2, 1, 3, 4, 5]
    assert identical_pairs(prompt, content) == pytest.approx((2 * 1 / 3 + 1 * 0) / 3)
    content[4] = content[1]
    assert identical_pairs(prompt, content) == pytest.approx((2 * 1 / 3 + 1 * 1) / 3)
    assert identical_pairs(np.arange(6), np.arange(96, dtype=np.uint8).reshape(6, 16)) == 0.0
