import pytest
import torch

from twcli.training.average import WeightAverage


def test_the_mean_forgets_old_weights_and_can_be_tried_and_adopted():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, 100)  # five steps of memory
    assert average.decay == pytest.approx(0.8)
    expected = 0.0
    for step in range(1, 41):
        model.weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.8, step / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["weight"].item() == pytest.approx(expected) == pytest.approx(36, abs=0.5)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 40
    average.adopt()
    assert model.weight.item() == pytest.approx(expected)


def test_what_is_not_trained_is_not_copied():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert list(WeightAverage(model, 10).tensors) == ["weight"]
