from contextlib import nullcontext

import pytest

from twcli.config.sample import SampleConfig
from twcli.errors import UserError


@pytest.mark.parametrize(("temperature", "right"), [(0, True), (1e-3, True), (1e-40, False)])
def test_a_temperature_that_logits_cannot_be_divided_by_is_refused(temperature, right):
    with (
        nullcontext()
        if right
        else pytest.raises(
            UserError, match="--temperature: 1e-40 is too small; give 0, which is greedy, or at le"
        )
    ):
        SampleConfig(model="M", x="q", temperature=temperature)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "M", "run": "R", "x": "q"},
        {"model": "M"},
        {"model": "M", "x": "q", "latent": "1"},
        {"run": "R", "x": "q", "latent": "-1"},
        {"run": "R", "x": "q", "template": "chat"},
        {"run": "R", "x": "q", "x_field": "question"},
    ],
)
def test_sample_refuses_calls_that_contradict_themselves(values):
    with pytest.raises(UserError):
        SampleConfig(**values)
