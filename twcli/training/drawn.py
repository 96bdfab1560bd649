"""Completions that the frozen model draws itself, to judge a run by.

A model that was trained on the records of `--data` knows them by heart: whatever is trained from it
then finds them less likely, though no strategy is lost. On what the frozen model draws, its own
likelihood is fair, and the mean log ratio is the divergence of the run from it. Where the records
say that a latent is below, these completions may deny it. They accuse none by themselves: a model
that never wrote as the records do is worse on its own completions, and ought to be.

Shapes: R completions, K latents. Nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from twcli.config.commands import TrainConfig
from twcli.data.batches import collate, forward_batches, length_classes
from twcli.data.encoder import Encoded, ExampleEncoder
from twcli.kernels.packing import PLAIN
from twcli.models import baseline
from twcli.models.generation import generate_ids
from twcli.models.latents import LatentModel
from twcli.models.positions import pass_lengths
from twcli.models.runtime import context_length
from twcli.training.loss import responsibilities
from twcli.training.retention import retention

LEAST = 16  # completions that say anything
BESIDE = 3  # tags of the latent, and the end behind y


@dataclass(frozen=True)
class Drawn:
    """Completions that ended by themselves.

    Attributes:
        encoded: their ids; a prompt may have several.
        frozen_R: NLL under the frozen model.
        classes: (R,) rows of different ones share no batch (`batches.length_classes`).
    """

    encoded: Encoded
    frozen_R: np.ndarray
    classes: np.ndarray


def draw(
    backbone: PreTrainedModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    config: TrainConfig,
    progress: Callable[[str, int], Any],
) -> Drawn | None:
    """One completion for the prompt of each of `rows`, at temperature 1 and at most as long as the
    rows' longest and as the context permits with a latent; the same in all processes. None where
    hardly any ends by itself.
    """
    close = encoder.y_close
    if not len(rows) or close is None:
        return None
    context = context_length(backbone, config.max_length)
    # the prompt, a latent between its tags, and what may follow the closing tag
    before = encoded.prompt_lengths[rows] + 1 + config.latent_tokens + BESIDE
    room = np.minimum(context - before, encoded.target_lengths[rows].max())
    rows, room = rows[room > 0], room[room > 0]
    if len(rows) < LEAST:
        return None
    with progress("completions of the original model", len(rows)) as advance:
        written, ended = generate_ids(
            backbone,
            encoder,
            [encoded.prompt_ids(row) for row in rows.tolist()],
            max_new_tokens=room,
            temperature=1.0,
            seed=config.seed,
            batch_tokens=4 * config.resolved_batch_tokens,
            progress=advance,
        )
    written, ended = broadcast_object_list([written, ended])
    answers = {
        row: [*_before_end(encoder, ids), close]
        for row, ids, complete in zip(rows.tolist(), written, ended, strict=True)
        if complete
    }
    if len(answers) < LEAST:
        return None
    drawn = encoded.answered(list(answers), list(answers.values()))
    flat = baseline.score_flat(
        backbone, encoder, drawn, np.arange(len(drawn)), batch_tokens=config.resolved_batch_tokens
    )
    return Drawn(
        drawn,
        np.add.reduceat(flat, drawn.target_offsets[:-1], dtype=np.float64),
        length_classes(drawn, encoder, pass_lengths(backbone)),
    )


def _before_end(encoder: ExampleEncoder, ids: list[int]) -> list[int]:
    """y, without whichever end token the model wrote."""
    return ids[: min(ids.index(token) for token in encoder.ends if token in ids)]


@torch.no_grad()
def read_branches(
    model: LatentModel,
    encoder: ExampleEncoder,
    encoded: Encoded,
    rows: np.ndarray,
    config: TrainConfig,
    accelerator: Any,
    classes: np.ndarray,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responsibilities (R, K), NLL under the generator with each latent (R, K), and NLL with the
    exact sum over z (R,), of `rows`, in eval mode; the mode is put back.
    """
    shape = (len(rows), model.latents)
    soft_RK, generator_RK, marginal_R = np.empty(shape), np.empty(shape), np.empty(len(rows))
    training = model.training
    model.eval()
    for places in forward_batches(
        encoded,
        rows,
        batch_tokens=config.resolved_batch_tokens,
        branches=model.latents,
        shared=model.execution != PLAIN,
        classes=classes,
    ):
        batch = collate(rows[places], encoded, encoder, None).to(accelerator.device)
        with accelerator.autocast():
            nll_BKS, log_p_BK = model.score_branches(batch)
        soft_RK[places], marginal_R[places] = (t.cpu() for t in responsibilities(nll_BKS, log_p_BK))
        generator_RK[places] = nll_BKS.double().sum(-1).cpu()
        if progress:
            progress(len(places))
    model.train(training)
    return soft_RK, generator_RK, marginal_R


def denied(
    drawn: Drawn | None,
    below: Mapping[int, float],
    model: LatentModel,
    encoder: ExampleEncoder,
    config: TrainConfig,
    accelerator: Any,
) -> frozenset[int]:
    """Latents of whose completions the frozen model's own say that they lost less than the records
    have it, beyond doubt. None where few were drawn.

    Args:
        below: what latents lost by the records: their decisive gain, below 0.
    """
    if drawn is None or not below:
        return frozenset()
    rows = np.arange(len(drawn.encoded))
    soft_RK, generator_RK, marginal_R = read_branches(
        model, encoder, drawn.encoded, rows, config, accelerator, drawn.classes
    )
    entries = retention(soft_RK.argmax(1), drawn.frozen_R, marginal_R, generator_RK)
    return frozenset(
        entry.latent
        for entry in entries
        if entry.latent in below
        and not entry.below
        and (interval := entry.decisive[1]) is not None
        and interval[0] > below[entry.latent]
    )
