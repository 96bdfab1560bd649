"""What others do against posterior collapse, as pure tensor functions: options of
`twcli train` to compare with.

Beta and the normalisation act at every step, the others where the posterior is
learned (the stage `free`).

Shapes: B batch, K latents, C branches, S supervised tokens. Nats.
"""

from __future__ import annotations

import torch

from twcli.training.loss import masked_token_nll_per_example

SINKHORN_ROUNDS = 50


def annealed_beta(beta: float, step: int, steps: int, *, warmup: float, cycles: int) -> float:
    """Beta at `step`, counted from 0: rises in a line to `beta` over the first `warmup` share
    of each cycle, then stays.

    One cycle is KL warm-up (Bowman et al. 2016), several are the cyclical schedule (Fu et al.
    2019). Never 0, since the closed-form posterior divides by it.

    Args:
        warmup: share of a cycle; 0 for a constant beta.
        cycles: of equal length.
    """
    # of whole numbers, so that each cycle begins where it is due
    done = (step * cycles % steps + cycles) / steps
    if warmup:
        return beta * min(1.0, done / warmup)
    return beta


def hard_posterior(log_p_BK: torch.Tensor, reff_BK: torch.Tensor, beta: float) -> torch.Tensor:
    """One-hot posterior at the latent of least Reff - beta log p(z|x): hard EM (Neal and Hinton
    1998).

    Args:
        log_p_BK: (B, K) log-probabilities of the router.
        reff_BK: (B, K) nats.

    Returns:
        (B, K) without a gradient.
    """
    cost_BK = (reff_BK - beta * log_p_BK).detach()
    best_B = cost_BK.argmin(-1)
    K = reff_BK.shape[1]
    chosen_BK = torch.nn.functional.one_hot(best_B, K)
    return chosen_BK.to(reff_BK)


def balanced_posterior(log_p_BK: torch.Tensor, reff_BK: torch.Tensor, beta: float) -> torch.Tensor:
    """The closed form p(z|x) exp(-Reff / beta) scaled so that every latent gets the same mass of
    the batch.

    Sinkhorn and Knopp's alternation (Cuturi 2013; for assignments Caron et al. 2020), in the log
    domain. Rows sum to 1 exactly, columns to B / K as far as `SINKHORN_ROUNDS` reach.

    Args:
        log_p_BK: (B, K) log-probabilities of the router.
        reff_BK: (B, K) nats.

    Returns:
        (B, K) without a gradient.
    """
    log_q_BK = (log_p_BK - reff_BK / beta).detach().double()
    for _ in range(SINKHORN_ROUNDS):
        log_q_BK = log_q_BK - torch.logsumexp(log_q_BK, 0, keepdim=True)
        log_q_BK = log_q_BK - torch.logsumexp(log_q_BK, 1, keepdim=True)
    return log_q_BK.exp().to(reff_BK)


UPDATES = {"hard": hard_posterior, "balanced": balanced_posterior}


def normalised(
    reff_BC: torch.Tensor, active_BS: torch.Tensor, weights_BS: torch.Tensor, *, tau: float
) -> torch.Tensor:
    """Reff as a multiple of the row's mean b_t, so that hard rows do not outweigh easy ones. A row
    whose b_t sum to `tau` nats or less stays as it is.

    Args:
        reff_BC: (B, C) nats.
        weights_BS: (B, S) b_t in nats.

    Returns:
        (B, C).
    """
    weights_BS = weights_BS.detach()
    mean_B = masked_token_nll_per_example(weights_BS, active_BS)
    mass_B = weights_BS.masked_fill(~active_BS, 0.0).sum(-1)
    unit_B = torch.where(mass_B > tau, mean_B, 1.0)
    unit_B1 = unit_B.to(reff_BC.dtype)[:, None]
    return reff_BC / unit_B1
