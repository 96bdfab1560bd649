"""Figures of b_t and z by hand, against autograd, and the three conditions."""

import math

import pytest
import torch

from twcli.training import diagnostics
from twcli.training.diagnostics import (
    conditions,
    gradient_norms,
    posterior_gradient,
    row_figures,
    summarise_rows,
)
from twcli.training.loss import masked_token_nll_per_example

UNIFORM = torch.full((2, 2), 0.5).log()


def figures_by_hand(weights):
    nll = torch.tensor([[[1.0, 4.0, 2.0], [3.0, 4.0, 9.0]], [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]])
    active = torch.tensor([[True, True, False], [True, True, True]])
    return row_figures(nll, active, weights, UNIFORM, tau=1e-4)


def test_figures_by_hand():
    figures = figures_by_hand(torch.tensor([[3.0, 1.0, 50.0], [0.0, 0.0, 0.0]]))
    assert figures["informative"][0].item() == pytest.approx(16 / (2 * 10))
    assert figures["informative_tokens"][0].item() == pytest.approx(16 / 10)
    assert figures["informative"][1].isnan()  # no mass
    assert figures["uniform_rows"].tolist() == [0.0, 1.0]
    # spread 1 and 0 over the tokens
    assert figures["z_sensitivity"].tolist() == pytest.approx([0.5, 0.0])
    assert figures["z_sensitivity_weighted"].tolist() == pytest.approx([0.75, 0.0])
    assert figures["z_sensitivity_sum"].tolist() == pytest.approx([1.0, 0.0])
    summary = summarise_rows(figures)
    assert tuple(summary) == diagnostics.SUMMARY
    assert summary["informative"] == pytest.approx(0.8) and summary[
        "expected_amplification"
    ] == pytest.approx(1.25)
    assert summary["uniform_rows"] == 0.5 and summary["z_sensitivity"] == 0.25
    assert summary["amplification"] == pytest.approx(1.5)  # R differs by 1, Rw by 1.5


def test_without_b_t_its_figures_are_none():
    summary = summarise_rows(figures_by_hand(None))
    assert [name for name, value in summary.items() if value is not None] == [
        "z_sensitivity",
        "z_sensitivity_sum",
    ]


def test_without_mass_or_gradient_there_is_nothing_to_divide_by():
    summary = summarise_rows(
        row_figures(
            torch.ones(1, 2, 3),
            torch.ones(1, 3, dtype=torch.bool),
            torch.zeros(1, 3),
            UNIFORM[:1],
            1e-4,
        )
    )
    assert (
        summary["informative"]
        is summary["amplification"]
        is summary["expected_amplification"]
        is None
    )
    assert summary["uniform_rows"] == 1.0 and summary["z_sensitivity"] == 0.0


