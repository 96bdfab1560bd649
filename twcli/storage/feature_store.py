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
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from operator import index
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from twcli.errors import UserError, WorkFailed, first_difference
from twcli.storage.cache import REPORTED
from twcli.storage.cache_format import (
    BLOCK,
    COLUMNS,
    FINGERPRINT_BYTES,
    SIGNATURE,
    TRAILER,
    Column,
    Sink,
    Source,
    may_be_replaced,
    open_file,
    to_json,
    trailer_problem,
)
from twcli.storage.durable import write_all
from twcli.storage.shards import Shards, check_place, named, reporting

FEATURES_VERSION = 1
HALF = np.dtype("<f2")
CHUNK_BYTES = 1 << 19  # at most, unless one row has more; the first read of a row reads one chunk
MOST_VALUES = 1 << 24  # a row; HDF5 wants chunks below 4 GiB
ANEW = "delete the file or give --overwrite"

Layout = tuple[np.dtype[Any], tuple[int, ...], int]  # as in `cache_format.COLUMNS`


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
        self.path, self.shard_rows, self.overwrite = Path(path), shard_rows, overwrite
        self.row_hash = np.ascontiguousarray(row_hash)
        self.widths = None if widths is None else _checked_widths(widths)
        self.notes: list[str] = []
        self._fingerprint = to_json(fingerprint)
        self._published = False
        self._check_arguments()
        check_place(self.path)
        if self.path.exists():
            if not may_be_replaced(str(self.path)) or _holds_b_t(str(self.path)):
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
        self._check_rows(rows)
        values = {name: np.asarray(array) for name, array in values.items()}
        widths = self.widths or _checked_widths(
            {name: array.shape[-1] if array.ndim else 0 for name, array in values.items()}
        )
        if set(values) != set(widths):
            raise ValueError(f"the features are {sorted(widths)}, not {sorted(values)}")
        half = np.empty((len(rows), sum(widths.values())), HALF)
        for name, columns in _columns(widths).items():
            array, wanted = values[name], (len(rows), widths[name])
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
            _write_file(handle, self._fingerprint, self.row_hash, self.widths, self._shards())
        self._published = True

    def _check_arguments(self) -> None:
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
        with FeatureStore(self.path) as store:
            store.check(fingerprint, self.row_hash)
            problems = store.verify()
        state = problems[0] if problems else "already complete"
        raise UserError(f"{self.path}: {state}; {ANEW} to start over")

    def _header(self) -> dict[str, Any]:
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

    def _check_rows(self, rows: range) -> None:
        inside = rows.step == 1 and 0 <= rows.start < rows.stop <= len(self.row_hash)
        if not inside or any(
            rows.start < done.stop and done.start < rows.stop for done in self._shard_folder.done
        ):
            raise ValueError(f"{rows} is not a range of missing rows")

    def _check_finite(
        self,
        rows: range,
        half: np.ndarray,
        values: dict[str, np.ndarray],
        widths: dict[str, int],
    ) -> None:
        wrong = np.flatnonzero(~np.isfinite(half).all(axis=1))
        if not len(wrong):
            return
        place = int(wrong[0])
        column = int(np.flatnonzero(~np.isfinite(half[place]))[0])
        name, columns = next(item for item in _columns(widths).items() if column < item[1].stop)
        value = values[name][place, column - columns.start]
        why = (
            f"beyond what float16 holds ({np.finfo(HALF).max:.0f})"
            if np.isfinite(value)
            else "the model is broken or its precision too low"
        )
        row = rows[place]
        raise WorkFailed(
            f"{self.path}: row {row} (line {row + 1} of the data): value {column - columns.start} "
            f"of {name} is {value:.4g}: {why}"
        )

    def _shards(self) -> Iterator[np.ndarray]:
        """(rows, D) float16 of every shard, in order."""
        assert self.widths is not None
        begin, width = _first_line(self.widths), sum(self.widths.values())
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
            source = opened.enter_context(_open_source(self.path))
            try:
                # No chunk cache: HDF5 reads every chunk only once, to check its sum.
                file = opened.enter_context(h5py.File(source, "r", rdcc_nbytes=0))
                self.fingerprint, self.widths = _read_attributes(file)
                layouts = _layouts(self.widths)
                self._columns = {
                    name: _Column(name, dataset, source, self.path, layouts[name])
                    for name, dataset in _datasets(file, layouts, source.size).items()
                }
            except Exception as error:
                # h5py raises many types of errors on a damaged or malicious file
                raise UserError(
                    f"{self.path}: is not an intact feature file: {_reason(error)}; {ANEW}"
                ) from None
            self.rows: int = self._columns["row_hash"].length
            self._source: Source | None = source
            self._opened = opened.pop_all()

    def check(self, fingerprint: dict[str, Any], row_hash: np.ndarray) -> None:
        """Raises UserError unless the features were computed from this fingerprint and these rows.

        Args:
            fingerprint: of this call; the first field that differs is named, nested by dots.
            row_hash: (N, 16) uint8; the first line (from 1) that differs is named.
        """
        different = first_difference(self.fingerprint, json.loads(to_json(fingerprint)))
        row = self._first_other_row(row_hash)
        where = "" if row is None else f"; the first row that differs is line {row + 1} of the data"
        if different:
            name, stored, wanted = different
            raise UserError(
                f"{self.path}: made with another {name}: the file has {stored}, "
                f"this call has {wanted}{where}; {ANEW}"
            )
        if len(row_hash) != self.rows:
            raise UserError(
                f"{self.path}: made from {self.rows} rows, the data have {len(row_hash)}{where}; "
                f"{ANEW}"
            )
        if where:
            raise UserError(f"{self.path}: made from other data{where}; {ANEW}")

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
        return {
            name: (half[:, columns] if in_order else half[back, columns]).astype(np.float32)
            for name, columns in _columns(self.widths).items()
        }

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
        damaged = [line for column in self._columns.values() for line in column.damaged()]
        more = len(damaged) - REPORTED
        return (
            ([problem] if problem else [])
            + damaged[:REPORTED]
            + ([f"and {more} more damaged places"] if more > 0 else [])
        )

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
        if self._source is None:
            raise ValueError(f"{self.path}: the store is closed")
        return self._source

    def _first_other_row(self, row_hash: np.ndarray) -> int | None:
        self._check_open()
        common = min(self.rows, len(row_hash))
        for start in range(0, common, BLOCK):
            stop = min(start + BLOCK, common)
            stored = self._columns["row_hash"].block(start, stop)
            other = np.flatnonzero((stored != row_hash[start:stop]).any(axis=1))
            if len(other):
                return start + int(other[0])
        return None


