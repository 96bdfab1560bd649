"""Rows in groups, such as those of a prompt, in one array for all groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from twcli.data.padding import slices


@dataclass(frozen=True)
class Groups:
    """Rows in groups: a prompt's each, or a part of a prompt's. One array for all of them: an array
    of its own for each prompt takes ten times what its row numbers do.

    Attributes:
        rows: row numbers of the data, group by group; there may be more than those of the groups.
        starts, sizes: (G,) where in `rows` each group begins, and how many it has.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice | np.ndarray) -> Groups:
        """Some of the groups: a slice, a mask (G,), or (..,) numbers in any order."""
        return Groups(self.rows, self.starts[which], self.sizes[which])

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows of one group after another."""
        for start, size in zip(self.starts, self.sizes, strict=True):
            yield self.rows[start : start + size]

    def followed_by(self, other: Groups) -> Groups:
        """These groups and then the others."""
        rows = np.concatenate([self.rows, other.rows])
        behind = other.starts + len(self.rows)
        starts = np.concatenate([self.starts, behind])
        sizes = np.concatenate([self.sizes, other.sizes])
        return Groups(rows, starts, sizes)

    def joined(self) -> np.ndarray:
        """The rows of all groups, group by group: (R,) row numbers, R being the sum of `sizes`."""
        places = slices(self.starts, self.sizes)
        rows: np.ndarray = self.rows[places]
        return rows

    def count(self) -> int:
        """How many rows all groups have."""
        return int(self.sizes.sum())

    def blocks(self, size: int) -> Iterator[Groups]:
        """The groups, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]
