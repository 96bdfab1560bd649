"""A config becomes a run's setup: inputs loaded and checked, the warm start made, the model built.
`trainer` does what it says.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from twcli.config.inputs import AUTO
from twcli.config.train import TrainConfig
from twcli.data.batches import BatchSampler, length_classes
from twcli.data.dataset import Examples
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.data.example import Example
from twcli.data.files import files_of
from twcli.data.names import read_names
from twcli.data.padding import budget_batches
from twcli.discovery.distinct import MOST_CLUSTERS
from twcli.discovery.naming import completed, given_names, name_rows
from twcli.discovery.probe import PROBE_ROWS, Probe, probe_of
from twcli.discovery.repeating import searching_seconds
from twcli.discovery.result import Naming, naming_lines
from twcli.discovery.rows import ModelSource, Rows, Source
from twcli.discovery.stored import StoredFeatures
from twcli.errors import UserError
from twcli.kernels.packing import PLAIN
from twcli.models import baseline, runtime
from twcli.models.building import build, choose_execution, execution_of
from twcli.models.inputs import Inputs, open_inputs
from twcli.models.latents import LatentModel
from twcli.models.positions import pass_lengths
from twcli.phases import CHECK_BASELINE, JUDGE_RUN, NAME, ORIGINAL, SAVE, TRAIN, Phases
from twcli.storage.cache import Cache
from twcli.storage.run_folder import RunFolder
from twcli.training.defaults import (
    Length,
    adaptation,
    default_steps,
    duration,
    peak_learning_rate,
)
from twcli.training.defaults import batch_tokens as default_batch_tokens
from twcli.training.held_out import (
    MONITORED,
    PASSES_A_RECORD,
    HeldOut,
    held_out_rows,
    measured_every,
)
from twcli.training.stages import FREE, HOLD, SHARE_POWER, Course, Repetitions

# Early gradients are clipped, late ones are a fifth of that: a second moment that is kept over the
# usual 1,000 steps would keep the last updates small. As Brown et al. 2020.
ADAM_BETAS = (0.9, 0.95)
RESCORED_ROWS = 64
SCORED_SHARE = 0.1
JUDGED_SHARE = 0.05  # of the training's time, of which scoring the run takes about so much
DECODED = 8  # tokens that are read in the time in which one is written, about
SAVED_A_SECOND = 2e8  # bytes, with their checksums
FORWARD_AND_BACKWARD = 3.0  # in forward passes
LEAST_SCORED_ROWS = 128
# Nats, mean over tokens: a cache of other weights or rows is off by 0.3 or more, another kernel by
# 1e-6 and bf16 by 0.05. The largest difference decides nothing: in bf16 one token of a thousand is
# off by half a nat.
RESCORE_LIMIT = {"fp32": 1e-3, "bf16": 0.15}

Say = Callable[[str], None]


@dataclass
class Setup:
    """Everything that `trainer.fit` needs, checked.

    Attributes:
        cache: b_t of the frozen model; None where b_t is the current backbone's.
        latent_N: the latent at which each row's posterior is held, -1 for none; the
            stage `refine` rewrites it.
        naming: what discovery found; None without a warm start.
        used: latents that rows are held at, the first of the K; each other one
            shares the rows of one of them.
        course: what each step trains under, and when the run ends.
        held: records that are not trained on.
        repetitions: of the rows that have a name and are trained on.
        length: what is said of the run's length before it starts.
        records: as they are in the data, to be read once more for their texts.
        provenance: what a checkpoint must have been made from to be resumed.
        classes: (N,) rows of different ones share no batch (`batches.length_classes`).
        stored_dtype: of the checkpoint that the run starts from, and so of `RUN/model`.
        adapter: the `peft.PeftModel` around the backbone, where LoRA is trained.
        probe: completions that the finished run is scored by; None where no prompts have several.
        frozen_nll_N: NLL of the probe's rows under the frozen model, in nats.
    """

    config: TrainConfig
    run: RunFolder
    model: LatentModel
    encoder: ExampleEncoder
    encoded: Encoded
    cache: Cache | None
    latent_N: np.ndarray
    naming: Naming | None
    used: int
    course: Course
    held: HeldOut
    repetitions: Repetitions
    length: str
    lr: float
    accelerator: Any
    records: Iterable[Example]
    provenance: dict[str, Any]
    classes: np.ndarray
    stored_dtype: torch.dtype
    adapter: Any = None
    probe: Probe | None = None
    frozen_nll_N: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run, as far as is known."""
        return self.course.steps


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


