"""Features of completions become points: what the prompt contributes is estimated and taken out.

    f_j = B g(x) + u + strategy + e_j         u ~ N(0, U) of the prompt, e_j ~ N(0, E) of its row

B is a ridge regression on features g of x alone, predicted out of fold; u is shrunk towards zero as
far as the number of completions bears it (best linear unbiased prediction, Henderson 1975). Prompts
with 1, 2 or 50 completions are one case: a single completion keeps all that x does not predict.

A mean over T tokens has a variance in proportion to 1 / T, so a row counts in proportion to T
wherever rows are averaged: else short completions, which scatter widely, look like many kinds.

Shapes: N rows that lie prompt by prompt, P prompts, F features, G features of x, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.utils.extmath import randomized_svd

from twcli.discovery.features import (
    FIRST_SIMILARITIES,
    FIRST_STATES,
    LATER_SIMILARITIES,
    STATES,
    Features,
)

PROMPT_DIRECTIONS = 48  # principal directions of x's features
ROWS_A_PROMPT_DIRECTION = 4  # least prompts for each of them
RIDGES = (1e-2, 1e-1, 1.0, 10.0)  # of their mean variance; the one that predicts best is taken
FOLDS = 5
DIRECTIONS = 64  # principal directions of a view
FLAT = 1e-5  # of the largest spread: along such a direction there is rounding only
TINY = 1e-6

# What is clustered together: all of y, all of y and its beginning, everything.
VIEWS = (
    (STATES,),
    (STATES, FIRST_STATES),
    (STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES),
)


@dataclass(frozen=True)
class PromptRegression:
    """What x predicts of its completions' features.

    Attributes:
        mean: (G,) and `scale` (G,) standardise x's features, `axes` (G, D) are their directions.
        intercepts: for each kind (F,); `weights`: for each kind (D, F).
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    intercepts: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]

    @classmethod
    def fit(
        cls, kinds: Sequence[np.ndarray], prompt_PG: np.ndarray, sizes: np.ndarray
    ) -> tuple[PromptRegression, list[np.ndarray]]:
        """Regresses each prompt's mean features on features of its x.

        Args:
            kinds: (N, F) of each kind, prompt by prompt.
            prompt_PG: (P, G) features of x.
            sizes: (P,) rows of each prompt.

        Returns:
            The regression on all prompts, and its out-of-fold predictions (P, F) of each kind.
        """
        mean = prompt_PG.mean(0)
        scale = 1 / (prompt_PG.std(0) + TINY)
        standard_PG = (prompt_PG - mean) * scale
        count = min(
            PROMPT_DIRECTIONS, len(prompt_PG) // ROWS_A_PROMPT_DIRECTION, prompt_PG.shape[1]
        )
        if count < 1 or not standard_PG.any():
            axes = np.zeros((prompt_PG.shape[1], 0))
        else:
            axes = PCA(count, random_state=0).fit(standard_PG).components_.T
        points_PD = standard_PG @ axes
        fold_P = np.random.default_rng(0).permutation(len(prompt_PG)) % FOLDS
        intercepts, weights, predictions = [], [], []
        for kind in kinds:
            target_PF = prompt_means(kind, sizes)
            ridge, predicted_PF = _best_ridge(points_PD, target_PF, fold_P)
            intercept, weight = _ridge(points_PD, target_PF, ridge)
            intercepts.append(intercept)
            weights.append(weight)
            predictions.append(predicted_PF)
        return cls(mean, scale, axes, tuple(intercepts), tuple(weights)), predictions

    def __call__(self, prompt_PG: np.ndarray) -> list[np.ndarray]:
        """Predictions (P, F) of each kind for other prompts."""
        points_PD = (prompt_PG - self.mean) * self.scale @ self.axes
        return [
            intercept + points_PD @ weight
            for intercept, weight in zip(self.intercepts, self.weights, strict=True)
        ]


