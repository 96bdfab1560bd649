"""Forward passes of a trained run over records: posterior, router and likelihoods of each.

Shapes: N records, B of them in a batch, K latents, C of them computed, S supervised tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from twcli.config.train import TrainConfig
from twcli.data.batches import Batch, collate, forward_batches, length_classes
from twcli.data.encoded import Encoded
from twcli.data.encoder import ExampleEncoder
from twcli.data.padding import gather_padded
from twcli.kernels.packing import PLAIN
from twcli.models.latents import LatentModel, LatentOutput
from twcli.training import diagnostics, loss
from twcli.training.objective import reconstruction


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

    @classmethod
    def empty(cls, N: int, K: int) -> Passes:
        """Arrays of N records and K latents, not yet filled."""
        return cls(
            posterior=np.empty((N, K)),
            router=np.empty((N, K)),
            responsibilities=np.empty((N, K)),
            generator_nll=np.empty((N, K)),
            marginal_nll=np.empty(N),
            figures={},
        )

    def fill(
        self,
        rows: np.ndarray,
        output: LatentOutput,
        log_q_BK: torch.Tensor,
        figures: dict[str, torch.Tensor],
    ) -> None:
        """Stores what a batch of these rows gave.

        Args:
            rows: (B,) positions.
            figures: (B,) each.
        """
        responsibilities_BK, marginal_nll_B = loss.responsibilities(
            output.nll_BCS, output.log_router_BK
        )
        posterior_BK = log_q_BK.double().exp()
        router_BK = output.log_router_BK.double().exp()
        generator_nll_BK = output.nll_BCS.double().sum(-1)
        self.posterior[rows] = posterior_BK.cpu()
        self.router[rows] = router_BK.cpu()
        self.responsibilities[rows] = responsibilities_BK.cpu()
        self.generator_nll[rows] = generator_nll_BK.cpu()
        self.marginal_nll[rows] = marginal_nll_B.cpu()
        for name, values in figures.items():
            all_values = self.figures.setdefault(name, np.empty(len(self.posterior)))
            all_values[rows] = values.cpu().double()


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
    """Forward passes over all records, each under all latents.

    b_t is the one that the run was trained with: the frozen model's or the trained backbone's. The
    closed-form posterior is the one of training, so it needs b_t; without it the uniform terms
    remain, and so do the figures that do not need it.

    Args:
        trained: the settings that the run was trained with.
        baseline_flat: (tokens of y of all records,) b_t of the frozen model in nats, one record
            after the other, or None.
        batch_tokens: most tokens of a batch, padding included.
        progress: called with the number of records after each batch.
    """
    device = next(model.parameters()).device
    N = len(encoded)
    K = model.latents
    passes = Passes.empty(N, K)
    if baseline_flat is None and not model.dynamic_baseline:
        trained = _without_weights(trained)
    batches = forward_batches(
        encoded,
        np.arange(N),
        batch_tokens=batch_tokens,
        branches=K + 1,
        shared=model.execution != PLAIN,
        classes=length_classes(encoded, encoder, model.pass_lengths),
    )
    for rows in batches:
        batch = collate(rows, encoded, encoder, None).to(device)
        output = model(batch)
        weights_BS = output.baseline_BS
        if weights_BS is None and baseline_flat is not None:
            weights_BS = _baseline_of(rows, encoded, baseline_flat).to(device)
        log_q_BK = _log_posterior(output, batch, weights_BS, trained)
        figures = diagnostics.row_figures(
            output.nll_BCS, batch.active_BS, weights_BS, log_q_BK, trained.tau
        )
        passes.fill(rows, output, log_q_BK, figures)
        progress(len(rows))
    return passes


def _without_weights(trained: TrainConfig) -> TrainConfig:
    """The settings of a run whose b_t is gone: only the uniform term remains."""
    return dataclasses.replace(
        trained,
        weighting="mixed",
        uniform_weight=sum(trained.term_weights()),
        token_weight=0.0,
        ablation="none",
    )


def _baseline_of(rows: np.ndarray, encoded: Encoded, baseline_flat: np.ndarray) -> torch.Tensor:
    """(B, S) float32 b_t of the rows in nats, 0 where y has ended."""
    starts = encoded.target_offsets[rows]
    padded = gather_padded(baseline_flat, starts, encoded.target_lengths[rows], 0.0)
    return torch.from_numpy(padded.astype(np.float32))


def _log_posterior(
    output: LatentOutput, batch: Batch, weights_BS: torch.Tensor | None, trained: TrainConfig
) -> torch.Tensor:
    """log q(z|x, y), (B, K): of the model's head, or in closed form where it has none.

    Args:
        weights_BS: (B, S) b_t in nats, None under the uniform loss.
    """
    if output.log_posterior_BK is not None:
        return output.log_posterior_BK
    reff_BK = reconstruction(output.nll_BCS, batch.active_BS, weights_BS, trained)
    return loss.closed_form_posterior(output.log_router_BK, reff_BK, trained.beta)
