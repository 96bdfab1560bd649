"""`twcli discover`: names each record's latent without labels, to look at and to edit before a
training is paid for.

The frozen model reads the records once. Features and b_t of the same forward passes are kept beside
the names, in files with the guarantees of the cache: a killed call resumes, another number of
latents or seed reads nothing again, and a training needs no `twcli precompute`.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from twcli import signals
from twcli.commands.frozen_reading import SHARD_ROWS, FrozenFiles, FrozenReading
from twcli.config.discover import DiscoverConfig
from twcli.config.inputs import AUTO
from twcli.config.options import flag_of
from twcli.config.phases import FEATURES, NAME, PAGE, Phases
from twcli.data.dataset import Examples
from twcli.data.encoded import Encoded
from twcli.data.example import Example
from twcli.data.files import files_of
from twcli.data.names import read_names, write_names
from twcli.discovery.given import enough_given
from twcli.discovery.latent_cards import CardRows, latent_cards, map_of, shown, texts_of
from twcli.discovery.matching import beyond_chance
from twcli.discovery.names_page import render_names_page
from twcli.discovery.naming import completed, name_rows
from twcli.discovery.repeating import LEAST_ROWS_A_LATENT, searching_seconds
from twcli.discovery.result import Naming, counts_of, naming_record
from twcli.discovery.rows import Progress, Rows
from twcli.discovery.stored import StoredFeatures, distinct_rows, feature_fingerprint
from twcli.errors import UserError, interrupted
from twcli.models import baseline, forward, runtime
from twcli.models.inputs import Inputs, open_inputs
from twcli.models.runtime import Say
from twcli.pages.text import share
from twcli.storage.beside import baseline_path, copy_file, features_path, find_cache
from twcli.storage.cache import CacheWriter
from twcli.storage.durable import write_durably
from twcli.storage.feature_store import FeatureStore
from twcli.storage.feature_writer import FeatureWriter
from twcli.storage.shards import reporting
from twcli.training.defaults import duration

PAGE_SECONDS = 3.0
AMBIGUOUS = 8  # shown of all
SURE = 0.9  # a name of less probability is called ambiguous
RELIABLE = 0.9  # a score from which the verdict is that naming worked
ABOVE_CHANCE = 0.1  # of what lies between chance and 1; a score below it is called chance


def page_path(out: str | Path) -> Path:
    """Where the page of names at `out` is: in the same folder, under the same stem."""
    path = Path(out)
    name = f"{path.stem}.html"
    return path.with_name(name)


def _check_apart(config: DiscoverConfig) -> None:
    """Refuses names, a page or features that would be written over one another or the data."""
    out = Path(config.out)
    data = files_of(config.data)
    if page_path(config.out) == out:
        raise UserError(f"{out}: the page of the names gets that name; name the names .jsonl")
    if config.names is not None and out.exists() and out.samefile(config.names):
        raise UserError(f"{out}: is --names, which would be replaced; name another --out")
    for path in (out, page_path(out), features_path(out), baseline_path(out)):
        if path.exists() and any(path.samefile(file) for file in data):
            raise UserError(f"{path}: is the data, which would be replaced; name another --out")


def discover(
    config: DiscoverConfig,
    say: Say,
    progress: Progress,
    phases: Phases | None = None,
    records: Examples | None = None,
) -> dict[str, Any]:
    """Writes `config.out`, and its page, features and b_t beside it; returns what the page shows.

    Args:
        phases, records: as of `precompute`.

    Raises:
        UserError: the model, the data or the output is wrong, or there are too few records.
        WorkFailed: a feature or a b_t is not finite, or the disk is full; finished shards stay.
        Interrupted: a signal came; the shard in hand is stored first.
    """
    out = Path(config.out)
    started = time.monotonic()
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists and may have been edited; --overwrite replaces it")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{out}: name a file in a folder that exists")
    _check_apart(config)
    phases = phases or Phases()
    runtime.tune_allocator(keep=True)
    inputs = open_inputs(**config.inputs(), examples=records, say=say)
    encoded = inputs.encoded
    if config.latents == AUTO:
        latents = None
    else:
        latents = int(config.latents)
    names = None
    guided = False
    if config.names is not None:
        names = read_names(config.names, encoded.row_hash, latents, encoded.row_numbers)
        latents = max(names.latents, 2)
        guided = enough_given(names.latent_N, latents)
    rows = len(distinct_rows(encoded))
    searching = searching_seconds(rows, latents, given=guided)
    phases.expect({NAME: searching, PAGE: PAGE_SECONDS})
    phases.begin(FEATURES, f"{rows:,} distinct records, once each")
    source, baseline_file = _read(config, inputs, say, progress)
    phases.begin(NAME, "what separates them in the same way in either half of the prompts")
    with source.store:
        naming = name_rows(
            source,
            encoded,
            latents,
            seed=config.seed,
            progress=progress,
            given_N=None if names is None else names.latent_N,
        )
    if naming is None:
        least = LEAST_ROWS_A_LATENT * (latents or 2)
        raise UserError(
            f"{config.data}: too few distinct records to find strategies in; give at least "
            f"{least}, better some hundreds"
        )
    if names is not None:
        naming = completed(names.latent_N, names.probability_N, naming)
    page = page_path(out)
    phases.begin(PAGE, str(page))
    summary = summary_of(config, naming, encoded, inputs.records, baseline_file)
    took = duration(time.monotonic() - started)
    html = render_names_page({**summary, "took": took})
    with reporting(page, "write there"):
        write_durably(page, html.encode())
    # last, as the same command is refused where they are: one that was ended before has to continue
    with reporting(out, "write there"):
        write_names(
            config.out,
            encoded.row_hash,
            naming.latent_N,
            naming.probability_N,
            encoded.row_numbers,
        )
    return summary


def _read(
    config: DiscoverConfig, inputs: Inputs, say: Say, progress: Progress
) -> tuple[StoredFeatures, Path]:
    """The features and where b_t is, read from the model as far as they are in no file."""
    encoded = inputs.encoded
    print_ = inputs.fingerprint()
    places: list[str | Path] = [config.out, *files_of(config.data)]
    scores = find_cache(places, print_, encoded.row_hash)
    stored = StoredFeatures.beside(places, [print_], encoded)
    if stored is not None:
        say(f"features: {len(stored.rows):,} distinct records, from {stored.store.path}")
    if scores is None or stored is None:
        _read_from_model(config, inputs, print_, say, progress, scores is None, stored is None)
    if stored is None:
        stored = StoredFeatures.of(FeatureStore(features_path(config.out)), encoded)
    own = baseline_path(config.out)
    if scores is None:
        return stored, own
    if own.exists():
        return stored, own if own.samefile(scores) else scores
    copy_file(scores, own)
    say(f"{own}: a copy of {scores}, which has b_t of these records")
    return stored, own


def _read_from_model(
    config: DiscoverConfig,
    inputs: Inputs,
    print_: dict[str, Any],
    say: Say,
    progress: Progress,
    scored: bool,
    featured: bool,
) -> None:
    """Writes what is wanted, b_t, features or both, beside the names."""
    model = inputs.model
    encoder = inputs.encoder
    encoded = inputs.encoded
    common: dict[str, Any] = {"shard_rows": SHARD_ROWS, "overwrite": config.overwrite}
    distinct = distinct_rows(encoded) if featured else None
    features = cache = None
    if distinct is not None:
        features = FeatureWriter(
            features_path(config.out),
            fingerprint=feature_fingerprint(print_),
            row_hash=encoded.row_hash[distinct],
            **common,
        )
    if scored:
        cache = CacheWriter(
            baseline_path(config.out),
            fingerprint=print_,
            offsets=encoded.target_offsets,
            row_hash=encoded.row_hash,
            **common,
        )
    model.to(runtime.pick_device(config.device))
    read = FrozenReading(
        model,
        encoder,
        encoded,
        scored=scored,
        distinct=distinct,
        batch_tokens=min(config.batch_tokens, forward.fast_batch_tokens(model)),
        varlen=baseline.why_not_varlen(model, encoder, encoded) is None,
    )
    with FrozenFiles(cache, features, distinct, SHARD_ROWS) as files, signals.held() as pending:
        for note in files.notes:
            say(note)
        tokens = sum(int(encoded.lengths[part.start : part.stop].sum()) for part in files.missing)
        with progress("tokens", tokens) as advance:
            for part in files.missing:
                files.write(*read(part, advance))
                if pending():
                    raise interrupted("; finished shards are kept")
        files.publish()
    if cache is not None:
        say(f"{cache.path}: b_t of {len(encoded):,} records, from the same forward passes")


# What is shown


def summary_of(
    config: DiscoverConfig,
    naming: Naming,
    encoded: Encoded,
    records: Iterable[Example],
    baseline_file: Path,
) -> dict[str, Any]:
    """What the terminal, `--json` and the page show of a naming.

    Args:
        baseline_file: where b_t of these records is.
    """
    rows = Rows.of(encoded).rows  # what is shown is shown once
    once = np.sort(rows[naming.latent_N[rows] >= 0])
    unsure = once[naming.probability_N[once] < SURE]
    ambiguous = unsure[np.argsort(naming.probability_N[unsure], kind="stable")][:AMBIGUOUS]
    chosen = CardRows.of(naming.latent_N, naming.probability_N, naming.latents, rows)
    texts = texts_of(records, encoded, [*chosen.rows, *ambiguous.tolist()])
    counts = counts_of(naming.latent_N, naming.latents)
    record = naming_record(naming)
    return {
        **record,
        "title": f"Strategies of {Path(config.data).name}",
        "date": datetime.date.today().isoformat(),
        "model": config.model,
        "data": config.data,
        "records": len(encoded),
        "named": int(counts.sum()),
        "prompts": int(encoded.prompt_index.max()) + 1,
        "verdict": verdict_of(naming),
        # not rounded twice: the verdict has the same figure
        "score": naming.score or 0.0,
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
        "ambiguous_share": len(unsure) / max(len(once), 1),
        "map": _map(naming),
        "names": config.out,
        "page": str(page_path(config.out)),
        "baseline": str(baseline_file),
        "command": _train_command(config, baseline_file),
    }


def verdict_of(naming: Naming) -> str:
    """Whether naming worked, in a sentence."""
    score = naming.score or 0.0
    found = f"{naming.used} strategies"
    expected = f"about {share(score)} of the records are expected to be named right"
    by_chance = f"chance {share(naming.chance)}"
    if naming.given:
        expected += f", going by {naming.given:,} given names that were left out"
        if _at_chance(score, naming.chance):
            return (
                f"The {naming.given:,} given names cannot be predicted from the completions. Give "
                "more of them, or look whether they mean the same in all records."
            )
    if _at_chance(score, naming.chance):
        return (
            f"No strategies found: {naming.latents} groups of completions can be made, but names "
            f"are no better than by chance ({share(score)} right, {by_chance}). Try another number "
            "of latents, more records, or a larger model."
        )
    if score < RELIABLE:
        advice = "Look at them before you train; names for a few, by --names, guide the others."
        if naming.likelier is not None:
            advice = f"{naming.likelier} have far more support: try --latents {naming.likelier}."
        return f"{found} found, not reliably: {expected} ({by_chance}). {advice}"
    return f"{found} found: {expected} ({by_chance})."


def _at_chance(score: float, chance: float) -> bool:
    """Whether names are no better than guesses."""
    return beyond_chance(score, chance) <= ABOVE_CHANCE


def closing_line(summary: dict[str, Any]) -> str:
    """What was written and what to run next; after names by chance no training.

    Args:
        summary: what `discover` returns.
    """
    records = summary["records"]
    named = summary["named"]
    done = f"{records:,} records named"
    if named < records:
        left = f"{records - named:,} have null, and training finds their latents"
        done = f"{named:,} of {records:,} records named; {left}"
    if _at_chance(summary["score"], summary["chance"]):
        return f"{summary['names']}: {done} by chance; training on these names teaches nothing"
    return f"{summary['names']}: {done}; train: {summary['command']}"


def _train_command(config: DiscoverConfig, baseline_file: Path) -> str:
    """The call that trains on these names, in the same template and fields."""
    words = ["twcli", "train", "--model", config.model, "--data", config.data]
    for name in (
        "template",
        "chat_template_kwargs",
        "too_long",
        "empty",
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
    place = str(baseline_file)
    return shlex.join([*words, "--baseline", place, "--names", config.out, "--out", "RUN"])


def _map(naming: Naming) -> dict[str, Any] | None:
    """The fitted rows in a plane, for the page; None where the naming kept no points."""
    rows = naming.point_rows
    if naming.points is None or rows is None:
        return None
    latents = naming.latent_N[rows]
    return map_of(naming.points, latents)
