"""Which latent each completion takes, found without labels: the warm start of a training, and what
`twcli discover` writes.

    features -> what prompts contribute is taken out -> search -> prior -> posterior of each row

Where each strategy writes one string a prompt, which identical completions show, distinct
completions of a prompt take distinct latents, and names are searched by exchanging them
(`distinct`). Everywhere else strategies may repeat within a prompt, or prompts have one completion
(`search`). No label is read.

Shapes: N rows, P prompts, K latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from transformers import PreTrainedModel

from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.discovery.centring import Centring, Space, in_pairs
from twcli.discovery.distinct import (
    ENOUGH,
    FINALISTS,
    MOST_CLUSTERS,
    PAIRED_FINALISTS,
    alternatives,
    best_clustering,
    clustering_work,
    starts_of,
)
from twcli.discovery.distinct import best_count as best_distinct_count
from twcli.discovery.features import (
    FIRST_SIMILARITIES,
    FIRST_STATES,
    LATER_SIMILARITIES,
    STATES,
    Features,
    embed_rows,
)
from twcli.discovery.number import (
    ABOVE,
    BELOW,
    COUNTED_ROWS,
    MOST_LATENTS,
    Count,
    agreement,
    best_count,
    counts_of,
    nesting,
    plausibility,
)
from twcli.discovery.predictability import above_chance, one_hot, ridge_map
from twcli.discovery.prior import (
    ONE_STRING,
    LatentPrior,
    assign_groups,
    fit_prior,
    identical_pairs,
    one_string_a_strategy,
)
from twcli.discovery.prompt_effects import PromptEffects
from twcli.discovery.score import expected_share_right
from twcli.discovery.search import Found, discriminant_points, matching, search, ways_of

FIT_PROMPTS = 3000  # prompts that are clustered; all others are only assigned
FIT_ROWS = 12_000  # rows of them, at most
COUNT_PROMPTS = 1500  # of them, in which the number of latents is looked for
BLOCK_PROMPTS = 1024
CHUNK_ROWS = 32  # of one prompt that are named together
LEAST_ROWS_A_LATENT = 8  # of data that can be named at all
SURE = 0.999  # probability of a name where strategies write one string each: no more is known

# Kinds of features, and which of them are read together where completions of a prompt are distinct
# strategies. A strategy is chosen before it is written: names that y's beginning predicts are those
# that a generator can act on, and "the way that turns out short" is not one of them, though all of
# y predicts it as well. And it is a way of going on from x: "the way whose second number is odd",
# which the states predict as well, is none, so the beginning has a say by what it resembles and not
# by what it is.
WHOLE = (STATES, FIRST_STATES, FIRST_SIMILARITIES, LATER_SIMILARITIES)
DISTINCT_VIEWS = (WHOLE, (FIRST_SIMILARITIES,))
# from which their number is found
STARTS = ((STATES, FIRST_STATES), (FIRST_SIMILARITIES, LATER_SIMILARITIES), WHOLE)
MORE_STARTS = (*STARTS, (FIRST_STATES, FIRST_SIMILARITIES))

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Source(Protocol):
    """Where features come from: a model that is run, or a file that keeps them."""

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """Features of distinct rows of the data."""
        ...


@dataclass(frozen=True)
class ModelSource:
    """Features by forward passes of a frozen model.

    Attributes:
        batch_tokens: tokens a batch at most.
        varlen: as in `forward.forward_rows`.
    """

    model: PreTrainedModel
    encoder: ExampleEncoder
    encoded: Encoded
    batch_tokens: int
    varlen: bool = False

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """As `features.embed_rows`."""
        return embed_rows(
            self.model,
            self.encoder,
            self.encoded,
            rows,
            batch_tokens=self.batch_tokens,
            varlen=self.varlen,
            advance=advance,
        )


def silent(_label: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar that shows nothing."""
    return nullcontext(lambda _count: None)


