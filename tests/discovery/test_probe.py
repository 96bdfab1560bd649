from contextlib import nullcontext

import numpy as np
import pytest

from tests.conftest import encode, make_model, make_records, make_strategies
from twcli.discovery import probe as probe_module
from twcli.discovery.features import KINDS, Features
from twcli.discovery.probe import Probe, probe_of
from twcli.discovery.rows import ModelSource


def share(probe, soft, seed=0):
    predicted, upper_bound = probe.predicted(soft, seed)
    assert predicted.shape == upper_bound.shape == (len(soft),)
    return predicted.sum() / upper_bound.sum()


@pytest.fixture(params=[True, False], ids=["distinct", "repeating"])
def judged(request):
    """(probe, latents (N,)): three completions of a prompt, one of each strategy."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.permutation(3) for _ in range(200)])
    points = 4 * np.eye(3, 6)[truth] + 0.2 * rng.normal(size=(600, 6))
    points -= np.repeat(points.reshape(200, 3, 6).mean(1), 3, axis=0)
    return Probe(np.arange(600), [3] * 200, points, request.param), truth


def test_latents_that_mean_the_same_everywhere_are_predicted(judged):
    probe, truth = judged
    assert 0.95 < share(probe, np.eye(3)[truth]) < 1.02


def test_latents_that_are_used_alike_say_nothing(judged):
    probe, _ = judged
    assert share(probe, np.full((600, 3), 1 / 3)) == pytest.approx(0, abs=1e-3)
    soft = np.tile([0.7, 0.2, 0.1], (600, 1))
    assert abs(share(probe, soft)) < 0.05
    random = np.eye(3)[np.random.default_rng(1).integers(3, size=600)]
    assert abs(share(probe, random)) < 0.15


def test_latents_that_change_their_meaning_are_not_predicted(judged):
    probe, truth = judged
    turned = (truth + np.repeat(np.random.default_rng(1).integers(3, size=200), 3)) % 3
    assert abs(share(probe, np.eye(3)[turned])) < 0.2


def test_a_latent_that_no_row_takes_leaves_less_than_could_be(judged):
    probe, truth = judged
    assert 0.3 < share(probe, np.eye(3)[np.minimum(truth, 1)]) < 0.85


def test_doubt_lowers_the_share(judged):
    probe, truth = judged
    shares = [share(probe, (1 - d) * np.eye(3)[truth] + d / 3) for d in (0.9, 0.5, 0.1)]
    assert shares == sorted(shares) and shares[0] < 0.5


def test_strategies_that_repeat_may_all_be_predicted():
    """In a prompt all completions may have one strategy, or there is one completion."""
    rng = np.random.default_rng(0)
    sizes = [1, 2, 5] * 60
    truth = rng.integers(3, size=sum(sizes))
    points = 4 * np.eye(3, 6)[truth] + 0.2 * rng.normal(size=(len(truth), 6))
    assert share(Probe(np.arange(len(truth)), sizes, points, False), np.eye(3)[truth]) > 0.95


# which completions


def probed(encoder, records, distinct, seed=0, **how):
    encoded, steps = encode(encoder, records), []
    source = ModelSource(make_model(), encoder, encoded, 400)

    def progress(_label, total):
        steps.append(total)
        return nullcontext(lambda _count: None)

    return probe_of(source, encoded, distinct=distinct, seed=seed, progress=progress, **how), steps


def test_prompts_with_one_completion_count_where_strategies_repeat(encoder):
    records = [*make_records(12, 2), *({"x": f"w{i} w{i}", "y": "w1 w2"} for i in range(6))]
    distinct, (total,) = probed(encoder, records, True)
    assert distinct.distinct and sorted(distinct.rows) == list(range(24)) and total == 24
    assert distinct.sizes == [2] * 12 and len(distinct.points) == 24
    repeating, _ = probed(encoder, records, False)
    assert not repeating.distinct and sorted(repeating.rows) == list(range(30))
    assert sorted(repeating.sizes) == [1] * 6 + [2] * 12
    assert np.isfinite(repeating.points).all() and repeating.points.shape[1] > 1


def test_equal_completions_are_probed_once(encoder):
    records = make_records(10, 3)
    probe, _ = probed(encoder, [*records, *records], False)
    assert sorted(probe.rows) == list(range(30))


def test_too_few_completions_say_nothing(encoder):
    assert probed(encoder, make_records(15, 1), True) == (None, [])
    assert probed(encoder, make_records(1, 3), True)[0] is None
    assert probed(encoder, make_records(15, 1), False) == (None, [])
    assert probed(encoder, make_records(16, 1), False)[0] is not None


def test_a_probe_is_no_larger_than_it_may_be(encoder, monkeypatch):
    records = make_records(20, 2)
    monkeypatch.setattr(probe_module, "PROBE_PROMPTS", 12)
    assert len(probed(encoder, records, True)[0].sizes) == 12
    assert len(probed(encoder, records, False)[0].sizes) == 12
    limited = probed(encoder, records, False, most_rows=19)[0]
    assert limited.sizes == [2] * 9 and len(limited.rows) == 18
    other = probed(encoder, records, False, seed=1, most_rows=19)[0]
    assert sorted(limited.rows) != sorted(other.rows)


@pytest.mark.slow
def test_a_few_records_are_predicted_by_a_few_directions(encoder, monkeypatch):
    """By all directions discriminants fit the rows that they see, and predict others worse."""
    few = [share_of_a_few(encoder, seed) for seed in range(4)]
    monkeypatch.setattr(probe_module, "ROWS_A_DIRECTION", 1)
    many = [share_of_a_few(encoder, seed) for seed in range(4)]
    assert np.mean(few) > 0.8 and np.mean(few) > np.mean(many) + 0.05


def share_of_a_few(encoder, seed):
    """The share of 96 rows in unequal shares, by features of which many say something."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.6, 0.2, 0.15, 0.05])
    truth = rng.choice(4, 96, p=shares)
    strategies = rng.normal(size=(4, 400))
    values = (strategies[truth] + 4 * rng.normal(size=(96, 400))).astype(np.float32)

    def features(rows, _advance):
        prompts = np.zeros((len(rows), 2), np.float32)
        return Features((values[rows],) * len(KINDS), prompts, np.full(len(rows), 9.0))

    encoded = encode(encoder, make_records(96, 1))
    probe = probe_of(features, encoded, distinct=False, seed=0, proportions=shares)
    assert probe.points.shape[1] <= 96 // probe_module.ROWS_A_DIRECTION
    return share(probe, np.eye(4)[truth[probe.rows]])


@pytest.mark.slow
def test_strategies_of_a_tiny_model_are_predicted_and_random_names_are_not(encoder):
    records = make_strategies(60, 2)
    probe, _ = probed(encoder, records, False)
    truth = np.array([int(records[row]["strategy"][1:]) for row in probe.rows])
    assert share(probe, np.eye(3)[truth]) > 0.8
    assert share(probe, np.eye(3)[np.random.default_rng(0).permutation(truth)]) < 0.3
