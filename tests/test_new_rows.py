import pytest
import torch
from torch import nn

from twcli.new_rows import further


def test_chosen_rows_go_so_many_times_as_far():
    rows = nn.Parameter(torch.arange(12.0).view(6, 2))
    before = rows.detach().clone()
    with further(rows, torch.tensor([4, 1]), 3.0), torch.no_grad():
        rows += 0.5
    assert torch.equal(rows - before, torch.tensor([[0.5], [1.5], [0.5], [0.5], [1.5], [0.5]]).expand(6, 2))


def test_no_rows_are_none_of_its_business():
    rows = nn.Parameter(torch.ones(3, 2))
    with further(rows, torch.empty(0, dtype=torch.int64), 3.0), torch.no_grad():
        rows.zero_()
    assert not rows.any()


def test_rows_stay_where_the_step_fails():
    rows = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="no step"), further(rows, torch.tensor([0]), 3.0):
        raise RuntimeError("no step")
    assert rows.all()
