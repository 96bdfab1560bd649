"""The arms of `twcli eval --samples N`: drawn, judged, and what takes a model to be said of them.

`arms` has the figures of what was drawn.

Shapes: P prompts, K latents, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from twcli.config.evaluate import EvalConfig
from twcli.config.train import TrainConfig
from twcli.data.batches import collate, forward_batches
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.discovery.features import STATES, embed_rows
from twcli.discovery.matching import contingency
from twcli.errors import UserError
from twcli.evaluation import diversity, sampling
from twcli.evaluation.arms import (
    COMPARED,
    EVEN,
    FROZEN,
    Arm,
    arms_of,
    attributed,
    figures_of,
    judge_arms,
    prediction,
)
from twcli.evaluation.judges import Judge
from twcli.evaluation.samples import Sampling, Writer, draw_all
from twcli.evaluation.sampling import Draws
from twcli.kernels.packing import PLAIN
from twcli.models import loading, runtime
from twcli.models.latents import LatentModel
from twcli.storage.run_folder import RunFolder
from twcli.training import loss

MOST_PROMPTS = 200  # of which diversity and transmission are computed


@dataclass(frozen=True)
class Reader:
    """Reads completions back: the run's model, and what its passes go by.

    Attributes:
        max_length: tokens of a record, at most.
        batch_tokens: tokens a batch, at most.
    """

    model: LatentModel
    encoder: ExampleEncoder
    max_length: int
    batch_tokens: int

    def latents_of(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(D,) the latent read in each (x, y), -1 where it cannot be read as a record."""
        distinct = list(dict.fromkeys(pairs))
        number_of = {pair: number for number, pair in enumerate(distinct)}
        read = np.full(len(distinct), -1)
        encoded, kept = encodable(self.encoder, distinct, self.max_length)
        if encoded is not None:
            read[kept] = read_back(self.model, self.encoder, encoded, self.batch_tokens)
        places = [number_of[pair] for pair in pairs]
        return read[places]


