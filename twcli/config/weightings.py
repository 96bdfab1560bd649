"""How a step averages its token losses: one entry of `WEIGHTINGS` is all that a weighting takes.

Reff = uniform x R + token x Rw,   w_t = weights(b_t)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def unchanged(baseline: Any) -> Any:
    """b_t itself."""
    return baseline


@dataclass(frozen=True)
class Weighting:
    """One way to weight the tokens of y.

    Attributes:
        help: what it does, in a few words.
        uniform: factor of the uniform average R; None for `--uniform-weight`.
        token: factor of the weighted average Rw; None for `--token-weight`.
        weights: b_t (B, S) in nats -> w_t (B, S), finite and nonnegative; a tensor, whose methods
            it may use.
    """

    help: str
    uniform: float | None
    token: float | None
    weights: Callable[[Any], Any] = unchanged


WEIGHTINGS = {
    "token": Weighting("by b_t", uniform=0.0, token=1.0),
    "uniform": Weighting("all alike", uniform=1.0, token=0.0),
    "mixed": Weighting("the sum of both terms", uniform=None, token=None),
}
