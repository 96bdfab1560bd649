import numpy as np

from tests.conftest import matched
from twcli.discovery.exchanges import _independent_directions, search
from twcli.discovery.predictability import CrossValidation


def test_exchanged_names_of_a_pair_are_found_and_put_right(strategies):
    points, sizes, truth = strategies
    exchanged = truth.copy()
    some = np.repeat(np.random.default_rng(3).random(len(sizes)) < 0.5, sizes)
    exchanged[some & (truth == 0)], exchanged[some & (truth == 1)] = 1, 0
    judge = CrossValidation([points], sizes, 4, np.random.default_rng(1))
    score = judge.assign(exchanged)[1]
    assert matched(exchanged, truth, 4) < 0.8
    clusters, better = max(search(judge, exchanged, score), key=lambda result: result[1])
    assert better > score
    assert matched(clusters, truth, 4) > 0.98


def test_signs_are_sought_along_the_axes_where_no_direction_can_be_distinguished_from_a_normal_one(
    monkeypatch,
):
    def fails(*_):
        raise ValueError("array must not contain infs or NaNs")

    monkeypatch.setattr("twcli.discovery.exchanges.FastICA.fit", fails)
    assert np.array_equal(_independent_directions(np.ones((9, 3), np.float32)), np.eye(3))
