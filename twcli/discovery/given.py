"""Names by a few given ones, which say what distinction is meant.

Completions may differ in several ways that are equally stable, by length and by tone for instance,
and no search without labels knows which one a person means. Discriminants of the given names name
the rows of which they are surest, these count as named from then on, and so on until all rows have
names: self-training (Scudder 1965) by a share that grows, as in curriculum labeling
(Cascante-Bonilla et al. 2021). Clusters that were found without labels may need no more than their
names. Whichever predicts given names better that were left out is taken.

Shapes: N rows that lie prompt by prompt, P prompts, D directions, K latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from twcli.discovery.discriminants import FOLDS, Discriminant, prompt_folds
from twcli.discovery.matching import matching

LEAST_GIVEN = 2  # names of each latent: a discriminant needs a mean and a spread
FIRST_SHARE = 0.3  # of each latent's rows, the surest, that count as named after the first round
ROUNDS = 8

Guess = Callable[[np.ndarray], Discriminant]


@dataclass(frozen=True)
class Completed:
    """Names of all rows by those that were given.

    Attributes:
        posterior_NK: (N, K), latents as they were given.
        discriminant: P(z | points) for other rows.
        agreement: share of the given names that are found when they are left out.
    """

    posterior_NK: np.ndarray
    discriminant: Discriminant
    agreement: float


def enough_given(given_N: np.ndarray, latents: int) -> bool:
    """Whether every latent has given names enough.

    Args:
        given_N: (N,) int, -1 for none.
    """
    counts_K = np.bincount(given_N[given_N >= 0], minlength=latents)
    return bool((counts_K >= LEAST_GIVEN).all())


def complete(
    points: np.ndarray,
    given_N: np.ndarray,
    clusters: Discriminant,
    sizes_P: np.ndarray,
    seed: int,
) -> Completed:
    """Names all rows as the given ones say.

    Args:
        points: (N, D).
        given_N: (N,) int, the latent that was given to each row, -1 for none.
        clusters: those that were found without labels.
        sizes_P: (P,) rows of each prompt.
    """
    latents = clusters.latents
    clusters_N = clusters(points).argmax(1)

    def renamed(names_N: np.ndarray) -> Discriminant:
        """The clusters under the given names that they agree with most."""
        named = names_N >= 0
        new_K, _ = matching(clusters_N[named], names_N[named], latents)
        return replace(clusters, names=new_K[clusters.names])

    def trained(names_N: np.ndarray) -> Discriminant:
        return self_trained(points, names_N, latents)

    fold_N = prompt_folds(sizes_P, np.random.default_rng([seed, 11]))
    agreements = [
        _left_out_agreement(guess, points, given_N, fold_N) for guess in (renamed, trained)
    ]
    guess = trained if agreements[1] > agreements[0] else renamed
    discriminant = guess(given_N)
    return Completed(discriminant(points), discriminant, max(agreements))


def self_trained(points: np.ndarray, given_N: np.ndarray, latents: int) -> Discriminant:
    """Discriminants of the given names and of those that follow from them.

    Args:
        points: (N, D).
        given_N: (N,) int, -1 for none.
        latents: K.
    """
    given = given_N >= 0
    discriminant = Discriminant.fit(points[given], given_N[given], latents)
    for share in np.linspace(FIRST_SHARE, 1, ROUNDS):
        posterior_NK = discriminant(points)
        names_N = np.where(given, given_N, posterior_NK.argmax(1))
        named = given | _surest(posterior_NK, ~given, share)
        discriminant = Discriminant.fit(points[named], names_N[named], latents)
    return discriminant


def _surest(posterior_NK: np.ndarray, among_N: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool, the surest share of each latent's rows among some (N,) bool."""
    chosen = np.zeros(len(posterior_NK), bool)
    latent_N = posterior_NK.argmax(1)
    sure_N = posterior_NK.max(1)
    for latent in range(posterior_NK.shape[1]):
        (rows,) = np.nonzero(among_N & (latent_N == latent))
        surest_first = rows[np.argsort(-sure_N[rows], kind="stable")]
        kept = int(np.ceil(share * len(rows)))
        chosen[surest_first[:kept]] = True
    return chosen


def _left_out_agreement(
    guess: Guess, points: np.ndarray, given_N: np.ndarray, fold_N: np.ndarray
) -> float:
    """Share of the given names that are guessed from those of other prompts."""
    right = 0
    for fold in range(FOLDS):
        held = (given_N >= 0) & (fold_N == fold)
        others_N = np.where(held, -1, given_N)
        if held.any() and (others_N >= 0).any():
            guessed_N = guess(others_N)(points[held]).argmax(1)
            right += int((guessed_N == given_N[held]).sum())
    return right / int((given_N >= 0).sum())
