"""Who says whether a completion is right, and in which strategy it is written.

A judge that raises, returns something else or takes too long costs the completion its verdict; how
many, and why, is reported. Only where no completion got a verdict does the evaluation end.
"""

from __future__ import annotations

import reprlib
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twcli.errors import UserError

Verdict = tuple[str | None, bool | None]
VERDICT = "a judge returns (strategy or None, correct or None), text and True or False"
SHOWN_FAILURES = 5
AGAIN = 1.0  # seconds between alarms for a judge that swallowed the first one


class NoVerdict(Exception):
    """A judge that gave no verdict for one completion, and why."""


class _TooLong(BaseException):
    """Not an Exception, or a judge that catches all of those would continue."""


@dataclass
class Judge:
    """A judge by its name, and what it failed at.

    Attributes:
        function: x, y -> verdict; may raise anything.
        seconds: for one completion.
        names_strategies: whether it can say in which strategy a completion is written.
        calls: how many verdicts run at once.
        failures: why completions have no verdict -> how many.
        examples: a few of them: x, y and the reason.
    """

    name: str
    function: Callable[[str, str], Any]
    seconds: float
    names_strategies: bool = True
    calls: int = 1
    asked: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def verdicts(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] | None = None
    ) -> list[Verdict | None]:
        """The verdict on each (x, y), None where there is none; equal pairs are judged once.

        Raises:
            UserError: not one of them could be judged.
        """
        distinct = list(dict.fromkeys(pairs))
        found: dict[tuple[str, str], Verdict | NoVerdict] = {}
        for pair, verdict in zip(distinct, self._each(distinct), strict=True):
            found[pair] = verdict
            if progress:
                progress(1)
        result: list[Verdict | None] = []
        for x, y in pairs:
            verdict = found[x, y]
            if isinstance(verdict, NoVerdict):
                self.failures[str(verdict)] += 1
                if len(self.examples) < SHOWN_FAILURES:
                    self.examples.append({"x": x, "y": y, "reason": str(verdict)})
            result.append(None if isinstance(verdict, NoVerdict) else verdict)
        self.asked += len(pairs)
        if pairs and all(verdict is None for verdict in result):
            y = pairs[0][1]
            reason = str(found[pairs[0]])
            if reason.startswith(("raised", "returned")):
                hint = f"; {VERDICT}"
            else:
                hint = ""
            raise UserError(f"--judge {self.name}: {reason} on y {y[:60]!r}{hint}")
        return result

    def report(self) -> dict[str, Any]:
        """What `eval --json` says of it."""
        failed = sum(self.failures.values())
        return {
            "name": self.name,
            "asked": self.asked,
            "failed": failed,
            "reasons": dict(self.failures.most_common(SHOWN_FAILURES)),
            "examples": self.examples,
        }

    def warning(self) -> str | None:
        """One line where completions have no verdict."""
        failed = sum(self.failures.values())
        if not failed:
            return None
        reasons = "; ".join(f"{n:,} times {why}" for why, n in self.failures.most_common(3))
        return (
            f"--judge {self.name}: {failed:,} of {self.asked:,} completions have no verdict and "
            f"are left out: {reasons}; the first is of x {self.examples[0]['x'][:60]!r}"
        )

    def _each(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Verdict | NoVerdict]:
        """The verdict on each pair in order, several at a time where the judge permits it."""
        if self.calls > 1:
            with ThreadPoolExecutor(self.calls) as pool:
                yield from pool.map(lambda pair: self._one(pair, None), pairs)
            return
        with redirect_stdout(sys.stderr), _alarm() as limit:  # standard output is for the result
            yield from (self._one(pair, limit) for pair in pairs)

    def _one(self, pair: tuple[str, str], limit: Callable[..., Any] | None) -> Verdict | NoVerdict:
        """The verdict on a pair, or why there is none; a judge may raise anything."""
        try:
            if limit is None:
                return as_verdict(self.function(*pair))
            return as_verdict(limit(self.seconds, self.function, *pair))
        except NoVerdict as error:
            return error
        except _TooLong:
            return too_long(self.seconds)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            return NoVerdict(f"raised {type(error).__name__}: {str(error)[:200]}")


def too_long(seconds: float) -> NoVerdict:
    """The reason for no verdict that names the limit.

    Args:
        seconds: what a call of the judge may take.
    """
    return NoVerdict(f"took more than {seconds:g} s (--judge-seconds)")


def as_verdict(value: Any) -> Verdict:
    """(strategy, correct) as plain values.

    Raises:
        NoVerdict: it is something else.
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        strategy, correct = value
        if isinstance(strategy, str | None) and (
            correct is None
            or (isinstance(correct, int | np.integer | np.bool_) and correct in (0, 1))
        ):
            return strategy or None, None if correct is None else bool(correct)
    raise NoVerdict(f"returned {reprlib.repr(value)}")


@contextmanager
def _alarm() -> Iterator[Callable[..., Any] | None]:
    """Gives a caller that ends a function after some seconds by a signal, which also ends a regular
    expression; None outside the main thread and on systems without it, where nothing is ended.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield None
        return
    running = False

    def ring(_number: int, _frame: Any) -> None:
        if running:
            raise _TooLong

    def limited(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal running
        running = True
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            return function(*arguments)
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    # somebody else's alarm is set again with what is left of it
    begun = time.monotonic()
    left = signal.getitimer(signal.ITIMER_REAL)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield limited
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left[0]:
            remaining = max(left[0] - (time.monotonic() - begun), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, remaining, left[1])
