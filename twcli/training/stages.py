"""What each step trains on and under which posterior.

    hold     q is the naming, which is also taught to the posterior
    refine   q is the naming as the generator corrects it for this batch
    settle   the records of the step before once more: q is the naming as corrected, and is taught
             to the posterior
    free     q is the learned posterior or the closed form

A run with a naming holds it. Where each strategy writes one string a prompt it refines and settles
by turns once the generator distinguishes all latents, writes none of them worse than the others,
and disagrees with names, however long it learns them, which is measured on held-out records: names
that it agrees with could only become worse. Where strategies may repeat within a prompt it holds to
the end, as nothing keeps the generator's own names apart there. A run without a naming is free from
the first step to the last.

Where positions need not be whole numbers, those of the latent section grow from nothing over the
first steps: y then moves from where the original model had it little by little, and not by the
whole section at once, at which a small model would have to learn its task again.

A run of default length ends early where nothing improves on the held-out records any more and every
latent is written as well as by the original model: the learning rate then falls to its end within
a few steps.

All follows from the step's number and from what was measured, so that a resumed run repeats it.

Shapes: K latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twcli.data.batches import Batch, BatchSampler

HOLD, REFINE, SETTLE, FREE = "hold", "refine", "settle", "free"
# As the command line has them; `metrics.jsonl` has the others.
STAGE_NAMES = {HOLD: "names kept", REFINE: "renaming", SETTLE: "renaming", FREE: "no names"}
# Names of which a share is wrong leave the generator unsure by about that share.
CERTAIN = 0.7  # mean probability of a record's likeliest latent from which the generator reads z
AGREED = 0.5  # share of a latent's records that the generator finds likeliest under it, at least
LEARNED = 0.95  # the same, of a latent that needs no more training
UNCHANGED = 2  # measurements in a row without more agreement, after which names may be corrected
PATIENCE = 3  # measurements in a row without improvement, after which a run may end
LEAST_SHARE = 0.3  # of the steps, before which it does not end
COOLING_SHARE = 0.25  # of the steps done, in which the learning rate then falls
WARMUP_SHARE = 0.05
GROWTH_SHARE = 0.25  # of the steps, over which the latent section grows
SHARE_POWER = 0.5  # of a latent's share of the rows, in proportion to which `hold` takes it
FINAL_LR_SHARE = 0.1

SamplerOf = Callable[[str, np.ndarray | None], BatchSampler]


@dataclass
class Course:
    """Which stage each step is in, what share of the learning rate it has, and when the run ends.

    Attributes:
        planned: steps of the whole run.
        named: whether there is a naming.
        corrected: whether the generator corrects it once it reads the latents.
        may_end: whether the run ends early where nothing improves.
        grows: whether the positions of the latent section grow.
        opened: first step that refines; None before that is known.
        cooling: step from which the learning rate falls to its end; None before that is known.
    """

    planned: int
    named: bool
    corrected: bool = False
    may_end: bool = False
    grows: bool = False
    opened: int | None = None
    cooling: int | None = None
    _nll: list[tuple[float, float]] = field(default_factory=list)
    _agreed: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of the whole run, as far as is known."""
        if self.cooling is None:
            return self.planned
        cooling_steps = max(1, round(COOLING_SHARE * self.cooling))
        end = self.cooling + cooling_steps
        return min(self.planned, end)

    def stage(self, step: int) -> str:
        """Stage of a step, counted from 0; `refine` stands for its turns with `settle`."""
        if not self.named:
            return FREE
        if self.opened is None or step < self.opened:
            return HOLD
        return REFINE

    def first(self, stage: str) -> int:
        """First step of a stage."""
        if stage != REFINE or self.opened is None:
            return 0
        return self.opened

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, a cosine down to a tenth, and from
        `cooling` on a straight line to a tenth.
        """
        if self.cooling is None or step < self.cooling:
            return schedule(step, self.planned)
        left = (self.steps - step) / (self.steps - self.cooling)
        highest = schedule(self.cooling, self.planned)
        return min(highest, FINAL_LR_SHARE + (highest - FINAL_LR_SHARE) * left)

    def section_width(self, step: int) -> float:
        """Of the positions of the latent section at a step, from 0 to 1: as of
        `LatentModel.section_width`.
        """
        if not self.grows:
            return 1.0
        return min(1.0, step / (GROWTH_SHARE * self.planned))

    def observe(self, step: int, measured: dict[str, Any]) -> None:
        """Takes what `held_out.measurement` found after `step` steps.

        The batch of the step after is already being read, so what changes does so from the one
        behind it on.
        """
        sure = measured["held_out_certainty"]
        agreed = measured["held_out_agreement"]
        known = [share for share in agreed if share is not None]
        if not known or self.section_width(step) < 1:  # what is measured is of other positions
            return
        self._nll.append((measured["held_out_nll"], measured["held_out_nll_error"]))
        self._agreed.append(min(known))
        caught_up = not any(measured["held_out_below"])
        reads = sure >= CERTAIN and min(known) > AGREED
        if self.corrected and self.opened is None and reads and caught_up and self._disagrees():
            self.opened = step + 1
            self._nll = []  # names may change now, and the NLL is under them
        learned = (
            min(known) >= LEARNED
            and measured["held_out_posterior"] >= LEARNED
            and not any(measured["held_out_behind"])
        )
        if (
            self.may_end
            and self.cooling is None
            and learned
            and step >= LEAST_SHARE * self.planned
            and self._stalled()
        ):
            self.cooling = step + 1

    def _disagrees(self) -> bool:
        """Whether the generator finds records likelier under other latents than their names, and no
        fewer than before.

        Names that are corrected while two latents are still alike to it are exchanged at random;
        and names that it agrees with may be exchanged for some prompts, which it then learns.
        """
        before = self._agreed[:-UNCHANGED]
        last = self._agreed[-UNCHANGED:]
        if max(last) >= LEARNED:
            return False
        return bool(before) and max(last) <= max(before)

    def _stalled(self) -> bool:
        """Whether none of the last measurements is better than the best before them by more than
        the standard error of the difference.
        """
        before = self._nll[:-PATIENCE]
        last = self._nll[-PATIENCE:]
        if not before:
            return False
        best, error = min(before)
        return all(nll > best - math.hypot(error, other) / 4 for nll, other in last)


@dataclass(frozen=True)
class Repetitions:
    """How often `hold` takes each row in an epoch, and how much it counts each time.

    Attributes:
        times_N: (N,) on average.
        weight_N: (N,) of mean 1 over what is taken, by which each row counts alike again.
    """

    times_N: np.ndarray
    weight_N: np.ndarray

    @classmethod
    def of(cls, latent_N: np.ndarray, rows: np.ndarray) -> Repetitions:
        """How often each row is taken in `hold`.

        A rare latent has few records, and would be learned last. Each latent is taken in proportion
        to the square root of its share of the rows, as is usual for classes of unequal size
        (Mahajan et al. 2018); the most frequent one once.

        Args:
            latent_N: the naming, at least 0 on `rows`.
            rows: (R,) those that are held.
        """
        times_N = np.ones(len(latent_N))
        if not len(rows):
            return cls(times_N, times_N)
        counts_K = np.bincount(latent_N[rows])
        times_N[rows] = (counts_K.max() / counts_K[latent_N[rows]]) ** (1 - SHARE_POWER)
        return cls(times_N, times_N[rows].mean() / times_N)


def turns_of(stage: str) -> tuple[str, ...]:
    """The stages that take turns with one, itself included, in their order."""
    if stage in (REFINE, SETTLE):
        return REFINE, SETTLE
    return (stage,)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to a tenth."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * phase))


def batches(
    course: Course,
    step: int,
    batch_sampler_of: SamplerOf,
    named_rows: np.ndarray,
    all_rows: np.ndarray,
    *,
    rank: int = 0,
    processes: int = 1,
    accumulate: int = 1,
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """What this process does at each step from `step` on, to the last one, and on the rows of which
    batches.

    A step takes the sampler's next processes x accumulate batches, whoever computes them: 1 x 8
    and 8 x 1 are the same step.

    Args:
        batch_sampler_of: the order in which a stage goes through the given rows.
        named_rows: (R,) those of training that have a name, which `hold` takes.
        all_rows: (R,) those of training.

    Yields:
        The stage, and the (B,) rows of each batch.
    """
    before = None
    stream: Iterator[np.ndarray] = iter(())
    mine: list[np.ndarray] = []
    while step < course.steps:
        stage = course.stage(step)
        visit, turn = divmod(step - course.first(stage), 2 if stage == REFINE else 1)
        if stage != before:
            sampler = batch_sampler_of(stage, named_rows if stage == HOLD else all_rows)
            stream = sampler.stream(skip=visit * processes * accumulate)
        if stage != before or turn == 0:
            every = [next(stream) for _ in range(processes * accumulate)]
            mine = every[rank * accumulate : (rank + 1) * accumulate]
        before = stage
        yield SETTLE if turn else stage, mine
        step += 1


def prefetch(
    steps: Iterable[tuple[str, list[np.ndarray]]], read: Callable[[np.ndarray], Batch]
) -> Iterator[tuple[str, list[Batch]]]:
    """The steps' batches, which a thread reads while the step before is computed; the same rows
    again are not read again.

    Args:
        steps: the stage of each step, and the rows (B,) of each of its batches.

    Raises:
        Whatever `read` raises, at the step that wants the batch.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: tuple[str, list[Future[Batch]]] | None = None
        rows_before = None
        reading: list[Future[Batch]] = []
        for stage, rows in steps:
            if rows is not rows_before:
                rows_before = rows
                reading = [thread.submit(read, batch_rows) for batch_rows in rows]
            if waiting:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = stage, reading
        if waiting:
            yield waiting[0], [future.result() for future in waiting[1]]
