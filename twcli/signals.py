"""Ctrl-C and SIGTERM end work where it can be taken up again: `cli/main.py` installs this,
long loops hold signals back.

Elsewhere a signal interrupts at once, as KeyboardInterrupt. Inside `held` the first one
only makes `pending()` true, so that a loop can finish its step and store it; a second
one interrupts there too.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_received: int | None = None
_holding = False


def install() -> None:
    """Takes over both signals and forgets earlier ones; main thread only."""
    global _received, _holding
    _received = None
    _holding = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _receive)


def _receive(number: int, _frame: Any) -> None:
    global _received
    first = _received is None
    _received = number
    if not (_holding and first):
        raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Gives `pending()`. A signal that came meanwhile interrupts at the end, at the latest."""
    global _holding
    _holding = True
    try:
        yield pending
    finally:
        _holding = False
    if pending():
        raise KeyboardInterrupt


def pending() -> bool:
    """Whether a signal has come."""
    return _received is not None


def exit_code() -> int:
    """128 plus the signal's number, as shells count; that of Ctrl-C where another
    process of the job received it.
    """
    return 128 + (_received or signal.SIGINT)
