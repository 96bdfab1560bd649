"""Which completions of different prompts were made in the same way: clusterings of
their features in `spaces`.

Distinct completions of a prompt take distinct clusters. A clustering whose names mean the same for
every prompt can be predicted by a linear map from completions of other prompts; of many, the one
that a cross-validated ridge regression predicts best is kept, after the regression has reassigned
it. Several views of the completions judge together, so that one decides where another does not.
What starts get wrong most often is a pair of clusters whose names are exchanged for some prompts,
so the best ones are also searched pair by pair. Of namings that are predicted equally well, the one
that explains most of the features' variance is taken.

Shapes: N rows, P prompts, F features, D directions, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from twcli.discovery.centring import whitened
from twcli.discovery.exchanges import ALIKE, search
from twcli.discovery.matching import matched_share
from twcli.discovery.predictability import CrossValidation, above_chance
from twcli.discovery.prior import assign_groups

DIMENSIONS = (8, 16, 32, 48)  # whitened dimensions that the starts cluster in
RESTARTS = 2  # for each of them and each kind of feature
ITERATIONS = 30
# reassigned starts whose pairs of clusters are searched; a pair of completions says less
FINALISTS, PAIRED_FINALISTS = 4, 8
SEARCH_WORK = 12  # such a search takes about as long as so many starts
TIE = 5e-4  # difference of scores that says nothing
MOST_CLUSTERS = 16  # that are looked for where their number is not given
# of the highest gain: on six tasks a strategy too few reached 0.95 of it at most, the
# right number 0.99 at least
ENOUGH = 0.975
# numbers of clusters in succession that are predicted no better, after which no more are tried
PATIENCE = 3
# of those that chance would give: clusters that meet in fewer prompts are one, split by x;
# strategies reached 0.36 at least
MEETINGS = 0.1
ENOUGH_MEETINGS = 10  # meetings that chance would give, below which their absence says nothing


def assign(points: np.ndarray, sizes: list[int], centroids: np.ndarray) -> np.ndarray:
    """Clusters of points, distinct within a prompt as far as K reaches.

    Args:
        points: (N, D) prompt by prompt.
        sizes: rows of each prompt.
        centroids: (K, D).

    Returns:
        (N,) int.
    """
    return assign_groups(_squared_distance(points, centroids), sizes)


def starts_of(
    kinds: Iterable[np.ndarray], sizes: list[int], latents: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Clusterings to start from, in whitened spaces of several sizes.

    Args:
        kinds: (N, F) of each kind of features, prompt by prompt.
        sizes: rows of each prompt.

    Yields:
        (N,) int.
    """
    for kind in kinds:
        leading = whitened(kind, max(DIMENSIONS), 0)
        for dimensions in DIMENSIONS:
            for _ in range(RESTARTS):
                yield constrained_kmeans(leading[:, :dimensions], sizes, latents, rng)


