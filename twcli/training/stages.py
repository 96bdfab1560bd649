"""What each step trains on and under which posterior.

    hold     q is the warm start's cluster
    refine   q is the assignment of a prompt's completions to latents under which the generator
             finds them likeliest
    settle   the records of the step before once more: q is the assignment found, and is taught
             to the posterior
    free     q is the learned posterior or the closed form

A run with a warm start holds, then refines and settles by turns, and ends free where `--release`
says so; without one it is free from the first step to the last. All follows from the step's number
alone, so that a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from twcli.data.batches import Batch, BatchSampler

HOLD, REFINE, SETTLE, FREE = "hold", "refine", "settle", "free"

SamplerOf = Callable[[str, np.ndarray | None], BatchSampler]


@dataclass(frozen=True)
class Stage:
    """Steps `first` to `last` - 1, counted from 0."""

    name: str
    first: int
    last: int


def stages_of(steps: int, *, hold: float, release: float, warm: bool) -> list[Stage]:
    """The stages of a run, none of them empty; `refine` stands for its turns with `settle`.

    Args:
        hold, release: shares of the steps.
        warm: whether there is a warm start.
    """
    if not warm:
        return [Stage(FREE, 0, steps)]
    held = round(hold * steps)
    free = max(held, steps - round(release * steps))
    cuts = ((HOLD, 0, held), (REFINE, held, free), (FREE, free, steps))
    return [Stage(name, first, last) for name, first, last in cuts if first < last]


def remaining(stages: list[Stage], step: int, name: str) -> float:
    """Share of the stage `name` that lies ahead at `step`: 1 at its first step, 0 behind it."""
    stage = next(stage for stage in stages if stage.name == name)
    return (stage.last - step) / (stage.last - stage.first)


def batches(
    stages: list[Stage],
    step: int,
    batch_sampler_of: SamplerOf,
    held_rows: np.ndarray,
    *,
    rank: int = 0,
    processes: int = 1,
    accumulate: int = 1,
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """What this process does at each step from `step` on, to the last one, and on
    the rows of which batches.

    A step takes the plan's next processes x accumulate batches, whoever reads them: 1 x 8
    and 8 x 1 are the same step.

    Args:
        batch_sampler_of: the plan of a stage over the given rows, over all where None.
        held_rows: those that the warm start assigned.
    """
    for stage in stages:
        if step >= stage.last:
            continue
        sampler = batch_sampler_of(stage.name, held_rows if stage.name == HOLD else None)
        names = (REFINE, SETTLE) if stage.name == REFINE else (stage.name,)
        start = max(step, stage.first)
        visits, turn = divmod(start - stage.first, len(names))
        stream = sampler.stream(skip=visits * processes * accumulate)
        for number in range(start, stage.last):
            if number == start or turn == 0:
                every = [next(stream) for _ in range(processes * accumulate)]
                mine = every[rank * accumulate : (rank + 1) * accumulate]
            yield names[turn], mine
            turn = (turn + 1) % len(names)


def prefetch(
    steps: Iterable[tuple[str, list[np.ndarray]]], read: Callable[[np.ndarray], Batch]
) -> Iterator[tuple[str, list[Batch]]]:
    """The steps' batches, which a thread reads while the step before is computed; the same rows
    again are not read again.

    Raises:
        Whatever `read` raises, at the step that wants the batch.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: tuple[str, list[Future]] | None = None
        rows_before, reading = None, []
        for stage, rows in steps:
            if rows is not rows_before:
                rows_before, reading = (
                    rows,
                    [thread.submit(read, batch_rows) for batch_rows in rows],
                )
            if waiting:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = stage, reading
        if waiting:
            yield waiting[0], [future.result() for future in waiting[1]]
