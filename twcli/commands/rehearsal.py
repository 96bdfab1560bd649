"""`--dry-run` of precompute and train: what would be read, how it looks as tokens, and what it
would cost. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from twcli.config.commands import PrecomputeConfig, TrainConfig
from twcli.config.options import flag_of
from twcli.data.batches import length_classes
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.models import forward, runtime
from twcli.models.inputs import open_inputs
from twcli.models.positions import pass_lengths
from twcli.training.defaults import Length, duration
from twcli.training.held_out import held_out_rows
from twcli.training.setup import (
    batch_rows,
    resolved,
    steps_of,
    tokens_a_second,
    training_seconds,
)

MIB = 2**20
ROW_BYTES = 8 + 16  # offset and hash of a row in the cache


def rehearse(config: PrecomputeConfig | TrainConfig, origins: dict[str, str]) -> Iterator[str]:
    """Lines that say what the call would do.

    Args:
        origins: where each setting came from, by name.

    Raises:
        UserError: what the call itself would refuse about the model or the data.
    """
    notes: list[str] = []
    inputs = open_inputs(**config.inputs(), say=notes.append)
    yield from notes
    model, encoder, encoded = inputs.model, inputs.encoder, inputs.encoded
    model.to(runtime.pick_device(config.device))
    tokens, supervised = int(encoded.lengths.sum()), int(encoded.target_lengths.sum())
    yield (
        f"records: {len(encoded):,} of {int(encoded.prompt_index.max()) + 1:,} prompts; "
        f"{tokens:,} tokens, {supervised:,} of them supervised; the longest row has "
        f"{int(encoded.lengths.max()):,} of {inputs.max_length:,}"
    )
    if encoded.unknown_rows:
        yield f"rows with tokens that the vocabulary does not know: {encoded.unknown_rows:,}"
    yield f"line 1 as tokens, the supervised part in [[ ]]: {marked(encoded, encoder)}"
    batches = 1 if isinstance(config, TrainConfig) else runtime.most_at_once(model.device)
    if isinstance(config, TrainConfig):
        config = resolved(config, model, encoder, encoded)
    speed = tokens_a_second(
        model, encoder, encoded, config.batch_tokens or forward.fast_batch_tokens(model), batches
    )
    parameters = sum(p.numel() for p in model.parameters())
    width = next(model.parameters()).element_size()
    if isinstance(config, TrainConfig):
        classes = length_classes(encoded, encoder, pass_lengths(model))
        held = held_out_rows(encoded, config.seed)
        rows = np.setdiff1d(np.arange(len(encoded)), held)
        steps = steps_of(config, encoded, rows, config.accumulate, classes)
        passes = steps * config.accumulate * batch_rows(config, encoded) / len(rows)
        trained = parameters if config.adapt == "full" else parameters // 100
        yield (
            _cost(
                training_seconds(config, encoded, steps, speed),
                parameters * 4 + trained * 16,
                parameters * 4 + config.keep_checkpoints * (parameters * 4 + trained * 12),
            )
            + f"; {Length(steps, passes, len(rows))}"
        )
    else:
        yield _cost(tokens / speed, parameters * width, 4 * supervised + ROW_BYTES * len(encoded))
    for name, value in config.to_mapping().items():
        yield f"{flag_of(name)}: {value}  ({origins.get(name, 'default')})"


def marked(encoded: Encoded, encoder: ExampleEncoder) -> str:
    """The first row's tokens as text, the supervised ones between [[ and ]]."""
    first = int(encoded.prompt_lengths[0]) + 1
    last = first + int(encoded.target_lengths[0])
    ids = encoded.ids[: encoded.offsets[1]].tolist()
    before, inside, after = (
        encoder.tokenizer.decode(part) for part in (ids[:first], ids[first:last], ids[last:])
    )
    return repr(f"{before}[[{inside}]]{after}")


def _cost(seconds: float, memory: float, disk: float) -> str:
    return (
        f"cost, roughly: {duration(seconds)}; {memory / MIB:,.0f} MiB for weights and optimiser, "
        f"activations on top; {disk / MIB:,.1f} MiB of disk"
    )
