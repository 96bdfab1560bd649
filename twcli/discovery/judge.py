"""What speaks for a naming: how well its names carry over to sub-kinds that were left out.

Shapes: N rows that lie prompt by prompt, U of them in use, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twcli.discovery.discriminants import discriminant_points, leave_out, prompt_folds
from twcli.discovery.subkinds import Generalisation

CORRECTIONS = 2  # rounds of the discriminant


@dataclass(frozen=True)
class Judge:
    """How well namings of the U rows in use carry over to other sub-kinds (`subkinds`).

    Attributes:
        views: (U, D) each, in which sub-kinds are found.
        points: (U, D) what discriminants see.
        even_U: (U,) how much each row counts, by variety.
        used_N: (N,) bool.
    """

    views: Sequence[np.ndarray]
    points: np.ndarray
    even_U: np.ndarray
    sizes_P: np.ndarray
    used_N: np.ndarray
    latents: int
    seed: int

    @classmethod
    def of(
        cls,
        views: Sequence[np.ndarray],
        even_N: np.ndarray,
        sizes_P: np.ndarray,
        used_N: np.ndarray,
        latents: int,
        seed: int,
    ) -> Judge:
        """By all views (N, D) and the weight of each row (N,); sub-kinds are found in the first and
        in the last view.
        """
        used = [view[used_N] for view in views]
        points = discriminant_points(used)
        return cls((used[0], used[-1]), points, even_N[used_N], sizes_P, used_N, latents, seed)

    def __call__(self, clusters_N: np.ndarray) -> Generalisation:
        """Of clusters (N,)."""
        return Generalisation.of(
            self.views,
            self.points,
            clusters_N[self.used_N],
            self.even_U,
            self.latents,
            self.seed,
        )

    def better(self, clusters_N: np.ndarray) -> tuple[np.ndarray, Generalisation]:
        """The naming, or what discriminants of other prompts' rows make of it, whichever agrees
        better with its predictions; and how it compares with them.
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
        if corrected.agreement > plain.agreement:
            return corrected_N, corrected
        return clusters_N, plain
