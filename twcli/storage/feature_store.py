"""Features of each record, computed once with the frozen model and stored. `twcli discover` writes
them, so that a call with another number of latents or another seed takes seconds.

    with FeatureWriter("F.h5", fingerprint=..., row_hash=...) as writer:
        for rows in writer.missing:
            writer.write(rows, {"last": ..., "mean": ...})
        writer.publish()
    store = FeatureStore("F.h5")
    values = store.read(np.array([17, 3, 42]))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from twcli.storage.feature_format import FEATURES, columns_of, layouts_of, read_attributes
from twcli.storage.hdf5 import (
    Column,
    Source,
    check_made_from,
    damaged_places,
    not_intact,
    open_datasets,
    open_source,
    trailer_problem,
)


class FeatureStore:
    """A feature file for reading; every byte is checked before it is used. A context manager.

    Opening checks the structure; a chunk's checksum is checked when it is first read from;
    `verify` checks everything.

    Attributes:
        path: the file.
        fingerprint: what the features were computed from.
        rows: N.
        widths: values of each feature, by name, in the order of the columns.

    Raises:
        UserError: not a regular file, not a feature file, damaged, of another format, or its data
            are stored elsewhere.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        with ExitStack() as opened:
            source = opened.enter_context(open_source(self.path, FEATURES))
            try:
                # No chunk cache: HDF5 reads every chunk only once, to check its sum.
                file = opened.enter_context(h5py.File(source, "r", rdcc_nbytes=0))
                self.fingerprint, self.widths = read_attributes(file)
                layouts = layouts_of(self.widths)
                datasets = open_datasets(
                    file,
                    layouts,
                    source.size,
                    FEATURES,
                    lambda lengths: lengths["row_hash"] == lengths["values"],
                )
                self._columns = {
                    name: Column(name, dataset, source, self.path, layouts[name], FEATURES)
                    for name, dataset in datasets.items()
                }
            except Exception as error:
                # h5py raises many types of errors on a damaged or malicious file
                raise not_intact(self.path, error, FEATURES) from None
            self.rows: int = self._columns["row_hash"].length
            self._source: Source | None = source
            self._opened = opened.pop_all()

    def check(self, fingerprint: dict[str, Any], row_hash: np.ndarray) -> None:
        """Raises UserError unless the features were computed from this fingerprint and these rows.

        Args:
            fingerprint: of this call; the first field that differs is named, nested by dots.
            row_hash: (N, 16) uint8; the first line (from 1) that differs is named.
        """
        self._check_open()
        check_made_from(
            self.path,
            "file",
            self.fingerprint,
            self._columns["row_hash"],
            fingerprint,
            row_hash,
            f"; {FEATURES.remedy}",
        )

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The features of `rows` (B,) int64, which may be in any order and repeated.

        Returns:
            (B, width) float32 for each feature, in the order given. Memory grows with B alone.

        Raises:
            IndexError: a row does not exist.
            UserError: a checksum does not match, or the file was cut short.
            ValueError: the store is closed.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"{self.path}: rows must lie in 0 to {self.rows - 1}")
        ordered, back = np.unique(rows, return_inverse=True)
        # adjacent rows are read in one piece
        first = np.flatnonzero(np.diff(ordered, prepend=-2) != 1)
        counts = np.diff(first, append=len(ordered))
        self._check_open()
        half = self._columns["values"].gather(ordered[first], counts)
        in_order = np.array_equal(rows, ordered)
        values = {}
        for name, columns in columns_of(self.widths).items():
            if in_order:
                found = half[:, columns]
            else:
                found = half[back, columns]
            values[name] = found.astype(np.float32)
        return values

    def blocks(self, size: int) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """All rows in order, `size` at a time.

        Yields:
            The rows, and what `read` gives of them: (R, width) float32 of each feature.

        Raises:
            UserError, ValueError: as `read`.
        """
        for start in range(0, self.rows, size):
            rows = range(start, min(start + size, self.rows))
            yield rows, self.read(np.arange(rows.start, rows.stop))

    def verify(self) -> list[str]:
        """Reads all of the file and checks every checksum.

        Returns:
            One line per problem; empty if every bit is as it was published.

        Raises:
            ValueError: the store is closed.
        """
        problem = trailer_problem(self._check_open())
        damaged = damaged_places(self._columns.values())
        if problem:
            return [problem, *damaged]
        return damaged

    def close(self) -> None:
        """Closes the file; later calls raise ValueError."""
        self._source = None
        self._opened.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> Source:
        # The operating system may have given the closed handle's number to another file.
        """The open file; raises ValueError where it was closed."""
        if self._source is None:
            raise ValueError(f"{self.path}: the store is closed")
        return self._source
