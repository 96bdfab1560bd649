"""One reading of the records by the frozen model, for whatever is wanted of it: b_t, the features
that naming takes, or both from the same forward passes; and the files that they go to.

Equal records are read once a shard. Shapes: N rows of the data, R distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.equal_rows import first_of_equal
from twcli.data.padding import slices
from twcli.discovery.features import KINDS, Features, embed_and_score, embed_rows
from twcli.models.baseline import score_flat
from twcli.storage.cache import CacheWriter
from twcli.storage.feature_writer import FeatureWriter
from twcli.storage.shards import blocks

SHARD_ROWS = 512  # where features are read: they take more memory than b_t

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class FrozenReading:
    """How the frozen model reads records.

    Attributes:
        scored: whether b_t is wanted.
        distinct: (R,) `stored.distinct_rows`, whose features are wanted; None where none are.
        batch_tokens: tokens a batch at most.
        varlen: as in `forward.forward_rows`.
    """

    model: PreTrainedModel
    encoder: ExampleEncoder
    encoded: Encoded
    scored: bool
    distinct: np.ndarray | None
    batch_tokens: int
    varlen: bool

    def __call__(
        self, rows: range, progress: Callable[[int], None]
    ) -> tuple[range, np.ndarray | None, Values | None]:
        """The rows; their b_t as the cache stores it, where it is wanted; and the features, where
        they are wanted, of those rows that are the first of their kind in the data.

        Args:
            progress: called with numbers of tokens, of all rows together.
        """
        encoded = self.encoded
        hashes = encoded.row_hash[rows.start : rows.stop]
        first_R, place = np.unique(first_of_equal(hashes), return_inverse=True)
        read = rows.start + first_R  # `place` is where in it each row's first is
        every = slice(rows.start, rows.stop)
        repeated_tokens = encoded.lengths[every].sum() - encoded.lengths[read].sum()
        progress(int(repeated_tokens))
        nll, features = self._read(read, progress)
        if nll is not None:
            lengths = encoded.target_lengths[read]
            starts = np.cumsum(lengths) - lengths
            nll = nll[slices(starts[place], encoded.target_lengths[every])]
        if features is None or self.distinct is None:
            return rows, nll, None
        kept = np.isin(read, self.distinct, assume_unique=True)
        values = {name: x[kept] for name, x in zip(KINDS, features.kinds, strict=True)}
        return rows, nll, {**values, "prompts": features.prompts[kept]}

    def _read(
        self, rows: np.ndarray, progress: Callable[[int], None]
    ) -> tuple[np.ndarray | None, Features | None]:
        """What the model says of rows (R,), None where it is not wanted.

        Returns:
            b_t in nats, flat, row after row; and the features.
        """
        common: dict[str, Any] = {"batch_tokens": self.batch_tokens, "varlen": self.varlen}
        inputs = self.model, self.encoder, self.encoded, rows
        if self.distinct is None:
            return score_flat(*inputs, **common, progress=progress), None
        if self.scored:
            features, nll = embed_and_score(*inputs, **common, progress=progress)
            return nll, features
        features = embed_rows(*inputs, **common)
        progress(int(self.encoded.lengths[rows].sum()))
        return None, features


class FrozenFiles:
    """The files that a reading goes to; a context manager, which holds their locks.

    Args:
        cache, features: what is wanted; None for what is not, or is there already.
        distinct: as of `FrozenReading`.
        shard_rows: rows of the data that are read at a time.

    Attributes:
        notes: what the user should know about shards of an earlier call; filled on entering.
        missing: rows of the data that are to be read, at most `shard_rows` at a time, ascending;
            filled on entering.
    """

    def __init__(
        self,
        cache: CacheWriter | None,
        features: FeatureWriter | None,
        distinct: np.ndarray | None,
        shard_rows: int,
    ) -> None:
        self.cache = cache
        self.features = features
        self.shard_rows = shard_rows
        self.notes: list[str] = []
        self.missing: list[range] = []
        if distinct is None:
            self._distinct = np.empty(0, np.int64)
        else:
            self._distinct = distinct
        self._cache_gaps: list[range] = []
        self._feature_gaps: list[range] = []

    def __enter__(self) -> FrozenFiles:
        with ExitStack() as opened:
            if self.cache is not None:
                opened.enter_context(self.cache)
                self._cache_gaps = _joined(self.cache.missing)
                self.notes += self.cache.notes
            if self.features is not None:
                opened.enter_context(self.features)
                self._feature_gaps = _joined(self.features.missing)
                self.notes += self.features.notes
            self._opened = opened.pop_all()
        of_features = []
        for gap in self._feature_gaps:
            first = int(self._distinct[gap.start])
            last = int(self._distinct[gap.stop - 1])
            of_features.append(range(first, last + 1))
        for gap in _joined(self._cache_gaps + of_features):
            self.missing += blocks(gap, self.shard_rows)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def write(self, rows: range, nll: np.ndarray | None, values: Values | None) -> None:
        """Stores what was read of `rows`, one of `missing`, as far as it was not stored before.

        Args:
            nll: (tokens of y of all these rows,) b_t in nats, one row after the other.
            values: (rows, width) of each feature, of those rows that are the first of their kind in
                the data.

        Raises:
            WorkFailed: a value is not finite, or the disk is full.
        """
        if self.features is not None and values is not None:
            first, last = np.searchsorted(self._distinct, [rows.start, rows.stop]).tolist()
            for part in _inside(self._feature_gaps, range(first, last)):
                those = slice(part.start - first, part.stop - first)
                self.features.write(part, {name: x[those] for name, x in values.items()})
        if self.cache is not None and nll is not None:
            offsets = self.cache.offsets
            for part in _inside(self._cache_gaps, rows):
                begin, end = offsets[[part.start, part.stop]] - offsets[rows.start]
                self.cache.write(part, nll[begin:end])

    def publish(self) -> None:
        """Writes the complete files.

        Raises:
            WorkFailed: the disk is full, or a shard is no longer what was written.
        """
        # b_t last: `precompute` knows by it that it is done, so killed in between it resumes
        for writer in (self.features, self.cache):
            if writer is not None:
                writer.publish()


def _joined(ranges: list[range]) -> list[range]:
    """The same rows in ranges that neither touch nor overlap, ascending."""
    joined: list[range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if joined and part.start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(joined[-1].stop, part.stop))
        else:
            joined.append(part)
    return joined


def _inside(ranges: list[range], whole: range) -> list[range]:
    """What of each of the ranges lies in `whole`, in the same order; those outside are left out."""
    inside = []
    for part in ranges:
        start = max(part.start, whole.start)
        stop = min(part.stop, whole.stop)
        if start < stop:
            inside.append(range(start, stop))
    return inside
