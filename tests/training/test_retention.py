import numpy as np
import pytest
from scipy.stats import t

from twcli.discovery.score import Predictability, run_score
from twcli.evaluation.verdict import gains_disagree
from twcli.training.retention import lost_latents, retention, retention_lines

RNG = np.random.default_rng(0)


def lost(latents=4, each=50, loss=3.0):
    """Latent 1 writes its completions `loss` nats worse than the frozen model, the others better so
    that the mean likelihood is as it was.
    """
    latent_N = np.repeat(np.arange(latents), each)
    frozen_N = 10 + RNG.normal(size=latents * each)
    gain_N = np.where(latent_N == 1, -loss, loss / (latents - 1))
    gain_N = gain_N + RNG.normal(size=latents * each) / 10
    return latent_N, frozen_N, frozen_N - gain_N


def test_a_strategy_that_was_lost_is_named_though_the_mean_likelihood_hides_it():
    latent_N, frozen_N, marginal_N = lost()
    assert abs((frozen_N - marginal_N).mean()) < 0.05
    generator_NK = np.tile(marginal_N[:, None], 4) + np.arange(4)
    found = retention(latent_N, frozen_N, marginal_N, generator_NK)
    assert [entry.below for entry in found] == [False, True, False, False]
    one = found[1]
    gain = (frozen_N - marginal_N)[latent_N == 1]
    half = t.ppf(0.975, 49) * gain.std(ddof=1) / np.sqrt(50)
    assert one.records == 50 and one.gain == pytest.approx(gain.mean())
    assert one.gain_ci == pytest.approx((gain.mean() - half, gain.mean() + half))
    assert one.retained == pytest.approx(np.exp(gain.mean()))
    assert one.generator_nll == pytest.approx((marginal_N + 1)[latent_N == 1].mean())
    assert lost_latents(found) == {1}
    (line,) = retention_lines(found, {1})
    assert line.startswith("retention: z1 is below the original model, -3.0") and "5% of" in line
    (fine,) = retention_lines([entry for entry in found if not entry.below], ())
    assert fine.startswith(
        "retention: no latent is below the original model; the lowest gain is that of z"
    )


def test_a_choice_that_the_frozen_model_knows_by_heart_is_no_loss():
    """It knows which of the strategies a prompt's completions take; all write without a doubt."""
    latent_N = np.repeat([0, 1], [900, 100])
    frozen_N = RNG.uniform(0.08, 0.12, 1000)  # nothing is left to choose
    generator_NK = np.full((1000, 2), 50.0)
    generator_NK[np.arange(1000), latent_N] = RNG.uniform(0.01, 0.03, 1000)
    share_N = np.where(latent_N == 1, 0.1, 0.9)
    marginal_N = generator_NK.min(1) - np.log(share_N)
    _, rare = retention(latent_N, frozen_N, marginal_N, generator_NK)
    assert rare.gain < -2 and rare.gain_ci[1] < 0
    # the choice costs at most what the frozen model pays at all: 0.1 nats, not log 10
    assert rare.written_gain == pytest.approx(-0.02, abs=0.005)
    assert rare.retained == pytest.approx(0.98, abs=0.005)
    assert gains_disagree({**rare.as_dict(), "written_gain_ci": [-0.04, 0.0]})
    assert not gains_disagree(rare.as_dict())  # both are beyond doubt
    (line,) = [line for line in retention_lines([rare], {1}) if "z1" in line]
    assert "98% of that strategy is left" in line


def test_a_strategy_that_is_written_worse_is_below_though_its_choice_was_dear():
    """The frozen model pays log 4 for the choice and 0.4 nats for writing; the run writes it right
    in 15 of 100 cases.
    """
    latent_N = np.repeat(np.arange(4), 100)
    frozen_N = np.log(4) + RNG.uniform(0.3, 0.5, 400)
    generator_NK = np.full((400, 4), 50.0)
    generator_NK[np.arange(400), latent_N] = np.where(latent_N == 2, -np.log(0.15), 0.01)
    found = retention(latent_N, frozen_N, generator_NK.min(1) + np.log(4), generator_NK)
    assert [entry.below for entry in found] == [False, False, True, False]
    assert found[2].written_gain == pytest.approx(0.4 + np.log(0.15), abs=0.02)


