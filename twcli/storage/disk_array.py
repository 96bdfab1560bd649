"""Disk-backed arrays that grow piece by piece, in an unnamed file: memory holds only the pages in
use.

The file is in the folder for temporary files (`TMPDIR`). It disappears when nothing uses it any
more, however the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


class DiskArray:
    """A disk-backed one-dimensional array, to which pieces are appended while it is open. A full
    disk raises an OSError that names the folder.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="twcli-")  # noqa: SIM115  # closed by `__exit__`

    def __enter__(self) -> DiskArray:
        return self

    def __exit__(self, *_raised: object) -> None:
        with _naming_the_folder():  # closing flushes the last appended bytes
            self._file.close()

    def append(self, piece: ArrayLike) -> None:
        """Appends the entries of `piece`, converted to the array's dtype.

        Raises:
            OSError: the disk is full; its file name is the folder of temporary files.
        """
        entries = np.ascontiguousarray(piece, self._dtype)
        with _naming_the_folder():
            self._file.write(entries.tobytes())

    def array(self) -> np.ndarray:
        """Everything appended so far, (N,), read-only; it stays valid after `__exit__`."""
        with _naming_the_folder():
            self._file.flush()
            if self._file.tell():
                return np.asarray(np.memmap(self._file, self._dtype, mode="r"))
            return np.empty(0, self._dtype)


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    """Adds the folder to an OSError: the file has no name that would show which disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = tempfile.gettempdir()
        raise
