"""One naming out of many: the one that those of most trust agree with, corrected by their votes.

Namings that agree with it vote for each row (evidence accumulation, Fred and Jain 2005).

Shapes: N rows, K clusters, W namings.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from twcli.discovery.matching import matched_share, matching

ALIKE = 3  # power: how much more namings that agree count
VOTERS = 0.75  # agreement with the kept naming, from which a naming votes


def elected(namings_WN: np.ndarray, trust_W: np.ndarray, latents: int) -> np.ndarray:
    """Votes (N, K), of sum 1 over K.

    Args:
        trust_W: (W,) weight of each naming.
    """
    alike_WW = np.eye(len(namings_WN))
    for one, other in combinations(range(len(namings_WN)), 2):
        share = matched_share(namings_WN[one], namings_WN[other], latents)
        alike_WW[one, other] = alike_WW[other, one] = share
    support_W = alike_WW**ALIKE @ trust_W
    lead_N = namings_WN[(support_W * np.sqrt(trust_W)).argmax()]
    rows = np.arange(namings_WN.shape[1])
    votes_NK = np.zeros((len(rows), latents))
    for naming_N, trust in zip(namings_WN, trust_W, strict=True):
        names_K, agreeing = matching(naming_N, lead_N, latents)
        alike = agreeing / len(rows)
        if alike >= VOTERS:
            votes_NK[rows, names_K[naming_N]] += trust * alike**ALIKE
    return votes_NK / votes_NK.sum(1, keepdims=True)