def best_count(
    views: Sequence[np.ndarray],
    kinds: Sequence[np.ndarray],
    sizes: list[int],
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> tuple[int, dict[int, float]]:
    """How many clusters there are: (K, what speaks for each K that was tried).

    That is `above_chance` of the highest score. Completions of one prompt differ by their clusters,
    so it grows as long as two strategies have to share one, and no further. The smallest K is taken
    that comes as near to the highest as `ENOUGH`.

    Args:
        views: as in `CrossValidation`.
        kinds: (N, F) each, of the features that clusterings start in.
        advance: called with 1 after each K.
    """
    gains: dict[int, float] = {}
    for latents in range(2, MOST_CLUSTERS + 1):
        rng = np.random.default_rng([seed, 5, latents])
        judge = CrossValidation(views, sizes, latents, rng)
        starts = starts_of(kinds, sizes, latents, rng)
        highest = max(judge.reassign(start)[1] for start in starts)
        gains[latents] = above_chance(highest, latents)
        if advance:
            advance(1)
        enough = min(K for K in gains if gains[K] >= ENOUGH * max(gains.values()))
        if latents >= enough + PATIENCE:
            break
    return enough, gains


def alternatives(clusters: np.ndarray, sizes: list[int], latents: int) -> int:
    """How many clusters a prompt can choose between: those that never occur in one prompt are one
    choice, whatever x is.

    Spare clusters are empty, or halves of a strategy that divide the prompts between them.

    Args:
        clusters: (N,) int below `latents`, prompt by prompt.
        sizes: rows of each prompt.
    """
    prompt_N = np.repeat(np.arange(len(sizes)), sizes)
    has_PK = np.zeros((len(sizes), latents))
    has_PK[prompt_N, clusters] = 1
    has_PK = has_PK[:, has_PK.any(0)]
    while True:
        prompts_K = has_PK.sum(0)
        chance_KK = np.outer(prompts_K, prompts_K) / len(sizes)
        seldom_KK = has_PK.T @ has_PK <= MEETINGS * chance_KK
        apart_KK = np.triu((chance_KK >= ENOUGH_MEETINGS) & seldom_KK, 1)
        if not apart_KK.any():
            return has_PK.shape[1]
        # The largest pair first: whatever else fits with either of the two then has the fewest
        # places left.
        one, other = np.unravel_index(np.where(apart_KK, chance_KK, 0).argmax(), apart_KK.shape)
        has_PK[:, one] = np.maximum(has_PK[:, one], has_PK[:, other])
        has_PK = np.delete(has_PK, other, axis=1)


def constrained_kmeans(
    points: np.ndarray, sizes: list[int], latents: int, rng: np.random.Generator
) -> np.ndarray:
    """Clusters (N,) by k-means from random points, distinct completions of a prompt kept apart."""
    centroids = points[rng.choice(len(points), latents, replace=len(points) < latents)]
    clusters = assign(points, sizes, centroids)
    for _ in range(ITERATIONS - 1):
        sums, counts = _sums(points, clusters, latents)
        means = sums / np.maximum(counts, 1)[:, None]
        centroids = np.where(counts[:, None] > 0, means, centroids)
        previous, clusters = clusters, assign(points, sizes, centroids)
        if np.array_equal(previous, clusters):
            break
    return clusters


def best_clustering(
    starts: Iterable[np.ndarray],
    views: Sequence[np.ndarray],
    sizes: list[int],
    latents: int,
    rng: np.random.Generator,
    advance: Callable[[int], None] | None = None,
    *,
    finalists: int = FINALISTS,
) -> tuple[np.ndarray, float, float]:
    """Reassigns every start, searches around the best ones and keeps the clustering of highest
    score.

    Args:
        views: as in `CrossValidation`; by the first one ties are broken.
        advance: called with units of work, `clustering_work` in all.
        finalists: reassigned starts, no two alike, whose pairs are searched.

    Returns:
        clusters (N,); their score; agreement of the starts with them.
    """
    judge = CrossValidation(views, sizes, latents, rng)
    reassigned = []
    for start in starts:
        reassigned.append(judge.reassign(start))
        if advance:
            advance(1)
    found = list(reassigned)
    for clusters, score in _distinct(reassigned, latents, finalists):
        found += search(judge, clusters, score)
        if advance:
            advance(SEARCH_WORK)
    highest = max(score for _, score in found)
    tied = [(clusters, score) for clusters, score in found if score >= highest - TIE]
    clusters, score = max(tied, key=lambda result: _between(views[0], result[0], latents))
    alike = [matched_share(clusters, other, latents) for other, _ in reassigned]
    return clusters, score, float(np.mean(alike))


def clustering_work(kinds: int, finalists: int) -> int:
    """Units of work of `best_clustering` over `starts_of` so many kinds of features, for the
    forecast of the time.
    """
    return kinds * len(DIMENSIONS) * RESTARTS + finalists * SEARCH_WORK


def _distinct(
    found: list[tuple[np.ndarray, float]], latents: int, count: int
) -> list[tuple[np.ndarray, float]]:
    """The `count` of highest score of which no two are alike, by falling score."""
    kept: list[tuple[np.ndarray, float]] = []
    for clusters, score in sorted(found, key=lambda result: -result[1]):
        if len(kept) == count:
            break
        if all(matched_share(clusters, other, latents) < ALIKE for other, _ in kept):
            kept.append((clusters, score))
    return kept


def _between(points: np.ndarray, clusters: np.ndarray, latents: int) -> float:
    """Sum of squares that lies between the clusters (the rest is the inertia of k-means)."""
    sums, counts = _sums(points, clusters, latents)
    squared_K = (sums**2).sum(1)
    return float((squared_K / np.maximum(counts, 1)).sum())


def _sums(points: np.ndarray, clusters: np.ndarray, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, D) sums of the points of each cluster, and how many (K,)."""
    sums = np.zeros((latents, points.shape[1]), points.dtype)
    np.add.at(sums, clusters, points)
    return sums, np.bincount(clusters, minlength=latents)


def _squared_distance(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(N, K) squared Euclidean distance of points (N, D) from centroids (K, D)."""
    norms_N1 = (points**2).sum(1)[:, None]
    norms_K = (centroids**2).sum(1)
    return norms_N1 - 2 * points @ centroids.T + norms_K