@dataclass(frozen=True)
class Naming:
    """A latent for each row of the data.

    Attributes:
        latent_N: (N,) int64, -1 for a row that could not be named.
        probability_N: (N,) float32, how sure that is; 0 where it is -1.
        second_N: (N,) int64, the next likely latent; the same one where nothing else is known.
        prior: proportions and repulsion.
        latents: K.
        used: how many of them have rows, those numbered from 0.
        score: the expected share of rows named right, None where nothing says so.
        stability: agreement of namings from separate halves of the prompts, None where names were
            given or searched as distinct ones.
        one_string: whether each strategy writes one string, so that distinct completions of a
            prompt take distinct latents.
        prompts: distinct prompts that were named.
        counts: what speaks for each number of latents that was tried.
        points: (n, 2) of up to a few thousand rows, and `point_rows` (n,) which: for a picture.
    """

    latent_N: np.ndarray
    probability_N: np.ndarray
    second_N: np.ndarray
    prior: LatentPrior
    latents: int
    used: int
    score: float | None
    stability: float | None
    one_string: bool
    prompts: int
    counts: list[dict[str, Any]] = field(default_factory=list)
    nested: str | None = None
    points: np.ndarray | None = None
    point_rows: np.ndarray | None = None

    @property
    def chance(self) -> float:
        """Share right of names that say nothing: what the score is when nothing is stable."""
        return 1 / self.latents


def naming_record(naming: Naming) -> dict[str, Any]:
    """What a naming says as a whole, ready for JSON."""
    infinite = math.isinf(naming.prior.repulsion)
    return {
        "latents": naming.latents,
        "used": naming.used,
        "proportions": [round(float(share), 4) for share in naming.prior.proportions],
        "repulsion": "infinite" if infinite else naming.prior.repulsion,
        "one_string": naming.one_string,
        "score": None if naming.score is None else round(naming.score, 4),
        "chance": round(naming.chance, 4),
        "stability": None if naming.stability is None else round(naming.stability, 4),
        "per_latents": naming.counts,
        "nested": naming.nested,
    }


@dataclass(frozen=True)
class Rows:
    """The distinct rows of the data, prompt by prompt.

    Attributes:
        rows: (R,) their first occurrences in the data.
        sizes: (P,) distinct rows of each prompt.
    """

    rows: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded) -> Rows:
        """All of them; prompts in the order of their numbers."""
        _, first = np.unique(encoded.row_hash, axis=0, return_index=True)
        first.sort()
        prompt = encoded.prompt_index[first]
        order = np.argsort(prompt, kind="stable")
        return cls(first[order], np.unique(prompt, return_counts=True)[1])

    def groups(self, least: int = 1) -> list[np.ndarray]:
        """Each prompt's rows, where it has `least` of them."""
        cuts = np.cumsum(self.sizes)[:-1]
        return [group for group in np.split(self.rows, cuts) if len(group) >= least]

    def chunks(self) -> list[np.ndarray]:
        """Each prompt's rows, at most `CHUNK_ROWS` together: a prompt with thousands of completions
        is taken for several, or one prompt could be all that is looked at.
        """
        return [
            group[start : start + CHUNK_ROWS]
            for group in self.groups()
            for start in range(0, len(group), CHUNK_ROWS)
        ]


def name_rows(
    source: Source,
    encoded: Encoded,
    latents: int | None,
    *,
    seed: int,
    progress: Progress = silent,
) -> Naming | None:
    """Names all rows; None where there are too few, or nothing that differs.

    Args:
        latents: K; None finds it.
        progress: opens a bar (label, total) that is called with increments.
    """
    found = Rows.of(encoded)
    identical = identical_pairs(encoded.prompt_index, encoded.row_hash)
    several = int((found.sizes > 1).sum())
    # About d / K of a prompt's pairs are identical where a strategy repeats itself with
    # probability d; equal proportions are assumed as long as none are known.
    if several and identical >= ONE_STRING / (latents or MOST_CLUSTERS):
        naming = _name_distinct(source, encoded, found.groups(2), latents, seed, progress)
        if one_string_a_strategy(identical, naming.prior.proportions):
            return naming
    if len(found.rows) < LEAST_ROWS_A_LATENT * (latents or 2):
        return None
    return _name_repeating(source, encoded, found.chunks(), latents, seed, progress)


