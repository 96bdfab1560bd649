"""A run and held-out records, opened and checked, for all steps of `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from twcli.config.evaluate import EvalConfig
from twcli.config.train import TrainConfig
from twcli.data.dataset import Examples, stream_examples
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.data.long_rows import TRUNCATE_LEFT
from twcli.errors import UserError
from twcli.evaluation.judges import Judge
from twcli.evaluation.ready_judges import load_judge
from twcli.evaluation.samples import Writer
from twcli.evaluation.served import connected
from twcli.models import loading
from twcli.models.building import load_run
from twcli.models.latents import LatentModel
from twcli.models.runtime import Say
from twcli.storage.run_folder import RunFolder

SPARE_TOKENS = 16  # what a completion may be longer than the longest y of the data

LABEL = "strategy"  # the field that is looked for where none is named

Progress = Callable[[str, int], Any]


@dataclass(frozen=True)
class EvalInputs:
    """What `twcli eval` works on.

    Attributes:
        judge: None where no `--judge` is given.
        model: the run's, on its device.
        trained: the settings that the run was trained with.
        examples: the records that are evaluated, in the order of `encoded`.
        unread: fields of the records that are not read, of which one may hold a label.
        max_length: longest sequence in tokens.
        say: takes one line a fact.
        progress: opens a bar (label, total) that is called with increments.
    """

    config: EvalConfig
    judge: Judge | None
    run: RunFolder
    model: LatentModel
    encoder: ExampleEncoder
    trained: TrainConfig
    encoded: Encoded
    examples: list[Example]
    unread: list[str]
    max_length: int
    say: Say
    progress: Progress

    @property
    def prompt_rows(self) -> np.ndarray:
        """(P,) the first row of each distinct prompt."""
        _, first = np.unique(self.encoded.prompt_index, return_index=True)
        return first

    @property
    def longest(self) -> int:
        """Most tokens of a completion: `--max-new-tokens`, else those of the longest y of the
        records and a few more.
        """
        longest_y = int(self.encoded.target_lengths.max())
        return self.config.max_new_tokens or longest_y + SPARE_TOKENS


def open_evaluation(
    config: EvalConfig, say: Say, progress: Progress, records: Examples | None = None
) -> EvalInputs:
    """Loads the judge, the records and the run.

    Args:
        records: of `config.data`, where they have been looked at already.

    Raises:
        UserError: the run, the data or the judge is wrong.
    """
    judge = load_judge(config) if config.judge else None
    run = RunFolder(config.run)
    if records is None:
        records = stream_examples(
            config.data,
            **config.fields,
            strategy_field=config.strategy_field,
            trained=run.read_fields(),
        )
        examples = list(records)
        say(records.summary())
    else:
        examples = list(records)
    if config.strategy_field != LABEL and all(one.strategy is None for one in examples):
        there = ", ".join(records.unread_fields()) or "none"
        raise UserError(
            f"--strategy-field {config.strategy_field}: no record of {config.data} has it; fields "
            f"that may hold a label: {there}"
        )
    model, encoder, trained = load_run(
        run, device=config.device, precision=config.precision, attention=config.attention, say=say
    )
    max_length = loading.context_length(model.backbone, config.max_length)
    too_long = config.too_long or trained.too_long
    encoded = encoder.encode(examples, max_length=max_length, source=config.data, too_long=too_long)
    for note in encoded.notes:
        say(note)
    kept = [examples[encoded.number(row)] for row in range(len(encoded))]
    return EvalInputs(
        config,
        judge,
        run,
        model,
        encoder,
        trained,
        encoded,
        kept,
        records.unread_fields(),
        max_length,
        say,
        progress,
    )


def run_writer(inputs: EvalInputs) -> Writer:
    """What completes prompts with the run: its model, or the server that has it.

    Raises:
        UserError, WorkFailed: as `served.connected`; or a prompt is too long for a server.
    """
    config = inputs.config
    latent_ids = inputs.model.latent_ids_KP.tolist()
    writer = Writer(inputs.model.backbone, inputs.encoder, latent_ids, inputs.max_length)
    if config.server is None:
        return writer
    if TRUNCATE_LEFT in inputs.encoded.too_long:
        raise UserError(
            f"{config.data}: a server cannot shorten prompts, and some are too long; give "
            "--too-long skip with --server"
        )
    distinct = [inputs.examples[row] for row in inputs.prompt_rows.tolist()]
    return connected(config, writer, distinct, inputs.say)
