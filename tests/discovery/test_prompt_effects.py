import numpy as np
import pytest
from sklearn.cluster import KMeans

from tests.conftest import matched
from twcli.discovery import prompt_effects
from twcli.discovery.features import KINDS, Features
from twcli.discovery.prompt_effects import (
    PromptEffects,
    PromptRegression,
    principal_axes,
    prompt_means,
)

CONTENT, OFFSET, NOISE = 4.0, 1.5, 0.6


def simulated(sizes, effect=0.5, seed=0):
    """(features, latents (N,)): what x says, what only the prompt has, a vector a strategy and
    noise, in this order of size.
    """
    rng = np.random.default_rng(seed)
    x_PG = rng.normal(size=(len(sizes), 10))
    latent_N = rng.integers(3, size=sum(sizes))
    kinds = []
    for _ in KINDS:
        prompt_PF = CONTENT * x_PG @ rng.normal(size=(10, 15)) / np.sqrt(10)
        prompt_PF += effect * rng.normal(size=prompt_PF.shape)
        kind = np.repeat(prompt_PF, sizes, axis=0) + OFFSET * rng.normal(size=(3, 15))[latent_N]
        kinds.append((kind + NOISE * rng.normal(size=kind.shape)).astype(np.float32))
    prompts = np.repeat(x_PG, sizes, axis=0).astype(np.float32)
    return Features(tuple(kinds), prompts, np.full(len(latent_N), 20.0)), latent_N


def clusters(points):
    return KMeans(3, n_init=5, random_state=0).fit_predict(points)


@pytest.mark.parametrize(
    "sizes",
    [[1] * 400, [4] * 120, [1] * 80 + [2] * 60 + [3] * 60 + [50] * 3],
    ids=["one", "four", "mixed"],
)
def test_strategies_are_found_in_what_prompts_leave_over(sizes):
    sizes = np.random.default_rng(1).permutation(sizes).tolist()
    features, latent_N = simulated(sizes)
    _, views = PromptEffects.fit(features, sizes)
    assert len(views) == len(prompt_effects.VIEWS)
    for points in views:
        assert matched(clusters(points[:, :8]), latent_N, 3) >= 0.95
    raw = features.kinds[0] / features.kinds[0].std(0)
    assert matched(clusters(raw), latent_N, 3) < 0.6


def test_a_large_effect_of_the_prompt_goes_where_several_completions_show_it():
    sizes = [8] * 80
    features, latent_N = simulated(sizes, effect=6.0)
    _, views = PromptEffects.fit(features, sizes)
    assert matched(clusters(views[0][:, :8]), latent_N, 3) >= 0.95


