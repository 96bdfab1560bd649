"""Features that an earlier reading of the data has kept: they take the place of forward passes.

Shapes: N rows of the data, R distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.equal_rows import distinct
from twcli.discovery.features import KINDS, VERSION, Features
from twcli.storage.beside import find_features
from twcli.storage.feature_store import FeatureStore


def feature_fingerprint(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of features, from the one of b_t: what both depend on, and how features are
    made.
    """
    return {**fingerprint, "features": VERSION}


def distinct_rows(encoded: Encoded) -> np.ndarray:
    """(R,) rows of the data that a file of features holds, ascending: the first of equal ones."""
    return distinct(encoded.row_hash)


@dataclass(frozen=True)
class StoredFeatures:
    """Features of distinct records from their file.

    Attributes:
        rows: (R,) rows of the data that the file holds, ascending.
        lengths: (N,) supervised tokens of each row of the data.
    """

    store: FeatureStore
    rows: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, store: FeatureStore, encoded: Encoded) -> StoredFeatures:
        """The features of a file that was made from these records, read when they are asked for."""
        return cls(store, distinct_rows(encoded), encoded.target_lengths)

    @classmethod
    def beside(
        cls,
        files: Iterable[str | Path],
        fingerprints: Iterable[dict[str, Any]],
        encoded: Encoded,
    ) -> StoredFeatures | None:
        """What lies in a folder of `files` and is intact; None where nothing does.

        Args:
            fingerprints: of b_t, one of which the features must have; the first is preferred.
        """
        rows = distinct_rows(encoded)
        wanted = (feature_fingerprint(fingerprint) for fingerprint in fingerprints)
        store = find_features(files, wanted, encoded.row_hash[rows])
        if store is None:
            return None
        return cls(store, rows, encoded.target_lengths)

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """As `features.embed_rows`."""
        values = self.store.read(np.searchsorted(self.rows, rows))
        if advance:
            advance(len(rows))
        kinds = tuple(values[kind] for kind in KINDS)
        return Features(kinds, values["prompts"], self.lengths[rows].astype(np.float64))
