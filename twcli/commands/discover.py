"""`twcli discover`: names each record's latent without labels, to look at and to edit before a
training is paid for.

Features of the frozen model are read once and kept beside the names, in a file with the guarantees
of the cache: a killed call resumes, another number of latents or seed reads nothing again.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twcli import signals
from twcli.config.commands import AUTO, DiscoverConfig
from twcli.config.options import flag_of
from twcli.data.dataset import Examples
from twcli.data.encoder import Encoded
from twcli.data.example import Example
from twcli.data.files import files_of
from twcli.data.names import write_names
from twcli.discovery import features as feature_reading
from twcli.discovery.features import KINDS, Features, embed_rows
from twcli.discovery.latent_cards import CardRows, latent_cards, map_of, shown, texts_of
from twcli.discovery.names_page import render_names_page
from twcli.discovery.naming import name_rows
from twcli.discovery.repeating import LEAST_ROWS_A_LATENT, searching_seconds
from twcli.discovery.result import Naming, naming_record
from twcli.discovery.rows import Progress, Rows
from twcli.errors import UserError, interrupted
from twcli.models import baseline, forward, runtime
from twcli.models.inputs import Inputs, open_inputs
from twcli.phases import FEATURES, NAME, PAGE, Phases
from twcli.storage.durable import write_durably
from twcli.storage.feature_store import FeatureStore, FeatureWriter
from twcli.storage.shards import reporting
from twcli.training.defaults import duration

SHARD_ROWS = 512
PAGE_SECONDS = 3.0
AMBIGUOUS = 8  # shown of all
SURE = 0.9  # a name of less probability is called ambiguous
RELIABLE = 0.9  # a score from which the verdict is that naming worked
ABOVE_CHANCE = 0.1  # of what lies between chance and 1; a score below it is called chance

Say = Callable[[str], None]


def features_path(out: str) -> Path:
    """Where the features of names at `out` are kept."""
    path = Path(out)
    return path.with_name(f"{path.stem}.features.h5")


def page_path(out: str) -> Path:
    """Where the page of names at `out` is."""
    path = Path(out)
    return path.with_name(f"{path.stem}.html")


def _check_apart(config: DiscoverConfig) -> None:
    """Refuses names, a page or features that would be written over one another or the data."""
    out, data = Path(config.out), files_of(config.data)
    if page_path(config.out) == out:
        raise UserError(f"{out}: the page of the names gets that name; name the names .jsonl")
    for path in (out, page_path(config.out), features_path(config.out)):
        if path.exists() and any(path.samefile(file) for file in data):
            raise UserError(f"{path}: is the data, which would be replaced; name another --out")


def discover(
    config: DiscoverConfig,
    say: Say,
    progress: Progress,
    phases: Phases | None = None,
    records: Examples | None = None,
) -> dict[str, Any]:
    """Writes `config.out`, its page and the features beside it; returns what the page shows.

    Args:
        phases, records: as of `precompute`.

    Raises:
        UserError: the model, the data or the output is wrong, or there are too few records.
        WorkFailed: a feature is not finite, or the disk is full; finished shards stay.
        Interrupted: a signal came; the shard in hand is stored first.
    """
    out, started = Path(config.out), time.monotonic()
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists and may have been edited; --overwrite replaces it")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{out}: name a file in a folder that exists")
    _check_apart(config)
    phases = phases or Phases()
    runtime.tune_allocator(keep=True)
    inputs = open_inputs(**config.inputs(), examples=records, say=say)
    encoded = inputs.encoded
    latents = None if config.latents == AUTO else int(config.latents)
    rows = len(Rows.of(encoded).rows)
    phases.expect({NAME: searching_seconds(rows, latents), PAGE: PAGE_SECONDS})
    phases.begin(FEATURES, f"{rows:,} distinct records, once each")
    store = _features(config, inputs, say, progress)
    phases.begin(NAME, "what separates them in the same way in either half of the prompts")
    with store:
        source = StoredFeatures.of(store, encoded)
        naming = name_rows(source, encoded, latents, seed=config.seed, progress=progress)
    if naming is None:
        raise UserError(
            f"{config.data}: too few distinct records to find strategies in; give at least "
            f"{LEAST_ROWS_A_LATENT * (latents or 2)}, better some hundreds"
        )
    phases.begin(PAGE, str(page_path(config.out)))
    with reporting(out, "write there"):
        write_names(
            config.out,
            encoded.row_hash,
            naming.latent_N,
            naming.probability_N,
            encoded.row_numbers,
        )
    summary = summary_of(config, naming, encoded, inputs.records)
    took = duration(time.monotonic() - started)
    html = render_names_page({**summary, "took": took})
    write_durably(page_path(config.out), html.encode())
    return summary


def _features(config: DiscoverConfig, inputs: Inputs, say: Say, progress: Progress) -> FeatureStore:
    """The file of features, complete: read from the model as far as it is not there."""
    path = features_path(config.out)
    model, encoder, encoded = inputs.model, inputs.encoder, inputs.encoded
    rows = np.sort(Rows.of(encoded).rows)
    row_hash = encoded.row_hash[rows]
    print_ = {**inputs.fingerprint(), "features": feature_reading.VERSION}
    if FeatureWriter.already_complete(path, print_, row_hash):
        say(f"features: {len(rows):,} distinct records, read before")
        return FeatureStore(path)
    model.to(runtime.pick_device(config.device))
    varlen = baseline.why_not_varlen(model, encoder, encoded) is None
    batch_tokens = min(config.batch_tokens, forward.fast_batch_tokens(model))
    writer = FeatureWriter(
        path,
        fingerprint=print_,
        row_hash=row_hash,
        shard_rows=SHARD_ROWS,
        overwrite=config.overwrite,
    )
    with writer, signals.held() as pending:
        for note in writer.notes:
            say(note)
        missing = writer.missing
        with progress("records", sum(map(len, missing))) as advance:
            for shard in missing:
                found = embed_rows(
                    model,
                    encoder,
                    encoded,
                    rows[shard.start : shard.stop],
                    batch_tokens=batch_tokens,
                    varlen=varlen,
                    advance=advance,
                )
                values = dict(zip(KINDS, found.kinds, strict=True))
                writer.write(shard, {**values, "prompts": found.prompts})
                if pending():
                    raise interrupted("; finished shards are kept")
        writer.publish()
    return FeatureStore(path)


@dataclass(frozen=True)
class StoredFeatures:
    """Features of distinct records from their file.

    Attributes:
        rows: (R,) rows of the data that the file holds, ascending.
        lengths: (N,) supervised tokens of each row of the data.
    """

    store: FeatureStore
    rows: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, store: FeatureStore, encoded: Encoded) -> StoredFeatures:
        """Of a file that `_features` has made for this data."""
        return cls(store, np.sort(Rows.of(encoded).rows), encoded.target_lengths)

    def __call__(self, rows: np.ndarray, advance: Callable[[int], None] | None) -> Features:
        """As `features.embed_rows`."""
        values = self.store.read(np.searchsorted(self.rows, rows))
        if advance:
            advance(len(rows))
        kinds = tuple(values[kind] for kind in KINDS)
        return Features(kinds, values["prompts"], self.lengths[rows].astype(np.float64))


# What is shown


def summary_of(
    config: DiscoverConfig, naming: Naming, encoded: Encoded, records: Iterable[Example]
) -> dict[str, Any]:
    """What the terminal, `--json` and the page show of a naming."""
    named = np.flatnonzero(naming.latent_N >= 0)
    rows = Rows.of(encoded).rows  # what is shown is shown once
    once_N = np.full(len(encoded), -1, np.int64)
    once_N[rows] = naming.latent_N[rows]
    unsure = np.flatnonzero((once_N >= 0) & (naming.probability_N < SURE))
    ambiguous = unsure[np.argsort(naming.probability_N[unsure], kind="stable")][:AMBIGUOUS]
    chosen = CardRows.of(naming.latent_N, naming.probability_N, naming.latents, rows)
    texts = texts_of(records, encoded, [*chosen.rows, *ambiguous.tolist()])
    counts = np.bincount(naming.latent_N[named], minlength=naming.latents)
    record = naming_record(naming)
    return {
        **record,
        "title": f"Strategies of {Path(config.data).name}",
        "date": datetime.date.today().isoformat(),
        "model": config.model,
        "data": config.data,
        "records": len(encoded),
        "named": len(named),
        "prompts": int(encoded.prompt_index.max()) + 1,
        "verdict": verdict_of(naming),
        "score": record["score"] or 0.0,
        "score_ci": None,
        "proportions": [float(share) for share in counts / max(counts.sum(), 1)],
        "latent_cards": latent_cards(
            chosen, naming.latent_N, naming.probability_N, texts, encoded.number
        ),
        "ambiguous": [
            {
                **shown(row, naming.probability_N, texts, encoded.number),
                "latents": [int(naming.latent_N[row]), int(naming.second_N[row])],
            }
            for row in ambiguous.tolist()
        ],
        "ambiguous_share": len(unsure) / max(int((once_N >= 0).sum()), 1),
        "map": _map(naming),
        "names": config.out,
        "page": str(page_path(config.out)),
        "command": _train_command(config),
    }


def verdict_of(naming: Naming) -> str:
    """Whether naming worked, in a sentence."""
    score, found = naming.score or 0.0, f"{naming.used} strategies"
    above_chance = (score - naming.chance) / (1 - naming.chance)
    expected = f"about {score:.0%} of the records are expected to be named right"
    if above_chance <= ABOVE_CHANCE:
        return (
            f"No strategies found: {naming.latents} groups of completions can be made, but no "
            "better than by chance. Try another number of latents, more records, or a larger model."
        )
    if score < RELIABLE:
        return f"{found} found, not reliably: {expected}. Look at them before you train."
    return f"{found} found: {expected} (chance {naming.chance:.0%})."


def _train_command(config: DiscoverConfig) -> str:
    """The call that trains on these names, in the same template and fields."""
    words = ["twcli", "train", "--model", config.model, "--data", config.data]
    for name in (
        "template",
        "chat_template_kwargs",
        "too_long",
        "latent_tokens",
        "format",
        "x_field",
        "y_field",
        "max_length",
    ):
        value = getattr(config, name)
        default = type(config).__dataclass_fields__[name].default
        if value != default:
            words += [flag_of(name), str(value)]
    if config.each_turn:
        words.append(flag_of("each_turn"))
    return shlex.join([*words, "--baseline", "FILE.h5", "--names", config.out, "--out", "RUN"])


def _map(naming: Naming) -> dict[str, Any] | None:
    if naming.points is None or naming.point_rows is None:
        return None
    return map_of(naming.points, naming.latent_N[naming.point_rows])
