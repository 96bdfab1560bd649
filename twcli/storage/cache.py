"""The cache of b_t, the frozen model's per-token NLL: `twcli precompute` writes
it, other commands read it.

    with CacheWriter("F.h5", fingerprint=..., offsets=..., row_hash=...) as writer:
        for rows in writer.missing:
            writer.write(rows, nll_of(rows))
        writer.publish()
    cache = Cache("F.h5")
    nll, lengths = cache.read(np.array([17, 3, 42]))

See `cache_format.py` for the file's content, `hdf5.py` for what keeps it intact, and `shards.py`
for the files next to it while it is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twcli.errors import UserError, WorkFailed
from twcli.storage.cache_format import (
    CACHE,
    FORMAT_VERSION,
    Opened,
    check_offsets,
    content_digest,
    open_file,
    write_file,
)
from twcli.storage.hdf5 import (
    check_made_from,
    damaged_places,
    may_be_replaced,
    to_json,
    trailer_problem,
)
from twcli.storage.shards import Shards, check_place, named, reporting
from twcli.storage.writing import check_complete, check_rows, header_of, is_intact, open_empty

ROUNDING = 1e-4  # nats; rounding may make a log-softmax positive by this much

__all__ = ["FORMAT_VERSION", "Cache", "CacheWriter"]


class CacheWriter:
    """Writes one cache file, shard by shard. After a kill at any moment, the next writer resumes.

    Args:
        path: the file to write; its folder must exist. `<path>.lock` and `<path>.parts/` are next
            to it meanwhile.
        fingerprint: JSON-ready dict of everything that b_t depends on.
        offsets: (N + 1,) int64, first token of each row, from 0 to the number of tokens.
        row_hash: (N, 16) uint8.
        shard_rows: rows per shard; a kill loses at most the shard in progress.
        overwrite: replaces the cache at `path` when the new file is complete; finished shards with
            the same fingerprint are kept.

    Attributes:
        notes: messages about shards of an earlier run; filled on entering.

    Raises:
        UserError: N is 0, the place is not writable, `path` holds something other than a cache, or
            it holds a cache and `overwrite` is off; on entering also if another process is writing.
        ValueError: an argument has the wrong shape, type or size.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: dict[str, Any],
        offsets: np.ndarray,
        row_hash: np.ndarray,
        shard_rows: int = 4096,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.shard_rows = shard_rows
        self.overwrite = overwrite
        self.offsets = np.ascontiguousarray(offsets, "<i8")
        self.row_hash = np.ascontiguousarray(row_hash)
        self.notes: list[str] = []
        self._fingerprint = to_json(fingerprint)
        self._published = False
        self._check_arguments()
        check_place(self.path)
        if self.path.exists():
            if not may_be_replaced(str(self.path), CACHE):
                raise UserError(f"{self.path}: is not a cache; name another --out")
            if not overwrite:
                self._refuse_existing(fingerprint)
        version = {"format_version": FORMAT_VERSION}
        header = header_of(version, self._fingerprint, self.offsets, self.row_hash)
        self._shard_folder = _shard_folder(self.path, header, self.offsets)

    @classmethod
    def already_complete(
        cls, path: str | Path, fingerprint: dict[str, Any], row_hash: np.ndarray
    ) -> bool:
        """Whether `path` holds an intact cache with this fingerprint and these rows; if so, the
        whole file was verified.

        Args:
            row_hash: (N, 16) uint8.
        """
        try:
            with Cache(path) as cache:
                intact = is_intact(cache, fingerprint, row_hash)
        except UserError:
            return False
        if intact:
            _shard_folder(Path(path), {}, np.zeros(1, np.int64)).remove_if_idle()
        return intact

    def __enter__(self) -> CacheWriter:
        self._shard_folder.open()
        self.notes += self._shard_folder.notes()
        return self

    def __exit__(self, *_: object) -> None:
        self._shard_folder.close()

    @property
    def missing(self) -> list[range]:
        """Row ranges of at most `shard_rows` that are still to be written, ascending."""
        if self._published:
            return []
        return self._shard_folder.missing(self.shard_rows)

    def write(self, rows: range, nll: np.ndarray) -> None:
        """Stores b_t of `rows` durably.

        Args:
            rows: consecutive rows, none of them stored yet.
            nll: (tokens of these rows,) float32, nats, row after row. From -1e-4 to
                0 a value is stored as 0.

        Raises:
            WorkFailed: a value is not finite or negative, or the disk is full.
            ValueError: the length or the rows are wrong.
        """
        self._shard_folder.check_missing(rows)
        nll = np.asarray(nll, np.float32)
        first = int(self.offsets[rows.start])
        last = int(self.offsets[rows.stop])
        if nll.shape != (last - first,):
            raise ValueError(
                f"{named(rows)} have {last - first} tokens, but the NLL has shape {nll.shape}"
            )
        wrong = np.flatnonzero(~(np.isfinite(nll) & (nll >= -ROUNDING)))
        if len(wrong):
            row = int(np.searchsorted(self.offsets, first + wrong[0], side="right")) - 1
            token = first + int(wrong[0]) - int(self.offsets[row])
            raise WorkFailed(
                f"{self.path}: row {row} (line {row + 1} of the data): the NLL of token {token} "
                f"of y is {nll[wrong[0]]:.4g}; the model is broken or its precision too low"
            )
        with reporting(self.path, f"store {named(rows)}"):
            self._shard_folder.add(
                rows, np.where(nll <= 0, np.float32(0), nll).astype("<f4").tobytes()
            )

    def publish(self) -> None:
        """Writes the complete file to `path` and removes the shards; memory does not grow with N.

        Raises:
            WorkFailed: the disk is full, or a shard is no longer what was written.
            ValueError: rows are missing.
        """
        check_complete(self.missing)
        with self._shard_folder.publishing("write the cache") as temp:
            handle = open_empty(temp)
            shards = self._shard_folder.all()
            write_file(handle, self._fingerprint, self.offsets, self.row_hash, shards)
        self._published = True

    def _check_arguments(self) -> None:
        """Raises UserError without rows, ValueError for arrays of the wrong shape."""
        check_rows(self.path, self.row_hash, self.shard_rows, "make a cache of")
        offsets = self.offsets
        falls = bool((offsets[1:] < offsets[:-1]).any())
        if offsets.shape != (len(self.row_hash) + 1,) or offsets[0] != 0 or falls:
            raise ValueError("offsets must be (N + 1,), begin at 0 and never fall")

    def _refuse_existing(self, fingerprint: dict[str, Any]) -> None:
        """Raises UserError that says what is at the path already."""
        try:
            with Cache(self.path) as cache:
                cache.check(fingerprint, self.row_hash)
                problems = cache.verify()
        except UserError as error:
            hint = "" if CACHE.remedy in str(error) else "; pass --overwrite to replace it"
            raise UserError(f"{error}{hint}") from None
        state = problems[0] if problems else "already complete"
        raise UserError(f"{self.path}: {state}; pass --overwrite to start over")


