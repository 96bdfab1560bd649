import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from twcli.discovery.matching import (
    agreement_beyond_chance,
    matched_share,
    matching,
    relabelled,
)


def test_matched_shares_by_hand():
    one, other = np.array([0, 0, 0, 1, 1, 2]), np.array([2, 2, 0, 0, 0, 1])
    names, rows = matching(one, other, 3)
    assert (names.tolist(), rows) == ([2, 0, 1], 5.0)
    assert matched_share(one, other, 3) == 5 / 6
    assert relabelled(one, other, 3).tolist() == [2, 2, 2, 0, 0, 1]
    assert matched_share(one, one, 3) == 1.0
    assert matched_share(np.zeros(4, int), np.arange(4), 4) == 1 / 4


def test_agreement_beyond_chance_is_cohens_kappa():
    rng = np.random.default_rng(0)
    one = rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    other = np.where(rng.random(300) < 0.4, rng.integers(4, size=300), one)
    expected = cohen_kappa_score(one, other)
    assert agreement_beyond_chance(one, other, 4) == pytest.approx(expected)
    assert agreement_beyond_chance(one, one, 4) == pytest.approx(1.0)
    assert agreement_beyond_chance(np.zeros(5, int), np.zeros(5, int), 2) == 0.0
