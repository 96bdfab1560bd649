"""How many latents there are, where strategies may repeat within a prompt.

Two namings from separate halves of the prompts agree as long as every cluster is there in both; one
cluster too many is cut from another at a place that differs between the halves, or lies near the
one it was cut from. Too few are as stable, and say less: names are worth the nats that can be
predicted of them in sub-kinds that were left out. So the number of most such nats is taken, as far
as its search repeats itself and its clusters lie apart evenly, and the smaller one of two that are
about equal, unless a number only splits off a handful of rows. Strategies have sub-kinds, which
larger numbers may find; those are nested in the smaller number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed, parallel_config
from numpy.typing import ArrayLike

from twcli.discovery.matching import contingency, matched_share
from twcli.discovery.search import Found, search

MOST_LATENTS = 8  # that are looked for where the number is not given
COUNTED_ROWS = 800  # in which it is looked for
TOLERANCE = 0.05  # share of `Count.support`, within which two numbers are equally good
REPEATED = 4  # powers: how much stability counts,
EVEN = 1.5  # and evenness
SURE = 16  # power of the support, by which one number is held likelier than another
FAR_MORE = 2  # times the support of a given number, from which another one is advised
BELOW, ABOVE = 1, 2  # numbers below and above a given one that are compared with it
IDLE_SECONDS = 1  # after which a process that has nothing to try ends
LEAST_SHARE = 0.02  # of the rows, below which a cluster does not count as one
TINY = 1e-12


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
        used_K = shares_K >= LEAST_SHARE
        used = int(used_K.sum())
        return cls(len(shares_K), used, found)

    @property
    def support(self) -> float:
        """Nats that carry over, as far as the search repeats itself and clusters lie apart."""
        stability = max(self.found.stability_beyond_chance, 0.0)
        return self.found.information * stability**REPEATED * self.found.evenness**EVEN

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
    workers: int = 1,
) -> list[Count]:
    """The naming of the same rows under each number of latents.

    Args:
        numbers: those of K to try.
        views: (N, D) of each view.
        weight_N: (N,) how much each row counts.
        sizes: (P,) rows of each prompt.
        advance: called with 1 after each number.
        workers: processes that try numbers side by side; they change no figure. A search is many
            small steps of Python, for which threads would wait for each other.
    """
    tries = (delayed(search)(views, weight_N, sizes, latents, seed) for latents in numbers)
    counts = []
    # workers end soon: a training may follow, which needs their memory
    with parallel_config(backend="loky", idle_worker_timeout=IDLE_SECONDS):
        processes = Parallel(n_jobs=min(workers, len(numbers)) or 1, return_as="generator")
        for found in processes(tries):
            counts.append(Count.of(found))
            if advance:
                advance(1)
    return counts


def count_of(counts: Sequence[Count], latents: int) -> Count | None:
    """The one of this number of latents; None where it was not looked at."""
    return next((count for count in counts if count.latents == latents), None)


def best_count(counts: Sequence[Count]) -> Count:
    """The smallest number among those of most support whose clusters all have rows."""
    full = [count for count in counts if count.used == count.latents] or list(counts)
    highest = max(count.support for count in full)
    return min(
        (count for count in full if count.support >= (1 - TOLERANCE) * highest),
        key=lambda count: count.latents,
    )


def likelier_number(counts: Sequence[Count], latents: int) -> int | None:
    """Another number of latents that has far more support than this one; None where none has."""
    chosen = count_of(counts, latents)
    if chosen is None:
        return None
    best = best_count(counts)
    return best.latents if best.support > FAR_MORE * chosen.support else None


def plausibility(counts: Sequence[Count]) -> np.ndarray:
    """How far each number of latents is held to be the right one.

    Returns:
        (number of counts,) weights of sum 1; alike where nothing speaks for any.
    """
    support = np.array([count.support for count in counts])
    weights = (support / max(support.max(), TINY)) ** SURE + TINY
    return weights / weights.sum()


def nesting(finer: Count, coarser: Count) -> float:
    """Share of rows that the finer naming puts where the coarser one does, each finer cluster being
    counted to the coarser one that has most of it.

    Returns:
        From 0 to 1, which it is where the finer naming is nested in the coarser one.
    """
    table = contingency(finer.clusters_N, coarser.clusters_N, finer.latents, coarser.latents)
    nested = table.max(1).sum()
    return float(nested / table.sum())


def agreement(one: Count, other: Count) -> float:
    """Share of rows on which two namings of any numbers agree, names matched one to one, from 0 to
    1.
    """
    latents = max(one.latents, other.latents)
    return matched_share(one.clusters_N, other.clusters_N, latents)