def _name_repeating(
    source: Source,
    encoded: Encoded,
    groups: list[np.ndarray],
    latents: int | None,
    seed: int,
    progress: Progress,
) -> Naming:
    """Strategies may repeat within a prompt; prompts may have one completion."""
    rng = np.random.default_rng([seed, 1])
    groups = [groups[i] for i in rng.permutation(len(groups))]
    cut = int(np.searchsorted(np.cumsum([len(group) for group in groups]), FIT_ROWS, "right"))
    cut = min(max(cut, 1), FIT_PROMPTS)
    fit, rest = groups[:cut], groups[cut:]
    sizes = np.array([len(group) for group in fit])
    with progress("naming: features of completions", int(sizes.sum())) as advance:
        features = source(np.concatenate(fit), advance)
    effects, views = PromptEffects.fit(features, sizes)
    weight_N = features.lengths / features.lengths.mean()
    counts, score_of = _numbers(views, weight_N, sizes, latents, seed, progress)
    K = latents or best_count(counts).latents
    found = next((count.found for count in counts if count.latents == K), None)
    if found is None or len(found.posterior_NK) < len(weight_N):  # only some rows were looked at
        with progress("naming: search", len(ways_of(K, len(views)))) as advance:
            found = search(views, weight_N, sizes, K, seed, advance)
    prior = fit_prior(found.posterior_NK, sizes)
    latent_N = np.full(len(encoded), -1, np.int64)
    second_N = np.full(len(encoded), -1, np.int64)
    probability_N = np.zeros(len(encoded), np.float32)

    def put(rows: np.ndarray, by_features_NK: np.ndarray, sizes: ArrayLike) -> None:
        """By the features' posterior as a likelihood, and the prior over each prompt's rows."""
        log_likelihood_NK = np.log(by_features_NK) - np.log(prior.proportions)
        posterior_NK, _ = prior.posterior(log_likelihood_NK, sizes)
        order_NK = np.argsort(-posterior_NK, axis=1, kind="stable")
        latent_N[rows], second_N[rows] = order_NK[:, 0], order_NK[:, 1]
        probability_N[rows] = posterior_NK.max(1)

    put(np.concatenate(fit), found.posterior_NK, sizes)
    with progress("naming: all other rows", sum(map(len, rest))) as advance:
        for block in _blocks(rest, BLOCK_PROMPTS):
            rows, block_sizes = np.concatenate(block), [len(group) for group in block]
            points = discriminant_points(effects(source(rows, advance), block_sizes))
            put(rows, found.discriminant(points), block_sizes)
    latent_N, second_N, probability_N = _of_equal_rows(encoded, latent_N, second_N, probability_N)
    order_K, new_K = _by_share(latent_N, K)
    latent_N, second_N = _renamed(latent_N, new_K), _renamed(second_N, new_K)
    used = int((order_K >= 0).sum())
    return Naming(
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=second_N,
        prior=LatentPrior(prior.proportions[_filled(order_K)], prior.repulsion),
        latents=K,
        used=used,
        score=score_of(found),
        stability=found.stability,
        one_string=False,
        prompts=int(encoded.prompt_index.max()) + 1,
        counts=_shown(counts, K),
        nested=_nested(counts, K) if latents is None else None,
        points=_picture(views, found),
        point_rows=np.concatenate(fit),
    )


