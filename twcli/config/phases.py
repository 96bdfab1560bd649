"""The phases of a command, in their order, and one clock for all of them: the commands say when one
begins and, as soon as a rate is known, how long the later ones will take; `cli` shows it.

    1/5 data: train.jsonl: x and y, 600 records
    2/5 load the model: SmolLM2-135M ...

Seconds everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

DATA = "data"
LOAD_MODEL, LOAD_RUN = "load the model", "load the run"
CHECK_PRECISION = "compare with float32"
SCORE = "score the records"
CHECK_BASELINE = "check the baseline"
FEATURES = "compute features and b_t"
NAME = "name the records"
TRAIN = "train"
JUDGE_RUN = "score the run"
ORIGINAL = "forward passes of the original model"
POSTERIOR = "forward passes of the run"
COMPLETE = "complete the prompts"
DRAW = "draw samples"
SAVE = "save"
PAGE = "figures and page"
WRITE = "write the folder"
CHECK = "load it again and compare"

MEASURE = "measure the speed"

PRECOMPUTE = (DATA, LOAD_MODEL, SCORE, SAVE)
DISCOVER = (DATA, LOAD_MODEL, FEATURES, NAME, PAGE)
TRAINING = (DATA, LOAD_MODEL, CHECK_BASELINE, NAME, ORIGINAL, TRAIN, JUDGE_RUN, SAVE)
EVALUATION = (DATA, LOAD_RUN, ORIGINAL, POSTERIOR, COMPLETE, PAGE)
EXPORT = (LOAD_RUN, WRITE, CHECK)
REHEARSAL = (DATA, LOAD_MODEL, MEASURE)


class Phases:
    """Which phases come, which one runs, and what is expected of them.

    Args:
        begun: called with this object and a note each time that a phase begins.
    """

    def __init__(self, begun: Callable[[Phases, str], None] | None = None) -> None:
        self._begun = begun
        self._names: list[str] = []
        self._place = -1
        self._expected: dict[str, float] = {}
        self._now: float | None = None  # of the phase that runs, where this time differs

    def plan(self, names: Iterable[str]) -> None:
        """Which phases come, from the first one on. A name may come again."""
        self._names = list(names)
        self._place = -1

    def begin(self, name: str, note: str = "") -> None:
        """The phase of this name begins; those before it are over or are left out.

        Args:
            note: what is waited for, in a few words.
        """
        ahead = self._names[self._place + 1 :]
        if name not in ahead:  # it was not planned
            ahead = [name, *ahead]
            self._names[self._place + 1 :] = ahead
        self._place += 1 + ahead.index(name)
        self._now = None
        if self._begun is not None:
            self._begun(self, note)

    def begin_next(self, note: str = "") -> None:
        """As `begin`, of the phase that is planned next, for callers that know the order only."""
        following = self._names[self._place + 1]
        self.begin(following, note)

    def expect(self, seconds: dict[str, float]) -> None:
        """How long phases take in seconds, by name, each time that they come; those of before are
        replaced.
        """
        self._expected.update(seconds)

    def expect_now(self, seconds: float) -> None:
        """How long the phase that runs takes this time: less where a part of it was done before."""
        self._now = seconds

    def revise(self, seconds: float) -> None:
        """How long the phase that runs takes in all, in seconds, as is known now; nothing where
        none runs.
        """
        if self._place >= 0:
            self._expected[self._names[self._place]] = seconds

    @property
    def name(self) -> str:
        """Of the phase that runs, with its number; empty where none does."""
        if self._place < 0:
            return ""
        return f"{self._place + 1}/{len(self._names)} {self._names[self._place]}"

    @property
    def coming(self) -> list[str]:
        """The names of the phases after this one, with their numbers."""
        first = self._place + 1
        names = self._names[first:]
        return [f"{number} {name}" for number, name in enumerate(names, start=first + 1)]

    def expected(self) -> float | None:
        """Seconds that the phase that runs takes in all; None where that is not known."""
        if self._place < 0:
            return None
        if self._now is not None:
            return self._now
        return self._expected.get(self._names[self._place])

    def after(self) -> float | None:
        """Seconds that the phases after this one take; None where one of them is not known."""
        ahead = self._names[self._place + 1 :]
        if any(name not in self._expected for name in ahead):
            return None
        return sum(self._expected[name] for name in ahead)


def precompute_phases(precision: str) -> tuple[str, ...]:
    """Of `twcli precompute`."""
    if precision == "fp32":
        return PRECOMPUTE
    return (DATA, LOAD_MODEL, CHECK_PRECISION, SCORE, SAVE)


def training_phases(warm_start: str, seeds: int) -> tuple[str, ...]:
    """Of `twcli train`, for so many runs that share the naming of the first."""
    again = tuple(name for name in TRAINING if name not in (DATA, NAME))
    first: tuple[str, ...] = TRAINING
    if warm_start == "none":
        first = tuple(name for name in TRAINING if name != NAME)
    return first + (seeds - 1) * again


def sampling_phases(data: bool, load: str | None) -> tuple[str, ...]:
    """Of `twcli sample`.

    Args:
        data: whether prompts are read from a file.
        load: the phase that loads the model; None where a server has it.
    """
    phases = []
    if data:
        phases.append(DATA)
    if load:
        phases.append(load)
    return (*phases, DRAW)


def evaluation_phases(samples: bool, runs: int) -> tuple[str, ...]:
    """Of `twcli eval`, of so many runs."""
    _, *passes, last = EVALUATION
    draw = [DRAW] if samples else []
    of_run = [*passes, *draw, last]
    return (DATA, *(runs * of_run))


def is_main_process() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first that
    `accelerate launch` started.
    """
    return int(os.environ.get("RANK", "0")) == 0
