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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn import config_context
from threadpoolctl import threadpool_limits

from twcli.discovery.discriminants import (
    Discriminant,
    discriminant_points,
    leave_out,
    out_of_fold,
    prompt_folds,
)
from twcli.discovery.matching import matched_share, matching, relabelled
from twcli.discovery.merging import FINER, best_merge
from twcli.discovery.subkinds import generalisation
from twcli.discovery.ways import (
    LEAST_ROWS,
    Way,
    Weights,
    even_weights,
    ways_of,
)

HALVINGS = 4  # of the prompts, over which stability is averaged
NOISE_HALVINGS = 2  # of them for points without structure, which vary less
NOISE_WAYS = 3  # every third way is tried on them
SEARCHED_ROWS = 3000  # that ways are fitted to; the others are predicted
STABLE = 8  # powers: how much more the stable ways count,
GENERAL = 8  # those whose names carry over to other sub-kinds,
ALIKE = 3  # and those that name alike
MERGED = 0.2  # how far merges count: each was chosen among many, for being stable
VOTERS = 0.75  # agreement with the kept naming, from which a way votes
CORRECTIONS = 2  # rounds of the discriminant
TINY = 1e-12


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

    @property
    def stability_beyond_chance(self) -> float:
        """Of 1; 0 is what names drawn at random in the same shares would have."""
        share_K = np.bincount(self.posterior_NK.argmax(1)) / len(self.posterior_NK)
        chance = float(share_K @ share_K)
        return (self.stability - chance) / (1 - chance) if chance < 1 else 0.0


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
    weights = Weights(weight_N, tuple(even_weights(view, weight_N, used_N) for view in views))
    points = discriminant_points(views)
    judge = _Judge.of(views, sizes_P, used_N, latents, seed)
    rows = _Rows(views, weights, used_N, halvings, seed)
    ways = ways_of(latents, len(views))
    namings_WN, halves_WH2N, merged_W = rows.namings(ways, latents, advance)
    stability_W = np.array([_stability(halves_H2N, used_N, latents) for halves_H2N in halves_WH2N])
    general_W = np.empty(len(namings_WN))
    for index, naming_N in enumerate(namings_WN):
        namings_WN[index], general_W[index] = judge.better(naming_N)
    trust_W = stability_W**STABLE * general_W**GENERAL + TINY
    trust_W[merged_W] *= MERGED
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

    def merged(self, way: Way, latents: int) -> tuple[np.ndarray, np.ndarray]:
        """As `clustered`, of finer clusters that were merged."""
        finer = latents + FINER
        naming_N, halves_H2N = self.clustered(way, finer)
        for sides in halves_H2N:
            for side, named_N in enumerate(sides):
                sides[side] = relabelled(named_N, naming_N, finer)
        pairs = [(one_N[self.used_N], other_N[self.used_N]) for one_N, other_N in halves_H2N]
        merge_C = best_merge(pairs, finer, latents)
        return merge_C[naming_N], merge_C[halves_H2N]

    def namings(
        self, ways: Sequence[Way], latents: int, advance: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Namings (W, N), those of the halves (W, H, 2, N), and which were merged (W,) bool: by
        each way as it is and, where the halves have rows enough, by way of finer clusters.
        """
        finer = all(_enough(sides, latents + FINER) for sides in self.halvings)
        found, merged = [], []
        for way in ways:
            found.append(self.clustered(way, latents))
            merged.append(False)
            if finer:
                found.append(self.merged(way, latents))
                merged.append(True)
            if advance:
                advance(1)
        namings, halves = zip(*found, strict=True)
        return np.array(namings), np.array(halves), np.array(merged)


@dataclass(frozen=True)
class _Judge:
    """How well namings of the U rows in use carry over to other sub-kinds (`subkinds`).

    Attributes:
        views: (U, D) each, in which sub-kinds are found.
        points: (U, D) what discriminants see.
        used_N: (N,) bool.
    """

    views: Sequence[np.ndarray]
    points: np.ndarray
    sizes_P: np.ndarray
    used_N: np.ndarray
    latents: int
    seed: int

    @classmethod
    def of(
        cls,
        views: Sequence[np.ndarray],
        sizes_P: np.ndarray,
        used_N: np.ndarray,
        latents: int,
        seed: int,
    ) -> _Judge:
        """By all views (N, D); sub-kinds are found in the first and in the last."""
        used = [view[used_N] for view in views]
        points = discriminant_points(used)
        return cls((used[0], used[-1]), points, sizes_P, used_N, latents, seed)

    def __call__(self, clusters_N: np.ndarray) -> float:
        """Of clusters (N,)."""
        used = clusters_N[self.used_N]
        return generalisation(self.views, self.points, used, self.latents, self.seed)

    def better(self, clusters_N: np.ndarray) -> tuple[np.ndarray, float]:
        """The naming, or what discriminants of other prompts' rows make of it, whichever carries
        over better; and how well it does.
        """
        rng = np.random.default_rng([self.seed, 10])
        corrected_N = clusters_N.copy()
        for _ in range(CORRECTIONS):
            fold_N = prompt_folds(self.sizes_P, rng)
            corrected_N[self.used_N] = leave_out(
                self.points,
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
    """Stability times generalisation of the best ways on Gaussian points of the same variances,
    which have no clusters.

    A reference in the manner of Tibshirani et al. (2001): few clusters are stable by themselves,
    along the direction of largest variance.
    """
    if not all(_enough(sides, latents) for sides in halvings):
        return 1 / latents
    rng = np.random.default_rng([judge.seed, 9])
    used_N = judge.used_N
    noise = [rng.normal(size=view.shape) * view[used_N].std(0) for view in views]
    judge = _Judge.of(noise, judge.sizes_P, used_N, latents, judge.seed)
    weights = Weights(weight_N, tuple(even_weights(view, weight_N, used_N) for view in noise))
    rows = _Rows(noise, weights, used_N, halvings, judge.seed)
    ways = ways_of(latents, len(views))[::NOISE_WAYS]
    namings_WN, halves_WH2N, _ = rows.namings(ways, latents)
    trusts = [
        _stability(halves_H2N, used_N, latents) * judge.better(naming_N)[1]
        for naming_N, halves_H2N in zip(namings_WN, halves_WH2N, strict=True)
    ]
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
