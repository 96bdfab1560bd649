"""`examples/muon.py` against `torch.optim.Muon`, which computes in bfloat16, and against the
singular values it promises.
"""

import copy

import torch
from torch import nn

from examples.muon import Muon, orthogonal


def test_steps_are_those_of_torch():
    torch.manual_seed(0)
    ours = nn.Sequential(
        nn.Linear(16, 16, bias=False), nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
    )
    theirs, before, inputs = copy.deepcopy(ours), copy.deepcopy(ours), torch.randn(64, 16)
    optimizers = [
        Muon(ours.parameters(), 0.02, weight_decay=0.1),
        torch.optim.Muon(theirs.parameters(), 0.02, weight_decay=0.1),
    ]
    for step in range(20):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            (model(inputs) - inputs.roll(step, 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for own, other, start in zip(
        ours.parameters(), theirs.parameters(), before.parameters(), strict=True
    ):
        assert (own - other).norm() < 0.02 * (own - start).norm()


def test_orthogonal_keeps_singular_vectors_and_levels_singular_values():
    torch.manual_seed(0)
    for rows, columns in ((8, 8), (8, 24), (24, 8)):
        found = orthogonal(torch.randn(3, rows, columns))
        values = torch.linalg.svdvals(found)
        assert found.shape == (3, rows, columns)
        assert 0.6 < values.min() and values.max() < 1.3
    u, _, vh = torch.linalg.svd(torch.randn(1, 8, 8))
    turned = u.mT @ orthogonal(u @ torch.diag(torch.linspace(1, 2, 8)) @ vh) @ vh.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 0.02


def test_each_matrix_is_stepped_as_if_it_were_alone():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    apart = copy.deepcopy(together)
    optimizers = [
        Muon(together, 0.1, weight_decay=0.0),
        *(Muon([matrix], 0.1, weight_decay=0.0) for matrix in apart),
    ]
    for step in range(3):
        for number, (one, other) in enumerate(zip(together, apart, strict=True)):
            one.grad = other.grad = torch.randn(6, 4) * 10.0 ** (number + step)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_of_nothing_moves_nothing():
    matrix = nn.Parameter(torch.ones(4, 4))
    matrix.grad = torch.zeros(4, 4)
    Muon([matrix], 0.1, weight_decay=0.0).step()
    assert torch.equal(matrix, torch.ones(4, 4))
