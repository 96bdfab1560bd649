"""The prior over the latents of a prompt's completions, and what it makes of their likelihoods.

    P(z_1 .. z_m)  is proportional to  prod_j pi[z_j] exp(-repulsion C)

with C the number of pairs of distinct completions that share a latent. Repulsion 0 draws latents
independently; an infinite one lets distinct completions of a prompt share no latent, as far as
there are latents enough. Everything that names rows asks this one object: discovery (over
features), training (over the generator's NLL) and the scores.

Where a strategy writes the same string with probability d, distinct strings repel each other with
-log(1 - d), and about d sum pi^2 of all pairs within a prompt are identical, which can be counted.

Shapes: N rows that lie prompt by prompt, P prompts of m rows, K latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln, logsumexp, softmax

from twcli.data.equal_rows import copies_of_first

ENUMERATED_PERMUTATIONS = 200  # of one prompt, up to which all are tried
ENUMERATED = 1500  # joint assignments of one prompt, up to which the posterior is exact
MEAN_FIELD_SWEEPS = 30
STRONGEST = 30.0  # nats that stand for an infinite repulsion in sums of exponentials
REPULSIONS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)  # of which the likeliest is taken
# probability of writing the same string twice, from which a strategy is one string
ONE_STRING = 0.5
PSEUDO_ROWS = 1.0  # a latent, so that one without rows can come back


@dataclass(frozen=True)
class LatentPrior:
    """Proportions and repulsion.

    Attributes:
        proportions: (K,) pi, positive, of sum 1.
        repulsion: lambda in nats a pair, from 0 to infinity.
    """

    proportions: np.ndarray
    repulsion: float

    @property
    def latents(self) -> int:
        """K."""
        return len(self.proportions)

    def log_normaliser(self, size: int) -> float:
        """Log of the sum of prod pi exp(-repulsion C) over all K^m assignments of m = `size` rows.

        Exact: the sum depends on the counts of each latent only, so it is a product of K
        polynomials.
        """
        if not self.repulsion:
            return 0.0
        counts = np.arange(size + 1)
        pairs = counts * (counts - 1) / 2
        log_coefficients = np.full(size + 1, -np.inf)
        log_coefficients[0] = 0.0
        for log_share in np.log(self.proportions):
            term = counts * log_share - gammaln(counts + 1) - self._nats * pairs
            log_coefficients = np.array(
                [logsumexp(log_coefficients[: n + 1] + term[n::-1]) for n in counts]
            )
        return float(log_coefficients[size] + gammaln(size + 1))

    def posterior(
        self, log_likelihood_NK: np.ndarray, sizes: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray]:
        """(P(z_n | all rows of the prompt) (N, K), log marginal likelihood of each prompt (P,)).

        Exact by enumeration while K^m is small, else by mean field, which bounds the likelihood
        from below.

        Args:
            log_likelihood_NK: nats; of rows that lie prompt by prompt.
            sizes: rows of each prompt.
        """
        return self._infer(log_likelihood_NK, sizes)[:2]

    def assign(self, log_likelihood_NK: np.ndarray, sizes: ArrayLike) -> np.ndarray:
        """Latents (N,) of the likeliest joint assignment of each prompt's rows.

        Where the repulsion is infinite the proportions have no say, or frequent latents would take
        what rare ones explain better.
        """
        if math.isinf(self.repulsion):
            return assign_groups(-log_likelihood_NK, sizes)
        return self._infer(log_likelihood_NK, sizes)[2]

    @property
    def _nats(self) -> float:
        """The repulsion, finite so that it can be summed."""
        return min(self.repulsion, STRONGEST)

    def _infer(
        self, log_likelihood_NK: np.ndarray, sizes: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inference prompt by prompt, exact where the assignments can be enumerated.

        Args:
            log_likelihood_NK: nats, prompt by prompt.
            sizes: (P,) rows of each prompt.

        Returns:
            Posterior (N, K), log evidence (P,) in nats, and the likeliest assignment (N,).
        """
        sizes_P = np.asarray(sizes, np.int64)
        starts_P = np.cumsum(sizes_P) - sizes_P
        K = self.latents
        posterior_NK = np.empty((len(log_likelihood_NK), K))
        evidence_P = np.empty(len(sizes_P))
        best_N = np.empty(len(log_likelihood_NK), np.int64)
        unary_NK = log_likelihood_NK + np.log(self.proportions)
        for m in np.unique(sizes_P).tolist():
            prompts = np.flatnonzero(sizes_P == m)
            rows_Pm = starts_P[prompts][:, None] + np.arange(m)
            infer = _enumerated if K**m <= ENUMERATED else _mean_field
            q_PmK, log_sum_P, best_Pm = infer(unary_NK[rows_Pm], self._nats)
            posterior_NK[rows_Pm] = q_PmK
            evidence_P[prompts] = log_sum_P - self.log_normaliser(m)
            best_N[rows_Pm] = best_Pm
        return posterior_NK, evidence_P, best_N