class _Column(Column):
    """A column of any layout, not only of the layouts in the cache of b_t."""

    def __init__(
        self, name: str, dataset: h5py.Dataset, source: Source, path: str, layout: Layout
    ) -> None:
        self.name, self.path, self._dataset, self._source = name, path, dataset, source
        self.dtype, self.width, self.chunk = layout
        self.length = dataset.shape[0]
        self._item = self.dtype.itemsize * math.prod(self.width)
        self._addresses = self._find_chunks()
        self.touched = np.zeros(len(self._addresses), bool)

    def _touch(self, chunks: np.ndarray) -> None:
        for chunk in np.unique(chunks[~self.touched[chunks]]).tolist():
            if not self._intact(chunk):
                raise UserError(f"{self.path}: {self._damage(chunk)}; {ANEW}")
            self.touched[chunk] = True


def _layouts(widths: dict[str, int]) -> dict[str, Layout]:
    """Dtype, shape of one row and rows a chunk of both datasets."""
    width = sum(widths.values())
    return {
        "row_hash": COLUMNS["row_hash"],
        "values": (HALF, (width,), max(1, CHUNK_BYTES // (HALF.itemsize * width))),
    }


def _columns(widths: dict[str, int]) -> dict[str, slice]:
    """The columns of each feature."""
    columns, reached = {}, 0
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
    return Shards(path, header, rows, what="feature file", suffix=".f16")


def _holds_b_t(path: str) -> bool:
    """Whether the file is an intact cache of b_t, which took hours to make and must not be replaced
    by features.
    """
    with suppress(UserError):
        open_file(path).close()
        return True
    return False


def _write_file(
    handle: int,
    fingerprint: bytes,
    row_hash: np.ndarray,
    widths: dict[str, int],
    shards: Iterable[np.ndarray],
) -> None:
    """Writes a complete feature file to the empty file `handle`, which is closed, and syncs it.

    Args:
        row_hash: (N, 16) uint8.
        shards: (rows, D) float16, in order; one is in memory at a time.

    Raises:
        OSError: the original error of the disk.
    """
    with Sink(handle) as sink:
        # v110: its metadata carries checksums, so damage there is an error and not a crash or a
        # wrong shape.
        try:
            with h5py.File(sink, "w", libver=("v110", "v110")) as file:
                _fill(file, sink, fingerprint, row_hash, widths, shards)
        finally:
            if sink.error:
                raise sink.error
        end = os.fstat(handle).st_size
        write_all(handle, TRAILER % sink.sha256(end), end)
        os.fsync(handle)


def _fill(
    file: h5py.File,
    sink: Sink,
    fingerprint: bytes,
    row_hash: np.ndarray,
    widths: dict[str, int],
    shards: Iterable[np.ndarray],
) -> None:
    for name, (dtype, width, chunk) in _layouts(widths).items():
        file.create_dataset(
            name,
            (len(row_hash), *width),
            dtype,
            chunks=(chunk, *width),
            maxshape=(None, *width),
            fletcher32=True,
        )
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
            filled, start = filled + count, start + count
            if filled == len(chunk):
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]


def _open_source(path: str) -> Source:
    try:
        # Non-blocking: the path may be a pipe that nobody writes to.
        source = Source(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot open the features: {_reason(error)}") from None
    regular = stat.S_ISREG(os.fstat(source.handle).st_mode)
    if not regular or os.pread(source.handle, len(SIGNATURE), 0) != SIGNATURE:
        source.close()
        raise UserError(f"{path}: is not an HDF5 file, so not a feature file; {ANEW}")
    return source


def _reason(error: Exception) -> str:
    """The error as one line of bounded length."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_attributes(file: h5py.File) -> tuple[dict[str, Any], dict[str, int]]:
    version = _attribute(file, "features_version", "iu", 8)
    if version != FEATURES_VERSION:
        raise ValueError(f"it has features version {version}, this twcli reads {FEATURES_VERSION}")
    fingerprint, stored = (_json_attribute(file, name) for name in ("fingerprint", "widths"))
    to_json(fingerprint)  # refuses NaN, and JSON that is too long in our own formatting
    widths = _checked_widths(stored)
    if list(widths) != list(stored):
        raise ValueError("its widths are not in the order of their names")
    return fingerprint, widths


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_attribute(file, name, "S", FINGERPRINT_BYTES))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"its attribute {name} is not a JSON object")
    return value


def _attribute(file: h5py.File, name: str, kinds: str, limit: int) -> Any:
    """A scalar attribute; refused before reading unless it has a fixed size of at most `limit`
    bytes.
    """
    if name not in file.attrs:
        raise ValueError(f"it has no attribute {name}")
    attribute = file.attrs.get_id(name)
    plain = attribute.dtype.kind in kinds and attribute.shape == ()
    if not plain or attribute.dtype.itemsize > limit:
        raise ValueError(f"its attribute {name} has the wrong type or size")
    return file.attrs[name]


def _datasets(file: h5py.File, layouts: dict[str, Layout], size: int) -> dict[str, h5py.Dataset]:
    names = set(islice(file, len(layouts) + 1))
    strange, absent = names - set(layouts), set(layouts) - names
    if strange:
        raise ValueError(f"it holds /{min(strange)}, which is not part of a feature file")
    if absent:
        raise ValueError(f"it has no /{min(absent)}")
    datasets = {name: _plain_dataset(file, name, layout) for name, layout in layouts.items()}
    shapes = {name: dataset.shape for name, dataset in datasets.items()}
    if not 0 < shapes["row_hash"][0] == shapes["values"][0]:
        raise ValueError(f"its shapes do not fit together: {shapes}")
    # Nothing is compressed, so the file must be at least as large as the declared data. This check
    # bounds every later allocation.
    if sum(layouts[name][0].itemsize * math.prod(shape) for name, shape in shapes.items()) > size:
        raise ValueError("it declares more data than the file has bytes")
    return datasets


def _plain_dataset(file: h5py.File, name: str, layout: Layout) -> h5py.Dataset:
    """The dataset, if its data are surely in this file: some links and layouts silently read other
    files.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"/{name} is a link to somewhere else")
    if file.get(name, getclass=True) is not h5py.Dataset:
        raise ValueError(f"/{name} is not a dataset")
    dataset = file[name]
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    dtype, width, chunk = layout
    if settings.get_layout() != h5py.h5d.CHUNKED or filters != [h5py.h5z.FILTER_FLETCHER32]:
        raise ValueError(f"/{name} is not stored in plain chunks with checksums")
    if dataset.dtype != dtype or dataset.shape[1:] != width or dataset.chunks != (chunk, *width):
        raise ValueError(f"/{name} has the wrong type or shape: {dataset.dtype} {dataset.shape}")
    return dataset
