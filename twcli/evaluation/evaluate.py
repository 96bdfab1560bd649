"""A trained run and held-out records become one result: did the posterior collapse,
and does z mean a strategy?

Shapes: N records, K latents, S supervised tokens.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from twcli.config.evaluate import EvalConfig
from twcli.config.train import TrainConfig
from twcli.data.batches import collate, forward_batches, length_classes
from twcli.data.dataset import Examples, stream_examples
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.data.example import Example
from twcli.data.long_rows import ERROR, TRUNCATE_LEFT
from twcli.data.padding import gather_padded
from twcli.discovery.probe import Probe, probe_of
from twcli.discovery.rows import ModelSource
from twcli.discovery.score import Predictability
from twcli.errors import UserError
from twcli.evaluation.arms import compare
from twcli.evaluation.evidence import SHOWN, evidence_of
from twcli.evaluation.judges import Judge, load_judge
from twcli.evaluation.metrics import Generations, summarise
from twcli.evaluation.samples import Writer, draw_all
from twcli.evaluation.served import ServedCompletions, ServedWriter, connected
from twcli.kernels.packing import PLAIN
from twcli.models import baseline, runtime
from twcli.models.building import choose_execution, load_run
from twcli.models.generation import generate
from twcli.models.inputs import open_inputs
from twcli.models.latents import LatentModel
from twcli.phases import COMPLETE, DRAW, ORIGINAL, PAGE, POSTERIOR, Phases
from twcli.storage.run_folder import RunFolder
from twcli.training import diagnostics, loss
from twcli.training.objective import reconstruction
from twcli.training.retention import Retention, judged_by_probe, retention
from twcli.training.setup import DECODED

PAGE_SECONDS = 3.0
SPARE_TOKENS = 16  # what a completion may be longer than the longest y of the data


def evaluate(
    config: EvalConfig,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
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
    judge = load_judge(config) if config.judge else None
    phases, looked_at = phases or Phases(), records is not None
    if records is None:
        records = stream_examples(
            config.data, **config.fields, strategy_field=config.strategy_field
        )
    examples = list(records)
    if not looked_at:
        say(records.summary())
    run = RunFolder(config.run)
    model, encoder, trained = load_run(
        run, device=config.device, precision=config.precision, attention=config.attention, say=say
    )
    max_length = runtime.context_length(model.backbone, config.max_length)
    too_long = config.too_long or trained.too_long
    encoded = encoder.encode(examples, max_length=max_length, source=config.data, too_long=too_long)
    examples = [examples[encoded.number(row)] for row in range(len(encoded))]
    for note in encoded.notes:
        say(note)
    writer = Writer(model.backbone, encoder, model.latent_ids_KP.tolist(), max_length)
    if config.server is not None:  # first, since it may be another model
        if TRUNCATE_LEFT in encoded.too_long:
            raise UserError(
                f"{config.data}: a server reads prompts whole, and some are too long; give "
                "--too-long skip with --server"
            )
        _, first = np.unique(encoded.prompt_index, return_index=True)
        writer = connected(config, writer, [examples[row] for row in first.tolist()], say)
    with torch.no_grad():
        choose_execution(model, trained.execution, encoder, encoded, say)
    phases.begin(ORIGINAL, config.model or trained.model)
    baseline_flat, probe, frozen_texts = _frozen(
        config, trained, examples, encoded, max_length, judge is not None, say, progress, phases
    )
    phases.begin(POSTERIOR, f"{len(encoded):,} records under all {model.latents} latents")
    with progress("records", len(encoded)) as advance:
        passes = forward_all(
            model,
            encoder,
            encoded,
            trained,
            baseline_flat,
            batch_tokens=config.batch_tokens,
            progress=advance,
        )
    labels = _labels(examples, judge, progress)
    phases.begin(
        COMPLETE, "under each latent, " + ("each prompt" if judge else "a few for the page")
    )
    longest = _longest(config, encoded)
    complete = partial(
        _completions,
        config,
        model.backbone,
        encoder,
        examples,
        encoded,
        max_length,
        writer.latents,
        progress=progress,
    )
    alike = bool(judge and judge.names_strategies and frozen_texts is not None)
    ours = None
    if isinstance(writer, ServedWriter):
        prompts, texts, ours = _served(
            config, writer, examples, encoded, longest, judge is not None, alike, say, progress
        )
    else:
        prompts, texts = complete(None if judge else SHOWN)
    generations = _judged_all(judge, examples, encoded, prompts, texts) if judge else None
    frozen, retained, predictability = _against_frozen(
        passes, baseline_flat, encoded, probe, config.seed
    )
    sampled, frozen_sampled = None, None
    if alike and judge and frozen_texts is not None:
        if ours is None:
            # greedy ones would flatter whichever model is compared
            prompts, ours = complete(None, temperature=1.0)
        sampled, frozen_sampled = (
            _judged_all(judge, examples, encoded, prompts, each) for each in (ours, frozen_texts)
        )
    if config.samples is not None:
        phases.begin(DRAW, f"{config.samples:,} of each prompt, under both models")
        sampling = compare(
            config,
            judge=judge,
            model=model,
            encoder=encoder,
            trained=trained,
            examples=examples,
            encoded=encoded,
            writer=writer,
            longest=longest,
            say=say,
            progress=progress,
        )
    else:
        sampling = None
    phases.begin(PAGE, f"{config.bootstrap:,} resamples for each interval")
    result = summarise(
        posterior=passes.posterior,
        router=passes.router,
        frozen_nll=frozen,
        marginal_nll=passes.marginal_nll,
        diagnostics=passes.figures,
        prompts=encoded.prompt_index,
        labels=labels if any(labels) else None,
        generations=generations,
        predictability=predictability,
        retained=retained,
        sampled=sampled,
        frozen_sampled=frozen_sampled,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    result["sampling"] = sampling
    result["judge"] = judge.report() if judge else None
    result["served"] = writer.name if isinstance(writer, ServedWriter) else None
    if judge and (warning := judge.warning()):
        say(warning)
    evidence = evidence_of(
        posterior=passes.posterior,
        router=passes.router,
        labels=labels,
        examples=examples,
        encoded=encoded,
        encoder=encoder,
        baseline_flat=baseline_flat,
        probe=probe,
        prompts=prompts,
        texts=texts,
        generations=generations,
    )
    return result, evidence


def _labels(
    examples: list[Example], judge: Judge | None, progress: Callable[[str, int], Any]
) -> list[str | None]:
    """Each record's strategy: as it is labelled, or where none is, as the judge finds it."""
    labels = [example.strategy for example in examples]
    if judge is None or not judge.names_strategies or any(labels):
        return labels
    with progress("judging the records", len(examples)) as advance:
        verdicts = judge.verdicts([(e.x, e.y) for e in examples], advance)
    return [verdict and verdict[0] for verdict in verdicts]