def test_few_records_prove_nothing_and_a_latent_without_records_has_no_entry():
    latent_N = np.array([0, 0, 2, -1])
    frozen_N, marginal_N = np.array([1.0, 5.0, 1.0, 1.0]), np.array([2.0, 5.1, 9.0, 9.0])
    first, other = retention(latent_N, frozen_N, marginal_N, np.zeros((4, 3)))
    assert (first.latent, other.latent) == (0, 2)
    assert first.gain < 0 and not first.below  # two records, far apart
    assert other.gain_ci is None and not other.below
    assert retention_lines([], ()) == []


def test_the_score_falls_with_the_latent_that_was_lost_and_with_no_other():
    latent_N, frozen_N, marginal_N = lost()
    records = np.full(200, 0.75)
    below_K = np.array([False, True, False, False])

    def score(**more):
        return run_score(Predictability(records, records, frozen_N - marginal_N, **more), 4)

    assert score() == pytest.approx(1.0, abs=0.05)
    assert score(latent=latent_N, below=below_K) == pytest.approx((3 + np.exp(-3)) / 4, abs=0.01)
    # what is not beyond doubt costs no more than the run's own gain
    assert score() <= score(latent=latent_N, below=np.zeros(4, bool)) <= 1
    assert score(latent=np.full(200, -1), below=below_K) == pytest.approx(score())


def measured(cost_K, rng, each=250, spread=0.6):
    """Records of which the run finds those of latent k less likely by `cost_K[k]`, in the writing
    and in all.
    """
    K = len(cost_K)
    latent_N = np.repeat(np.arange(K), each)
    frozen_N = np.log(K) + rng.exponential(0.05, K * each)
    loss_N = np.asarray(cost_K)[latent_N] + rng.normal(0, spread, K * each)
    generator_NK = np.full((K * each, K), 50.0)
    generator_NK[np.arange(K * each), latent_N] = frozen_N - np.log(K) + loss_N
    return retention(latent_N, frozen_N, frozen_N + loss_N, generator_NK)


def share_of_runs(made, runs=60):
    return np.mean([made(np.random.default_rng(seed)) for seed in range(runs)])


def test_what_the_original_model_knows_by_heart_is_no_lost_strategy():
    """It costs each latent something, not all alike; nearly every run has a latent that is below by
    its own interval.
    """

    def runs(latents, cost):
        def found(rng):
            return measured(cost * rng.uniform(0.6, 1.4, latents), rng)

        return found

    for latents, cost in ((2, 0.3), (4, 0.1), (4, 0.2), (8, 1.0)):
        memory = runs(latents, cost)
        accused = share_of_runs(lambda rng, m=memory: any(e.below for e in m(rng)))
        assert accused > 0.9, (latents, cost)
        cleared = share_of_runs(lambda rng, m=memory: not lost_latents(m(rng)))
        assert cleared >= 0.9, (latents, cost, cleared)


@pytest.mark.slow
@pytest.mark.parametrize("latents", [2, 4, 8])
def test_a_lost_strategy_is_found_beside_memory_and_without(latents):
    def run(memory, loss):
        def found(rng):
            cost_K = memory * rng.uniform(0.6, 1.4, latents)
            cost_K[1] += loss
            return lost_latents(measured(cost_K, rng))

        return found

    # a strategy that was right in 66 % of the cases is so in 15 %
    strong = np.log(0.66 / 0.15)
    # none, one that the others gain from, and beside memory
    for memory, loss in ((0.0, 0.3), (-0.2, 0.5), (0.2, strong), (0.1, 0.7)):
        found = run(memory, loss)
        power = share_of_runs(lambda rng, f=found: f(rng) == {1})
        assert power >= 0.9, (memory, loss, power)


def test_what_all_latents_lack_is_said_and_not_decided():
    found = measured([0.2, 0.2, 0.2], np.random.default_rng(0))
    assert all(entry.below for entry in found) and not lost_latents(found)
    (line,) = retention_lines(found, ())
    assert "z0 -0." in line and "z2 -0." in line and "eval on new records decides" in line


def test_a_latent_alone_has_no_others_to_share_with():
    (entry,) = retention(np.zeros(50, int), np.ones(50), np.full(50, 2.0), np.full((50, 2), 2.0))
    assert entry.below and lost_latents([entry]) == {0}
