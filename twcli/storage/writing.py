"""What the writer of a cache and the writer of features have in common: the checks of their
arguments, the header of their shards, and the file that they publish.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from twcli.errors import UserError
from twcli.storage.shards import named


class Reader(Protocol):
    """What is read of a finished file: a `Cache` or a `FeatureStore`."""

    def check(self, expected: dict[str, Any], row_hash: np.ndarray) -> None:
        """Raises UserError unless the file was made from exactly this."""

    def verify(self) -> list[str]:
        """One line for each problem; reads all of the file."""


def is_intact(reader: Reader, fingerprint: dict[str, Any], row_hash: np.ndarray) -> bool:
    """Whether the whole file is as it was written.

    Args:
        row_hash: (N, 16) uint8.

    Raises:
        UserError: it was made from something else.
    """
    reader.check(fingerprint, row_hash)
    return not reader.verify()


def check_rows(path: Path, row_hash: np.ndarray, shard_rows: int, purpose: str) -> None:
    """Checks what both writers are given.

    Args:
        row_hash: (N, 16) uint8.
        purpose: what the rows are for, to follow "there are no rows to".

    Raises:
        UserError: there are no rows.
        ValueError: `row_hash` has another shape or dtype, or `shard_rows` is below 1.
    """
    rows = len(row_hash)
    if rows == 0:
        raise UserError(f"{path}: there are no rows to {purpose}")
    if row_hash.dtype != np.uint8 or row_hash.shape != (rows, 16):
        raise ValueError(f"row_hash must be (N, 16) uint8, not {row_hash.shape} {row_hash.dtype}")
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, not {shard_rows}")


def header_of(version: dict[str, int], fingerprint: bytes, *arrays: np.ndarray) -> dict[str, Any]:
    """What a folder of shards must agree on to be continued: the format's version by its name, the
    fingerprint, and a key that also covers the rows.

    Args:
        arrays: (..) of the rows, such as their hashes.
    """
    key = hashlib.sha256(fingerprint)
    for array in arrays:
        key.update(array.data)
    return {**version, "key": key.hexdigest(), "fingerprint": json.loads(fingerprint)}


def check_complete(missing: list[range]) -> None:
    """Raises ValueError that names the first rows that are missing."""
    if missing:
        raise ValueError(f"{named(missing[0])} are missing")


def open_empty(path: Path) -> int:
    """A handle to the new, empty file at `path`, for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    return os.open(path, flags, 0o666)
