"""Which completions were made in the same way, where strategies may repeat within a prompt.

There are many reasonable ways to cluster points: which features, how many directions, k-means or a
Gaussian mixture; and clusters of wordings may hide what differs across all wordings, so each way is
also tried on what is left after fine clusters' means are taken out (alternative clustering). Each
way names the rows from either half of the prompts; how far the two namings agree on all rows is its
stability (Lange et al. 2004). The naming that the stable ways agree with most is kept, and those
that agree with it vote for each row (evidence accumulation, Fred and Jain 2005). On natural data
this ranks namings far better than likelihood or explained variance, which prefer tight sub-kinds.
A linear discriminant that was fitted to the votes on other prompts then names each row: what holds
for all prompts is kept, and single votes that do not are corrected.

Shapes: N rows that lie prompt by prompt, D directions, K clusters, W ways.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

KMEANS_DIRECTIONS = (6, 12, 24, 48)
OTHER_DIRECTIONS = (12, 24, 48)
FINE_CLUSTERS = (3, 5)  # times K, whose means are taken out
RESTARTS = 4
HALVINGS = 4  # of the prompts, over which stability is averaged
SEARCHED_ROWS = 3000  # that ways are fitted to; the others are predicted
REGULARISATION = 1e-3  # of the mean variance, on a mixture's covariances
STABLE = 8  # powers: how much more the stable ways count,
ALIKE = 3  # and how much more those that name alike
VOTERS = 0.75  # agreement with the kept naming, from which a way votes
LEAST_ROWS = 4  # a cluster, in each half
FOLDS = 5  # of the prompts, for the discriminant
CORRECTIONS = 2  # rounds of it
DOUBT = 1e-3  # least probability of any cluster, shared out evenly: no feature is ever that sure


@dataclass(frozen=True)
class Way:
    """One way to cluster points.

    Attributes:
        view: which view is clustered.
        directions: leading ones of it.
        fine: clusters whose means are taken out of the first view beforehand; 0 for none.
        covariance: of a Gaussian mixture, "tied" or "spherical"; None for k-means.
    """

    view: int
    directions: int
    fine: int = 0
    covariance: str | None = None

    def name(
        self,
        views: Sequence[np.ndarray],
        weight_N: np.ndarray,
        latents: int,
        fitted_N: np.ndarray,
        seed: int,
    ) -> np.ndarray:
        """Clusters (N,) of all rows by what is fitted to the rows `fitted_N` (N,) bool."""
        points = views[self.view]
        if self.fine:
            points = self._without_fine_clusters(views, weight_N, fitted_N, seed)
        points = points[:, : self.directions]
        if not points.shape[1]:
            return np.zeros(len(points), np.int64)
        means = _kmeans(points[fitted_N], weight_N[fitted_N], latents, seed)
        if self.covariance is None:
            return means.predict(points).astype(np.int64)
        mixture = GaussianMixture(
            latents,
            covariance_type=self.covariance,
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
        counts = np.bincount(clusters.labels_, minlength=fine)[:, None]
        left = views[0] - (sums / np.maximum(counts, 1))[clusters.predict(seen)]
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
        for directions in OTHER_DIRECTIONS:
            found += [Way(view, directions, covariance="tied")]
            found += [Way(view, directions, covariance="spherical")]
    return found


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
        """Points (N, D), clusters (N,)."""
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
    """(N, D) what the discriminant sees: the states, and everything."""
    return np.concatenate([views[0], views[-1]], axis=1)


@dataclass(frozen=True)
class Found:
    """The naming that the stable ways agree on.

    Attributes:
        posterior_NK: P(z | features) of each row, from discriminants fitted on other prompts.
        discriminant: fitted to all rows, for rows that were not here.
        stability: of the ways that are most stable (the upper third), mean agreement of the halves.
        lead_stability: of the way whose naming is kept.
        ambiguity: largest stability among ways whose naming is another one; 0 where there is none.
    """

    posterior_NK: np.ndarray
    discriminant: Discriminant
    stability: float
    lead_stability: float
    ambiguity: float


def search(
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    sizes: Sequence[int],
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
    sizes_P = np.asarray(sizes, np.int64)
    rng = np.random.default_rng([seed, 8])
    used_P = _first_prompts(sizes_P, SEARCHED_ROWS, rng)
    used_N = np.repeat(used_P, sizes_P)
    halvings = [_halves(used_P, rng) for _ in range(HALVINGS)]
    namings, stabilities = [], []
    for way in ways_of(latents, len(views)):
        namings.append(way.name(views, weight_N, latents, used_N, seed))
        stabilities.append(
            float(
                np.mean(
                    [
                        _agreement(way, views, weight_N, latents, half_P, used_P, sizes_P, seed)
                        for half_P in halvings
                    ]
                )
            )
        )
        if advance:
            advance(1)
    votes_NK, *figures = _elected(namings, np.array(stabilities), latents)
    points, clusters_N = discriminant_points(views), votes_NK.argmax(1)
    posterior_NK = votes_NK
    for _ in range(CORRECTIONS):
        posterior_NK = out_of_fold(points, clusters_N, sizes_P, latents, rng)
        clusters_N = posterior_NK.argmax(1)
    return Found(posterior_NK, Discriminant.fit(points, clusters_N, latents), *figures)


def out_of_fold(
    points: np.ndarray,
    clusters_N: np.ndarray,
    sizes_P: np.ndarray,
    latents: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """P(z | points) (N, K), each row by a discriminant of other prompts' rows."""
    fold_N = np.repeat(rng.permutation(len(sizes_P)) % FOLDS, sizes_P)
    posterior_NK = (1 - DOUBT) * np.eye(latents)[clusters_N] + DOUBT / latents
    for fold in range(FOLDS):
        held = fold_N == fold
        if held.any() and not held.all():
            posterior_NK[held] = Discriminant.fit(points[~held], clusters_N[~held], latents)(
                points[held]
            )
    return posterior_NK


