"""Which latent each completion takes, found without labels: the warm start of a training, and what
`twcli discover` writes.

Where each strategy writes one string a prompt, which identical completions show, distinct
completions of a prompt take distinct latents (`one_string`). Everywhere else strategies may repeat
within a prompt, or prompts have one completion (`repeating`). No label is read.

Shapes: N rows, P prompts, K latents.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.equal_rows import first_of_equal
from twcli.discovery.distinct import MOST_CLUSTERS
from twcli.discovery.matching import matching
from twcli.discovery.one_string import SURE, name_one_string
from twcli.discovery.prior import (
    ONE_STRING,
    fit_prior,
    identical_pairs,
    one_string_a_strategy,
)
from twcli.discovery.repeating import LEAST_ROWS_A_LATENT, name_repeating
from twcli.discovery.result import Naming, counts_of, renamed, used_latents
from twcli.discovery.rows import Progress, Rows, Source, silent
from twcli.discovery.single_rows import name_single_rows

# Share of the rows whose prompts have one completion: from the first, prompts with several are few;
# from the second, rows may be named in both ways where the names are not sure (`DOUBTFUL`).
MOST_SINGLES, SOME_SINGLES = 0.5, 0.1
DOUBTFUL = 0.8  # score


def name_rows(
    source: Source,
    encoded: Encoded,
    latents: int | None,
    *,
    seed: int,
    progress: Progress = silent,
    given_N: np.ndarray | None = None,
) -> Naming | None:
    """Names all rows; None where there are too few, or nothing that differs.

    Args:
        latents: K; None finds it.
        given_N: (N,) the latents that are known of some rows, -1 for none. Where strategies may
            repeat within a prompt the other rows are named after them. Under which names and where
            they stand themselves is for `completed` to say.
        progress: opens a bar (label, total) that is called with increments.
    """
    found = Rows.of(encoded)
    identical = identical_pairs(encoded.prompt_index, encoded.row_hash)
    several = int((found.sizes > 1).sum())
    # About d / K of a prompt's pairs are identical where a strategy repeats itself with
    # probability d; equal proportions are assumed as long as none are known.
    if several and identical >= ONE_STRING / (latents or MOST_CLUSTERS):
        naming = name_one_string(source, encoded, found.groups(2), latents, seed, progress)
        if one_string_a_strategy(identical, naming.prior.proportions):
            return _of_all_rows(source, encoded, found, naming, latents, seed, progress)
    if len(found.rows) < LEAST_ROWS_A_LATENT * (latents or 2):
        return None
    if given_N is not None:
        given_N = _of_first_rows(encoded, given_N)
    return name_repeating(source, encoded, found.chunks(), latents, seed, progress, given_N=given_N)


def _of_first_rows(encoded: Encoded, given_N: np.ndarray) -> np.ndarray:
    """The given names (N,) at the first of equal rows, which alone is looked at."""
    (given,) = np.nonzero(given_N >= 0)
    moved_N = np.full_like(given_N, -1)
    moved_N[first_of_equal(encoded.row_hash)[given]] = given_N[given]
    return moved_N


def _of_all_rows(
    source: Source,
    encoded: Encoded,
    found: Rows,
    naming: Naming,
    latents: int | None,
    seed: int,
    progress: Progress,
) -> Naming:
    """The naming with rows of prompts with one completion, which it leaves out.

    Where they are most of the rows, they may say more of the strategies than a few prompts that
    repeat; and where they are some, and names by exchanges are doubtful, strategies may be of the
    kind that any completion shows. So all rows are named together as well, under the
    same repulsion, and the naming that is expected to be right more often is taken.
    """
    naming = name_single_rows(source, encoded, found.groups(), naming, seed, progress)
    singles = (found.sizes == 1).sum() / len(found.rows)
    doubtful = (naming.score or 0.0) < DOUBTFUL and singles > SOME_SINGLES
    enough = len(found.rows) >= LEAST_ROWS_A_LATENT * (latents or 2)
    if not enough or not (doubtful or singles > MOST_SINGLES):
        return naming
    chunks = found.chunks()
    other = name_repeating(source, encoded, chunks, latents, seed, progress, one_string=True)
    return max(naming, other, key=lambda one: one.score or 0.0)


def completed(given_N: np.ndarray, sure_N: np.ndarray, naming: Naming) -> Naming:
    """The naming with the names that are given (N,), -1 for none, in their places.

    Clusters take the given names that they agree with most, so a few names are enough to say which
    cluster is which; rows without a given name keep their cluster's.

    Args:
        sure_N: (N,) probability of each given name.
    """
    K = naming.latents
    given = given_N >= 0
    both = given & (naming.latent_N >= 0)
    names_K, _ = matching(naming.latent_N[both], given_N[both], K)
    renamed_N = renamed(naming.latent_N, names_K)
    latent_N = np.where(given, given_N, renamed_N).astype(np.int32)
    probability_N = np.where(given, sure_N, naming.probability_N).astype(np.float32)
    proportions = counts_of(latent_N, K) + 1.0
    return replace(
        naming,
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=renamed(naming.second_N, names_K),
        prior=replace(naming.prior, proportions=proportions / proportions.sum()),
        used=used_latents(latent_N),
    )


def given_names(
    encoded: Encoded, latent_N: np.ndarray, probability_N: np.ndarray, latents: int
) -> Naming:
    """A naming that somebody has made, with the prior that it shows; no score is known of it."""
    found = Rows.of(encoded)
    named = latent_N[found.rows] >= 0
    starts = np.cumsum(found.sizes) - found.sizes
    sizes = np.add.reduceat(named, starts, dtype=np.int64)
    kept = found.rows[named]
    soft = np.full((len(kept), latents), (1 - SURE) / max(latents - 1, 1))
    soft[np.arange(len(kept)), latent_N[kept]] = SURE
    identical = identical_pairs(encoded.prompt_index, encoded.row_hash)
    several = bool((found.sizes > 1).any())
    one_string = several and one_string_a_strategy(identical, soft.mean(0))
    prior = fit_prior(soft, sizes[sizes > 0], one_string=one_string)
    return Naming(
        latent_N=latent_N,
        probability_N=probability_N,
        second_N=latent_N,
        prior=prior,
        latents=latents,
        used=used_latents(latent_N),
        score=None,
        stability=None,
        one_string=one_string,
        prompts=len(found.sizes),
    )
