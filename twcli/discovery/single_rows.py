"""Names rows of prompts with one completion, where the others were named as distinct strings
(`one_string`), which says nothing of them.

A discriminant learns the names from rows of prompts with several completions, each read as if it
were its prompt's only one, and is tried on rows of prompts that it has not seen: that is how often
it is right.

Shapes: N rows, K latents.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.groups import Groups
from twcli.discovery.discriminants import Discriminant, discriminant_points, out_of_fold
from twcli.discovery.prompt_effects import PromptEffects
from twcli.discovery.result import Naming, canonical_order, counts_of, rename
from twcli.discovery.rows import BLOCK_PROMPTS, FIT_PROMPTS, Progress, Source, spread_to_equal_rows


def name_single_rows(
    source: Source,
    encoded: Encoded,
    groups: Groups,
    naming: Naming,
    seed: int,
    progress: Progress,
) -> Naming:
    """The naming with names for rows without one, and the score of all of them.

    Args:
        groups: distinct rows of each prompt.
        naming: of the prompts with several, by `one_string.name_one_string`.
    """
    rng = np.random.default_rng([seed, 10])
    order = rng.permutation(len(groups))
    several = order[groups.sizes[order] > 1]
    singles = order[groups.sizes[order] == 1]
    if not len(singles) or not len(several):
        return naming
    half = FIT_PROMPTS // 2
    most = max(half, FIT_PROMPTS - len(singles))  # prompts with several completions
    fit = groups[np.concatenate([several[:most], singles[:half]])]
    rows, sizes, K = fit.joined(), fit.sizes, naming.latents
    with progress("features", len(rows)) as advance:
        features = source(rows, advance)
    effects, _ = PromptEffects.fit(features, sizes)
    points = discriminant_points(effects(features, np.ones(len(rows), np.int64)))
    named_N = naming.latent_N[rows] >= 0
    fitted, right, sure = _tried(
        points[named_N], naming.latent_N[rows[named_N]], sizes[sizes > 1], K, rng
    )
    latent_N, second_N = naming.latent_N.copy(), naming.second_N.copy()
    probability_N = naming.probability_N.copy()

    def put(rows: np.ndarray, points: np.ndarray) -> None:
        """Names these rows (n,) by their points (n, D)."""
        posterior_nK = fitted(points)
        order_nK = np.argsort(-posterior_nK, axis=1, kind="stable")
        latent_N[rows] = order_nK[:, 0]
        second_N[rows] = order_nK[:, 1]
        largest_n = posterior_nK.max(1)
        probability_N[rows] = np.maximum(largest_n * sure, 1 / K)

    put(rows[~named_N], points[~named_N])
    rest = groups[singles[half:]]
    with progress("other records", len(rest)) as advance:
        for block in rest.blocks(BLOCK_PROMPTS):
            those = block.joined()
            alone = np.ones(len(those), np.int64)
            put(those, discriminant_points(effects(source(those, advance), alone)))
    spread_to_equal_rows(encoded, latent_N, second_N, probability_N)
    new_K = canonical_order(latent_N, K, encoded)[1]
    rename(latent_N, new_K)
    rename(second_N, new_K)
    shares_K = counts_of(latent_N, K) + 1.0
    return replace(
        naming,
        latent_N=latent_N,
        second_N=second_N,
        probability_N=probability_N,
        prior=replace(naming.prior, proportions=shares_K / shares_K.sum()),
        score=_score(naming, right, groups[several].count(), len(singles)),
        prompts=len(groups),
    )


def _tried(
    points: np.ndarray, latent_n: np.ndarray, sizes: np.ndarray, K: int, rng: np.random.Generator
) -> tuple[Discriminant, float, float]:
    """A discriminant, tried on rows of prompts that it has not seen.

    Args:
        points: (n, D) of rows with a name, prompt by prompt.
        latent_n: (n,) their names.
        sizes: rows of each of these prompts.

    Returns:
        The discriminant, the share of those rows that it names right, and the factor by which it is
            as sure as it is right there, at most 1.
    """
    held_nK = out_of_fold(points, latent_n, sizes, K, rng)
    right = float((held_nK.argmax(1) == latent_n).mean())
    sure = min(right / float(held_nK.max(1).mean()), 1.0)
    return Discriminant.fit(points, latent_n, K), right, sure


def _score(naming: Naming, right: float, several: int, singles: int) -> float | None:
    """The share of all rows expected to be named right.

    Args:
        right: of rows named by the discriminant, those that take the name their prompt gave them.
        several, singles: rows of prompts with several completions, and with one.
    """
    score = naming.score
    if score is None:
        return None
    by_chance = (1 - score) * (1 - right) / max(naming.used - 1, 1)
    of_singles = score * right + by_chance
    return (score * several + of_singles * singles) / (several + singles)