def prepare(
    config: TrainConfig,
    run: RunFolder,
    say: Say,
    progress: Callable[[str, int], Any],
    shared: Shared | None = None,
    phases: Phases | None = None,
    records: Examples | None = None,
) -> Setup:
    """Loads and checks all inputs, rescores some rows against the cache, and makes the warm start.

    Args:
        shared: of several runs on the same model and data; None for a run by itself.
        say: takes one line a fact.
        progress: opens a bar (label, total) that is called with increments.
        phases, records: as of `commands.precompute`.

    Raises:
        UserError: an input is wrong or the cache belongs to something else.
    """
    phases = phases or Phases()
    shared = shared or Shared(config.seed)
    accelerator = runtime.accelerator_for(config.device, config.precision)
    runtime.repeat_exactly(accelerator.device)
    runtime.tune_allocator(keep=config.latent_chunk is None)
    # the weights are trained in float32; --precision is that of the arithmetic
    inputs = open_inputs(**{**config.inputs(), "precision": "fp32"}, examples=records, say=say)
    encoder = inputs.encoder
    encoded = inputs.encoded
    config = resolved(run.settled(config), inputs.model, encoder, encoded)
    stored_dtype = runtime.stored_dtype(config.model)
    _say_what_surprises(config, run, stored_dtype, inputs.model.dtype, say)
    cache, fingerprint = _open_baseline(config, inputs, accelerator.device, say, phases)
    source = _source(config, inputs, fingerprint, say)
    schedule = _schedule(config, inputs, accelerator, shared.seed)
    stored = isinstance(source, StoredFeatures)
    _expect(phases, config, inputs, schedule, stored)
    config, naming = _shared_naming(config, source, encoded, shared, say, progress, phases, stored)
    held = _held_out(config, inputs, cache, naming, schedule)
    phases.begin(ORIGINAL, "features to score the run by")
    seconds = training_seconds(config, encoded, schedule.steps, schedule.speed)  # K is known now
    phases.expect({TRAIN: seconds, JUDGE_RUN: JUDGED_SHARE * seconds})
    if shared.probe is None:
        shared.probe = _probe(config, source, encoded, naming, schedule, shared.seed, progress)
    probe = shared.probe
    frozen_nll = None if probe is None else _frozen_nll(probe.rows, inputs, cache, config)
    model, adapter = build(config, inputs.model, encoder)
    with accelerator.autocast():
        choose_execution(model, execution_of(config), encoder, encoded, say)
    latent_N = _latents_of(naming, len(encoded))
    named_rows = schedule.trained[latent_N[schedule.trained] >= 0]
    course = _course(config, naming, schedule, len(named_rows) > 0, say)
    passes_over_data = schedule.steps * schedule.rows_a_step / len(schedule.trained)
    length = Length(schedule.steps, passes_over_data, len(schedule.trained))
    return Setup(
        config,
        run,
        model,
        encoder,
        encoded,
        cache,
        latent_N,
        naming,
        held.used,
        course,
        held,
        Repetitions.of(latent_N, named_rows),
        f"{length}, about {duration(seconds)}",
        cast(float, config.lr),
        accelerator,
        inputs.records,
        _provenance(config, fingerprint, shared.seed),
        schedule.classes,
        stored_dtype,
        adapter=adapter,
        probe=probe,
        frozen_nll_N=frozen_nll,
    )


