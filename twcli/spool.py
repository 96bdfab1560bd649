"""Arrays that grow piece by piece and lie in a file without a name: memory holds the pages that are being looked at.

The file is in the folder for temporary files (`TMPDIR`) and goes when nothing looks at it any more, however the process ends.
"""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


class Spool:
    """A one-dimensional array to which pieces are added while it is open. A full disk is an OSError."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(prefix="twcli-")

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._file.close()

    def append(self, piece: ArrayLike) -> None:
        self._file.write(np.ascontiguousarray(piece, self._dtype).tobytes())

    def array(self) -> np.ndarray:
        """All that was added, read-only; it stays when the spool is closed."""
        self._file.flush()
        return np.asarray(np.memmap(self._file, self._dtype, mode="r")) if self._file.tell() else np.empty(0, self._dtype)
