"""Bootstrap intervals of figures, by how often each record or prompt counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Figures = dict[str, float | int | None]


def with_intervals(
    figures_of: Callable[[np.ndarray], Figures],
    units: int,
    bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Figures at unit weights, each with the 2.5 and 97.5 percentiles over
    multinomial resamples of the units.
    """
    point = figures_of(np.ones(units))
    draws: dict[str, list[float]] = {name: [] for name in point}
    for _ in range(bootstrap):
        chosen = rng.integers(units, size=units)
        weights = np.bincount(chosen, minlength=units).astype(float)
        for name, value in figures_of(weights).items():
            if value is not None:  # a resample may miss all records that a figure is about
                draws[name].append(value)
    result: dict[str, Any] = {}
    for name, value in point.items():
        result[name] = value
        if value is None or not draws[name]:
            result[f"{name}_ci"] = None
        else:
            ends = np.percentile(draws[name], [2.5, 97.5])
            result[f"{name}_ci"] = _with_the_value(value, ends)
    return result


def _with_the_value(value: float, ends: np.ndarray) -> list[float]:
    """The interval, widened to its figure: resamples of a figure that errs to one side, such as an
    entropy or the largest of several, may all lie on that side of it.
    """
    low, high = ends
    low = min(value, low)
    high = max(value, high)
    return [float(low), float(high)]
