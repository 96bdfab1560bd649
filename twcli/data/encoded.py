"""Records as token ids: arrays over all rows, which are not changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from twcli.data.equal_rows import first_of_equal

HASH = np.dtype("V16")


@dataclass(frozen=True)
class Encoded:
    """All rows' z-free token ids in one flat array. There is no Python object per row, and the
    large arrays are disk-backed (`DiskArray`).

    Attributes:
        ids: (sum of lengths,) int32, the z-free sequences one after another.
        offsets: (N + 1,) int64 into `ids`.
        prompt_lengths: (N,) int64, tokens before the one that predicts the first token of y: those
            of `<bos> <x> x </x>`.
        target_lengths: (N,) int64, supervised tokens S of each row (y and its closing tag).
        x_starts, x_lengths: (N,) int64, the tokens of x, or of the turn that is answered.
        row_hash: (N, 16) uint8, blake2b over the ids: those of x and y between tags, which are the
            same for all rows, else those of the prompt and of the target.
        prompt_index: (N,) int64, rows with the same prompt share a number.
        unknown_rows: rows with an unknown token.
        notes: lines to show to the user: rows whose ids are not those of the whole text.
        row_numbers: (N,) int64, the rows' numbers in the data, ascending: too long ones may be left
            out. None if there are all.
        too_long: rows that were left out or shortened, by what was done.
    """

    ids: np.ndarray
    offsets: np.ndarray
    prompt_lengths: np.ndarray
    target_lengths: np.ndarray
    x_starts: np.ndarray
    x_lengths: np.ndarray
    row_hash: np.ndarray
    prompt_index: np.ndarray
    unknown_rows: int
    notes: tuple[str, ...] = ()
    row_numbers: np.ndarray | None = None
    too_long: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each z-free sequence."""
        return np.diff(self.offsets)

    @cached_property
    def target_offsets(self) -> np.ndarray:
        """(N + 1,) int64 offsets of each row's supervised tokens: the cache's `/offsets`."""
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.target_lengths, out=offsets[1:])
        return offsets

    def y_ids(self, row: int) -> list[int]:
        """Token ids of a row's y, without its closing tag."""
        first = self.offsets[row] + self.prompt_lengths[row] + 1
        closing_tag = first + self.target_lengths[row] - 1
        ids: list[int] = self.ids[first:closing_tag].tolist()
        return ids

    def prompt_ids(self, row: int) -> list[int]:
        """Token ids of a row's prompt, up to y."""
        first = self.offsets[row]
        ids: list[int] = self.ids[first : first + self.prompt_lengths[row] + 1].tolist()
        return ids

    def number(self, row: int) -> int:
        """A row's number in the data."""
        if self.row_numbers is None:
            return int(row)
        return int(self.row_numbers[row])

    def spread_rows(self, count: int) -> np.ndarray:
        """Evenly spaced row numbers, the first and the last included.

        Returns:
            (n,) int64, ascending, n being at most `count`.
        """
        count = min(count, len(self))
        return np.linspace(0, len(self) - 1, count).astype(int)

    def data_hash(self) -> str:
        """sha256 over all row hashes in order; it depends on x, y and the order of records, and on
        nothing else.
        """
        return hashlib.sha256(self.row_hash.tobytes()).hexdigest()


def numbered(keys: np.ndarray) -> np.ndarray:
    """(N,) int64: equal keys share a number, counted from 0 in order of first appearance."""
    first_N = first_of_equal(keys.view(np.uint8).reshape(-1, HASH.itemsize))
    new_N = first_N == np.arange(len(first_N), dtype=first_N.dtype)
    number_N: np.ndarray = np.cumsum(new_N) - 1  # of the rows that are the first of their kind
    of_first_N: np.ndarray = number_N[first_N]
    return of_first_N


def row_hash(x_ids: bytes, y_ids: bytes) -> bytes:
    """`HASH`: 16 bytes over a row's x and y ids; the length of x distinguishes ("ab", "c") from
    ("a", "bc").
    """
    return hashlib.blake2b(
        len(x_ids).to_bytes(8, "little") + x_ids + y_ids, digest_size=HASH.itemsize
    ).digest()