def test_posterior_gradient_is_autograds():
    logits = torch.randn(
        5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    reff = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_q = logits.log_softmax(-1)
    (log_q.exp() * reff).sum().backward()
    assert torch.allclose(posterior_gradient(log_q.detach(), reff), logits.grad, rtol=1e-12)


@pytest.mark.parametrize(("first", "total"), [(1, 2), (2, 24), (3, 300)])
def test_amplification_is_T_over_t0_in_the_two_regime_construction(first, total):
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(3, 4, total, dtype=torch.float64, generator=generator)
    nll[..., first:] = nll[:, :1, first:]
    weights = torch.zeros(3, total, dtype=torch.float64)
    weights[:, :first] = 0.7
    log_q = torch.randn(3, 4, dtype=torch.float64, generator=generator).log_softmax(-1)
    active = torch.ones(3, total, dtype=torch.bool)
    summary = summarise_rows(row_figures(nll, active, weights, log_q, 1e-4))
    assert summary["amplification"] == pytest.approx(total / first, rel=1e-6)
    assert summary["expected_amplification"] == pytest.approx(total / first, rel=1e-6)
    spread = nll.std(1, correction=0)
    assert summary["z_sensitivity_weighted"] == pytest.approx(
        masked_token_nll_per_example(spread[:, :first], active[:, :first]).mean().item()
    )


def test_gradient_norms_by_hand():
    head, table = torch.nn.Linear(2, 1), torch.nn.Embedding(5, 2)
    head.weight.grad, head.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    table.weight.grad = torch.tensor([[9.0, 9.0]] * 3 + [[1.0, 2.0], [2.0, 4.0]])
    norms = gradient_norms([p.grad for p in head.parameters()], table.weight.grad[[3, 4]])
    assert norms == {
        "posterior_gradient_norm": pytest.approx(5.0),
        "latent_gradient_norm": pytest.approx(5.0),
    }
    assert gradient_norms([], table.weight.grad[3])["posterior_gradient_norm"] is None


FINE = {
    "z_sensitivity_sum": 1.4,
    "informative": 0.1,
    "informative_tokens": 2.4,
    "uniform_rows": 0.0,
    "mutual_information": 1.2,
    "usage": 3.9,
}


@pytest.mark.parametrize(
    ("change", "weighted", "found"),
    [
        ({}, True, []),
        ({"z_sensitivity_sum": 0.13}, True, ["no z-sensitivity"]),  # a tenth of log 4
        ({"z_sensitivity_sum": 0.14}, True, []),
        ({"z_sensitivity_sum": 0.01}, False, ["no z-sensitivity"]),
        ({"uniform_rows": 0.7}, True, ["degenerate weights"]),
        ({"informative": 0.95}, True, ["degenerate weights"]),
        ({"informative": 0.95, "uniform_rows": 0.7}, False, []),
        (
            {"informative": None, "informative_tokens": None, "uniform_rows": 1.0},
            True,
            ["degenerate weights"],
        ),
        # one token decides, and z has learned it: nothing failed
        ({"informative_tokens": 1.1}, True, []),
        ({"informative_tokens": 1.1, "mutual_information": 0.1}, True, ["single-token bottleneck"]),
    ],
)
def test_conditions(change, weighted, found):
    metrics = FINE | change
    assert conditions(metrics, 4, weighted) == found
    for name in found:
        line = diagnostics.advice(name, metrics, 4)
        assert line.startswith(f"{name}: ") and "--" in line and "\n" not in line


def test_a_condition_is_reported_once_when_it_has_held_for_a_tenth_of_the_run():
    watch = diagnostics.Watch(steps=200, latents=4, weighted=True)
    bad = FINE | {"z_sensitivity_sum": 0.0}
    said = [watch.see(bad if step < 19 else FINE) for step in range(20)]
    assert not any(said)  # broken off one step before the window is full
    said = [watch.see(bad) for _ in range(60)]
    assert [len(lines) for lines in said].index(1) == 19 and sum(map(len, said)) == 1
    assert len(watch.standing()) == 1
    watch.see(FINE)
    assert watch.standing() == []


def test_a_condition_is_not_reported_twice_within_a_window():
    watch = diagnostics.Watch(steps=6, latents=4, weighted=True)
    bad = FINE | {"z_sensitivity_sum": 0.0}
    assert sum(len(watch.see(bad)) for _ in range(6)) == 1
    assert watch.standing(again=False) == [] and len(watch.standing()) == 1
    for _ in range(5):
        watch.see(bad)
    assert len(watch.standing(again=False)) == 1  # long after it was said


def test_information_is_pooled_over_batches_of_one_strategy_each():
    batches = [
        {"records": n, "posterior_mass": [float(n == 10), float(n == 30)], "posterior_entropy": 0.0}
        for n in (10, 30)
    ]
    information, usage = diagnostics.pooled_information(batches)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert information == pytest.approx(expected) and usage == pytest.approx(math.exp(expected))
    assert diagnostics.pooled_information(batches[:1])[0] == 0.0
    bottleneck = FINE | {"informative_tokens": 1.1, "mutual_information": 0.0}
    watch = diagnostics.Watch(steps=50, latents=2, weighted=True)
    for step in range(60):
        watch.see(bottleneck | batches[step % 2])
    assert watch.standing() == []  # each batch alone would be one


def test_the_window_is_never_shorter_or_longer_than_its_bounds():
    assert [diagnostics.Watch(steps, 4, True).window for steps in (3, 100, 10_000)] == [5, 10, 50]


def test_limits_are_what_the_lines_say():
    line = diagnostics.advice("single-token bottleneck", FINE, 4)
    assert "2.4 tokens" in line and f"{math.log(4):.2f}" in line
