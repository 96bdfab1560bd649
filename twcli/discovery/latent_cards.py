"""What a person is shown of each latent, in print and on pages: how many completions have it, the
phrases that set them apart, the most typical of them; and all of them as points on a plane.

Shapes: N rows of the data, K latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twcli.data.encoded import Encoded
from twcli.data.example import Example
from twcli.discovery.phrases import distinctive_phrases, typical_rows

PHRASE_ROWS = 20_000  # completions in which phrases are counted
TYPICAL = 4  # completions shown of each latent
MAP_POINTS = 2000


@dataclass(frozen=True)
class CardRows:
    """The rows whose texts are needed, so that they can be read in one pass.

    Attributes:
        counted: (n,) in which phrases are counted.
        typical: K arrays, the most typical of each latent first.
    """

    counted: np.ndarray
    typical: list[np.ndarray]

    @classmethod
    def of(
        cls,
        latent_N: np.ndarray,
        probability_N: np.ndarray,
        latents: int,
        distinct: np.ndarray,
        count: int = TYPICAL,
    ) -> CardRows:
        """Of rows with a latent.

        Args:
            latent_N: int, -1 for none.
            probability_N: how sure it is.
            distinct: (R,) rows that differ from one another: each text is shown once.
            count: typical rows of a latent, at most.
        """
        once_N = np.full(len(latent_N), -1, np.int64)
        once_N[distinct] = latent_N[distinct]
        return cls(
            some(np.flatnonzero(latent_N >= 0), PHRASE_ROWS),
            typical_rows(probability_N, once_N, None, latents, count),
        )

    @property
    def rows(self) -> list[int]:
        """All of them, those that are counted first; a row may be there twice."""
        rows = np.concatenate([self.counted, *self.typical])
        return rows.tolist()


def latent_cards(
    chosen: CardRows,
    latent_N: np.ndarray,
    probability_N: np.ndarray,
    texts: Mapping[int, Example],
    number: Callable[[int], int],
) -> list[dict[str, Any]]:
    """K dicts: latent, share, mean_probability, phrases (text, z, share, elsewhere) and typical
    (row, x, y, probability).

    Args:
        texts: of `chosen.rows`.
        number: of a row, its record in the data, from 0.
    """
    K = len(chosen.typical)
    counts_K = np.bincount(latent_N[latent_N >= 0], minlength=K)
    completions = [texts[row].y for row in chosen.counted.tolist()]
    phrases = distinctive_phrases(completions, latent_N[chosen.counted], K)
    cards = []
    for k in range(K):
        if counts_K[k]:
            mean = float(probability_N[latent_N == k].mean())
        else:
            mean = 0.0
        typical = chosen.typical[k].tolist()
        cards.append(
            {
                "latent": k,
                "share": float(counts_K[k] / max(counts_K.sum(), 1)),
                "mean_probability": mean,
                "phrases": [
                    {"text": p.text, "z": p.z, "share": p.share, "elsewhere": p.elsewhere}
                    for p in phrases[k]
                ],
                "typical": [shown(row, probability_N, texts, number) for row in typical],
            }
        )
    return cards


def shown(
    row: int,
    probability_N: np.ndarray,
    texts: Mapping[int, Example],
    number: Callable[[int], int],
) -> dict[str, Any]:
    """A completion as cards hold it: its row in the data, its two texts, and the probability of its
    latent.

    Args:
        row: place among the encoded records, which `number` turns into the row in the data.
        probability_N: (N,) of each record's latent.
    """
    example = texts[row]
    probability = float(probability_N[row])
    return {"row": number(row), "x": example.x, "y": example.y, "probability": probability}


def texts_of(
    records: Iterable[Example], encoded: Encoded, wanted: Iterable[int]
) -> dict[int, Example]:
    """The records of some rows, in one pass over all."""
    rows = {encoded.number(row): row for row in wanted}
    return {rows[number]: e for number, e in enumerate(records) if number in rows}


def some(rows: np.ndarray, most: int) -> np.ndarray:
    """(n,) of the rows (N,), at most `most`, at random but always the same, in their order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


def plane(points: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    """Rows in the plane of the two directions that separate the latents most.

    Args:
        points: (n, D) features.
        posterior: (n, K) probabilities.

    Returns:
        (n, 2).
    """
    mass_K1 = np.maximum(posterior.sum(0), 1e-9)[:, None]
    means = posterior.T @ points / mass_K1
    weight_K1 = np.sqrt(posterior.mean(0))[:, None]
    between = (means - points.mean(0)) * weight_K1
    _, _, axes = np.linalg.svd(between, full_matrices=False)
    flat = points @ axes[:2].T
    missing = 2 - flat.shape[1]
    return np.pad(flat, ((0, 0), (0, missing)))


def map_of(places: np.ndarray, latents: np.ndarray) -> dict[str, Any]:
    """The points of a chart, at most `MAP_POINTS`.

    Args:
        places: (n, 2).
        latents: (n,) int, -1 for none.
    """
    chosen = some(np.arange(len(places)), MAP_POINTS)
    return {
        "points": [
            [float(x), float(y), int(k)]
            for (x, y), k in zip(places[chosen], latents[chosen], strict=True)
        ]
    }
