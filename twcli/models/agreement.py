"""Whether a faster way through a model gives what its plain forward pass does, and if not, why.

Every such way is tried on a few rows before it is used: an unknown architecture may fail anyhow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from twcli.errors import first_line

# Rounding errors are far smaller, real differences far larger. Of one token, in nats:
NATS = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.5}
# of logits, a loss or a gradient, as a share of its size:
SHARE = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.1}
FAILURES = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def why_not(way: str, difference: Callable[[], float], most: float, of: str) -> str | None:
    """Why a way through the model may not be used; None if it may.

    Args:
        way: what it is, for the message.
        difference: runs it, and gives the largest difference from the plain forward pass.
        most: difference from which on it is another result.
        of: unit of the difference, for the message.
    """
    try:
        apart = difference()
    except FAILURES as error:
        return f"{way} fails: {first_line(error)}"
    # the comparison is False for NaN
    if apart <= most:
        return None
    return f"{way} differs by {apart:.1e} {of}"