def _say_what_surprises(
    config: TrainConfig,
    run: RunFolder,
    stored_dtype: torch.dtype,
    trained_dtype: torch.dtype,
    say: Say,
) -> None:
    """Reports a loss that leaves tokens untrained, and weights of another precision than the
    checkpoint's.
    """
    if config.uses_weights and config.term_weights()[0] == 0:
        say(
            "loss: b_t-weighted alone, so tokens without b_t are not trained and decay; "
            "--weighting mixed keeps them"
        )
    if stored_dtype != trained_dtype:
        name = str(stored_dtype).removeprefix("torch.")
        say(f"weights: stored in {name}, trained in float32; {run.model} will be in {name} as well")


def _open_baseline(
    config: TrainConfig, inputs: Inputs, device: torch.device, say: Say, phases: Phases
) -> tuple[Cache | None, dict[str, Any]]:
    """(the cache of b_t, None where b_t is the current model's; the fingerprint of b_t). Moves the
    model to the device, where some rows are scored again to compare with the cache.

    Raises:
        UserError: the cache belongs to another model, data or template.
    """
    backbone = inputs.model
    encoded = inputs.encoded
    if config.baseline_policy != "frozen":
        phases.begin(CHECK_BASELINE, "b_t is the current model's own")
        fingerprint = inputs.fingerprint()
        backbone.to(device)
        unread = f"; {config.baseline} is not read" if config.baseline else ""
        say(f"baseline: b_t of the current backbone at each step{unread}")
        return None, fingerprint
    rescored = _rescored(encoded)
    phases.begin(CHECK_BASELINE, f"{rescored} records are scored again")
    cache, fingerprint = inputs.open_cache(cast(str, config.baseline))
    backbone.to(device)
    made_in = fingerprint["dtype"]
    mean, largest = rescore(backbone, inputs.encoder, encoded, cache, config, made_in)
    say(
        f"baseline: the cache matches the model ({rescored} of {cache.rows:,} rows "
        f"checked, mean difference {mean:.1e} nats, largest {largest:.1e}); made in {made_in}"
    )
    return cache, fingerprint


