"""How many samples it takes to get a right answer: pass@k, strategies covered and distinct answers
of arms that draw the same prompts in different ways, and how many samples one arm saves over
another. Plain arrays: no model, no files.

An arm draws its samples independently from one distribution, or divides them over the latents. Of
a division the first k samples hold k_j of latent j, and k of the samples that were drawn are
chosen at random accordingly, so that every estimate is unbiased.

Shapes: P prompts, D draws, N samples a prompt, J strata (latents, or one), E entries, C classes,
S strategies, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

TOLERANCE = 1e-12  # of two shares that count as equal
CHUNK = 2**22  # weights of resamples in memory
CLASSES = 8  # of prompts in the frozen mixture, at most
RESTARTS = 4
ITERATIONS = 200
SMOOTHING = 1e-3  # counts added to each cell of a class
LEAST_SHARE = 0.01  # of the draws, below which a strategy is not one of the mixture


@dataclass(frozen=True)
class Draws:
    """The judged samples of one arm.

    Attributes:
        prompts: (D,) int, 0 to P - 1.
        strata: (D,) int, 0 to J - 1; all 0 where draws are exchangeable.
        correct: (D,) float, 1, 0 or NaN where unknown.
        strategies: (D,) int, -1 where unknown.
        texts: (D,) int, equal for equal completions of a prompt.
        order: None where J is 1 or samples are divided evenly, beginning at random; else (P, N) the
            stratum of each sample.
    """

    prompts: np.ndarray
    strata: np.ndarray
    correct: np.ndarray
    strategies: np.ndarray
    texts: np.ndarray
    order: np.ndarray | None = None

    def those(self, chosen_D: np.ndarray) -> Draws:
        """The draws that are true in a mask (D,)."""
        return Draws(
            self.prompts[chosen_D],
            self.strata[chosen_D],
            self.correct[chosen_D],
            self.strategies[chosen_D],
            self.texts[chosen_D],
            self.order,
        )


def missed(total: np.ndarray, hits: np.ndarray, k: np.ndarray | int) -> np.ndarray:
    """Probability that k of `total` samples, of which `hits` are hits, hold none: the ratio of
    binomial coefficients C(total - hits, k) / C(total, k) as a product of k factors, none of which
    can overflow.

    Args:
        total, hits, k: integers whose shapes are broadcast.

    Returns:
        An array of the broadcast shape (...); NaN where k is larger than `total`.
    """
    total, hits, k = np.broadcast_arrays(total, hits, k)
    result = np.ones(total.shape)
    most = int(k.max(initial=0))
    for i in range(most):
        misses_left = np.maximum(total - hits - i, 0)
        samples_left = np.maximum(total - i, 1)
        factor = misses_left / samples_left
        result *= np.where(i < k, factor, 1.0)
    return np.where(k > total, np.nan, result)


def pass_at_k(total: np.ndarray, correct: np.ndarray, k: np.ndarray | int) -> np.ndarray:
    """The unbiased estimator of the probability that one of k samples is right (Chen et al. 2021,
    arXiv 2107.03374).

    Args:
        total, correct, k: (..) samples, how many of them are right, and how many are drawn; shapes
            are broadcast.

    Returns:
        (..) from 0 to 1; NaN where k is larger than `total`.
    """
    return 1.0 - missed(total, correct, k)


def evenly_missed(miss: Callable[[int], np.ndarray], k: int, strata: int) -> np.ndarray:
    """Probability of no hit where k samples are divided evenly over the J strata; those that get
    one more are chosen at random.

    Args:
        miss: number of samples -> (.., J) probability that so many of a stratum hold no hit.
    """
    each, more = divmod(k, strata)
    few = miss(each)
    if not more:
        return few.prod(-1)
    # mean over all choices of `more` strata: an elementary symmetric polynomial
    many = miss(each + 1)
    chosen = np.zeros((more + 1, *few.shape[:-1]))
    chosen[0] = 1.0
    for j in range(strata):
        # in units of 1 / C(strata, c), so that nothing overflows
        taken = np.arange(1, more + 1).reshape(-1, *[1] * (chosen.ndim - 1)) / (j + 1)
        with_few = (1 - taken) * chosen[1:] * few[..., j]
        with_many = taken * chosen[:-1] * many[..., j]
        chosen[1:] = with_few + with_many
        chosen[0] *= few[..., j]
    return chosen[more]


def proportional_order(shares: np.ndarray, samples: int) -> np.ndarray:
    """(P, N) stratum of each sample where (P, J) shares are followed as closely as whole samples
    allow: next is the stratum with the largest share / (2 samples so far + 1) (Webster's method).
    """
    P = len(shares)
    given = np.zeros(shares.shape)
    order = np.empty((P, samples), np.int64)
    for n in range(samples):
        order[:, n] = (shares / (2 * given + 1)).argmax(1)
        given[np.arange(P), order[:, n]] += 1
    return order


def _missed_by(
    total_EJ: np.ndarray, hits_EJ: np.ndarray, order_EN: np.ndarray | None, k: int
) -> np.ndarray:
    """(E,) probability that k samples over the strata hold no hit.

    Args:
        total_EJ, hits_EJ: samples of each stratum, and how many of them are hits.
        order_EN: stratum of each sample in the order of drawing; None spreads k evenly.
    """
    strata = total_EJ.shape[1]
    if order_EN is None:
        return evenly_missed(lambda n: missed(total_EJ, hits_EJ, n), k, strata)
    drawn_EkJ = order_EN[:, :k, None] == np.arange(strata)
    k_EJ = drawn_EkJ.sum(1)
    missed_EJ = missed(total_EJ, hits_EJ, k_EJ)
    return missed_EJ.prod(1)


def _table(rows: np.ndarray, strata: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair (row, stratum) is there, as an array of `shape`."""
    height, width = shape
    cells = rows * width + strata
    counts = np.bincount(cells, minlength=height * width)
    return counts.reshape(shape)


def success(draws: Draws, prompts: int, strata: int, ks: np.ndarray) -> np.ndarray:
    """pass@k of each prompt, without replacement (Chen et al. 2021).

    Args:
        ks: (k,) numbers of samples.

    Returns:
        (P, k) probabilities; NaN where too few of a prompt's draws were judged.
    """
    known = np.isfinite(draws.correct)
    right = known & (draws.correct > 0)
    total, hits = (
        _table(draws.prompts[some], draws.strata[some], (prompts, strata))
        for some in (known, right)
    )
    return np.stack([1 - _missed_by(total, hits, draws.order, k) for k in ks.tolist()], axis=1)


def kinds(draws: Draws, kind: np.ndarray, prompts: int, strata: int, ks: np.ndarray) -> np.ndarray:
    """Expected number of distinct kinds among k samples of each prompt.

    Args:
        kind: (D,) int; a draw of kind -1 counts as a sample, but is of no kind.
        ks: (k,) numbers of samples.

    Returns:
        (P, k); NaN where there are too few draws.
    """
    total = _table(draws.prompts, draws.strata, (prompts, strata))
    known = kind >= 0
    pairs = np.stack([draws.prompts[known], kind[known]], axis=1)
    entries, entry = np.unique(pairs, axis=0, return_inverse=True)
    prompt_E = entries[:, 0]
    hits = _table(entry.reshape(-1), draws.strata[known], (len(entries), strata))
    if draws.order is None:
        order = None
    else:
        order = draws.order[prompt_E]
    result = np.empty((prompts, len(ks)))
    nothing = np.zeros_like(total)
    for column, k in enumerate(ks.tolist()):
        seen = 1 - _missed_by(total[prompt_E], hits, order, k)
        enough = np.isfinite(_missed_by(total, nothing, draws.order, k))
        counted = np.bincount(prompt_E, np.nan_to_num(seen), minlength=prompts)
        result[:, column] = np.where(enough, counted, np.nan)
    return result


# Intervals


def resample(values: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """(B, M) means of (P, M) values of prompts over resamples of the prompts, the same ones for all
    columns, so that differences of columns are paired. NaN is left out.
    """
    P = len(values)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    known = known.astype(float)
    rng = np.random.default_rng([seed, 5])
    means = []
    step = max(1, CHUNK // max(P, 1))
    for start in range(0, bootstrap, step):
        resamples = min(step, bootstrap - start)
        drawn = rng.integers(P, size=(resamples, P))
        cells = drawn + P * np.arange(resamples)[:, None]
        weights = np.bincount(cells.ravel(), minlength=P * resamples).reshape(resamples, P)
        counted = weights @ known
        with np.errstate(invalid="ignore"):
            means.append(np.where(counted > 0, weights @ filled / counted, np.nan))
    return np.concatenate(means)


def mean(values: np.ndarray) -> np.ndarray:
    """(M,) means of (P, M) values without those that are NaN; NaN where none is left."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def interval(draws: np.ndarray) -> list[float] | None:
    """The 2.5 and 97.5 percentiles of resampled figures; None where none is a number.

    Args:
        draws: (B,) a figure of each resample.
    """
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return [float(low), float(high)]


# Samples saved


def samples_for(curves: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(..) number of samples, at least 1, at which (.., N) curves over k = 1 .. N reach `target`
    (..), linear between whole samples; NaN where they do not.
    """
    curves = np.maximum.accumulate(curves, axis=-1)
    reached = curves >= target[..., None] - TOLERANCE
    first = reached.argmax(-1)
    before = np.maximum(first - 1, 0)
    above = _at(curves, first)
    below = _at(curves, before)
    rise = np.where(above > below, above - below, 1.0)
    too_far = np.clip((above - target) / rise, 0.0, 1.0)
    part = np.where(first > 0, 1 - too_far, 1.0)
    samples = first + part
    return np.where(reached.any(-1), samples, np.nan)


def _at(curves: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(..) the value of each curve (.., N) at its place (..)."""
    values = np.take_along_axis(curves, place[..., None], -1)
    return values[..., 0]


def samples_saved(reference: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, ...]:
    """(target, samples of the reference, samples of the arm) at the highest pass@k that both
    (.., N) curves reach. Their ratio is how many times fewer samples the arm needs.
    """
    target = np.minimum(reference.max(-1), curves.max(-1))
    return target, samples_for(reference, target), samples_for(curves, target)


# What the frozen mixture predicts


@dataclass(frozen=True)
class Mixture:
    """Classes of prompts in which each strategy has a frequency and an accuracy.

    Attributes:
        weights: (C,) share of the prompts.
        frequencies: (C, S + 1), of each strategy and of draws of none.
        accuracies: (C, S + 1).
    """

    weights: np.ndarray
    frequencies: np.ndarray
    accuracies: np.ndarray

    def divided(self, samples: int, latents: int, *, by_frequency: bool) -> np.ndarray:
        """(N,) pass@k where each of the `latents` most frequent strategies has a latent, over which
        samples are divided evenly, or by the strategies' frequencies. What the frozen model draws
        of no strategy, such as one with a mistake, a latent draws as often.
        """
        frequencies = self.frequencies[:, :-1]
        astray_C1 = self.frequencies[:, -1:]
        used = np.argsort(-(self.weights @ frequencies), kind="stable")[:latents]
        right_CS = (1 - astray_C1) * self.accuracies[:, used]
        fails_CS = 1 - right_CS - astray_C1 * self.accuracies[:, -1:]
        if by_frequency:
            order = proportional_order(frequencies[:, used], samples)
        else:
            order = None
        curve = []
        for k in range(1, samples + 1):
            if order is None:
                fails_C = evenly_missed(lambda n: fails_CS**n, k, len(used))
            else:
                drawn_CS = (order[:, :k, None] == np.arange(len(used))).sum(1)
                fails_C = (fails_CS**drawn_CS).prod(1)
            curve.append(1 - fails_C @ self.weights)
        return np.asarray(curve)


def fit_mixture(draws: Draws, prompts: int, seed: int) -> Mixture | None:
    """Latent class analysis (Lazarsfeld and Henry 1968) of a frozen model's draws: in each class of
    prompts each strategy is right with a probability of its own, given how often it was drawn;
    fitted by expectation and maximisation, with the number of classes by the Bayesian information
    criterion. A class's frequencies are the mean of its prompts'.

    Classes keep what strategies have in common: that one solves what another does not. How often a
    strategy is drawn for a prompt does not tell its class, or rare ones would have classes of their
    few draws. None where no strategy has a share of `LEAST_SHARE`.
    """
    known = np.isfinite(draws.correct)
    share = np.bincount(draws.strategies[known] + 1)[1:] / max(1, known.sum())
    used = np.flatnonzero(share >= LEAST_SHARE)
    if not len(used):
        return None
    S = len(used)
    number = np.full(len(share) + 1, S)  # what is of no strategy, -1 included, comes last
    number[used] = np.arange(S)
    kind = number[draws.strategies[known]]
    right = draws.correct[known] > 0
    total_PS = _table(draws.prompts[known], kind, (prompts, S + 1)).astype(float)
    right_PS = _table(draws.prompts[known][right], kind[right], (prompts, S + 1)).astype(float)
    drawn = total_PS.sum(1) > 0
    total_PS = total_PS[drawn]
    right_PS = right_PS[drawn]
    rng = np.random.default_rng([seed, 6])
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for classes in range(1, min(CLASSES, len(total_PS)) + 1):
        restarts = RESTARTS if classes > 1 else 1
        fits = [_latent_classes(right_PS, total_PS, classes, rng) for _ in range(restarts)]
        likelihood, member_PC, accuracy_CS = max(fits, key=lambda fit: fit[0])
        free = classes - 1 + classes * (S + 1)
        criterion = likelihood - 0.5 * free * np.log(len(total_PS))
        if best is None or criterion > best[0]:
            best = criterion, member_PC, accuracy_CS
    assert best is not None
    _, member_PC, accuracy_CS = best
    drawn_CS = member_PC.T @ total_PS + SMOOTHING * total_PS.sum(0) / total_PS.sum()
    return Mixture(member_PC.mean(0), drawn_CS / drawn_CS.sum(1, keepdims=True), accuracy_CS)


def _latent_classes(
    right_PS: np.ndarray, total_PS: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[float, np.ndarray, np.ndarray]:
    """(log-likelihood, membership (P, C), accuracies (C, S + 1)) from a random beginning."""
    member_PC = rng.dirichlet(np.full(classes, 0.3), len(total_PS))
    # what a class of few draws is drawn to; no accuracy is 0 or 1
    overall_S = (right_PS.sum(0) + 0.5) / (total_PS.sum(0) + 1)
    before = -np.inf
    for _ in range(ITERATIONS):
        weights = (member_PC.sum(0) + SMOOTHING) / (len(total_PS) + classes * SMOOTHING)
        right_CS = member_PC.T @ right_PS + SMOOTHING * overall_S
        accuracy_CS = right_CS / (member_PC.T @ total_PS + SMOOTHING)
        log_PC = right_PS @ np.log(accuracy_CS).T + np.log(weights)
        log_PC += (total_PS - right_PS) @ np.log1p(-accuracy_CS).T
        total_P = logsumexp(log_PC, axis=1)
        member_PC = np.exp(log_PC - total_P[:, None])
        likelihood = float(total_P.sum())
        if likelihood - before < 1e-6 * abs(likelihood):
            break
        before = likelihood
    return likelihood, member_PC, accuracy_CS
