"""What discovery gives: a latent for each row of the data.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twcli.data.encoder import Encoded
from twcli.discovery.prior import LatentPrior

ORDERED_IDS = 8  # tokens of y by which latents of one share are ordered


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


def naming_lines(naming: Naming) -> list[str]:
    """What discovery found, in a few plain lines."""
    lines = [*_tried_line(naming), _shares_line(naming)]
    if naming.score is not None:
        lines.append(
            f"naming: {naming.score:.2f} of the records expected right, "
            f"by chance {naming.chance:.2f} (no labels are read)"
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
    key = "evidence" if naming.one_string else "above_noise"
    criterion = key if naming.one_string else "above noise"
    tried = ", ".join(f"{count['latents']}: {count[key]:.3f}" for count in naming.counts)
    return [f"latents: {naming.latents}; {criterion} by number of latents: {tried}"]


def _shares_line(naming: Naming) -> str:
    """How many records have a name, and the latents' shares of them."""
    named_N = naming.latent_N >= 0
    counts_K = np.bincount(naming.latent_N[named_N], minlength=naming.latents)
    shares = "/".join(f"{share:.0%}" for share in counts_K / max(counts_K.sum(), 1))
    repeats = "never" if math.isinf(naming.prior.repulsion) else "may"
    return (
        f"naming: {float(named_N.mean()):.0%} of the records of {naming.prompts:,} prompts, shares "
        f"{shares}; completions of a prompt {repeats} share a latent"
    )


def used_latents(latent_N: np.ndarray) -> int:
    """Latents up to the last one that has rows: names that a person gives may leave one out."""
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
    counts_K = np.bincount(latent_N[latent_N >= 0], minlength=latents)
    sizes, times = np.unique(counts_K, return_counts=True)
    alike = np.flatnonzero((counts_K > 0) & np.isin(counts_K, sizes[times > 1]))
    rows = np.flatnonzero(np.isin(latent_N, alike))
    first_RT = _first_ids(encoded, rows)
    order_R = np.lexsort([*first_RT.T[::-1], latent_N[rows]])
    _, leading = np.unique(latent_N[rows][order_R], return_index=True)  # a row of each
    ids_KT = np.zeros((latents, ORDERED_IDS), np.int64)
    ids_KT[alike] = first_RT[order_R[leading]]
    order_K = np.lexsort([*ids_KT.T[::-1], -counts_K])
    new_K = np.empty(latents, np.int64)
    new_K[order_K] = np.arange(latents)
    return np.where(counts_K[order_K] > 0, order_K, -1), new_K


def _first_ids(encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """(R, `ORDERED_IDS`) the first token ids of each row's y, -1 where there are no more."""
    begin_R = encoded.offsets[rows] + encoded.prompt_lengths[rows] + 1
    column_T = np.arange(ORDERED_IDS)
    there_RT = column_T < encoded.target_lengths[rows][:, None]
    places_RT = np.where(there_RT, begin_R[:, None] + column_T, 0)
    return np.where(there_RT, encoded.ids[places_RT], -1).astype(np.int64)


def renamed(latent_N: np.ndarray, new_K: np.ndarray) -> np.ndarray:
    """The latents (N,) under new names (K,); -1 stays."""
    found_N = new_K[np.maximum(latent_N, 0)]
    return np.where(latent_N >= 0, found_N, -1)
