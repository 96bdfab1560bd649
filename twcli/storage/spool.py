"""Arrays that grow piece by piece and lie in a file without a name: memory holds the pages
that are being looked at.

The file is in the folder for temporary files (`TMPDIR`) and goes when nothing looks at it any more,
however the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


class Spool:
    """A one-dimensional array to which pieces are added while it is open. A full disk is an
    OSError that names the folder.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="twcli-")  # noqa: SIM115  # closed by `__exit__`

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_raised: object) -> None:
        with _naming_the_folder():  # closing writes what appending could not
            self._file.close()

    def append(self, piece: ArrayLike) -> None:
        """Adds the entries of `piece` behind the last ones."""
        with _naming_the_folder():
            self._file.write(np.ascontiguousarray(piece, self._dtype).tobytes())

    def array(self) -> np.ndarray:
        """All that was added, read-only; it stays when the spool is closed."""
        with _naming_the_folder():
            self._file.flush()
            return (
                np.asarray(np.memmap(self._file, self._dtype, mode="r"))
                if self._file.tell()
                else np.empty(0, self._dtype)
            )


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    """The file has no name, and without one the disk of something else would be blamed."""
    try:
        yield
    except OSError as error:
        error.filename = tempfile.gettempdir()
        raise