class Cache:
    """A cache file for reading; every byte is checked before it is used.

    Opening checks the structure and the offsets. A chunk's checksum is checked when a process first
    reads from it. `verify` checks everything. Handles belong to one process and are opened again
    after a fork or unpickling.

    Raises:
        UserError: not a regular file, not HDF5, damaged, of another format, or its data are stored
            elsewhere; when a handle is opened again, also if the file was changed or replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._opened: Opened | None = None
        self._identity: tuple[int, ...] | None = None
        self._touched: dict[str, np.ndarray] = {}
        self._open()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint: what b_t was computed from."""
        return self._open().fingerprint

    @property
    def rows(self) -> int:
        """N."""
        return self._open().columns["row_hash"].length

    @property
    def tokens(self) -> int:
        """Tokens of y in all rows."""
        return self._open().columns["nll"].length

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """b_t of `rows` (B,) int64, which may be in any order and repeated.

        Returns:
            (tokens of these rows,) float32, nats, row after row in the order
            given; and lengths (B,) int64.

        Raises:
            IndexError: a row does not exist.
            UserError: a checksum does not match.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size == 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        if rows.min() < 0 or rows.max() >= self.rows:
            raise IndexError(f"{self.path}: rows must lie in 0 to {self.rows - 1}")
        ordered, back = np.unique(rows, return_inverse=True)
        flat, lengths = self._read_ordered(ordered)
        if np.array_equal(rows, ordered):
            return flat, lengths
        sources = (np.cumsum(lengths) - lengths)[back]
        lengths = lengths[back]
        targets = np.cumsum(lengths) - lengths
        places = np.repeat(sources - targets, lengths) + np.arange(lengths.sum())
        return flat[places], lengths

    def stream(self, block: int) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
        """All rows in order, `block` at a time.

        Yields:
            The rows, and what `read` gives of them: b_t (tokens of these rows,) in nats and their
                lengths (R,).
        """
        for start in range(0, self.rows, block):
            rows = range(start, min(start + block, self.rows))
            yield (rows, *self.read(np.arange(rows.start, rows.stop)))

    def check(self, expected: dict[str, Any], row_hash: np.ndarray) -> None:
        """Raises UserError unless the cache was made from exactly this.

        Args:
            expected: the fingerprint of this call; the first field that differs
                is named, nested by dots.
            row_hash: (N, 16) uint8; the first line (from 1) that differs is named.
        """
        opened = self._open()
        check_made_from(
            self.path, "cache", opened.fingerprint, opened.columns["row_hash"], expected, row_hash
        )

    def verify(self) -> list[str]:
        """Reads all of the file and checks every checksum.

        Returns:
            One line per problem; empty if every bit is as it was published.
        """
        opened = self._open()
        problem = trailer_problem(opened.source)
        damaged = damaged_places(opened.columns.values())
        return ([problem] if problem else []) + (damaged or self._content_problems(opened))

    def close(self) -> None:
        """Closes this process's handles; a later call opens them again."""
        if self._opened:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Sends neither handles nor the record of checked chunks: the receiving process opens and
        # checks the file itself.
        return {"path": self.path, "_identity": self._identity, "_opened": None, "_touched": {}}

    def _open(self) -> Opened:
        """The file, opened once in each process; raises UserError where it has changed since."""
        if self._opened and self._opened.process == os.getpid():
            return self._opened
        opened = open_file(self.path)
        try:
            if self._identity not in (None, opened.identity):
                raise UserError(
                    f"{self.path}: was changed or replaced while in use; start the command again"
                )
            # chunks checked before a fork stay checked
            for name, column in opened.columns.items():
                column.touched = self._touched.setdefault(name, column.touched)
            if not opened.columns["offsets"].touched.all():
                check_offsets(opened.columns, self.path)
        except BaseException:
            opened.close()
            raise
        self._identity = opened.identity
        self._opened = opened
        return opened

    def _read_ordered(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`read` for ascending distinct rows: adjacent rows are read in one piece."""
        columns = self._open().columns
        after_gap = np.concatenate([[True], np.diff(rows) != 1])
        first = np.flatnonzero(after_gap)
        last = np.append(first[1:], len(rows)) - 1
        counts = last - first + 2  # a range has one more offset than rows
        bounds = columns["offsets"].gather(rows[first], counts)
        place = np.arange(len(rows)) + np.cumsum(after_gap) - 1
        starts = bounds[place]
        stops = bounds[place + 1]
        begin = starts[first]
        tokens = stops[last] - begin
        flat = columns["nll"].gather(begin, tokens)
        return flat.astype(np.float32, copy=False), stops - starts

    def _content_problems(self, opened: Opened) -> list[str]:
        """Reads everything: b_t that cannot be, and whether the content is what was hashed."""
        fingerprint = to_json(opened.fingerprint)
        content = content_digest(fingerprint, self.rows, self.tokens)
        wrong = 0
        for name in ("offsets", "row_hash", "nll"):
            for block in opened.columns[name].blocks():
                content.update(block)
                if name == "nll":
                    possible = np.isfinite(block) & (block >= 0)
                    wrong += int((~possible).sum())
        problems = []
        if wrong:
            problems.append(f"{wrong} values of /nll are negative or not finite")
        if content.hexdigest() != opened.content_sha256:
            problems.append("content_sha256 does not match what the file holds")
        return problems


def _shard_folder(path: Path, header: dict[str, Any], offsets: np.ndarray) -> Shards:
    return Shards(
        path,
        header,
        len(offsets) - 1,
        what="cache",
        suffix=".f32",
        size=lambda rows: 4 * (offsets[rows.stop] - offsets[rows.start]),
    )
