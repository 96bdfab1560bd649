import numpy as np
import pytest
import torch
from conftest import encode, make_model, make_records
from scipy.optimize import linear_sum_assignment

from twcli.warmstart import (
    LAGS,
    PROMPT_TOKENS,
    WINDOWS,
    CrossValidation,
    Space,
    assign,
    best_clustering,
    centred_features,
    constrained_kmeans,
    groups_of,
    warm_start,
    whitened,
)


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


@pytest.fixture(scope="module")
def strategies():
    """(points, sizes, truth): a vector a strategy plus a prompt offset ten times its size and noise; 2 to 4 completions."""
    rng = np.random.default_rng(0)
    centroids = 2 * rng.normal(size=(4, 6))
    sizes, truth, points = [], [], []
    for _ in range(150):
        chosen = rng.choice(4, rng.integers(2, 5), replace=False)
        values = centroids[chosen] + 20 * rng.normal(size=6) + 0.4 * rng.normal(size=(len(chosen), 6))
        points.append(values - values.mean(0))
        sizes.append(len(chosen))
        truth.append(chosen)
    return np.concatenate(points), sizes, np.concatenate(truth)


def test_names_are_synchronised_across_prompts(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(1)
    starts = [constrained_kmeans(points, sizes, 4, rng) for _ in range(10)]
    clusters, score, agreement = best_clustering(starts, points, sizes, 4, rng)
    assert matched(clusters, truth, 4) > 0.98
    assert 0 < agreement <= 1 and 0.5 < score <= 1
    start = 0
    for size in sizes:
        assert len(set(clusters[start : start + size])) == size
        start += size


def test_exchanged_names_of_a_pair_are_found_and_put_right(strategies):
    points, sizes, truth = strategies
    exchanged = truth.copy()
    some = np.repeat(np.random.default_rng(3).random(len(sizes)) < 0.5, sizes)
    exchanged[some & (truth == 0)], exchanged[some & (truth == 1)] = 1, 0
    judge = CrossValidation(points, sizes, 4, np.random.default_rng(1))
    score = judge.assign(exchanged)[1]
    assert matched(exchanged, truth, 4) < 0.8
    clusters, better = max(judge.search(exchanged, score), key=lambda result: result[1])
    assert better > score
    assert matched(clusters, truth, 4) > 0.98


def test_the_score_ranks_clusterings_as_their_alignment_does(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(2)
    judge = CrossValidation(points, sizes, 4, rng)
    scores = []
    for right in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
        prompts = np.repeat(rng.random(len(sizes)) < right, sizes)
        shuffled = np.concatenate([rng.permutation(4)[part] for part in np.split(truth, np.cumsum(sizes)[:-1])])
        scores.append(judge.assign(np.where(prompts, truth, shuffled))[1])
    assert scores == sorted(scores)


def test_mending_moves_the_wrong_ones(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(3)
    start = np.where(rng.random(len(truth)) < 0.6, truth, rng.integers(4, size=len(truth)))
    assert matched(start, truth, 4) < 0.75
    clusters, _ = CrossValidation(points, sizes, 4, rng).mend(start)
    assert matched(clusters, truth, 4) > 0.98


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
    shares = [(np.square(kind * scale)).sum() for kind, scale in zip(kinds, space.scales, strict=True)]
    assert shares[0] == pytest.approx(shares[1], rel=0.05)
    assert np.square(space(kinds)).sum() == pytest.approx(sum(shares), rel=1e-6)  # all directions are kept


def test_features_without_variance_are_no_error():
    constant = (np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32))
    points = Space.fit(constant, 0)(constant)
    assert points.shape == (4, 0)
    clusters, score, _ = best_clustering([np.array([0, 1, 1, 0])], points, [2, 2], 2, np.random.default_rng(0))
    assert sorted(clusters[:2]) == [0, 1] and score == 0


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
    for small, large in zip(*(centred_features(make_model(), template, encoded, groups, b) for b in (60, 4000)), strict=True):
        assert np.allclose(small, large, atol=1e-4) and small.std() > 0.01
        start = 0
        for group in groups:
            assert np.allclose(small[start : start + len(group)].mean(0), 0, atol=1e-5)
            start += len(group)


def test_similarities_are_those_of_a_plain_loop(template):
    """One row by hand: y's first window with x's second token, and its last window with the token two before."""
    records = [{"x": "w0 w1", "y": "w2 w3 w4"}, {"x": "w0 w1", "y": "w5"}]
    encoded = encode(template, records)
    model = make_model()
    _, similar = centred_features(model, template, encoded, groups_of(encoded), 4000)
    with torch.no_grad():
        states = [model(input_ids=torch.from_numpy(encoded.ids[a:b].astype(np.int64))[None], output_hidden_states=True).hidden_states[-1][0]
                  for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]
    unit = [torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in states]
    # <bos> <x> w0 w1 </x> <y> y ... </y>: y begins at 6, w1 stands at 3; the last layer's block is the last one.
    first = [(u[6:8] @ u[3]).mean().item() / 32 for u in unit]
    lag = [(unit[0][8] @ unit[0][6] + unit[0][9] @ unit[0][7]).item() / 32 / 2, 0.0]
    windows, width = len(WINDOWS), PROMPT_TOKENS + LAGS
    block = similar[:, -windows * width :].reshape(2, windows, width)
    assert block[0, 0, 1] == pytest.approx((first[0] - first[1]) / 2, abs=1e-5)
    assert block[0, 1, PROMPT_TOKENS + 1] == pytest.approx((lag[0] - lag[1]) / 2, abs=1e-5)


def test_blocks_of_prompts_change_nothing_but_the_fit(template, records, monkeypatch):
    encoded = encode(template, records)
    monkeypatch.setattr("twcli.warmstart.FIT_PROMPTS", 6)
    whole = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N
    monkeypatch.setattr("twcli.warmstart.BLOCK_PROMPTS", 2)
    assert np.array_equal(whole, warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N)


def test_one_completion_a_prompt_is_said(template):
    with pytest.raises(ValueError, match="two distinct completions"):
        warm_start(make_model(), template, encode(template, make_records(5, 1)), 2, seed=0, batch_tokens=200)
