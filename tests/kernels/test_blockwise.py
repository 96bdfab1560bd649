"""Attention a block of queries at a time: what it gives is attention by its definition, and little
that is hidden is computed.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from twcli.kernels import blockwise
from twcli.kernels.blockwise import BLOCK, STEP, Fork, cut, grouped, reads
from twcli.kernels.packing import BLOCKWISE, BRANCHES, Packed
from twcli.kernels.varlen import Varlen

A, D = 3, 8
CASES = {  # prompts, branches, row_B, length_G
    "one row": ((1, 300), (1, 9, 34), None, None),
    "long branches": ((2, 5), (2, 2, 210), None, None),
    "padded prompts": ((3, 70), (3, 4, 50), None, [70, 1, 33]),
    "shared prompts": ((2, 130), (4, 3, 20), [1, 0, 1, 1], [128, 130]),
    "an empty prompt": ((2, 6), (2, 3, 4), None, [0, 6]),
    "no prompt": ((2, 0), (2, 3, 4), None, None),
    "one branch": ((1, 64), (1, 1, 129), None, None),
}


def by_definition(fork, query, key, value, scale):
    """Each prompt causally, and each branch causally behind its prompt's real
    tokens, one after another.
    """
    (G, P), (B, C, Q) = fork.prompts, fork.branches
    lengths = [P] * G if fork.length_G is None else fork.length_G.tolist()

    def causal(queries, keys):
        scores = torch.einsum("qad,tad->aqt", query[queries], key[keys]) * scale
        hidden = torch.ones(len(queries), len(keys), dtype=torch.bool).triu(
            1 + len(keys) - len(queries)
        )
        return torch.einsum(
            "aqt,tad->qad", scores.masked_fill(hidden, -torch.inf).softmax(-1), value[keys]
        )

    found = [causal(prompt, prompt) for prompt in torch.arange(G * P).view(G, P)]
    for row, own in enumerate(torch.arange(G * P, G * P + B * C * Q).view(B, C, Q)):
        prompt = row if fork.row_B is None else int(fork.row_B[row])
        before = torch.arange(prompt * P, prompt * P + lengths[prompt])
        found += [causal(branch, torch.cat([before, branch])) for branch in own]
    return torch.cat(found)


def case(name):
    prompts, branches, row_B, length_G = CASES[name]
    as_tensor = [None if x is None else torch.tensor(x) for x in (row_B, length_G)]
    N = prompts[0] * prompts[1] + branches[0] * branches[1] * branches[2]
    torch.manual_seed(0)
    return Fork(prompts, branches, *as_tensor), [
        torch.randn(N, A, D, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_definition(name):
    fork, tensors = case(name)
    found, expected = fork.attend(*tensors, 0.4), by_definition(fork, *tensors, 0.4)
    assert torch.allclose(found, expected, atol=1e-12)
    gradient = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, tensors, gradient),
        torch.autograd.grad(expected, tensors, gradient),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_other_precisions(name, dtype, tolerance):
    fork, tensors = case(name)
    with torch.no_grad():
        found = fork.attend(*(x.to(dtype) for x in tensors), 0.4)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), by_definition(fork, *tensors, 0.4), atol=tolerance)


def test_blocks_are_all_queries_and_none_is_far_from_the_size():
    for tokens in range(1, 3000):
        blocks = cut(tokens)
        assert [i for block in blocks for i in range(block.start, block.stop)] == list(
            range(tokens)
        )
        assert all(0 < block.stop - block.start < BLOCK + 2 * STEP for block in blocks)


def test_every_branch_is_in_one_group():
    for branches in range(1, 20):
        for tokens in (1, 7, 50, 64, 65, 128, 129, 1000):
            assert sum(grouped(branches, tokens)) == branches
            assert max(grouped(branches, tokens)) * tokens <= max(blockwise.TOGETHER, tokens)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_called_as_it_is_told_and_computes_little_that_is_hidden(name, monkeypatch):
    fork, tensors = case(name)
    calls, kernel = [], blockwise.kernel
    monkeypatch.setattr(
        blockwise,
        "kernel",
        lambda q, k, *others: calls.append((q.shape[2], k.shape[2])) or kernel(q, k, *others),
    )
    fork.attend(*tensors, 0.4)
    (_, P), (_, C, Q) = fork.prompts, fork.branches
    of_prompt, of_groups = reads(P, C, Q)
    assert calls == of_prompt + [call for group in of_groups for call in group]
    hidden = sum(q * k for q, k in of_prompt) - P * (P + 1) / 2
    assert hidden <= P * (BLOCK + 2 * STEP) / 2
    hidden = sum(q * k for group in of_groups for q, k in group) - C * Q * (P + (Q + 1) / 2)
    assert hidden <= C * Q * blockwise.TOGETHER


def test_long_rows_that_are_read_without_a_gradient_attend_in_blocks(monkeypatch):
    torch.manual_seed(0)
    prompt_G, row_R, length_R = np.array([150, 3]), np.array([0, 1, 1]), np.array([90, 200, 5])
    groups = Varlen.of(prompt_G, row_R, length_R, torch.device("cpu")).attention
    query, key, value = tensors = [torch.randn(1, A, 448, D, dtype=torch.float64) for _ in range(3)]
    calls, kernel = [], blockwise.kernel
    monkeypatch.setattr(
        blockwise, "kernel", lambda q, *others: calls.append(q.shape[2]) or kernel(q, *others)
    )
    found = groups.attend(*tensors, 0.4)[0].transpose(0, 1)
    assert len(calls) > 4 and max(calls) < BLOCK + 2 * STEP
    for first, prompt, start, length in ((0, 150, 153, 90), (150, 3, 243, 200), (150, 3, 443, 5)):
        places = torch.cat(
            [torch.arange(first, first + prompt), torch.arange(start, start + length)]
        )
        alone = (x[0, :, places] for x in (query, key, value))
        expected = F.scaled_dot_product_attention(*alone, is_causal=True, scale=0.4)
        assert torch.allclose(found[:, places], expected, atol=1e-12)


def test_values_of_another_size_than_the_keys_attend_over_copies():
    """As in multi-head latent attention; the kernel wants one size."""
    torch.manual_seed(0)
    ids, lengths = torch.zeros(1, 5, dtype=torch.long), torch.tensor([5])
    query, key, value = (torch.randn(1, A, 5 + 2 * 4, size) for size in (8, 8, 6))
    outputs = [
        Packed(
            ids,
            lengths,
            torch.tensor([0]),
            torch.zeros(1, 2, 4, dtype=torch.long),
            torch.full((1, 2), 4),
            form,
        ).attend(query, key, value, 0.4)
        for form in (BRANCHES, BLOCKWISE)
    ]
    assert torch.equal(*outputs) and outputs[0].shape == (1, 13, A, 6)


def test_it_is_for_cpus():
    assert [blockwise.usable(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        True,
        False,
        False,
    ]
