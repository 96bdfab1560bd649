import numpy as np
from scipy.optimize import linear_sum_assignment

from twcli.assignment import assign_groups, assign_rows


def test_distinct_completions_of_a_prompt_take_distinct_latents():
    cost = np.array([[1.0, 2.0], [0.0, 5.0], [3.0, 1.0]])
    assert assign_groups(cost, [2, 1]).tolist() == [1, 0, 1]


def test_more_completions_than_latents():
    cost = np.array([[0.0, 9.0], [1.0, 9.0], [9.0, 0.0]])
    assert assign_groups(cost, [3]).tolist() == [0, 0, 1]


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
    assert assign_rows(cost[order], prompt[order], content[order]).tolist() == latents[order].tolist()
