"""Which completions of different prompts were made in the same way: clusterings of their features in `spaces`.

Distinct completions of a prompt take distinct clusters. A clustering whose names mean the same for every prompt can be told
by a linear map from completions of other prompts; of many, the one that a cross-validated ridge regression tells best is
kept, after the regression has mended it. Several views of the completions may judge together, so that of namings which one of
them tells alike another decides. What starts get wrong most often is a pair of clusters whose names are exchanged for some
prompts, so the best ones are also searched pair by pair. Of namings that are told equally well, the one that explains most of
the features' variance is taken.

Shapes: N rows, P prompts, F features, D directions, K clusters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from twcli.assignment import assign_groups
from twcli.spaces import whitened

RIDGE = 1e-2  # of their mean variance
DIMENSIONS = (8, 16, 32, 48)  # whitened dimensions that the starts cluster in
RESTARTS = 2  # for each of them and each kind of feature
ITERATIONS = 30
MENDINGS = 12
FINALISTS, PAIRED_FINALISTS = 4, 8  # mended starts whose pairs of clusters are searched; a pair of completions tells less
SEARCH_WORK = 12  # such a search takes about as long as so many starts
ALIKE = 0.95  # share of rows on which two clusterings agree, from which they are one
EXCHANGES, MENDED_EXCHANGES = 12, 3  # ways of naming one pair of clusters anew: judged by one assignment, and mended
SLACK = 0.04  # by which such a way may be told worse than the present one: the other clusters have a say as well
MARGIN = 1e-6
PRINCIPAL = 16  # directions tried
SPANS = (6, 8, 10, 12, 16, 20)  # of the leading directions, in which independent ones are sought
FLAT = 1e-5  # of the largest spread: along such a direction there is rounding only
TIE = 5e-4  # difference of scores that says nothing
MOST_CLUSTERS = 16  # that are looked for where their number is not given
ROWS_A_DIRECTION = 4  # least rows for each direction in which a run's latents are told apart
ENOUGH = 0.975  # of the highest gain: on six tasks a strategy too few reached 0.95 of it at most, the right number 0.99 at least
PATIENCE = 3  # numbers of clusters in succession that are told no better, after which no more are tried
MEETINGS = 0.1  # of those that chance would give: clusters that meet in fewer prompts are one, split by x; strategies reached 0.36 at least
TELLING = 10  # meetings that chance would give, below which their absence says nothing


def assign(points: np.ndarray, sizes: list[int], centroids: np.ndarray) -> np.ndarray:
    """Clusters (N,) of points grouped by prompt, distinct within a prompt as far as K reaches."""
    return assign_groups(_squared_distance(points, centroids), sizes)


def starts_of(kinds: Iterable[np.ndarray], sizes: list[int], latents: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Clusterings (N,) in whitened spaces of several sizes, of each kind of features (N, F)."""
    for kind in kinds:
        leading = whitened(kind, max(DIMENSIONS), 0)
        for dimensions in DIMENSIONS:
            for _ in range(RESTARTS):
                yield constrained_kmeans(leading[:, :dimensions], sizes, latents, rng)


def best_count(views: Sequence[np.ndarray], kinds: Sequence[np.ndarray], sizes: list[int], seed: int,
               advance: Callable[[int], None] | None = None) -> tuple[int, dict[int, float]]:
    """How many clusters there are, without being told: (K, what speaks for each K that was tried).

    That is `above_chance` of the highest score.
    Completions of one prompt differ by their clusters, so it grows as long as two strategies have to share one, and no
    further. The smallest K is taken that comes as near to the highest as `ENOUGH`.

    Args:
        views: as in `CrossValidation`.
        kinds: (N, F) each, of the features that clusterings start in.
        advance: called with 1 after each K.
    """
    gains: dict[int, float] = {}
    for latents in range(2, MOST_CLUSTERS + 1):
        rng = np.random.default_rng([seed, 5, latents])
        judge = CrossValidation(views, sizes, latents, rng)
        gains[latents] = above_chance(max(judge.mend(start)[1] for start in starts_of(kinds, sizes, latents, rng)), latents)
        if advance:
            advance(1)
        enough = min(K for K in gains if gains[K] >= ENOUGH * max(gains.values()))
        if latents >= enough + PATIENCE:
            break
    return enough, gains


def above_chance(score: float, latents: int) -> float:
    """The mean value that the other half's regression gives a row's own cluster, above 1 / K: comparable between numbers of clusters."""
    return score * (1 - 1 / latents)


