import numpy as np
import pytest
from conftest import encode, make_model, make_records
from scipy.optimize import linear_sum_assignment

from twcli.warmstart import Whitening, assign, centred_features, groups_of, synchronised_kmeans, warm_start


def matched(clusters, truth, latents):
    counts = np.zeros((latents, truth.max() + 1))
    np.add.at(counts, (clusters, truth), 1)
    return counts[linear_sum_assignment(-counts)].sum() / len(truth)


def test_assignment_is_distinct_within_a_prompt_even_where_the_nearest_is_shared():
    centroids = np.array([[0.0], [10.0]])
    points = np.array([[1.0], [2.0], [9.0], [8.0]])
    assert assign(points, [2, 2], centroids).tolist() == [0, 1, 1, 0]


def test_more_completions_than_clusters_share_the_nearest():
    centroids = np.array([[0.0], [10.0]])
    assert assign(np.array([[0.0], [1.0], [10.0]]), [3], centroids).tolist() == [0, 0, 1]


def test_names_are_synchronised_across_prompts():
    """Strategy vectors plus a prompt offset ten times their size and noise; two to four completions a prompt."""
    rng = np.random.default_rng(0)
    centroids = 2 * rng.normal(size=(4, 6))
    sizes, truth, points = [], [], []
    for _ in range(150):
        chosen = rng.choice(4, rng.integers(2, 5), replace=False)
        values = centroids[chosen] + 20 * rng.normal(size=6) + 0.4 * rng.normal(size=(len(chosen), 6))
        points.append(values - values.mean(0))
        sizes.append(len(chosen))
        truth.append(chosen)
    points, truth = np.concatenate(points), np.concatenate(truth)
    best, inertia, agreement = synchronised_kmeans(points, sizes, 4, rng)
    clusters = assign(points, sizes, best)
    assert matched(clusters, truth, 4) > 0.95
    assert 0 < agreement <= 1 and inertia > 0
    start = 0
    for size in sizes:
        assert len(set(clusters[start : start + size])) == size
        start += size


def test_whitening_gives_unit_covariance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    values -= values.mean(0)
    white = Whitening.fit(values, 5)(values)
    assert white.shape == (500, 5)
    assert np.allclose(white.T @ white / 500, np.eye(5), atol=1e-8)


def test_groups_hold_distinct_completions_only(template):
    pairs = [("w0", "w1"), ("w2", "w3"), ("w0", "w1"), ("w0", "w4"), ("w2", "w3")]
    encoded = encode(template, [{"x": x, "y": y} for x, y in pairs])
    assert [g.tolist() for g in groups_of(encoded)] == [[0, 3]]


@pytest.fixture
def records():
    doubled = make_records(12, 3, seed=3)
    return [*doubled, doubled[1], {"x": "w19 w19 w19", "y": "w0"}]


def test_every_row_of_a_prompt_with_several_completions_gets_a_cluster(template, records):
    encoded = encode(template, records)
    warm = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200)
    assert warm.latent_N.shape == (38,) and set(warm.latent_N[:37]) == {0, 1, 2}
    assert warm.latent_N[36] == warm.latent_N[1]  # the same completion twice
    assert warm.latent_N[37] == -1  # the only completion of its prompt


def test_the_same_seed_gives_the_same_clusters(template, records):
    encoded = encode(template, records)
    runs = [warm_start(make_model(), template, encoded, 3, seed=s, batch_tokens=60).latent_N for s in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_features_are_centred_and_do_not_depend_on_batching(template, records):
    encoded = encode(template, records)
    groups = groups_of(encoded)
    small, large = (centred_features(make_model(), template, encoded, groups, b) for b in (60, 4000))
    assert np.allclose(small, large, atol=1e-4) and small.std() > 0.01
    start = 0
    for group in groups:
        assert np.allclose(small[start : start + len(group)].mean(0), 0, atol=1e-5)
        start += len(group)


def test_blocks_of_prompts_change_nothing_but_the_fit(template, records, monkeypatch):
    encoded = encode(template, records)
    monkeypatch.setattr("twcli.warmstart.FIT_PROMPTS", 6)
    whole = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N
    monkeypatch.setattr("twcli.warmstart.BLOCK_PROMPTS", 2)
    assert np.array_equal(whole, warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N)


def test_one_completion_a_prompt_is_said(template):
    with pytest.raises(ValueError, match="two distinct completions"):
        warm_start(make_model(), template, encode(template, make_records(5, 1)), 2, seed=0, batch_tokens=200)
