"""`--dry-run` of precompute and train: what would be read, how it looks as tokens, and what it
would cost. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import cast

import numpy as np
from transformers import PreTrainedModel

from twcli.commands.precompute import COMPARED_ROWS
from twcli.config.options import flag_of
from twcli.config.phases import (
    CHECK_BASELINE,
    CHECK_PRECISION,
    JUDGE_RUN,
    LOAD_MODEL,
    MEASURE,
    NAME,
    ORIGINAL,
    SAVE,
    SCORE,
    TRAIN,
    Phases,
)
from twcli.config.precompute import PrecomputeConfig
from twcli.config.train import TrainConfig
from twcli.data.batches import length_classes
from twcli.data.dataset import Examples
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.discovery.distinct import MOST_CLUSTERS
from twcli.kernels.packing import linear_weights
from twcli.models import forward, runtime
from twcli.models.inputs import open_inputs
from twcli.models.memory import activation_bytes_a_token
from twcli.models.positions import pass_lengths
from twcli.training.defaults import Length, duration
from twcli.training.estimates import (
    JUDGED_SHARE,
    SAVED_A_SECOND,
    naming_seconds,
    original_seconds,
    sequences_at_once,
    tokens_a_second,
    training_seconds,
)
from twcli.training.frozen_baseline import RESCORED_ROWS
from twcli.training.held_out import held_out_rows
from twcli.training.schedule import batch_rows, resolved, steps_of, with_rate

GB, MB = 1e9, 1e6
BYTES = 4  # of a number in float32
ROW_BYTES = 8 + 16  # offset and hash of a row in the cache


def rehearse(
    config: PrecomputeConfig | TrainConfig,
    origins: dict[str, str],
    records: Examples | None = None,
    phases: Phases | None = None,
) -> Iterator[str]:
    """Lines that say what the call would do.

    Args:
        origins: where each setting came from, by name.
        records, phases: as of `precompute`.

    Raises:
        UserError: what the call itself would refuse about the model or the data.
    """
    notes: list[str] = []
    phases = phases or Phases()
    begin = time.monotonic()
    inputs = open_inputs(**config.inputs(), examples=records, say=notes.append)
    yield from notes
    model = inputs.model
    encoder = inputs.encoder
    encoded = inputs.encoded
    model.to(runtime.pick_device(config.device))
    loaded = time.monotonic() - begin
    tokens = int(encoded.lengths.sum())
    supervised = int(encoded.target_lengths.sum())
    yield (
        f"records: {len(encoded):,} of {int(encoded.prompt_index.max()) + 1:,} prompts; "
        f"{tokens:,} tokens, {supervised:,} of them supervised; the longest row has "
        f"{int(encoded.lengths.max()):,} of {inputs.max_length:,}"
    )
    if encoded.unknown_rows:
        yield f"rows with tokens that the vocabulary does not know: {encoded.unknown_rows:,}"
    yield f"line 1 as tokens, the supervised part in [[ ]]: {marked(encoded, encoder)}"
    # what it would take is said last, where it is seen
    if isinstance(config, TrainConfig):
        config = resolved(config, model, encoder, encoded)
        length = _length(config, model, encoder, encoded)
        config = with_rate(config, model, length.steps)
        yield from _settings(config, origins)
        yield from _training(config, model, encoder, encoded, length, loaded, phases)
    else:
        yield from _settings(config, origins)
        yield from _precomputing(config, model, encoder, encoded, loaded, phases)


def _settings(config: PrecomputeConfig | TrainConfig, origins: dict[str, str]) -> Iterator[str]:
    """Every setting: a line for those of one origin, the defaults at the end."""
    named: dict[str, list[str]] = {}
    for name, value in config.to_mapping().items():
        origin = origins.get(name, "default")
        said = "not set" if value is None else value
        named.setdefault(origin, []).append(f"{flag_of(name)} {said}")
    defaults = named.pop("default", [])
    for origin, settings in named.items():
        yield f"{origin}: {', '.join(settings)}"
    yield f"defaults, those that follow from model and data included: {', '.join(defaults)}"


def _precomputing(
    config: PrecomputeConfig,
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    loaded: float,
    phases: Phases,
) -> Iterator[str]:
    """What `twcli precompute` would cost, a line a fact, from the speed of a few batches."""
    phases.begin(MEASURE)
    budget = config.batch_tokens or forward.fast_batch_tokens(model)
    speed = tokens_a_second(model, encoder, encoded, budget, runtime.most_at_once(model.device))
    tokens = int(encoded.lengths.sum())
    supervised = int(encoded.target_lengths.sum())
    weights = _weight_bytes(model)
    comparing = config.precision != "fp32"
    yield _memory(
        {
            f"weights in {config.precision}": weights,
            "the same in float32, while both are compared": comparing * 2 * weights,
        }
    )
    yield f"disk: {_size(4 * supervised + ROW_BYTES * len(encoded))} for the cache"
    yield _time(
        {
            LOAD_MODEL: loaded,
            CHECK_PRECISION: comparing * (loaded + COMPARED_ROWS * tokens / len(encoded) / speed),
            SCORE: tokens / speed,
        },
        speed,
    )


def _length(
    config: TrainConfig, model: PreTrainedModel, encoder: ExampleEncoder, encoded: Encoded
) -> Length:
    """How long a training of one process would be, of the first seed."""
    first = dataclasses.replace(config, seed=config.each_seed()[0], seeds=None)
    classes = length_classes(encoded, encoder, pass_lengths(model))
    held = held_out_rows(encoded, first.seed)
    rows = np.setdiff1d(np.arange(len(encoded)), held)
    steps = steps_of(first, encoded, rows, config.accumulate, classes)
    passes = steps * config.accumulate * batch_rows(config, encoded) / len(rows)
    return Length(steps, passes, len(rows))


def _training(
    config: TrainConfig,
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    length: Length,
    loaded: float,
    phases: Phases,
) -> Iterator[str]:
    """What `twcli train` would cost, a line a fact, from the speed of a few batches."""
    phases.begin(MEASURE)
    batch_tokens = cast(int, config.batch_tokens)
    speed = tokens_a_second(model, encoder, encoded, batch_tokens, 1)
    runs = config.each_seed()
    steps = length.steps
    yield f"length: {length}"
    if len(runs) > 1:
        yield f"seeds: {len(runs)} runs of about this length, each with what follows; one naming"
    weights = _weight_bytes(model)
    sequences = sequences_at_once(config)
    trained = BYTES * _trained_parameters(config, model)
    a_token = activation_bytes_a_token(
        model,
        int(encoded.lengths.mean()),
        autocast=config.precision == "bf16",
        checkpointing=config.gradient_checkpointing,
    )
    read = min(batch_tokens, int(encoded.lengths.sum())) * sequences
    yield _memory(
        {
            "weights": weights,
            "gradients": trained,
            "optimiser and mean weights": 3 * trained,
            f"activations ({sequences} sequences a record, {batch_tokens:,} tokens)": read
            * a_token,
        }
    )
    cache = 4 * int(encoded.target_lengths.sum()) + ROW_BYTES * len(encoded)
    kept = config.keep_checkpoints * 4 * trained  # weights, two moments, mean weights
    yield (
        f"disk: {_size(weights + kept)} for the run, {_size(kept)} of it checkpoints; "
        f"{_size(cache)} for the cache"
    )
    training = training_seconds(config, encoded, steps, speed)
    mean = float(encoded.lengths.mean())
    yield _time(
        {
            LOAD_MODEL: loaded,
            CHECK_BASELINE: RESCORED_ROWS * mean / speed,
            NAME: naming_seconds(config, encoded, speed),
            ORIGINAL: original_seconds(encoded, speed),
            TRAIN: training,
            JUDGE_RUN: JUDGED_SHARE * training,
            SAVE: weights / SAVED_A_SECOND,
        },
        speed,
    )


def _weight_bytes(model: PreTrainedModel) -> int:
    """Of all weights, as they are in memory."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _trained_parameters(config: TrainConfig, model: PreTrainedModel) -> int:
    """Numbers that the optimiser changes, those of the posterior left out."""
    if config.adapt == "full":
        return sum(p.numel() for p in model.parameters())
    latents = config.latents if isinstance(config.latents, int) else MOST_CLUSTERS
    rows = latents * config.latent_tokens * model.get_input_embeddings().embedding_dim
    if config.adapt == "frozen":
        return rows
    return rows + config.lora_rank * sum(sum(weight.shape) for weight in linear_weights(model))