def _agreement(
    way: Way,
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    latents: int,
    half_P: np.ndarray,
    used_P: np.ndarray,
    sizes_P: np.ndarray,
    seed: int,
) -> float:
    """How far namings from either half of the used prompts agree on the used rows."""
    used_N = np.repeat(used_P, sizes_P)
    halves = [np.repeat(used_P & side, sizes_P) for side in (half_P, ~half_P)]
    if min(half.sum() for half in halves) < LEAST_ROWS * latents:
        return 1 / latents  # too few rows to say anything
    one, other = (way.name(views, weight_N, latents, half, seed + 1) for half in halves)
    return matched_share(one[used_N], other[used_N], latents)


def _elected(
    namings: list[np.ndarray], stability_W: np.ndarray, latents: int
) -> tuple[np.ndarray, float, float, float]:
    """(votes (N, K), and the figures of `Found` in its order)."""
    alike_WW = np.array([[matched_share(a, b, latents) for b in namings] for a in namings])
    weight_W = stability_W**STABLE
    lead = int(((alike_WW**ALIKE @ weight_W) * np.sqrt(weight_W)).argmax())
    votes_NK = np.zeros((len(namings[0]), latents))
    for naming, alike, weight in zip(namings, alike_WW[lead], weight_W, strict=True):
        if alike >= VOTERS:
            renamed = relabelled(naming, namings[lead], latents)
            votes_NK[np.arange(len(renamed)), renamed] += weight * alike**ALIKE
    others = stability_W[alike_WW[lead] < VOTERS]
    best = np.sort(stability_W)[-max(1, len(stability_W) // 3) :]
    return (
        votes_NK / votes_NK.sum(1, keepdims=True),
        float(best.mean()),
        float(stability_W[lead]),
        float(others.max(initial=0.0)),
    )


def _kmeans(points: np.ndarray, weight: np.ndarray, clusters: int, seed: int) -> KMeans:
    clusters = min(clusters, len(points))
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some clusters stay empty, which is no error here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(clusters, n_init=RESTARTS, random_state=seed)
        return means.fit(points, sample_weight=weight)


def _first_prompts(sizes_P: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """(P,) bool: random prompts with about so many rows together; all where they have no more."""
    chosen_P = np.zeros(len(sizes_P), bool)
    order = rng.permutation(len(sizes_P))
    chosen_P[order[np.cumsum(sizes_P[order]) - sizes_P[order] < rows]] = True
    return chosen_P


def _halves(used_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(P,) bool: a random half of the used prompts."""
    half_P = np.zeros(len(used_P), bool)
    used = np.flatnonzero(used_P)
    half_P[rng.permutation(used)[: len(used) // 2]] = True
    return half_P


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
    """`one_N` under the names of `other_N`."""
    return matching(one_N, other_N, latents)[0][one_N]
