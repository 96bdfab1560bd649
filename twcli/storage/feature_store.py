"""Features of each record, computed once with the frozen model and stored. `twcli discover` writes
them, so that a call with another number of latents or another seed takes seconds.

    with FeatureWriter("F.h5", fingerprint=..., row_hash=...) as writer:
        for rows in writer.missing:
            writer.write(rows, {"last": ..., "mean": ...})
        writer.publish()
    store = FeatureStore("F.h5")
    values = store.read(np.array([17, 3, 42]))

An HDF5 file of N rows, with D values each; both datasets are chunked, uncompressed and have the
fletcher32 filter:

    /values    (N, D) float16     the features of a row side by side, in the order of `widths`
    /row_hash  (N, 16) uint8      content hash of the row
    attributes `features_version` (int), `fingerprint` (JSON), `widths` (JSON: values a feature)

The last line is as in the cache of b_t: the sha256 of everything before it. While the file is
written, finished shards are next to it (`shards.py`): a line of JSON with the widths, then the
values of their rows as in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from operator import index
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from twcli.errors import UserError, WorkFailed
from twcli.storage.cache_format import open_file
from twcli.storage.hdf5 import (
    BLOCK,
    FINGERPRINT_BYTES,
    ROW_HASH,
    Column,
    Kind,
    Layout,
    Sink,
    Source,
    check_made_from,
    create_datasets,
    damaged_places,
    json_attribute,
    may_be_replaced,
    not_intact,
    open_datasets,
    open_source,
    read_attribute,
    to_json,
    trailer_problem,
    write_hdf5,
)
from twcli.storage.shards import Shards, check_place, named, reporting

FEATURES_VERSION = 1
HALF = np.dtype("<f2")
CHUNK_BYTES = 1 << 19  # at most, unless one row has more; the first read of a row reads one chunk
MOST_VALUES = 1 << 24  # a row; HDF5 wants chunks below 4 GiB
FEATURES = Kind("feature file", "delete the file or give --overwrite")


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
        self.widths = None if widths is None else _checked_widths(widths)
        self.notes: list[str] = []
        self._fingerprint = to_json(fingerprint)
        self._published = False
        self._check_arguments()
        check_place(self.path)
        if self.path.exists():
            if not may_be_replaced(str(self.path), FEATURES) or _holds_b_t(str(self.path)):
                raise UserError(f"{self.path}: is not a feature file; name another one")
            if not overwrite:
                self._refuse_existing(fingerprint)
        self._shard_folder = _shard_folder(self.path, self._header(), len(self.row_hash))

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
                store.check(fingerprint, row_hash)
                intact = not store.verify()
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
        return [] if self._published else self._shard_folder.missing(self.shard_rows)

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
        widths = self.widths or _checked_widths(
            {name: array.shape[-1] if array.ndim else 0 for name, array in values.items()}
        )
        if set(values) != set(widths):
            raise ValueError(f"the features are {sorted(widths)}, not {sorted(values)}")
        half = np.empty((len(rows), sum(widths.values())), HALF)
        for name, columns in _columns(widths).items():
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
        if self.missing:
            raise ValueError(f"{named(self.missing[0])} are missing")
        assert self.widths is not None  # there is at least one shard
        with self._shard_folder.publishing("write the features") as temp:
            handle = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            widths = self.widths
            shards = self._shards()
            write_hdf5(
                handle,
                lambda file, sink: _fill(
                    file, sink, self._fingerprint, self.row_hash, widths, shards
                ),
            )
        self._published = True

    def _check_arguments(self) -> None:
        """Raises UserError without rows, ValueError for arrays of the wrong shape."""
        row_hash = self.row_hash
        if len(row_hash) == 0:
            raise UserError(f"{self.path}: there are no rows to compute features of")
        if row_hash.dtype != np.uint8 or row_hash.shape != (len(row_hash), 16):
            raise ValueError(
                f"row_hash must be (N, 16) uint8, not {row_hash.shape} {row_hash.dtype}"
            )
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, not {self.shard_rows}")

    def _refuse_existing(self, fingerprint: dict[str, Any]) -> None:
        """Raises UserError that says what is at the path already."""
        with FeatureStore(self.path) as store:
            store.check(fingerprint, self.row_hash)
            problems = store.verify()
        state = problems[0] if problems else "already complete"
        raise UserError(f"{self.path}: {state}; {FEATURES.remedy} to start over")

    def _header(self) -> dict[str, Any]:
        """What shards of the same features have in common: a resumed call must have the same."""
        key = hashlib.sha256(self._fingerprint)
        key.update(self.row_hash.data)
        return {
            "features_version": FEATURES_VERSION,
            "key": key.hexdigest(),
            "fingerprint": json.loads(self._fingerprint),
        }

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
        name, columns = next(item for item in _columns(widths).items() if column < item[1].stop)
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
                self.fingerprint, self.widths = _read_attributes(file)
                layouts = _layouts(self.widths)
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
        for name, columns in _columns(self.widths).items():
            found = half[:, columns] if in_order else half[back, columns]
            values[name] = found.astype(np.float32)
        return values

    def blocks(self, size: int) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """All rows in order, `size` at a time: the rows, then what `read` gives of them.

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
        return ([problem] if problem else []) + damaged_places(self._columns.values())

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


