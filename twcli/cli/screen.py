"""What a command prints: messages and progress bars on stderr, plain lines if that is not a
terminal; results on stdout.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import click

from twcli.training.defaults import duration

LOG_SECONDS = 10.0  # between progress lines, if stderr is not a terminal
TRAIN_LINES = 20  # approximate number of lines that a training run prints


class Screen:
    """Prints messages to stderr and results to stdout."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet

    def say(self, text: str) -> None:
        """Prints a message; nothing with `--quiet`."""
        if not self.quiet:
            self._write(text + "\n", sys.stderr)

    def show(self, result: str) -> None:
        """Prints a result, which includes its newline, without breaking a progress bar."""
        self._write(result, sys.stdout)

    def _write(self, text: str, stream: TextIO) -> None:
        if self.live:
            from tqdm import tqdm

            tqdm.write(text, file=stream, end="")
        else:
            click.echo(text, file=stream, nl=False)

    @contextmanager
    def progress(self, label: str, total: int, lines: bool = True) -> Iterator[Callable[..., None]]:
        """A progress bar with ETA on a terminal; elsewhere a line every few seconds, unless `lines`
        is off. What it yields takes how much was done and, if there is one, a note on the speed.
        """
        if self.live:
            from tqdm import tqdm

            with tqdm(
                total=total,
                desc=label,
                file=sys.stderr,
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            ) as bar:

                def update(count: int, note: str = "") -> None:
                    bar.set_postfix_str(note, refresh=False)
                    bar.update(count)

                yield update
            return
        done, start, last = 0, time.monotonic(), time.monotonic()

        def advance(count: int, note: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if lines and now - last >= LOG_SECONDS:
                last = now
                left = (now - start) / done * (total - done)
                speed = f", {note}" if note else ""
                self.say(f"{label}: {done / total:.0%}{speed}, about {duration(left)} left")

        yield advance

    @contextmanager
    def training(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Gives a function that takes each step's metrics: a bar of the steps, and about
        `TRAIN_LINES` lines with logged values.
        """
        from twcli.training.diagnostics import pooled_information

        recent: deque[dict[str, Any]] = deque()
        begin, first, advance = 0.0, 0, None

        def on_step(m: dict[str, Any]) -> None:
            nonlocal begin, first, advance, recent
            step, steps = m["step"], m["steps"]
            every = max(1, steps // TRAIN_LINES)
            if advance is None:  # a resumed run begins where it was interrupted
                begin, first = time.monotonic(), step
                advance = bars.enter_context(self.progress("training", steps, lines=False))
                advance(step - 1)
                recent = deque(maxlen=every)
            advance(1)
            recent.append(m)
            if step % every == 0 or step == steps:
                left = (time.monotonic() - begin) / max(step - first, 1) * (steps - step)
                information, usage = pooled_information(recent)
                self.say(
                    f"step {step:>5}  {m['stage']:<6}  loss {m['loss']:.4f}  I(z; y) "
                    f"{information:.3f} nats, effective latents {usage:.2f}  "
                    f"about {duration(left)} left"
                )
            if step == steps:
                bars.close()
                advance = None  # another run may follow

        with ExitStack() as bars:
            yield on_step
