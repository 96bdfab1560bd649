"""How many latents there are, where strategies may repeat within a prompt: as many as are stable.

Two namings from separate halves of the prompts agree as long as every cluster is there in both; one
cluster too many is cut from another at a place that differs between the halves, and one too few
holds kinds that cannot be predicted from each other. Few clusters are stable even where there are
none, so what counts is by how much points without structure are less stable and carry over less.
Several numbers may be stable, the larger ones nested in the smaller ones: strategies have sub-
kinds. The largest number that is as stable as the most stable one is taken, unless it only splits
off a handful of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from twcli.discovery.matching import contingency, matched_share
from twcli.discovery.search import Found, search

MOST_LATENTS = 8  # that are looked for where the number is not given
COUNTED_ROWS = 800  # in which it is looked for
TOLERANCE = 0.05  # of `Count.support`, within which two numbers are equally good
HALF_SUPPORT, SUPPORT_WIDTH = 0.7, 0.03  # stability beyond chance that halves the support
DOUBT = 0.08  # of support above noise: a number that has less by this is held a third as likely
BELOW, ABOVE = 1, 2  # numbers below and above a given one that are compared with it
LEAST_SHARE = 0.02  # of the rows, below which a cluster does not count as one


@dataclass(frozen=True)
class Count:
    """What speaks for one number of latents.

    Attributes:
        latents: K.
        used: clusters with more than a handful of rows.
        found: the naming of the rows that were looked at.
    """

    latents: int
    used: int
    found: Found

    @classmethod
    def of(cls, found: Found) -> Count:
        """Of a naming of the rows that are looked at."""
        shares_K = found.posterior_NK.mean(0)
        return cls(len(shares_K), int((shares_K >= LEAST_SHARE).sum()), found)

    @property
    def support(self) -> float:
        """What is above noise, as far as the whole search is stable as well."""
        stability = self.found.stability_beyond_chance
        repeats = float(expit((stability - HALF_SUPPORT) / SUPPORT_WIDTH))
        return min(self.found.above_noise, self.found.above_noise * repeats)

    @property
    def clusters_N(self) -> np.ndarray:
        """(N,) the likeliest latent of each row that was looked at."""
        return self.found.posterior_NK.argmax(1)


def counts_of(
    numbers: Sequence[int],
    views: Sequence[np.ndarray],
    weight_N: np.ndarray,
    sizes: ArrayLike,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> list[Count]:
    """The naming of the same rows under each number of latents.

    Args:
        numbers: those of K to try.
        views: (N, D) of each view.
        weight_N: (N,) how much each row counts.
        sizes: (P,) rows of each prompt.
        advance: called with 1 after each number.
    """
    counts = []
    for latents in numbers:
        counts.append(Count.of(search(views, weight_N, sizes, latents, seed)))
        if advance:
            advance(1)
    return counts


def best_count(counts: Sequence[Count]) -> Count:
    """The largest number among those of most support whose clusters all have rows."""
    full = [count for count in counts if count.used == count.latents] or list(counts)
    highest = max(count.support for count in full)
    return max(
        (count for count in full if count.support >= highest - TOLERANCE),
        key=lambda count: count.latents,
    )


def plausibility(counts: Sequence[Count]) -> np.ndarray:
    """How far each number of latents is held to be the right one.

    Returns:
        (number of counts,) weights of sum 1.
    """
    above_noise = np.array([count.found.above_noise for count in counts])
    weights = np.exp((above_noise - above_noise.max()) / DOUBT)
    return weights / weights.sum()


def nesting(finer: Count, coarser: Count) -> float:
    """Share of rows that the finer naming puts where the coarser one does, each finer cluster
    being counted to the coarser one that has most of it: 1 where it is nested.
    """
    table = contingency(finer.clusters_N, coarser.clusters_N, finer.latents, coarser.latents)
    return float(table.max(1).sum() / table.sum())


def agreement(one: Count, other: Count) -> float:
    """Share of rows on which two namings of any numbers agree, names matched one to one."""
    return matched_share(one.clusters_N, other.clusters_N, max(one.latents, other.latents))
