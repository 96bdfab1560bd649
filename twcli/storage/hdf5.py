"""HDF5 files on a disk that may fail: written whole, and checked wherever they are read.

Every dataset is chunked, uncompressed and has the fletcher32 filter. After the end of the HDF5 data
comes one line with the sha256 of everything before it, which HDF5 readers skip: HDF5's own
checksums leave gaps, and any flipped bit must be found.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import h5py
import numpy as np

from twcli.errors import UserError, first_difference
from twcli.storage.durable import write_all

Layout = tuple[np.dtype[Any], tuple[int, ...], int]  # dtype, shape of one entry, entries a chunk

ROW_HASH: Layout = (np.dtype("u1"), (16,), 4096)
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of HDF5
CHECKSUM_BYTES = 4  # fletcher32 lengthens each chunk by this
FINGERPRINT_BYTES = 32_000  # an HDF5 attribute in an object header holds at most 64 KiB
TRAILER = b"\ntwcli cache, sha256 of all bytes before this line: %s\n"
TRAILER_BYTES = len(TRAILER % (b"0" * 64))
BLOCK = 1 << 16  # entries per step, so that memory does not grow with the file
REPORTED = 20  # damaged places that `verify` names one by one


@dataclass(frozen=True)
class Kind:
    """How messages name a file.

    Attributes:
        word: what it is.
        remedy: what to do about a damaged one.
    """

    word: str
    remedy: str


def to_json(fingerprint: dict[str, Any]) -> bytes:
    """The fingerprint as it is stored. Raises ValueError if it is too large or not JSON."""
    text = json.dumps(fingerprint, allow_nan=False).encode()
    if len(text) > FINGERPRINT_BYTES:
        raise ValueError(f"the fingerprint takes {len(text)} bytes, more than {FINGERPRINT_BYTES}")
    return text


class Source(io.RawIOBase):
    """The file object that HDF5 reads from, by `pread`: no file locks, and no warning if it is
    dropped without `close`.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.position = 0
        self.size = os.fstat(handle).st_size

    def close(self) -> None:
        """Also closes the handle."""
        if not self.closed:
            os.close(self.handle)
        super().close()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Changes `position` only; the handle, which others may share, does not move."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}
        self.position = begin[whence] + offset
        return self.position

    def tell(self) -> int:
        """Position of the next read or write."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, with zeros beyond the end of the file."""
        view = memoryview(buffer).cast("B")
        view[:] = os.pread(self.handle, len(view), self.position).ljust(len(view), b"\0")
        self.position += len(view)
        return len(view)

    def sha256(self, size: int) -> bytes:
        """Hex sha256 of the first `size` bytes."""
        digest = hashlib.sha256()
        for start in range(0, size, 1 << 20):
            digest.update(os.pread(self.handle, min(1 << 20, size - start), start))
        return digest.hexdigest().encode()


