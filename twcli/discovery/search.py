"""Which completions were made in the same way, where strategies may repeat within a prompt.

There are many reasonable ways to cluster points (`ways`), and the right clusters may be unions of
finer ones (`merging`). Each way names the rows from either half of the prompts; how far the two
namings agree on all rows is its stability (Lange et al. 2004), and how well its names carry over to
sub-kinds that were left out its generalisation (`subkinds`). The naming that the ways of most
stability and generalisation agree with most is kept, and those that agree with it vote for each row
(evidence accumulation, Fred and Jain 2005). On natural data this ranks namings far better than
likelihood or explained variance, which prefer tight sub-kinds. A linear discriminant that was
fitted to the votes on other prompts then names each row: what holds for all prompts is kept, and
single votes that do not are corrected.

Shapes: N rows that lie prompt by prompt, D directions, K clusters, W ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike
from sklearn import config_context
from threadpoolctl import threadpool_limits

from twcli.discovery.discriminants import Discriminant, discriminant_points, out_of_fold
from twcli.discovery.election import elected
from twcli.discovery.judge import CORRECTIONS, Judge
from twcli.discovery.matching import beyond_chance, matched_share, relabelled
from twcli.discovery.merging import FINER, best_merge
from twcli.discovery.separation import ClusterSums
from twcli.discovery.ways import (
    LEAST_ROWS,
    Way,
    Weights,
    even_weights,
    ways_of,
)

HALVINGS = 8  # of the prompts, over which stability is averaged
NOISE_HALVINGS = 2  # of them for points without structure, which vary less
NOISE_WAYS = 3  # every third way is tried on them
SEARCHED_ROWS = 3000  # that ways are fitted to; the others are predicted
STABLE = 8  # powers: how much more the stable ways count,
GENERAL = 8  # those whose names carry over to other sub-kinds,
INFORMATIVE = 2  # say much there,
EVEN = 4  # and those whose clusters lie apart evenly
TINY = 1e-12


@dataclass(frozen=True)
class Found:
    """The naming that the stable ways agree on.

    Attributes:
        posterior_NK: P(z | features) of each row, from discriminants fitted on other prompts.
        discriminant: fitted to all rows, for rows that were not here.
        stability: share of rows on which whole searches of either half of the prompts agree.
        above_noise: how far stability times generalisation is above what the best ways have of it
            on points without structure, from 0 to 1, which is full; below 0 where it is less.
        generalisation: agreement of the naming with its predictions from other sub-kinds, beyond
            chance.
        information: nats that these predictions say about the names, rows weighted by variety.
        evenness: of its clusters, as of `separation`.
    """

    posterior_NK: np.ndarray
    discriminant: Discriminant
    stability: float
    above_noise: float
    generalisation: float
    information: float
    evenness: float

    @property
    def stability_beyond_chance(self) -> float:
        """Of 1; 0 is what names drawn at random in the same shares would have."""
        share_K = np.bincount(self.posterior_NK.argmax(1)) / len(self.posterior_NK)
        chance = float(share_K @ share_K)
        return beyond_chance(self.stability, chance)


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
    # Points are few: threads would wait for each other, and round otherwise on other machines. And
    # checks of thousands of small inputs, which are finite, would cost a twelfth of the time.
    unchecked = config_context(assume_finite=True, skip_parameter_validation=True)
    with threadpool_limits(1), unchecked:
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
    points = discriminant_points(views)
    rows = _Rows.of(views, weight_N, used_N, halvings, seed)
    judge = Judge.of(views, rows.weights.even[0], sizes_P, used_N, latents, seed)
    tried = _Tried.of(rows, ways_of(latents, len(views)), judge, advance)
    trust_W = tried.trust_W
    agreements = []
    for halving, sides in enumerate(halvings):
        one_N, other_N = (
            _outcome(tried.halves_WH2N[:, halving, side], trust_W, points, fitted_N, latents)
            for side, fitted_N in enumerate(sides)
        )
        agreements.append(matched_share(one_N[used_N], other_N[used_N], latents))
    posterior_NK = elected(tried.namings_WN, trust_W, latents)
    clusters_N = posterior_NK.argmax(1)
    for _ in range(CORRECTIONS):
        posterior_NK = out_of_fold(points, clusters_N, sizes_P, latents, rng)
        clusters_N = posterior_NK.argmax(1)
    discriminant = Discriminant.fit(points, clusters_N, latents)
    generalisation = judge(clusters_N)
    clusters = ClusterSums.of(views[0][used_N], clusters_N[used_N], latents)
    stability = float(np.mean(agreements))
    noise = _noise_trust(rows, judge)
    return Found(
        posterior_NK,
        discriminant,
        stability=stability,
        above_noise=(stability * generalisation.agreement - noise) / max(1 - noise, TINY),
        generalisation=generalisation.agreement,
        information=generalisation.information * math.log(latents),
        evenness=clusters.evenness(),
    )


@dataclass(frozen=True)
class _Rows:
    """What is clustered in each way: the rows in use, and either half of their prompts.

    Attributes:
        views: (N, D) of each view.
        used_N: (N,) bool.
        halvings: (H,) pairs of (N,) bool.
    """

    views: Sequence[np.ndarray]
    weights: Weights
    used_N: np.ndarray
    halvings: Sequence[tuple[np.ndarray, np.ndarray]]
    seed: int

    @classmethod
    def of(
        cls,
        views: Sequence[np.ndarray],
        weight_N: np.ndarray,
        used_N: np.ndarray,
        halvings: Sequence[tuple[np.ndarray, np.ndarray]],
        seed: int,
    ) -> _Rows:
        """By all views (N, D) and how much each row counts (N,)."""
        weights = Weights(weight_N, tuple(even_weights(view, weight_N, used_N) for view in views))
        return cls(views, weights, used_N, halvings, seed)

    def clustered(self, way: Way, clusters: int) -> tuple[np.ndarray, np.ndarray]:
        """(clusters (N,), what each half makes of them (H, 2, N)); the halves are named at random
        where they have too few rows to say anything.
        """
        naming_N = way.name(self.views, self.weights, clusters, self.used_N, self.seed)
        halves_H2N = np.empty((len(self.halvings), 2, len(naming_N)), np.int64)
        for halving, sides in enumerate(self.halvings):
            for side, fitted_N in enumerate(sides):
                if _enough(sides, clusters):
                    named_N = way.name(self.views, self.weights, clusters, fitted_N, self.seed + 1)
                else:
                    rng = np.random.default_rng([self.seed, halving, side])
                    named_N = rng.integers(clusters, size=len(naming_N))
                halves_H2N[halving, side] = named_N
        return naming_N, halves_H2N

    def merged(self, way: Way, latents: int, finer: int) -> tuple[np.ndarray, np.ndarray]:
        """As `clustered`, of so many finer clusters that were merged."""
        naming_N, halves_H2N = self.clustered(way, finer)
        for sides in halves_H2N:
            for side, named_N in enumerate(sides):
                sides[side] = relabelled(named_N, naming_N, finer)
        pairs = [(one_N[self.used_N], other_N[self.used_N]) for one_N, other_N in halves_H2N]
        clusters = ClusterSums.of(self.views[0][self.used_N], naming_N[self.used_N], finer)
        merge_C = best_merge(pairs, clusters, latents)
        return merge_C[naming_N], merge_C[halves_H2N]

    def namings(
        self, ways: Sequence[Way], latents: int, advance: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Namings (W, N), and those of the halves (W, H, 2, N): by each way as it is and, where the
        halves have rows enough, by way of finer clusters.
        """
        found = []
        for way, more in zip(ways, cycle(FINER)):
            found.append(self.clustered(way, latents))
            finer = latents + more
            if all(_enough(sides, finer) for sides in self.halvings):
                found.append(self.merged(way, latents, finer))
            if advance:
                advance(1)
        namings, halves = zip(*found, strict=True)
        return np.array(namings), np.array(halves)


