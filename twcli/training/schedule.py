"""Which rows a run trains on, in which batches, and for how many steps.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from twcli.config.inputs import AUTO
from twcli.config.train import TrainConfig
from twcli.data.batches import BatchSampler, length_classes
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError
from twcli.models.inputs import Inputs
from twcli.models.positions import pass_lengths
from twcli.training.defaults import adaptation, default_steps, peak_learning_rate
from twcli.training.defaults import batch_tokens as default_batch_tokens
from twcli.training.estimates import tokens_a_second
from twcli.training.held_out import held_out_rows
from twcli.training.stages import FREE, HOLD


@dataclass(frozen=True)
class Schedule:
    """Which rows are trained on, and for how long.

    Attributes:
        trained, held_rows: rows that are trained on, and the others.
        classes: (N,) as of `Setup`.
        steps: optimiser steps.
        rows_a_step: records of an optimiser step, about.
        speed: tokens a second of a forward pass.
    """

    trained: np.ndarray
    held_rows: np.ndarray
    classes: np.ndarray
    steps: int
    rows_a_step: int
    speed: float


def schedule_of(
    config: TrainConfig, inputs: Inputs, accelerator: Accelerator, seed: int
) -> Schedule:
    """Holds some rows out, counts the steps over the others and times a forward pass.

    Raises:
        UserError: as of `steps_of`.
    """
    backbone = inputs.model
    encoder = inputs.encoder
    encoded = inputs.encoded
    classes = length_classes(encoded, encoder, pass_lengths(backbone))
    held_rows = held_out_rows(encoded, seed)
    trained = np.setdiff1d(np.arange(len(encoded)), held_rows)
    batches_a_step = accelerator.num_processes * config.accumulate
    return Schedule(
        trained=trained,
        held_rows=held_rows,
        classes=classes,
        steps=steps_of(config, encoded, trained, batches_a_step, classes),
        rows_a_step=batches_a_step * batch_rows(config, encoded),
        speed=tokens_a_second(backbone, encoder, encoded, config.resolved_batch_tokens, 1),
    )


def resolved(
    config: TrainConfig, backbone: PreTrainedModel, encoder: ExampleEncoder, encoded: Encoded
) -> TrainConfig:
    """The settings with what follows from the model's size and the records in the places that were
    left open.

    Returns:
        Settings whose template, `adapt` and `batch_tokens` are known.
    """
    parameters = sum(p.numel() for p in backbone.parameters())
    by_size = "full" if config.shard else adaptation(parameters)
    adapt = config.adapt or by_size
    mean_length = float(encoded.lengths.mean())
    tokens = config.batch_tokens or default_batch_tokens(adapt, mean_length)
    template = encoder.template.name if config.template == AUTO else config.template
    return dataclasses.replace(
        config,
        template=template,
        adapt=adapt,
        batch_tokens=tokens,
    )


def with_rate(config: TrainConfig, backbone: PreTrainedModel, steps: int) -> TrainConfig:
    """Settings as of `resolved`, and with a learning rate, which follows from the steps too."""
    width = backbone.get_input_embeddings().weight.shape[1]
    lr = config.lr or peak_learning_rate(cast(str, config.adapt), width, steps)
    return dataclasses.replace(config, lr=lr)


def batch_rows(config: TrainConfig, encoded: Encoded) -> int:
    """Records of mean length that a batch of `--batch-tokens` holds, at least 1."""
    mean = encoded.lengths.mean()
    rows = int(config.resolved_batch_tokens / mean)
    return max(1, rows)


def steps_of(
    config: TrainConfig,
    encoded: Encoded,
    rows: np.ndarray | None,
    batches_a_step: int,
    classes: np.ndarray | None = None,
) -> int:
    """Optimiser steps of the whole run over the rows.

    Args:
        rows: (R,) row numbers, None for all.
        classes: (N,) as of `Setup`.

    Raises:
        UserError: all epochs together do not make one.
    """
    if config.steps is not None:
        return config.steps
    sampler = batch_sampler_of(config, encoded, FREE, rows, classes)
    if config.epochs is None:
        steps_a_pass = len(sampler.epoch(0)) / batches_a_step
        return default_steps(cast(str, config.adapt), steps_a_pass)
    batches = sum(len(sampler.epoch(number)) for number in range(config.epochs))
    if batches < batches_a_step:
        raise UserError(
            f"--epochs {config.epochs}: {batches} batches in all, and an optimiser step takes "
            f"{batches_a_step}; raise it, or lower --accumulate or --batch-tokens"
        )
    return batches // batches_a_step


def batch_sampler_of(
    config: TrainConfig,
    encoded: Encoded,
    stage: str,
    rows: np.ndarray | None,
    classes: np.ndarray | None = None,
    repeats: np.ndarray | None = None,
) -> BatchSampler:
    """The order in which a stage goes through its rows.

    Args:
        rows: (R,) row numbers, None for all.
        classes: (N,) as of `Setup`.
        repeats: (N,) as of `Repetitions.times_N`, in `hold`.
    """
    seed = [config.seed, *stage.encode()]
    return BatchSampler(
        encoded.lengths,
        encoded.prompt_index,
        batch_tokens=config.resolved_batch_tokens,
        seed=seed,
        rows=rows,
        classes=classes,
        repeats=repeats if stage == HOLD else None,
    )
