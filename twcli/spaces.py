"""Features of completions become points: what the prompt gives is taken out, and the principal directions are kept.

Shapes: N rows, P prompts, F features, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

DIRECTIONS = 256  # principal directions that the regression sees
PAIRS = 0.9  # share of prompts with two completions, from which their differences leave the naming open


@dataclass(frozen=True)
class Centring:
    """Takes the prompts' content out of features, in which it dominates: what stays is how completions of a prompt differ.

    Where prompts have two completions each, that alone cannot tell the right naming from the one in which every completion takes
    its partner's name: the differences change sign, and nothing else. What the two have in common does tell them apart, so there
    each prompt's mean stays too, made as small as the differences are.

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
            prompts = _prompt_means(kind, sizes)
            apart = (kind - np.repeat(prompts, sizes, axis=0)).std(0) if keep else np.zeros(kind.shape[1])
            means.append(prompts.mean(0))
            shares.append(np.minimum(1, apart / np.maximum(prompts.std(0), np.finfo(np.float32).tiny)))
        return cls(tuple(means), tuple(shares))

    def __call__(self, features: Sequence[np.ndarray], sizes: Sequence[int]) -> None:
        """Centres features (N, F) of each kind, grouped by prompt, where they stand."""
        for kind, mean, share in zip(features, self.means, self.shares, strict=True):
            prompts = _prompt_means(kind, sizes)
            kind -= np.repeat(prompts - share * (prompts - mean) if share.any() else prompts, sizes, axis=0)


def _prompt_means(features: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """(P, F)."""
    sizes_P = np.asarray(sizes)
    return np.add.reduceat(features, np.cumsum(sizes_P) - sizes_P, axis=0) / sizes_P[:, None]


def in_pairs(sizes: Sequence[int]) -> bool:
    """Whether prompts have two completions each, but for a few: then `Centring` is to keep their means."""
    return bool(np.mean(np.asarray(sizes) == 2) >= PAIRS)


@dataclass(frozen=True)
class Space:
    """The principal directions of both kinds of features, each scaled to the same total variance.

    Attributes:
        scales: for each kind (F,), what its features are multiplied by.
        directions_FD: orthonormal, by falling variance.
    """

    scales: tuple[np.ndarray, ...]
    directions_FD: np.ndarray

    @classmethod
    def fit(cls, features: Sequence[np.ndarray], seed: int) -> Space:
        scales = tuple(1 / (np.sqrt(f.shape[1]) * (f.std(0) + 1e-6)) for f in features)
        scaled = np.concatenate([f * s for f, s in zip(features, scales, strict=True)], axis=1)
        return cls(scales, principal_directions(scaled, DIRECTIONS, seed))

    def __call__(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D)."""
        return np.concatenate([f * s for f, s in zip(features, self.scales, strict=True)], axis=1) @ self.directions_FD


def principal_directions(centred: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(F, D) orthonormal directions of largest variance, at most `count`, those without variance left out."""
    if not centred.any():  # all completions look alike to the model
        return np.zeros((centred.shape[1], 0))
    pca = PCA(min(count, *centred.shape), random_state=seed).fit(centred)
    keep = pca.explained_variance_ > 1e-8 * pca.explained_variance_[0]
    return pca.components_[keep].T


def whitened(centred: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """(N, D) leading principal components, each of unit variance."""
    projected = centred @ principal_directions(centred, dimensions, seed)
    return projected / projected.std(0)
