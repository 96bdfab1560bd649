import numpy as np
import pytest

from twcli.discovery.score import (
    HALF_ABOVE_NOISE,
    HALF_GENERALISATION,
    HALF_STABILITY,
    Predictability,
    expected_share_right,
    run_score,
)


def predictability(predicted=0.4, gain=0.0):
    return Predictability(
        np.linspace(predicted - 0.2, predicted + 0.2, 120), np.full(120, 0.5), np.full(120, gain)
    )


def test_the_score_of_latents_that_say_nothing_is_chance_and_of_a_ruined_generator_less():
    assert run_score(predictability(predicted=0.0), 4) == pytest.approx(0.25)
    assert run_score(predictability(gain=-2.0), 3) == pytest.approx(
        run_score(predictability(), 3) * np.exp(-2.0)
    )
    assert run_score(predictability(gain=5.0), 3) == run_score(predictability(), 3)
    assert run_score(Predictability(np.zeros(3), np.zeros(3), np.zeros(3)), 4) is None
    # estimates from a few prompts
    assert (
        run_score(predictability(predicted=2.0), 4) == 1.0
        and run_score(predictability(predicted=-2.0), 4) == 0.25
    )


@pytest.mark.parametrize("latents", [2, 3, 8])
def test_the_share_expected_right_grows_from_chance_to_one_with_stability(latents):
    grid = np.linspace(0, 1, 201)
    for shares in (
        [expected_share_right(s, 1.0, 1.0, latents) for s in grid],
        [expected_share_right(1.0, a, 1.0, latents) for a in np.linspace(-1, 1, 201)],
        [expected_share_right(1.0, 1.0, g, latents) for g in grid],
    ):
        assert all(np.diff(shares) >= 0)
        assert shares[0] == pytest.approx(1 / latents, abs=1e-3)
        assert 0.99 < shares[-1] <= 1
    half = pytest.approx((1 + 1 / latents) / 2, abs=1e-3)
    assert expected_share_right(HALF_STABILITY, 1.0, 1.0, latents) == half
    assert expected_share_right(1.0, HALF_ABOVE_NOISE, 1.0, latents) == half
    assert expected_share_right(1.0, 1.0, HALF_GENERALISATION, latents) == half
