"""The file of features: an HDF5 file of N rows, with D values each; both datasets are chunked,
uncompressed and have the fletcher32 filter:

    /values    (N, D) float16     the features of a row side by side, in the order of `widths`
    /row_hash  (N, 16) uint8      content hash of the row
    attributes `features_version` (int), `fingerprint` (JSON), `widths` (JSON: values a feature)

The last line is as in the cache of b_t: the sha256 of everything before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import index
from typing import Any

import h5py
import numpy as np

from twcli.storage.hdf5 import (
    BLOCK,
    ROW_HASH,
    Kind,
    Layout,
    Sink,
    create_datasets,
    json_attribute,
    read_attribute,
    to_json,
)

FEATURES_VERSION = 1
HALF = np.dtype("<f2")
CHUNK_BYTES = 1 << 19  # at most, unless one row has more; the first read of a row reads one chunk
MOST_VALUES = 1 << 24  # a row; HDF5 wants chunks below 4 GiB
FEATURES = Kind("feature file", "delete the file or give --overwrite")


def layouts_of(widths: dict[str, int]) -> dict[str, Layout]:
    """Dtype, shape of one row and rows a chunk of both datasets."""
    width = sum(widths.values())
    return {
        "row_hash": ROW_HASH,
        "values": (HALF, (width,), max(1, CHUNK_BYTES // (HALF.itemsize * width))),
    }


def columns_of(widths: dict[str, int]) -> dict[str, slice]:
    """The columns of each feature in `/values`, one after the other in the order of `widths`."""
    columns = {}
    reached = 0
    for name, width in widths.items():
        columns[name] = slice(reached, reached + width)
        reached += width
    return columns


def checked_widths(widths: dict[str, int]) -> dict[str, int]:
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
    least = min(widths.values(), default=0)
    total = sum(widths.values())
    if least < 1 or total > MOST_VALUES:
        raise ValueError(
            f"each feature has at least one value, all together at most {MOST_VALUES}: {widths}"
        )
    return widths


def fill(
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
    layouts = layouts_of(widths)
    rows = len(row_hash)
    create_datasets(file, layouts, dict.fromkeys(layouts, rows))
    for start in range(0, rows, BLOCK):
        stop = start + BLOCK
        file["row_hash"][start:stop] = row_hash[start:stop]
    buffer = np.empty(file["values"].chunks, HALF)
    reached = 0
    for piece in _whole_chunks(shards, buffer):
        if sink.error:
            return
        stop = reached + len(piece)
        file["values"][reached:stop] = piece
        reached = stop
    file.attrs["features_version"] = FEATURES_VERSION
    file.attrs["fingerprint"] = np.bytes_(fingerprint)  # fixed size, checked before reading
    file.attrs["widths"] = np.bytes_(to_json(widths))


def _whole_chunks(shards: Iterable[np.ndarray], chunk: np.ndarray) -> Iterator[np.ndarray]:
    """The same rows, regrouped into whole chunks: HDF5 would read back a partly written chunk,
    which is missing on a full disk.

    Args:
        shards: (rows, D) each.
        chunk: (R, D) buffer that every chunk but the last fills.
    """
    size = len(chunk)
    filled = 0
    for shard in shards:
        start = 0
        while start < len(shard):
            count = min(size - filled, len(shard) - start)
            piece = shard[start : start + count]
            chunk[filled : filled + count] = piece
            filled += count
            start += count
            if filled == size:
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]


def read_attributes(file: h5py.File) -> tuple[dict[str, Any], dict[str, int]]:
    """(fingerprint, columns of each name) of an open file.

    Raises:
        ValueError: another format version, or an attribute that no version writes.
    """
    version = read_attribute(file, "features_version", "iu", 8)
    if version != FEATURES_VERSION:
        raise ValueError(f"it has features version {version}, this twcli reads {FEATURES_VERSION}")
    fingerprint = json_attribute(file, "fingerprint")
    stored = json_attribute(file, "widths")
    to_json(fingerprint)  # refuses NaN, and JSON that is too long in our own formatting
    widths = checked_widths(stored)
    if list(widths) != list(stored):
        raise ValueError("its widths are not in the order of their names")
    return fingerprint, widths