def _against_frozen(
    passes: Passes,
    baseline_flat: np.ndarray | None,
    encoded: Encoded,
    probe: Probe | None,
    seed: int,
) -> tuple[np.ndarray | None, list[Retention] | None, Predictability | None]:
    """(NLL (N,) of the records under the frozen model, what became of each latent's completions,
    what the score is made of); None where there is no frozen model, the last without a probe too.
    """
    if baseline_flat is None:
        return None, None, None
    frozen_N = np.add.reduceat(baseline_flat, encoded.target_offsets[:-1], dtype=np.float64)
    retained = retention(
        passes.posterior.argmax(1), frozen_N, passes.marginal_nll, passes.generator_nll
    )
    if probe is None:
        return frozen_N, retained, None
    soft = passes.responsibilities[probe.rows]
    likelihoods = frozen_N[probe.rows], passes.marginal_nll[probe.rows]
    generator = passes.generator_nll[probe.rows]
    found = retention(soft.argmax(1), *likelihoods, generator)
    return (
        frozen_N,
        retained,
        judged_by_probe(probe, soft, generator, *likelihoods, seed, found),
    )


def _frozen(
    config: EvalConfig,
    trained: TrainConfig,
    examples: list[Example],
    encoded: Encoded,
    max_length: int,
    draw: bool,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
    phases: Phases,
) -> tuple[np.ndarray | None, Probe | None, list[list[str]] | None]:
    """(b_t of the records, the probe that the run is scored by, K completions of each distinct
    prompt where `draw`) of the model that the run started from; None where it is gone.
    """
    source = config.model or trained.model
    try:
        cut = TRUNCATE_LEFT in encoded.too_long
        inputs = open_inputs(
            source,
            config.data,
            examples=examples,
            too_long=TRUNCATE_LEFT if cut else ERROR,
            max_length=max_length if cut else None,
            latent_tokens=trained.latent_tokens,
            template=RunFolder(config.run).template,
            precision=config.precision,
            attention=config.attention,
        )
    except UserError as error:
        if config.model:
            raise
        say(
            f"original model not found ({error}); score and likelihood.gain are left out, "
            "give --model to have them"
        )
        return None, None, None
    frozen, encoder, again = inputs.model, inputs.encoder, inputs.encoded
    if not np.array_equal(again.row_hash, encoded.row_hash):
        raise UserError(
            f"{source}: its tokenizer gives other token ids than the run's; "
            "give the model that the run started from"
        )
    frozen.to(runtime.pick_device(config.device))
    varlen = baseline.why_not_varlen(frozen, encoder, again) is None
    begin = time.monotonic()
    with progress("tokens", tokens := int(again.lengths.sum())) as advance:
        flat = baseline.score_flat(
            frozen,
            encoder,
            again,
            np.arange(len(again)),
            batch_tokens=config.batch_tokens,
            varlen=varlen,
            progress=advance,
        )
    latents = int(trained.latents or 1)
    seconds = time.monotonic() - begin
    shown = SHOWN * latents * int(again.target_lengths.max()) * DECODED / tokens
    phases.expect(
        {POSTERIOR: (latents + 1) * seconds, COMPLETE: shown * seconds, PAGE: PAGE_SECONDS}
    )
    # Runs of older versions took distinct completions of a prompt for distinct strategies.
    naming = RunFolder(config.run).read_naming()
    distinct = bool(naming.get("one_string", True))
    shares = np.asarray(naming["proportions"], float) if "proportions" in naming else None
    features = ModelSource(frozen, encoder, again, config.batch_tokens, varlen)
    probe = probe_of(
        features, again, distinct=distinct, seed=config.seed, proportions=shares, progress=progress
    )
    texts = None
    if draw:
        begin = time.monotonic()
        limit = runtime.context_length(frozen, config.max_length)
        _, texts = _completions(
            config,
            frozen,
            encoder,
            examples,
            again,
            limit,
            [None] * latents,
            None,
            progress,
            temperature=1.0,
        )
        # the run's are completed twice: greedily and at random
        phases.expect({COMPLETE: 2 * (time.monotonic() - begin)})
    return flat, probe, texts