def _enumerated(
    unary_PmK: np.ndarray, repulsion: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Marginals (P, m, K), log sum (P,) and the likeliest assignment (P, m), exact."""
    m, K = unary_PmK.shape[1:]
    ways_Wm = np.array(list(product(range(K), repeat=m)))
    shared_W = np.zeros(len(ways_Wm))
    for i, j in combinations(range(m), 2):
        shared_W += ways_Wm[:, i] == ways_Wm[:, j]
    unary_PW = sum(unary_PmK[:, j, ways_Wm[:, j]] for j in range(m))
    log_PW = unary_PW - repulsion * shared_W
    total_P = logsumexp(log_PW, axis=1)
    weight_PW = np.exp(log_PW - total_P[:, None])
    taken_WmK = np.eye(K)[ways_Wm]
    marginals = np.einsum("pw,wmk->pmk", weight_PW, taken_WmK)
    best_P = log_PW.argmax(1)
    return marginals, total_P, ways_Wm[best_P]


def _mean_field(
    unary_PmK: np.ndarray, repulsion: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_enumerated`, by coordinate ascent on a lower bound of the log sum."""
    q_PmK = softmax(unary_PmK, axis=2)
    for _ in range(MEAN_FIELD_SWEEPS if repulsion else 1):
        before = q_PmK.copy()
        for j in range(unary_PmK.shape[1]):  # one completion at a time, which converges
            others_PK = q_PmK.sum(1) - q_PmK[:, j]
            q_PmK[:, j] = softmax(unary_PmK[:, j] - repulsion * others_PK, axis=1)
        if np.abs(q_PmK - before).max() < 1e-4:
            break
    squared_sums_P = (q_PmK.sum(1) ** 2).sum(1)
    sums_of_squares_P = (q_PmK**2).sum((1, 2))
    pairs_P = (squared_sums_P - sums_of_squares_P) / 2
    log_q_PmK = np.log(np.maximum(q_PmK, 1e-300))
    entropy_P = -(q_PmK * log_q_PmK).sum((1, 2))
    unary_P = (q_PmK * unary_PmK).sum((1, 2))
    bound_P = unary_P - repulsion * pairs_P + entropy_P
    return q_PmK, bound_P, q_PmK.argmax(2)


def fit_prior(
    posterior_NK: np.ndarray, sizes: ArrayLike, *, one_string: bool = False
) -> LatentPrior:
    """The likeliest proportions and repulsion, given what features say of each row by itself.

    Args:
        posterior_NK: P(z | features), rows of distinct completions, prompt by prompt.
        sizes: rows of each prompt.
        one_string: whether each strategy writes one string a prompt (`one_string_a_strategy`).
    """
    counts_K = posterior_NK.sum(0) + PSEUDO_ROWS
    proportions = counts_K / counts_K.sum()
    if one_string:
        return LatentPrior(proportions, math.inf)
    log_likelihood_NK = np.log(np.maximum(posterior_NK, 1e-4)) - np.log(proportions)
    fitted = [LatentPrior(proportions, repulsion) for repulsion in REPULSIONS]
    if np.max(sizes, initial=1) == 1:
        return fitted[0]
    return max(fitted, key=lambda prior: prior.posterior(log_likelihood_NK, sizes)[1].sum())


def one_string_a_strategy(identical_share: float, proportions: np.ndarray) -> bool:
    """Whether so many pairs of a prompt's completions are identical that each strategy writes one
    string: then distinct strings are distinct strategies.

    Args:
        identical_share: of the pairs of completions of a prompt.
        proportions: (K,) shares of the latents, of sum 1.
    """
    return identical_share >= ONE_STRING * float((proportions**2).sum())


def identical_pairs(prompt_N: np.ndarray, hash_NH: np.ndarray) -> float:
    """Share of the pairs of completions of one prompt that are the same string; 0 without pairs.

    A prompt of m completions counts m - 1 times, so that one large prompt does not speak for all.
    Data in which every record occurs equally often, and more than once, are copies of themselves,
    which says nothing of how completions are drawn: 0.

    Args:
        prompt_N: (N,) rows of one prompt share a number.
        hash_NH: (N, 16) uint8, content of each row.
    """
    copies_N = copies_of_first(hash_NH)
    copies_C = copies_N[copies_N > 0]
    size_P = np.bincount(prompt_N)
    if len(copies_C) > 1 and copies_C.min() > 1 and copies_C.min() == copies_C.max():
        return 0.0
    repeated = np.flatnonzero(copies_N > 1)
    identical_P = np.bincount(prompt_N[repeated], _pairs(copies_N[repeated]), minlength=len(size_P))
    several = size_P > 1
    if not several.any():
        return 0.0
    share_P = identical_P[several] / _pairs(size_P[several])
    return float(np.average(share_P, weights=size_P[several] - 1))


def _pairs(counts: np.ndarray) -> np.ndarray:
    """How many pairs there are among so many: n (n - 1) / 2 as float64, for counts of any shape
    (..).
    """
    counts = counts.astype(np.float64)
    return counts * (counts - 1) / 2


def assign_groups(cost_NK: np.ndarray, sizes: ArrayLike) -> np.ndarray:
    """Latents (N,) of rows that lie prompt by prompt, all of them distinct: the
    cheapest assignment (Hungarian).

    Where a prompt has more rows than there are latents, each latent takes one and the others take
    the one that costs them least, so that all together are cheapest.

    Args:
        cost_NK: cost of each latent for each row; only differences within a row matter.
        sizes: rows of each prompt, in order.
    """
    latents = cost_NK.argmin(1)  # what a single row takes anyway
    K = cost_NK.shape[1]
    sizes_P = np.asarray(sizes, np.int64)
    starts_P = np.cumsum(sizes_P) - sizes_P
    for size in np.unique(sizes_P[sizes_P > 1]).tolist():
        starts = starts_P[sizes_P == size]
        if size <= K and math.perm(K, size) <= ENUMERATED_PERMUTATIONS:
            # All prompts of one size at once: a call for each would take longer than trying
            # everything.
            ways_MR = np.asarray(list(permutations(range(K), size)))
            total_PM = sum(cost_NK[starts + row][:, ways_MR[:, row]] for row in range(size))
            latents[starts[:, None] + np.arange(size)] = ways_MR[total_PM.argmin(1)]
        else:
            for start in starts.tolist():
                cost_RK = cost_NK[start : start + size]
                # Over the least, which is what a row costs that no latent takes.
                rows, columns = linear_sum_assignment(cost_RK - cost_RK.min(1, keepdims=True))
                latents[start + rows] = columns
    return latents


def without_spares(prior: LatentPrior, used: int) -> LatentPrior:
    """The prior over the first `used` latents, their proportions scaled to sum to 1 and the
    repulsion kept.
    """
    proportions = prior.proportions[:used]
    return replace(prior, proportions=proportions / proportions.sum())


def assign_rows(
    prior: LatentPrior, log_likelihood_NK: np.ndarray, prompt_N: np.ndarray, hash_NH: np.ndarray
) -> np.ndarray:
    """Latents (N,) of rows in any order, equal completions of a prompt together.

    Args:
        prompt_N: rows of one prompt share a number.
        hash_NH: content of each row; equal rows take the same latent.
    """
    keys = np.concatenate([prompt_N.astype(">i8").reshape(-1, 1).view(np.uint8), hash_NH], axis=1)
    # Sorted by prompt.
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    sizes = np.unique(prompt_N[first], return_counts=True)[1]
    return prior.assign(log_likelihood_NK[first], sizes)[inverse.reshape(-1)]
