"""Completions of the records' prompts under each latent, greedy and drawn, and the judge's word on
them.

Shapes: P distinct prompts, K latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.evaluation.evidence import SHOWN
from twcli.evaluation.inputs import EvalInputs
from twcli.evaluation.judged import Generations
from twcli.evaluation.judges import Judge
from twcli.evaluation.samples import Writer, draw_all
from twcli.evaluation.served import ServedCompletions, ServedWriter
from twcli.models.generation import generate

Texts = list[list[str]]


@dataclass(frozen=True)
class Completed:
    """What the run writes under each latent.

    Attributes:
        prompts: (P,) rows whose x was completed.
        texts: K greedy completions of each.
        greedy: those, judged; None without a judge.
        drawn, frozen_drawn: K completions at temperature 1 of each prompt, judged, by the run and
            by the model that it started from; None unless the judge names strategies and that model
            is there.
    """

    prompts: np.ndarray
    texts: Texts
    greedy: Generations | None
    drawn: Generations | None
    frozen_drawn: Generations | None


def complete_and_judge(inputs: EvalInputs, writer: Writer, frozen_texts: Texts | None) -> Completed:
    """Completes every prompt where there is a judge, else the few that the page shows.

    Args:
        writer: the run's, as of `inputs.run_writer`.
        frozen_texts: K completions of each prompt by the original model, at temperature 1.

    Raises:
        WorkFailed, Interrupted: as `samples.draw_all`, with a server.
    """
    judge = inputs.judge
    compared = judge is not None and judge.names_strategies and frozen_texts is not None
    drawn: Texts | None = None
    if isinstance(writer, ServedWriter):
        prompts, texts, drawn = _served(inputs, writer, compared)
    else:
        limit = None if judge else SHOWN
        prompts, texts = _by_the_run(inputs, writer, limit, temperature=0.0)
    if judge is None:
        return Completed(prompts, texts, None, None, None)
    greedy = judge_all(inputs, judge, prompts, texts)
    if not compared or frozen_texts is None:
        return Completed(prompts, texts, greedy, None, None)
    if drawn is None:
        # greedy ones would flatter whichever model is compared
        prompts, drawn = _by_the_run(inputs, writer, None, temperature=1.0)
    return Completed(
        prompts,
        texts,
        greedy,
        judge_all(inputs, judge, prompts, drawn),
        judge_all(inputs, judge, prompts, frozen_texts),
    )


def _by_the_run(
    inputs: EvalInputs, writer: Writer, limit: int | None, *, temperature: float
) -> tuple[np.ndarray, Texts]:
    """As `complete`, under each of the run's latents."""
    return complete(
        inputs,
        inputs.model.backbone,
        inputs.encoder,
        inputs.encoded,
        inputs.max_length,
        writer.latents,
        limit=limit,
        temperature=temperature,
    )


def complete(
    inputs: EvalInputs,
    model: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    max_length: int,
    latents: Sequence[list[int] | None],
    *,
    limit: int | None = None,
    temperature: float = 0.0,
) -> tuple[np.ndarray, Texts]:
    """(first row of each distinct prompt, at most `limit` of them; its completions, one for each of
    `latents`).

    Args:
        model, encoder, encoded: of the run or of the model that it started from.
        max_length: longest sequence in tokens.
        latents: token ids of a latent each; None for the model without one.
        temperature: 0 is greedy.
    """
    config = inputs.config
    first = inputs.prompt_rows[:limit]
    prompts = []
    for row in first:
        prompt_ids = encoded.prompt_ids(row)
        prompts += [encoder.with_latent(prompt_ids, latent) for latent in latents]
    lengths = np.asarray([len(prompt) for prompt in prompts])
    with inputs.progress("completions", len(prompts)) as advance:
        texts, _ = generate(
            model,
            encoder,
            prompts,
            max_new_tokens=np.minimum(inputs.longest, max_length - lengths),
            temperature=temperature,
            seed=config.seed,
            batch_tokens=4 * config.batch_tokens,
            progress=advance,
        )
    K = len(latents)
    return first, [texts[start : start + K] for start in range(0, len(texts), K)]


def _served(
    inputs: EvalInputs, writer: ServedWriter, drawn: bool
) -> tuple[np.ndarray, Texts, Texts | None]:
    """As `complete`, from a server, and where `drawn`, one more of each at temperature 1."""
    judged = inputs.judge is not None
    rows = inputs.prompt_rows[: None if judged else SHOWN]
    prompts = [inputs.examples[row] for row in rows.tolist()]
    drawing = ServedCompletions(inputs.config, writer, prompts, inputs.longest, drawn)
    if judged:
        lines = draw_all(drawing, inputs.run.served, inputs.say, inputs.progress)
    else:
        with inputs.progress("generating", len(prompts) * drawing.per_prompt) as advance:
            lines = [json.loads(line) for line in drawing.lines(range(len(prompts)), advance)]
    greedy = [line["greedy"] for line in lines]
    return rows, greedy, [line["drawn"] for line in lines] if drawn else None


def judge_all(inputs: EvalInputs, judge: Judge, prompts: np.ndarray, texts: Texts) -> Generations:
    """The judge's word on K completions of each prompt; those without a verdict are left out.

    Args:
        prompts: (P,) rows whose x was completed.
    """
    K = len(texts[0])
    asked = [
        (inputs.examples[row].x, y) for row, ys in zip(prompts, texts, strict=True) for y in ys
    ]
    verdicts = judge.verdicts(asked)
    known = np.array([verdict is not None for verdict in verdicts])
    judged = [verdict for verdict in verdicts if verdict is not None]
    prompt_of_each = np.repeat(inputs.encoded.prompt_index[prompts], K)
    latent_of_each = np.tile(np.arange(K), len(prompts))
    return Generations(
        prompts=prompt_of_each[known],
        latents=latent_of_each[known],
        strategies=[strategy for strategy, _ in judged],
        correct=[correct for _, correct in judged],
        named=judge.names_strategies,
    )
