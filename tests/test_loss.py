"""The note's claims, exact on constructed inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twcli.loss import (
    categorical_kl,
    closed_form_posterior,
    masked_token_nll_per_example,
    objective,
    posterior_cross_entropy,
    reconstruction,
)


def double(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_weighted_average_by_hand():
    loss = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 100.0]])
    active = torch.tensor([[True, True, True], [True, True, False]])
    weights = torch.tensor([[0.0, 1.0, 3.0], [1.0, 1.0, 50.0]])
    assert masked_token_nll_per_example(loss, active).tolist() == pytest.approx([7 / 3, 4.0])
    assert masked_token_nll_per_example(loss, active, weights).tolist() == pytest.approx([14 / 4, 4.0])


def test_at_or_below_tau_the_loss_is_the_uniform_one_bit_for_bit():
    loss, active = torch.rand(5, 9), torch.rand(5, 9) > 0.3
    uniform = masked_token_nll_per_example(loss, active)
    for mass in (0.0, 1e-5 / 9, 1e-4 / 9 / 2):
        assert torch.equal(masked_token_nll_per_example(loss, active, torch.full((5, 9), mass)), uniform)
    at_tau = torch.zeros(5, 9).masked_fill(active.cumsum(-1).eq(1) & active, 0.25)
    assert torch.equal(masked_token_nll_per_example(loss, active, at_tau, tau=0.25), uniform)
    assert not torch.equal(masked_token_nll_per_example(loss, active, at_tau, tau=0.24), uniform)


def test_weights_carry_no_gradient():
    loss = torch.rand(3, 4, requires_grad=True)
    weights = torch.rand(3, 4, requires_grad=True)
    masked_token_nll_per_example(loss, torch.ones(3, 4, dtype=torch.bool), weights).sum().backward()
    assert weights.grad is None or not weights.grad.any()
    assert loss.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_bad_weights_are_refused_where_active(bad):
    active = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="finite and nonnegative"):
        masked_token_nll_per_example(torch.ones(1, 2), active, torch.tensor([[bad, 1.0]]))
    assert masked_token_nll_per_example(torch.ones(1, 2), active, torch.tensor([[1.0, bad]])).item() == 1.0


def test_bf16_is_accumulated_in_float32():
    loss = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    result = masked_token_nll_per_example(loss, torch.ones(1, 4096, dtype=torch.bool), torch.ones(1, 4096, dtype=torch.bfloat16))
    assert result.dtype == torch.float32 and result.item() == 1.0


@settings(deadline=None, max_examples=60)
@given(shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 12)), scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
       keep=st.floats(0, 1), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_result_is_a_mean_of_active_losses(shape, scale, keep, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(shape, generator=generator).to(dtype)
    active = torch.rand(shape, generator=generator) < keep
    weights = scale * torch.rand(shape, generator=generator)
    result = masked_token_nll_per_example(loss, active, weights)
    assert result.shape == shape[:-1] and torch.isfinite(result).all()
    low = loss.float().masked_fill(~active, 9.0).amin(-1) - 1e-5
    high = loss.float().masked_fill(~active, -9.0).amax(-1) + 1e-5
    some = active.any(-1)
    assert ((result >= low) & (result <= high))[some].all()
    assert (result[~some] == 0).all()


def posterior_gradient(nll_BKS, active_BS, weights_BS, logits_BK, *, baseline=None, uniform_weight, token_weight):
    """Gradient of sum_z q(z) R(z) with respect to the posterior's logits; `baseline` is subtracted from each token's loss."""
    logits = logits_BK.clone().requires_grad_()
    losses = nll_BKS if baseline is None else nll_BKS - baseline
    reff = reconstruction(losses, active_BS, weights_BS, uniform_weight=uniform_weight, token_weight=token_weight, tau=1e-4)
    log_q = torch.log_softmax(logits, -1)
    (log_q.exp() * reff).sum().backward()
    return logits.grad


def test_subtraction_changes_no_posterior_gradient():
    nll, active = 5 * double(3, 4, 7), double(3, 7, seed=1) > 0.2
    logits = double(3, 4, seed=2)
    plain = posterior_gradient(nll, active, None, logits, uniform_weight=1.0, token_weight=0.0)
    scalar = double(3, 1, 1, seed=3)
    token = double(3, 1, 7, seed=4)
    for baseline in (scalar, token):
        other = posterior_gradient(nll, active, None, logits, baseline=baseline, uniform_weight=1.0, token_weight=0.0)
        assert (other - plain).norm() <= 1e-12 * plain.norm()


@pytest.mark.parametrize(("first", "total"), [(1, 1), (1, 4), (2, 24), (3, 300), (1, 1000)])
def test_weighting_amplifies_the_posterior_gradient_by_T_over_t0(first, total):
    """Two regimes: l_t(z) depends on z, and b_t is positive, in the first t0 of T tokens only."""
    nll = double(2, 3, total)
    nll[..., first:] = nll[:, :1, first:]
    weights = torch.zeros(2, total, dtype=torch.float64)
    weights[:, :first] = 0.7
    active = torch.ones(2, total, dtype=torch.bool)
    logits = double(2, 3, seed=1)
    uniform = posterior_gradient(nll, active, None, logits, uniform_weight=1.0, token_weight=0.0)
    weighted = posterior_gradient(nll, active, weights, logits, uniform_weight=0.0, token_weight=1.0)
    assert (weighted.norm() / uniform.norm()).item() == pytest.approx(total / first, rel=1e-6)


def test_kl_by_hand_and_with_zeros():
    q, p = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.25, 0.5]])
    assert categorical_kl(q.log(), p.log()).item() == pytest.approx(0.6931471805599453)
    assert categorical_kl(p.log(), p.log()).item() == 0.0


def test_closed_form_minimises_the_objective():
    reff, log_p, beta = 3 * double(4, 5), torch.log_softmax(double(4, 5, seed=1), -1), 0.37
    best = closed_form_posterior(log_p, reff, beta)
    value = objective(best, log_p, reff, beta)
    assert torch.allclose(value, -beta * torch.logsumexp(log_p - reff / beta, -1), rtol=1e-12)
    for seed in range(20):
        other = torch.log_softmax(best + 0.1 * (double(4, 5, seed=seed) - 0.5), -1)
        assert (objective(other, log_p, reff, beta) > value).all()


def test_teaching_is_least_at_the_target():
    target = torch.tensor([[0.0, 1.0, 0.0]])
    assert posterior_cross_entropy(target, torch.tensor([[-9.0, 0.0, -9.0]])).item() == 0.0
    assert posterior_cross_entropy(target, torch.tensor([[0.2, 0.5, 0.3]]).log()).item() == pytest.approx(0.6931472)
