import numpy as np
import pytest

from tests.conftest import centred
from twcli.discovery.centring import Centring, Space, in_pairs, whitened


def test_whitening_gives_unit_covariance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    values -= values.mean(0)
    white = whitened(values, 5, 0)
    assert white.shape == (500, 5)
    assert np.allclose(white.T @ white / 500, np.eye(5), atol=1e-8)


def test_both_kinds_of_features_have_the_same_say():
    rng = np.random.default_rng(0)
    kinds = (100 * rng.normal(size=(300, 50)), 0.01 * rng.normal(size=(300, 10)))
    space = Space.fit(kinds, 0)
    shares = [
        (np.square(kind * scale)).sum() for kind, scale in zip(kinds, space.scales, strict=True)
    ]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    # all directions are kept
    assert np.square(space(kinds)[0]).sum() == pytest.approx(sum(shares), rel=1e-6)


def test_features_without_variance_have_no_directions():
    constant = (np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32))
    (points,) = Space.fit(constant, 0)(constant)
    assert points.shape == (4, 0)


def test_each_view_sees_its_kinds_alone():
    rng = np.random.default_rng(0)
    kinds = [rng.normal(size=(300, 5)).astype(np.float32) for _ in range(3)]
    space = Space.fit(kinds, 0, views=((0, 1, 2), (1,)))
    changed = [kinds[0] + 1, kinds[1], kinds[2] * 2]
    (whole, one), (other_whole, other_one) = space(kinds), space(changed)
    assert whole.shape == (300, 15) and one.shape == (300, 5)
    assert np.array_equal(one, other_one) and not np.allclose(whole, other_whole)


def test_what_stays_of_the_prompts_means_is_no_larger_than_the_differences(pairs):
    features, sizes, _ = pairs
    kept = centred(features, sizes, True)
    means, apart = kept.reshape(-1, 2, 12).mean(1).std(0), centred(features, sizes, False).std(0)
    assert (means <= 1.01 * apart).all() and means.min() > 0.1
    assert np.allclose(kept - means_of(kept), centred(features, sizes, False), atol=1e-4)
    assert np.allclose(means_of(centred(features, sizes, False)), 0, atol=1e-5)


def means_of(features):
    return features.reshape(-1, 2, features.shape[1]).mean(1).repeat(2, axis=0)


def test_a_centring_serves_other_prompts_and_features_without_spread(pairs):
    features, sizes, _ = pairs
    constant = np.concatenate([features, np.ones((800, 1), np.float32)], axis=1)
    fitted = Centring.fit((constant,), sizes, keep=True)
    others = constant[:4] + 1
    whole = constant.copy()
    fitted((whole,), sizes)
    fitted((others,), [2, 2])
    assert np.isfinite(whole).all() and (whole[:, -1] == 0).all()
    assert np.allclose((others - whole[:4])[:, :-1], fitted.shares[0][:-1], atol=1e-4)


def test_only_a_few_prompts_of_more_make_pairs():
    assert in_pairs([2] * 19 + [3]) and not in_pairs([2] * 8 + [3, 4])
