"""Which completions were made in the same way, where strategies may repeat within a prompt.

There are many reasonable ways to cluster points: which features, how many directions, k-means or a
Gaussian mixture; and clusters of wordings may hide what differs across all wordings, so each way is
also tried on what is left after fine clusters' means are taken out (alternative clustering). A
frequent strategy lies densely and a rare one sparsely, and k-means would cut the former before it
finds the latter: rows are weighted by the inverse of the density around them, so that a strategy
counts by the variety of its completions, not by their number. Each way names the rows from either
half of the prompts; how far the two namings agree on all rows is its stability (Lange et al. 2004),
and how well its names carry over to sub-kinds that were left out its generalisation (`subkinds`).
The naming that the ways of most stability and generalisation agree with most is kept, and those
that agree with it vote for each row (evidence accumulation, Fred and Jain 2005). On natural data
this ranks namings far better than likelihood or explained variance, which prefer tight sub-kinds. A
linear discriminant that was fitted to the votes on other prompts then names each row: what holds
for all prompts is kept, and single votes that do not are corrected.

Shapes: N rows that lie prompt by prompt, D directions, K clusters, W ways.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from twcli.discovery.subkinds import generalisation, leave_out

KMEANS_DIRECTIONS = (6, 12, 24, 48)
OTHER_DIRECTIONS = (12, 24, 48)
FINE_CLUSTERS = (3, 5)  # times K, whose means are taken out
NEIGHBOURS = 0.01  # share of the rows, whose median distance is the scale of a density
RESTARTS = 4
HALVINGS = 4  # of the prompts, over which stability is averaged
NOISE_HALVINGS = 2  # of them for points without structure, which vary less
SEARCHED_ROWS = 3000  # that ways are fitted to; the others are predicted
REGULARISATION = 1e-3  # of the mean variance, on a mixture's covariances
STABLE = 8  # powers: how much more the stable ways count,
GENERAL = 8  # those whose names carry over to other sub-kinds,
ALIKE = 3  # and those that name alike
VOTERS = 0.75  # agreement with the kept naming, from which a way votes
LEAST_ROWS = 4  # a cluster, in each half
FOLDS = 5  # of the prompts, for the discriminant
CORRECTIONS = 2  # rounds of it
TINY = 1e-12
DOUBT = 1e-3  # least probability of any cluster, shared out evenly: no feature is ever that sure


@dataclass(frozen=True)
class Weights:
    """How much rows count where they are averaged.

    Attributes:
        plain_N: (N,) by their number of tokens.
        even: for each view (N,), by `even_weights`.
    """

    plain_N: np.ndarray
    even: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Way:
    """One way to cluster points.

    Attributes:
        view: which view is clustered.
        directions: leading ones of it.
        fine: clusters whose means are taken out of the first view beforehand; 0 for none.
        mixture: Gaussians of one covariance, which start from k-means, in its place.
    """

    view: int
    directions: int
    fine: int = 0
    mixture: bool = False

    def name(
        self,
        views: Sequence[np.ndarray],
        weights: Weights,
        latents: int,
        fitted_N: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Clusters of all rows by what is fitted to some of them.

        Args:
            views: (N, D) of each view.
            latents: K.
            fitted_N: (N,) bool, the rows to fit to.

        Returns:
            (N,) int.
        """
        points, weight_N = views[self.view], weights.even[self.view]
        if self.fine:
            weight_N = weights.plain_N
            points = self._without_fine_clusters(views, weight_N, fitted_N, seed)
        points = points[:, : self.directions]
        if not points.shape[1]:
            return np.zeros(len(points), np.int64)
        means = _kmeans(points[fitted_N], weight_N[fitted_N], latents, seed)
        if not self.mixture:
            return means.predict(points).astype(np.int64)
        mixture = GaussianMixture(
            latents,
            covariance_type="tied",
            means_init=means.cluster_centers_,
            reg_covar=REGULARISATION * float(points[fitted_N].var()) + 1e-12,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a fair clustering all the same
            return mixture.fit(points[fitted_N]).predict(points).astype(np.int64)

    def _without_fine_clusters(
        self,
        views: Sequence[np.ndarray],
        weight_N: np.ndarray,
        fitted_N: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """The first view minus the means of fine clusters of this way's view."""
        seen = views[self.view][:, : max(KMEANS_DIRECTIONS)]
        fine = min(self.fine, int(fitted_N.sum()) // LEAST_ROWS)
        if fine < 2 or not seen.shape[1]:
            return views[0]
        clusters = _kmeans(seen[fitted_N], weight_N[fitted_N], fine, seed)
        sums = np.zeros((fine, views[0].shape[1]))
        np.add.at(sums, clusters.labels_, views[0][fitted_N])
        counts = np.bincount(clusters.labels_, minlength=fine)
        means = sums / np.maximum(counts, 1)[:, None]
        left = views[0] - means[clusters.predict(seen)]
        if not left.shape[1]:
            return left
        with np.errstate(invalid="ignore"):  # nothing may be left over
            count = min(self.directions, *left[fitted_N].shape)
            axes = PCA(count, random_state=0).fit(left[fitted_N])
        return axes.transform(left)


def ways_of(latents: int, views: int) -> list[Way]:
    """All ways that are tried for K clusters."""
    found = []
    for view in range(views):
        found += [Way(view, directions) for directions in KMEANS_DIRECTIONS]
        for times in FINE_CLUSTERS:
            ends = min(OTHER_DIRECTIONS), max(OTHER_DIRECTIONS)
            found += [Way(view, directions, fine=times * latents) for directions in ends]
        found += [Way(view, directions, mixture=True) for directions in OTHER_DIRECTIONS]
    return found


def even_weights(points: np.ndarray, weight_N: np.ndarray, used_N: np.ndarray) -> np.ndarray:
    """Weights (N,) that count each region of the points alike, however densely rows lie there.

    A row's weight is divided by a Gaussian kernel density, whose width is the median distance to
    the row that `NEIGHBOURS` of all are nearer than. Rows that are not used keep theirs.
    """
    seen = points[used_N][:, : max(KMEANS_DIRECTIONS)]
    if len(seen) < 2 or not seen.shape[1]:
        return weight_N
    squared_NN = euclidean_distances(seen.astype(np.float32), squared=True)
    nearest = max(2, round(NEIGHBOURS * len(seen)))
    ordered_NN = np.partition(squared_NN, min(nearest, len(seen) - 1))
    width = float(np.median(ordered_NN[:, nearest]))
    density_N = np.exp(squared_NN / -(width + TINY)).sum(1)
    even_N = weight_N.copy()
    even_N[used_N] /= density_N
    even_N[used_N] *= weight_N[used_N].mean() / even_N[used_N].mean()
    return even_N


@dataclass(frozen=True)
class Discriminant:
    """P(z | points) by linear discriminants with a shrunk covariance (Ledoit and Wolf 2004).

    Attributes:
        fitted: None where the rows had one cluster only.
        names: (C,) the clusters that the rows had.
        latents: K.
    """

    fitted: LinearDiscriminantAnalysis | None
    names: np.ndarray
    latents: int

    @classmethod
    def fit(cls, points: np.ndarray, clusters_N: np.ndarray, latents: int) -> Discriminant:
        """Linear discriminant analysis of rows whose clusters are known.

        Args:
            points: (N, D).
            clusters_N: (N,) int below `latents`.
        """
        names, counts = np.unique(clusters_N, return_counts=True)
        names = names[counts > 1]
        kept = np.isin(clusters_N, names)
        if len(names) < 2 or not points.shape[1]:
            return cls(None, names, latents)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        return cls(lda.fit(points[kept], clusters_N[kept]), names, latents)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, K)."""
        posterior_NK = np.full((len(points), self.latents), 1 / self.latents)
        if self.fitted is not None:
            posterior_NK[:] = 0.0
            posterior_NK[:, self.names] = self.fitted.predict_proba(points)
        elif len(self.names) == 1:
            posterior_NK[:] = np.eye(self.latents)[self.names[0]]
        return (1 - DOUBT) * posterior_NK + DOUBT / self.latents


def discriminant_points(views: Sequence[np.ndarray]) -> np.ndarray:
    """What the discriminant sees: the states, and everything.

    Args:
        views: (N, D) of each view.

    Returns:
        (N, sum of the two D).
    """
    return np.concatenate([views[0], views[-1]], axis=1)


@dataclass(frozen=True)
class Found:
    """The naming that the stable ways agree on.

    Attributes:
        posterior_NK: P(z | features) of each row, from discriminants fitted on other prompts.
        discriminant: fitted to all rows, for rows that were not here.
        stability: share of rows on which whole searches of either half of the prompts agree.
        above_noise: how far stability times generalisation of the best ways is above what it is on
            points without structure, from 0 to 1, which is full; below 0 where it is less.
        generalisation: of the naming to sub-kinds that were left out, as of `subkinds`.
    """

    posterior_NK: np.ndarray
    discriminant: Discriminant
    stability: float
    above_noise: float
    generalisation: float


def search(
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    sizes: ArrayLike,
    latents: int,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> Found:
    """Names rows that lie prompt by prompt.

    Args:
        views: (N, D) points of several kinds, directions by falling variance.
        weight_N: how much each row counts where rows are averaged.
        sizes: rows of each prompt.
        advance: called with 1 after each of `ways_of`.
    """
    # Points are few: threads would wait for each other, and round otherwise on other machines.
    with threadpool_limits(1):
        return _search(views, weight_N, np.asarray(sizes, np.int64), latents, seed, advance)


def _search(
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    sizes_P: np.ndarray,
    latents: int,
    seed: int,
    advance: Callable[[int], None] | None,
) -> Found:
    rng = np.random.default_rng([seed, 8])
    used_P = _first_prompts(sizes_P, SEARCHED_ROWS, rng)
    used_N = np.repeat(used_P, sizes_P)
    halvings = [_halves(used_P, sizes_P, rng) for _ in range(HALVINGS)]
    weights = Weights(weight_N, tuple(even_weights(view, weight_N, used_N) for view in views))
    ways = ways_of(latents, len(views))
    namings_WN = np.empty((len(ways), len(used_N)), np.int64)
    halves_WH2N = np.empty((len(ways), HALVINGS, 2, len(used_N)), np.int64)
    for index, way in enumerate(ways):
        namings_WN[index] = way.name(views, weights, latents, used_N, seed)
        for halving, sides in enumerate(halvings):
            enough = _enough(sides, latents)
            for side, fitted_N in enumerate(sides):
                if enough:
                    named_N = way.name(views, weights, latents, fitted_N, seed + 1)
                else:
                    named_N = rng.integers(latents, size=len(used_N))
                halves_WH2N[index, halving, side] = named_N
        if advance:
            advance(1)
    stability_W = np.array([_stability(halves_H2N, used_N, latents) for halves_H2N in halves_WH2N])
    points = discriminant_points(views)

    judge = _Judge(views, points, sizes_P, used_N, latents, seed)
    general_W = np.empty(len(ways))
    for index, naming_N in enumerate(namings_WN):
        namings_WN[index], general_W[index] = judge.better(naming_N)
    trust_W = stability_W**STABLE * general_W**GENERAL + TINY
    agreements = []
    for halving, sides in enumerate(halvings):
        one_N, other_N = (
            _outcome(halves_WH2N[:, halving, side], trust_W, points, fitted_N, latents)
            for side, fitted_N in enumerate(sides)
        )
        agreements.append(matched_share(one_N[used_N], other_N[used_N], latents))
    posterior_NK = _elected(namings_WN, trust_W, latents)
    clusters_N = posterior_NK.argmax(1)
    for _ in range(CORRECTIONS):
        posterior_NK = out_of_fold(points, clusters_N, sizes_P, latents, rng)
        clusters_N = posterior_NK.argmax(1)
    discriminant = Discriminant.fit(points, clusters_N, latents)
    noise = _noise_trust(views, weight_N, latents, halvings[:NOISE_HALVINGS], judge)
    return Found(
        posterior_NK,
        discriminant,
        stability=float(np.mean(agreements)),
        above_noise=(_upper_third(stability_W * general_W) - noise) / max(1 - noise, TINY),
        generalisation=judge(clusters_N),
    )


@dataclass(frozen=True)
class _Judge:
    """How well namings of the rows in use carry over to other sub-kinds (`subkinds`)."""

    views: Sequence[np.ndarray]
    points: np.ndarray
    sizes_P: np.ndarray
    used_N: np.ndarray
    latents: int
    seed: int

    def __call__(self, clusters_N: np.ndarray) -> float:
        views = [view[self.used_N] for view in self.views]
        points, clusters_N = self.points[self.used_N], clusters_N[self.used_N]
        return generalisation(views, points, clusters_N, self.latents, self.seed)

    def better(self, clusters_N: np.ndarray) -> tuple[np.ndarray, float]:
        """The naming, or what discriminants of other prompts' rows make of it, whichever carries
        over better; and how well it does.
        """
        rng = np.random.default_rng([self.seed, 10])
        corrected_N = clusters_N.copy()
        for _ in range(CORRECTIONS):
            fold_N = _prompt_folds(self.sizes_P, rng)
            corrected_N[self.used_N] = leave_out(
                self.points[self.used_N],
                corrected_N[self.used_N],
                fold_N[self.used_N],
                self.latents,
            )
        plain, corrected = self(clusters_N), self(corrected_N)
        return (corrected_N, corrected) if corrected > plain else (clusters_N, plain)


def _stability(halves_H2N: np.ndarray, used_N: np.ndarray, latents: int) -> float:
    """Mean agreement of the namings that one way finds from either half, on the rows in use."""
    agreements = [
        matched_share(one_N[used_N], other_N[used_N], latents) for one_N, other_N in halves_H2N
    ]
    return float(np.mean(agreements))


def _enough(sides: tuple[np.ndarray, np.ndarray], latents: int) -> bool:
    """Whether both halves have rows enough to say anything."""
    return min(int(half_N.sum()) for half_N in sides) >= LEAST_ROWS * latents


def _noise_trust(
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    latents: int,
    halvings: Sequence[tuple[np.ndarray, np.ndarray]],
    judge: _Judge,
) -> float:
    """Stability times generalisation of k-means on Gaussian points of the same variances, which
    have no clusters.

    A reference in the manner of Tibshirani et al. (2001): few clusters are stable by themselves,
    along the direction of largest variance.
    """
    rng = np.random.default_rng([judge.seed, 9])
    used_N = judge.used_N
    noise = [rng.normal(size=view.shape) * view[used_N].std(0) for view in views]
    judge = replace(judge, views=noise, points=discriminant_points(noise))
    weights = Weights(weight_N, tuple(even_weights(view, weight_N, used_N) for view in noise))
    if not all(_enough(sides, latents) for sides in halvings):
        return 1 / latents
    trusts = []
    for view in range(len(views)):
        for directions in KMEANS_DIRECTIONS:
            way = Way(view, directions)
            halves = [
                [way.name(noise, weights, latents, half, judge.seed + 1) for half in sides]
                for sides in halvings
            ]
            general = judge(way.name(noise, weights, latents, used_N, judge.seed))
            trusts.append(_stability(np.array(halves), used_N, latents) * general)
    return _upper_third(np.array(trusts))


def _upper_third(stabilities: np.ndarray) -> float:
    """Mean of the largest third."""
    third = max(1, len(stabilities) // 3)
    return float(np.sort(stabilities)[-third:].mean())


def _outcome(
    namings_WN: np.ndarray,
    trust_W: np.ndarray,
    points: np.ndarray,
    fitted_N: np.ndarray,
    latents: int,
) -> np.ndarray:
    """Clusters (N,) that the whole search finds from the rows `fitted_N` (N,) bool."""
    clusters_N = _elected(namings_WN, trust_W, latents).argmax(1)
    for _ in range(CORRECTIONS):
        discriminant = Discriminant.fit(points[fitted_N], clusters_N[fitted_N], latents)
        clusters_N = discriminant(points).argmax(1)
    return clusters_N


def out_of_fold(
    points: np.ndarray,
    clusters_N: np.ndarray,
    sizes_P: np.ndarray,
    latents: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """P(z | points) (N, K), each row by a discriminant of other prompts' rows."""
    fold_N = _prompt_folds(sizes_P, rng)
    posterior_NK = (1 - DOUBT) * np.eye(latents)[clusters_N] + DOUBT / latents
    for fold in range(FOLDS):
        held = fold_N == fold
        if held.any() and not held.all():
            fitted = Discriminant.fit(points[~held], clusters_N[~held], latents)
            posterior_NK[held] = fitted(points[held])
    return posterior_NK


def _prompt_folds(sizes_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) the fold of each row: that of its prompt."""
    return np.repeat(rng.permutation(len(sizes_P)) % FOLDS, sizes_P)


def _elected(namings_WN: np.ndarray, trust_W: np.ndarray, latents: int) -> np.ndarray:
    """Votes (N, K), of sum 1 over K.

    Args:
        trust_W: (W,) weight of each way.
    """
    alike_WW = np.array([[matched_share(a, b, latents) for b in namings_WN] for a in namings_WN])
    support_W = alike_WW**ALIKE @ trust_W
    lead_N = namings_WN[(support_W * np.sqrt(trust_W)).argmax()]
    rows = np.arange(namings_WN.shape[1])
    votes_NK = np.zeros((len(rows), latents))
    for naming_N, trust in zip(namings_WN, trust_W, strict=True):
        names_K, agreeing = matching(naming_N, lead_N, latents)
        alike = agreeing / len(rows)
        if alike >= VOTERS:
            votes_NK[rows, names_K[naming_N]] += trust * alike**ALIKE
    return votes_NK / votes_NK.sum(1, keepdims=True)


def _kmeans(points: np.ndarray, weight: np.ndarray, clusters: int, seed: int) -> KMeans:
    """k-means of weighted points.

    Args:
        points: (N, D).
        weight: (N,).
    """
    clusters = min(clusters, len(points))
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some clusters stay empty, which is no error here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(clusters, n_init=RESTARTS, random_state=seed)
        return means.fit(points, sample_weight=weight)


def _first_prompts(sizes_P: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """(P,) bool: random prompts with about so many rows together; all where they have no more."""
    order = rng.permutation(len(sizes_P))
    before = np.cumsum(sizes_P[order]) - sizes_P[order]
    chosen_P = np.zeros(len(sizes_P), bool)
    chosen_P[order[before < rows]] = True
    return chosen_P


def _halves(
    used_P: np.ndarray, sizes_P: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) bool of a random half of the used prompts, and of the other half."""
    order = rng.permutation(np.flatnonzero(used_P))
    half_P = np.zeros(len(used_P), bool)
    half_P[order[: len(order) // 2]] = True
    other_P = used_P & ~half_P
    return np.repeat(half_P, sizes_P), np.repeat(other_P, sizes_P)


def matching(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> tuple[np.ndarray, float]:
    """(names (K,) of `other` for those of `one`, rows that then agree): one to one (Hungarian)."""
    counts = np.bincount(one_N * latents + other_N, minlength=latents * latents)
    counts_KK = counts.reshape(latents, latents)
    rows, columns = linear_sum_assignment(-counts_KK)
    names_K = np.empty(latents, np.int64)
    names_K[rows] = columns
    return names_K, float(counts_KK[rows, columns].sum())


def matched_share(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> float:
    """Share of rows on which two namings agree, their names matched one to one."""
    return matching(one_N, other_N, latents)[1] / len(one_N)


def relabelled(one_N: np.ndarray, other_N: np.ndarray, latents: int) -> np.ndarray:
    """(N,) `one_N` (N,) under the names of `other_N` (N,), as far as they agree."""
    return matching(one_N, other_N, latents)[0][one_N]
