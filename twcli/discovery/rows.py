"""The rows that are named, prompt by prompt, and where their features come from.

Shapes: N rows of the data, R distinct ones, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.discovery.features import Features, embed_rows

FIT_PROMPTS = 3000  # prompts that are clustered; all others are only assigned
BLOCK_PROMPTS = 1024  # of the others, assigned at a time
CHUNK_ROWS = 32  # of one prompt that are named together

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Source(Protocol):
    """Where features come from: a model that is run, or a file that keeps them."""

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """Features of distinct rows of the data."""
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
    """A progress bar that shows nothing."""
    return nullcontext(lambda _count: None)


@dataclass(frozen=True)
class Rows:
    """The distinct rows of the data, prompt by prompt.

    Attributes:
        rows: (R,) their first occurrences in the data.
        sizes: (P,) distinct rows of each prompt.
    """

    rows: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded) -> Rows:
        """All of them; prompts in the order of their numbers."""
        _, first = np.unique(encoded.row_hash, axis=0, return_index=True)
        first.sort()
        prompt = encoded.prompt_index[first]
        order = np.argsort(prompt, kind="stable")
        return cls(first[order], np.unique(prompt, return_counts=True)[1])

    def groups(self, least: int = 1) -> list[np.ndarray]:
        """Each prompt's rows, where it has `least` of them."""
        cuts = np.cumsum(self.sizes)[:-1]
        return [group for group in np.split(self.rows, cuts) if len(group) >= least]

    def chunks(self) -> list[np.ndarray]:
        """Each prompt's rows, at most `CHUNK_ROWS` together: a prompt with thousands of completions
        is taken for several, or one prompt could be all that is looked at.

        Returns:
            (rows,) of each chunk.
        """
        chunks: list[np.ndarray] = []
        for group in self.groups():
            starts = range(0, len(group), CHUNK_ROWS)
            chunks += [group[start : start + CHUNK_ROWS] for start in starts]
        return chunks


def blocks(items: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """At most `size` of the items at a time.

    Args:
        items: (R,) rows each.

    Yields:
        Lists of (R,) rows.
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def of_equal_rows(encoded: Encoded, *columns: np.ndarray) -> list[np.ndarray]:
    """What the first of equal rows has, for all of them.

    Args:
        columns: (N, ..) each.

    Returns:
        Each of the shape that it had.
    """
    _, first, inverse = np.unique(encoded.row_hash, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    return [column[first][inverse] for column in columns]
