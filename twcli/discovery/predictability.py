"""Cross-validated linear predictability of clusters: how well a linear map that was fitted on other
prompts predicts them (ridge regression).

Names that mean the same for every prompt are predictable; names that are exchanged from prompt to
prompt are not.

Shapes: N rows, D directions, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twcli.discovery.prior import assign_groups

RIDGE = 1e-2  # of their mean variance
REASSIGNMENTS = 12
ROWS_A_DIRECTION = 4  # least rows for each direction from which a run's latents are predicted


@dataclass(frozen=True)
class Half:
    """The prompts whose clusters a regression of the others predicts.

    Attributes:
        fitted_N, predicted_N: which rows are the others', and which are these prompts'.
        sizes: rows of each of these prompts.
        maps: for each view, from targets of the others to regression weights.
        points: for each view, these prompts' rows.
    """

    fitted_N: np.ndarray
    predicted_N: np.ndarray
    sizes: np.ndarray
    maps: list[np.ndarray]
    points: list[np.ndarray]

    def values(self, targets: np.ndarray) -> list[np.ndarray]:
        """What the fitted half predicts of the other, in each view.

        Args:
            targets: (rows fitted, K).

        Returns:
            (rows predicted, K) for each view.
        """
        return [
            points @ (maps @ targets) for points, maps in zip(self.points, self.maps, strict=True)
        ]


class CrossValidation:
    """Ridge regressions of the clusters of one half of the prompts, which assign the other half.

    Args:
        views: (N, D) each, grouped by prompt. The first one assigns; the score is the mean of what
            they all give what it assigned.
        sizes: rows of each prompt.
    """

    def __init__(
        self, views: Sequence[np.ndarray], sizes: list[int], latents: int, rng: np.random.Generator
    ) -> None:
        self.views, self.latents = views, latents
        self.prompt_N = np.repeat(np.arange(len(sizes)), sizes)
        order = rng.permutation(len(sizes))
        second = np.zeros(len(sizes), bool)
        second[order[: len(order) // 2]] = True
        self.second_P = second
        self.halves = []
        for fitted in (~second, second):
            fitted_N, predicted_N = np.repeat(fitted, sizes), np.repeat(~fitted, sizes)
            if fitted_N.any() and predicted_N.any():
                maps = [ridge_map(view[fitted_N]).astype(np.float32) for view in views]
                points = [np.asarray(view[predicted_N], np.float32) for view in views]
                self.halves.append(
                    Half(fitted_N, predicted_N, np.asarray(sizes)[~fitted], maps, points)
                )

    def assign(self, clusters: np.ndarray) -> tuple[np.ndarray, float]:
        """(clusters (N,) that the other half's regression assigns, their score)."""
        assigned, total = clusters.copy(), 0.0
        for half in self.halves:
            values = half.values(one_hot(clusters[half.fitted_N], self.latents))
            chosen = assign_groups(-values[0], half.sizes)
            assigned[half.predicted_N] = chosen
            rows = np.arange(len(chosen))
            total += sum(float(value[rows, chosen].sum()) for value in values)
        mean = total / len(clusters) / len(self.views)
        return assigned, mean / (1 - 1 / self.latents)

    def reassign(self, clusters: np.ndarray) -> tuple[np.ndarray, float]:
        """(clusters (N,), score) after repeated assignment, until nothing moves or long enough."""
        score = 0.0
        for _ in range(REASSIGNMENTS):
            assigned, score = self.assign(clusters)
            if np.array_equal(assigned, clusters):
                break
            clusters = assigned
        return clusters, score


def predictability(
    points: np.ndarray, sizes: list[int], soft_NK: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far one meaning of the latents holds for all prompts: (what is predicted (N,), its
    upper bound (N,)), to be summed and divided.

    A linear map from the completions of one half of the prompts predicts those of the other
    half. The share is 1 where each completion of a prompt has a latent of its own with
    certainty and the map predicts which; it is 0 where latents are used alike, or change their
    meaning from prompt to prompt.

    Args:
        points: (N, D) prompt-centred, directions by falling variance; only as many are
            read as the rows can bear.
        soft_NK: probability of each latent for each row.
    """
    latents = soft_NK.shape[1]
    points = points[:, : max(1, len(points) // ROWS_A_DIRECTION)]
    predicted_N, upper_bound_N = np.zeros(len(points)), np.zeros(len(points))
    rng = np.random.default_rng([seed, 6])
    for half in CrossValidation([points], sizes, latents, rng).halves:
        (values,) = half.values(soft_NK[half.fitted_N] - 1 / latents)
        predicted_N[half.predicted_N] = (values * soft_NK[half.predicted_N]).sum(1)
        rows_of_prompt = np.repeat(half.sizes, half.sizes)
        upper_bound_N[half.predicted_N] = 1 - 1 / np.minimum(rows_of_prompt, latents)
    return predicted_N, upper_bound_N


def above_chance(score: float, latents: int) -> float:
    """The mean value that the other half's regression gives a row's own cluster, above 1 / K:
    comparable between numbers of clusters.
    """
    return score * (1 - 1 / latents)


def ridge_map(points: np.ndarray) -> np.ndarray:
    """(D, N): maps targets of these points to regression weights, to none
    where all points are zero.
    """
    if not points.any():
        return np.zeros(points.shape[::-1])
    covariance = points.T.astype(np.float64) @ points / len(points)
    penalty = RIDGE * np.trace(covariance) / max(len(covariance), 1)
    return np.linalg.solve(covariance + penalty * np.eye(len(covariance)), points.T / len(points))


def one_hot(clusters: np.ndarray, latents: int) -> np.ndarray:
    """Clusters as targets of a regression: one-hot, minus the mean under chance.

    Args:
        clusters: (N,) int below `latents`.

    Returns:
        (N, K) float32.
    """
    return np.eye(latents, dtype=np.float32)[clusters] - np.float32(1 / latents)
