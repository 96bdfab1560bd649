"""`--dry-run` of precompute and train: what would be read, how it looks as tokens, and what it
would cost. Writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from twcli.config.commands import PrecomputeConfig, TrainConfig
from twcli.config.options import flag_of
from twcli.data.batches import length_classes
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.data.padding import budget_batches
from twcli.discovery.distinct import MOST_CLUSTERS
from twcli.models import baseline, forward, runtime
from twcli.models.inputs import open_inputs
from twcli.models.positions import pass_lengths
from twcli.training.setup import steps_of

MIB = 2**20
PASSES = 3.0  # a training pass in forward passes: one forward, two backward
ROW_BYTES = 8 + 16  # offset and hash of a row in the cache


def rehearse(config: PrecomputeConfig | TrainConfig, origins: dict[str, str]) -> Iterator[str]:
    """Lines that say what the call would do.

    Args:
        origins: where each setting came from, by name.

    Raises:
        UserError: what the call itself would refuse about the model or the data.
    """
    notes: list[str] = []
    inputs = open_inputs(
        **config.inputs(),
        latent_tokens=config.latent_tokens if isinstance(config, TrainConfig) else 1,
        say=notes.append,
    )
    yield from notes
    model, encoder, encoded = inputs.model, inputs.encoder, inputs.encoded
    model.to(runtime.pick_device(config.device))
    tokens, supervised = int(encoded.lengths.sum()), int(encoded.target_lengths.sum())
    yield (
        f"records: {len(encoded):,} of {int(encoded.prompt_index.max()) + 1:,} prompts; "
        f"{tokens:,} tokens, {supervised:,} of them supervised; the longest row has "
        f"{int(encoded.lengths.max()):,} of {inputs.max_length:,}; none is cut, a longer one "
        "is refused"
    )
    if encoded.unknown_rows:
        yield f"rows with tokens that the vocabulary does not know: {encoded.unknown_rows:,}"
    yield f"line 1 as tokens, the supervised part in [[ ]]: {marked(encoded, encoder)}"
    batches = 1 if isinstance(config, TrainConfig) else runtime.most_at_once(model.device)
    speed = _tokens_a_second(
        model, encoder, encoded, config.batch_tokens or forward.fast_batch_tokens(model), batches
    )
    parameters = sum(p.numel() for p in model.parameters())
    width = next(model.parameters()).element_size()
    if isinstance(config, TrainConfig):
        steps = steps_of(
            config,
            encoded,
            config.accumulate,
            length_classes(encoded, encoder, pass_lengths(model)),
        )
        read = config.accumulate * min(config.batch_tokens, tokens)
        # `refine` and `settle` by turns: K branches without a gradient, then two
        # sequences with one in either.
        latents = config.latents if isinstance(config.latents, int) else MOST_CLUSTERS  # at worst
        passes = (
            (latents + 3 * PASSES) / 2 if config.warm_start != "none" else PASSES * (latents + 1)
        )
        trained = parameters if config.adapt == "full" else parameters // 100
        yield (
            _cost(
                steps * read * passes / speed,
                parameters * 4 + trained * 12,
                parameters * 4 + config.keep_checkpoints * (parameters * 4 + trained * 8),
            )
            + f"; {steps:,} steps"
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


def _tokens_a_second(
    model, encoder: ExampleEncoder, encoded: Encoded, batch_tokens: int, batches: int
) -> float:
    """Of one forward pass over batches of ordinary rows, after one to warm up."""
    order = np.argsort(np.abs(encoded.lengths - np.median(encoded.lengths)), kind="stable")
    rows = np.concatenate(budget_batches(encoded.lengths, order, min(batch_tokens, 1024))[:batches])
    for _ in range(2):
        start = time.perf_counter()
        baseline.score_flat(model, encoder, encoded, np.sort(rows), batch_tokens=batch_tokens)
        seconds = time.perf_counter() - start
    return float(encoded.lengths[rows].sum()) / seconds


def _cost(seconds: float, memory: float, disk: float) -> str:
    clock = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    return (
        f"cost, roughly: {clock}; {memory / MIB:,.0f} MiB for weights and optimiser, "
        f"activations on top; {disk / MIB:,.1f} MiB of disk"
    )
