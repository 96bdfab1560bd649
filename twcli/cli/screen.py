"""What a command prints: messages, phases and one clock on stderr, results on stdout.

On a terminal the last line lives: what is done, and how long all of it still takes. Elsewhere it
is a plain line every ten seconds, less often the longer it takes.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

import click

from twcli.config.phases import Phases, is_main_process
from twcli.training.defaults import duration

COLUMNS = 80  # where no terminal and no COLUMNS says another width
TICK_SECONDS = 0.5  # of the living line
LOG_SECONDS = 10.0  # between lines of the clock, at least
LOG_SHARE = 0.05  # and this share of the phase's time so far
LATER = 2.0  # times as long the clock waits where something else should have had a line by then
RECENT_SHARE = 0.05  # of a training's steps, over which its figures are pooled
WITH_BAR = "{desc} {percentage:3.0f}%|{bar:10}|{postfix}"
WITHOUT = "{desc}{postfix}"


def folded(text: str) -> str:
    """The text in lines that fit the terminal, or `COLUMNS`; paths and other words stay whole."""
    lines = textwrap.wrap(
        text,
        shutil.get_terminal_size((COLUMNS, 24)).columns,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


@dataclass
class Status:
    """What the clock tells of.

    Attributes:
        total: what is to be done, 0 where it cannot be counted.
        done, first: how much of it is done, and was when the clock began.
        note: a speed.
        seen, part: when it was last known how much is done, and how much of it was new then.
        has_lines: whether what is done has lines of its own.
    """

    label: str
    total: int
    begin: float
    done: int = 0
    first: int = 0
    note: str = ""
    has_lines: bool = False
    seen: float = 0.0
    part: int = 0

    def advance(self, done: int) -> None:
        """So much is done now, in all."""
        self.part = done - self.done
        self.done = done
        self.seen = time.monotonic()

    @property
    def counted(self) -> bool:
        """Whether a rate is known: there is a total, and something was done since the bar began."""
        return self.total > 0 and self.done > self.first


class Screen:
    """Prints messages to stderr and results to stdout, until the `with` block ends.

    Args:
        quiet: no messages and no clock, as in all processes of a job but the first.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet or not is_main_process()
        self.live = sys.stderr.isatty() and not self.quiet
        self.phases = Phases(self._phase_begins)
        self._lock = threading.RLock()
        self._stack: list[Status] = []
        self._phase_began = self._last_line = time.monotonic()
        self._ended = threading.Event()
        self._bar: Any = None
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        if not self.quiet:
            self._ticker.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if not self.quiet:
            self._ticker.join()
        self._close_bar()

    # lines

    def say(self, text: str) -> None:
        """Prints a message, folded to the width of the terminal; nothing with `--quiet`."""
        if self.quiet:
            return
        with self._lock:
            self._last_line = time.monotonic()
            self._write(folded(text) + "\n", sys.stderr)

    def show(self, result: str) -> None:
        """Prints a result, which includes its newline, without breaking the living line."""
        with self._lock:
            self._write(result, sys.stdout)

    def _write(self, text: str, stream: TextIO) -> None:
        """Writes whole lines, above the bar where there is one."""
        if self.live:
            from tqdm import tqdm

            tqdm.write(text, file=stream, end="")
        else:
            click.echo(text, file=stream, nl=False)

    # phases and the clock

    def _phase_begins(self, phases: Phases, note: str) -> None:
        """Says which phase begins, and counts its time from now; bars of the phase before are
        dropped.

        Args:
            note: what is waited for, empty for nothing.
        """
        with self._lock:
            began = time.monotonic()
            self._phase_began = began
            self._stack = [Status(phases.name, 0, began)]
            line = phases.name
            if note:
                line += f": {note}"
            self.say(line)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        """Within it the clock tells how much of `total` is done. What it yields takes how much was
        done and, if there is one, a note on the speed.
        """
        name = self.phases.name
        status = Status(f"{name}: {label}" if name else label, total, time.monotonic())
        with self._lock:
            self._stack.append(status)

        def advance(count: int, note: str = "") -> None:
            status.advance(status.done + count)
            status.note = note

        try:
            yield advance
        finally:
            with self._lock:
                if status in self._stack:
                    self._stack.remove(status)

    def _tick(self) -> None:
        """Redraws the bar, or without a terminal says a line now and then, until the end."""
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                if not self._stack:
                    continue
                if self.live:
                    self._draw(self._stack[-1])
                elif self._due(LATER if self._stack[-1].has_lines else 1.0):
                    self.say(self._line(self._stack[-1]))

    def _due(self, times: float = 1.0) -> bool:
        """Whether it is long enough since the last line.

        Args:
            times: as long as usual.
        """
        now = time.monotonic()
        wait = max(LOG_SECONDS, LOG_SHARE * (now - self._phase_began))
        return now - self._last_line >= times * wait

    def _line(self, status: Status) -> str:
        """How far a piece of work is and how long it will take, as one line."""
        parts = []
        if status.counted:
            part = min(1.0, status.done / status.total)
            parts.append(f"{part:.0%}")
        if status.note:
            parts.append(status.note)
        parts.append(self._time(status))
        return f"{status.label}: {', '.join(parts)}"

    def _time(self, status: Status) -> str:
        """How long it still takes, in all where that is known; else how long it has taken."""
        here = self._left(status)
        after = self.phases.after()
        if here is None:
            return f"{duration(time.monotonic() - status.begin)} so far"
        if after is None:
            return f"about {duration(here)} left of this phase"
        return f"about {duration(here + after)} left in all"

    def _left(self, status: Status) -> float | None:
        """Seconds that the phase still takes; None where nothing says so."""
        now = time.monotonic()
        if status.counted:
            rate = (status.seen - status.begin) / (status.done - status.first)
            left = max(0, status.total - status.done)
            after_this_part = max(0, left - status.part)
            since = now - status.seen
            return max(rate * left - since, rate * after_this_part)
        expected = self.phases.expected()
        taken = now - self._phase_began
        # one that takes longer than expected says nothing of what is left
        if expected is None or expected <= taken:
            return None
        return expected - taken

    def _draw(self, status: Status) -> None:
        """Shows a piece of work as a bar as wide as the terminal."""
        from tqdm import tqdm

        width = shutil.get_terminal_size((COLUMNS, 24)).columns - 1
        if self._bar is None:
            self._bar = tqdm(total=1, file=sys.stderr, leave=False, ncols=width)
        self._bar.ncols = width
        self._bar.bar_format = WITH_BAR if status.counted else WITHOUT
        self._bar.total = max(1, status.total)
        self._bar.n = min(status.done, status.total)
        self._bar.set_description_str(status.label, refresh=False)
        note = f"{status.note}, " if status.note else ""
        self._bar.set_postfix_str(note + self._time(status), refresh=True)

    def _close_bar(self) -> None:
        """Removes the bar, so that lines can follow."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # training

    @contextmanager
    def training(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Gives a function that takes each step's metrics: the clock counts the steps, and a line
        with figures comes about as often as the clock's, and after the last step.
        """
        from twcli.training.diagnostics import progress_line

        recent: deque[dict[str, Any]] = deque()
        status: Status | None = None

        def on_step(m: dict[str, Any]) -> None:
            nonlocal recent, status
            step = m["step"]
            steps = m["steps"]
            now = time.monotonic()
            if status is None:  # a resumed run begins where it was interrupted
                label = f"{self.phases.name}: steps"
                status = Status(label, steps, now, step, step, has_lines=True)
                with self._lock:
                    self._stack.append(status)
                recent = deque(maxlen=max(2, round(RECENT_SHARE * steps)))
            status.advance(step)
            status.total = steps
            recent.append(m)
            if step == steps or self._due():
                left = self._left(status)
                after = self.phases.after()
                if left is None:
                    clock = ""
                else:
                    clock = f"  {duration(left + (after or 0.0))} left"
                self.say(progress_line(recent) + clock)
            if step == steps:
                with self._lock:
                    if status in self._stack:
                        self._stack.remove(status)
                taken = now - self._phase_began
                self.phases.expect_now(taken)
                if status.first <= 1:  # another run, which may follow, takes as long
                    self.phases.revise(taken)
                status = None

        yield on_step
