"""Several runs on the same data, such as those of `twcli train --seeds`, side by side: mean, spread
and the best by the score that no label goes into.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from rich.table import Table

from twcli.evaluation.report import rows_of

LEFT_OUT = ("diagnostics",)  # about the weights, which say little about the result


def compare(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of several runs together.

    Args:
        results: run's name -> its result of `evaluate`.

    Returns:
        `mean`, `lowest` and `highest`, each figure's name -> value over the runs that have it;
        `score` of each run, and `best`, the run of the highest score, None where none has one.
    """
    values: dict[str, list[float]] = {}
    for result in results.values():
        for section, key, _, _, _ in rows_of(result):
            if section in LEFT_OUT:
                continue
            value = _value(result, section, key)
            if value is not None:
                values.setdefault(f"{section}.{key}" if section else key, []).append(value)
    scores = {name: result["score"] for name, result in results.items()}
    known = {name: score for name, score in scores.items() if score is not None}
    return {
        "mean": {name: mean(numbers) for name, numbers in values.items()},
        "lowest": {name: min(numbers) for name, numbers in values.items()},
        "highest": {name: max(numbers) for name, numbers in values.items()},
        "score": scores,
        "best": max(known, key=lambda name: known[name]) if known else None,
    }


def _value(result: dict[str, Any], section: str, key: str) -> float | None:
    """A figure as a number; None where it is null, or neither a number nor yes or no."""
    if section == "retention":
        gains = {f"z{entry['latent']}": entry["gain"] for entry in result["retention"] or []}
        return gains.get(key)
    value = (result[section] if section else result)[key]
    if isinstance(value, int | float):
        return float(value)
    return None


def render_comparison(compared: dict[str, Any]) -> Table:
    """The table that `twcli eval` prints of several runs; fits 80 columns."""
    scores = compared["score"]
    best = compared["best"]
    shown = ", ".join(
        f"{name} {'-' if score is None else f'{score:.3f}'}" for name, score in scores.items()
    )
    table = Table(
        title=f"{len(scores)} runs; expected alignment: {shown}",
        title_justify="left",
        caption=None if best is None else f"\nbest by expected alignment: {best}",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("figure")
    for name in ("mean", "lowest", "highest"):
        table.add_column(name, justify="right")
    for figure in compared["mean"]:
        table.add_row(
            figure, *(f"{compared[name][figure]:.3f}" for name in ("mean", "lowest", "highest"))
        )
    return table