def _layouts(widths: dict[str, int]) -> dict[str, Layout]:
    """Dtype, shape of one row and rows a chunk of both datasets."""
    width = sum(widths.values())
    return {
        "row_hash": ROW_HASH,
        "values": (HALF, (width,), max(1, CHUNK_BYTES // (HALF.itemsize * width))),
    }


def _columns(widths: dict[str, int]) -> dict[str, slice]:
    """The columns of each feature."""
    columns = {}
    reached = 0
    for name, width in widths.items():
        columns[name] = slice(reached, reached + width)
        reached += width
    return columns


def _checked_widths(widths: dict[str, int]) -> dict[str, int]:
    """The widths sorted by name, since JSON objects and callers may have any order. Raises
    ValueError.
    """
    try:
        widths = {name: int(index(widths[name])) for name in sorted(widths)}
        to_json(widths)
    except TypeError:
        raise ValueError("the widths must be whole numbers with names") from None
    if not all(isinstance(name, str) for name in widths):
        raise ValueError("the features must have names")
    if min(widths.values(), default=0) < 1 or sum(widths.values()) > MOST_VALUES:
        raise ValueError(
            f"each feature has at least one value, all together at most {MOST_VALUES}: {widths}"
        )
    return widths


def _first_line(widths: dict[str, int]) -> bytes:
    """The first line of a shard: the columns of each name."""
    return to_json(widths) + b"\n"


def _widths_of_shard(data: bytes) -> dict[str, int] | None:
    """None if the shard does not begin with a line of widths."""
    line = data[: FINGERPRINT_BYTES + 1].partition(b"\n")[0]
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and to_json(widths := _checked_widths(found)) == line:
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


def _fill(
    file: h5py.File,
    sink: Sink,
    fingerprint: bytes,
    row_hash: np.ndarray,
    widths: dict[str, int],
    shards: Iterable[np.ndarray],
) -> None:
    """Puts features into a file that `write_hdf5` has opened.

    Args:
        row_hash: (N, 16) uint8.
        shards: (rows, D) float16, in order; one is in memory at a time.
    """
    layouts = _layouts(widths)
    create_datasets(file, layouts, dict.fromkeys(layouts, len(row_hash)))
    for start in range(0, len(row_hash), BLOCK):
        file["row_hash"][start : start + BLOCK] = row_hash[start : start + BLOCK]
    reached = 0
    for piece in _whole_chunks(shards, np.empty(file["values"].chunks, HALF)):
        if sink.error:
            return
        file["values"][reached : reached + len(piece)] = piece
        reached += len(piece)
    file.attrs["features_version"] = FEATURES_VERSION
    file.attrs["fingerprint"] = np.bytes_(fingerprint)  # fixed size, checked before reading
    file.attrs["widths"] = np.bytes_(to_json(widths))


def _whole_chunks(shards: Iterable[np.ndarray], chunk: np.ndarray) -> Iterator[np.ndarray]:
    """The same rows, regrouped into whole chunks, in the buffer `chunk`: HDF5 would read back a
    partly written chunk, which is missing on a full disk.
    """
    filled = 0
    for shard in shards:
        start = 0
        while start < len(shard):
            count = min(len(chunk) - filled, len(shard) - start)
            chunk[filled : filled + count] = shard[start : start + count]
            filled += count
            start += count
            if filled == len(chunk):
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]


def _read_attributes(file: h5py.File) -> tuple[dict[str, Any], dict[str, int]]:
    """(fingerprint, columns of each name) of an open file.

    Raises:
        ValueError: another format version, or an attribute that no version writes.
    """
    version = read_attribute(file, "features_version", "iu", 8)
    if version != FEATURES_VERSION:
        raise ValueError(f"it has features version {version}, this twcli reads {FEATURES_VERSION}")
    fingerprint, stored = (json_attribute(file, name) for name in ("fingerprint", "widths"))
    to_json(fingerprint)  # refuses NaN, and JSON that is too long in our own formatting
    widths = _checked_widths(stored)
    if list(widths) != list(stored):
        raise ValueError("its widths are not in the order of their names")
    return fingerprint, widths
