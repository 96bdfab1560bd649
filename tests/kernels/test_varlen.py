"""Rows of any lengths in one sequence attend as each does alone."""

import numpy as np
import torch
import torch.nn.functional as F

from twcli.kernels.varlen import Varlen

A, D = 3, 8


def test_long_and_short_rows_attend_as_each_does_alone():
    torch.manual_seed(0)
    prompt_G, row_R, length_R = np.array([150, 3]), np.array([0, 1, 1]), np.array([90, 200, 5])
    groups = Varlen.of(prompt_G, row_R, length_R, torch.device("cpu")).attention
    query, key, value = (torch.randn(1, A, 448, D, dtype=torch.float64) for _ in range(3))
    found = groups.attend(query, key, value, 0.4)[0].transpose(0, 1)
    for first, prompt, start, length in ((0, 150, 153, 90), (150, 3, 243, 200), (150, 3, 443, 5)):
        places = torch.cat(
            [torch.arange(first, first + prompt), torch.arange(start, start + length)]
        )
        alone = (x[0, :, places] for x in (query, key, value))
        expected = F.scaled_dot_product_attention(*alone, is_causal=True, scale=0.4)
        assert torch.allclose(found[:, places], expected, atol=1e-12)
