"""The warm start: features of the original model, or of a file, and the latents that rows are named
with.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from twcli.config.phases import NAME, Phases
from twcli.config.train import TrainConfig
from twcli.data.encoded import Encoded
from twcli.data.files import files_of
from twcli.data.names import read_names
from twcli.discovery.naming import completed, given_names, name_rows
from twcli.discovery.probe import Probe
from twcli.discovery.result import Naming, naming_lines
from twcli.discovery.rows import ModelSource, Source
from twcli.discovery.stored import StoredFeatures
from twcli.errors import UserError
from twcli.kernels.packing import PLAIN
from twcli.models import baseline
from twcli.models.inputs import Inputs
from twcli.models.runtime import Say


@dataclass
class Shared:
    """What runs of several seeds have in common: made by the first of them.

    Attributes:
        seed: of the naming, the probe and the held-out records.
        named: settings with K as a number, and the naming.
        probe: completions that the runs are scored by.
    """

    seed: int
    named: tuple[TrainConfig, Naming | None] | None = None
    probe: Probe | None = None


def source_of(
    config: TrainConfig, inputs: Inputs, fingerprint: dict[str, Any], say: Say
) -> StoredFeatures | ModelSource:
    """Where the naming takes features from: a file that has them, else the model.

    Args:
        fingerprint: of b_t.
    """
    backbone = inputs.model
    encoder = inputs.encoder
    encoded = inputs.encoded
    varlen = (
        config.execution != PLAIN and baseline.why_not_varlen(backbone, encoder, encoded) is None
    )
    stored = _stored_features(config, inputs, fingerprint)
    if stored is not None:
        say(f"features: {len(stored.rows):,} distinct records, from {stored.store.path}")
        return stored
    return ModelSource(backbone, encoder, encoded, 8 * config.resolved_batch_tokens, varlen)


def _stored_features(
    config: TrainConfig, inputs: Inputs, fingerprint: dict[str, Any]
) -> StoredFeatures | None:
    """Features of these records that `discover` or `precompute` has left beside the data, the names
    or the cache: in the precision of b_t or in float32.

    Args:
        fingerprint: of b_t.
    """

    def accepted() -> Iterator[dict[str, Any]]:
        """Fingerprints that the features may have: that of b_t, then that of these settings."""
        yield fingerprint
        if fingerprint["dtype"] != inputs.precision:
            yield inputs.fingerprint()  # hashes all weights

    places = [config.names, config.baseline, *files_of(config.data)]
    files = [place for place in places if place is not None]
    return StoredFeatures.beside(files, accepted(), inputs.encoded)


def shared_naming(
    config: TrainConfig,
    source: Source,
    encoded: Encoded,
    shared: Shared,
    say: Say,
    progress: Callable[[str, int], Any],
    phases: Phases,
    stored: bool,
) -> tuple[TrainConfig, Naming | None]:
    """The settings with K as a number, and the naming: the first run's of several seeds, and the
    first process's in all.
    """
    if shared.named is None:
        if config.warm_start != "none":
            search = "a search" if stored else "features of the original model, then a search"
            phases.begin(NAME, config.names or search)
        shared.named = _named(config, source, encoded, shared.seed, say, progress)
    settled, naming = shared.named
    config = dataclasses.replace(config, latents=settled.latents)
    # One naming for all processes: rounding could name a row, and so every latent, otherwise.
    config, naming = broadcast_object_list([config, naming])
    return config, naming


def _named(
    config: TrainConfig,
    source: Source,
    encoded: Encoded,
    seed: int,
    say: Say,
    progress: Callable[[str, int], Any],
) -> tuple[TrainConfig, Naming | None]:
    """The settings with K as a number, and the latents of the rows: those of `--names`, found where
    it has none.
    """
    if config.warm_start == "none":
        return config, None
    latents = config.latents if isinstance(config.latents, int) else None
    names = None
    if config.names is not None:
        names = read_names(config.names, encoded.row_hash, latents, encoded.row_numbers)
        latents = max(names.latents, 2)
        if bool((names.latent_N >= 0).all()):
            naming = given_names(encoded, names.latent_N, names.probability_N, latents)
            say(f"names: {len(encoded):,} records of {config.names}, {latents} latents")
            if empty := sorted(set(range(naming.used)) - set(names.latent_N.tolist())):
                say(f"names: latent {empty[0]} has no records and is not trained")
            return dataclasses.replace(config, latents=latents), naming
    given_N = names.latent_N if names is not None else None
    found = name_rows(source, encoded, latents, seed=seed, progress=progress, given_N=given_N)
    if found is None:
        if latents is None:
            raise UserError(
                f"--latents auto: {config.data} has too few records to count strategies in; "
                "give a number, or more records"
            )
        config = dataclasses.replace(config, latents=latents)
        if names is not None and (names.latent_N >= 0).any():
            left = int((names.latent_N < 0).sum())
            say(f"names: {left:,} records stay without a name, too few to find strategies in")
            return config, given_names(encoded, names.latent_N, names.probability_N, latents)
        say(
            f"naming: skipped, {config.data} has too few records for {latents} latents; draw more "
            f"from the original model: twcli sample --model {config.model} --data {config.data} "
            "-n 4 --out more.jsonl"
        )
        return config, None
    if names is not None:
        given = int((names.latent_N >= 0).sum())
        found = completed(names.latent_N, names.probability_N, found)
        say(f"names: {given:,} of {len(encoded):,} records of {config.names}, the others found")
    for line in naming_lines(found):
        say(line)
    return dataclasses.replace(config, latents=found.latents), found


def latents_of(naming: Naming | None, rows: int) -> np.ndarray:
    """(N,) the latent at which each row's posterior is held, -1 for none."""
    if naming is None:
        return np.full(rows, -1, np.int64)
    return naming.latent_N.astype(np.int64)
