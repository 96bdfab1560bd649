import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records, make_tokenizer
from twcli.config.train import TrainConfig
from twcli.data.batches import collate
from twcli.data.encoder import ExampleEncoder
from twcli.errors import UserError
from twcli.models.latents import LatentModel, jensen_shannon
from twcli.models.new_rows import add_latent_rows
from twcli.training.loss import categorical_kl, closed_form_posterior, objective
from twcli.training.objective import reconstruction, step_loss
from twcli.training.regularisers import (
    annealed_beta,
    balanced_posterior,
    hard_posterior,
    normalised,
)

K = 3


def options(**changes):
    return TrainConfig(model="M", data="D", baseline="B", latents=K, out="R", **changes)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(torch.randn(8, K, generator=generator), -1)
    return log_p, 2 * torch.rand(8, K, generator=generator)


@pytest.fixture
def model_and_batch():
    encoder = ExampleEncoder(make_tokenizer(), "tiny", 1)
    encoder.add_latents(K)
    backbone = make_model(hidden=16)
    add_latent_rows(backbone, encoder.latent_ids(K), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = LatentModel(backbone, encoder.latent_ids(K), "shared")
    torch.nn.init.normal_(model.head.outer.weight, std=0.5)
    batch = collate(np.arange(6), encode(encoder, make_records(2, 3)), encoder, None)
    weights = torch.rand(batch.active_BS.shape, generator=torch.Generator().manual_seed(1))
    return model, replace(batch, baseline_BS=weights * batch.active_BS)


# beta


@pytest.mark.parametrize(
    ("step", "warmup", "cycles", "share"),
    [
        (0, 0.0, 1, 1.0),
        (0, 0.5, 1, 1 / 50),
        (24, 0.5, 1, 0.5),
        (49, 0.5, 1, 1.0),
        (99, 0.5, 1, 1.0),
        (0, 0.5, 4, 2 / 25),
        (24, 0.5, 4, 1.0),
        (25, 0.5, 4, 2 / 25),
        (75, 0.5, 4, 2 / 25),
        (99, 0.5, 4, 1.0),
    ],
)
def test_beta_rises_in_each_cycle(step, warmup, cycles, share):
    assert annealed_beta(0.3, step, 100, warmup=warmup, cycles=cycles) == pytest.approx(0.3 * share)


@pytest.mark.parametrize(("steps", "cycles"), [(20, 6), (2000, 14), (7, 3), (1000, 15)])
def test_each_cycle_begins_at_the_first_step_in_it(steps, cycles):
    rises = [annealed_beta(1.0, step, steps, warmup=1.0, cycles=cycles) for step in range(steps)]
    falls = [step for step in range(1, steps) if rises[step] < rises[step - 1]]
    assert falls == [-(-steps * cycle // cycles) for cycle in range(1, cycles)]


def test_beta_is_never_zero():
    assert all(annealed_beta(0.1, step, 7, warmup=1.0, cycles=3) > 0 for step in range(7))


def test_cycles_without_a_rise_are_refused():
    with pytest.raises(UserError, match="give --beta-warmup"):
        options(beta_cycles=4)


# free bits


def test_free_bits_cost_nothing_and_pull_nowhere(drawn):
    log_p, reff = drawn
    logits = torch.randn(8, K, generator=torch.Generator().manual_seed(2), requires_grad=True)
    kl = categorical_kl(torch.log_softmax(logits, -1), log_p).detach()
    least = float(kl.median())
    objective(
        torch.log_softmax(logits, -1), log_p, torch.zeros_like(reff), 0.5, free_bits=least
    ).sum().backward()
    below = kl < least
    assert below.any() and not below.all()
    assert (logits.grad[below] == 0).all() and (logits.grad[~below].abs().sum(-1) > 0).all()
    free = objective(torch.log_softmax(logits, -1), log_p, reff, 0.5, free_bits=least)
    plain = objective(torch.log_softmax(logits, -1), log_p, reff, 0.5)
    assert torch.allclose(free - plain, 0.5 * (least - kl).clamp(min=0), atol=1e-6)


# posteriors


def test_hard_em_takes_the_best_latent(drawn):
    log_p, reff = drawn
    q = hard_posterior(log_p, reff.requires_grad_(), 0.1)
    assert not q.requires_grad and (q.sum(-1) == 1).all()
    value = (q * (reff - 0.1 * log_p)).sum(-1)
    assert (value <= (reff - 0.1 * log_p).min(-1).values + 1e-7).all()


def test_balanced_rows_and_columns(drawn):
    log_p, reff = drawn
    q = balanced_posterior(log_p, reff.requires_grad_(), 0.5)
    assert not q.requires_grad
    assert torch.allclose(q.sum(1), torch.ones(8), atol=1e-6)
    assert torch.allclose(q.sum(0), torch.full((K,), 8 / K), atol=1e-3)


def test_balancing_leaves_what_is_balanced():
    reff = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    log_p = torch.full((2, 2), math.log(0.5))
    assert torch.allclose(
        balanced_posterior(log_p, reff, 0.5),
        closed_form_posterior(log_p, reff, 0.5).exp(),
        atol=1e-6,
    )


def test_balancing_spreads_a_collapsed_posterior():
    """One latent is a little better for all: the closed form gives it nearly
    everything, the balanced one half.
    """
    reff = torch.tensor([[0.0, 1.0], [0.0, 1.1], [0.0, 1.2], [0.0, 1.3]])
    log_p = torch.full((4, 2), math.log(0.5))
    assert closed_form_posterior(log_p, reff, 0.1).exp()[:, 0].mean() > 0.99
    assert balanced_posterior(log_p, reff, 0.1)[:, 0].mean() == pytest.approx(0.5, abs=1e-3)


# normalisation


def test_normalised_by_the_mean_b_t():
    active = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    weights = torch.tensor([[1.0, 3.0, 9.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    reff = torch.tensor([[4.0, 8.0], [4.0, 8.0], [4.0, 8.0]])
    assert normalised(reff, active, weights, tau=1e-4).tolist() == [
        [2.0, 4.0],
        [4.0, 8.0],
        [8.0, 16.0],
    ]


def test_normalise_divides_the_reconstruction_of_a_step(model_and_batch):
    model, batch = model_and_batch
    output = model(batch)
    plain, divided = (
        reconstruction(output.nll_BCS, batch.active_BS, batch.baseline_BS, options(normalise=n))
        for n in (False, True)
    )
    mean = batch.baseline_BS.sum(1) / batch.active_BS.sum(1)
    assert torch.allclose(divided * mean[:, None], plain, rtol=1e-5)


# divergence


def test_jensen_shannon_between_its_bounds():
    same = torch.log_softmax(torch.randn(4, 1, 10), -1).expand(4, K, 10)
    apart = torch.eye(K, 10).log()[None]
    assert jensen_shannon(same).abs().max() < 1e-6
    assert float(jensen_shannon(apart)) == pytest.approx(math.log(K))


def test_the_divergence_is_that_of_the_branches_logits(model_and_batch):
    """Against a plain forward pass of each branch, spelled out."""
    model, batch = model_and_batch
    output = model(batch, with_divergence=True)
    with torch.no_grad():
        everything = torch.arange(K).expand(len(batch.rows_B), -1)
        ids_BKL = model._spelled_out(batch, everything)
        logits = model.backbone(input_ids=ids_BKL.flatten(0, 1)).logits.unflatten(0, (-1, K))
    for row in range(len(batch.rows_B)):
        count, first = int(batch.active_BS[row].sum()), int(batch.latent_first_B[row])
        log_p = torch.log_softmax(logits[row, :, first : first + count], -1).transpose(0, 1)
        assert torch.allclose(output.divergence_BS[row, :count], jensen_shannon(log_p), atol=1e-5)
    assert (output.divergence_BS[~batch.active_BS] == 0).all() and output.divergence_BS.max() > 0


def test_divergence_is_rewarded(model_and_batch):
    model, batch = model_and_batch
    output = model(batch, with_divergence=True)
    with_it, parts = step_loss(output, batch, options(divergence=2.0), None)
    without, _ = step_loss(replace(output, divergence_BS=None), batch, options(), None)
    mean = (output.divergence_BS * batch.baseline_BS).double().sum(1) / batch.baseline_BS.sum(1)
    assert torch.allclose(without - with_it, 2.0 * mean, atol=1e-5)
    assert parts["divergence"] == pytest.approx(mean.mean().item(), rel=1e-5)


def test_divergence_and_chunks_exclude_each_other():
    with pytest.raises(UserError, match="--latent-chunk"):
        options(divergence=1.0, latent_chunk=1)


# steps


@pytest.mark.parametrize("update", ["hard", "balanced"])
def test_the_posterior_is_taught_the_update(model_and_batch, update):
    """At the optimum of the cross-entropy the head would give the target: its
    gradient is softmax minus target.
    """
    model, batch = model_and_batch
    output = model(batch)
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(3), requires_grad=True)
    output = replace(output, log_posterior_BK=torch.log_softmax(logits, -1))
    loss, _ = step_loss(output, batch, options(posterior_update=update), None)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    reff = reconstruction(output.nll_BCS, batch.active_BS, batch.baseline_BS, options())
    target = {"hard": hard_posterior, "balanced": balanced_posterior}[update](
        output.log_router_BK, reff, 0.1
    )
    assert torch.allclose(gradient.double(), torch.softmax(logits, -1) - target, atol=1e-5)


def test_the_options_are_off_by_default(model_and_batch):
    """The loss with every option at its default is the objective and nothing else."""
    model, batch = model_and_batch
    output = model(batch)
    reff = reconstruction(output.nll_BCS, batch.active_BS, batch.baseline_BS, options())
    assert torch.equal(
        step_loss(output, batch, options(), None)[0],
        objective(output.log_posterior_BK, output.log_router_BK, reff, 0.1),
    )
    assert options().free_only is None and options(free_bits=0.1).free_only == "--free-bits"