def _ridge(
    points_PD: np.ndarray, target_PF: np.ndarray, ridge: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(intercept (F,), weights (D, F)); no weights where `ridge` is None."""
    P, D = points_PD.shape
    intercept = target_PF.mean(0)
    if ridge is None or not D:
        return intercept, np.zeros((D, target_PF.shape[1]))
    covariance = points_PD.T @ points_PD / P
    strength = ridge * np.trace(covariance) / D
    penalty = strength * np.eye(D)
    centred_PF = target_PF - intercept
    cross = points_PD.T @ centred_PF / P
    weights = np.linalg.solve(covariance + penalty, cross)
    return intercept, weights


def _best_ridge(
    points_PD: np.ndarray, target_PF: np.ndarray, fold_P: np.ndarray
) -> tuple[float | None, np.ndarray]:
    """(the ridge of least out-of-fold error, None for the mean alone; its predictions (P, F))."""
    best_ridge: float | None = None
    best_PF = _out_of_fold(points_PD, target_PF, fold_P, None)
    least = ((target_PF - best_PF) ** 2).sum()
    for ridge in RIDGES:
        predicted_PF = _out_of_fold(points_PD, target_PF, fold_P, ridge)
        error = ((target_PF - predicted_PF) ** 2).sum()
        if error < least:
            least, best_ridge, best_PF = error, ridge, predicted_PF
    return best_ridge, best_PF


def _out_of_fold(
    points_PD: np.ndarray, target_PF: np.ndarray, fold_P: np.ndarray, ridge: float | None
) -> np.ndarray:
    """Predictions (P, F) of each fold by a regression of the others; the mean where it is alone."""
    predicted_PF = np.empty_like(target_PF)
    for fold in range(FOLDS):
        held = fold_P == fold
        if held.all():
            predicted_PF[held] = target_PF.mean(0)
        elif held.any():
            intercept, weights = _ridge(points_PD[~held], target_PF[~held], ridge)
            predicted_PF[held] = intercept + points_PD[held] @ weights
    return predicted_PF


@dataclass(frozen=True)
class PromptEffects:
    """Takes the prompts' contribution out of features, and gives points in several views.

    Attributes:
        regression: what x predicts.
        effect_variances, row_variances: for each kind (F,), U and E of what x leaves over.
        scales: for each kind (F,), what its features are multiplied by.
        centres, directions: for each view (F,) and (F, D).
    """

    regression: PromptRegression
    effect_variances: tuple[np.ndarray, ...]
    row_variances: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]
    centres: tuple[np.ndarray, ...]
    directions: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, features: Features, sizes: ArrayLike) -> tuple[PromptEffects, list[np.ndarray]]:
        """(the effects, the points (N, D) of these rows in each of `VIEWS`).

        The rows' own points use out-of-fold predictions, so that no row is explained by itself.
        """
        sizes_P = np.asarray(sizes, np.int64)
        starts_P = np.cumsum(sizes_P) - sizes_P
        weight_N = features.lengths / features.lengths.mean()
        regression, predicted = PromptRegression.fit(
            features.kinds, features.prompts[starts_P], sizes_P
        )
        effects, rows, scales, residuals = [], [], [], []
        for kind, predicted_PF in zip(features.kinds, predicted, strict=True):
            residual_NF = _residual(kind, predicted_PF, sizes_P)
            effect, row = _variance_components(residual_NF, sizes_P)
            residual_NF -= _shrunk_means(residual_NF, sizes_P, effect, row)
            spread = np.sqrt(weight_N @ residual_NF**2 / weight_N.sum())
            scale = 1 / (np.sqrt(residual_NF.shape[1]) * (spread + TINY))
            effects.append(effect)
            rows.append(row)
            scales.append(scale)
            residual_NF *= scale.astype(residual_NF.dtype)
            residuals.append(residual_NF)
        centres, directions, views = [], [], []
        for view in VIEWS:
            points_NF = np.concatenate([residuals[kind] for kind in view], axis=1)
            centre, axes = principal_axes(points_NF, weight_N, DIRECTIONS)
            centres.append(centre)
            directions.append(axes)
            views.append((points_NF - centre) @ axes)
        found = cls(
            regression,
            tuple(effects),
            tuple(rows),
            tuple(scales),
            tuple(centres),
            tuple(directions),
        )
        return found, views

    def __call__(self, features: Features, sizes: ArrayLike) -> list[np.ndarray]:
        """Points (N, D) of other rows, which lie prompt by prompt, in each view."""
        sizes_P = np.asarray(sizes, np.int64)
        starts_P = np.cumsum(sizes_P) - sizes_P
        predicted = self.regression(features.prompts[starts_P])
        parts = zip(
            features.kinds,
            predicted,
            self.effect_variances,
            self.row_variances,
            self.scales,
            strict=True,
        )
        residuals = []
        for kind, predicted_PF, effect, row, scale in parts:
            residual_NF = _residual(kind, predicted_PF, sizes_P)
            residual_NF -= _shrunk_means(residual_NF, sizes_P, effect, row)
            residual_NF *= scale.astype(residual_NF.dtype)
            residuals.append(residual_NF)
        return [
            (np.concatenate([residuals[kind] for kind in view], axis=1) - centre) @ axes
            for view, centre, axes in zip(VIEWS, self.centres, self.directions, strict=True)
        ]


def _residual(kind: np.ndarray, predicted_PF: np.ndarray, sizes_P: np.ndarray) -> np.ndarray:
    """(N, F) what x does not predict, in the features' own precision: they may fill memory."""
    return kind - np.repeat(predicted_PF.astype(kind.dtype), sizes_P, axis=0)


def prompt_means(features: np.ndarray, sizes: ArrayLike) -> np.ndarray:
    """Means over each prompt's rows.

    Args:
        features: (N, F), prompt by prompt.
        sizes: (P,) rows of each prompt.

    Returns:
        (P, F).
    """
    sizes_P = np.asarray(sizes)
    return np.add.reduceat(features, np.cumsum(sizes_P) - sizes_P, axis=0) / sizes_P[:, None]


def _variance_components(
    residual_NF: np.ndarray, sizes_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Between-prompt variance U and within-prompt variance E (F,), by moments.

    U is 0 where no prompt has two rows: then the two cannot be distinguished.
    """
    freedom = len(residual_NF) - len(sizes_P)
    if freedom < 1:
        return np.zeros(residual_NF.shape[1]), residual_NF.var(0) + TINY
    means_PF = prompt_means(residual_NF, sizes_P)
    within = (_residual(residual_NF, means_PF, sizes_P) ** 2).sum(0, dtype=np.float64) / freedom
    between = np.maximum(means_PF.var(0) - within * np.mean(1 / sizes_P), 0.0)
    return between, within


def _shrunk_means(
    residual_NF: np.ndarray, sizes_P: np.ndarray, effect: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Each prompt's effect as far as its rows bear it: m U / (m U + E) of their mean. Nothing of a
    single row: all of it may be the strategy.

    Args:
        residual_NF: (N, F) prompt by prompt.
        sizes_P: (P,) rows m of each prompt.
        effect, row: (F,) variances U of prompts and E of rows.

    Returns:
        (N, F).
    """
    m_P1 = sizes_P[:, None]
    shrinkage_PF = effect / (effect + row / m_P1 + 1e-12)
    share_PF = np.where(m_P1 > 1, shrinkage_PF, 0.0)
    means_PF = share_PF * prompt_means(residual_NF, sizes_P)
    means_PF = means_PF.astype(residual_NF.dtype)
    return np.repeat(means_PF, sizes_P, axis=0)


def principal_axes(
    points_NF: np.ndarray, weight_N: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weighted mean (F,), orthonormal directions of largest weighted variance (F, D)).

    At most `count`; directions without variance are left out.
    """
    centre = (weight_N @ points_NF / weight_N.sum()).astype(points_NF.dtype)
    scaled_NF = points_NF - centre
    scaled_NF *= np.sqrt(weight_N)[:, None].astype(points_NF.dtype)
    count = min(count, *scaled_NF.shape)
    _, spread, axes = randomized_svd(scaled_NF, count, n_iter=6, random_state=0)
    kept = spread > FLAT * max(float(spread[0]), TINY)
    return centre, axes[kept].T
