from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from twcli.discovery.assignment import anchored, assign_groups, assign_rows


def test_distinct_completions_of_a_prompt_take_distinct_latents():
    cost = np.array([[1.0, 2.0], [0.0, 5.0], [3.0, 1.0]])
    assert assign_groups(cost, [2, 1]).tolist() == [1, 0, 1]


def test_a_cluster_costs_less_than_other_latents():
    cost = np.array([[1.0, 2.0], [0.0, 5.0], [3.0, 1.0]])
    assert anchored(cost, np.array([0, 1, -1]), 2.0).tolist() == [
        [1.0, 4.0],
        [2.0, 5.0],
        [3.0, 1.0],
    ]
    assert cost[1].tolist() == [0.0, 5.0]


def test_more_completions_than_latents():
    cost = np.array([[0.0, 9.0], [1.0, 9.0], [9.0, 0.0]])
    assert assign_groups(cost, [3]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [4, 5])
def test_more_completions_than_latents_are_cheapest_together_however_long_each_is(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.normal(size=(size, 3))
        latent = assign_groups(cost, [size])
        ways = [(*way, *set(range(size)) - set(way)) for way in permutations(range(size), 3)]
        assert cost[range(size), latent].sum() == pytest.approx(
            min(
                cost[list(way[:3]), range(3)].sum() + cost[list(way[3:])].min(1).sum()
                for way in ways
            )
        )
        assert (
            assign_groups(cost + 10 * rng.normal(size=(size, 1)), [size]).tolist()
            == latent.tolist()
        )


def test_rows_in_any_order_equal_ones_together():
    rng = np.random.default_rng(0)
    prompt = np.array([7, 3, 7, 3, 7, 300])
    content = np.array([[1, 9], [2, 2], [1, 9], [2, 3], [4, 4], [1, 9]], np.uint8)
    cost = rng.random((6, 3))
    cost[2] = cost[0]
    latents = assign_rows(cost, prompt, content)
    assert latents[0] == latents[2] != latents[4]
    assert latents[1] != latents[3]
    assert latents[5] == cost[5].argmin()
    assert latents[[1, 3]].tolist() == linear_sum_assignment(cost[[1, 3]])[1].tolist()
    order = rng.permutation(6)
    assert (
        assign_rows(cost[order], prompt[order], content[order]).tolist() == latents[order].tolist()
    )


@pytest.mark.parametrize(("latents", "size"), [(4, 3), (5, 5), (7, 4), (6, 2)])
def test_groups_of_any_size_take_the_cheapest_distinct_latents(latents, size):
    rng = np.random.default_rng(0)
    sizes = [size, 1, size, 2]
    cost = rng.normal(size=(sum(sizes), latents))
    latent = assign_groups(cost, sizes)
    for end, rows in zip(np.cumsum(sizes), sizes, strict=True):
        block, chosen = cost[end - rows : end], latent[end - rows : end]
        least = min(block[range(rows), way].sum() for way in permutations(range(latents), rows))
        assert len(set(chosen)) == rows
        assert block[range(rows), chosen].sum() == pytest.approx(least)
