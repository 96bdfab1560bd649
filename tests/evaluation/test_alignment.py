import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from twcli.evaluation.alignment import ari, nmi, one_to_one


@pytest.mark.parametrize("seed", range(5))
def test_nmi_and_ari_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, latents = rng.integers(4, size=60), rng.integers(3, size=60)
    latents = np.where(rng.random(60) < 0.5, labels % 3, latents)
    table = np.zeros((3, 4))
    np.add.at(table, (latents, labels), 1)
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(labels, latents))
    assert ari(table) == pytest.approx(adjusted_rand_score(labels, latents))


def test_one_to_one_by_hand():
    assert one_to_one(np.array([[5.0, 4.0], [4.0, 0.0]])).tolist() == [1, 0]
    assert one_to_one(np.array([[5.0], [6.0]])).tolist() == [-1, 0]