def _source(
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
        say(f"features: {len(stored.rows):,} distinct records, read before: {stored.store.path}")
        return stored
    return ModelSource(backbone, encoder, encoded, 8 * config.resolved_batch_tokens, varlen)


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


def _schedule(config: TrainConfig, inputs: Inputs, accelerator: Accelerator, seed: int) -> Schedule:
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


def _expect(
    phases: Phases, config: TrainConfig, inputs: Inputs, schedule: Schedule, stored: bool
) -> None:
    """Foretells how long the phases take, in seconds, before K is known.

    Args:
        stored: features are in a file.
    """
    encoded = inputs.encoded
    training = training_seconds(config, encoded, schedule.steps, schedule.speed)
    weight_bytes = 4 * sum(p.numel() for p in inputs.model.parameters())
    phases.expect(
        {
            NAME: naming_seconds(config, encoded, math.inf if stored else schedule.speed),
            ORIGINAL: original_seconds(encoded, schedule.speed),
            TRAIN: training,
            JUDGE_RUN: JUDGED_SHARE * training,
            SAVE: weight_bytes / SAVED_A_SECOND,
        }
    )


def _shared_naming(
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


def _latents_of(naming: Naming | None, rows: int) -> np.ndarray:
    """(N,) the latent at which each row's posterior is held, -1 for none."""
    if naming is None:
        return np.full(rows, -1, np.int64)
    return naming.latent_N.astype(np.int64)


def _held_out(
    config: TrainConfig,
    inputs: Inputs,
    cache: Cache | None,
    naming: Naming | None,
    schedule: Schedule,
) -> HeldOut:
    """The records that are not trained on, with their latents and NLL under the frozen model."""
    rows = schedule.held_rows
    monitored = min(len(rows), MONITORED)
    return HeldOut(
        rows,
        _latents_of(naming, len(inputs.encoded))[rows],
        _frozen_nll(rows, inputs, cache, config),
        config.resolved_latents if naming is None else naming.used,
        measured_every(schedule.steps, monitored, config.resolved_latents, schedule.rows_a_step),
    )


def _probe(
    config: TrainConfig,
    source: Source,
    encoded: Encoded,
    naming: Naming | None,
    schedule: Schedule,
    seed: int,
    progress: Callable[[str, int], Any],
) -> Probe | None:
    """Completions that the finished run is scored by; None where no prompts have several."""
    distinct = naming is None or naming.one_string
    return probe_of(
        source,
        encoded,
        distinct=distinct,
        seed=seed,
        proportions=None if naming is None else naming.prior.proportions,
        most_rows=_scored_rows(config, encoded, schedule.steps, distinct),
        progress=progress,
    )


def _course(
    config: TrainConfig, naming: Naming | None, schedule: Schedule, named: bool, say: Say
) -> Course:
    """What each step trains under.

    Args:
        named: some rows that are trained on have a latent.
    """
    if config.free_only and named:
        say(
            f"{config.free_only} has no effect: it acts where the posterior is learned, "
            "with --warm-start none"
        )
    return Course(
        schedule.steps,
        named=named,
        corrected=naming is not None and naming.one_string,
        may_end=config.steps is None and config.epochs is None,
    )


def _provenance(
    config: TrainConfig, fingerprint: dict[str, Any], naming_seed: int
) -> dict[str, Any]:
    """What a checkpoint must have been made from to be resumed. What the options leave to this
    package goes with the settings: another version's run is not continued with other settings than
    it began with.

    Args:
        fingerprint: of b_t.
    """
    provenance = {
        **fingerprint,
        "settings": config.identity(),
        "optimiser": {
            "peak_lr": cast(float, config.lr),
            "betas": ADAM_BETAS,
            "share_power": SHARE_POWER,
        },
    }
    if naming_seed != config.seed:
        provenance["naming_seed"] = naming_seed
    if config.names is not None:  # the path alone would not show that the file was edited since
        provenance["names"] = hashlib.sha256(Path(config.names).read_bytes()).hexdigest()
    return provenance


def _rescored(encoded: Encoded) -> int:
    """How many rows are scored again."""
    return min(RESCORED_ROWS, len(encoded))


def rescore(
    backbone: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    cache: Cache,
    config: TrainConfig,
    made_in: str,
) -> tuple[float, float]:
    """Mean and largest absolute difference in nats a token between the cache, made in the precision
    `made_in`, and the model on a few random rows.

    Raises:
        UserError: a mean that no kernel and no rounding explains.
    """
    rng = np.random.default_rng([config.seed, 2])
    rows = np.sort(rng.choice(len(encoded), _rescored(encoded), replace=False))
    fresh = baseline.score_flat(
        backbone, encoder, encoded, rows, batch_tokens=config.resolved_batch_tokens
    )
    stored, _ = cache.read(rows)
    differences = np.abs(fresh - stored)
    mean = float(differences.mean())
    largest = float(differences.max())
    if not mean <= RESCORE_LIMIT[made_in]:  # NaN included
        raise UserError(
            f"{config.baseline}: the model gives other b_t on {len(rows)} rows, by {mean:.3g} nats "
            "a token; run `twcli precompute --overwrite` again"
        )
    return mean, largest


def _frozen_nll(
    rows: np.ndarray, inputs: Inputs, cache: Cache | None, config: TrainConfig
) -> np.ndarray:
    """(N,) nats of distinct rows in any order: the sum of their b_t,
    read where there is a cache.
    """
    if not len(rows):
        return np.empty(0)
    rows, back = np.unique(rows, return_inverse=True)
    if cache:
        flat = cache.read(rows)[0]
    else:
        flat = baseline.score_flat(
            inputs.model,
            inputs.encoder,
            inputs.encoded,
            rows,
            batch_tokens=config.resolved_batch_tokens,
        )
    lengths = inputs.encoded.target_lengths[rows]
    return np.add.reduceat(flat, np.cumsum(lengths) - lengths, dtype=np.float64)[back]


def _stored_features(
    config: TrainConfig, inputs: Inputs, fingerprint: dict[str, Any]
) -> StoredFeatures | None:
    """Features of these records that `discover` or `precompute` has left beside the data, the names
    or the cache: in the precision of b_t or in float32.

    Args:
        fingerprint: of b_t.
    """

    def accepted() -> Iterator[dict[str, Any]]:
        yield fingerprint
        if fingerprint["dtype"] != inputs.precision:
            yield inputs.fingerprint()  # hashes all weights

    places = [config.names, config.baseline, *files_of(config.data)]
    files = [place for place in places if place is not None]
    return StoredFeatures.beside(files, accepted(), inputs.encoded)


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
    found = name_rows(source, encoded, latents, seed=seed, progress=progress)
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


def _scored_rows(config: TrainConfig, encoded: Encoded, steps: int, distinct: bool) -> int:
    """Records that the finished run is scored by: reading their features and their K branches takes
    about a tenth of the training's time, or less.
    """
    step_rows = config.accumulate * batch_rows(config, encoded)
    passes = SCORED_SHARE * steps * step_rows * PASSES_A_RECORD
    most = len(encoded) if distinct else PROBE_ROWS
    affordable = int(passes / (config.resolved_latents + 1))
    return min(most, max(LEAST_SCORED_ROWS, affordable))


def batch_rows(config: TrainConfig, encoded: Encoded) -> int:
    """Records of mean length that a batch holds."""
    return max(1, int(config.resolved_batch_tokens / encoded.lengths.mean()))


def resolved(
    config: TrainConfig, backbone: PreTrainedModel, encoder: ExampleEncoder, encoded: Encoded
) -> TrainConfig:
    """The settings with what follows from the model's size and the records in the places that were
    left open.
    """
    parameters = sum(p.numel() for p in backbone.parameters())
    width = backbone.get_input_embeddings().weight.shape[1]
    adapt = config.adapt or ("full" if config.shard else adaptation(parameters))
    tokens = config.batch_tokens or default_batch_tokens(adapt, float(encoded.lengths.mean()))
    return dataclasses.replace(
        config,
        template=encoder.template.name if config.template == AUTO else config.template,
        adapt=adapt,
        batch_tokens=tokens,
        lr=config.lr or peak_learning_rate(adapt, width),
    )


def sequences_at_once(config: TrainConfig) -> int:
    """Of a record, whose activations are kept together: with names the posterior's and the one of
    its latent, else the posterior's and all K, or `--latent-chunk` of them.
    """
    if config.warm_start != "none":
        return 2
    latents = config.latents if isinstance(config.latents, int) else MOST_CLUSTERS
    return 1 + min(latents, config.latent_chunk or latents)


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
    read = config.accumulate * min(config.resolved_batch_tokens, int(encoded.lengths.sum()))
    return steps * read * sequences * FORWARD_AND_BACKWARD / speed


def tokens_a_second(
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    batch_tokens: int,
    batches: int,
) -> float:
    """Of one forward pass over batches of ordinary rows, after one to warm up."""
    order = np.argsort(np.abs(encoded.lengths - np.median(encoded.lengths)), kind="stable")
    rows = np.concatenate(budget_batches(encoded.lengths, order, min(batch_tokens, 1024))[:batches])
    seconds = 1.0
    for _ in range(2):
        start = time.perf_counter()
        baseline.score_flat(model, encoder, encoded, np.sort(rows), batch_tokens=batch_tokens)
        seconds = time.perf_counter() - start
    return float(encoded.lengths[rows].sum()) / seconds


def batch_sampler_of(
    config: TrainConfig,
    encoded: Encoded,
    stage: str,
    rows: np.ndarray | None,
    classes: np.ndarray | None = None,
    repeats: np.ndarray | None = None,
) -> BatchSampler:
    """The order in which a stage goes through its rows, all where None; `classes` as of `Setup`,
    `repeats` as of `Repetitions.times_N`, in `hold`.
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


def steps_of(
    config: TrainConfig,
    encoded: Encoded,
    rows: np.ndarray | None,
    batches_a_step: int,
    classes: np.ndarray | None = None,
) -> int:
    """Optimiser steps of the whole run over the rows, all where None; `classes` as of `Setup`.

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
            f"--epochs {config.epochs}: {batches} batches are no step, which takes "
            f"{batches_a_step}; raise it, or lower --accumulate or --batch-tokens"
        )
    return batches // batches_a_step
