"""What discovery gives: a latent for each row of the data.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twcli.data.encoded import Encoded
from twcli.discovery.prior import LatentPrior

ORDERED_IDS = 8  # tokens of y by which latents of one share are ordered
ROWS_AT_ONCE = 2**16  # of the data, where a step over all of them would double the memory


@dataclass(frozen=True)
class Naming:
    """A latent for each row of the data.

    Attributes:
        latent_N: (N,) integers, -1 for a row that could not be named.
        probability_N: (N,) float32, how sure that is; 0 where it is -1.
        second_N: (N,) integers, the next likely latent; the same one where nothing else is known.
        prior: proportions and repulsion.
        latents: K.
        used: how many of them have rows, those numbered from 0.
        score: the expected share of rows named right, None where nothing says so.
        stability: agreement of namings from separate halves of the prompts, None where names were
            given or searched as distinct ones.
        given: names that a person gave, by which the others were found; the score is then the share
            of them that is found when they are left out.
        one_string: whether each strategy writes one string, so that distinct completions of a
            prompt take distinct latents.
        prompts: distinct prompts that were named.
        counts: what speaks for each number of latents that was tried.
        likelier: another number of latents with far more support, None if there is none.
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
    given: int = 0
    counts: list[dict[str, Any]] = field(default_factory=list)
    likelier: int | None = None
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
        "given": naming.given,
        "per_latents": naming.counts,
        "likelier": naming.likelier,
        "nested": naming.nested,
    }


def naming_lines(naming: Naming) -> list[str]:
    """What discovery found, in a few plain lines: the numbers of latents that were tried, the
    shares, the expected share of right records, and latents that are left over.
    """
    lines = [*_tried_line(naming), _shares_line(naming)]
    if naming.score is not None:
        how = "no labels are read"
        if naming.given:
            how = f"{naming.given:,} given names, predicted when left out"
        lines.append(
            f"naming: {naming.score:.2f} of the records expected right, "
            f"by chance {naming.chance:.2f} ({how})"
        )
    if naming.used < naming.latents:
        lines.append(
            f"latents: {naming.used} of {naming.latents} are used: no more strategies were found; "
            "the others write what these write"
        )
    return lines


def _tried_line(naming: Naming) -> list[str]:
    """What speaks for each number of latents, where several were tried."""
    if len(naming.counts) < 2:
        return []
    key = "evidence" if naming.one_string else "support"
    tried = ", ".join(f"{count['latents']}: {count[key]:.3f}" for count in naming.counts)
    return [f"latents: {naming.latents}; {key} by number of latents: {tried}"]


def _shares_line(naming: Naming) -> str:
    """How many records have a name, and the latents' shares of them."""
    counts_K = counts_of(naming.latent_N, naming.latents)
    named = int(counts_K.sum())
    share = named / len(naming.latent_N)
    shares = "/".join(f"{one:.0%}" for one in counts_K / max(named, 1))
    repeats = "never" if math.isinf(naming.prior.repulsion) else "may"
    return (
        f"naming: {share:.0%} of the records of {naming.prompts:,} prompts, shares "
        f"{shares}; completions of a prompt {repeats} share a latent"
    )


def used_latents(latent_N: np.ndarray) -> int:
    """Number of latents up to the last one that has rows: names that a person gives may leave one
    out.

    Args:
        latent_N: (N,) from 0, -1 for rows without a name.
    """
    return int(latent_N.max(initial=0)) + 1