def _memory(parts: dict[str, float]) -> str:
    """Bytes of each part, and all together."""
    total = sum(parts.values())
    shown = [f"{_size(size)} {name}" for name, size in parts.items() if size]
    each = ", ".join(shown)
    return f"memory, about: {_size(total)}: {each}"


def _time(parts: dict[str, float], speed: float) -> str:
    """Seconds of each part, and all together, as a line for the terminal; parts that take none are
    left out.

    Args:
        speed: tokens per second.
    """
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return (
        f"time, about: {duration(sum(parts.values()))}: {shown}; measured at {speed:,.0f} tokens a "
        "second"
    )


def _size(size: float) -> str:
    """Bytes as a reader takes them in."""
    if size < GB / 100:
        return f"{size / MB:,.1f} MB"
    return f"{size / GB:,.2f} GB"


def marked(encoded: Encoded, encoder: ExampleEncoder) -> str:
    """The first row's tokens as text, the supervised ones between [[ and ]]."""
    first = int(encoded.prompt_lengths[0]) + 1
    last = first + int(encoded.target_lengths[0])
    end = encoded.offsets[1]
    ids = encoded.ids[:end].tolist()
    decode = encoder.tokenizer.decode
    before = decode(ids[:first])
    inside = decode(ids[first:last])
    after = decode(ids[last:])
    return repr(f"{before}[[{inside}]]{after}")