def compare(
    config: EvalConfig,
    *,
    judge: Judge | None,
    model: LatentModel,
    encoder: ExampleEncoder,
    trained: TrainConfig,
    examples: Sequence[Example],
    encoded: Encoded,
    writer: Writer,
    longest: int,
    say: Callable[[str], None],
    progress: Callable[[str, int], Any],
) -> dict[str, Any]:
    """`sampling` of `eval --json`.

    Args:
        writer: draws from the run.
        longest: most tokens of a completion.

    Raises:
        UserError, WorkFailed, Interrupted: as `draw_all`; or no sample could be judged.
    """
    assert config.samples is not None
    first, references = _prompts(examples, encoded)
    xs = [example.x for example in first]
    run = RunFolder(config.run)
    frozen = _frozen_writer(config, trained, run, say)
    lines = draw_all(Sampling(config, writer, frozen, first, longest), run.samples, say, progress)
    arms = arms_of(lines, config.samples, config.seed)
    judged = judge_arms(arms, xs, judge, progress)
    asked = {"prompts": len(xs), "samples": config.samples, "temperature": config.temperature}
    result: dict[str, Any] = asked | figures_of(
        judged,
        latents=model.latents,
        samples=config.samples,
        temperature=config.temperature,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    limit = loading.context_length(model.backbone, config.max_length)
    reader = Reader(model, encoder, limit, config.batch_tokens)
    shown = {name: arms[name] for name in COMPARED}
    if frozen:
        best = f"{FROZEN} {result['arms'][FROZEN]['temperature']:g}"
        same = f"{FROZEN} {config.temperature:g}"
        shown = {FROZEN: arms[best]} | shown
        predicted = _predicted(
            judged.every[same],
            judged.every[best],
            judged.strategies,
            arms[same],
            xs,
            reader,
            config,
        )
        result["prediction"] = predicted
        for name, saved in result["samples_saved"].items():
            saved["predicted"] = predicted and predicted["ratio"].get(name)
    some = np.unique(np.linspace(0, len(xs) - 1, min(MOST_PROMPTS, len(xs))).astype(int)).tolist()
    for name, figures in _diversity(shown, xs, references, some, frozen, config, say).items():
        result["arms"][name]["diversity"] = figures
    result["transmission"] = _transmission(arms[EVEN], xs, some, reader, config)
    return result


def _prompts(
    examples: Sequence[Example], encoded: Encoded
) -> tuple[list[Example], list[list[str]]]:
    """(the first record of each prompt, the completions that the records have of it)."""
    _, first, prompt_N = np.unique(encoded.prompt_index, return_index=True, return_inverse=True)
    references: list[list[str]] = [[] for _ in first]
    for prompt, example in zip(prompt_N.reshape(-1).tolist(), examples, strict=True):
        references[prompt].append(example.y)
    return [examples[row] for row in first], references


def _frozen_writer(
    config: EvalConfig, trained: TrainConfig, run: RunFolder, say: Callable[[str], None]
) -> Writer | None:
    """Draws from the frozen model; None where the run's is gone and none was named."""
    try:
        frozen, encoder = loading.load_frozen(
            config.model or trained.model,
            precision=config.precision,
            attention=config.attention,
            template=run.template,
        )
    except UserError as error:
        if config.model:
            raise
        say(f"original model not found ({error}); its arm is left out, give --model to have it")
        return None
    frozen.to(runtime.pick_device(config.device))
    return Writer(frozen, encoder, [], loading.context_length(frozen, config.max_length))


def encodable(
    encoder: ExampleEncoder, pairs: Sequence[tuple[str, str]], max_length: int
) -> tuple[Encoded | None, np.ndarray]:
    """The (x, y) that can be read as records, and their numbers: a completion may be empty, spell a
    tag, or fill the context.
    """
    kept: list[int] = []

    def collect(numbers: list[int]) -> None:
        """Keeps the numbers whose pairs can be encoded, by halves until the others are alone."""
        examples = [Example(*pairs[number]) for number in numbers]
        try:
            encoder.encode(examples, max_length=max_length, source="")
            kept.extend(numbers)
        except UserError:
            half = len(numbers) // 2
            if half:
                collect(numbers[:half])
                collect(numbers[half:])

    numbers = [number for number, (_, y) in enumerate(pairs) if y]
    if numbers:
        collect(numbers)
    if not kept:
        return None, np.empty(0, np.int64)
    those = [Example(*pairs[number]) for number in kept]
    return encoder.encode(those, max_length=max_length, source=""), np.asarray(kept)


@torch.no_grad()
def read_back(
    model: LatentModel, encoder: ExampleEncoder, encoded: Encoded, batch_tokens: int
) -> np.ndarray:
    """The posterior's likeliest latent of each row; by Bayes' rule from the generator where the run
    has no posterior of its own, with all latents alike likely beforehand.

    Returns:
        (D,) int64.
    """
    device = next(model.parameters()).device
    found = np.empty(len(encoded), np.int64)
    exact = model.posterior == "exact"
    for rows in forward_batches(
        encoded,
        np.arange(len(encoded)),
        batch_tokens=batch_tokens,
        branches=model.latents if exact else 1,
        shared=model.execution != PLAIN,
    ):
        batch = collate(rows, encoded, encoder, None).to(device)
        if exact:
            logits, _ = loss.responsibilities(*model.score_branches(batch))
        else:
            logits = model.posterior_logits(batch)
        likeliest_B = logits.argmax(-1)
        found[rows] = likeliest_B.cpu().numpy()
    return found


def _predicted(
    draws: Draws,
    reference: Draws,
    names: Sequence[str],
    arm: Arm,
    xs: Sequence[str],
    reader: Reader,
    config: EvalConfig,
) -> dict[str, Any] | None:
    """`prediction` by the judge's strategies, or by the latents that the posterior reads in the
    frozen model's samples.
    """
    assert config.samples is not None
    if not np.isfinite(draws.correct).any():
        return None
    by = "strategies" if names else "latents"
    read = reader.latents_of(arm.pairs(xs))
    latents = reader.model.latents
    if names:
        draws = replace(draws, strategies=attributed(draws.strategies, read))
    else:
        names = [f"z{k}" for k in range(latents)]
        draws = replace(draws, strategies=read)
    found = prediction(
        draws,
        names,
        reference=reference,
        prompts=len(xs),
        latents=latents,
        samples=config.samples,
        seed=config.seed,
    )
    return found and {"by": by} | found


def _transmission(
    arm: Arm,
    xs: Sequence[str],
    some: Sequence[int],
    reader: Reader,
    config: EvalConfig,
) -> dict[str, Any]:
    """How well the posterior reads the latent of a completion back: one confusion matrix, a row for
    each latent that was asked for; their mutual information in nats is at most log K.
    """
    pairs = [(xs[p], y) for p in some for y in arm.texts[p]]
    asked = np.asarray([z for p in some for z in arm.latents[p]])
    prompts = np.repeat(np.arange(len(some)), [len(arm.texts[p]) for p in some])
    read = reader.latents_of(pairs)
    there = read >= 0
    K = reader.model.latents
    table = contingency(asked[there], read[there], K, K)
    accuracy = None
    if there.any():
        hits, counts = (
            np.bincount(prompts, weights, minlength=len(some)).astype(float)
            for weights in (there & (asked == read), there)
        )
        # every prompt has as many completions, but for those that cannot be read
        share = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)[:, None]
        accuracy = float(sampling.mean(share)[0])
        ci = sampling.interval(sampling.resample(share, config.bootstrap, config.seed)[:, 0])
    return {
        "confusion": table.tolist(),
        "unread": int((~there).sum()),
        "accuracy": accuracy,
        "accuracy_ci": None if accuracy is None else ci,
        "information": diversity.information(table),
    }


