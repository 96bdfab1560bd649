"""Rows of unequal lengths: their positions in a flat array, padded arrays, and batches within a
token budget.
"""

from __future__ import annotations

import numpy as np


def slices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices start .. start + length - 1 of each slice, concatenated."""
    first = starts - (np.cumsum(lengths) - lengths)
    places: np.ndarray = np.arange(lengths.sum()) + np.repeat(first, lengths)
    return places


def gather_padded(
    flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int | float
) -> np.ndarray:
    """(R, longest) array of the slices `flat[start : start + length]`, padded
    on the right with `fill`.
    """
    columns = np.arange(lengths.max(initial=0))
    inside = columns < lengths[:, None]
    return np.where(inside, flat[np.minimum(starts[:, None] + columns, len(flat) - 1)], fill)


def prompt_by_prompt(lengths: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """An order in which rows of one prompt, which share a number, are adjacent. Prompts are sorted
    by their longest row, descending, and so are the rows of each prompt.
    """
    _, prompt = np.unique(prompts, return_inverse=True)
    longest = np.zeros(len(prompt), np.int64)
    np.maximum.at(longest, prompt, lengths)
    return np.lexsort((-lengths, prompt, -longest[prompt]))


def budget_batches(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cuts `order` into batches of at most `batch_tokens` padded tokens, at least one row each."""
    batches, start, longest = [], 0, 0
    for stop, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if stop > start and longest * (stop - start + 1) > batch_tokens:
            batches.append(order[start:stop])
            start, longest = stop, length
    if start < len(order):
        batches.append(order[start:])
    return batches