class Sink(Source):
    """The file object that HDF5 writes to; it hides write errors from HDF5.

    On a full disk h5py raises an error without errno, cannot close the file and crashes the process
    at exit. So the first failure is kept in `error` for the caller, which stops soon after, and
    HDF5 sees only successful writes until it has closed its file. (It reads nothing back
    meanwhile.)
    """

    def __init__(self, handle: int) -> None:
        super().__init__(handle)
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Writes all bytes, or keeps the error."""
        start = self.position
        count = memoryview(data).nbytes
        self._attempt(lambda: write_all(self.handle, data, start))
        self.position += count
        self.size = max(self.size, self.position)
        return count

    def truncate(self, size: int | None = None) -> int:
        """Sets the size, or keeps the error."""
        self.size = self.position if size is None else size
        self._attempt(lambda: os.ftruncate(self.handle, self.size))
        return self.size

    def _attempt(self, action: Callable[[], None]) -> None:
        """Runs an action unless an earlier one failed, and keeps its error for later."""
        if self.error:
            return
        try:
            action()
        except BaseException as error:  # also delays an interrupt that arrives inside HDF5
            self.error = error


def write_hdf5(handle: int, fill: Callable[[h5py.File, Sink], None]) -> None:
    """Writes what `fill` puts into an HDF5 file and the checksum line to the empty file `handle`,
    which is closed, and syncs it. `fill` stops early if the sink has an error.

    Raises:
        OSError: the original error of the disk.
    """
    with Sink(handle) as sink:
        # v110: its metadata carries checksums, so damage there is an error and not a
        # crash or a wrong shape.
        try:
            with h5py.File(sink, "w", libver=("v110", "v110")) as file:
                fill(file, sink)
        finally:
            if sink.error:
                raise sink.error
        end = os.fstat(handle).st_size
        write_all(handle, TRAILER % sink.sha256(end), end)
        os.fsync(handle)


def create_datasets(file: h5py.File, layouts: dict[str, Layout], lengths: dict[str, int]) -> None:
    """Empty datasets of these layouts and numbers of entries, chunked and with checksums."""
    for name, (dtype, width, chunk) in layouts.items():
        file.create_dataset(
            name,
            (lengths[name], *width),
            dtype,
            chunks=(chunk, *width),
            maxshape=(None, *width),
            fletcher32=True,
        )


class Column:
    """One dataset, read without HDF5 once its chunks are known to be intact.

    A slice through HDF5 reads and sums the 64 KiB chunk around a row of some hundred bytes: 25 to
    45 us a row. The chunks are not compressed, so a row is a `pread` of 1 us at an address that
    HDF5 provides. HDF5 still reads each chunk at its first use, to check its fletcher32 sum. No
    memory map: a file that is cut short while in use would kill the process.

    Attributes:
        length: entries.
        touched: (chunks,) bool, which chunks were found intact.
    """

    def __init__(
        self,
        name: str,
        dataset: h5py.Dataset,
        source: Source,
        path: str,
        layout: Layout,
        kind: Kind,
    ) -> None:
        self.name = name
        self.path = path
        self._dataset = dataset
        self._source = source
        self.dtype, self.width, self.chunk = layout
        self.kind = kind
        self.length: int = dataset.shape[0]
        self._item = self.dtype.itemsize * math.prod(self.width)  # bytes an entry
        self._addresses = self._find_chunks()
        self.touched = np.zeros(len(self._addresses), bool)

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Several ranges of entries, concatenated.

        Args:
            starts, counts: (R,) the first entry of each range and how many it has; the ranges
                ascend and are disjoint.

        Returns:
            (sum of the counts, *width).

        Raises:
            UserError: a checksum does not match.
        """
        starts = starts[counts > 0]
        counts = counts[counts > 0]
        stops = starts + counts
        first = starts // self.chunk
        pieces = (stops - 1) // self.chunk - first + 1  # split each range at chunk borders
        run = np.repeat(np.arange(len(starts)), pieces)
        within_run = np.arange(len(run)) - (np.cumsum(pieces) - pieces)[run]
        chunk = first[run] + within_run
        chunk_start = chunk * self.chunk
        low = np.maximum(starts[run], chunk_start)
        high = np.minimum(stops[run], chunk_start + self.chunk)
        self._touch(chunk)
        addresses = self._addresses[chunk] + (low - chunk_start) * self._item
        return self._read(addresses, (high - low) * self._item)

    def block(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, *width): consecutive entries of the column."""
        return self.gather(np.array([start]), np.array([stop - start]))

    def blocks(self) -> Iterator[np.ndarray]:
        """All entries in order.

        Yields:
            (n, *width) with n at most `BLOCK`.
        """
        for start in range(0, self.length, BLOCK):
            yield self.block(start, min(start + BLOCK, self.length))

    def damaged(self) -> Iterator[str]:
        """Reads all chunks of the dataset.

        Yields:
            One line for each chunk whose checksum does not match.
        """
        chunks = len(self._addresses)
        for chunk in range(chunks):
            if not self._intact(chunk):
                yield self._damage(chunk)

    def _read(self, places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(sum of the sizes, *width) entries from the file, past HDF5.

        Args:
            places, sizes: (pieces,) bytes in the file where each piece begins, and how many it has.
        """
        ends = np.cumsum(sizes)
        data = np.empty(int(sizes.sum()), np.uint8)
        view = data.data
        handle = self._source.handle
        for place, begin, end in zip(
            places.tolist(), (ends - sizes).tolist(), ends.tolist(), strict=True
        ):
            if os.preadv(handle, [view[begin:end]], place) != end - begin:
                raise UserError(f"{self.path}: was cut short while in use")
        return data.view(self.dtype).reshape(-1, *self.width)

    def _touch(self, chunks: np.ndarray) -> None:
        """Has HDF5 verify the checksum of chunks that were not read before."""
        for chunk in np.unique(chunks[~self.touched[chunks]]).tolist():
            if not self._intact(chunk):
                raise UserError(f"{self.path}: {self._damage(chunk)}; {self.kind.remedy}")
            self.touched[chunk] = True

    def _intact(self, chunk: int) -> bool:
        """Whether the chunk's checksum is right."""
        try:
            self._dataset[chunk * self.chunk : (chunk + 1) * self.chunk]
        except OSError:
            return False
        return True

    def _damage(self, chunk: int) -> str:
        """Which entries a damaged chunk holds."""
        first = chunk * self.chunk
        last = min(first + self.chunk, self.length) - 1
        return f"/{self.name} is damaged in entries {first} to {last} (checksum)"

    def _find_chunks(self) -> np.ndarray:
        """(chunks,) int64 byte in the file at which each begins.

        Raises:
            ValueError: one is missing, has another size or no checksum.
        """
        addresses = np.full(-(-self.length // self.chunk), -1, np.int64)
        stored = self.chunk * self._item + CHECKSUM_BYTES

        def note(chunk: Any) -> None:
            if chunk.size != stored or chunk.filter_mask:
                raise ValueError(f"a chunk of /{self.name} has the wrong size or no checksum")
            first = chunk.chunk_offset[0]
            number = first // self.chunk
            addresses[number] = chunk.byte_offset

        if self.length:
            self._dataset.id.chunk_iter(note)
        if (addresses < 0).any() or (addresses > self._source.size - stored).any():
            raise ValueError(f"/{self.name} is not completely there")
        return addresses


def damaged_places(columns: Iterable[Column]) -> list[str]:
    """Reads all chunks and checks their checksums.

    Returns:
        One line for each that is damaged, at most `REPORTED` of them, then how many more there are.
    """
    damaged: list[str] = []
    for column in columns:
        damaged += column.damaged()
    more = len(damaged) - REPORTED
    if more <= 0:
        return damaged
    return [*damaged[:REPORTED], f"and {more} more damaged places"]


def trailer_problem(source: Source) -> str | None:
    """Reads the whole file: the problem with the checksum at its end, None if it matches. It also
    covers what HDF5's own checksums do not, the headers.
    """
    end = source.size - TRAILER_BYTES
    found = os.pread(source.handle, TRAILER_BYTES, max(end, 0))
    if found[:20] != TRAILER[:20]:
        return "its last line, the checksum of the file, is damaged or missing"
    if found != TRAILER % source.sha256(end):
        return (
            "the checksum of the whole file does not match: a byte has changed since it was written"
        )
    return None


def check_made_from(
    path: str,
    word: str,
    stored: dict[str, Any],
    hashes: Column,
    expected: dict[str, Any],
    row_hash: np.ndarray,
    remedy: str = "",
) -> None:
    """Raises UserError unless the file was made from exactly this.

    Args:
        word: what the message calls the file.
        stored: the file's fingerprint; `hashes` its /row_hash.
        expected: the fingerprint of this call; the first field that differs is named, nested by
            dots.
        row_hash: (N, 16) uint8; the first line (from 1) that differs is named.
        remedy: what to do, at the end of the message.
    """
    different = first_difference(stored, json.loads(to_json(expected)))
    row = _first_other_row(hashes, row_hash)
    if row is None:
        where = ""
    else:
        where = f"; the first row that differs is line {row + 1} of the data"
    if different:
        name, made, wanted = different
        raise UserError(
            f"{path}: made with another {name}: the {word} has {made}, "
            f"this call has {wanted}{where}{remedy}"
        )
    if len(row_hash) != hashes.length:
        raise UserError(
            f"{path}: made from {hashes.length} rows, the data have {len(row_hash)}{where}{remedy}"
        )
    if where:
        raise UserError(f"{path}: made from other data{where}{remedy}")


def _first_other_row(hashes: Column, row_hash: np.ndarray) -> int | None:
    """The first row whose hash differs from `row_hash` (N, 16), None where none does."""
    common = min(hashes.length, len(row_hash))
    for start in range(0, common, BLOCK):
        stop = min(start + BLOCK, common)
        other = np.flatnonzero((hashes.block(start, stop) != row_hash[start:stop]).any(axis=1))
        if len(other):
            return start + int(other[0])
    return None


def not_intact(path: str, error: Exception, kind: Kind) -> UserError:
    """The error for a file whose structure is wrong."""
    reason = _reason(error)
    return UserError(f"{path}: is not an intact {kind.word}: {reason}; {kind.remedy}")


def may_be_replaced(path: str, kind: Kind) -> bool:
    """Whether `path` is an HDF5 file, intact or not, or an empty one. Raises UserError if it cannot
    be opened.
    """
    with _open_any(path, kind) as source:
        return _signature(source) in (SIGNATURE, b"")


def open_source(path: str, kind: Kind) -> Source:
    """The file, for h5py to read from. Raises UserError if it is no HDF5 file."""
    source = _open_any(path, kind)
    if _signature(source) != SIGNATURE:
        source.close()
        raise UserError(f"{path}: is not an HDF5 file, so not a {kind.word}; {kind.remedy}")
    return source


def _open_any(path: str, kind: Kind) -> Source:
    """The file, open for reading; raises UserError where that fails."""
    try:
        # Non-blocking: the path may be a pipe that nobody writes to.
        return Source(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot open the {kind.word}: {_reason(error)}") from None


def _signature(source: Source) -> bytes | None:
    """The first bytes of a regular file, as many as HDF5's signature has; None for a pipe or a
    device.
    """
    status = os.fstat(source.handle)
    if not stat.S_ISREG(status.st_mode):
        return None
    length = len(SIGNATURE)
    return os.pread(source.handle, length, 0)


def _reason(error: Exception) -> str:
    """The error as one line of bounded length."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_attribute(file: h5py.File, name: str, kinds: str, limit: int) -> Any:
    """A scalar attribute, as h5py gives it.

    Args:
        kinds: letters of numpy's `dtype.kind` that are accepted.
        limit: bytes.

    Raises:
        ValueError: before it is read, unless it has a fixed size of at most `limit` bytes.
    """
    if name not in file.attrs:
        raise ValueError(f"it has no attribute {name}")
    attribute = file.attrs.get_id(name)
    dtype = attribute.dtype
    scalar = attribute.shape == ()
    if not scalar or dtype.kind not in kinds or dtype.itemsize > limit:
        raise ValueError(f"its attribute {name} has the wrong type or size")
    return file.attrs[name]


def json_attribute(file: h5py.File, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object, such as the fingerprint.

    Raises:
        ValueError: it is missing, too large, or no JSON object.
    """
    text = read_attribute(file, name, "S", FINGERPRINT_BYTES)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"its attribute {name} is not a JSON object")
    return value


def open_datasets(
    file: h5py.File,
    layouts: dict[str, Layout],
    size: int,
    kind: Kind,
    fits: Callable[[dict[str, int]], bool],
) -> dict[str, h5py.Dataset]:
    """The datasets of these layouts, in a file of `size` bytes that has no others.

    Args:
        fits: whether numbers of entries, by name, belong together.

    Raises:
        ValueError: one is absent, strange, or larger than the file can hold; they do not fit.
    """
    names = set(islice(file, len(layouts) + 1))
    strange = names - set(layouts)
    absent = set(layouts) - names
    if strange:
        raise ValueError(f"it holds /{min(strange)}, which is not part of a {kind.word}")
    if absent:
        raise ValueError(f"it has no /{min(absent)}")
    datasets = {name: _plain_dataset(file, name, layout) for name, layout in layouts.items()}
    shapes = {name: dataset.shape for name, dataset in datasets.items()}
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if not lengths["row_hash"] or not fits(lengths):
        raise ValueError(f"its shapes do not fit together: {shapes}")
    # Nothing is compressed, so the file must be at least as large as the declared data. This check
    # bounds every later allocation.
    declared = 0
    for name, shape in shapes.items():
        dtype = layouts[name][0]
        declared += dtype.itemsize * math.prod(shape)
    if declared > size:
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
