"""What a training step's activations take, against a count by hand."""

import pytest
import torch
from torch import nn

from tests.conftest import make_model
from twcli.models.memory import activation_bytes_a_token


class Body(nn.Module):
    """Two layers of which each keeps its input, H numbers a token, for the gradient of its
    weights; and a square that keeps its own input.
    """

    def __init__(self, hidden):
        super().__init__()
        self.embeddings = nn.Embedding(50, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(2))

    def forward(self, input_ids, use_cache):
        states = self.embeddings(input_ids)
        for layer in self.layers:
            states = layer(states)
        return type("Output", (), {"last_hidden_state": states.square()})


def test_what_a_body_of_linear_layers_keeps(monkeypatch):
    body = Body(16)
    body.device, body.dtype = torch.device("cpu"), torch.float32
    body.get_input_embeddings = lambda: body.embeddings
    monkeypatch.setattr("twcli.models.memory.body_of", lambda model: model)
    found = activation_bytes_a_token(body, 10, autocast=False, checkpointing=False)
    # three times 16 float32, and the embedding's index, an int64
    assert found == pytest.approx(3 * 16 * 4 + 8, abs=1)


def test_what_grows_with_the_model_and_what_saves_it():
    def found(layers=2, tokens=40, **how):
        settings = {"autocast": False, "checkpointing": False, **how}
        return activation_bytes_a_token(make_model(layers=layers), tokens, **settings)

    two, four = found(), found(layers=4)
    assert 1.5 * two < four < 2 * two
    # a layer of a Llama keeps at least its inputs, queries, keys, values, and the inner ones
    assert two > 2 * 4 * (6 * 32 + 3 * 64)
    assert found(autocast=True) < two
    kept = found(layers=4, checkpointing=True)
    assert kept == pytest.approx(4 * 32 * 4 + four / 4)


def test_a_pass_leaves_nothing_behind():
    model = make_model()
    activation_bytes_a_token(model, 12, autocast=False, checkpointing=False)
    assert all(parameter.grad is None for parameter in model.parameters())
