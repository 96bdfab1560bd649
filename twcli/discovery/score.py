"""How well a naming or a run is expected to do, known without labels: what `discover` prints, what
`train` prints at its end and `eval` as `score`.

Shapes: N records, K latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

# Where the share right, above chance, is half of what it is at full stability, and how fast it
# falls there; the same for what a naming has above points without structure, and for its
# generalisation. Fitted to namings of the natural suite (`make natural`), whose labels say what was
# right. Stability overstates: two halves may agree on a wrong answer.
HALF_STABILITY, STABILITY_WIDTH = 0.25, 0.035
HALF_ABOVE_NOISE, ABOVE_NOISE_WIDTH = 0.35, 0.04
HALF_GENERALISATION, GENERALISATION_WIDTH = 0.6, 0.04


def expected_share_right(
    stability: float, above_noise: float, generalisation: float, latents: int
) -> float:
    """Share of rows that a naming is expected to name right, from 1 / K to 1, if K is right.

    Args:
        stability, above_noise, generalisation: as in `search.Found`, all three beyond chance.
    """
    reliability = expit((stability - HALF_STABILITY) / STABILITY_WIDTH)
    reliability *= expit((above_noise - HALF_ABOVE_NOISE) / ABOVE_NOISE_WIDTH)
    reliability *= expit((generalisation - HALF_GENERALISATION) / GENERALISATION_WIDTH)
    return 1 / latents + (1 - 1 / latents) * float(reliability)


@dataclass(frozen=True)
class Predictability:
    """What says without labels whether the latents mean one thing for all prompts, for each of N
    records.

    Attributes:
        predicted, upper_bound: (N,) as `probe.Probe.predicted` gives them.
        gain: (N,) nats, frozen minus marginal NLL.
        latent: (N,) int, each record's latent, -1 for none; None leaves latents out of account.
        below: (K,) bool, latents whose gain is below 0 beyond doubt.
    """

    predicted: np.ndarray
    upper_bound: np.ndarray
    gain: np.ndarray
    latent: np.ndarray | None = None
    below: np.ndarray | None = None


def run_score(
    records: Predictability, latents: int, weight_N: np.ndarray | None = None
) -> float | None:
    """The one-to-one alignment of what a run generates, as far as it can be known
    without labels: from 0 to 1.

    K latents that say nothing are right once in K times, and the share of meaning that can be
    predicted makes up the rest. What the model writes is then taken to be a strategy at all as far
    as its distribution is the frozen model's: their overlap is bounded from below by exp(-KL), but
    for a constant (Bretagnolle and Huber 1979), and on what the frozen model wrote the KL is the
    likelihood that was lost. Latents count alike, so one strategy of K that was lost costs its K-th
    part although the mean likelihood hardly shows it.

    Args:
        weight_N: how often each record counts; None for once.
    """
    if weight_N is None:
        weight_N = np.ones(len(records.gain))
    share = ratio(weight_N @ records.predicted, weight_N @ records.upper_bound)
    if share is None:
        return None
    share = min(max(share, 0.0), 1.0)  # of a few prompts its estimate may be anything
    return float((1 / latents + (1 - 1 / latents) * share) * _overlap(records, weight_N))


def _overlap(records: Predictability, weight_N: np.ndarray) -> float:
    """Mean over the latents that have records. One that is not below the frozen model beyond doubt
    counts with all records' gain or its own, whichever is higher: few records say little.
    """
    gain = float(weight_N @ records.gain / weight_N.sum())
    if records.latent is None or records.below is None:
        return float(np.exp(min(0.0, gain)))
    named = records.latent >= 0
    mass_K = np.bincount(records.latent[named], weight_N[named], minlength=len(records.below))
    sum_K = np.bincount(
        records.latent[named],
        (weight_N * records.gain)[named],
        minlength=len(records.below),
    )
    here = mass_K > 0
    if not here.any():
        return float(np.exp(min(0.0, gain)))
    gain_K = sum_K[here] / mass_K[here]
    gain_K = np.where(records.below[here], gain_K, np.maximum(gain_K, gain))
    return float(np.exp(np.minimum(0.0, gain_K)).mean())


def ratio(numerator: float | np.ndarray, denominator: float | np.ndarray) -> float | None:
    """The ratio of two numbers; None where the denominator is 0.

    Args:
        numerator, denominator: floats, or arrays of shape ().
    """
    if denominator:
        return float(numerator / denominator)
    return None
