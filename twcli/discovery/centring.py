"""Features of completions become points: what the prompt gives is taken out, and the
principal directions are kept.

Shapes: N rows, P prompts, F features, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.decomposition import PCA

from twcli.discovery.prompt_effects import prompt_means

DIRECTIONS = 256  # principal directions that the regression sees
# share of prompts with two completions, from which their differences leave the naming open
PAIRS = 0.9


@dataclass(frozen=True)
class Centring:
    """Takes the prompts' content out of features, in which it dominates: what stays is how
    completions of a prompt differ.

    Where prompts have two completions each, that alone cannot distinguish the right naming from the
    one in which every completion takes its partner's name: the differences change sign, and nothing
    else. What the two have in common does distinguish them, so there each prompt's mean stays too,
    made as small as the differences are.

    Attributes:
        means: for each kind of features (F,), the mean of the prompts' means.
        shares: for each kind (F,), what is kept of a prompt's deviation from it.
    """

    means: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, features: Sequence[np.ndarray], sizes: Sequence[int], *, keep: bool) -> Centring:
        """
        Args:
            features: (N, F) of each kind, grouped by prompt.
            sizes: rows of each prompt.
            keep: whether the prompts' means stay, made small.
        """
        means, shares = [], []
        for kind in features:
            prompts = prompt_means(kind, sizes)
            apart = np.zeros(kind.shape[1])
            if keep:
                apart = (kind - np.repeat(prompts, sizes, axis=0)).std(0)
            spread = np.maximum(prompts.std(0), np.finfo(np.float32).tiny)
            means.append(prompts.mean(0))
            shares.append(np.minimum(1, apart / spread))
        return cls(tuple(means), tuple(shares))

    def __call__(self, features: Sequence[np.ndarray], sizes: Sequence[int]) -> None:
        """Centres features (N, F) of each kind, grouped by prompt, in place."""
        for kind, mean, share in zip(features, self.means, self.shares, strict=True):
            prompts = prompt_means(kind, sizes)
            if share.any():
                prompts = prompts - share * (prompts - mean)
            kind -= np.repeat(prompts, sizes, axis=0)


def in_pairs(sizes: Sequence[int]) -> bool:
    """Whether prompts have two completions each, but for a few: then
    `Centring` is to keep their means.
    """
    return bool(np.mean(np.asarray(sizes) == 2) >= PAIRS)


@dataclass(frozen=True)
class Space:
    """The principal directions of features of several kinds, each kind scaled
    to the same total variance.

    Attributes:
        scales: for each kind (F,), what its features are multiplied by.
        views: the kinds that each view sees.
        directions: for each view (F, D), orthonormal, by falling variance.
    """

    scales: tuple[np.ndarray, ...]
    views: tuple[Sequence[int], ...]
    directions: tuple[np.ndarray, ...]

    @classmethod
    def fit(
        cls, features: Sequence[np.ndarray], seed: int, views: Sequence[Sequence[int]] | None = None
    ) -> Space:
        """
        Args:
            features: (N, F) of each kind.
            views: kinds by number; None for one view, which sees all.
        """
        views = tuple(views or [range(len(features))])
        scales = tuple(1 / (np.sqrt(f.shape[1]) * (f.std(0) + 1e-6)) for f in features)
        space = cls(scales, views, ())
        scaled = (space.scaled(features, view) for view in views)
        directions = tuple(principal_directions(points, DIRECTIONS, seed) for points in scaled)
        return replace(space, directions=directions)

    def scaled(self, features: Sequence[np.ndarray], kinds: Sequence[int]) -> np.ndarray:
        """Kinds of features side by side, each in its scale.

        Args:
            features: (N, F) of each kind.
            kinds: numbers of those to take.

        Returns:
            (N, sum of their F).
        """
        scaled = [features[kind] * self.scales[kind] for kind in kinds]
        return np.concatenate(scaled, axis=1)

    def points(self, features: Sequence[np.ndarray], view: int) -> np.ndarray:
        """One view of the rows.

        Args:
            features: (N, F) of each kind.

        Returns:
            (N, D).
        """
        return self.scaled(features, self.views[view]) @ self.directions[view]

    def __call__(self, features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(N, D) of each view."""
        return [self.points(features, view) for view in range(len(self.views))]


def principal_directions(centred: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Orthonormal directions of largest variance, those without variance left out.

    Args:
        centred: (N, F) features of mean 0.
        count: most directions.

    Returns:
        (F, D).
    """
    if not centred.any():  # all completions look alike to the model
        return np.zeros((centred.shape[1], 0))
    pca = PCA(min(count, *centred.shape), random_state=seed).fit(centred)
    keep = pca.explained_variance_ > 1e-8 * pca.explained_variance_[0]
    return pca.components_[keep].T


def whitened(centred: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """Leading principal components, each of unit variance.

    Args:
        centred: (N, F) features of mean 0.

    Returns:
        (N, D) with D at most `dimensions`.
    """
    projected = centred @ principal_directions(centred, dimensions, seed)
    return projected / projected.std(0)
