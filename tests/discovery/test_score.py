import numpy as np
import pytest

from twcli.discovery.score import Naming, run_score


def naming(told=0.4, gain=0.0):
    return Naming(np.linspace(told - 0.2, told + 0.2, 120), np.full(120, 0.5), np.full(120, gain))


def test_the_score_of_latents_that_say_nothing_is_chance_and_of_a_ruined_generator_less():
    assert run_score(naming(told=0.0), 4) == pytest.approx(0.25)
    assert run_score(naming(gain=-2.0), 3) == pytest.approx(run_score(naming(), 3) * np.exp(-2.0))
    assert run_score(naming(gain=5.0), 3) == run_score(naming(), 3)
    assert run_score(Naming(np.zeros(3), np.zeros(3), np.zeros(3)), 4) is None
    # estimates from a few prompts
    assert run_score(naming(told=2.0), 4) == 1.0 and run_score(naming(told=-2.0), 4) == 0.25
