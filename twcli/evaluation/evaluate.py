"""A trained run and held-out records become one result: did the posterior collapse,
and does z mean a strategy?
"""

from __future__ import annotations

from typing import Any

import torch

from twcli.config.evaluate import EvalConfig
from twcli.config.phases import COMPLETE, DRAW, ORIGINAL, PAGE, POSTERIOR, Phases
from twcli.data.dataset import Examples
from twcli.evaluation.comparison import compare
from twcli.evaluation.completions import Completed, complete_and_judge
from twcli.evaluation.evidence import evidence_of
from twcli.evaluation.inputs import EvalInputs, Progress, open_evaluation, run_writer
from twcli.evaluation.metrics import summarise
from twcli.evaluation.original import Original, compare_with_original, read_original
from twcli.evaluation.passes import Passes, forward_all
from twcli.evaluation.samples import Writer
from twcli.evaluation.served import ServedWriter
from twcli.models.building import choose_execution
from twcli.models.runtime import Say


def evaluate(
    config: EvalConfig,
    say: Say,
    progress: Progress,
    phases: Phases | None = None,
    records: Examples | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures of `eval --json`, as `metrics.summarise` documents them, and what the
    page shows (`evidence.evidence_of`).

    Args:
        phases, records: as of `commands.precompute`.

    Raises:
        UserError: the run, the data or the judge is wrong.
    """
    phases = phases or Phases()
    inputs = open_evaluation(config, say, progress, records)
    writer = run_writer(inputs)  # first, since a server may have another model
    with torch.no_grad():
        choose_execution(
            inputs.model, inputs.trained.execution, inputs.encoder, inputs.encoded, say
        )
    phases.begin(ORIGINAL, config.model or inputs.trained.model)
    original = read_original(inputs, phases)
    records_and_latents = (
        f"{len(inputs.encoded):,} records under all {inputs.model.latents} latents"
    )
    phases.begin(POSTERIOR, records_and_latents)
    passes = _forward(inputs, original)
    labels = _labels(inputs)
    prompts = "each prompt" if inputs.judge else "a few for the page"
    phases.begin(COMPLETE, f"under each latent, {prompts}")
    completed = complete_and_judge(inputs, writer, original.texts)
    sampling = None
    if config.samples is not None:
        phases.begin(DRAW, f"{config.samples:,} of each prompt, under both models")
        sampling = _compare_samples(inputs, writer)
    phases.begin(PAGE, f"{config.bootstrap:,} resamples for each interval")
    result = _figures(inputs, original, passes, labels, completed)
    result["sampling"] = sampling
    result["labels"] = {
        "field": config.strategy_field,
        "records": sum(example.strategy is not None for example in inputs.examples),
        "unread": inputs.unread,
    }
    result["judge"] = inputs.judge.report() if inputs.judge else None
    result["served"] = writer.name if isinstance(writer, ServedWriter) else None
    if inputs.judge and (warning := inputs.judge.warning()):
        say(warning)
    evidence = evidence_of(
        posterior=passes.posterior,
        router=passes.router,
        labels=labels,
        examples=inputs.examples,
        encoded=inputs.encoded,
        encoder=inputs.encoder,
        baseline_flat=original.baseline_flat,
        probe=original.probe,
        prompts=completed.prompts,
        texts=completed.texts,
        generations=completed.greedy,
    )
    return result, evidence


def _forward(inputs: EvalInputs, original: Original) -> Passes:
    """What the run's model says of the records."""
    with inputs.progress("records", len(inputs.encoded)) as advance:
        return forward_all(
            inputs.model,
            inputs.encoder,
            inputs.encoded,
            inputs.trained,
            original.baseline_flat,
            batch_tokens=inputs.config.batch_tokens,
            progress=advance,
        )


def _labels(inputs: EvalInputs) -> list[str | None]:
    """Each record's strategy: as it is labelled, or where none is, as the judge finds it."""
    judge = inputs.judge
    examples = inputs.examples
    labels = [example.strategy for example in examples]
    if judge is None or not judge.names_strategies or any(labels):
        return labels
    with inputs.progress("judging the records", len(examples)) as advance:
        verdicts = judge.verdicts([(example.x, example.y) for example in examples], advance)
    return [verdict and verdict[0] for verdict in verdicts]


def _compare_samples(inputs: EvalInputs, writer: Writer) -> dict[str, Any]:
    """`--samples`: pass@k and diversity, against the original model."""
    return compare(
        inputs.config,
        judge=inputs.judge,
        model=inputs.model,
        encoder=inputs.encoder,
        trained=inputs.trained,
        examples=inputs.examples,
        encoded=inputs.encoded,
        writer=writer,
        longest=inputs.longest,
        say=inputs.say,
        progress=inputs.progress,
    )


def _figures(
    inputs: EvalInputs,
    original: Original,
    passes: Passes,
    labels: list[str | None],
    completed: Completed,
) -> dict[str, Any]:
    """The figures with their intervals."""
    config = inputs.config
    encoded = inputs.encoded
    compared = compare_with_original(passes, original, encoded, config.seed)
    return summarise(
        posterior=passes.posterior,
        router=passes.router,
        frozen_nll=compared.frozen_nll,
        marginal_nll=passes.marginal_nll,
        diagnostics=passes.figures,
        prompts=encoded.prompt_index,
        labels=labels if any(labels) else None,
        generations=completed.greedy,
        predictability=compared.predictability,
        retained=compared.retained,
        sampled=completed.drawn,
        frozen_sampled=completed.frozen_drawn,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
