import numpy as np
import pytest

from tests.conftest import centred, matched
from twcli.discovery.predictability import CrossValidation, predictability


def test_the_score_ranks_clusterings_as_their_alignment_does(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(2)
    judge = CrossValidation([points], sizes, 4, rng)
    scores = []
    for right in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
        prompts = np.repeat(rng.random(len(sizes)) < right, sizes)
        shuffled = np.concatenate(
            [rng.permutation(4)[part] for part in np.split(truth, np.cumsum(sizes)[:-1])]
        )
        scores.append(judge.assign(np.where(prompts, truth, shuffled))[1])
    assert scores == sorted(scores)


def test_correcting_moves_the_wrong_ones(strategies):
    points, sizes, truth = strategies
    rng = np.random.default_rng(3)
    start = np.where(rng.random(len(truth)) < 0.6, truth, rng.integers(4, size=len(truth)))
    assert matched(start, truth, 4) < 0.75
    clusters, _ = CrossValidation([points], sizes, 4, rng).reassign(start)
    assert matched(clusters, truth, 4) > 0.98


def test_differences_of_pairs_leave_the_partners_name_as_good_as_ones_own(pairs):
    features, sizes, truth = pairs
    partners = truth.reshape(-1, 2)[:, ::-1].ravel()
    scores = {
        keep: [
            CrossValidation(
                [centred(features, sizes, keep)], sizes, 4, np.random.default_rng(1)
            ).assign(names)[1]
            for names in (truth, partners)
        ]
        for keep in (False, True)
    }
    assert scores[False][0] == pytest.approx(scores[False][1], abs=1e-5)
    assert scores[True][0] > scores[True][1] + 0.2


# the score of a run


def share(points, sizes, soft):
    predicted, upper_bound = predictability(points, sizes, soft, seed=0)
    return predicted.sum() / upper_bound.sum()


def test_the_score_of_names_that_hold_for_all_prompts_is_near_one(strategies):
    points, sizes, truth = strategies
    assert 0.9 < share(points, sizes, np.eye(4)[truth]) < 1.02


def test_the_score_of_latents_that_say_nothing_is_zero(strategies):
    points, sizes, truth = strategies
    assert share(points, sizes, np.full((len(truth), 4), 0.25)) == pytest.approx(0, abs=1e-12)
    random = np.random.default_rng(5).integers(4, size=len(truth))
    assert abs(share(points, sizes, np.eye(4)[random])) < 0.15


def test_the_score_falls_with_every_prompt_whose_names_are_its_own(strategies):
    points, sizes, truth = strategies
    rng, scores = np.random.default_rng(6), []
    for right in (0.2, 0.4, 0.6, 0.8, 1.0):
        prompts = np.repeat(rng.random(len(sizes)) < right, sizes)
        shuffled = np.concatenate(
            [rng.permutation(4)[part] for part in np.split(truth, np.cumsum(sizes)[:-1])]
        )
        scores.append(share(points, sizes, np.eye(4)[np.where(prompts, truth, shuffled)]))
    assert scores == sorted(scores) and scores[0] < 0.5


def test_the_score_falls_with_certainty(strategies):
    points, sizes, truth = strategies
    scores = [
        share(points, sizes, (1 - doubt) * np.eye(4)[truth] + doubt / 4)
        for doubt in (0.9, 0.5, 0.1)
    ]
    assert scores == sorted(scores)


def test_more_completions_than_latents_can_still_score_one():
    """Six completions of each prompt, two of either of three kinds: no more than
    three latents can be apart.
    """
    rng = np.random.default_rng(0)
    truth = np.tile([0, 0, 1, 1, 2, 2], 200)
    points = 3 * np.eye(3)[truth] + 0.05 * rng.normal(size=(1200, 3))
    points -= np.repeat(points.reshape(200, 6, 3).mean(1), 6, axis=0)
    assert 0.95 < share(points, [6] * 200, np.eye(3)[truth]) < 1.02
