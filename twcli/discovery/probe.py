"""Completions by which a run is judged without labels: can its latents be predicted, for other
prompts, from what the frozen model sees in the completions?

Shapes: N rows that lie prompt by prompt, K latents, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twcli.data.encoded import Encoded
from twcli.discovery.centring import Centring, Space
from twcli.discovery.discriminants import discriminant_points, out_of_fold
from twcli.discovery.predictability import predictability
from twcli.discovery.prompt_effects import PromptEffects
from twcli.discovery.rows import Progress, Rows, Source, silent

PROBE_PROMPTS = 1000  # by which a run is judged
PROBE_ROWS = 1000  # of them, at most
ROWS_A_DIRECTION = 2  # from which discriminants predict where strategies may repeat
LEAST_ROWS = 16  # of a probe where strategies may repeat within a prompt


@dataclass(frozen=True)
class Probe:
    """Completions and their points under the frozen model.

    Attributes:
        rows: (N,) of the data, prompt by prompt.
        sizes: rows of each prompt.
        points: (N, D).
        distinct: whether distinct completions of a prompt are distinct strategies.
        proportions: (K,) of the naming that the run was trained on; None for equal ones.
    """

    rows: np.ndarray
    sizes: list[int]
    points: np.ndarray
    distinct: bool
    proportions: np.ndarray | None = None

    def predicted(self, soft_NK: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(what of the latents is predicted (N,), what could be (N,)), to be summed and divided.

        The share is 1 where each row has a latent with certainty and a discriminant that was fitted
        to other prompts predicts it, and 0 where latents are used alike for every row or change
        their meaning from prompt to prompt. Latents that share out the rows less evenly than the
        naming did, because one was lost, leave less than could be.

        Args:
            soft_NK: probability of each latent for each row.
        """
        if self.distinct:
            return predictability(self.points, self.sizes, soft_NK, seed)
        K = soft_NK.shape[1]
        if self.proportions is None:
            shares_K = np.full(K, 1 / K)
        else:
            shares_K = self.proportions
        upper_bound = 1 - float((shares_K**2).sum())  # of certain latents with these shares
        rng = np.random.default_rng([seed, 6])
        latent_N = soft_NK.argmax(1)
        sizes_P = np.asarray(self.sizes)
        posterior_NK = out_of_fold(self.points, latent_N, sizes_P, K, rng)
        excess_NK = posterior_NK - posterior_NK.mean(0)
        predicted_N = (excess_NK * soft_NK).sum(1)
        return predicted_N, np.full(len(soft_NK), upper_bound)


def probe_of(
    source: Source,
    encoded: Encoded,
    *,
    distinct: bool,
    seed: int,
    proportions: np.ndarray | None = None,
    most_rows: int | None = None,
    progress: Progress = silent,
) -> Probe | None:
    """Up to `PROBE_PROMPTS` prompts; None where there are too few to say anything.

    Args:
        distinct: whether distinct completions of a prompt are distinct strategies.
        proportions: (K,) shares of the latents, of sum 1; None where they are not known.
        most_rows: about so many rows at most; None for `PROBE_ROWS` where they are not distinct.
    """
    found = Rows.of(encoded)
    groups = found.groups(2) if distinct else found.chunks()
    order = np.random.default_rng([seed, 7]).permutation(len(groups))[:PROBE_PROMPTS]
    chosen = groups[order]
    if len(chosen) < 2:
        return None
    if not distinct and most_rows is None:
        most_rows = PROBE_ROWS
    if most_rows is not None:
        ends = np.cumsum(chosen.sizes)
        chosen = chosen[: max(2, int(np.searchsorted(ends, most_rows, "right")))]
    if not distinct and chosen.count() < LEAST_ROWS:
        return None
    rows, sizes = chosen.joined(), chosen.sizes.tolist()
    with progress("features of the original model", len(rows)) as advance:
        features = source(rows, advance)
    if distinct:
        Centring.fit(features.kinds, sizes, keep=False)(features.kinds, sizes)
        points = Space.fit(features.kinds, seed).points(features.kinds, 0)
    else:
        _, views = PromptEffects.fit(features, sizes)
        # two views, with as many directions together as the rows can bear
        directions = max(1, len(rows) // ROWS_A_DIRECTION // 2)
        points = discriminant_points([view[:, :directions] for view in views])
    return Probe(rows, sizes, points, distinct, proportions)