def test_no_row_is_explained_by_itself():
    """Half as many features of x as prompts would fit any noise."""
    rng = np.random.default_rng(0)
    x_PG, noise = rng.normal(size=(120, 60)), rng.normal(size=(120, 6))
    signal = 3 * x_PG[:, :4] @ rng.normal(size=(4, 6))
    sizes = np.ones(120, np.int64)
    _, (of_noise, of_signal) = PromptRegression.fit([noise, signal + noise], x_PG, sizes)

    def explained(target, predicted):
        return 1 - ((target - predicted) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()

    assert explained(noise, of_noise) < 0.05
    assert explained(signal + noise, of_signal) > 0.3


def test_a_regression_predicts_prompts_that_it_has_not_seen():
    features, _ = simulated([1] * 300, effect=0.0)
    kinds, x_PG = [kind[:200] for kind in features.kinds], features.prompts[:200]
    regression, _ = PromptRegression.fit(kinds, x_PG, np.ones(200, np.int64))
    for kind, predicted in zip(features.kinds, regression(features.prompts[200:]), strict=True):
        left = kind[200:] - predicted
        assert left.var() < 0.4 * kind[200:].var()
        assert left.std(0).max() < 1.5 * np.hypot(OFFSET, NOISE) + 0.5


@pytest.mark.parametrize("sizes", [[1] * 300, [1, 2, 3, 6] * 40])
def test_the_same_rows_again_have_nearly_the_same_points(sizes):
    features, _ = simulated(sizes)
    effects, views = PromptEffects.fit(features, sizes)
    for fitted, applied in zip(views, effects(features, sizes), strict=True):
        assert fitted.shape == applied.shape
        for direction in range(2):  # those of the strategies
            together = np.corrcoef(fitted[:, direction], applied[:, direction])[0, 1]
            assert together > 0.98
        assert np.abs(fitted - applied).mean() < 0.3 * np.abs(fitted).mean()


def test_other_rows_are_named_like_those_that_were_fitted():
    sizes = [2] * 200
    features, latent_N = simulated(sizes)

    def part(rows):
        return Features(
            tuple(kind[rows] for kind in features.kinds),
            features.prompts[rows],
            features.lengths[rows],
        )

    effects, views = PromptEffects.fit(part(slice(0, 300)), sizes[:150])
    means = KMeans(3, n_init=5, random_state=0).fit(views[0][:, :8])
    other = effects(part(slice(300, 400)), sizes[150:])[0][:, :8]
    assert matched(means.predict(other), latent_N[300:], 3) > 0.9


@pytest.mark.parametrize("sizes", [[1] * 20, [3] * 8, [24]])
def test_features_that_are_all_the_same_leave_no_direction_and_no_NaN(sizes):
    count = sum(sizes)
    kinds = tuple(np.full((count, 5), 2.0, np.float32) for _ in KINDS)
    features = Features(kinds, np.ones((count, 4), np.float32), np.full(count, 3.0))
    effects, views = PromptEffects.fit(features, sizes)
    for points in (*views, *effects(features, sizes)):
        assert points.shape == (count, 0)
    some = simulated(sizes)[0]
    mixed = Features((some.kinds[0], *some.kinds[1:3], kinds[3][:, :5]), *vars_of(some))
    for points in PromptEffects.fit(mixed, sizes)[1]:
        assert np.isfinite(points).all()


def vars_of(features):
    return features.prompts, features.lengths


def test_a_single_completion_keeps_all_that_x_does_not_predict():
    """A shift of a prompt's features is kept whole where it has one completion, and for a small
    part where it has many.
    """
    sizes = [1] * 60 + [10] * 20
    features, _ = simulated(sizes, effect=3.0)
    effects, _ = PromptEffects.fit(features, sizes)
    shift = np.random.default_rng(5).normal(size=15)
    moved = []
    for rows in (slice(0, 1), slice(60, 70)):
        kinds = tuple(kind.copy() for kind in features.kinds)
        kinds[0][rows] += shift
        before, after = (
            effects(features, sizes)[0],
            effects(Features(kinds, *vars_of(features)), sizes)[0],
        )
        changed = after - before
        assert not np.delete(changed, np.r_[rows], axis=0).any()
        moved.append(changed[rows].mean(0))
    whole = (shift * effects.scales[0]) @ effects.directions[0]
    assert moved[0] == pytest.approx(whole, abs=1e-5)
    assert np.linalg.norm(moved[1]) < 0.3 * np.linalg.norm(whole)


def test_what_is_taken_out_grows_with_the_number_of_completions():
    residual = np.ones((10, 1))
    sizes = np.array([1, 2, 7])
    share = prompt_effects._shrunk_means(residual, sizes, np.array([2.0]), np.array([4.0]))[:, 0]
    assert share[[0, 1, 3]] == pytest.approx([0, 2 / (2 + 4 / 2), 2 / (2 + 4 / 7)])


def test_variances_between_and_within_prompts_are_distinguished_from_each_other():
    rng = np.random.default_rng(0)
    sizes = np.tile([2, 3, 5], 400)
    effect = np.repeat(2.0 * rng.normal(size=(1200, 1)), sizes, axis=0)
    between, within = prompt_effects._variance_components(
        effect + 3.0 * rng.normal(size=(len(effect), 1)), sizes
    )
    assert between == pytest.approx([4], rel=0.15) and within == pytest.approx([9], rel=0.1)
    alone, whole = prompt_effects._variance_components(effect[:50], np.ones(50, np.int64))
    assert alone.tolist() == [0] and whole == pytest.approx(effect[:50].var(0), rel=1e-3)


def test_short_completions_count_less():
    """Two hundred long completions differ in the first feature; a hundred short ones scatter far
    in the second.
    """
    rng = np.random.default_rng(0)
    points = np.zeros((300, 2))
    points[:200, 0], points[200:, 1] = rng.normal(size=200), 4 * rng.normal(size=100)
    lengths = np.where(np.arange(300) < 200, 40.0, 1.0)
    _, by_length = principal_axes(points, lengths / lengths.mean(), 1)
    _, all_alike = principal_axes(points, np.ones(300), 1)
    assert abs(by_length[0, 0]) > 0.95 and abs(all_alike[1, 0]) > 0.95
    kinds = tuple(points.astype(np.float32) for _ in KINDS)
    scales = [
        PromptEffects.fit(Features(kinds, np.zeros((300, 1), np.float32), how), [1] * 300)[0].scales
        for how in (lengths, np.ones(300))
    ]
    assert scales[0][0][1] > 2 * scales[1][0][1]


def test_means_of_prompts_by_hand():
    values = np.array([[1.0, 2], [3, 4], [5, 9], [0, 0], [7, 3]])
    assert prompt_means(values, [2, 1, 2]).tolist() == [[2, 3], [5, 9], [3.5, 1.5]]


@pytest.mark.parametrize("sizes", [[1, 1], [2], [1, 2, 1]])
def test_a_handful_of_rows_is_no_error(sizes):
    features, _ = simulated(sizes)
    effects, views = PromptEffects.fit(features, sizes)
    for points in (*views, *effects(features, sizes)):
        assert len(points) == sum(sizes) and np.isfinite(points).all()
