"""The note's claims, exact on constructed inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twcli.training.loss import (
    categorical_kl,
    closed_form_posterior,
    entropy,
    held_objective,
    masked_token_nll_per_example,
    objective,
    posterior_cross_entropy,
    reconstruction,
    responsibilities,
    scalar_baseline_nll_per_example,
    token_baseline_nll_per_example,
)

SUBTRACTIONS = {
    "scalar-baseline": scalar_baseline_nll_per_example,
    "token-baseline": token_baseline_nll_per_example,
}


def double(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_weighted_average_by_hand():
    loss = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 100.0]])
    active = torch.tensor([[True, True, True], [True, True, False]])
    weights = torch.tensor([[0.0, 1.0, 3.0], [1.0, 1.0, 50.0]])
    assert masked_token_nll_per_example(loss, active).tolist() == pytest.approx([7 / 3, 4.0])
    assert masked_token_nll_per_example(loss, active, weights).tolist() == pytest.approx(
        [14 / 4, 4.0]
    )


def gradient_of(loss, active, weights):
    leaf = loss.clone().requires_grad_()
    masked_token_nll_per_example(leaf, active, weights).sum().backward()
    return leaf.grad


def test_at_or_below_tau_the_loss_is_the_uniform_one_bit_for_bit():
    loss, active = torch.rand(5, 9), torch.rand(5, 9) > 0.3
    uniform = masked_token_nll_per_example(loss, active)
    for mass in (0.0, 1e-5 / 9, 1e-4 / 9 / 2):
        assert torch.equal(
            masked_token_nll_per_example(loss, active, torch.full((5, 9), mass)), uniform
        )
    assert torch.equal(
        gradient_of(loss, active, torch.full((5, 9), 1e-6)), gradient_of(loss, active, None)
    )
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
    assert (
        masked_token_nll_per_example(torch.ones(1, 2), active, torch.tensor([[1.0, bad]])).item()
        == 1.0
    )


def test_bf16_is_accumulated_in_float32():
    loss = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    result = masked_token_nll_per_example(
        loss, torch.ones(1, 4096, dtype=torch.bool), torch.ones(1, 4096, dtype=torch.bfloat16)
    )
    assert result.dtype == torch.float32 and result.item() == 1.0


def test_a_long_bf16_row_is_weighted_in_float32():
    # bf16 cannot count beyond 256: a sum kept in it would stop there.
    loss = torch.full((1, 4096), 0.5, dtype=torch.bfloat16)
    loss[0, ::2] = 1.5
    weights = torch.full((1, 4096), 0.25, dtype=torch.bfloat16)
    weights[0, ::2] = 0.75
    result = masked_token_nll_per_example(loss, torch.ones(1, 4096, dtype=torch.bool), weights)
    assert result.item() == (0.5 * 0.25 + 1.5 * 0.75) / 1.0


@st.composite
def cases(draw):
    """(loss, active, weights): random shapes, masks with rows wholly masked, weights from 0
    to 1e6, float32 and bf16.
    """
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    loss = (draw(st.sampled_from([1.0, 30.0])) * torch.rand(shape, generator=generator)).to(
        draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )
    active = torch.rand(shape, generator=generator) < draw(st.floats(0, 1))
    active &= torch.rand(shape[:-1], generator=generator)[..., None] < draw(
        st.sampled_from([0.5, 1.0])
    )
    scale = draw(st.sampled_from([0.0, 1e-6, 1e-4, 1.0, 1e6]))
    weights = (
        scale
        * torch.rand(shape, generator=generator)
        * (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 1.0])))
    )
    return loss, active, weights.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@settings(deadline=None, max_examples=100)
@given(case=cases())
def test_every_row_follows_the_definition(case):
    loss, active, weights = case
    result = masked_token_nll_per_example(loss, active, weights)
    assert result.dtype == torch.float32 and result.shape == loss.shape[:-1]
    for index in torch.cartesian_prod(*(torch.arange(n) for n in result.shape)).tolist():
        keep = active[tuple(index)]
        nll, w = loss[tuple(index)][keep].double(), weights[tuple(index)][keep].double()
        mass = w.float().sum()  # the comparison with tau is made in float32
        expected = (
            (w * nll).sum() / w.sum()
            if mass > 1e-4
            else nll.mean()
            if len(nll)
            else torch.tensor(0.0)
        )
        if abs(mass - 1e-4) > 1e-9:
            assert result[tuple(index)].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(case=cases(), factor=st.floats(0.5, 8))
def test_scale_of_the_weights_and_masked_tokens_do_not_matter(case, factor):
    loss, active, weights = case
    weights = weights + 1e-6  # well above the eps in the denominator, which has a scale
    result = masked_token_nll_per_example(loss, active, weights, tau=0.0)
    scaled = masked_token_nll_per_example(loss, active, weights.float() * factor, tau=0.0)
    assert torch.allclose(result, scaled, rtol=1e-4, atol=1e-6)
    noise = torch.where(active, loss, torch.tensor(float("nan"), dtype=loss.dtype))
    assert torch.equal(
        masked_token_nll_per_example(noise, active, torch.where(active, weights, -1.0), tau=0.0),
        result,
    )


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_gradients_are_finite_zero_where_masked_and_absent_in_the_weights(case):
    loss, active, weights = case
    leaf, held = loss.float().requires_grad_(), weights.clone().requires_grad_()
    masked_token_nll_per_example(leaf, active, held).sum().backward()
    assert held.grad is None or not held.grad.any()
    assert torch.isfinite(leaf.grad).all() and not leaf.grad[~active].any()
    some = active.any(-1)
    # an average moves as its terms do
    assert torch.allclose(leaf.grad.sum(-1)[some], torch.ones(int(some.sum())), atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_result_is_a_mean_of_active_losses(case):
    loss, active, weights = case
    shape = loss.shape
    result = masked_token_nll_per_example(loss, active, weights)
    assert result.shape == shape[:-1] and torch.isfinite(result).all()
    low = loss.float().masked_fill(~active, 99.0).amin(-1) * (1 - 1e-5)
    high = loss.float().masked_fill(~active, -99.0).amax(-1) * (1 + 1e-5)
    some = active.any(-1)
    assert ((result >= low) & (result <= high))[some].all()
    assert (result[~some] == 0).all()


@pytest.mark.parametrize("tokens", [8, 500])
@pytest.mark.parametrize("level", [0.0, 9.0, 1e4])
def test_the_posterior_learns_small_differences_of_large_losses(tokens, level):
    """In float32 R of 30 nats holds six digits, and so would the gradient of latents
    that differ by a hundredth.
    """
    generator = torch.Generator().manual_seed(tokens)
    nll = 3 * level + 0.01 * torch.rand(5, 8, tokens, generator=generator)
    weights, logits = (
        torch.rand(5, tokens, generator=generator),
        torch.randn(5, 8, generator=generator),
    )
    active = torch.ones(5, tokens, dtype=torch.bool)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        reff = reconstruction(
            nll.to(dtype), active, weights.to(dtype), uniform_weight=1.0, token_weight=2.0, tau=1e-4
        )
        objective(
            torch.log_softmax(leaf, -1), torch.full((5, 8), 1 / 8, dtype=dtype).log(), reff, 0.0
        ).sum().backward()
        found.append(leaf.grad.double())
    assert (found[0] - found[1]).norm() <= 1e-6 * found[1].norm()


@pytest.mark.parametrize("common", [0.0, 5.0, -1e3])
def test_what_latents_have_in_common_is_in_the_objective_and_not_in_the_posteriors_gradient(common):
    generator = torch.Generator().manual_seed(0)
    log_p, logits = (
        torch.randn(3, 4, generator=generator).double().log_softmax(-1),
        torch.randn(3, 4, generator=generator).double(),
    )
    reff = torch.rand(3, 4, generator=generator).double().requires_grad_()
    logits.requires_grad_()
    log_q = logits.log_softmax(-1)
    value = objective(log_q, log_p, reff + common, 0.3)
    assert torch.allclose(value, (log_q.exp() * (reff + common + 0.3 * (log_q - log_p))).sum(-1))
    of_logits, of_reff = torch.autograd.grad(value.sum(), (logits, reff))
    expected = log_q.exp() * (reff + 0.3 * (log_q - log_p))
    assert torch.allclose(
        of_logits, expected - log_q.exp() * expected.sum(-1, keepdim=True)
    ) and torch.allclose(of_reff, log_q.exp())


def posterior_gradient(
    nll_BKS, active_BS, weights_BS, logits_BK, *, uniform_weight, token_weight, ablation="none"
):
    """Gradient of sum_z q(z) R(z) with respect to the posterior's logits."""
    logits = logits_BK.clone().requires_grad_()
    reff = reconstruction(
        nll_BKS,
        active_BS,
        weights_BS,
        uniform_weight=uniform_weight,
        token_weight=token_weight,
        tau=1e-4,
        ablation=ablation,
    )
    log_q = torch.log_softmax(logits, -1)
    (log_q.exp() * reff).sum().backward()
    return logits.grad


