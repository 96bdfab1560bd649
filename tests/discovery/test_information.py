"""Mutual information in nats, against scikit-learn and values worked out by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from twcli.discovery.information import information, mutual_information
from twcli.discovery.matching import contingency


def test_mutual_information_is_that_of_the_rows_in_any_unit():
    rng = np.random.default_rng(0)
    one = rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    other = np.where(rng.random(300) < 0.4, rng.integers(4, size=300), one)
    weight = rng.integers(1, 4, size=300)
    table = contingency(one, other, 4, 4, weight)
    expected = mutual_info_score(np.repeat(one, weight), np.repeat(other, weight))
    assert mutual_information(table) == pytest.approx(expected)
    assert mutual_information(0.001 * table) == pytest.approx(expected)
    assert mutual_information(np.diag([3.0, 3.0, 0.0])) == pytest.approx(np.log(2))
    assert mutual_information(np.ones((3, 2))) == pytest.approx(0.0, abs=1e-12)


def test_information_of_a_posterior_is_the_entropy_that_the_records_take_away():
    nats, usage = information([0.5, 0.5], 0.0)
    assert nats == pytest.approx(math.log(2)) and usage == pytest.approx(2)
    nats, usage = information([0.5, 0.5], math.log(2))
    assert nats == pytest.approx(0.0) and usage == pytest.approx(2)
    assert information([1.0, 0.0], 1e-9) == (0.0, 1.0)