def _diversity(
    arms: dict[str, Arm],
    xs: Sequence[str],
    references: Sequence[Sequence[str]],
    some: Sequence[int],
    frozen: Writer | None,
    config: EvalConfig,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Figures without a judge, each a mean over prompts, but for BLEU."""
    if frozen:
        features = _embedded(arms, xs, some, frozen, config)
    else:
        features = {}
    result: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        samples = [arm.samples[p] for p in some]
        figures: dict[str, Any] = {
            f"distinct_{n}": _mean([diversity.distinct_n(texts, n) for texts in samples])
            for n in diversity.ORDERS
        }
        figures["vendi"] = None
        if features:
            scores = []
            for p, texts in zip(some, samples, strict=True):
                read = [features[xs[p], y] for y in texts if (xs[p], y) in features]
                scores.append(diversity.vendi_score(np.stack(read)) if read else np.nan)
            figures["vendi"] = _mean(scores)
        figures |= {"self_bleu": None, "reference_bleu": None, "reference_bleu_data": None}
        result[name] = figures
    try:
        for name, arm in arms.items():
            samples = [[y for y in arm.samples[p] if y] for p in some]
            result[name]["self_bleu"] = diversity.self_bleu(samples)
            both = diversity.reference_bleu(samples, [references[p] for p in some])
            if both:
                result[name]["reference_bleu"], result[name]["reference_bleu_data"] = both
    except UserError as error:  # the package is missing
        say(f"{error}; self_bleu and reference_bleu are left out")
    return result


def _embedded(
    arms: dict[str, Arm],
    xs: Sequence[str],
    some: Sequence[int],
    frozen: Writer,
    config: EvalConfig,
) -> dict[tuple[str, str], np.ndarray]:
    """(x, y) -> mean hidden state of y under the frozen model, minus the mean of all of them: what
    is common to all states would make any two alike.
    """
    distinct: dict[tuple[str, str], None] = {}  # in the order in which they come
    for arm in arms.values():
        for p in some:
            distinct.update(dict.fromkeys((xs[p], y) for y in arm.samples[p]))
    pairs = list(distinct)
    encoded, kept = encodable(frozen.encoder, pairs, frozen.max_length)
    if encoded is None:
        return {}
    states = embed_rows(
        frozen.model,
        frozen.encoder,
        encoded,
        np.arange(len(encoded)),
        batch_tokens=config.batch_tokens,
    ).kinds[STATES]
    centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    return {pairs[number]: row for number, row in zip(kept.tolist(), centred, strict=True)}


def _mean(values: Sequence[float]) -> float | None:
    """The mean of the values that are finite; None where none is, as for a figure that has no
    records.
    """
    known = [value for value in values if np.isfinite(value)]
    if known:
        return float(np.mean(known))
    return None