@pytest.mark.parametrize("ablation", list(SUBTRACTIONS))
def test_subtraction_changes_no_gradient_of_posterior_logits_or_latent_embeddings(ablation):
    """l_t(z) = f_t(z's embedding), of the note's shape, so that the gradients of the
    embeddings are real ones.
    """
    active, weights, logits = double(3, 7, seed=1) > 0.2, double(3, 7, seed=4), double(3, 4, seed=2)
    readout = double(3, 7, 6, seed=5) - 0.5
    gradients = []
    for kind in ("none", ablation):
        embeddings, q_logits = (
            double(4, 6, seed=3).requires_grad_(),
            logits.clone().requires_grad_(),
        )
        nll = torch.nn.functional.softplus(torch.einsum("kd,bsd->bks", embeddings, readout))
        factors = (1.0, 0.0) if kind == "none" else (0.0, 1.0)
        reff = reconstruction(
            nll,
            active,
            weights,
            uniform_weight=factors[0],
            token_weight=factors[1],
            tau=1e-4,
            ablation=kind,
        )
        log_q = torch.log_softmax(q_logits, -1)
        objective(log_q, torch.log_softmax(double(3, 4, seed=6), -1), reff, 0.1).sum().backward()
        gradients.append((embeddings.grad, q_logits.grad))
    for plain, subtracted in zip(*gradients, strict=True):
        assert plain.norm() > 1e-3
        assert (subtracted - plain).norm() <= 1e-12 * plain.norm()


