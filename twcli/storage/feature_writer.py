"""Writes a file of features, in parts that survive kills: until all are there, finished shards are
next to the file (`shards`), each a line of JSON with the widths, then the values of its rows as in
the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from twcli.errors import UserError, WorkFailed
from twcli.storage.cache_format import open_file
from twcli.storage.feature_format import (
    FEATURES,
    FEATURES_VERSION,
    HALF,
    checked_widths,
    columns_of,
    fill,
)
from twcli.storage.feature_store import FeatureStore
from twcli.storage.hdf5 import FINGERPRINT_BYTES, may_be_replaced, to_json, write_hdf5
from twcli.storage.shards import Shards, check_place, named, reporting
from twcli.storage.writing import check_complete, check_rows, header_of, is_intact, open_empty


class FeatureWriter:
    """Writes one feature file, shard by shard. After a kill at any moment, the next writer resumes.
    A context manager, which holds the lock.

    Args:
        path: the file to write; its folder must exist. `<path>.lock` and `<path>.parts/` are next
            to it meanwhile.
        fingerprint: JSON-ready dict of everything that the features depend on.
        row_hash: (N, 16) uint8.
        widths: values per feature; None takes them from existing shards, or else from the first
            `write`.
        shard_rows: rows per shard; a kill loses at most the shard in progress.
        overwrite: replaces the feature file at `path` when the new one is complete; finished shards
            of the same features are kept.

    Attributes:
        notes: messages about shards of an earlier run; filled on entering.
        widths: values per feature, by name; None until they are known.

    Raises:
        UserError: N is 0, the place is not writable, `path` holds something other than a feature
            file, or it holds one and `overwrite` is off; on entering also if another process is
            writing.
        WorkFailed: the disk is full.
        ValueError: an argument has the wrong shape, type or size.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: dict[str, Any],
        row_hash: np.ndarray,
        widths: dict[str, int] | None = None,
        shard_rows: int = 1024,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.shard_rows = shard_rows
        self.overwrite = overwrite
        self.row_hash = np.ascontiguousarray(row_hash)
        self.widths = None if widths is None else checked_widths(widths)
        self.notes: list[str] = []
        self._fingerprint = to_json(fingerprint)
        self._published = False
        check_rows(self.path, self.row_hash, shard_rows, "compute features of")
        check_place(self.path)
        if self.path.exists():
            name = str(self.path)
            if not may_be_replaced(name, FEATURES) or _holds_b_t(name):
                raise UserError(f"{self.path}: is not a feature file; name another one")
            if not overwrite:
                self._refuse_existing(fingerprint)
        version = {"features_version": FEATURES_VERSION}
        header = header_of(version, self._fingerprint, self.row_hash)
        self._shard_folder = _shard_folder(self.path, header, len(self.row_hash))

    @classmethod
    def already_complete(
        cls, path: str | Path, fingerprint: dict[str, Any], row_hash: np.ndarray
    ) -> bool:
        """Whether `path` holds an intact feature file with this fingerprint and these rows; if so,
        the whole file was verified.

        Args:
            row_hash: (N, 16) uint8.
        """
        try:
            with FeatureStore(path) as store:
                intact = is_intact(store, fingerprint, row_hash)
        except UserError:
            return False
        if intact:
            _shard_folder(Path(path), {}, 0).remove_if_idle()
        return intact

    def __enter__(self) -> FeatureWriter:
        self._shard_folder.open()
        try:
            self.notes += self._shard_folder.notes()
            with reporting(self.path, "write there"):
                fits = self._take_widths()
                if not fits:
                    self._shard_folder.remove()
        except BaseException:
            self._shard_folder.close()
            raise
        if not fits:
            # outside of `try`: `close` removes files, so only the holder of the lock may call it
            self._shard_folder.close()
            self._shard_folder.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._shard_folder.close()

    @property
    def missing(self) -> list[range]:
        """Row ranges of at most `shard_rows` that are still to be written, ascending."""
        if self._published:
            return []
        return self._shard_folder.missing(self.shard_rows)

    def write(self, rows: range, values: dict[str, np.ndarray]) -> None:
        """Stores the features of `rows` durably.

        Args:
            rows: consecutive rows, none of them stored yet.
            values: (len(rows), width) of any float dtype for each feature; rounded to float16.

        Raises:
            WorkFailed: a value is not finite or beyond float16, or the disk is full.
            ValueError: the rows, the names, a shape or a dtype is wrong.
        """
        self._shard_folder.check_missing(rows)
        values = {name: np.asarray(array) for name, array in values.items()}
        widths = self.widths or checked_widths(
            {name: array.shape[-1] if array.ndim else 0 for name, array in values.items()}
        )
        if set(values) != set(widths):
            raise ValueError(f"the features are {sorted(widths)}, not {sorted(values)}")
        half = np.empty((len(rows), sum(widths.values())), HALF)
        for name, columns in columns_of(widths).items():
            array = values[name]
            wanted = (len(rows), widths[name])
            if array.shape != wanted or not np.issubdtype(array.dtype, np.floating):
                raise ValueError(
                    f"{named(rows)}: {name} must be floats of shape {wanted}, "
                    f"not {array.dtype} {array.shape}"
                )
            with np.errstate(all="ignore"):  # values that do not fit are reported below
                half[:, columns] = array
        self._check_finite(rows, half, values, widths)
        with reporting(self.path, f"store {named(rows)}"):
            self._shard_folder.add(rows, b"".join([_first_line(widths), half.view(np.uint8).data]))
        self.widths = widths

    def publish(self) -> None:
        """Writes the complete file to `path` and removes the shards; memory holds a few shards,
        however large N is.

        Raises:
            WorkFailed: the disk is full, or a shard is no longer what was written.
            ValueError: rows are missing.
        """
        check_complete(self.missing)
        assert self.widths is not None  # there is at least one shard
        with self._shard_folder.publishing("write the features") as temp:
            handle = open_empty(temp)
            widths = self.widths
            shards = self._shards()
            write_hdf5(
                handle,
                lambda file, sink: fill(
                    file, sink, self._fingerprint, self.row_hash, widths, shards
                ),
            )
        self._published = True

    def _refuse_existing(self, fingerprint: dict[str, Any]) -> None:
        """Raises UserError that says what is at the path already."""
        with FeatureStore(self.path) as store:
            store.check(fingerprint, self.row_hash)
            problems = store.verify()
        state = problems[0] if problems else "already complete"
        raise UserError(f"{self.path}: {state}; {FEATURES.remedy} to start over")

    def _take_widths(self) -> bool:
        """Takes the widths from the finished shards; False, with a note, if they differ from the
        caller's.
        """
        if not self._shard_folder.done:
            return True
        found = _widths_of_shard(next(self._shard_folder.all()))
        if found is not None and self.widths in (None, found):
            self.widths = found
            return True
        self.notes.append(
            f"{self._shard_folder.folder}: an unfinished feature file was discarded: its features "
            "have other names or widths"
        )
        return False

    def _check_finite(
        self,
        rows: range,
        half: np.ndarray,
        values: dict[str, np.ndarray],
        widths: dict[str, int],
    ) -> None:
        """Raises WorkFailed that names the first value that float16 does not hold.

        Args:
            half: (rows, columns) float16, as it would be stored.
            values: the same by name, before rounding.
            widths: columns of each name.
        """
        wrong = np.flatnonzero(~np.isfinite(half).all(axis=1))
        if not len(wrong):
            return
        place = int(wrong[0])
        column = int(np.flatnonzero(~np.isfinite(half[place]))[0])
        name, columns = next(item for item in columns_of(widths).items() if column < item[1].stop)
        value = values[name][place, column - columns.start]
        if np.isfinite(value):
            why = f"beyond what float16 holds ({np.finfo(HALF).max:.0f})"
        else:
            why = "the model is broken or its precision too low"
        row = rows[place]
        raise WorkFailed(
            f"{self.path}: row {row} (line {row + 1} of the data): value {column - columns.start} "
            f"of {name} is {value:.4g}: {why}"
        )

    def _shards(self) -> Iterator[np.ndarray]:
        """(rows, D) float16 of every shard, in order."""
        assert self.widths is not None
        begin = _first_line(self.widths)
        width = sum(self.widths.values())
        for rows, data in zip(self._shard_folder.done, self._shard_folder.all(), strict=True):
            size = len(begin) + HALF.itemsize * len(rows) * width
            if not data.startswith(begin) or len(data) != size:
                raise WorkFailed(
                    f"{self._shard_folder.folder}: the finished shard of {named(rows)} holds other "
                    "features; delete the folder"
                )
            yield np.frombuffer(data, HALF, offset=len(begin)).reshape(len(rows), width)


def _first_line(widths: dict[str, int]) -> bytes:
    """The first line of a shard: the columns of each name as JSON, so that a shard says what it
    holds.
    """
    return to_json(widths) + b"\n"


def _widths_of_shard(data: bytes) -> dict[str, int] | None:
    """None if the shard does not begin with a line of widths."""
    line = data[: FINGERPRINT_BYTES + 1].partition(b"\n")[0]
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and to_json(widths := checked_widths(found)) == line:
            return widths
    return None


def _shard_folder(path: Path, header: dict[str, Any], rows: int) -> Shards:
    """The folder in which parts lie until all are there."""
    return Shards(path, header, rows, what="feature file", suffix=".f16")


def _holds_b_t(path: str) -> bool:
    """Whether the file is an intact cache of b_t, which took hours to make and must not be replaced
    by features.
    """
    with suppress(UserError):
        open_file(path).close()
        return True
    return False
