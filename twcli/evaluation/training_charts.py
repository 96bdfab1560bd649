"""What `metrics.jsonl` says, as charts: of one run, or of several laid over each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twcli.pages import charts
from twcli.pages.charts import Line
from twcli.training.diagnostics import pooled_information
from twcli.training.stages import STAGE_NAMES

POOLED_STEPS = 25  # number of steps that each point of a curve is averaged over
POINTS = 200  # of a curve, at most

Metrics = Sequence[dict[str, Any]]


def of_run(metrics: Metrics) -> list[dict[str, Any]]:
    """Charts of a run."""
    if not metrics:
        return []
    windows = _windows(metrics)
    stages = _stages(metrics)
    found = [_information({"I(z; y)": metrics}, stages), _loss({"loss": metrics}, stages)]
    found.append(_gain(metrics, stages))
    if "posterior_mass" in metrics[0]:
        found.append(
            charts.bands(
                "Posterior usage",
                [(step, _usage(window)) for step, window in windows],
                note="Share of the records that the posterior assigns to each latent, over the "
                f"last {POOLED_STEPS} steps. A single band means that the other latents are dead.",
            )
        )
    amplified = [
        Line("measured", _means(windows, "amplification")),
        Line("expected, T / t0", _means(windows, "expected_amplification")),
    ]
    found.append(
        charts.curves(
            "Amplification of the posterior's gradient",
            amplified,
            unit="times, logarithmic scale",
            note="By weighting with b_t: as measured, and as predicted from the share of "
            "informative tokens. 1 means no effect.",
            log=True,
            stages=stages,
        )
    )
    return [chart for chart in found if chart is not None]


def of_runs(metrics: Mapping[str, Metrics]) -> list[dict[str, Any]]:
    """Charts of several runs, a line each."""
    known = {name: each for name, each in metrics.items() if each}
    found = [_information(known, []), _loss(known, [])]
    lines = [
        Line(name, [(m["step"], m["held_out_nll"]) for m in each if "held_out_nll" in m])
        for name, each in known.items()
    ]
    found.append(
        charts.curves(
            "Held-out records", lines, unit="nats per record, logarithmic scale", log=True
        )
    )
    return [chart for chart in found if chart is not None]


def _information(
    runs: Mapping[str, Metrics], stages: list[tuple[float, str]]
) -> dict[str, Any] | None:
    """What z says of y over the steps, with the most that K latents can say."""
    lines = [
        Line(name, [(step, pooled_information(window)[0]) for step, window in _windows(metrics)])
        for name, metrics in runs.items()
    ]
    latents = max(
        (len(metrics[0].get("posterior_mass", ())) for metrics in runs.values()), default=0
    )
    most = math.log(latents) if latents > 1 else None
    return charts.curves(
        "Mutual information I(z; y)",
        lines,
        unit="nats",
        note="What the posterior's z says of the completion.",
        top=most,
        reference=None if most is None else (most, f"log K = {most:.2f}, the most"),
        stages=stages,
    )


def _loss(runs: Mapping[str, Metrics], stages: list[tuple[float, str]]) -> dict[str, Any] | None:
    """What is minimised, over the steps."""
    lines = []
    for name, metrics in runs.items():
        points = _means(_windows(metrics), "loss")
        lines.append(Line(name, points))
    return charts.curves(
        "Loss",
        lines,
        unit="nats per token, logarithmic scale",
        note="What is minimised; its parts differ between stages.",
        log=True,
        stages=stages,
    )


def _gain(metrics: Metrics, stages: list[tuple[float, str]]) -> dict[str, Any] | None:
    """Of held-out records; a latent without any has no line."""
    measured = [m for m in metrics if "held_out_gain" in m]
    points: dict[int, list[tuple[float, float]]] = {}
    for m in measured:
        for k, gain in enumerate(m["held_out_gain"]):
            points.setdefault(k, [])
            if gain is not None:
                points[k].append((m["step"], gain))
    lines = [Line(f"z{k}", points[k], latent=k) for k in sorted(points)]
    return charts.curves(
        "Each latent's held-out records against the original model",
        lines,
        unit="nats per record",
        note=(
            "Above the line the run writes them better than the original model, below it worse. "
            "They were kept out of this training, not out of the original model's."
        ),
        reference=(0.0, "the original model"),
        stages=stages,
    )


def _windows(metrics: Metrics) -> list[tuple[int, Metrics]]:
    """(step, the steps up to it that a point is averaged over)."""
    last = len(metrics) - 1
    stride = max(1, len(metrics) // POINTS)
    picked = {*range(0, len(metrics), stride), last}
    windows = []
    for i in sorted(picked):
        first = max(0, i - POOLED_STEPS)
        windows.append((metrics[i]["step"], metrics[first : i + 1]))
    return windows


def _stages(metrics: Metrics) -> list[tuple[float, str]]:
    """Where each stage begins, by the name that a line of training has for it."""
    found: list[tuple[float, str]] = []
    seen: set[str] = set()
    for m in metrics:
        if m.get("stage") is None:
            continue
        stage = str(m["stage"])
        name = STAGE_NAMES.get(stage, stage)  # an earlier version may have had another stage
        if name not in seen:
            seen.add(name)
            found.append((m["step"], name))
    return found


def _means(windows: Iterable[tuple[int, Metrics]], key: str) -> list[tuple[float, float]]:
    """(last step, mean) of a figure over each window that has it."""
    points: list[tuple[float, float]] = []
    for step, window in windows:
        known = [m[key] for m in window if m.get(key) is not None]
        if known:
            points.append((step, sum(known) / len(known)))
    return points


def _usage(window: Metrics) -> list[float]:
    """(K,) shares over the records of several steps."""
    total = sum(m["records"] for m in window)
    latents = len(window[0]["posterior_mass"])
    return [
        sum(m["records"] * m["posterior_mass"][k] for m in window) / total for k in range(latents)
    ]