@dataclass(frozen=True)
class Passes:
    """What the run's model says of N records.

    Attributes:
        posterior, router: (N, K) probabilities.
        responsibilities: (N, K) proportional to p(y|x,z): which latents would write y, whatever
            router and posterior say.
        generator_nll: (N, K) nats, -log p(y|x,z).
        marginal_nll: (N,) nats, -log sum_z p(z|x) p(y|x,z), the sum exact.
        figures: (N,) each, of `diagnostics.row_figures`.
    """

    posterior: np.ndarray
    router: np.ndarray
    responsibilities: np.ndarray
    generator_nll: np.ndarray
    marginal_nll: np.ndarray
    figures: dict[str, np.ndarray]


@torch.no_grad()
def forward_all(
    model: LatentModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    trained: TrainConfig,
    baseline_flat: np.ndarray | None,
    *,
    batch_tokens: int,
    progress: Callable[[int], None],
) -> Passes:
    """b_t is the one that the run was trained with: the frozen model's or the trained backbone's.
    The closed-form posterior is the one of training, so it needs b_t; without it the uniform terms
    remain, and so do the figures that do not need it.
    """
    device = next(model.parameters()).device
    N, K = len(encoded), model.latents
    passes = Passes(
        posterior=np.empty((N, K)),
        router=np.empty((N, K)),
        responsibilities=np.empty((N, K)),
        generator_nll=np.empty((N, K)),
        marginal_nll=np.empty(N),
        figures={},
    )
    if baseline_flat is None and not model.dynamic_baseline:
        trained = dataclasses.replace(
            trained,
            weighting="mixed",
            uniform_weight=sum(trained.term_weights()),
            token_weight=0.0,
            ablation="none",
        )
    starts = encoded.target_offsets
    for rows in forward_batches(
        encoded,
        np.arange(N),
        batch_tokens=batch_tokens,
        branches=K + 1,
        shared=model.execution != PLAIN,
        classes=length_classes(encoded, encoder, model.pass_lengths),
    ):
        batch = collate(rows, encoded, encoder, None).to(device)
        output = model(batch)
        weights = output.baseline_BS
        if weights is None and baseline_flat is not None:
            padded = gather_padded(baseline_flat, starts[rows], encoded.target_lengths[rows], 0.0)
            weights = torch.from_numpy(padded.astype(np.float32)).to(device)
        log_q = output.log_posterior_BK
        if log_q is None:
            reff = reconstruction(output.nll_BCS, batch.active_BS, weights, trained)
            log_q = loss.closed_form_posterior(output.log_router_BK, reff, trained.beta)
        for name, values in diagnostics.row_figures(
            output.nll_BCS, batch.active_BS, weights, log_q, trained.tau
        ).items():
            passes.figures.setdefault(name, np.empty(N))[rows] = values.cpu().double()
        passes.posterior[rows], passes.router[rows] = (
            t.double().exp().cpu() for t in (log_q, output.log_router_BK)
        )
        passes.responsibilities[rows], passes.marginal_nll[rows] = (
            t.cpu() for t in loss.responsibilities(output.nll_BCS, output.log_router_BK)
        )
        passes.generator_nll[rows] = output.nll_BCS.double().sum(-1).cpu()
        progress(len(rows))
    return passes


