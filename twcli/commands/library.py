"""The commands as functions, for a notebook or a program: `from twcli import train`.

Each takes the options of its command by name (`--batch-tokens` is `batch_tokens=`), and raises
`twcli.errors.TwcliError` where the command would print one line. Nothing is printed unless `say`
does: `say=print`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twcli.commands import discover as discovering
from twcli.commands import evaluate as evaluating
from twcli.commands import precompute as precomputing
from twcli.commands import train as training
from twcli.config.discover import DiscoverConfig
from twcli.config.evaluate import EvalConfig
from twcli.config.precompute import PrecomputeConfig
from twcli.config.train import TrainConfig
from twcli.models import runtime
from twcli.models.runtime import Say

Progress = Callable[[str, int], Any]


def silent(_fact: object) -> None:
    """Says nothing."""


@contextmanager
def no_bar(_label: str, _total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that shows nothing, as the library has it where no callback is given."""
    yield silent


def precompute(*, say: Say = silent, progress: Progress = no_bar, **settings: Any) -> str:
    """Scores the records with the frozen model; returns the path of the file with b_t.

    Raises:
        UserError: a setting or an input is wrong.
        WorkFailed: a b_t is not finite, or the disk is full; finished shards stay.
    """
    runtime.quiet_transformers()
    config = PrecomputeConfig.from_mapping(settings, "precompute")
    precomputing.precompute(config, say, progress)
    return config.out


def discover(*, say: Say = silent, progress: Progress = no_bar, **settings: Any) -> dict[str, Any]:
    """Finds a latent for each record without labels; returns what `discover --json` prints: the
    `score`, the shares `proportions`, typical completions of each latent, and `names`, the file.

    Raises:
        UserError: a setting or an input is wrong, or there are too few records.
        WorkFailed: a feature is not finite, or the disk is full; finished shards stay.
    """
    runtime.quiet_transformers()
    config = DiscoverConfig.from_mapping(settings, "discover")
    return discovering.discover(config, say, progress)


def train(
    *,
    say: Say = silent,
    progress: Progress = no_bar,
    on_step: Callable[[dict[str, Any]], None] = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a run folder to the end; returns its path `run` and its `score` from 0 to 1.

    Args:
        on_step: called after each step with its metrics: `step` of `steps`, `stage`, `loss` in
            nats a token, `mutual_information` in nats, and the others of `metrics.jsonl`.

    Raises:
        UserError: a setting or an input is wrong.
        WorkFailed: a loss is not finite, or the disk is full; the last checkpoint stays.
    """
    runtime.quiet_transformers()
    config = TrainConfig.from_mapping(settings, "train")
    return training.train(config, say, progress, on_step)


def evaluate(*, say: Say = silent, progress: Progress = no_bar, **settings: Any) -> dict[str, Any]:
    """The figures of a run on held-out records: what `eval --json` prints.

    Raises:
        UserError: a setting, the run, the data or the judge is wrong.
    """
    runtime.quiet_transformers()
    config = EvalConfig.from_mapping(settings, "evaluate")
    return evaluating.evaluate(config, say, progress)