def alternatives(clusters: np.ndarray, sizes: list[int], latents: int) -> int:
    """How many clusters a prompt can choose between: those that stand in no prompt together are one choice, whatever x is.

    Clusters to spare are empty, or halves of a strategy that divide the prompts between them.
    """
    prompt_N = np.repeat(np.arange(len(sizes)), sizes)
    has_PK = np.zeros((len(sizes), latents))
    has_PK[prompt_N, clusters] = 1
    has_PK = has_PK[:, has_PK.any(0)]
    while True:
        chance_KK = np.outer(has_PK.sum(0), has_PK.sum(0)) / len(sizes)
        apart_KK = np.triu((chance_KK >= TELLING) & (has_PK.T @ has_PK <= MEETINGS * chance_KK), 1)
        if not apart_KK.any():
            return has_PK.shape[1]
        # The largest pair first: whatever else would go with either of the two then has least room.
        one, other = np.unravel_index(np.where(apart_KK, chance_KK, 0).argmax(), apart_KK.shape)
        has_PK[:, one] = np.maximum(has_PK[:, one], has_PK[:, other])
        has_PK = np.delete(has_PK, other, axis=1)


def told_apart(points: np.ndarray, sizes: list[int], soft_NK: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How far one meaning of the latents holds for all prompts: (what is told (N,), what could be (N,)), to be summed and divided.

    A linear map from the completions of one half of the prompts tells those of the other half. The share is 1 where each
    completion of a prompt has a latent of its own with certainty and the map tells which; it is 0 where latents are used alike,
    or change their meaning from prompt to prompt.

    Args:
        points: (N, D) prompt-centred, directions by falling variance; only as many are read as the rows can bear.
        soft_NK: probability of each latent for each row.
    """
    latents, points = soft_NK.shape[1], points[:, : max(1, len(points) // ROWS_A_DIRECTION)]
    told_N, attainable_N = np.zeros(len(points)), np.zeros(len(points))
    for half in CrossValidation([points], sizes, latents, np.random.default_rng([seed, 6])).halves:
        (values,) = half.values(soft_NK[half.fitted_N] - 1 / latents)
        told_N[half.told_N] = (values * soft_NK[half.told_N]).sum(1)
        attainable_N[half.told_N] = 1 - 1 / np.minimum(np.repeat(half.sizes, half.sizes), latents)
    return told_N, attainable_N


def constrained_kmeans(points: np.ndarray, sizes: list[int], latents: int, rng: np.random.Generator) -> np.ndarray:
    """Clusters (N,) by k-means from random points, distinct completions of a prompt kept apart."""
    centroids = points[rng.choice(len(points), latents, replace=len(points) < latents)]
    clusters = None
    for _ in range(ITERATIONS):
        previous, clusters = clusters, assign(points, sizes, centroids)
        if previous is not None and np.array_equal(previous, clusters):
            break
        sums, counts = _sums(points, clusters, latents)
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    return clusters


def best_clustering(starts: Iterable[np.ndarray], views: Sequence[np.ndarray], sizes: list[int], latents: int, rng: np.random.Generator,
                    advance: Callable[[int], None] | None = None, *, finalists: int = FINALISTS) -> tuple[np.ndarray, float, float]:
    """Mends every start, searches around the best ones and keeps the clustering of highest score.

    Args:
        views: as in `CrossValidation`; by the first one ties are broken.
        advance: called with units of work, `clustering_work` in all.
        finalists: mended starts, no two alike, whose pairs are searched.

    Returns:
        clusters (N,); their score; agreement of the starts with them.
    """
    judge = CrossValidation(views, sizes, latents, rng)
    mended = []
    for start in starts:
        mended.append(judge.mend(start))
        if advance:
            advance(1)
    found = list(mended)
    for clusters, score in _distinct(mended, latents, finalists):
        found += judge.search(clusters, score)
        if advance:
            advance(SEARCH_WORK)
    highest = max(score for _, score in found)
    tied = [(clusters, score) for clusters, score in found if score >= highest - TIE]
    clusters, score = max(tied, key=lambda result: _between(views[0], result[0], latents))
    return clusters, score, float(np.mean([matched_share(clusters, other, latents) for other, _ in mended]))


def clustering_work(kinds: int, finalists: int) -> int:
    """Units of work of `best_clustering` over `starts_of` so many kinds."""
    return kinds * len(DIMENSIONS) * RESTARTS + finalists * SEARCH_WORK


def _distinct(found: list[tuple[np.ndarray, float]], latents: int, count: int) -> list[tuple[np.ndarray, float]]:
    """The `count` of highest score of which no two are alike, by falling score."""
    kept: list[tuple[np.ndarray, float]] = []
    for clusters, score in sorted(found, key=lambda result: -result[1]):
        if len(kept) < count and all(matched_share(clusters, other, latents) < ALIKE for other, _ in kept):
            kept.append((clusters, score))
    return kept


@dataclass(frozen=True)
class Half:
    """The prompts that are told by a regression of the others.

    Attributes:
        fitted_N, told_N: which rows are the others', and which are these prompts'.
        sizes: rows of each of these prompts.
        maps: for each view, from targets of the others to regression weights.
        points: for each view, these prompts' rows.
    """

    fitted_N: np.ndarray
    told_N: np.ndarray
    sizes: np.ndarray
    maps: list[np.ndarray]
    points: list[np.ndarray]

    def values(self, targets: np.ndarray) -> list[np.ndarray]:
        """For each view (rows told, K): what the others' targets (rows fitted, K) let expect."""
        return [points @ (maps @ targets) for points, maps in zip(self.points, self.maps, strict=True)]


class CrossValidation:
    """Ridge regressions of the clusters of one half of the prompts, which assign the other half.

    Args:
        views: (N, D) each, grouped by prompt. The first one assigns; the score is the mean of what they all give what it assigned.
        sizes: rows of each prompt.
    """

    def __init__(self, views: Sequence[np.ndarray], sizes: list[int], latents: int, rng: np.random.Generator) -> None:
        self.views, self.latents = views, latents
        self.prompt_N = np.repeat(np.arange(len(sizes)), sizes)
        second = np.zeros(len(sizes), bool)
        second[rng.permutation(len(sizes))[: len(sizes) // 2]] = True
        self.second_P = second
        self.halves = []
        for fitted in (~second, second):
            fitted_N, told_N = np.repeat(fitted, sizes), np.repeat(~fitted, sizes)
            if fitted_N.any() and told_N.any():
                maps = [ridge_map(view[fitted_N]).astype(np.float32) for view in views]
                points = [np.asarray(view[told_N], np.float32) for view in views]
                self.halves.append(Half(fitted_N, told_N, np.asarray(sizes)[~fitted], maps, points))

    def assign(self, clusters: np.ndarray) -> tuple[np.ndarray, float]:
        """(clusters (N,) that the other half's regression assigns, their score)."""
        told, total = clusters.copy(), 0.0
        for half in self.halves:
            values = half.values(one_hot(clusters[half.fitted_N], self.latents))
            told[half.told_N] = chosen = assign_groups(-values[0], half.sizes)
            total += sum(float(value[np.arange(len(chosen)), chosen].sum()) for value in values)
        return told, total / len(clusters) / len(self.views) / (1 - 1 / self.latents)

    def mend(self, clusters: np.ndarray) -> tuple[np.ndarray, float]:
        """(clusters (N,), score) after repeated assignment, until nothing moves or long enough."""
        score = 0.0
        for _ in range(MENDINGS):
            told, score = self.assign(clusters)
            if np.array_equal(told, clusters):
                break
            clusters = told
        return clusters, score

    def search(self, clusters: np.ndarray, score: float) -> list[tuple[np.ndarray, float]]:
        """(clusters (N,), score) of all that were met while two clusters' names were exchanged, prompt by prompt.

        Each exchange that raises the score is gone on from, until none does.
        """
        met = []
        pairs = list(combinations(range(self.latents), 2))
        waiting = list(pairs)
        while waiting:
            pair = waiting.pop(0)
            exchanged = (new for view in self.views for new in self._exchanges(view, clusters, *pair))
            screened = sorted(map(self.assign, exchanged), key=lambda result: -result[1])
            for told, _ in screened[:MENDED_EXCHANGES]:
                mended, better = self.mend(told)
                met.append((mended, better))
                if better > score + MARGIN:
                    clusters, score = mended, better
                    waiting = [other for other in pairs if other != pair]
                    break
        return met

    def _exchanges(self, points: np.ndarray, clusters: np.ndarray, one: int, other: int) -> list[np.ndarray]:
        """Clusters with the two named anew in all prompts that have both, in the ways that can be told best from a view's points.

        Where most rows of the two stand in prompts without the other, those also take the names that the same direction gives them.

        Two names for two completions of a prompt are a sign of the difference between them, and along the direction that
        tells them the differences have two humps. Such directions are what independent component analysis finds (Hyvarinen
        and Oja 2000); the signs along them and along principal ones are mended by regressions that tell the other half.
        """
        prompts = len(self.second_P)
        row_P = np.full((2, prompts), -1)
        for side, name in enumerate((one, other)):
            rows = np.flatnonzero(clusters == name)
            row_P[side, self.prompt_N[rows]] = rows
        both = np.flatnonzero((row_P >= 0).all(0))
        second = self.second_P[both]
        if second.all() or not second.any():
            return []
        rows_one, rows_other = row_P[:, both]
        apart = points[rows_one] - points[rows_other]
        if np.abs(apart).max(initial=0) <= FLAT * np.abs(points).max(initial=0):  # two strategies that begin alike
            return []
        _, spreads, directions = np.linalg.svd(apart, full_matrices=False)
        directions = directions[spreads > FLAT * spreads[0]]
        spreads = spreads[: len(directions), None]
        tried = [np.ones((len(apart), 1)), apart @ directions[:PRINCIPAL].T]
        for span in sorted({min(span, len(directions)) for span in SPANS}):
            whitened = apart @ (directions[:span] / spreads[:span]).T * math.sqrt(len(apart))
            tried.append(whitened @ _independent_directions(whitened).T)
        signs = np.where(np.concatenate(tried, axis=1) >= 0, 1.0, -1.0)
        ridges = [(told, ridge_map(apart[~told])) for told in (second, ~second)]
        values = np.empty_like(signs)
        for _ in range(MENDINGS):
            for told, ridge in ridges:
                values[told] = apart[told] @ (ridge @ signs[~told])
            previous, signs = signs, np.where(values >= 0, 1.0, -1.0)
            if np.array_equal(previous, signs):
                break
        fits = np.abs(values).mean(0)
        present, chosen = signs[:, 0], []
        for column in np.argsort(-fits):
            known = [present, *(signs[:, c] for c in chosen)]
            if fits[column] > fits[0] - SLACK and all(abs(signs[:, column] @ k) < (2 * ALIKE - 1) * len(k) for k in known):
                chosen.append(column)
        exchanged, chosen = [], chosen[:EXCHANGES]
        for column in chosen:
            swap = signs[:, column] < 0
            new = clusters.copy()
            new[rows_one[swap]], new[rows_other[swap]] = other, one
            exchanged.append(new)
        alone = np.isin(clusters, (one, other))
        alone[[rows_one, rows_other]] = False
        if alone.sum() > 2 * len(apart):
            beside, ridge = points[alone] - points[alone].mean(0), ridge_map(apart)
            for column, new in zip(chosen, exchanged.copy(), strict=True):
                exchanged.append(new.copy())
                exchanged[-1][alone] = np.where(beside @ (ridge @ signs[:, column]) >= 0, one, other)
        return exchanged


def _independent_directions(whitened: np.ndarray) -> np.ndarray:
    """(D, D) orthonormal rows along which the points are least normal; the axes where none can be told from a normal one."""
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # signs are all that is taken from them
        try:
            return FastICA(whiten=False, fun="cube", max_iter=50, tol=1e-3, random_state=0).fit(whitened.astype(np.float64)).components_
        except ValueError:  # its step cancels where the points are as normal as can be, and what is left of it is rounding
            return np.eye(whitened.shape[1])


def ridge_map(points: np.ndarray) -> np.ndarray:
    """(D, N): maps targets of these points to regression weights, to none where all points are zero."""
    if not points.any():
        return np.zeros(points.shape[::-1])
    covariance = points.T.astype(np.float64) @ points / len(points)
    penalty = RIDGE * np.trace(covariance) / max(len(covariance), 1)
    return np.linalg.solve(covariance + penalty * np.eye(len(covariance)), points.T / len(points))


def one_hot(clusters: np.ndarray, latents: int) -> np.ndarray:
    """(N, K) one-hot, minus its mean under chance."""
    return np.eye(latents, dtype=np.float32)[clusters] - np.float32(1 / latents)


def _between(points: np.ndarray, clusters: np.ndarray, latents: int) -> float:
    """Sum of squares that lies between the clusters (the rest is the inertia of k-means)."""
    sums, counts = _sums(points, clusters, latents)
    return float(((sums**2).sum(1) / np.maximum(counts, 1)).sum())


def _sums(points: np.ndarray, clusters: np.ndarray, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, D) sums of the points of each cluster, and how many (K,)."""
    sums = np.zeros((latents, points.shape[1]), points.dtype)
    np.add.at(sums, clusters, points)
    return sums, np.bincount(clusters, minlength=latents)


def _squared_distance(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)


def matched_share(one: np.ndarray, other: np.ndarray, latents: int) -> float:
    counts = np.zeros((latents, latents))
    np.add.at(counts, (one, other), 1)
    rows, columns = linear_sum_assignment(-counts)
    return counts[rows, columns].sum() / len(one)
