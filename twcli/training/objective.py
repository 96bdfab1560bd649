"""One pass of the model becomes the loss of a step under the run's options,
and what is logged of it.

Shapes: B batch, K latents, C of them that were read, S supervised tokens. Nats.
"""

from __future__ import annotations

from typing import Any

import torch

from twcli.config.train import TrainConfig
from twcli.config.weightings import WEIGHTINGS
from twcli.data.batches import Batch
from twcli.discovery.information import information
from twcli.models.latents import LatentOutput
from twcli.training import diagnostics, loss, regularisers


def token_weights(batch: Batch, output: LatentOutput) -> torch.Tensor | None:
    """b_t (B, S) in nats: the current backbone's where the model gave it,
    else the cache's, else None.
    """
    if output.baseline_BS is None:
        return batch.baseline_BS
    return output.baseline_BS


def reconstruction(
    nll_BCS: torch.Tensor,
    active_BS: torch.Tensor,
    weights_BS: torch.Tensor | None,
    config: TrainConfig,
) -> torch.Tensor:
    """Reff (B, C) as the run's options have it."""
    uniform_weight, token_weight = config.term_weights()
    token_weights_BS = weights_BS
    if weights_BS is not None and config.ablation == "none":
        token_weights_BS = WEIGHTINGS[config.weighting].weights(weights_BS)
    reff_BC = loss.reconstruction(
        nll_BCS,
        active_BS,
        token_weights_BS,
        uniform_weight=uniform_weight,
        token_weight=token_weight,
        tau=config.tau,
        ablation=config.ablation,
    )
    if config.normalise and weights_BS is not None:
        reff_BC = regularisers.normalised(reff_BC, active_BS, weights_BS, tau=config.tau)
    return reff_BC


@torch.no_grad()
def _bound(
    nll_bound_BS: torch.Tensor | None,
    active_BS: torch.Tensor,
    weights_BS: torch.Tensor | None,
    config: TrainConfig,
) -> float:
    """Nats by which the batch's mean loss may be off: Reff's share in `LatentOutput.nll_bound_BS`,
    whatever is subtracted from it.
    """
    if nll_bound_BS is None:
        return 0.0
    most, least = (
        reconstruction(nll_BS[:, None], active_BS, weights_BS, config)
        for nll_BS in (nll_bound_BS, torch.zeros_like(nll_bound_BS))
    )
    return (most - least).mean().item()


def step_loss(
    output: LatentOutput,
    batch: Batch,
    config: TrainConfig,
    latent_B: torch.Tensor | None,
    refined_BCS: torch.Tensor | None = None,
    weight_B: torch.Tensor | None = None,
    *,
    beta: float | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss (B,), its parts in nats and `diagnostics`.

    Args:
        latent_B: where q is held, which is taught to the posterior where it was read; None for the
            learned posterior or the closed form.
        refined_BCS: NLL of the latents that are used, where `latent_B` comes from it; the
            diagnostics are then of it.
        weight_B: weights of mean 1 by which rows that are repeated count once again, where q is
            held: router and posterior learn the latents' own shares.
        beta: of this step, where it is annealed; None for the run's.
    """
    beta = config.beta if beta is None else beta
    weights_BS = token_weights(batch, output)
    reff_BC = reconstruction(output.nll_BCS, batch.active_BS, weights_BS, config)
    parts: dict[str, Any] = {
        "pruned_bound": _bound(output.nll_bound_BS, batch.active_BS, weights_BS, config)
    }
    if latent_B is None:
        loss_B, log_q_BK, found = _free_loss(output, batch, config, reff_BC, weights_BS, beta)
    else:
        loss_B, log_q_BK, found = _held_loss(output, reff_BC, latent_B, weight_B, beta)
    parts |= found
    with torch.no_grad():
        q_BK = log_q_BK.exp()
        parts["posterior_mass"] = q_BK.mean(0).tolist()
        parts["posterior_entropy"] = loss.entropy(q_BK).mean().item()
        parts["mutual_information"], parts["usage"] = information(
            parts["posterior_mass"], parts["posterior_entropy"]
        )
        if refined_BCS is not None:
            # a one-hot q has no gradient to speak of
            log_q_BK = torch.log_softmax(-refined_BCS.sum(-1), -1)
        if latent_B is None or refined_BCS is not None:
            nll_BCS = output.nll_BCS if refined_BCS is None else refined_BCS
            parts |= diagnostics.summarise_rows(
                diagnostics.row_figures(nll_BCS, batch.active_BS, weights_BS, log_q_BK, config.tau)
            )
    return loss_B, parts


def _free_loss(
    output: LatentOutput,
    batch: Batch,
    config: TrainConfig,
    reff_BK: torch.Tensor,
    weights_BS: torch.Tensor | None,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(loss (B,), log q (B, K), parts) where q is the learned posterior or the closed form."""
    log_p_BK = output.log_router_BK
    learned_BK = output.log_posterior_BK
    updated_BK = None
    if config.posterior_update != "learned":
        updated_BK = regularisers.UPDATES[config.posterior_update](log_p_BK, reff_BK, beta)
        log_q_BK = updated_BK.log()
    elif learned_BK is not None:
        log_q_BK = learned_BK
    else:
        # Held fixed: at its minimiser the objective's gradient through q is zero anyway, but
        # for free bits, which it does not know.
        log_q_BK = loss.closed_form_posterior(log_p_BK, reff_BK, beta).detach()
    loss_B = loss.objective(log_q_BK, log_p_BK, reff_BK, beta, free_bits=config.free_bits)
    parts = {
        "reconstruction": (log_q_BK.exp() * reff_BK).sum(-1).mean().item(),
        "kl": loss.categorical_kl(log_q_BK, log_p_BK).mean().item(),
    }
    if updated_BK is not None and learned_BK is not None:
        teaching_B = torch.nn.functional.cross_entropy(
            learned_BK, updated_BK.to(learned_BK), reduction="none"
        )
        loss_B = loss_B + teaching_B
        parts["posterior_cross_entropy"] = teaching_B.mean().item()
    if output.divergence_BS is not None:
        divergence_B = loss.masked_token_nll_per_example(
            output.divergence_BS, batch.active_BS, weights_BS, tau=config.tau
        )
        loss_B = loss_B - config.divergence * divergence_B
        parts["divergence"] = divergence_B.mean().item()
    return loss_B, log_q_BK if learned_BK is None else learned_BK, parts


def _held_loss(
    output: LatentOutput,
    reff_B1: torch.Tensor,
    latent_B: torch.Tensor,
    weight_B: torch.Tensor | None,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(loss (B,), log q (B, K), parts) where q is held at `latent_B`, the one branch computed."""
    log_p_BK = output.log_router_BK
    log_q_BK = output.log_posterior_BK
    if weight_B is None:
        weight_B = torch.ones_like(reff_B1[:, 0])
    loss_B = loss.held_objective(reff_B1[:, 0], log_p_BK, latent_B, beta * weight_B)
    parts = {
        "reconstruction": reff_B1.mean().item(),
        "kl": loss.posterior_cross_entropy(log_p_BK, latent_B).mean().item(),
        "nll": output.nll_BCS.sum(-1).mean().item(),
    }
    if log_q_BK is None:
        one_hot_BK = torch.nn.functional.one_hot(latent_B, log_p_BK.shape[1])
        return loss_B, one_hot_BK.to(log_p_BK).log(), parts
    teaching_B = loss.posterior_cross_entropy(log_q_BK, latent_B)
    parts["posterior_cross_entropy"] = teaching_B.mean().item()
    return loss_B + weight_B * teaching_B, log_q_BK, parts
