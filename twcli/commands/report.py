"""What `train` and `eval` write into the folder of a run: the page, with what is at its top, and
the verdict, which `inspect` prints.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from twcli.config.train import TrainConfig
from twcli.data.names import read_latent_names
from twcli.errors import UserError
from twcli.evaluation.page import About
from twcli.storage.durable import write_durably
from twcli.storage.run_folder import RunFolder


def about(
    run: RunFolder, trained: TrainConfig, say: Callable[[str], None], data: str | None = None
) -> About:
    """What the page says at its top; names that cannot be read are left out with a line.

    Args:
        data: what the run was evaluated on.
    """
    names = {}
    file = trained.names
    if file is not None and not Path(file).is_file():
        file = None
    if file is not None:
        try:
            names = read_latent_names(file)
        except UserError as error:
            say(f"{error}; the page has no names")
    return About(
        run=str(run.path),
        date=datetime.date.today().isoformat(),
        data=data,
        seconds=run.read_duration(),
        names=names,
        names_file=file,
    )


def write_verdict(
    run: RunFolder, verdict: dict[str, str], command: str, data: str, say: Callable[[str], None]
) -> None:
    """Stores the verdict; a run that one may only read goes without.

    Args:
        verdict: kind, sentence and advice.
        command: that came to it, on these `data`.
    """
    try:
        run.save_verdict(verdict, command, data, datetime.date.today())
    except OSError as error:
        say(f"{run.verdict_file}: not written: {error.strerror}")


def write_page(run: RunFolder, html: str, say: Callable[[str], None]) -> None:
    """Writes the report; a run that one may only read goes without."""
    try:
        write_durably(run.report, html.encode())
    except OSError as error:
        say(f"{run.report}: not written: {error.strerror}")
