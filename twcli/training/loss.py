"""The objective as pure tensor functions: no model, no files, no configuration.

Shapes: B batch, K latents, C of them that were read, T or S supervised
tokens. All quantities in nats.
"""

from __future__ import annotations

import torch


def masked_token_nll_per_example(
    token_loss: torch.Tensor,
    active: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    eps: float = 1e-8,
    tau: float = 1e-4,
) -> torch.Tensor:
    """Token losses (..., T) to one loss an example (...), weighted where the weights carry mass.

    With w the detached weights on active tokens: sum_t w_t l_t / max(sum_t w_t, eps) where sum_t
    w_t > tau, else the uniform average over active tokens (zero where none is active). bf16 is
    accumulated in float32, float64 in float64.

    Args:
        token_loss: (..., T) nats.
        active: (..., T) bool, supervised tokens; broadcasts against `token_loss`.
        weights: (..., T) nonnegative nats, broadcasts; None for the uniform average.
            Never carries a gradient.
        eps: least divisor in nats; matters only where `tau` is below it.
        tau: sum of active weights in nats up to which an example takes the uniform average.

    Raises:
        ValueError: a weight on an active token is NaN, infinite or negative.
    """
    loss = token_loss.to(torch.promote_types(token_loss.dtype, torch.float32))
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


def scalar_baseline_nll_per_example(
    token_loss: torch.Tensor, active: torch.Tensor, baseline: torch.Tensor
) -> torch.Tensor:
    """R - mean_t b_t: the uniform average of the token losses minus that of the detached baseline.

    The baseline is the same for every z, so neither the posterior nor the z embeddings can
    distinguish it from no baseline.

    Args:
        token_loss, baseline: (..., T) nats.
        active: (..., T) bool, the supervised tokens.

    Returns:
        (...) nats a token.
    """
    return masked_token_nll_per_example(token_loss, active) - masked_token_nll_per_example(
        baseline.detach(), active
    )


def token_baseline_nll_per_example(
    token_loss: torch.Tensor, active: torch.Tensor, baseline: torch.Tensor
) -> torch.Tensor:
    """mean_t (l_t - b_t) over active tokens, the detached baseline taken from each token's loss.

    Args:
        token_loss, baseline: (..., T) nats.
        active: (..., T) bool, the supervised tokens.

    Returns:
        (...) nats a token.
    """
    return masked_token_nll_per_example(token_loss - baseline.detach(), active)


SUBTRACTIONS = {
    "scalar-baseline": scalar_baseline_nll_per_example,
    "token-baseline": token_baseline_nll_per_example,
}


def reconstruction(
    nll_BCS: torch.Tensor,
    active_BS: torch.Tensor,
    weights_BS: torch.Tensor | None,
    *,
    uniform_weight: float,
    token_weight: float,
    tau: float,
    ablation: str = "none",
) -> torch.Tensor:
    """Reff (B, C) in nats per token: uniform_weight x R + token_weight x Rw.

    In float64 where the device has it: what differs between latents is a small
    difference of their sums.

    Args:
        weights_BS: b_t in nats; may be None where `token_weight` is 0.
        ablation: "none", or what takes Rw's place: R with the baseline subtracted
            ("scalar-baseline", "token-baseline").

    Raises:
        ValueError: `token_weight` without weights, or a weight that is NaN, infinite or negative.
    """
    active_BCS = active_BS[:, None, :]
    if nll_BCS.device.type != "mps":
        nll_BCS = nll_BCS.double()
    total = nll_BCS.new_zeros(nll_BCS.shape[:2])
    if uniform_weight:
        total = total + uniform_weight * masked_token_nll_per_example(nll_BCS, active_BCS)
    if token_weight:
        if weights_BS is None:
            raise ValueError("token_weight needs weights")
        weights_BCS = weights_BS[:, None, :]
        if ablation == "none":
            term = masked_token_nll_per_example(nll_BCS, active_BCS, weights_BCS, tau=tau)
        else:
            term = SUBTRACTIONS[ablation](nll_BCS, active_BCS, weights_BCS)
        total = total + token_weight * term
    return total


def held_objective(
    reff_B: torch.Tensor,
    log_p_BK: torch.Tensor,
    latent_B: torch.Tensor,
    beta: float | torch.Tensor,
) -> torch.Tensor:
    """J (B,) where q is one-hot at `latent_B`: Reff of that latent - beta log p(z|x); no
    other branch has a part in it.
    """
    return reff_B + beta * posterior_cross_entropy(log_p_BK, latent_B)


def categorical_kl(log_q_BK: torch.Tensor, log_p_BK: torch.Tensor) -> torch.Tensor:
    """KL(q || p) (B,); terms with q = 0 are zero, whatever p is."""
    q_BK = log_q_BK.exp()
    return torch.where(q_BK > 0, q_BK * (log_q_BK - log_p_BK), 0.0).sum(-1)


def entropy(probability: torch.Tensor) -> torch.Tensor:
    """Entropy of distributions.

    Args:
        probability: (..., K).

    Returns:
        (...) nats.
    """
    return torch.special.entr(probability).sum(-1)


def objective(
    log_q_BK: torch.Tensor,
    log_p_BK: torch.Tensor,
    reff_BK: torch.Tensor,
    beta: float,
    *,
    free_bits: float = 0.0,
) -> torch.Tensor:
    """J (B,) = sum_z q(z) Reff(z) + beta max(KL(q || p(z|x)), free_bits), the sum over z exact.

    Args:
        free_bits: nats of KL that cost an example nothing (Kingma et al. 2016,
            inverse autoregressive flow).
    """
    kl_B = categorical_kl(log_q_BK, log_p_BK)
    # What all latents have in common has no part in q's gradient, but in
    # float32 its rounding would.
    common_B1 = reff_BK.detach().mean(-1, keepdim=True)
    return (
        (log_q_BK.exp() * (reff_BK - common_B1)).sum(-1)
        + common_B1[:, 0]
        + beta * (kl_B.clamp(min=free_bits) if free_bits else kl_B)
    )


def closed_form_posterior(
    log_p_BK: torch.Tensor, reff_BK: torch.Tensor, beta: float
) -> torch.Tensor:
    """log q*(z) (B, K), the minimiser of `objective` over q: q*(z) proportional to
    p(z|x) exp(-Reff(z) / beta).
    """
    return torch.log_softmax(log_p_BK - reff_BK / beta, dim=-1)


def posterior_cross_entropy(log_q_BK: torch.Tensor, latent_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats that teaches a distribution the latent that is held.

    Args:
        log_q_BK: (B, K) log-probabilities.
        latent_B: (B,) int64.

    Returns:
        (B,) nats.
    """
    return -log_q_BK.gather(-1, latent_B[:, None])[:, 0]


def responsibilities(
    nll_BKS: torch.Tensor, log_p_BK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Proportional to p(y|x,z) (B, K): which latents would write y, whatever the router says;
    and the marginal NLL (B,).

    Both in float64; the latter in nats is -log sum_z p(z|x) p(y|x,z), the sum exact.
    """
    nll_BK = nll_BKS.double().sum(-1)
    log_joint_BK = log_p_BK.double() - nll_BK
    return torch.softmax(-nll_BK, dim=-1), -torch.logsumexp(log_joint_BK, dim=-1)
