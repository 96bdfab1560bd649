import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import encode, make_model, make_records
from twcli.data.batches import collate
from twcli.kernels import head
from twcli.kernels.head import head_logits, target_nll, token_nll
from twcli.models.forward import hidden_states


def test_logits_piece_by_piece_give_the_same_loss_and_gradient(encoder, monkeypatch):
    model, encoded = make_model(), encode(encoder, make_records())
    batch = collate(np.arange(len(encoded)), encoded, encoder, None)
    seen, results = [], []
    model.lm_head.register_forward_hook(lambda _m, _inputs, output: seen.append(output.numel()))
    for limit in (2**25, 5 * 30):
        monkeypatch.setattr(head, "HEAD_LOGITS", limit)
        model.zero_grad()
        nll = target_nll(
            model,
            hidden_states(model, batch.plain_BT),
            batch.plain_first_B,
            batch.targets_BS,
            batch.active_BS,
        )
        (nll * torch.arange(nll.shape[1])).sum().backward()
        results.append(
            (nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters()})
        )
    assert max(seen[1:]) <= 5 * 30 < seen[0]
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], rtol=1e-5, atol=1e-4), name


def seen_by_head(model):
    """Logits of each call to come of the head as a module."""
    seen = []
    model.lm_head.register_forward_hook(lambda _m, _inputs, output: seen.append(output.numel()))
    return seen


@pytest.mark.parametrize(("words", "tokens"), [(7, 3), (1000, 1000), (1, 11), (32, 11)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"logits_scaling": 0.5}, {"logit_scale": 3.0}, {"final_logit_softcapping": 2.0}],
)
def test_blocks_of_the_vocabulary_give_the_same_nll(words, tokens, settings, monkeypatch):
    monkeypatch.setattr(head, "BLOCK_WORDS", words)
    monkeypatch.setattr(head, "BLOCK_TOKENS", tokens)
    model = make_model()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    for name, value in settings.items():
        setattr(model.config, name, value)
    hidden, targets = 3 * torch.randn(11, 32), torch.randint(0, model.config.vocab_size, (11,))
    expected = F.cross_entropy(head_logits(model, hidden).double(), targets, reduction="none")
    with torch.no_grad():
        assert torch.allclose(
            token_nll(model, hidden, targets).double(), expected, rtol=1e-5, atol=1e-5
        )
    assert torch.allclose(
        token_nll(model, hidden, targets).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_words_that_never_come_and_large_logits_are_no_nan(monkeypatch):
    monkeypatch.setattr(head, "BLOCK_WORDS", 8)
    model = make_model()
    bias = torch.zeros(model.config.vocab_size)
    bias[:8], bias[9] = float("-inf"), 1e30
    model.lm_head.bias = torch.nn.Parameter(bias)
    hidden = torch.randn(5, 32)
    with torch.no_grad():
        nll = token_nll(model, hidden, torch.tensor([9, 9, 8, 0, 10]))
    assert (
        torch.allclose(nll[:2], torch.zeros(2))
        and nll[2] == nll[4] == 1e30
        and nll[3] == float("inf")
    )


@torch.no_grad()
def test_a_head_that_is_more_than_its_weights_is_called_as_a_whole():
    model = make_model()
    hidden, targets = torch.randn(5, 32), torch.arange(5)
    expected = token_nll(model, hidden, targets)
    seen = seen_by_head(model)
    assert torch.allclose(token_nll(model, hidden, targets), expected, atol=1e-5)
    assert seen == [5 * model.config.vocab_size]


@torch.no_grad()
def test_a_head_in_bf16_is_summed_up_in_float32():
    model = make_model().to(torch.bfloat16)
    hidden, targets = torch.randn(5, 32, dtype=torch.bfloat16), torch.arange(5)
    nll = token_nll(model, hidden, targets)
    assert nll.dtype == torch.float32
    assert torch.allclose(
        nll,
        F.cross_entropy(head_logits(model, hidden).float(), targets, reduction="none"),
        atol=1e-5,
    )
