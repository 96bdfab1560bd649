"""How well a run is expected to do, known without labels: what `train` prints at its
end and `eval` as `score`.

Shapes: N records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Naming:
    """What tells without labels whether the latents mean one thing for all
    prompts, for each of N records.

    Attributes:
        told, attainable: (N,) as `clustering.told_apart` gives them.
        gain: (N,) nats, frozen minus marginal NLL.
    """

    told: np.ndarray
    attainable: np.ndarray
    gain: np.ndarray


def run_score(naming: Naming, latents: int, weight_N: np.ndarray | None = None) -> float | None:
    """The one-to-one alignment of what a run generates, as far as it can be known
    without labels: from 0 to 1.

    K latents that say nothing are right once in K times, and the share of meaning that is told
    apart makes up the rest. What the model writes is then taken to be a strategy at all as far as
    its distribution is the frozen model's: their overlap is bounded from below by exp(-KL), but for
    a constant (Bretagnolle and Huber 1979), and on what the frozen model wrote the KL is the
    likelihood that was lost.

    Args:
        weight_N: how often each record counts; None for once.
    """
    weight_N = np.ones(len(naming.gain)) if weight_N is None else weight_N
    share = ratio(weight_N @ naming.told, weight_N @ naming.attainable)
    if share is None:
        return None
    share = min(max(share, 0.0), 1.0)  # of a few prompts its estimate may be anything
    overlap = np.exp(min(0.0, weight_N @ naming.gain / weight_N.sum()))
    return float((1 / latents + (1 - 1 / latents) * share) * overlap)


def ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator else None
