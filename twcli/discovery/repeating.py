"""Names rows where strategies may repeat within a prompt, or prompts have one completion.

    features -> what prompts contribute is taken out -> search -> prior -> posterior of each row

Shapes: N rows, P prompts, K latents.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from twcli.data.encoded import Encoded
from twcli.data.groups import Groups
from twcli.discovery.discriminants import discriminant_points
from twcli.discovery.given import complete, enough_given
from twcli.discovery.latent_cards import plane
from twcli.discovery.number import (
    ABOVE,
    BELOW,
    COUNTED_ROWS,
    MOST_LATENTS,
    Count,
    agreement,
    best_count,
    count_of,
    counts_of,
    likelier_number,
    nesting,
    plausibility,
)
from twcli.discovery.prior import fit_prior
from twcli.discovery.prompt_effects import PromptEffects
from twcli.discovery.result import Naming, canonical_order, no_names, rename
from twcli.discovery.rows import BLOCK_PROMPTS, FIT_PROMPTS, Progress, Source, spread_to_equal_rows
from twcli.discovery.score import expected_share_right
from twcli.discovery.search import SEARCHED_ROWS, Found, search
from twcli.discovery.ways import ways_of
from twcli.models.runtime import most_at_once

FIT_ROWS = 12_000  # rows of the prompts that are clustered, at most
SEARCHED_A_ROW = 0.022  # seconds of one core, about, for one number of latents
LEAST_ROWS_A_LATENT = 8  # of data that can be named at all


def _workers() -> int:
    """Numbers of latents that are looked at side by side."""
    return most_at_once(torch.device("cpu"))


def searching_seconds(rows: int, latents: int | None, *, given: bool = False) -> float:
    """A guess at how long `name_repeating` searches in the features of so many distinct rows.

    Args:
        rows: distinct ones of the data.
        latents: K; None where it is to be found.
        given: whether names are given, so that no other number of latents is looked at.
    """
    if given:
        numbers = 0
    elif latents is None:
        numbers = MOST_LATENTS - 1
    else:
        numbers = BELOW + ABOVE + 1
    rounds = -(-numbers // _workers())
    return SEARCHED_A_ROW * (rounds * min(rows, COUNTED_ROWS) + min(rows, SEARCHED_ROWS))


def name_repeating(
    source: Source,
    encoded: Encoded,
    groups: Groups,
    latents: int | None,
    seed: int,
    progress: Progress,
    *,
    given_N: np.ndarray | None = None,
    one_string: bool = False,
) -> Naming:
    """Names rows where strategies may repeat within a prompt; prompts may have one completion.

    Args:
        groups: distinct rows of each prompt.
        latents: K; None to choose it.
        given_N: (N,) the latents that are known of rows of the data, -1 for none: where every
            latent has some, the other rows are named after them (`given`).
        one_string: whether each strategy writes one string, so that distinct completions of a
            prompt repel each other infinitely.
    """
    if given_N is not None and (latents is None or not enough_given(given_N, latents)):
        given_N = None
    fit, rest = _fitted(groups, seed, given_N)
    fit_rows, sizes = fit.joined(), fit.sizes
    with progress("features", len(fit_rows)) as advance:
        features = source(fit_rows, advance)
    effects, views = PromptEffects.fit(features, sizes)
    points = discriminant_points(views)
    weight_N = features.lengths / features.lengths.mean()
    counts: list[Count] = []
    if given_N is None:
        counts = _counts(views, weight_N, sizes, latents, seed, progress)
    K = latents or best_count(counts).latents
    found = _searched(counts, views, weight_N, sizes, K, seed, progress)
    if given_N is None:
        score, stability = _score(found, counts), found.stability
    else:
        guided = complete(points, given_N[fit_rows], found.discriminant, sizes, seed)
        found = replace(found, posterior_NK=guided.posterior_NK, discriminant=guided.discriminant)
        score, stability = guided.agreement, None
    prior = fit_prior(found.posterior_NK, sizes, one_string=one_string)
    latent_N, probability_N = no_names(len(encoded))
    second_N = latent_N.copy()

    def put(rows: np.ndarray, by_features_NK: np.ndarray, sizes: ArrayLike) -> None:
        """By the features' posterior as a likelihood, and the prior over each prompt's rows."""
        log_likelihood_NK = np.log(by_features_NK) - np.log(prior.proportions)
        posterior_NK, _ = prior.posterior(log_likelihood_NK, sizes)
        order_NK = np.argsort(-posterior_NK, axis=1, kind="stable")
        latent_N[rows] = order_NK[:, 0]
        second_N[rows] = order_NK[:, 1]
        probability_N[rows] = posterior_NK.max(1)

    put(fit_rows, found.posterior_NK, sizes)
    with progress("other records", rest.count()) as advance:
        for block in rest.blocks(BLOCK_PROMPTS):
            rows = block.joined()
            others = discriminant_points(effects(source(rows, advance), block.sizes))
            put(rows, found.discriminant(others), block.sizes)
    spread_to_equal_rows(encoded, latent_N, second_N, probability_N)
    order_K, new_K = canonical_order(latent_N, K, encoded)
    rename(latent_N, new_K)
    rename(second_N, new_K)
    used = int((order_K >= 0).sum())
    return Naming(
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=second_N,
        prior=replace(prior, proportions=prior.proportions[_filled(order_K)]),
        latents=K,
        used=used,
        score=score,
        stability=stability,
        given=0 if given_N is None else int((given_N >= 0).sum()),
        one_string=one_string,
        prompts=int(encoded.prompt_index.max()) + 1,
        counts=_shown(counts, K),
        likelier=likelier_number(counts, K),
        nested=_nested(counts, K) if latents is None else None,
        points=plane(points, found.posterior_NK),
        point_rows=fit_rows,
    )


def _fitted(groups: Groups, seed: int, given_N: np.ndarray | None) -> tuple[Groups, Groups]:
    """(the prompts that are clustered, all others), in random order, those with given names first.

    Args:
        given_N: (N,) the latents that are known of rows of the data, -1 for none.
    """
    groups = groups[np.random.default_rng([seed, 1]).permutation(len(groups))]
    if given_N is not None:
        given = given_N[groups.joined()] >= 0
        starts = np.cumsum(groups.sizes) - groups.sizes
        without = np.add.reduceat(given, starts, dtype=np.int64) == 0
        groups = groups[np.argsort(without, kind="stable")]
    leading = groups.sizes[:FIT_PROMPTS]
    cut = int(np.searchsorted(np.cumsum(leading), FIT_ROWS, "right"))
    return groups[: max(cut, 1)], groups[max(cut, 1) :]


def _counts(
    views: list[np.ndarray],
    weight_N: np.ndarray,
    sizes: np.ndarray,
    latents: int | None,
    seed: int,
    progress: Progress,
) -> list[Count]:
    """The numbers of latents that are looked at, in some of the rows."""
    prompts = int(np.searchsorted(np.cumsum(sizes), COUNTED_ROWS, "right"))
    counted_sizes = sizes[: max(prompts, 1)]
    rows = int(counted_sizes.sum())
    if latents is None:
        first, last = (2, MOST_LATENTS)
    else:
        first, last = (latents - BELOW, latents + ABOVE)
    most = min(last, rows // LEAST_ROWS_A_LATENT)
    numbers = list(range(max(first, 2), most + 1))
    if not numbers and latents is None:
        numbers = [2]
    counted_views = [view[:rows] for view in views]
    with progress("numbers of latents", len(numbers)) as advance:
        return counts_of(
            numbers,
            counted_views,
            weight_N[:rows],
            counted_sizes,
            seed,
            advance,
            workers=_workers(),
        )


def _searched(
    counts: list[Count],
    views: list[np.ndarray],
    weight_N: np.ndarray,
    sizes: np.ndarray,
    latents: int,
    seed: int,
    progress: Progress,
) -> Found:
    """The naming of all rows: that of the count, where it looked at all of them."""
    count = count_of(counts, latents)
    if count is not None and len(count.found.posterior_NK) == len(weight_N):
        return count.found
    with progress("search", len(ways_of(latents, len(views)))) as advance:
        return search(views, weight_N, sizes, latents, seed, advance)


def _score(found: Found, counts: list[Count]) -> float:
    """The score of a naming in the light of the numbers of latents that were looked at.

    A number that is too small is as stable as the right one, and sub-kinds may be as stable as what
    they are kinds of. So each is held against all others that were looked at.
    """
    K = found.posterior_NK.shape[1]
    right = _share_right(found)
    own = count_of(counts, K)
    if own is None:
        return right
    agree = np.array([agreement(own, count) for count in counts])
    expected = float(plausibility(counts) @ agree)
    return max(expected * right, 1 / K)


def _all_alike(found: Found) -> bool:
    """Whether all rows have one latent, which any halves agree on and which says nothing."""
    latent_N = found.posterior_NK.argmax(1)
    distinct = np.unique(latent_N)
    return len(distinct) < 2


def _share_right(found: Found) -> float:
    """The share of rows expected to be named right, whatever other numbers of latents say."""
    K = found.posterior_NK.shape[1]
    if _all_alike(found):
        return 1 / K
    return expected_share_right(
        found.stability_beyond_chance, found.above_noise, found.generalisation, K
    )


def _shown(counts: list[Count], latents: int) -> list[dict[str, Any]]:
    """What speaks for each number of latents, ready for JSON."""
    return [
        {
            "latents": count.latents,
            "stability": round(count.found.stability, 4),
            "generalisation": round(count.found.generalisation, 4),
            "above_noise": round(count.found.above_noise, 4),
            "information": round(count.found.information, 4),
            "evenness": round(count.found.evenness, 4),
            "support": round(count.support, 4),
            "evidence": None,
            "score": round(_share_right(count.found), 4),
            "used": count.used,
            "chosen": count.latents == latents,
        }
        for count in counts
    ]


def _nested(counts: list[Count], latents: int) -> str | None:
    """How the next finer number lies in the chosen one."""
    chosen = count_of(counts, latents)
    finer = [count for count in counts if count.latents > latents]
    if chosen is None or not finer or _all_alike(chosen.found):
        return None
    best = max(finer, key=lambda count: count.support)
    return (
        f"{best.latents} latents would be a finer answer of stability {best.found.stability:.2f}, "
        f"nested in these {latents} for {nesting(best, chosen):.0%} of the rows."
    )


def _filled(order_K: np.ndarray) -> np.ndarray:
    """The old names with those that are unused put back in their places."""
    unused = np.setdiff1d(np.arange(len(order_K)), order_K[order_K >= 0])
    filled = order_K.copy()
    filled[order_K < 0] = unused
    return filled
