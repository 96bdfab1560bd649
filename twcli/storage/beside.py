"""b_t and features that an earlier call left in the folders of the files that this call names.

Each is taken only if it is intact and was made from the same model, records and settings.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from twcli.errors import UserError
from twcli.storage.cache import Cache
from twcli.storage.durable import sync_folder
from twcli.storage.feature_store import FeatureStore
from twcli.storage.shards import check_place, reporting

FEATURES_SUFFIX, CACHE_SUFFIX = ".features.h5", ".bt.h5"
MOST_FILES = 64  # of a folder that are looked at, the newest first


def features_path(out: str | Path) -> Path:
    """Where the features are kept that are read for names or b_t at `out`: in the same folder,
    under the same stem.
    """
    path = Path(out)
    name = path.stem + FEATURES_SUFFIX
    return path.with_name(name)


def baseline_path(names: str | Path) -> Path:
    """Where the b_t is kept that is read along with the features for these names: in the same
    folder, under the same stem.
    """
    path = Path(names)
    name = path.stem + CACHE_SUFFIX
    return path.with_name(name)


def find_cache(
    files: Iterable[str | Path], fingerprint: dict[str, Any], row_hash: np.ndarray
) -> Path | None:
    """An intact cache in a folder of `files`; None where there is none.

    Args:
        fingerprint: what b_t must have been computed from.
        row_hash: (N, 16) uint8, of the rows it must hold.
    """
    for path in _hdf5_beside(files):
        if path.name.endswith(FEATURES_SUFFIX):
            continue
        with suppress(UserError), Cache(path) as cache:
            cache.check(fingerprint, row_hash)
            if not cache.verify():
                return path
    return None


def find_features(
    files: Iterable[str | Path], fingerprints: Iterable[dict[str, Any]], row_hash: np.ndarray
) -> FeatureStore | None:
    """Intact features in a folder of `files`, open; None where there are none.

    Args:
        fingerprints: what they may have been computed from; the first is preferred, and the others
            are asked for only where it fails.
        row_hash: (N, 16) uint8, of the rows they must hold.
    """
    paths = [path for path in _hdf5_beside(files) if path.name.endswith(FEATURES_SUFFIX)]
    if not paths:
        return None
    for fingerprint in fingerprints:
        for path in paths:
            with suppress(UserError):
                store = FeatureStore(path)
                try:
                    store.check(fingerprint, row_hash)
                    if not store.verify():
                        return store
                except UserError:
                    store.close()
                    raise
                store.close()
    return None


def copy_file(source: Path, target: Path) -> None:
    """`target` becomes a copy of `source`, whole or not at all.

    Raises:
        UserError: the place cannot be written.
        WorkFailed: the disk is full.
    """
    check_place(target)
    temp = target.with_name(f"{target.name}.tmp")
    with reporting(target, "write there"):
        try:
            shutil.copyfile(source, temp)
            handle = os.open(temp, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temp, target)
        finally:
            temp.unlink(missing_ok=True)
        sync_folder(target.parent)


def _hdf5_beside(files: Iterable[str | Path]) -> list[Path]:
    """HDF5 files in the folders of `files`, the newest first, at most `MOST_FILES` a folder."""
    folders = {Path(file).resolve().parent: None for file in files}
    found: dict[Path, float] = {}
    for folder in folders:
        with suppress(OSError):
            here = {path: path.stat().st_mtime for path in folder.glob("*.h5") if path.is_file()}
            newest = sorted(here, key=lambda path: -here[path])[:MOST_FILES]
            found |= {path: here[path] for path in newest}
    return sorted(found, key=lambda path: -found[path])
