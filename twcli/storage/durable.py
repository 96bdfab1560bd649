"""Atomic, durable writes: a kill, a full disk or a power cut leaves no half-written file. The cache
and the run folder are written with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes | memoryview, position: int | None = None) -> None:
    """Writes every byte, at `position` or at the handle's current position. The loop is needed
    because a full disk first *shortens* a write.
    """
    view = memoryview(data).cast("B")
    while len(view):
        if position is None:
            count = os.write(handle, view)
        else:
            count = os.pwrite(handle, view, position)
            position += count
        view = view[count:]


def write_durably(path: Path, data: bytes) -> None:
    """`path` holds all of `data` or does not change, also after a kill or a loss of power.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    temp = path.with_name(path.name + ".tmp")
    try:
        with open(temp, "wb", buffering=0) as file:
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError:
        with suppress(OSError):  # frees the space on a full disk
            temp.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it replaces `folder` if the block succeeds and is removed if it fails.
    Raises OSError.
    """
    staged = folder.with_name(f".{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staged, folder)
    sync_folder(folder.parent)
