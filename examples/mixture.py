"""What `entangle.py` keeps out of training, and the loss below which no model can get there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.example import Example

HELD_OUT = 0.05  # share of the prompts


def split_by_prompt(prompts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out; a prompt's rows stay together, a
    single prompt is trained on.
    """
    number = int(prompts.max()) + 1
    chosen = np.zeros(number, bool)
    if number > 1:
        chosen[
            np.random.default_rng(seed).permutation(number)[: max(1, round(HELD_OUT * number))]
        ] = True
    return np.flatnonzero(~chosen[prompts]), np.flatnonzero(chosen[prompts])


def entropy_floor(examples: Sequence[Example], encoded: Encoded) -> tuple[float | None, str]:
    """Nats of the mixture, and how they are known."""
    labels = [e.strategy for e in examples]
    if all(labels):
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(
            -(shares * np.log(shares)).sum()
        ), "entropy of the strategy labels over all records"
    agreements = agreement_rate(encoded.prompt_index, [e.y for e in examples])
    if not agreements:
        return None, "no labels, and no two completions of a prompt that agree"
    return -math.log(agreements), (
        "no labels; -log of the rate at which two completions of a prompt agree, "
        "the entropy of an even mixture and less than that of an uneven one"
    )


def agreement_rate(prompts: np.ndarray, completions: Sequence[str]) -> float | None:
    """Share of the pairs of a prompt's completions that are equal:
    unbiased however few there are.
    """
    copies = np.fromiter(
        Counter(zip(prompts.tolist(), completions, strict=True)).values(), np.int64
    )
    rows = np.bincount(prompts)
    pairs = int((rows * (rows - 1)).sum())
    return int((copies * (copies - 1)).sum()) / pairs if pairs else None