def _numbers(
    views: list[np.ndarray],
    weight_N: np.ndarray,
    sizes: np.ndarray,
    latents: int | None,
    seed: int,
    progress: Progress,
) -> tuple[list[Count], Callable[[Found], float]]:
    """(the numbers of latents that were looked at, the score of a naming in their light).

    A number that is too small is as stable as the right one, so it is held against larger ones.
    """
    prompts = int(np.searchsorted(np.cumsum(sizes), COUNTED_ROWS, "right"))
    counted_sizes = sizes[: max(prompts, 1)]
    rows = int(counted_sizes.sum())
    first, last = (2, MOST_LATENTS) if latents is None else (latents - BELOW, latents + ABOVE)
    most = min(last, rows // LEAST_ROWS_A_LATENT)
    numbers = list(range(max(first, 2), most + 1))
    if not numbers and latents is None:
        numbers = [2]
    counted_views = [view[:rows] for view in views]
    with progress("naming: how many latents", len(numbers)) as advance:
        counts = counts_of(numbers, counted_views, weight_N[:rows], counted_sizes, seed, advance)

    def score_of(found: Found) -> float:
        K = found.posterior_NK.shape[1]
        if len(np.unique(found.posterior_NK.argmax(1))) < 2:
            return 1 / K
        right = expected_share_right(found.stability, found.above_noise, K)
        near = [count for count in counts if -BELOW <= count.latents - K <= ABOVE]
        own = next((count for count in near if count.latents == K), None)
        if own is None:
            return right
        agree = np.array([agreement(own, count) for count in near])
        return max(float(plausibility(near) @ agree) * right, 1 / K)

    return counts, score_of


def _shown(counts: list[Count], latents: int) -> list[dict[str, Any]]:
    return [
        {
            "latents": count.latents,
            "stability": round(count.found.stability, 4),
            "above_noise": round(count.found.above_noise, 4),
            "evidence": None,
            "score": round(
                expected_share_right(count.found.stability, count.found.above_noise, count.latents),
                4,
            ),
            "used": count.used,
            "chosen": count.latents == latents,
        }
        for count in counts
    ]


def _nested(counts: list[Count], latents: int) -> str | None:
    """How the next finer number lies in the chosen one."""
    chosen = next(count for count in counts if count.latents == latents)
    finer = [count for count in counts if count.latents > latents]
    if not finer:
        return None
    best = max(finer, key=lambda count: count.found.above_noise)
    return (
        f"{best.latents} latents would be a finer answer of stability {best.found.stability:.2f}, "
        f"nested in these {latents} for {nesting(best, chosen):.0%} of the rows"
    )


def _picture(views: list[np.ndarray], found: Found) -> np.ndarray:
    """(n, 2): the two directions that separate the latents most."""
    points, q = discriminant_points(views), found.posterior_NK
    means = q.T @ points / np.maximum(q.sum(0), 1e-9)[:, None]
    means = (means - points.mean(0)) * np.sqrt(q.mean(0))[:, None]
    _, _, axes = np.linalg.svd(means, full_matrices=False)
    flat = points @ axes[:2].T
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def _of_equal_rows(encoded: Encoded, *columns: np.ndarray) -> list[np.ndarray]:
    """What the first of equal rows has, for all of them."""
    _, first, inverse = np.unique(encoded.row_hash, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    return [column[first][inverse] for column in columns]


def _by_share(latent_N: np.ndarray, latents: int) -> tuple[np.ndarray, np.ndarray]:
    """((K,) the old name of each latent by falling share, -1 for those without rows, which come
    last; (K,) the new name of each).
    """
    counts_K = np.bincount(latent_N[latent_N >= 0], minlength=latents)
    order_K = np.argsort(-counts_K, kind="stable")
    new_K = np.empty(latents, np.int64)
    new_K[order_K] = np.arange(latents)
    return np.where(counts_K[order_K] > 0, order_K, -1), new_K


def _renamed(latent_N: np.ndarray, new_K: np.ndarray) -> np.ndarray:
    return np.where(latent_N >= 0, new_K[np.maximum(latent_N, 0)], -1)


def _filled(order_K: np.ndarray) -> np.ndarray:
    """The old names with those that are unused put back in their places."""
    unused = np.setdiff1d(np.arange(len(order_K)), order_K[order_K >= 0])
    filled = order_K.copy()
    filled[order_K < 0] = unused
    return filled


def _blocks(items: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def completed(given_N: np.ndarray, sure_N: np.ndarray, naming: Naming) -> Naming:
    """The naming with the names that are given (N,), -1 for none, in their places.

    Clusters take the given names that they agree with most, so a few names are enough to say which
    cluster is which; rows without a given name keep their cluster's.

    Args:
        sure_N: (N,) probability of each given name.
    """
    K = naming.latents
    both = (given_N >= 0) & (naming.latent_N >= 0)
    names_K, _ = matching(naming.latent_N[both], given_N[both], K)
    renamed_N = _renamed(naming.latent_N, names_K)
    latent_N = np.where(given_N >= 0, given_N, renamed_N)
    probability_N = np.where(given_N >= 0, sure_N, naming.probability_N).astype(np.float32)
    proportions = np.bincount(latent_N[latent_N >= 0], minlength=K) + 1.0
    return replace(
        naming,
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=_renamed(naming.second_N, names_K),
        prior=LatentPrior(proportions / proportions.sum(), naming.prior.repulsion),
        used=_used(latent_N),
    )


def _used(latent_N: np.ndarray) -> int:
    """Latents up to the last one that has rows: names that a person gives may leave one out."""
    return int(latent_N.max(initial=0)) + 1


def given_names(
    encoded: Encoded, latent_N: np.ndarray, probability_N: np.ndarray, latents: int
) -> Naming:
    """A naming that somebody has made, with the prior that it shows; no score is known of it."""
    found = Rows.of(encoded)
    named = latent_N[found.rows] >= 0
    sizes = [int(part.sum()) for part in np.split(named, np.cumsum(found.sizes)[:-1])]
    kept = found.rows[named]
    soft = np.full((len(kept), latents), (1 - SURE) / max(latents - 1, 1))
    soft[np.arange(len(kept)), latent_N[kept]] = SURE
    identical = identical_pairs(encoded.prompt_index, encoded.row_hash)
    several = bool((found.sizes > 1).any())
    one_string = several and one_string_a_strategy(identical, soft.mean(0))
    prior = fit_prior(soft, [size for size in sizes if size], one_string=one_string)
    return Naming(
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=latent_N,
        prior=prior,
        latents=latents,
        used=_used(latent_N),
        score=None,
        stability=None,
        one_string=one_string,
        prompts=len(found.sizes),
    )


# Distinct completions of a prompt take distinct latents


def _name_distinct(
    source: Source,
    encoded: Encoded,
    groups: list[np.ndarray],
    latents: int | None,
    seed: int,
    progress: Progress,
) -> Naming:
    """Names the rows of prompts with several distinct completions."""
    rng = np.random.default_rng([seed, 1])
    groups = [groups[i] for i in rng.permutation(len(groups))]
    fit, rest = groups[:FIT_PROMPTS], groups[FIT_PROMPTS:]
    sizes = [len(g) for g in fit]
    gains: dict[int, float] = {}
    with progress("naming: features of completions", sum(sizes)) as advance:
        features = source(np.concatenate(fit), advance).kinds
    if latents is None:
        with progress("naming: how many latents", MOST_CLUSTERS - 1) as advance:
            latents, gains = _counted(features, sizes, seed, advance)
    pairs = in_pairs(sizes)
    centring = Centring.fit(features, sizes, keep=pairs)
    centring(features, sizes)
    space = Space.fit(features, seed, views=DISTINCT_VIEWS)
    views = space(features)
    finalists = PAIRED_FINALISTS if pairs else FINALISTS

    def clustered(count: int) -> tuple[np.ndarray, float, float]:
        draws = copy.deepcopy(rng)  # the same whether fewer are found or asked for
        with progress("naming: search", clustering_work(len(MORE_STARTS), finalists)) as advance:
            starts = starts_of(
                (space.scaled(features, kinds) for kinds in MORE_STARTS), sizes, count, draws
            )
            return best_clustering(starts, views, sizes, count, draws, advance, finalists=finalists)

    wanted, found = latents, clustered(latents)
    while (fewer := alternatives(found[0], sizes, wanted)) < wanted and fewer > 1:
        again = clustered(fewer)
        if above_chance(again[1], fewer) < ENOUGH * above_chance(found[1], wanted):
            break  # two strategies that no x has together
        wanted, found = fewer, again
    clusters, score, _ = found
    names, clusters = np.unique(clusters, return_inverse=True)  # some may have lost all their rows
    used = len(names)
    weights = ridge_map(views[0]) @ one_hot(clusters, used)

    latent = np.full(len(encoded), -1, np.int64)
    latent[np.concatenate(fit)] = clusters
    with progress("naming: all other rows", sum(map(len, rest))) as advance:
        for block in _blocks(rest, BLOCK_PROMPTS):
            rows, sizes = np.concatenate(block), [len(g) for g in block]
            kinds = source(rows, advance).kinds
            centring(kinds, sizes)
            latent[rows] = assign_groups(-(space.points(kinds, 0) @ weights), sizes)
    probability_N = np.where(latent >= 0, SURE, 0.0).astype(np.float32)
    latent, probability_N = _of_equal_rows(encoded, latent, probability_N)
    shares_K = np.bincount(latent[latent >= 0], minlength=latents) + 1.0
    return Naming(
        latent_N=latent,
        probability_N=probability_N,
        second_N=latent,
        prior=LatentPrior(shares_K / shares_K.sum(), math.inf),
        latents=latents,
        used=used,
        score=1 / used + (1 - 1 / used) * min(max(score, 0.0), 1.0),
        stability=None,
        one_string=True,
        prompts=len(groups),
        counts=[
            {
                "latents": K,
                "stability": None,
                "evidence": round(gain, 4),
                "score": None,
                "chosen": K == latents,
            }
            for K, gain in gains.items()
        ],
    )


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
    return best_distinct_count(space(features), kinds, sizes[:COUNT_PROMPTS], seed, advance)