def canonical_order(
    latent_N: np.ndarray, latents: int, encoded: Encoded
) -> tuple[np.ndarray, np.ndarray]:
    """((K,) the old name of each latent in the order that the data give, -1 for those without rows,
    which come last; (K,) the new name of each).

    By falling share, and latents of one share by the first tokens of y that come first among their
    rows: neither the seed nor the order of the records has a say.

    Args:
        latent_N: (N,) the latent of each row of the data, -1 for none.
        latents: K.
        encoded: the data.
    """
    counts_K = counts_of(latent_N, latents)
    sizes, times = np.unique(counts_K, return_counts=True)
    alike_K = (counts_K > 0) & np.isin(counts_K, sizes[times > 1])
    ids_KT = np.zeros((latents, ORDERED_IDS), np.int64)
    if alike_K.any():
        ids_KT[alike_K] = _leading_ids(latent_N, latents, encoded)[alike_K]
    last_ids_first = ids_KT.T[::-1]
    order_K = np.lexsort([*last_ids_first, -counts_K])
    new_K = np.empty(latents, np.int64)
    new_K[order_K] = np.arange(latents)
    has_rows_K = counts_K[order_K] > 0
    old_K = np.where(has_rows_K, order_K, -1)
    return old_K, new_K


def _leading_ids(latent_N: np.ndarray, latents: int, encoded: Encoded) -> np.ndarray:
    """(K, `ORDERED_IDS`) of the rows of each latent the first tokens of y that come first; of a
    latent without rows the largest integers.
    """
    ids_KT = np.full((latents, ORDERED_IDS), np.iinfo(np.int64).max)
    for start in range(0, len(latent_N), ROWS_AT_ONCE):
        rows = start + np.flatnonzero(latent_N[start : start + ROWS_AT_ONCE] >= 0)
        # those that lead so far, and these rows
        latent_R = np.concatenate([np.arange(latents), latent_N[rows]])
        first_RT = np.concatenate([ids_KT, _first_ids(encoded, rows)])
        order_R = np.lexsort([*first_RT.T[::-1], latent_R])
        _, leading = np.unique(latent_R[order_R], return_index=True)
        ids_KT = first_RT[order_R[leading]]
    return ids_KT


def _first_ids(encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """(R, `ORDERED_IDS`) the first token ids of each row's y, -1 where there are no more."""
    begin_R = encoded.offsets[rows] + encoded.prompt_lengths[rows] + 1
    length_R = encoded.target_lengths[rows]
    column_T = np.arange(ORDERED_IDS)
    there_RT = column_T < length_R[:, None]
    place_RT = begin_R[:, None] + column_T
    place_RT = np.where(there_RT, place_RT, 0)
    ids_RT = np.where(there_RT, encoded.ids[place_RT], -1)
    return ids_RT.astype(np.int64)


def renamed(latent_N: np.ndarray, new_K: np.ndarray) -> np.ndarray:
    """The latents (N,) under new names (K,); -1 stays."""
    found_N = latent_N.copy()
    rename(found_N, new_K)
    return found_N


def rename(latent_N: np.ndarray, new_K: np.ndarray) -> None:
    """Overwrites latents by their new names in place, a part at a time, so that no second array is
    made.

    Args:
        latent_N: (N,) from 0, -1 for rows without a name, which stays.
        new_K: (K,) the new name of each latent.
    """
    names = np.append(new_K, -1)  # which index -1 finds
    for part in _parts(latent_N):
        part[:] = names[part]


def counts_of(latent_N: np.ndarray, latents: int) -> np.ndarray:
    """Number of rows of each latent; rows without a name are not counted.

    Returns:
        (K,) int64.
    """
    counts = np.zeros(latents + 1, np.int64)
    for part in _parts(latent_N):
        counts += np.bincount(part + 1, minlength=latents + 1)
    return counts[1:]


def no_names(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(latents, probabilities) of rows none of which has a name yet, as in `Naming`."""
    latent_N = np.full(rows, -1, np.int32)
    probability_N = np.zeros(rows, np.float32)
    return latent_N, probability_N


def _parts(column_N: np.ndarray) -> Iterator[np.ndarray]:
    """Views of an array (N,), one after the other: indices of other types are copied, and in parts
    that takes no memory.
    """
    for start in range(0, len(column_N), ROWS_AT_ONCE):
        yield column_N[start : start + ROWS_AT_ONCE]
