"""Names rows where each strategy writes one string a prompt: distinct completions of a prompt take
distinct latents, and names are searched by exchanging them (`distinct`).

Shapes: N rows, K latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.groups import Groups
from twcli.discovery.centring import Centring, Space, in_pairs
from twcli.discovery.distinct import (
    ENOUGH,
    FINALISTS,
    MOST_CLUSTERS,
    PAIRED_FINALISTS,
    alternatives,
    best_clustering,
    best_count,
    clustering_work,
    starts_of,
)
from twcli.discovery.features import FIRST_SIMILARITIES, FIRST_STATES, LATER_SIMILARITIES, STATES
from twcli.discovery.predictability import above_chance, one_hot, ridge_map
from twcli.discovery.prior import LatentPrior, assign_groups
from twcli.discovery.result import Naming, canonical_order, counts_of, no_names, rename
from twcli.discovery.rows import BLOCK_PROMPTS, FIT_PROMPTS, Progress, Source, spread_to_equal_rows

COUNT_PROMPTS = 1500  # in which the number of latents is looked for
SURE = 0.999  # probability of a name where strategies write one string each: no more is known

# Kinds of features, and which of them are read together where completions of a prompt are distinct
# strategies. A strategy is chosen before it is written: names that y's beginning predicts are those
# that a generator can act on, and "the way that turns out short" is not one of them, though all of
# y predicts it as well. And it is a way of continuing x: "the way whose second number is odd",
# which the states predict as well, is none, so the beginning has a say by what it resembles and not
# by what it is.
WHOLE = (STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES)
DISTINCT_VIEWS = (WHOLE, (FIRST_SIMILARITIES,))
# from which their number is found
STARTS = ((STATES, FIRST_STATES), (FIRST_SIMILARITIES, LATER_SIMILARITIES), WHOLE)
MORE_STARTS = (*STARTS, (FIRST_STATES, FIRST_SIMILARITIES))


def name_one_string(
    source: Source,
    encoded: Encoded,
    groups: Groups,
    latents: int | None,
    seed: int,
    progress: Progress,
) -> Naming:
    """Names the rows of prompts with several distinct completions.

    Args:
        groups: distinct rows of each prompt.
        latents: K; None to choose it.
    """
    rng = np.random.default_rng([seed, 1])
    groups = groups[rng.permutation(len(groups))]
    fit, rest = groups[:FIT_PROMPTS], groups[FIT_PROMPTS:]
    fit_rows, sizes = fit.joined(), fit.sizes.tolist()
    gains: dict[int, float] = {}
    with progress("features", len(fit_rows)) as advance:
        features = source(fit_rows, advance).kinds
    if latents is None:
        with progress("numbers of latents", MOST_CLUSTERS - 1) as advance:
            latents, gains = _counted(features, sizes, seed, advance)
    centring = Centring.fit(features, sizes, keep=in_pairs(sizes))
    centring(features, sizes)
    space = Space.fit(features, seed, views=DISTINCT_VIEWS)
    views = space(features)
    clusters, score = _clustered(features, space, views, sizes, latents, rng, progress)
    names, clusters = np.unique(clusters, return_inverse=True)  # some may have lost all their rows
    used = len(names)
    weights = ridge_map(views[0]) @ one_hot(clusters, used)

    latent_N, probability_N = no_names(len(encoded))
    latent_N[fit_rows] = clusters
    with progress("other records", rest.count()) as advance:
        for block in rest.blocks(BLOCK_PROMPTS):
            rows, sizes = block.joined(), block.sizes.tolist()
            kinds = source(rows, advance).kinds
            centring(kinds, sizes)
            latent_N[rows] = assign_groups(-(space.points(kinds, 0) @ weights), sizes)
    spread_to_equal_rows(encoded, latent_N)
    probability_N[latent_N >= 0] = SURE
    rename(latent_N, canonical_order(latent_N, latents, encoded)[1])
    shares_K = counts_of(latent_N, latents) + 1.0
    return Naming(
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=latent_N,
        prior=LatentPrior(shares_K / shares_K.sum(), math.inf),
        latents=latents,
        used=used,
        score=1 / used + (1 - 1 / used) * min(max(score, 0.0), 1.0),
        stability=None,
        one_string=True,
        prompts=len(groups),
        counts=_shown(gains, latents),
    )


def _clustered(
    features: tuple[np.ndarray, ...],
    space: Space,
    views: list[np.ndarray],
    sizes: list[int],
    latents: int,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[np.ndarray, float]:
    """The best clustering (N,) into as many clusters as prompts can choose between, and its score.

    Args:
        features: (N, F) of each kind, centred.
        latents: clusters, at most.
    """
    finalists = PAIRED_FINALISTS if in_pairs(sizes) else FINALISTS

    def clustered(count: int) -> tuple[np.ndarray, float]:
        draws = copy.deepcopy(rng)  # the same whether fewer are found or asked for
        with progress("search", clustering_work(len(MORE_STARTS), finalists)) as advance:
            starts = starts_of(
                (space.scaled(features, kinds) for kinds in MORE_STARTS), sizes, count, draws
            )
            found = best_clustering(
                starts, views, sizes, count, draws, advance, finalists=finalists
            )
        return found[:2]

    wanted, (clusters, score) = latents, clustered(latents)
    while 1 < (fewer := alternatives(clusters, sizes, wanted)) < wanted:
        again, again_score = clustered(fewer)
        if above_chance(again_score, fewer) < ENOUGH * above_chance(score, wanted):
            break  # two strategies that no x has together
        wanted, clusters, score = fewer, again, again_score
    return clusters, score


def _shown(gains: dict[int, float], latents: int) -> list[dict[str, Any]]:
    """What speaks for each number of latents that was tried, ready for JSON."""
    return [
        {
            "latents": K,
            "stability": None,
            "evidence": round(gain, 4),
            "score": None,
            "chosen": K == latents,
        }
        for K, gain in gains.items()
    ]


def _counted(
    features: tuple[np.ndarray, ...],
    sizes: list[int],
    seed: int,
    advance: Callable[[int], None],
) -> tuple[int, dict[int, float]]:
    """`distinct.best_count` of the first prompts. Their means are left out: by them a strategy's
    completions could be predicted from x.
    """
    features = tuple(kind.copy() for kind in features)
    Centring.fit(features, sizes, keep=False)(features, sizes)
    space, counted = Space.fit(features, seed), sum(sizes[:COUNT_PROMPTS])
    features = tuple(kind[:counted] for kind in features)
    kinds = [space.scaled(features, kinds) for kinds in STARTS]
    return best_count(space(features), kinds, sizes[:COUNT_PROMPTS], seed, advance)