def test_subtraction_by_hand():
    loss, active = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[True, True, False]])
    baseline = torch.tensor([[0.5, 1.5, 9.0]], requires_grad=True)
    for subtract in SUBTRACTIONS.values():
        result = subtract(loss.requires_grad_(), active, baseline)
        assert result.item() == pytest.approx(0.5)
        result.sum().backward()
    assert baseline.grad is None


def test_a_weighted_term_without_weights_is_an_error_never_the_uniform_loss():
    with pytest.raises(ValueError, match="needs weights"):
        reconstruction(
            torch.ones(1, 2, 3),
            torch.ones(1, 3, dtype=torch.bool),
            None,
            uniform_weight=1.0,
            token_weight=1.0,
            tau=1e-4,
        )


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
    weighted = posterior_gradient(
        nll, active, weights, logits, uniform_weight=0.0, token_weight=1.0
    )
    assert (weighted.norm() / uniform.norm()).item() == pytest.approx(total / first, rel=1e-6)
    for ablation in SUBTRACTIONS:
        subtracted = posterior_gradient(
            nll, active, weights, logits, uniform_weight=0.0, token_weight=1.0, ablation=ablation
        )
        assert (subtracted.norm() / uniform.norm()).item() == pytest.approx(1.0, rel=1e-9)


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


def test_teaching_is_least_at_the_held_latent():
    held = torch.tensor([1])
    assert posterior_cross_entropy(torch.tensor([[-9.0, 0.0, -9.0]]), held).item() == 0.0
    assert posterior_cross_entropy(
        torch.tensor([[0.2, 0.5, 0.3]]).log(), held
    ).item() == pytest.approx(0.6931472)


def test_the_held_objective_is_the_whole_one_at_a_one_hot_q():
    log_p, reff, held = (
        torch.log_softmax(double(3, 4), -1),
        double(3, 4, seed=1),
        torch.tensor([2, 0, 3]),
    )
    whole = objective(torch.eye(4, dtype=torch.float64)[held].log(), log_p, reff, 0.3)
    assert torch.allclose(held_objective(reff[torch.arange(3), held], log_p, held, 0.3), whole)


def test_repeated_rows_leave_the_router_at_the_latents_own_shares():
    # Shares 3/4 and 1/4; the rare latent is taken three times as often.
    latents = torch.tensor([0, 0, 0, 1, 1, 1])
    once = torch.tensor([1.0, 1.0, 1.0, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64) * 1.5
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, -1).expand(6, 2)
    held_objective(torch.zeros(6, dtype=torch.float64), log_p, latents, once).mean().backward()
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert torch.allclose(logits.grad, torch.softmax(logits.detach(), -1) - shares)


def test_entropy_is_in_nats_and_takes_zeros():
    found = entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25]]))
    assert found.tolist() == pytest.approx([0.6931472, 0.0, 1.0397208])


def test_kl_below_the_free_bits_costs_no_more_than_they_do():
    log_p = torch.log_softmax(torch.zeros(2, 3), -1)
    log_q = torch.log_softmax(torch.tensor([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0]]), -1)
    reff, kl = torch.zeros(2, 3), categorical_kl(log_q, log_p)
    assert kl[0] < 0.5 < kl[1]
    assert torch.allclose(
        objective(log_q, log_p, reff, 2.0, free_bits=0.5),
        2.0 * torch.stack([torch.tensor(0.5), kl[1]]),
    )
    assert torch.allclose(objective(log_q, log_p, reff, 2.0), 2.0 * kl)


def test_responsibilities_and_marginal_nll_by_hand():
    likelihood, prior = torch.tensor([[0.1, 0.3]]), torch.tensor([[0.25, 0.75]])
    # two tokens of the same probability
    nll = -(likelihood.double().sqrt().log())[..., None].expand(-1, -1, 2)
    q, marginal = responsibilities(nll, prior.log())
    assert q.tolist() == [pytest.approx([0.25, 0.75])]  # whatever the router says
    assert marginal.tolist() == pytest.approx([-math.log(0.25 * 0.1 + 0.75 * 0.3)])
