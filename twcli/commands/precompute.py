"""`twcli precompute`: reads the data, scores it with the frozen model shard by shard, and writes
the cache.

Under `accelerate launch` each process scores different shards and the first process writes them. A
shard has the same batches on every process, so the file does not depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from twcli import signals
from twcli.commands.frozen_reading import SHARD_ROWS, FrozenFiles, FrozenReading
from twcli.config.phases import CHECK_PRECISION, SAVE, SCORE, Phases
from twcli.config.precompute import PrecomputeConfig
from twcli.data.dataset import Examples
from twcli.data.encoded import Encoded
from twcli.data.files import files_of
from twcli.data.vocabulary import SECTION_TAGS
from twcli.discovery.features import values_a_record
from twcli.discovery.stored import StoredFeatures, distinct_rows, feature_fingerprint
from twcli.errors import interrupted
from twcli.models import baseline, forward, loading, runtime
from twcli.models.inputs import Inputs, open_inputs
from twcli.storage.beside import copy_file, features_path, find_cache
from twcli.storage.cache import CacheWriter
from twcli.storage.feature_writer import FeatureWriter

COMPARED_ROWS = 16
# Features that are kept unasked: of 34,000 records of a model of 135 million parameters, of 5,000
# of one of 7 billion.
FEATURE_BYTES = 2**30


def precompute(
    config: PrecomputeConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    phases: Phases | None = None,
    records: Examples | None = None,
) -> None:
    """Writes `config.out`, resuming after the shards that an earlier call finished. b_t that lies
    in the folder of `config.out` or of the data, as `discover` leaves it, is copied. On a CPU the
    features that naming takes are kept beside it, up to `FEATURE_BYTES`.

    Args:
        phases: hears which phase begins and, once a rate is known, how long the later ones take.
        records: of `config.data`, where they have been looked at already.

    Raises:
        UserError: the model, the data or the output is wrong.
        WorkFailed: a b_t is not finite, or the disk is full; finished shards stay.
        Interrupted: a signal came; the shard in progress is stored first.
    """
    phases = phases or Phases()
    runtime.tune_allocator(keep=True)
    inputs = open_inputs(**config.inputs(), examples=records, say=say)
    _say_what_is_unknown(config, inputs, say)
    fingerprint = inputs.fingerprint()
    accelerator = runtime.accelerator_for(config.device, "fp32")
    inputs.model.to(accelerator.device)
    batch_tokens = config.batch_tokens or forward.fast_batch_tokens(inputs.model)
    leads = accelerator.is_main_process
    if not _is_there(config, inputs.encoded, fingerprint, leads, say, phases):
        if leads and config.precision != "fp32":
            _measure_rounding(config, inputs, batch_tokens, say, phases)
        _score(config, inputs, fingerprint, accelerator, batch_tokens, say, progress, phases)
    runtime.leave(accelerator)


def _say_what_is_unknown(
    config: PrecomputeConfig, inputs: Inputs, say: Callable[[str], None]
) -> None:
    """Reports tokens of the records and of the template that the model was not trained on."""
    unknown_rows = inputs.encoded.unknown_rows
    if unknown_rows:
        say(
            f"{config.data}: {unknown_rows:,} rows have tokens that are not in the "
            f"vocabulary of {config.model}"
        )
    untrained = [tag for tag in inputs.encoder.added if tag not in SECTION_TAGS]
    if untrained:
        say(
            f"{config.model}: never trained on {', '.join(untrained)}, so b_t will be poor; "
            "give --template chat or FILE, or train it on the tags first as examples/entangle.py "
            "does"
        )


def _is_there(
    config: PrecomputeConfig,
    encoded: Encoded,
    fingerprint: dict[str, Any],
    leads: bool,
    say: Callable[[str], None],
    phases: Phases,
) -> bool:
    """Whether `config.out` holds b_t of these records: from an earlier call, or now as a copy of a
    file beside it or the data. The first process, which `leads`, looks for all.
    """
    may_be_there = leads and not config.overwrite
    complete = may_be_there and CacheWriter.already_complete(
        config.out, fingerprint, encoded.row_hash
    )
    if _from_the_first(complete):
        say(f"{config.out}: already complete, {len(encoded):,} rows; --overwrite starts over")
        return True
    found = None
    if may_be_there and not Path(config.out).exists():
        places: list[str | Path] = [config.out, *files_of(config.data)]
        found = find_cache(places, fingerprint, encoded.row_hash)
    if not _from_the_first(found is not None):
        return False
    if found is not None:
        phases.begin(SAVE, config.out)
        copy_file(found, Path(config.out))
        # and what an earlier call had begun is removed
        CacheWriter.already_complete(config.out, fingerprint, encoded.row_hash)
    say(f"{config.out}: a copy of {found}, which has b_t of these {len(encoded):,} rows")
    return True


def _score(
    config: PrecomputeConfig,
    inputs: Inputs,
    fingerprint: dict[str, Any],
    accelerator: Accelerator,
    batch_tokens: int,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    phases: Phases,
) -> None:
    """Scores the rows that no earlier call has stored, and puts the file at its place."""
    encoded = inputs.encoded
    leads = accelerator.is_main_process
    phases.expect({SAVE: 0.0})
    phases.begin(SCORE, f"{len(encoded):,} records, {int(encoded.lengths.sum()):,} tokens")
    featured = _from_the_first(leads and _features_wanted(config, inputs, fingerprint))
    distinct = distinct_rows(encoded) if featured else None
    if distinct is None:
        shard_rows = config.shard_rows
    else:
        shard_rows = min(config.shard_rows, SHARD_ROWS)
    if leads:
        files = _files(config, encoded, fingerprint, distinct, shard_rows)
    else:
        files = None
    with files or nullcontext(), signals.held() as pending:
        missing = _missing_shards(encoded, files, say)
        read = FrozenReading(
            inputs.model,
            inputs.encoder,
            encoded,
            scored=True,
            distinct=distinct,
            batch_tokens=batch_tokens,
            varlen=_varlen_agrees(config, inputs, say) if missing else False,
        )
        total = sum(int(encoded.lengths[rows.start : rows.stop].sum()) for rows in missing)
        with progress("tokens", total) as advance:
            _score_shards(missing, read, files, accelerator, pending, advance)
        phases.begin(SAVE, config.out)
        if files is not None:
            files.publish()
    tokens = int(encoded.target_lengths.sum())
    say(f"{config.out}: {len(encoded):,} rows, {tokens:,} tokens of y scored")
    if distinct is not None:
        say(f"{features_path(config.out)}: features of them, for `discover` and `train`")


def _missing_shards(
    encoded: Encoded, files: FrozenFiles | None, say: Callable[[str], None]
) -> list[range]:
    """Rows of each shard that is not stored, the same list in every process."""
    if files is not None:
        for note in files.notes:
            say(note)
    missing = _from_the_first(None if files is None else files.missing)
    stored = len(encoded) - sum(len(rows) for rows in missing)
    if stored > 0:
        say(f"resuming: {stored:,} of {len(encoded):,} rows are done")
    return missing


def _score_shards(
    missing: list[range],
    read: FrozenReading,
    files: FrozenFiles | None,
    accelerator: Accelerator,
    pending: Callable[[], bool],
    advance: Callable[[int], None],
) -> None:
    """Scores as many shards at a time as there are processes; the one that has the files writes.

    Raises:
        Interrupted: a signal came to any process; the shards at hand are stored first.
    """
    processes = accelerator.num_processes
    for first in range(0, len(missing), processes):
        shards = missing[first : first + processes]
        # the other processes are about as far
        advance_all = partial(_advance_all, advance, len(shards))
        mine = shards[accelerator.process_index :][:1]
        scored = [read(rows, advance_all) for rows in mine]
        for shard in gather_object(scored):
            if files is not None:
                files.write(*shard)
        if any(gather_object([pending()])):
            raise interrupted("; finished shards are kept")


def _features_wanted(config: PrecomputeConfig, inputs: Inputs, fingerprint: dict[str, Any]) -> bool:
    """Whether features are read along with b_t: not where they are there already, would fill
    much of the disk, or cost memory that a GPU may not have.
    """
    model = inputs.model
    encoded = inputs.encoded
    size = 2 * values_a_record(model) * len(distinct_rows(encoded))
    if config.execution == "plain" or model.device.type != "cpu" or size > FEATURE_BYTES:
        return False
    stored = StoredFeatures.beside([config.out, *files_of(config.data)], [fingerprint], encoded)
    if stored is None:
        return True
    stored.store.close()
    return False


def _files(
    config: PrecomputeConfig,
    encoded: Encoded,
    fingerprint: dict[str, Any],
    distinct: np.ndarray | None,
    shard_rows: int,
) -> FrozenFiles:
    """The files to write: the cache, and where `distinct` is given the features of those rows."""
    cache = CacheWriter(
        config.out,
        fingerprint=fingerprint,
        offsets=encoded.target_offsets,
        row_hash=encoded.row_hash,
        shard_rows=shard_rows,
        overwrite=config.overwrite,
    )
    if distinct is None:
        return FrozenFiles(cache, None, None, shard_rows)
    features = FeatureWriter(
        features_path(config.out),
        fingerprint=feature_fingerprint(fingerprint),
        row_hash=encoded.row_hash[distinct],
        shard_rows=shard_rows,
        overwrite=config.overwrite,
    )
    return FrozenFiles(cache, features, distinct, shard_rows)


def _varlen_agrees(config: PrecomputeConfig, inputs: Inputs, say: Callable[[str], None]) -> bool:
    """Whether rows can be scored without padding, with each prompt computed once for all its
    completions; if the model does not permit it, reports why.
    """
    if config.execution == "plain":
        return False
    reason = baseline.why_not_varlen(inputs.model, inputs.encoder, inputs.encoded)
    if reason:
        say(f"{config.model}: each completion is scored with its prompt, and padded: {reason}")
    return reason is None


def _measure_rounding(
    config: PrecomputeConfig,
    inputs: Inputs,
    batch_tokens: int,
    say: Callable[[str], None],
    phases: Phases,
) -> None:
    """Reports the rounding error of b_t against float32, in nats a token, on a few rows; from their
    time follows how long all rows will take.
    """
    model = inputs.model
    encoded = inputs.encoded
    rows = encoded.spread_rows(COMPARED_ROWS)
    phases.begin(CHECK_PRECISION, f"{len(rows)} records in both")
    score = partial(
        baseline.score_flat,
        encoder=inputs.encoder,
        encoded=encoded,
        rows=rows,
        batch_tokens=batch_tokens,
    )
    begin = time.monotonic()
    rounded = score(model)
    seconds = time.monotonic() - begin
    try:
        exact = loading.load_model(config.model, attention=config.attention)
        loading.fit_vocabulary(exact, inputs.encoder)
        full = score(exact.to(model.device))
    except torch.OutOfMemoryError:
        say(
            f"{config.precision}: its rounding error is not measured, since the float32 model does "
            "not fit in memory beside it"
        )
        return
    error = np.abs(rounded - full)
    say(
        f"{config.precision}: b_t of {len(rows)} rows differs from float32 by "
        f"{error.mean():.1e} nats per token, at most {error.max():.1e}"
    )
    tokens_a_second = float(encoded.lengths[rows].sum()) / seconds
    phases.expect({SCORE: float(encoded.lengths.sum()) / tokens_a_second})


def _advance_all(advance: Callable[[int], None], processes: int, tokens: int) -> None:
    """Advances the bar by what all processes did, of which each had about as many tokens as this
    one.
    """
    advance(tokens * processes)


def _from_the_first(value: Any) -> Any:
    """The first process's value, in every process."""
    return broadcast_object_list([value])[0]
