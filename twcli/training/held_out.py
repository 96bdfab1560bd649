"""Records that are kept out of training: how far each latent is learned, which decides when names
are corrected and when a run ends, and what z does to the losses. No label is read.

Shapes: H held-out records, K latents, S supervised tokens. Nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from twcli.config.train import TrainConfig
from twcli.data.batches import collate, forward_batches
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.kernels.packing import PLAIN
from twcli.models.latents import LatentModel
from twcli.storage.cache import Cache
from twcli.training import diagnostics, loss
from twcli.training.retention import Retention, lost_latents, retention

SHARE = 0.1  # of the records, at most
LEAST_RECORDS = 16  # that say anything; where a tenth of the data are fewer, none are held out
MOST_RECORDS = 1024
MONITORED = 128  # of them that are read again and again during training
COST_SHARE = 0.05  # of the training's passes that measuring may take
MEASUREMENTS = 20  # of a run, at most
PASSES_A_RECORD = 6  # of a step: forward and backward of two sequences


def held_out_rows(encoded: Encoded, seed: int) -> np.ndarray:
    """(H,) rows of whole prompts in an order of chance; none where the data are few."""
    wanted = min(MOST_RECORDS, int(SHARE * len(encoded)))
    none = np.empty(0, np.int64)
    if wanted < LEAST_RECORDS:
        return none
    sizes_P = np.bincount(encoded.prompt_index)
    order = np.random.default_rng([seed, 8]).permutation(len(sizes_P))
    ends = np.cumsum(sizes_P[order])
    chosen = order[: int(np.searchsorted(ends, wanted, "right"))]
    rank_P = np.full(len(sizes_P), len(order))
    rank_P[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(rank_P[encoded.prompt_index] < len(order))
    rows = rows[np.argsort(rank_P[encoded.prompt_index[rows]], kind="stable")]
    if len(rows) >= LEAST_RECORDS:
        return rows
    return none


def measured_every(steps: int, records: int, latents: int, rows_a_step: int) -> int:
    """Steps between two measurements, which together take about `COST_SHARE` of the training; there
    is one at least.

    Args:
        steps: of the whole run.
        records: that are measured.
        rows_a_step: records that a step trains on.
    """
    passes = records * (latents + 1)
    passes_a_step = COST_SHARE * rows_a_step * PASSES_A_RECORD
    dear = passes / passes_a_step
    every = round(max(steps / MEASUREMENTS, dear))
    return min(steps, max(1, every))


@dataclass(frozen=True)
class HeldOut:
    """Held-out records with their names.

    Attributes:
        rows_H: of the data.
        latent_H: the naming's, -1 for none.
        frozen_H: NLL under the frozen model.
        used: latents that the naming uses, the first of the K. The others write what these write.
        every: steps between two measurements.
    """

    rows_H: np.ndarray
    latent_H: np.ndarray
    frozen_H: np.ndarray
    used: int
    every: int

    def due(self, step: int) -> bool:
        """Whether to measure after `step` steps."""
        return len(self.rows_H) > 0 and step % self.every == 0

    def monitored(self) -> HeldOut:
        """The records that are measured during training."""
        few = slice(MONITORED)
        return replace(
            self,
            rows_H=self.rows_H[few],
            latent_H=self.latent_H[few],
            frozen_H=self.frozen_H[few],
        )


@dataclass(frozen=True)
class HeldOutNll:
    """What the run's model says of H held-out records, in nats.

    Attributes:
        generator_HK: NLL with each latent.
        marginal_H: NLL, the sum over z exact.
        posterior_H: latent of the highest posterior.
        figures: (H,) each, of `diagnostics.row_figures`.
    """

    generator_HK: np.ndarray
    marginal_H: np.ndarray
    posterior_H: np.ndarray
    figures: dict[str, torch.Tensor]


@torch.no_grad()
def read_held_out(
    held: HeldOut,
    model: LatentModel,
    encoded: Encoded,
    encoder: ExampleEncoder,
    cache: Cache | None,
    config: TrainConfig,
    accelerator: Any,
    classes: np.ndarray | None = None,
) -> HeldOutNll:
    """Reads all K branches and the posterior, in eval mode; the mode is put back.

    Args:
        classes: (N,) rows of different ones share no batch (`batches.length_classes`).
    """
    H = len(held.rows_H)
    K = model.latents
    found = HeldOutNll(np.empty((H, K)), np.empty(H), np.empty(H, np.int64), {})
    training = model.training
    model.eval()
    for places in forward_batches(
        encoded,
        held.rows_H,
        batch_tokens=config.resolved_batch_tokens,
        branches=K + 1,
        shared=model.execution != PLAIN,
        classes=classes,
    ):
        batch = collate(held.rows_H[places], encoded, encoder, cache).to(accelerator.device)
        with accelerator.autocast():
            output = model(batch)
        soft_BK, marginal_B = loss.responsibilities(output.nll_BCS, output.log_router_BK)
        log_q_BK = output.log_posterior_BK
        log_q_BK = soft_BK.log() if log_q_BK is None else log_q_BK
        weights_BS = batch.baseline_BS if output.baseline_BS is None else output.baseline_BS
        for name, values in diagnostics.row_figures(
            output.nll_BCS, batch.active_BS, weights_BS, log_q_BK, config.tau
        ).items():
            found.figures.setdefault(name, torch.empty(H, dtype=torch.float64))
            found.figures[name][places] = values.double().cpu()
        found.generator_HK[places] = output.nll_BCS.double().sum(-1).cpu()
        found.marginal_H[places] = marginal_B.cpu()
        found.posterior_H[places] = log_q_BK.argmax(1).cpu()
    model.train(training)
    return found


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
    """What the model says of rows under each latent, in eval mode; the mode is put back.

    Args:
        rows: (R,) row numbers.
        classes: (N,) rows of different ones share no batch (`batches.length_classes`).
        progress: called with the number of rows after each batch.

    Returns:
        Responsibilities (R, K), NLL of the generator with each latent (R, K), and NLL with the
        exact sum over z (R,), both in nats.
    """
    shape = (len(rows), model.latents)
    soft_RK = np.empty(shape)
    generator_RK = np.empty(shape)
    marginal_R = np.empty(len(rows))
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
        soft_RK[places], marginal_R[places] = (
            t.cpu() for t in loss.responsibilities(nll_BKS, log_p_BK)
        )
        generator_RK[places] = nll_BKS.double().sum(-1).cpu()
        if progress:
            progress(len(places))
    model.train(training)
    return soft_RK, generator_RK, marginal_R


def retained(held: HeldOut, found: HeldOutNll) -> list[Retention]:
    """What became of the held-out completions of each latent. Without a name a record has the
    latent that would write it.
    """
    latent_H = _latents(held, found)
    return retention(latent_H, held.frozen_H, found.marginal_H, found.generator_HK)


def _latents(held: HeldOut, found: HeldOutNll) -> np.ndarray:
    """(H,) the latent that each record is named with, else the one that writes it best."""
    best_H = found.generator_HK[:, : held.used].argmin(1)
    return np.where(held.latent_H >= 0, held.latent_H, best_H)


def measurement(held: HeldOut, found: HeldOutNll) -> dict[str, Any]:
    """What the metrics of a step that is measured hold besides its own.

    Returns:
        `held_out_nll`: the generator's NLL under the name, mean of the latents' means, and
            `held_out_nll_error`, its standard error.
        `held_out_gain`, `held_out_behind`, `held_out_below`, `held_out_agreement`: for each latent,
            as `retention` has it, whether it is below the frozen model, whether by more than all
            are (`lost_latents`), and the share of its records that the generator finds likeliest
            under it; None for a latent without records.
        `held_out_certainty`: mean probability of a record's likeliest latent by the generator,
            latents being as likely as each other before.
        `held_out_posterior`: share of the records whose posterior is highest at the name.
        The figures of `diagnostics.SUMMARY`.
    """
    nll_HK = found.generator_HK
    H, K = nll_HK.shape
    used_HC = nll_HK[:, : held.used]
    latent_H = _latents(held, found)
    best_H = used_HC.argmin(1)
    entries = {entry.latent: entry for entry in retained(held, found)}
    lost = lost_latents(list(entries.values()))
    own_H = nll_HK[np.arange(H), latent_H]
    certain_H = 1 / np.exp(used_HC.min(1, keepdims=True) - used_HC).sum(1)
    means = []
    variances = []
    agreement: list[float | None] = [None] * K
    for latent in entries:
        rows = latent_H == latent
        means.append(own_H[rows].mean())
        variances.append(own_H[rows].var() / rows.sum())
        agreement[latent] = float((best_H[rows] == latent).mean())
    return {
        "held_out_nll": float(np.mean(means)),
        "held_out_nll_error": float(np.sqrt(np.sum(variances)) / len(means)),
        "held_out_gain": [entries[k].gain if k in entries else None for k in range(K)],
        "held_out_behind": [k in entries and entries[k].below for k in range(K)],
        "held_out_below": [k in lost for k in range(K)],
        "held_out_agreement": agreement,
        "held_out_certainty": float(certain_H.mean()),
        "held_out_posterior": float((found.posterior_H == latent_H).mean()),
        **diagnostics.summarise_rows(found.figures),
    }
