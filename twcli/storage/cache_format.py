"""The layout of a cache of b_t; `cache.py` writes and reads it.

N rows and M tokens:

    /nll       (M,) float32       b_t in nats, row after row
    /offsets   (N + 1,) int64     row i is nll[offsets[i] : offsets[i + 1]]; line i of the data
    /row_hash  (N, 16) uint8      content hash of the row's x and y token ids
    attributes `format_version` (int), `fingerprint` (JSON), `content_sha256` (all of the above)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from twcli.errors import UserError
from twcli.storage.hdf5 import (
    BLOCK,
    ROW_HASH,
    Column,
    Kind,
    Layout,
    Sink,
    Source,
    create_datasets,
    json_attribute,
    not_intact,
    open_datasets,
    open_source,
    read_attribute,
    to_json,
    write_hdf5,
)

FORMAT_VERSION = 1
COLUMNS: dict[str, Layout] = {
    "offsets": (np.dtype("<i8"), (), 4096),
    "row_hash": ROW_HASH,
    "nll": (np.dtype("<f4"), (), 16384),
}
CACHE = Kind("cache", "make it again with `twcli precompute --overwrite`")


def content_digest(fingerprint: bytes, rows: int, tokens: int) -> Any:
    """A started sha256; the caller adds offsets, row hashes and NLL, in this order."""
    sizes = b"%d %d %d " % (len(fingerprint), rows, tokens)
    return hashlib.sha256(sizes + fingerprint)


def write_file(
    handle: int,
    fingerprint: bytes,
    offsets: np.ndarray,
    row_hash: np.ndarray,
    shards: Iterable[bytes],
) -> None:
    """Writes a complete cache to the empty file `handle`, which is closed, and syncs it.

    Args:
        offsets: (N + 1,) int64.
        row_hash: (N, 16) uint8.
        shards: little-endian float32 bytes of /nll, in order; one is in memory at a time.

    Raises:
        OSError: the original error of the disk.
    """
    write_hdf5(
        handle,
        lambda file, sink: _fill(file, sink, fingerprint, offsets, row_hash, shards),
    )


def _fill(
    file: h5py.File,
    sink: Sink,
    fingerprint: bytes,
    offsets: np.ndarray,
    row_hash: np.ndarray,
    shards: Iterable[bytes],
) -> None:
    """Puts b_t into a file that `write_hdf5` has opened, a block at a time.

    Args:
        offsets: (N + 1,) int64, where each row's tokens begin.
        row_hash: (N, 16) uint8.
        shards: bytes of float32, in order; one is in memory at a time.
    """
    rows = len(row_hash)
    tokens = int(offsets[-1])
    content = content_digest(fingerprint, rows, tokens)
    create_datasets(file, COLUMNS, {"offsets": len(offsets), "row_hash": rows, "nll": tokens})
    for name, array in (("offsets", offsets), ("row_hash", row_hash)):
        for start in range(0, len(array), BLOCK):
            stop = start + BLOCK
            file[name][start:stop] = array[start:stop]
        content.update(array)
    reached = 0
    for shard in shards:
        content.update(shard)
        nll = np.frombuffer(shard, "<f4")
        for block in np.split(nll, range(BLOCK, len(nll), BLOCK)):
            if sink.error:
                return
            stop = reached + len(block)
            file["nll"][reached:stop] = block
            reached = stop
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["fingerprint"] = np.bytes_(fingerprint)  # fixed size, checked before reading
    file.attrs["content_sha256"] = np.bytes_(content.hexdigest())


@dataclass
class Opened:
    """One process's open handles of one file; `identity` shows whether the path still leads to that
    file.
    """

    process: int
    identity: tuple[int, ...]
    source: Source
    file: h5py.File
    columns: dict[str, Column]
    fingerprint: dict[str, Any]
    content_sha256: str

    def close(self) -> None:
        """Closes HDF5's file first, since it may still read."""
        self.file.close()
        self.source.close()


def open_file(path: str) -> Opened:
    """Opens a cache and checks its structure: everything that needs no reading of the datasets.

    Raises:
        UserError: not a regular file, not HDF5, damaged, of another format, or its data are stored
            elsewhere.
    """
    source = open_source(path, CACHE)
    try:
        # No chunk cache: HDF5 reads every chunk only once, to check its sum.
        file = h5py.File(source, "r", rdcc_nbytes=0)
        fingerprint, content = _read_attributes(file)
        datasets = open_datasets(
            file,
            COLUMNS,
            source.size,
            CACHE,
            lambda lengths: lengths["row_hash"] == lengths["offsets"] - 1,
        )
        columns = {
            name: Column(name, dataset, source, path, COLUMNS[name], CACHE)
            for name, dataset in datasets.items()
        }
    except Exception as error:
        # h5py raises many types of errors on a damaged or malicious file
        source.close()
        raise not_intact(path, error, CACHE) from None
    except BaseException:
        source.close()
        raise
    status = os.fstat(source.handle)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return Opened(os.getpid(), identity, source, file, columns, fingerprint, content)


def check_offsets(columns: dict[str, Column], path: str) -> None:
    """Raises UserError unless the offsets begin at 0, never fall and end at the number of tokens.

    Checked at opening, since every read relies on it: 0.1 s for 10 million rows, in blocks so that
    memory does not grow.
    """
    before = 0
    for number, block in enumerate(columns["offsets"].blocks()):
        if (
            (number == 0 and block[0] != 0)
            or block[0] < before
            or np.diff(block).min(initial=0) < 0
        ):
            raise UserError(
                f"{path}: is not an intact cache: its offsets fall or do not begin at 0; "
                f"{CACHE.remedy}"
            )
        before = block[-1]
    if before != columns["nll"].length:
        raise UserError(
            f"{path}: is not an intact cache: its offsets do not end with the tokens; "
            f"{CACHE.remedy}"
        )


def _read_attributes(file: h5py.File) -> tuple[dict[str, Any], str]:
    """(fingerprint, content's sha256) of an open cache.

    Raises:
        ValueError: another format version, or an attribute that no version writes.
    """
    version = read_attribute(file, "format_version", "iu", 8)
    if version != FORMAT_VERSION:
        raise ValueError(f"it has format version {version}, this twcli reads {FORMAT_VERSION}")
    fingerprint = json_attribute(file, "fingerprint")
    to_json(fingerprint)  # refuses NaN, and JSON that is too long in our own formatting
    digest = read_attribute(file, "content_sha256", "S", 64)
    return fingerprint, digest.decode()
