"""What a user can get wrong, and what can fail while working.

The library raises these; `cli` prints one line and turns them into exit codes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class TwcliError(Exception):
    """Base of every error that is reported as one line, without a traceback."""

    exit_code = 1


class UserError(TwcliError):
    """The call or an input is wrong: names the file, the line or field,
    and what to do (exit code 2).
    """

    exit_code = 2


class WorkFailed(TwcliError):
    """The inputs were right but the work could not be finished (exit code 1)."""


class Interrupted(TwcliError):
    """A signal ended the work; says what is stored and how to resume. The exit code names the
    signal.
    """


def how_to_resume(overwrite: bool = False) -> str:
    """What every message says of work that was stored; `overwrite`: the
    same command would delete it.
    """
    return f"{'without --overwrite, ' if overwrite else ''}run the same command again to resume"


def interrupted(stored: str = "", *, overwrite: bool = False) -> Interrupted:
    """The error for a signal that ended work which the same command resumes.

    Args:
        stored: what was stored, to follow "interrupted".
        overwrite: as in `how_to_resume`.
    """
    return Interrupted(f"interrupted{stored}; {how_to_resume(overwrite)}")


@contextmanager
def resumable(stored: str = "", overwrite: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turns the KeyboardInterrupt of a signal into `interrupted`; nothing else does."""
    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(stored, overwrite=overwrite()) from None


def first_line(error: BaseException) -> str:
    """What another library's error says, in one short line; its type where it says nothing."""
    if isinstance(error, KeyError):  # whose text is the key alone
        return f"{error} is missing"
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    said = lines[0]
    if said.endswith(":") and len(lines) > 1:  # what it announces stands below
        said += f" {lines[1]}"
    return said[:200]


def first_difference(
    stored: dict[str, Any], wanted: dict[str, Any], prefix: str = ""
) -> tuple[str, str, str] | None:
    """Dotted name and both values, as JSON, of the first field that differs;
    None where all are equal.
    """
    for name in [*wanted, *(key for key in stored if key not in wanted)]:
        if name in stored and name in wanted and stored[name] == wanted[name]:
            continue
        old = stored.get(name)
        new = wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            return first_difference(old, new, prefix=f"{prefix}{name}.")
        old, new = (
            json.dumps(side[name])[:100] if name in side else "nothing" for side in (stored, wanted)
        )
        return f"{prefix}{name}", old, new
    return None
