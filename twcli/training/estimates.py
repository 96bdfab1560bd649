"""Guesses of what a run takes, before it starts: seconds of its phases, and sequences whose
activations are kept in memory.
"""

from __future__ import annotations

import time

import numpy as np
from transformers import PreTrainedModel

from twcli.config.train import TrainConfig
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import budget_batches
from twcli.discovery.distinct import MOST_CLUSTERS
from twcli.discovery.probe import PROBE_ROWS
from twcli.discovery.repeating import searching_seconds
from twcli.discovery.rows import Rows
from twcli.models import baseline

JUDGED_SHARE = 0.05  # of the training's time, of which scoring the run takes about so much
DECODED = 8  # tokens that are read in the time in which one is written, about
SAVED_A_SECOND = 2e8  # bytes, with their checksums
FORWARD_AND_BACKWARD = 3.0  # in forward passes


def naming_seconds(config: TrainConfig, encoded: Encoded, speed: float) -> float:
    """A guess, from the tokens a second of a forward pass, infinite where features are in a file;
    names of a file are taken for whole.
    """
    if config.warm_start == "none" or config.names is not None:
        return 0.0
    rows = len(Rows.of(encoded).rows)
    latents = config.latents if isinstance(config.latents, int) else None
    reading = rows * float(encoded.lengths.mean()) / speed
    return reading + searching_seconds(rows, latents)


def original_seconds(encoded: Encoded, speed: float) -> float:
    """A guess at how long features to score the run by take, from the tokens a second of a forward
    pass.
    """
    rows = min(len(encoded), PROBE_ROWS)
    mean_tokens = float(encoded.lengths.mean())
    return rows * mean_tokens / speed


def training_seconds(config: TrainConfig, encoded: Encoded, steps: int, speed: float) -> float:
    """A guess, from the tokens a second of a forward pass.

    With names a step reads two sequences a record forward and backward, without them K + 1.
    """
    latents = config.latents if isinstance(config.latents, int) else MOST_CLUSTERS
    sequences = 2 if config.warm_start != "none" else latents + 1
    batch_tokens = min(config.resolved_batch_tokens, int(encoded.lengths.sum()))
    step_tokens = config.accumulate * batch_tokens * sequences
    return steps * step_tokens * FORWARD_AND_BACKWARD / speed


def tokens_a_second(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    batch_tokens: int,
    batches: int,
) -> float:
    """Of one forward pass over batches of ordinary rows, after one to warm up."""
    from_median = np.abs(encoded.lengths - np.median(encoded.lengths))
    order = np.argsort(from_median, kind="stable")
    ordinary = budget_batches(encoded.lengths, order, min(batch_tokens, 1024))
    rows = np.concatenate(ordinary[:batches])
    seconds = 1.0
    for _ in range(2):
        start = time.perf_counter()
        baseline.score_flat(model, encoder, encoded, np.sort(rows), batch_tokens=batch_tokens)
        seconds = time.perf_counter() - start
    return float(encoded.lengths[rows].sum()) / seconds


def sequences_at_once(config: TrainConfig) -> int:
    """Of a record, whose activations are kept together: with names the posterior's and the one of
    its latent, else the posterior's and all K, or `--latent-chunk` of them.
    """
    if config.warm_start != "none":
        return 2
    latents = config.latents if isinstance(config.latents, int) else MOST_CLUSTERS
    return 1 + min(latents, config.latent_chunk or latents)
