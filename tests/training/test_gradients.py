"""The whole objective through the real tiny model: autograd against central finite
differences, and the no-op claims.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import encode, in_double, make_model, make_records, make_tokenizer
from twcli.config.train import TrainConfig
from twcli.data.batches import collate, drop_history
from twcli.data.encoder import ExampleEncoder
from twcli.models.latents import LatentModel
from twcli.models.new_rows import add_latent_rows
from twcli.training.loss import objective
from twcli.training.objective import reconstruction, step_loss

STEP = 1e-5
LATENTS, ROWS = 3, 4


def config(**changes):
    return TrainConfig(model="M", data="D", baseline="B", latents=LATENTS, out="R", **changes)


def case(posterior="shared", tokens=1, dynamic=False, dropout=0.0):
    """(model in float64, batch with random b_t, ids of the latents)."""
    encoder = ExampleEncoder(make_tokenizer(), "tiny", tokens)
    encoder.add_latents(LATENTS)
    ids = encoder.latent_ids(LATENTS)
    backbone = make_model(hidden=16)
    add_latent_rows(backbone, ids, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = LatentModel(backbone, ids, posterior, dynamic_baseline=dynamic)
    if model.head is not None:
        torch.nn.init.normal_(model.head.outer.weight, std=0.5)  # a posterior that is not uniform
    batch = collate(np.arange(ROWS), encode(encoder, make_records(2, 2)), encoder, None)
    batch = drop_history(batch, dropout, np.random.default_rng(0), encoder.pad)
    weights = 2 * torch.rand(
        batch.active_BS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    weights[1] = 0.0  # a row below tau
    return (
        in_double(model),
        replace(batch, baseline_BS=weights * batch.active_BS),
        [i for latent in ids for i in latent],
    )


def value(model, batch, options, latents=None, weights=None):
    output = model(batch, latents)
    if weights is not None:
        output = replace(output, baseline_BS=weights)
    return step_loss(output, batch, options, latents)[0].sum()


def groups(model, latent_ids):
    """Name of each group and the entries that belong to it: (parameter, flat indices)."""
    rows = torch.tensor(latent_ids)
    result = {"backbone": [], "latent embeddings": [], "router rows": [], "posterior": []}
    for name, parameter in model.named_parameters():
        index = torch.arange(parameter.numel()).view(parameter.shape)
        if not name.startswith("backbone."):
            result["posterior"].append((parameter, index.flatten()))
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            group = "latent embeddings" if "embed" in name else "router rows"
            result[group].append((parameter, index[rows].flatten()))
            # row 0 is <pad>, which never trains
            result["backbone"].append((parameter, index[1 : min(latent_ids)].flatten()))
        else:
            result["backbone"].append((parameter, index.flatten()))
    return {name: members for name, members in result.items() if members}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "setting", "held", "tokens", "dropout"),
    [
        ("shared", {}, False, 1, 0.0),
        ("shared", {"weighting": "token"}, True, 2, 0.3),
        ("separate", {"weighting": "uniform", "beta": 0.7}, False, 1, 0.0),
        ("separate", {"ablation": "token-baseline"}, True, 1, 0.0),
        ("exact", {}, False, 1, 0.0),
        ("exact", {"ablation": "scalar-baseline", "beta": 1.0}, False, 2, 0.5),
    ],
)
def test_autograd_agrees_with_central_differences(posterior, setting, held, tokens, dropout):
    model, batch, latent_ids = case(posterior, tokens, dropout=dropout)
    options = config(**setting)
    latents = torch.tensor([1, 0, 0, 2]) if held else None
    value(model, batch, options, latents).backward()
    rng = np.random.default_rng(0)
    for group, members in groups(model, latent_ids).items():
        sizes = np.asarray([len(index) for _, index in members])
        seen = []
        for drawn in rng.choice(len(members), 16, p=sizes / sizes.sum()):
            parameter, indices = members[drawn]
            entry = int(rng.choice(indices))
            flat = parameter.data.view(-1)
            before, values = flat[entry].item(), []
            with torch.no_grad():
                for shift in (STEP, -STEP):
                    flat[entry] = before + shift
                    values.append(value(model, batch, options, latents).item())
                flat[entry] = before
            gradient = 0.0 if parameter.grad is None else parameter.grad.view(-1)[entry].item()
            assert gradient == pytest.approx(
                (values[0] - values[1]) / (2 * STEP), rel=1e-6, abs=1e-8
            ), group
            seen.append(abs(gradient))
        assert max(seen) > 1e-4, group  # the group is really trained


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ablation", ["scalar-baseline", "token-baseline"])
def test_subtraction_leaves_every_gradient_of_the_uniform_loss(ablation, dynamic):
    gradients = []
    for options in (config(weighting="uniform"), config(weighting="token", ablation=ablation)):
        model, batch, latent_ids = case(dynamic=dynamic)
        value(model, batch, options).backward()
        embeddings = model.backbone.get_input_embeddings().weight.grad
        gradients.append([embeddings[latent_ids], *(p.grad for p in model.parameters())])
    for plain, subtracted in zip(*gradients, strict=True):
        assert (subtracted - plain).norm() <= 1e-12 * plain.norm()
    assert gradients[0][0].norm() > 1e-3


def test_weighting_does_change_the_gradient():
    norms = []
    for weighting in ("uniform", "token"):
        model, batch, latent_ids = case()
        value(model, batch, config(weighting=weighting)).backward()
        norms.append(model.backbone.get_input_embeddings().weight.grad[latent_ids])
    assert (norms[1] - norms[0]).norm() > 0.1 * norms[0].norm()


@pytest.mark.parametrize("posterior", ["shared", "separate", "exact"])
def test_a_dynamic_b_t_is_a_constant_of_the_step(posterior):
    """Autograd of the dynamic policy equals autograd with the same b_t given as numbers."""
    gradients = []
    for fixed in (False, True):
        model, batch, _ = case(posterior, dynamic=True)
        weights = model(batch).baseline_BS.detach().clone() if fixed else None
        value(model, batch, config(), weights=weights).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_one_branch_gives_the_gradient_of_all_branches_where_q_is_one_hot():
    """The objective with the exact sum over z, at a one-hot q, against the pass that
    reads the held branch alone.
    """
    latents = torch.tensor([1, 0, 0, 2])
    gradients = []
    for held in (True, False):
        model, batch, _ = case("exact")
        if held:
            value(model, batch, config(posterior="exact"), latents).backward()
        else:
            output = model(batch)
            one_hot = torch.nn.functional.one_hot(latents, LATENTS).double()
            reff = reconstruction(
                output.nll_BCS, batch.active_BS, batch.baseline_BS, config(posterior="exact")
            )
            objective(one_hot.log(), output.log_router_BK, reff, config().beta).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-10, atol=1e-14), name
