import pytest
import torch
from conftest import make_model
from torch import nn
from transformers import LlamaForCausalLM

from twcli.adapters import add_lora
from twcli.new_rows import further, tied


@pytest.mark.parametrize("tie", [True, False])
def test_whether_the_head_has_the_same_rows_is_seen_through_lora(tie):
    config = make_model().config
    config.tie_word_embeddings = tie
    model = LlamaForCausalLM(config)
    assert tied(model) == tie
    add_lora(model, [1, 2], rank=2, alpha=4, targets="all-linear", seed=0)
    assert tied(model) == tie


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
