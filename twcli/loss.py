"""The objective as pure tensor functions: no model, no files, no configuration.

Shapes: B batch, K latents, T or S supervised tokens. All quantities in nats.
"""

from __future__ import annotations

import torch


def masked_token_nll_per_example(token_loss: torch.Tensor, active: torch.Tensor, weights: torch.Tensor | None = None,
                                 *, eps: float = 1e-8, tau: float = 1e-4) -> torch.Tensor:
    """Token losses (..., T) to one loss an example (...), weighted where the weights carry mass.

    With w the detached weights on active tokens: sum_t w_t l_t / max(sum_t w_t, eps) where sum_t w_t > tau,
    else the uniform average over active tokens (zero where none is active). bf16 is accumulated in float32.

    Args:
        token_loss: (..., T) nats.
        active: (..., T) bool, supervised tokens; broadcasts against `token_loss`.
        weights: (..., T) nonnegative, broadcasts; None for the uniform average. Never carries a gradient.

    Raises:
        ValueError: a weight on an active token is NaN, infinite or negative.
    """
    loss = token_loss if token_loss.dtype == torch.float64 else token_loss.float()
    active = active.expand_as(loss)
    loss = loss.masked_fill(~active, 0.0)
    uniform = loss.sum(-1) / active.sum(-1).clamp(min=1)
    if weights is None:
        return uniform
    # Detached: b_t says where to look, it is nothing to be trained.
    weights = weights.detach().to(loss.dtype).expand_as(loss).masked_fill(~active, 0.0)
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("token weights must be finite and nonnegative")
    mass = weights.sum(-1)
    weighted = (weights * loss).sum(-1) / mass.clamp(min=eps)
    return torch.where(mass > tau, weighted, uniform)


def reconstruction(nll_BKS: torch.Tensor, active_BS: torch.Tensor, weights_BS: torch.Tensor | None, *,
                   uniform_weight: float, token_weight: float, tau: float) -> torch.Tensor:
    """Reff (B, K) in nats per token: uniform_weight x R + token_weight x Rw."""
    active_BKS = active_BS[:, None, :]
    total = nll_BKS.new_zeros(nll_BKS.shape[:2])
    if uniform_weight:
        total = total + uniform_weight * masked_token_nll_per_example(nll_BKS, active_BKS)
    if token_weight:
        if weights_BS is None:
            raise ValueError("token_weight needs weights")
        total = total + token_weight * masked_token_nll_per_example(nll_BKS, active_BKS, weights_BS[:, None, :], tau=tau)
    return total


def categorical_kl(log_q_BK: torch.Tensor, log_p_BK: torch.Tensor) -> torch.Tensor:
    """KL(q || p) (B,); terms with q = 0 are zero, whatever p is."""
    q_BK = log_q_BK.exp()
    return torch.where(q_BK > 0, q_BK * (log_q_BK - log_p_BK), 0.0).sum(-1)


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """Entropy (...) of distributions (..., K)."""
    return torch.special.entr(probability).sum(-1)


def objective(log_q_BK: torch.Tensor, log_p_BK: torch.Tensor, reff_BK: torch.Tensor, beta: float) -> torch.Tensor:
    """J (B,) = sum_z q(z) Reff(z) + beta KL(q || p(z|x)), the sum over z exact."""
    return (log_q_BK.exp() * reff_BK).sum(-1) + beta * categorical_kl(log_q_BK, log_p_BK)


def closed_form_posterior(log_p_BK: torch.Tensor, reff_BK: torch.Tensor, beta: float) -> torch.Tensor:
    """log q*(z) (B, K), the minimiser of `objective` over q: q*(z) proportional to p(z|x) exp(-Reff(z) / beta)."""
    return torch.log_softmax(log_p_BK - reff_BK / beta, dim=-1)


def posterior_cross_entropy(target_BK: torch.Tensor, log_q_BK: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B,) that teaches the posterior a held target while it does not yet drive the generator."""
    return -(target_BK * log_q_BK).sum(-1)
