"""The rows that are named, prompt by prompt, and where their features come from.

Shapes: N rows of the data, R distinct ones, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.equal_rows import distinct, first_of_equal
from twcli.data.groups import Groups
from twcli.discovery.features import Features, embed_rows
from twcli.discovery.result import ROWS_AT_ONCE

FIT_PROMPTS = 3000  # prompts that are clustered; all others are only assigned
BLOCK_PROMPTS = 1024  # of the others, assigned at a time
CHUNK_ROWS = 32  # of one prompt that are named together

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Source(Protocol):
    """Where features come from: a model that is run, or a file that keeps them."""

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """Features of distinct rows of the data, computed or read.

        Args:
            rows: (n,) row numbers, ascending.
            advance: called with the number of rows after each batch.
        """
        ...


@dataclass(frozen=True)
class ModelSource:
    """Features by forward passes of a frozen model.

    Attributes:
        batch_tokens: tokens a batch at most.
        varlen: as in `forward.forward_rows`.
    """

    model: PreTrainedModel
    encoder: ExampleEncoder
    encoded: Encoded
    batch_tokens: int
    varlen: bool = False

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """As `features.embed_rows`."""
        return embed_rows(
            self.model,
            self.encoder,
            self.encoded,
            rows,
            batch_tokens=self.batch_tokens,
            varlen=self.varlen,
            advance=advance,
        )


def silent(_label: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar that shows nothing, for callers without a terminal."""
    return nullcontext(lambda _count: None)


@dataclass(frozen=True)
class Rows:
    """The distinct rows of the data, prompt by prompt.

    Attributes:
        rows: (R,) int64, their first occurrences in the data.
        sizes: (P,) distinct rows of each prompt.
    """

    rows: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded) -> Rows:
        """All of them; prompts in the order of their numbers."""
        rows = distinct(encoded.row_hash)
        prompt = encoded.prompt_index[rows]
        falls = prompt[1:] < prompt[:-1]
        if falls.any():
            order = np.argsort(prompt, kind="stable")
            rows = rows[order]
            prompt = prompt[order]
        changes = prompt[1:] != prompt[:-1]
        starts = np.flatnonzero(changes) + 1
        ends = np.append(starts, len(rows))
        return cls(rows, np.diff(ends, prepend=0))

    def groups(self, least: int = 1) -> Groups:
        """Each prompt's rows, where it has `least` of them."""
        groups = Groups(self.rows, np.cumsum(self.sizes) - self.sizes, self.sizes)
        if least <= 1:
            return groups
        return groups[self.sizes >= least]

    def chunks(self) -> Groups:
        """Each prompt's rows, at most `CHUNK_ROWS` together: a prompt with thousands of completions
        is taken for several, or one prompt could be all that is looked at.
        """
        if self.sizes.max(initial=0) <= CHUNK_ROWS:
            return self.groups()
        pieces = -(-self.sizes // CHUNK_ROWS)
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        before = number * CHUNK_ROWS  # rows of the prompt that lie before each chunk
        starts = np.repeat(np.cumsum(self.sizes) - self.sizes, pieces) + before
        sizes = np.minimum(np.repeat(self.sizes, pieces) - before, CHUNK_ROWS)
        return Groups(self.rows, starts, sizes)


def spread_to_equal_rows(encoded: Encoded, *columns: np.ndarray) -> None:
    """Writes what the first of equal rows has into all of them.

    Args:
        columns: (N, ..) each, overwritten.
    """
    first_N = first_of_equal(encoded.row_hash)
    for start in range(0, len(first_N), ROWS_AT_ONCE):
        part = first_N[start : start + ROWS_AT_ONCE]
        for column in columns:  # a first row lies before its equals and keeps what it has
            column[start : start + ROWS_AT_ONCE] = column[part]
