"""What a user can get wrong, and what can fail while working.

The library raises these; `cli.py` prints one line and turns them into exit codes.
"""


class TwcliError(Exception):
    """Base of every error that is reported as one line, without a traceback."""

    exit_code = 1


class UserError(TwcliError):
    """The call or an input is wrong: names the file, the line or field, and the mend (exit code 2)."""

    exit_code = 2


class WorkFailed(TwcliError):
    """The inputs were right but the work could not be finished (exit code 1)."""


class Interrupted(TwcliError):
    """A signal ended the work after what was done had been stored, and says how to go on; the exit code tells which signal."""


def how_to_resume(overwrite: bool = False) -> str:
    """What every message says of work that was stored; `overwrite`: the same command would delete it."""
    return f"{'without --overwrite, ' if overwrite else ''}run the same command again to resume"


def first_line(error: Exception) -> str:
    """What another library's error says, in one short line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
