"""Which rows of the data are equal, found in little memory beside the result.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

AT_ONCE = 2**16  # rows up to which all are compared together


def index_type(rows: int) -> type[np.signedinteger]:
    """The narrower integer that holds the numbers of so many rows."""
    if rows <= np.iinfo(np.int32).max:
        return np.int32
    return np.int64


def first_of_equal(hash_NH: np.ndarray) -> np.ndarray:
    """(N,) the first row that each row is equal to: its own number where none before it is.

    Args:
        hash_NH: (N, 16) uint8, content of each row.
    """
    N = len(hash_NH)
    first_N = np.empty(N, index_type(N))
    for rows, order, starts in _classes(hash_NH):
        ordered = rows[order]
        firsts = ordered[starts]
        sizes = _sizes(starts, len(rows))
        first_N[ordered] = np.repeat(firsts, sizes)
    return first_N


def copies_of_first(hash_NH: np.ndarray) -> np.ndarray:
    """(N,) int32, how often the content of a row occurs, at the first such row; 0 at the others.

    Args:
        hash_NH: (N, 16) uint8, content of each row.
    """
    copies_N = np.zeros(len(hash_NH), np.int32)
    for rows, order, starts in _classes(hash_NH):
        copies_N[rows[order[starts]]] = _sizes(starts, len(rows))
    return copies_N


def distinct(hash_NH: np.ndarray) -> np.ndarray:
    """(R,) int64, ascending: the first of equal rows.

    Args:
        hash_NH: (N, 16) uint8, content of each row.
    """
    return np.flatnonzero(copies_of_first(hash_NH))


def _classes(hash_NH: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Parts of the rows, equal ones always in one part: (rows ascending, an order in which equal
    ones are adjacent and ascending, where in that order each class of equal rows starts).

    Sorting all hashes takes some 60 bytes a row; parts by the first byte, which is as good as
    random, need almost nothing.
    """
    for rows in _parts(hash_NH):
        if not len(rows):
            continue
        keys = np.ascontiguousarray(hash_NH[rows]).view(np.uint64)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        begins = np.ones(len(rows), bool)
        begins[1:] = (keys[1:] != keys[:-1]).any(1)
        yield rows, order, np.flatnonzero(begins)


def _parts(hash_NH: np.ndarray) -> Iterator[np.ndarray]:
    """Row numbers in parts, ascending."""
    if len(hash_NH) <= AT_ONCE:
        yield np.arange(len(hash_NH))
        return
    first_byte_N = hash_NH[:, 0].copy()
    for value in range(256):
        yield np.flatnonzero(first_byte_N == value)


def _sizes(starts: np.ndarray, total: int) -> np.ndarray:
    """How many there are from each start to the next."""
    return np.diff(starts, append=total)
