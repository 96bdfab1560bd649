import numpy as np

from tests.evaluation.test_metrics import NAMES
from twcli.data.example import Example
from twcli.discovery.latent_cards import CardRows, latent_cards, map_of, plane, some
from twcli.evaluation.evidence import asked_and_obeyed
from twcli.evaluation.judged import Generations


def test_asked_against_obeyed():
    made = Generations(
        np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1]), ["a", None, "a", "b", "a"], [None] * 5
    )
    assert asked_and_obeyed(made, 3) == {
        "strategies": ["a", "b", "none known"],
        "counts": [[2, 0, 0], [1, 1, 1], [0, 0, 0]],
    }
    assert asked_and_obeyed(None, 3) is None
    unnamed = Generations(np.array([0]), np.array([0]), [None], [True], named=False)
    assert asked_and_obeyed(unnamed, 3) is None


def test_cards_show_each_text_once_and_leave_out_what_has_no_latent():
    latent_N = np.array([0, 0, 1, -1, 0])
    probability_N = np.array([0.9, 0.9, 0.8, 0.0, 0.5])
    examples = {i: Example(f"x{i}", NAMES[0] if i < 2 else NAMES[1]) for i in range(5)}
    chosen = CardRows.of(latent_N, probability_N, 3, np.array([0, 2, 3, 4]))
    cards = latent_cards(chosen, latent_N, probability_N, examples, lambda row: 10 + row)
    assert [card["share"] for card in cards] == [0.75, 0.25, 0.0]
    assert [[t["row"] for t in card["typical"]] for card in cards] == [[10, 14], [12], []]
    assert cards[0]["mean_probability"] == (0.9 + 0.9 + 0.5) / 3


def test_the_plane_separates_latents_whatever_else_varies():
    rng = np.random.default_rng(0)
    latent = rng.integers(3, size=600)
    points = 10 * rng.normal(size=(600, 20))
    points[:, :3] = np.eye(3)[latent] + 0.05 * rng.normal(size=(600, 3))
    points[:, 3:] *= np.linspace(1, 3, 17)
    points[:, 3:] -= points[:, 3:].mean(0)
    for k in range(3):  # what else varies says nothing of the latent
        points[latent == k, 3:] -= points[latent == k, 3:].mean(0)
    flat = plane(points, np.eye(3)[latent])
    means = np.array([flat[latent == k].mean(0) for k in range(3)])
    within = max(flat[latent == k].std(0).max() for k in range(3))
    between = min(np.linalg.norm(means[a] - means[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    assert flat.shape == (600, 2) and between > 5 * within


def test_a_single_direction_and_many_points():
    flat = plane(np.ones((5, 1)), np.full((5, 2), 0.5))
    assert flat.shape == (5, 2)
    found = map_of(np.zeros((5000, 2)), np.zeros(5000, int))["points"]
    assert len(found) == 2000 and found[0] == [0.0, 0.0, 0]
    assert (np.diff(some(np.arange(5000), 100)) > 0).all()
