import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import encode, in_double, make_model, make_records, make_tokenizer
from twcli.config.train import TrainConfig
from twcli.data.batches import collate, opening
from twcli.data.encoder import ExampleEncoder
from twcli.data.template import read_template
from twcli.kernels.packing import BRANCHES, PLAIN, TREE
from twcli.models.baseline import score_flat
from twcli.models.forward import hidden_states
from twcli.models.latents import LatentModel
from twcli.models.new_rows import add_latent_rows, freeze_backbone
from twcli.models.positions import section_positions
from twcli.training.loss import objective
from twcli.training.objective import step_loss


def build(encoder, latents=3, posterior="shared", dynamic=False, **sizes):
    model = make_model(**sizes)
    encoder.add_latents(latents)
    ids = encoder.latent_ids(latents)
    add_latent_rows(model, ids, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return LatentModel(model, ids, posterior, dynamic_baseline=dynamic).eval()


def flat(latent_ids):
    return [token for latent in latent_ids for token in latent]


@pytest.fixture
def rows(encoder):
    return encode(encoder, make_records(5, 2))


FRAMES = {  # how many tokens stand between the latent section and y
    "tags": None,
    "0": "<bos> {x} </x> <y>{z}{y} </y> <eos>",
    "1": "<bos> {x} </x> {z}<y>{y} </y> <eos>",
    "3": "<bos> <x> {x} </x>{z}<y> w1 w2{y} </y> <eos>",
    "nothing before the section": "<bos> <x> {x}{z}</x> <y>{y} </y> <eos>",
}


@pytest.mark.slow
@pytest.mark.parametrize("execution", [PLAIN, BRANCHES, TREE])
@pytest.mark.parametrize("template", FRAMES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_branches_and_router_equal_plain_transformers(tokens, template, execution, tmp_path):
    tokenizer, file, records = make_tokenizer(), tmp_path / "frame", make_records(5, 2)
    file.write_text(FRAMES[template] or "")
    encoder = ExampleEncoder(
        tokenizer,
        "tiny",
        tokens,
        read_template(str(file) if FRAMES[template] else "tags", tokenizer, "tiny"),
    )
    encoded = encode(encoder, records)
    model = build(encoder)
    for weight in (model.backbone.lm_head.weight, model.head.outer.weight):
        # else new latents and the posterior are all but uniform wherever they are read
        torch.nn.init.normal_(weight, std=0.3)
    model.execution = execution
    ids = encoder.latent_ids(3)
    with torch.no_grad():
        output = model(collate(np.arange(10), encoded, encoder, None))
        for row, record in enumerate(records):
            targets = torch.tensor([*encoded.y_ids(row), encoder.y_close])
            s = len(targets)
            for k, latent in enumerate(ids):
                prompt = encoder.prompt(record["x"], latent)
                log_p = (
                    model.backbone(torch.tensor([[*prompt, *targets]]))
                    .logits[0, len(prompt) - 1 : -1]
                    .log_softmax(-1)
                )
                assert torch.allclose(
                    output.nll_BCS[row, k, :s], -log_p.gather(1, targets[:, None])[:, 0], atol=1e-5
                )
                assert not output.nll_BCS[row, k, s:].any()
            logits = model.backbone(torch.tensor([encoder.router_prompt(record["x"])])).logits[
                0, -1, [latent[0] for latent in ids]
            ]
            assert torch.allclose(output.log_router_BK[row], logits.log_softmax(-1), atol=1e-5)
            plain = torch.tensor([[*encoder.prompt(record["x"]), *targets]])
            hidden = model.backbone.base_model(plain).last_hidden_state
            logits = model.head(
                hidden, torch.tensor([plain.shape[1] - s - 1]), torch.ones(1, s, dtype=bool)
            )
            assert torch.allclose(
                output.log_posterior_BK[row], logits[0].log_softmax(-1), atol=1e-5
            )


@pytest.mark.parametrize("latents", [2, 8])
@pytest.mark.parametrize(
    ("posterior", "dynamic", "extra"),
    [
        ("shared", False, 1),
        ("separate", False, 1),
        ("exact", False, 0),
        ("shared", True, 1),
        ("separate", True, 2),
        ("exact", True, 1),
    ],
)
def test_sequences_read_per_record(encoder, rows, latents, posterior, dynamic, extra):
    model = build(encoder, latents, posterior, dynamic)
    read = []

    def count(_module, args, kwargs):
        read.append(kwargs["input_ids"].shape[0])

    model.backbone.base_model.register_forward_pre_hook(count, with_kwargs=True)
    if model.reader is not None:
        model.reader.register_forward_pre_hook(count, with_kwargs=True)
    output = model(collate(np.arange(7), rows, encoder, None))
    assert sum(read) == 7 * (latents + extra) == output.sequences


@pytest.mark.parametrize("posterior", ["shared", "separate", "exact"])
def test_dynamic_baseline_is_the_frozen_one_as_long_as_the_backbone_is(encoder, rows, posterior):
    frozen = score_flat(make_model(), encoder, rows, np.arange(10), batch_tokens=200)
    model = build(encoder, posterior=posterior, dynamic=True)
    # the new vocabulary takes no probability, so that b_t is the smaller model's
    with torch.no_grad():
        model.backbone.lm_head = masked_head(model.backbone.lm_head, 30)
    batch = collate(np.arange(10), rows, encoder, None)
    baseline = model(batch).baseline_BS
    assert not baseline.requires_grad and baseline.dtype == torch.float32
    assert torch.allclose(baseline[batch.active_BS], torch.from_numpy(frozen), atol=1e-5)
    assert not baseline[~batch.active_BS].any()
    assert build(encoder, posterior=posterior)(batch).baseline_BS is None


def masked_head(head, known):
    wide = torch.nn.Linear(head.in_features, head.out_features)
    wide.weight, wide.bias = head.weight, torch.nn.Parameter(torch.zeros(head.out_features))
    wide.bias[known:] = -1e9
    return wide


@pytest.mark.parametrize("posterior", ["shared", "separate", "exact"])
def test_dynamic_baseline_changes_no_gradient_by_being_read(encoder, rows, posterior):
    """b_t only weights: a step with the backbone's b_t equals one in which the same
    numbers come from a file.
    """
    batch = collate(np.arange(6), rows, encoder, None)
    gradients = []
    for dynamic in (True, False):
        model = build(encoder, posterior=posterior, dynamic=dynamic)
        output = model(batch)
        if dynamic:
            weights = output.baseline_BS
        loss = (output.nll_BCS * weights[:, None]).sum() + output.log_router_BK[:, 0].sum()
        if output.log_posterior_BK is not None:
            loss = loss + output.log_posterior_BK[:, 0].sum()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(
        torch.equal(gradients[0][name], g) if g is not None else gradients[0][name] is None
        for name, g in gradients[1].items()
    )


def test_a_double_model_gives_double_losses(encoder, rows):
    single, double = build(encoder, dynamic=True), in_double(build(encoder, dynamic=True))
    batch = collate(np.arange(6), rows, encoder, None)
    one, other = single(batch), double(batch)
    for name in ("nll_BCS", "log_router_BK", "log_posterior_BK", "baseline_BS"):
        assert (
            getattr(one, name).dtype == torch.float32
            and getattr(other, name).dtype == torch.float64
        )
        assert torch.allclose(getattr(one, name), getattr(other, name).float(), atol=1e-4)


def test_posterior_ignores_padding_and_batch_mates(encoder, rows):
    model = build(encoder)
    torch.nn.init.normal_(model.head.outer.weight)
    together = model.posterior_logits(collate(np.arange(10), rows, encoder, None))
    alone = torch.cat(
        [model.posterior_logits(collate(np.array([i]), rows, encoder, None)) for i in range(10)]
    )
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 0.01


def test_posterior_starts_uniform(encoder, rows):
    log_q = build(encoder)(collate(np.arange(4), rows, encoder, None)).log_posterior_BK
    assert torch.allclose(log_q.exp(), torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize("latents", [2, 8, 50])
def test_latent_rows_start_apart(encoder, latents):
    model = build(encoder, latents).backbone
    rows = model.get_input_embeddings().weight[flat(encoder.latent_ids(latents))]
    typical = torch.pdist(model.get_input_embeddings().weight[:30]).mean()
    assert torch.pdist(rows).min() > 0.5 * typical
    assert model.config.vocab_size == 30 + latents == model.get_output_embeddings().weight.shape[0]


def test_frozen_backbone_moves_only_the_latent_tokens(encoder, rows):
    model = build(encoder, posterior="shared")
    ids = flat(encoder.latent_ids(3))
    freeze_backbone(model.backbone, ids)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.0
    )
    output = model(collate(np.arange(8), rows, encoder, None))
    # Not a plain sum over latents: that has no gradient in q.
    (output.nll_BCS.mean(-1) * output.log_posterior_BK.exp()).sum().backward()
    optimizer.step()
    for name, after in model.state_dict().items():
        changed = (
            (after != before[name]).flatten(1).any(1).nonzero().flatten().tolist()
            if after.dim() == 2
            else []
        )
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert changed and set(changed) <= set(ids), name
        elif name.startswith("backbone."):
            assert torch.equal(after, before[name]), name
    assert not torch.equal(model.head.outer.weight, before["head.outer.weight"])


@pytest.mark.parametrize("execution", [PLAIN, BRANCHES, TREE])
def test_an_opening_has_the_losses_of_the_whole(encoder, rows, execution):
    model = build(encoder)
    model.execution = execution
    batch = collate(np.arange(10), rows, encoder, None)
    weights = torch.zeros(batch.active_BS.shape)
    weights[:, :2] = 1.0
    cut, _ = opening(replace(batch, baseline_BS=weights), 1e-3)
    assert cut.active_BS.shape[1] == 2 < batch.active_BS.shape[1]
    (whole, router), (part, router_too) = (model.score_branches(b) for b in (batch, cut))
    assert torch.allclose(whole[..., :2], part, atol=1e-5) and torch.allclose(
        router, router_too, atol=1e-5
    )


@pytest.mark.parametrize("width", [0.0, 0.4])
@pytest.mark.parametrize("template", FRAMES)
def test_a_section_takes_up_a_share_of_its_positions(template, width, tmp_path):
    """y is where it would be without a section of width 0, in every execution."""
    tokenizer, file = make_tokenizer(), tmp_path / "frame"
    file.write_text(FRAMES[template] or "")
    frame = read_template(str(file) if FRAMES[template] else "tags", tokenizer, "tiny")
    encoder = ExampleEncoder(tokenizer, "tiny", 2, frame)
    encoded = encode(encoder, make_records(5, 2))
    model = in_double(build(encoder)).double()
    batch = collate(np.arange(10), encoded, encoder, None)
    found = {}
    for execution in (PLAIN, BRANCHES, TREE):
        model.execution, model.section_width = execution, width
        model.zero_grad()
        output = model(batch)
        output.nll_BCS.sum().backward()
        gradient = model.backbone.get_input_embeddings().weight.grad.clone()
        found[execution] = output.nll_BCS, output.log_router_BK, output.log_posterior_BK, gradient
    for execution in (BRANCHES, TREE):
        for one, other in zip(found[PLAIN], found[execution], strict=True):
            assert torch.allclose(one, other, atol=1e-9), execution
    prompt = encoder.prompt("w1 w2", encoder.latent_ids(3)[1])
    start, tokens = len(encoder.router_prompt("w1 w2")) - 1, model.section
    ids = torch.tensor([[*prompt, *encoder.prompt("w3")]])
    places = section_positions(torch.tensor([start]), tokens, width, ids.shape[1])
    usual = torch.arange(ids.shape[1]).double()
    expected = usual.clone()
    expected[start : start + tokens] = start - 1 + width * torch.arange(1, tokens + 1)
    expected[start + tokens :] -= (1 - width) * tokens
    assert torch.allclose(places[0].double(), expected, atol=1e-5)
    with torch.no_grad():
        moved, whole = (hidden_states(model.backbone, ids, at) for at in (places, None))
        assert not torch.allclose(moved[0, -1], whole[0, -1], atol=1e-4)
        assert torch.allclose(hidden_states(model.backbone, ids, usual[None]), whole, atol=1e-6)


def prunable(encoder, execution, posterior):
    """A model whose posterior all but rules out some latents, in float64, and
    a batch of short prompts.
    """
    model = in_double(build(encoder, 8, posterior)).double()
    model.execution = execution
    torch.nn.init.normal_(model.head.outer.weight, std=0.3)
    with torch.no_grad():
        model.head.outer.bias[:3] = 8.0
    rows = encode(encoder, [{"x": "w1", "y": f"w{i} w{i + 1} w3 w4 w5 w6 w7 w8"} for i in range(6)])
    return model, collate(np.arange(6), rows, encoder, None)


def loss_and_gradients(model, batch, prune):
    model.zero_grad()
    output = model(batch, prune=prune)
    reff_BK = output.nll_BCS.sum(-1) / batch.active_BS.sum(-1, keepdim=True)
    loss = objective(output.log_posterior_BK, output.log_router_BK, reff_BK, 0.1).sum()
    loss.backward()
    return (
        output,
        loss.item(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


@pytest.mark.parametrize("posterior", ["shared", "separate"])
@pytest.mark.parametrize("execution", [PLAIN, BRANCHES, TREE])
def test_pruning_keeps_the_loss_and_the_posteriors_gradient(encoder, execution, posterior):
    model, batch = prunable(encoder, execution, posterior)
    whole, loss, exact = loss_and_gradients(model, batch, 0.0)
    pruned, loss_too, gradients = loss_and_gradients(model, batch, 1e-2)
    assert whole.pruned == 0 < pruned.pruned <= 1e-2
    assert (
        loss_too == pytest.approx(loss, rel=1e-12) and pruned.sequences == whole.sequences == 6 * 9
    )
    assert torch.allclose(whole.nll_BCS, pruned.nll_BCS, atol=1e-10)
    assert all(
        torch.allclose(gradients[name], g, atol=1e-10)
        for name, g in exact.items()
        if name.startswith(("head.", "reader."))
    )
    apart = torch.cat([(gradients[name] - g).flatten() for name, g in exact.items()]).norm()
    assert 0 < apart < 0.02 * torch.cat([g.flatten() for g in exact.values()]).norm()


@pytest.mark.parametrize("execution", [PLAIN, BRANCHES, TREE])
def test_latents_without_mass_are_read_as_far_as_b_t_needs(encoder, execution, monkeypatch):
    model, batch = prunable(encoder, execution, "shared")
    weights = torch.full(batch.active_BS.shape, 1e-5).double()
    weights[:, :3] = 1.0
    batch, read, found = replace(batch, baseline_BS=weights), [], {}
    score = LatentModel._forward_and_score
    monkeypatch.setattr(
        LatentModel,
        "_forward_and_score",
        lambda model, batch, latents: (
            read.append((latents.shape[1], batch.active_BS.shape[1])),
            score(model, batch, latents),
        )[1],
    )
    for prune in (0.0, 1e-2):
        output = model(batch, prune=prune)
        loss, parts = step_loss(
            output, batch, TrainConfig(model="m", data="d", out="o", baseline="b", latents=8), None
        )
        found[prune] = output, loss.mean().item(), parts["pruned_bound"]
    S = batch.active_BS.shape[1]
    (C, whole), (others, part) = read
    assert (
        (whole, part, C + others) == (S, 3, 8)
        and found[0.0][2] == 0
        and found[0.0][0].nll_bound_BS is None
    )
    (exact, loss, _), (output, loss_too, bound) = found[0.0], found[1e-2]
    unlikely_BK = torch.ones(6, 8, dtype=torch.bool).scatter(
        1, exact.log_posterior_BK.topk(C).indices, False
    )
    assert torch.allclose(output.nll_BCS[..., :3], exact.nll_BCS[..., :3], atol=1e-10)
    assert torch.allclose(output.nll_BCS[~unlikely_BK], exact.nll_BCS[~unlikely_BK], atol=1e-10)
    assert 0 < abs(loss_too - loss) < bound
    mass_BK = exact.log_posterior_BK.exp()
    likely_BK = mass_BK.masked_fill(unlikely_BK, 0)
    expected_BS = torch.einsum("bk,bks->bs", likely_BK, exact.nll_BCS) / likely_BK.sum(
        1, keepdim=True
    )
    guessed = output.nll_BCS[unlikely_BK].view(6, others, S)[..., 3:]
    assert torch.allclose(guessed, expected_BS[:, None, 3:].expand_as(guessed), atol=1e-10)
    left_out_B = mass_BK[unlikely_BK].view(6, others).sum(1) * math.log(model.backbone.vocab_size)
    shares_B = (S - 3) / S + 2 * weights[:, 3:].sum(1) / weights.sum(1)
    assert bound == pytest.approx((left_out_B * shares_B).mean().item(), rel=1e-6)


def test_pruning_drops_no_mass_above_the_share(encoder):
    model, batch = prunable(encoder, PLAIN, "shared")
    q_BK = model(batch).log_posterior_BK.exp().detach()
    sorted_K = q_BK.sort(1, descending=True).values.mean(0)
    left_K = [sorted_K[k:].sum().item() for k in range(9)]
    for prune in (1e-4, 1e-3, 1e-2, 0.1, 0.5):
        assert model(batch, prune=prune).pruned == pytest.approx(
            next(left for left in left_K if left <= prune)
        )


@pytest.mark.parametrize("undecided", ["an even posterior", "a long prompt"])
def test_nothing_is_pruned_where_it_would_not_pay(encoder, undecided):
    model, batch = prunable(encoder, PLAIN, "shared")
    if undecided == "an even posterior":
        torch.nn.init.zeros_(model.head.outer.weight)
        torch.nn.init.zeros_(model.head.outer.bias)
    else:
        rows = encode(encoder, [{"x": "w1 " * 40, "y": "w2 w3"}, {"x": "w4 " * 40, "y": "w2 w3"}])
        batch = collate(np.arange(2), rows, encoder, None)
    _, loss, exact = loss_and_gradients(model, batch, 0.0)
    pruned, loss_too, gradients = loss_and_gradients(model, batch, 1e-2)
    assert pruned.pruned == 0 and loss_too == pytest.approx(loss, rel=1e-12)
    assert all(torch.allclose(gradients[name], g, atol=1e-10) for name, g in exact.items())
