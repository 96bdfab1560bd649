"""`twcli train`: an entangled model, records and b_t become a run folder."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from twcli.commands.report import about, write_page, write_verdict
from twcli.config.phases import JUDGE_RUN, LOAD_MODEL, SAVE, TRAIN, Phases, is_main_process
from twcli.config.train import TrainConfig
from twcli.data.dataset import Examples
from twcli.discovery.names_page import latent_line
from twcli.errors import UserError, first_line
from twcli.evaluation import page
from twcli.evaluation.evidence import training_evidence
from twcli.evaluation.verdict import (
    Verdict,
    evaluation_of,
    verdict_of_score,
    verdict_of_training,
)
from twcli.models import runtime
from twcli.storage.run_folder import RunFolder
from twcli.training import finishing, trainer
from twcli.training.diagnostics import pooled_information
from twcli.training.retention import retention_lines
from twcli.training.setup import Setup, prepare
from twcli.training.warm_start import Shared

LAST_STEPS = 20  # parts of a training, of which the last one is summed up


def train(
    config: TrainConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    on_step: Callable[[dict[str, Any]], None],
    phases: Phases | None = None,
    records: Examples | None = None,
) -> dict[str, Any]:
    """Trains `config.out` to the end, resuming from its newest checkpoint; with `--seeds` a run
    each in a folder below it, all with the naming of the first.

    Under `accelerate launch` every process calls it; the first one writes.

    Args:
        on_step: called after each step with its metrics, as in `metrics.jsonl`, and `steps`, the
            number of all steps.
        phases, records: as of `precompute`.

    Returns:
        `run`, the folder; `score`, the one-to-one alignment to expect from 0 to 1, None where no
        prompts have several completions or the run was done before; with `--seeds` `runs` as well,
        the same of each run, and the best score.

    Raises:
        UserError: an input is wrong, or the folder holds another run.
        WorkFailed: a loss is not finite, or the disk is full; the last checkpoint stays.
        Interrupted: a signal came; the step was finished and stored.
    """
    phases = phases or Phases()
    if config.seeds is None:
        found = _train_one(config, say, progress, on_step, None, phases, records)
    else:
        seeds = config.each_seed()
        shared = Shared(seeds[0])
        runs: list[dict[str, Any]] = []
        for seed in seeds:
            if runs:
                phases.begin(LOAD_MODEL, config.model)
            say(f"seed {seed}:")
            out = os.path.join(config.out, f"seed-{seed}")
            one = dataclasses.replace(config, seed=seed, seeds=None, out=out)
            runs.append(_train_one(one, say, progress, on_step, shared, phases, records))
        scores = [run["score"] for run in runs if run["score"] is not None]
        found = {"run": config.out, "score": max(scores, default=None), "runs": runs}
    say(evaluation_of(config.out))
    return found


def _train_one(
    config: TrainConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    on_step: Callable[[dict[str, Any]], None],
    shared: Shared | None,
    phases: Phases,
    records: Examples | None,
) -> dict[str, Any]:
    leads = is_main_process()
    started = time.monotonic()
    run = RunFolder(config.out)
    with run.writer() if leads else nullcontext():
        run.check(config)
        if run.done and not config.overwrite:
            say(f"{config.out}: already trained; --overwrite starts over")
            return {"run": config.out, "score": None}
        setup = prepare(config, run, say, progress, shared, phases, records)
        trainer.begin(setup)
        done = run.checkpoints.newest_content().get("step", 0)
        phases.begin(TRAIN, setup.length_after(done))
        phases.expect_now(setup.seconds_after(done))
        say(
            f"training: {len(setup.encoded):,} records, {setup.model.latents} latents, "
            f"peak lr {setup.lr:.1e}, {setup.config.adapt} weights"
        )
        with _Clock(run, started) if leads else nullcontext() as clock:
            for metrics in trainer.fit(setup, say):
                if clock is not None:
                    clock.see(metrics["step"])
                on_step({**metrics, "steps": setup.steps})
        if setup.steps < setup.course.planned:
            say(f"ended after {setup.steps:,} of {setup.course.planned:,} steps: nothing improved")
        phases.begin(JUDGE_RUN, "its latents against the original model, without labels")
        # by all processes: each may hold a part of the model
        judged = finishing.judge(setup, progress)
        phases.begin(SAVE, str(run.model))
        finishing.export(setup)
        runtime.leave(setup.accelerator)
    score = judged.score
    latents = setup.model.latents
    if score is None:
        verdict = verdict_of_training(_information(run), latents)
        say(verdict.sentence)
    else:
        verdict = verdict_of_score(score, latents, judged.lost, judged.at_most)
        say(verdict.sentence)
        if judged.at_most is None:
            highest = ""
        else:
            highest = f" to {judged.at_most:.3f}"
        say(
            f"expected alignment (label-free): {score:.3f}{highest} of 1, one latent to one "
            f"strategy, from {judged.records:,} of these records; eval has it on new records, with "
            "its interval"
        )
    for line in retention_lines(judged.retained, judged.lost):
        say(line)
    if leads:
        # without advice: the folder may be moved, and `inspect` knows where it is then
        write_verdict(run, verdict.as_dict(), "twcli train", config.data, say)
        verdict = dataclasses.replace(verdict, advice=evaluation_of(config.out))
        _show_latents(setup, run, verdict, judged, say)
    say(f"done: {run.model} loads with transformers")
    return {"run": config.out, "score": score}


def _information(run: RunFolder) -> float:
    """I(z; y) of the last steps in nats, as the clock shows it: of a twentieth of them."""
    steps = run.read_metrics()
    count = math.ceil(len(steps) / LAST_STEPS)
    last = steps[-count:]
    information, _ = pooled_information(last)
    return information


def _show_latents(
    setup: Setup,
    run: RunFolder,
    verdict: Verdict,
    judged: finishing.Judged,
    say: Callable[[str], None],
) -> None:
    """What each latent is, in a line and on the page of a run that is finished: whatever is wrong
    with it changes nothing of that.
    """
    try:
        evidence = training_evidence(setup)
    except (UserError, LookupError) as error:
        say(f"page: not written, since {setup.config.data} is not as it was: {first_line(error)}")
        return
    described = about(run, setup.config, say)
    for card in evidence.get("latent_cards", ()):
        say(latent_line(card, described.names.get(card["latent"])))
    html = page.training_page(
        verdict.as_dict(),
        [{**entry.as_dict(), "below": entry.latent in judged.lost} for entry in judged.retained],
        run.read_metrics(),
        setup.config.to_mapping(),
        described,
        evidence,
    )
    write_page(run, html, say)
    say(f"page: {run.report}")


class _Clock:
    """Stores how long a training took, when it stops for whatever reason; nothing where it is not
    known how long it took before this process.
    """

    def __init__(self, run: RunFolder, started: float) -> None:
        self.run = run
        self.started = started
        self.last: int | None = None
        self.before: float | None = None

    def see(self, step: int) -> None:
        """To be called after each step."""
        if self.last is None:
            if step == 1:
                self.before = 0.0
            else:
                self.before = self.run.read_duration(step - 1)
        self.last = step

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.last is None or self.before is None:
            return
        now = time.monotonic()
        seconds = self.before + now - self.started
        with suppress(OSError):
            self.run.save_duration(self.last, seconds)
