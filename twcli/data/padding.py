"""Rows of unequal lengths: their positions in a flat array, padded arrays, and batches within a
token budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def slices(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices start .. start + length - 1 of each slice, concatenated.

    Args:
        starts, lengths: (R,) integers.

    Returns:
        (sum of the lengths,) int64.
    """
    first = starts - (np.cumsum(lengths) - lengths)
    places: np.ndarray = np.arange(lengths.sum()) + np.repeat(first, lengths)
    return places


def gather_padded(
    flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, fill: int | float
) -> np.ndarray:
    """Rows of a flat array as a matrix, padded on the right.

    Args:
        flat: (sum of the lengths,) all values, one row after the other.
        starts, lengths: (R,) where each row begins and how many values it has.
        fill: what padding holds.

    Returns:
        (R, longest length).
    """
    columns = np.arange(lengths.max(initial=0))
    inside = columns < lengths[:, None]
    places = np.minimum(starts[:, None] + columns, len(flat) - 1)
    return np.where(inside, flat[places], fill)


def prompt_by_prompt(lengths: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """An order in which rows of one prompt are adjacent. Prompts are sorted by their longest row,
    descending, and so are the rows of each prompt.

    Args:
        lengths: (R,) tokens.
        prompts: (R,) a number that rows of one prompt share.

    Returns:
        (R,) positions.
    """
    _, prompt = np.unique(prompts, return_inverse=True)
    longest = np.zeros(len(prompt), np.int64)
    np.maximum.at(longest, prompt, lengths)
    return np.lexsort((-lengths, prompt, -longest[prompt]))


@dataclass(frozen=True)
class PassLengths:
    """Lengths that may share a forward pass, for a model whose position embeddings depend on the
    longest row of the pass; by default all may.

    Attributes:
        boundaries: in tokens; rows of at most so many and longer ones are read apart.
        each_beyond: in tokens; every longer length is read apart from every other. None for never.
    """

    boundaries: tuple[int, ...] = ()
    each_beyond: int | None = None

    def __bool__(self) -> bool:
        """Whether the model has any such lengths, so that rows of different lengths may not share a
        pass.
        """
        return bool(self.boundaries) or self.each_beyond is not None

    def classes(self, lengths: np.ndarray) -> np.ndarray:
        """Classes of lengths: only rows of one class may share a pass.

        Args:
            lengths: (..) tokens.

        Returns:
            (..) int64, 0 for the shortest.
        """
        found = np.searchsorted(np.array(sorted(self.boundaries), np.int64), lengths)
        if self.each_beyond is None:
            return found
        return np.where(lengths > self.each_beyond, len(self.boundaries) + lengths, found)

    def new_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that can be written after rows, one by one, until a pass over all that is there
        would be of another class.

        Args:
            lengths: (R,) tokens.

        Returns:
            (R,) int64 tokens, at least 1.
        """
        beyond = [] if self.each_beyond is None else [self.each_beyond]
        limits = np.array(sorted([*self.boundaries, *beyond]), np.int64)
        longest_of_class = np.append(limits, np.iinfo(np.int64).max)
        longest = longest_of_class[np.searchsorted(limits, lengths)]
        found: np.ndarray = longest - (lengths - 1)
        return found


def apart(order: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """The rows by the class of their lengths, each part in the given order; the largest class
    first, since it has the longest rows.

    Args:
        order: (R,) row numbers, any of 0 to N - 1.
        classes: (N,) from `PassLengths.classes`.

    Returns:
        (n,) row numbers of each class.
    """
    found = classes[order]
    largest_first = np.unique(found)[::-1]
    return [order[found == each] for each in largest_first]


def budget_batches(lengths: np.ndarray, order: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cuts rows into batches of at most `batch_tokens` padded tokens, at least one row each.

    Args:
        lengths: (N,) tokens.
        order: (R,) the rows to cut, in this order.

    Returns:
        (B,) rows of each batch.
    """
    batches = []
    start = 0
    longest = 0
    for stop, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if stop > start and longest * (stop - start + 1) > batch_tokens:
            batches.append(order[start:stop])
            start = stop
            longest = length
    if start < len(order):
        batches.append(order[start:])
    return batches