def _longest(config: EvalConfig, encoded: Encoded) -> int:
    """Most tokens of a completion."""
    return config.max_new_tokens or int(encoded.target_lengths.max()) + SPARE_TOKENS


def _completions(
    config: EvalConfig,
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    examples: list[Example],
    encoded: Encoded,
    max_length: int,
    latents: Sequence[list[int] | None],
    limit: int | None,
    progress: Callable[[str, int], Any],
    *,
    temperature: float = 0.0,
) -> tuple[np.ndarray, list[list[str]]]:
    """(first row of each distinct prompt, at most `limit` of them; its completions, one for each of
    `latents`).

    Args:
        latents: token ids of a latent each; None for the model without one.
        temperature: 0 is greedy.
    """
    _, first = np.unique(encoded.prompt_index, return_index=True)
    first = first[:limit]
    prompts = [
        encoder.with_latent(encoded.prompt_ids(row), latent) for row in first for latent in latents
    ]
    budget = np.minimum(
        _longest(config, encoded),
        max_length - np.asarray([len(prompt) for prompt in prompts]),
    )
    with progress("completions", len(prompts)) as advance:
        texts, _ = generate(
            model,
            encoder,
            prompts,
            max_new_tokens=budget,
            temperature=temperature,
            seed=config.seed,
            batch_tokens=4 * config.batch_tokens,
            progress=advance,
        )
    K = len(latents)
    return first, [texts[start : start + K] for start in range(0, len(texts), K)]


def _served(
    config: EvalConfig,
    writer: ServedWriter,
    examples: list[Example],
    encoded: Encoded,
    longest: int,
    judged: bool,
    alike: bool,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> tuple[np.ndarray, list[list[str]], list[list[str]] | None]:
    """As `_completions`, from a server, and where `alike`, one more of each at temperature 1."""
    _, first = np.unique(encoded.prompt_index, return_index=True)
    xs = [examples[row] for row in first[: None if judged else SHOWN].tolist()]
    drawing = ServedCompletions(config, writer, xs, longest, alike)
    if judged:
        lines = draw_all(drawing, RunFolder(config.run).served, say, progress)
    else:
        with progress("generating", len(xs) * drawing.per_prompt) as advance:
            lines = [json.loads(line) for line in drawing.lines(range(len(xs)), advance)]
    greedy = [line["greedy"] for line in lines]
    return first[: len(xs)], greedy, [line["drawn"] for line in lines] if alike else None


def _judged_all(
    judge: Judge,
    examples: list[Example],
    encoded: Encoded,
    prompts: np.ndarray,
    texts: list[list[str]],
) -> Generations:
    """Completions without a verdict are left out."""
    K = len(texts[0])
    verdicts = judge.verdicts(
        [(examples[row].x, y) for row, ys in zip(prompts, texts, strict=True) for y in ys]
    )
    known = np.array([verdict is not None for verdict in verdicts])
    judged = [verdict for verdict in verdicts if verdict is not None]
    return Generations(
        prompts=np.repeat(encoded.prompt_index[prompts], K)[known],
        latents=np.tile(np.arange(K), len(prompts))[known],
        strategies=[s for s, _ in judged],
        correct=[c for _, c in judged],
        named=judge.names_strategies,
    )
