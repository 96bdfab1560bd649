"""What each step trains on and under which posterior.

    hold     q is the warm start's cluster
    refine   q is the assignment of a prompt's completions to latents under which the generator finds them likeliest
    settle   q is the assignment found, on the records that have one
    free     q is the learned posterior or the closed form

A run with a warm start goes through the first three, and ends free where `--release` says so; without one it is free
from the first step to the last. The stages follow from the step's number alone, so that a resumed run repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from twcli.batches import Plan

HOLD, REFINE, SETTLE, FREE = "hold", "refine", "settle", "free"

PlanOf = Callable[[str, np.ndarray | None], Plan]


@dataclass(frozen=True)
class Stage:
    """Steps `first` to `last` - 1, counted from 0."""

    name: str
    first: int
    last: int


def stages_of(steps: int, *, hold: float, refine: float, release: float, warm: bool) -> list[Stage]:
    """The stages of a run, none of them empty.

    Args:
        hold, refine, release: shares of the steps; what they leave is `settle`.
        warm: whether there is a warm start.
    """
    if not warm:
        return [Stage(FREE, 0, steps)]
    held = round(hold * steps)
    refined = min(steps, held + round(refine * steps))
    free = max(refined, steps - round(release * steps))
    cuts = ((HOLD, 0, held), (REFINE, held, refined), (SETTLE, refined, free), (FREE, free, steps))
    return [Stage(name, first, last) for name, first, last in cuts if first < last]


def batches(stages: list[Stage], step: int, plan_of: PlanOf, held_rows: np.ndarray, *, rank: int = 0,
            processes: int = 1) -> Iterator[tuple[Stage, np.ndarray]]:
    """This process's stage and rows of each step from `step` on, to the last one.

    Args:
        plan_of: the plan of a stage over the given rows, over all where None.
        held_rows: those that the warm start assigned.
    """
    settled = held_rows
    for stage in stages:
        rows = {HOLD: held_rows, SETTLE: settled}.get(stage.name)
        plan = plan_of(stage.name, rows)
        if stage.name == REFINE:
            settled = _rows_of(plan, (stage.last - stage.first) * processes)
        start = max(step, stage.first)
        if start >= stage.last:
            continue
        stream = plan.stream(skip=(start - stage.first) * processes)
        for _ in range(start, stage.last):
            yield stage, [next(stream) for _ in range(processes)][rank]


def _rows_of(plan: Plan, count: int) -> np.ndarray:
    """The rows of a plan's first `count` batches."""
    return np.unique(np.concatenate([rows for _, rows in zip(range(count), plan.stream(), strict=False)]))