@dataclass(frozen=True)
class _Tried:
    """Namings that were tried, and what speaks for each.

    Attributes:
        namings_WN: (W, N).
        halves_WH2N: (W, H, 2, N) what each half of each halving makes of them.
        stability_W: agreement of the halves.
        agreement_W, information_W: of their generalisation to sub-kinds that were left out.
        evenness_W: how evenly the clusters lie apart, times the share of the K that have rows.
    """

    namings_WN: np.ndarray
    halves_WH2N: np.ndarray
    stability_W: np.ndarray
    agreement_W: np.ndarray
    information_W: np.ndarray
    evenness_W: np.ndarray

    @classmethod
    def of(
        cls,
        rows: _Rows,
        ways: Sequence[Way],
        judge: Judge,
        advance: Callable[[int], None] | None = None,
    ) -> _Tried:
        """Each way's naming, or what discriminants make of it, whichever carries over better."""
        latents, used_N = judge.latents, rows.used_N
        namings, halves_WH2N = rows.namings(ways, latents, advance)
        stability_W = [_stability(halves_H2N, used_N, latents) for halves_H2N in halves_WH2N]
        better = [judge.better(naming_N) for naming_N in namings]
        namings_WN = np.array([naming_N for naming_N, _ in better])
        seen = rows.views[0][used_N]
        sums = [ClusterSums.of(seen, naming_N[used_N], latents) for naming_N in namings_WN]
        return cls(
            namings_WN,
            halves_WH2N,
            np.array(stability_W),
            agreement_W=np.array([found.agreement for _, found in better]),
            information_W=np.array([found.information for _, found in better]),
            # without the share, two strategies that are more alike than others would be one, and
            # a latent that was asked for would have no rows
            evenness_W=np.array([of_one.evenness() * of_one.used_share for of_one in sums]),
        )

    @property
    def trust_W(self) -> np.ndarray:
        """(W,) how much each counts in the election."""
        trust_W = self.stability_W**STABLE * self.agreement_W**GENERAL
        return trust_W * self.information_W**INFORMATIVE * self.evenness_W**EVEN + TINY

    @property
    def best_third(self) -> float:
        """Mean stability times generalisation of those that have most of it."""
        products_W = np.sort(self.stability_W * self.agreement_W)
        third = max(1, len(products_W) // 3)
        return float(products_W[-third:].mean())


def _stability(halves_H2N: np.ndarray, used_N: np.ndarray, latents: int) -> float:
    """Mean agreement of the namings that one way finds from either half, on the rows in use."""
    agreements = [
        matched_share(one_N[used_N], other_N[used_N], latents) for one_N, other_N in halves_H2N
    ]
    return float(np.mean(agreements))


def _enough(sides: tuple[np.ndarray, np.ndarray], latents: int) -> bool:
    """Whether both halves have rows enough to say anything."""
    return min(int(half_N.sum()) for half_N in sides) >= LEAST_ROWS * latents


def _noise_trust(rows: _Rows, judge: Judge) -> float:
    """Stability times generalisation of the best ways on Gaussian points of the same variances,
    which have no clusters.

    A reference in the manner of Tibshirani et al. (2001): few clusters are stable by themselves,
    along the direction of largest variance.

    Args:
        rows, judge: those of the points.
    """
    latents, seed, used_N = judge.latents, judge.seed, rows.used_N
    halvings = rows.halvings[:NOISE_HALVINGS]
    if not all(_enough(sides, latents) for sides in halvings):
        return 1 / latents
    rng = np.random.default_rng([seed, 9])
    noise = [rng.normal(size=view.shape) * view[used_N].std(0) for view in rows.views]
    rows = _Rows.of(noise, rows.weights.plain_N, used_N, halvings, seed)
    judge = Judge.of(noise, rows.weights.even[0], judge.sizes_P, used_N, latents, seed)
    return _Tried.of(rows, ways_of(latents, len(noise))[::NOISE_WAYS], judge).best_third


def _outcome(
    namings_WN: np.ndarray,
    trust_W: np.ndarray,
    points: np.ndarray,
    fitted_N: np.ndarray,
    latents: int,
) -> np.ndarray:
    """Clusters (N,) that the whole search finds from the rows `fitted_N` (N,) bool."""
    clusters_N = elected(namings_WN, trust_W, latents).argmax(1)
    for _ in range(CORRECTIONS):
        discriminant = Discriminant.fit(points[fitted_N], clusters_N[fitted_N], latents)
        clusters_N = discriminant(points).argmax(1)
    return clusters_N


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
