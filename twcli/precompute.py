"""`twcli precompute`: reads the data, scores it with the frozen model shard by shard, publishes the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twcli import baseline, runtime
from twcli.cache import CacheWriter
from twcli.config import PrecomputeConfig
from twcli.dataset import read_examples


def precompute(config: PrecomputeConfig, say: Callable[[str], None], progress: Callable[[str, int], Any]) -> None:
    """Writes `config.out`, resuming after the shards that an earlier call finished.

    Raises:
        UserError: the model, the data or the output is wrong.
        WorkFailed: a b_t is not finite, or the disk is full; finished shards stay.
    """
    examples = read_examples(config.data, x_field=config.x_field, y_field=config.y_field)
    template = runtime.load_template(config.model)
    model = runtime.load_model(config.model, precision=config.precision, attention=config.attention)
    runtime.check_vocabulary(model, template)
    max_length = runtime.context_length(model, config.max_length)
    encoded = template.encode(examples, max_length=max_length, source=config.data)
    if encoded.unknown_rows:
        say(f"{config.data}: {encoded.unknown_rows:,} rows hold tokens that the vocabulary of {config.model} does not know")
    print_ = baseline.fingerprint(model, template, encoded, max_length=max_length, precision=config.precision,
                                  attention=config.attention)
    model.to(runtime.pick_device(config.device))
    if CacheWriter.already_complete(config.out, print_, encoded.row_hash) and not config.overwrite:
        say(f"{config.out}: already complete, {len(encoded):,} rows; --overwrite starts anew")
        return
    with CacheWriter(config.out, fingerprint=print_, offsets=encoded.target_offsets, row_hash=encoded.row_hash,
                     shard_rows=config.shard_rows, overwrite=config.overwrite) as writer:
        for note in writer.notes:
            say(note)
        missing = writer.missing
        if sum(map(len, missing)) < len(encoded):
            say(f"resuming: {len(encoded) - sum(map(len, missing)):,} of {len(encoded):,} rows are done")
        total = sum(int(encoded.lengths[rows.start : rows.stop].sum()) for rows in missing)
        with progress("precompute (tokens)", total) as advance:
            for rows in missing:
                writer.write(rows, baseline.score_flat(model, template, encoded, np.arange(rows.start, rows.stop),
                                                       batch_tokens=config.batch_tokens, progress=advance))
        writer.publish()
    tokens = int(encoded.target_lengths.sum())
    say(f"{config.out}: {len(encoded):,} rows, {tokens:,} tokens of y scored")
