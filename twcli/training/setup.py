"""A config becomes a run's setup: inputs loaded and checked, the warm start made, the model built.
`trainer` does what it says.

Shapes: N rows, K latents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from twcli.config.phases import JUDGE_RUN, NAME, ORIGINAL, SAVE, TRAIN, Phases
from twcli.config.train import TrainConfig
from twcli.data.dataset import Examples
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.discovery.probe import PROBE_ROWS, Probe, probe_of
from twcli.discovery.result import Naming
from twcli.discovery.rows import Source
from twcli.discovery.stored import StoredFeatures
from twcli.models import loading, runtime
from twcli.models.building import build, choose_execution, execution_of
from twcli.models.inputs import Inputs, open_inputs
from twcli.models.latents import LatentModel
from twcli.models.positions import may_be_fractions
from twcli.models.runtime import Say
from twcli.storage.cache import Cache
from twcli.storage.run_folder import RunFolder
from twcli.training.defaults import Length, duration
from twcli.training.estimates import (
    JUDGED_SHARE,
    SAVED_A_SECOND,
    naming_seconds,
    original_seconds,
    training_seconds,
)
from twcli.training.frozen_baseline import frozen_nll, open_baseline
from twcli.training.held_out import MONITORED, PASSES_A_RECORD, HeldOut, measured_every
from twcli.training.schedule import Schedule, batch_rows, resolved, schedule_of, with_rate
from twcli.training.stages import (
    AGREED,
    GROWTH_SHARE,
    LEARNED,
    SHARE_POWER,
    UNCHANGED,
    Course,
    Repetitions,
)
from twcli.training.warm_start import Shared, latents_of, shared_naming, source_of

# Early gradients are clipped, late ones are a fifth of that: a second moment that is kept over the
# usual 1,000 steps would keep the last updates small. As Brown et al. 2020.
ADAM_BETAS = (0.9, 0.95)
SCORED_SHARE = 0.1
LEAST_SCORED_ROWS = 128


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
        length: of the whole run.
        seconds: that its steps take, about.
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
    length: Length
    seconds: float
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

    def seconds_after(self, step: int) -> float:
        """That the steps after this one take, about."""
        return self.seconds * (1 - min(1.0, step / self.length.steps))

    def length_after(self, step: int) -> str:
        """What is said of the run's length before its steps begin, or continue after one."""
        said = f"{self.length}, about {duration(self.seconds_after(step))}"
        if step:
            said += f" after step {step:,}"
        return said


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
    stored_dtype = loading.stored_dtype(config.model)
    _say_what_surprises(config, run, stored_dtype, inputs.model.dtype, say)
    cache, fingerprint = open_baseline(config, inputs, accelerator.device, say, phases)
    source = source_of(config, inputs, fingerprint, say)
    schedule = schedule_of(config, inputs, accelerator, shared.seed)
    config = with_rate(config, inputs.model, schedule.steps)
    stored = isinstance(source, StoredFeatures)
    _expect(phases, config, inputs, schedule, stored)
    config, naming = shared_naming(config, source, encoded, shared, say, progress, phases, stored)
    held = _held_out(config, inputs, cache, naming, schedule)
    phases.begin(ORIGINAL, "features to score the run by")
    seconds = training_seconds(config, encoded, schedule.steps, schedule.speed)  # K is known now
    phases.expect({TRAIN: seconds, JUDGE_RUN: JUDGED_SHARE * seconds})
    if shared.probe is None:
        shared.probe = _probe(config, source, encoded, naming, schedule, shared.seed, progress)
    probe = shared.probe
    frozen_nll_N = None
    if probe is not None:
        frozen_nll_N = frozen_nll(probe.rows, inputs, cache, config)
    model, adapter = build(config, inputs.model, encoder)
    with accelerator.autocast():
        choose_execution(model, execution_of(config), encoder, encoded, say)
    latent_N = latents_of(naming, len(encoded))
    named_rows = schedule.trained[latent_N[schedule.trained] >= 0]
    grows = config.adapt == "full" and may_be_fractions(inputs.model)
    course = _course(config, naming, schedule, len(named_rows) > 0, grows, say)
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
        length,
        seconds,
        cast(float, config.lr),
        accelerator,
        inputs.records,
        _provenance(config, fingerprint, shared.seed),
        schedule.classes,
        stored_dtype,
        adapter=adapter,
        probe=probe,
        frozen_nll_N=frozen_nll_N,
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
        latents_of(naming, len(inputs.encoded))[rows],
        frozen_nll(rows, inputs, cache, config),
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
    config: TrainConfig,
    naming: Naming | None,
    schedule: Schedule,
    named: bool,
    grows: bool,
    say: Say,
) -> Course:
    """What each step trains under.

    Args:
        named: some rows that are trained on have a latent.
        grows: as of `Course`.
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
        grows=grows,
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
            "agreement": [AGREED, LEARNED, UNCHANGED],  # when names are corrected
            "growth": GROWTH_SHARE,
        },
    }
    if naming_seed != config.seed:
        provenance["naming_seed"] = naming_seed
    if config.names is not None:  # the path alone would not show that the file was edited since
        provenance["names"] = hashlib.sha256(Path(config.names).read_bytes()).hexdigest()
    return provenance


def _scored_rows(config: TrainConfig, encoded: Encoded, steps: int, distinct: bool) -> int:
    """Records that the finished run is scored by: reading their features and their K branches takes
    about a tenth of the training's time, or less.
    """
    step_rows = config.accumulate * batch_rows(config, encoded)
    passes = SCORED_SHARE * steps * step_rows * PASSES_A_RECORD
    most = len(encoded) if distinct else PROBE_ROWS
    affordable = int(passes / (config.resolved_latents + 1))
    return min(most, max(LEAST_SCORED_ROWS, affordable))
