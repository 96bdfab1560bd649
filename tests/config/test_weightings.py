import dataclasses

import pytest
import torch

from twcli.config.train import TrainConfig
from twcli.config.weightings import WEIGHTINGS, Weighting
from twcli.errors import UserError
from twcli.training.loss import masked_token_nll_per_example
from twcli.training.objective import reconstruction

NEEDED = {"model": "M", "data": "D", "baseline": "B", "latents": 2, "out": "R"}


def test_a_weighting_is_added_in_one_place(monkeypatch):
    """The option, its check and the loss all go by `WEIGHTINGS`."""
    root = Weighting("by the root of b_t", uniform=0.5, token=1.5, weights=lambda b: b.sqrt())
    monkeypatch.setitem(WEIGHTINGS, "added", root)
    config = TrainConfig(**NEEDED, weighting="added")
    assert config.term_weights() == (0.5, 1.5) and config.uses_weights
    generator = torch.Generator().manual_seed(0)
    nll_BCS = torch.rand(3, 2, 5, generator=generator, dtype=torch.float64)
    baseline_BS = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    active_BS = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    found = reconstruction(nll_BCS, active_BS, baseline_BS, config)
    uniform = masked_token_nll_per_example(nll_BCS, active_BS[:, None])
    weighted = masked_token_nll_per_example(
        nll_BCS, active_BS[:, None], baseline_BS.sqrt()[:, None]
    )
    assert torch.allclose(found, 0.5 * uniform + 1.5 * weighted, rtol=1e-12)
    by_baseline = reconstruction(
        nll_BCS, active_BS, baseline_BS, dataclasses.replace(config, weighting="mixed")
    )
    assert not torch.allclose(found, by_baseline)


def test_help_and_refusal_name_every_weighting():
    shown = TrainConfig.__dataclass_fields__["weighting"].metadata["help"]
    for name, weighting in WEIGHTINGS.items():
        assert f"{name} ({weighting.help})" in shown
    with pytest.raises(UserError, match=f"'other' is not one of {', '.join(WEIGHTINGS)}"):
        TrainConfig(**NEEDED, weighting="other")
