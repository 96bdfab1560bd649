"""What a command prints: messages and progress bars on stderr, plain lines if that is not a
terminal; results on stdout.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

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
    def progress(
        self, label: str, total: int, lines: bool = True
    ) -> Iterator[Callable[[int], None]]:
        """A progress bar with ETA on a terminal; elsewhere a line every few seconds, unless `lines`
        is off.
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
                yield bar.update
            return
        done, start, last = 0, time.monotonic(), time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if lines and now - last >= LOG_SECONDS:
                last = now
                left = (now - start) / done * (total - done)
                self.say(f"{label}: {done / total:.0%}, about {left:.0f} s left")

        yield advance

    def follow(self, metrics: Iterator[dict[str, Any]], steps: int) -> None:
        """Shows a bar of the training steps, and about `TRAIN_LINES` lines with logged values."""
        from twcli.training.diagnostics import pooled_information

        every, begin, first = max(1, steps // TRAIN_LINES), time.monotonic(), None
        recent: deque[dict[str, Any]] = deque(maxlen=every)
        with self.progress("training", steps, lines=False) as advance:
            for m in metrics:
                step = m["step"]
                advance(step if first is None else 1)
                first = step - 1 if first is None else first
                recent.append(m)
                if step % every == 0 or step == steps:
                    left = (time.monotonic() - begin) / (step - first) * (steps - step)
                    information, usage = pooled_information(recent)
                    self.say(
                        f"step {step:>5}  {m['stage']:<6}  loss {m['loss']:.4f}  I(z; y) "
                        f"{information:.3f} nats, effective latents {usage:.2f}  "
                        f"about {left:.0f} s left"
                    )
