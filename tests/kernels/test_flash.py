"""Attention in the flash kernels: what is put into them and made of what comes out, with
kernels written out in float64.
"""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from tests.conftest import encode, in_double, make_model, make_records, make_tokenizer
from tests.kernels.test_packing import SIZES, batch_of, build, everything, model_of
from twcli.data.batches import drop_history
from twcli.data.encoder import ExampleEncoder
from twcli.kernels import flash, packing
from twcli.kernels.costs import cheapest
from twcli.kernels.flash import Pieces
from twcli.kernels.packing import BRANCHES, KERNELS, PLAIN
from twcli.models import baseline


def sequences(ends_query, ends_key):
    bounds = (
        zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True) for ends in (ends_query, ends_key)
    )
    return [(slice(*query), slice(*key)) for query, key in zip(*bounds, strict=True)]


def scores(query, key, causal, scale):
    """(A, Q, T), -inf where the queries, which are the last tokens, do not look."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    found = torch.einsum("qad,tad->aqt", query, key) * scale
    return (
        found.masked_fill(torch.ones_like(found, dtype=torch.bool).triu(1), -torch.inf)
        if causal
        else found
    )


def kernel(query, key, value, ends_query, ends_key, longest_query, longest_key, causal, scale):
    """By definition; a token that sees nothing gets zeros and, as the kernels
    have it, an infinite sum.
    """
    output, sums = torch.zeros_like(query), query.new_full((query.shape[1], len(query)), torch.inf)
    for q, k in sequences(ends_query, ends_key):
        assert q.stop - q.start <= longest_query and k.stop - k.start <= longest_key
        if k.stop > k.start:
            found, groups = scores(query[q], key[k], causal, scale), query.shape[1] // key.shape[1]
            output[q] = torch.einsum(
                "aqt,tad->qad", found.softmax(-1), value[k].repeat_interleave(groups, dim=1)
            )
            sums[:, q] = found.logsumexp(-1)
    return output, sums


def kernel_backward(
    gradient,
    query,
    key,
    value,
    output,
    sums,
    ends_query,
    ends_key,
    _longest_query,
    _longest_key,
    causal,
    scale,
):
    """From the sums that it is given, which may be of more keys than these
    (FlashAttention-2, algorithm 2).
    """
    gradients = [torch.zeros_like(x) for x in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    for q, k in sequences(ends_query, ends_key):
        share = (scores(query[q], key[k], causal, scale) - sums[:, q, None]).exp()
        of_share = torch.einsum(
            "qad,tad->aqt", gradient[q], value[k].repeat_interleave(groups, dim=1)
        )
        of_score = share * (of_share - (gradient[q] * output[q]).sum(-1).T[..., None]) * scale
        gradients[0][q] = torch.einsum(
            "aqt,tad->qad", of_score, key[k].repeat_interleave(groups, dim=1)
        )
        for place, (weights, x) in enumerate([(of_score, query[q]), (share, gradient[q])], start=1):
            gradients[place][k] = (
                torch.einsum("aqt,qad->tad", weights, x).unflatten(1, (-1, groups)).sum(2)
            )
    return gradients


@pytest.fixture
def kernels(monkeypatch):
    """As on a GPU; counts the calls."""
    calls = []
    monkeypatch.setattr(flash, "usable", lambda _model: True)
    monkeypatch.setattr(flash, "kernel", lambda *args: calls.append(len(args[0])) or kernel(*args))
    monkeypatch.setattr(flash, "kernel_backward", kernel_backward)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("rows", [(0, 1, 2, 5, 6), (6, 0, 4, 2), (8, 6, 1, 7, 0), (5,), (3, 2)])
@pytest.mark.parametrize(
    ("posterior", "dynamic", "tokens", "one", "read"),
    [
        ("shared", False, 1, False, True),
        ("shared", True, 2, False, True),
        ("separate", True, 1, False, True),
        ("exact", True, 1, False, True),
        ("shared", False, 1, True, True),
        ("shared", False, 2, True, False),
    ],
)
def test_kernels_give_the_loss_and_gradient_of_plain_passes(
    kernels, rows, posterior, dynamic, tokens, one, read
):
    # two heads share keys and values
    model, encoder = build(in_double(model_of(LlamaConfig(**SIZES))), posterior, tokens, dynamic)
    model.double()
    batch = drop_history(batch_of(encoder, rows), 0.3, np.random.default_rng(0), encoder.pad)
    latent_B = torch.arange(len(rows)) % 3 if one else None
    expected, gradients = everything(model, batch, latent_B, read)
    assert not kernels
    model.execution = BRANCHES
    found, others = everything(model, batch, latent_B, read)
    assert kernels
    for name in ("nll_BCS", "log_router_BK", "log_posterior_BK", "baseline_BS"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-9), name
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-8, atol=1e-9), name


def test_kernels_read_no_padding_and_no_prompt_twice(kernels):
    model, encoder = build(make_model())
    batch = batch_of(encoder, range(12), completions=4)
    model.execution = packing.AUTO
    model(batch)
    real = (
        batch.plain_first_B[batch.leader_G].sum()
        + (4 * batch.active_BS.sum(1) + 3 * model.section + 1).sum()
    )
    layers = model.backbone.config.num_hidden_layers
    assert kernels == [real, real - batch.plain_first_B[batch.leader_G].sum()] * layers


def test_auto_is_the_kernels_but_beyond_a_window(kernels):
    llama = model_of(LlamaConfig(**SIZES, sliding_window=None))
    assert cheapest(llama, (4, 16), (4, 1, 48), 256) == KERNELS
    mistral = model_of(LlamaConfig(**SIZES))
    mistral.config.sliding_window, mistral.config.layer_types = 32, ["sliding_attention"] * 2
    assert cheapest(mistral, (4, 16), (4, 1, 48), 256) == PLAIN


@pytest.mark.parametrize("completions", [1, 3])
def test_rows_read_with_the_kernels_have_the_nll_of_rows_read_alone(kernels, completions):
    encoder = ExampleEncoder(make_tokenizer(), "tiny", 1)
    encoded = encode(encoder, make_records(12, completions))
    model = model_of(LlamaConfig(**SIZES)).double()
    rows = np.arange(len(encoded))
    alone = baseline.score_flat(model, encoder, encoded, rows, batch_tokens=1)
    assert not kernels
    assert np.allclose(
        baseline.score_flat(model, encoder, encoded, rows, batch_tokens=300, varlen=True),
        alone,
        atol=1e-5,
    )
    assert kernels
    shuffled = np.random.default_rng(0).permutation(rows)  # rows of a prompt do not stand together
    with packing.attention_of(model, packing.ATTENTION):
        found = baseline._score(model, encoder, encoded, shuffled, varlen=True)
    starts = encoded.target_offsets
    assert np.allclose(
        found, np.concatenate([alone[starts[row] : starts[row + 1]] for row in shuffled]), atol=1e-5
    )


@pytest.mark.slow
def test_a_prompt_without_tokens_and_one_that_nothing_follows(kernels):
    """The kernels' answer for an empty prompt is no number, and must not reach what follows it."""
    torch.manual_seed(0)
    prompt_G, piece_S, behind_G = (
        torch.tensor([0, 3, 2]),
        torch.tensor([2, 4]),
        torch.tensor([2, 4, 0]),
    )
    pieces = Pieces.of(
        prompt_G,
        piece_S,
        behind_G,
        prompt_tokens=5,
        longest_prompt=3,
        longest_piece=4,
        longest_behind=4,
        some_empty=True,
    )
    tensors = [torch.randn(1, 2, 11, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    output = pieces.attend(*tensors, 0.3)[0]
    query, key, value = (x[0].transpose(0, 1) for x in tensors)
    alone = kernel(
        query[5:7],
        key[5:7],
        value[5:7],
        torch.tensor([0, 2]),
        torch.tensor([0, 2]),
        2,
        2,
        True,
        0.3,
    )[0]
    assert torch.allclose(output[5:7], alone)
    assert torch.autograd.gradcheck(lambda *args: pieces.attend(*args, 0.3), tensors)
