import numpy as np
import pytest
import torch
from conftest import encode, make_model, make_records

from twcli.batches import collate
from twcli.latents import LatentModel, add_latent_rows, freeze_backbone


def build(template, latents=3, posterior="shared", **sizes):
    model = make_model(**sizes)
    template.add_latents(latents)
    ids = template.latent_ids(latents)
    add_latent_rows(model, ids, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return LatentModel(model, ids, posterior).eval()


def flat(latent_ids):
    return [token for latent in latent_ids for token in latent]


@pytest.fixture
def rows(template):
    return encode(template, make_records(5, 2))


def test_branches_and_router_equal_plain_transformers(template, rows):
    model = build(template)
    output = model(collate(np.arange(10), rows, template, None))
    with torch.no_grad():
        for row in range(10):
            ids = rows.ids[rows.offsets[row] : rows.offsets[row + 1]].tolist()
            p, s = rows.prompt_lengths[row], rows.target_lengths[row]
            for k, latent in enumerate(template.latent_ids(3)):
                full = torch.tensor([[*ids[:p], template.z_open, *latent, template.z_close, *ids[p:]]])
                log_p = model.backbone(full).logits[0].log_softmax(-1)
                targets = full[0, p + 4 : p + 4 + s]
                expected = -log_p[p + 3 : p + 3 + s].gather(1, targets[:, None])[:, 0]
                assert torch.allclose(output.nll_BKS[row, k, :s], expected, atol=1e-5)
                assert not output.nll_BKS[row, k, s:].any()
            logits = model.backbone(torch.tensor([[*ids[:p], template.z_open]])).logits[0, -1, flat(template.latent_ids(3))]
            assert torch.allclose(output.log_router_BK[row], logits.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("latents", [2, 8])
@pytest.mark.parametrize(("posterior", "extra"), [("shared", 1), ("separate", 1), ("exact", 0)])
def test_sequences_read_per_record(template, rows, latents, posterior, extra):
    model = build(template, latents, posterior)
    read = []

    def count(_module, args, kwargs):
        read.append(kwargs["input_ids"].shape[0])

    model.backbone.base_model.register_forward_pre_hook(count, with_kwargs=True)
    if model.reader is not None:
        model.reader.register_forward_pre_hook(count, with_kwargs=True)
    output = model(collate(np.arange(7), rows, template, None))
    assert sum(read) == 7 * (latents + extra) == output.sequences


def test_posterior_ignores_padding_and_batch_mates(template, rows):
    model = build(template)
    torch.nn.init.normal_(model.head.outer.weight)
    together = model.posterior_logits(collate(np.arange(10), rows, template, None))
    alone = torch.cat([model.posterior_logits(collate(np.array([i]), rows, template, None)) for i in range(10)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 0.01


def test_posterior_starts_uniform(template, rows):
    log_q = build(template)(collate(np.arange(4), rows, template, None)).log_posterior_BK
    assert torch.allclose(log_q.exp(), torch.full((4, 3), 1 / 3))


@pytest.mark.parametrize("latents", [2, 8, 50])
def test_latent_rows_start_apart(template, latents):
    model = build(template, latents).backbone
    rows = model.get_input_embeddings().weight[flat(template.latent_ids(latents))]
    typical = torch.pdist(model.get_input_embeddings().weight[:30]).mean()
    assert torch.pdist(rows).min() > 0.5 * typical
    assert model.config.vocab_size == 30 + latents == model.get_output_embeddings().weight.shape[0]


def test_frozen_backbone_moves_only_the_latent_tokens(template, rows):
    model = build(template, posterior="shared")
    ids = flat(template.latent_ids(3))
    freeze_backbone(model, ids)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1, weight_decay=0.0)
    output = model(collate(np.arange(8), rows, template, None))
    # Not a plain sum over latents: that has no gradient in q.
    (output.nll_BKS.mean(-1) * output.log_posterior_BK.exp()).sum().backward()
    optimizer.step()
    for name, after in model.state_dict().items():
        changed = (after != before[name]).flatten(1).any(1).nonzero().flatten().tolist() if after.dim() == 2 else []
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert changed and set(changed) <= set(ids), name
        elif name.startswith("backbone."):
            assert torch.equal(after, before[name]), name
    assert not torch.equal(model.head.outer.weight, before["head.outer.weight"])
