import numpy as np
import pytest
import torch
from conftest import encode, make_model, make_records

from twcli import baseline, packing
from twcli.baseline import (
    budget_batches,
    fast_batch_tokens,
    fingerprint,
    hidden_states,
    score_flat,
    target_nll,
    weights_hash,
    why_not_shared,
)
from twcli.batches import collate


def reference(model, encoded):
    """Plain transformers: one unpadded row at a time, all logits, log-softmax, shift by one."""
    rows = []
    for i in range(len(encoded)):
        ids = torch.tensor(encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]].astype(np.int64))[None]
        with torch.no_grad():
            log_p = model(ids).logits[0].float().log_softmax(-1)
        first = encoded.prompt_lengths[i] + 1
        targets = ids[0, first : first + encoded.target_lengths[i]]
        rows.append(-log_p[first - 1 : first - 1 + len(targets)].gather(1, targets[:, None])[:, 0].numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_b_t_equals_plain_transformers(template, rows_a_batch):
    model, encoded = make_model(), encode(template, make_records(12, 3))
    budget = rows_a_batch * int(encoded.lengths.max())
    flat = score_flat(model, template, encoded, np.arange(len(encoded)), batch_tokens=budget)
    expected = reference(model, encoded)
    assert expected.std() > 0.5  # the rows differ, so a shift by one could not pass
    assert np.abs(flat - expected).max() <= 1e-5


def test_a_wide_model_reads_fewer_tokens_at_once():
    narrow, wide = (fast_batch_tokens(make_model(hidden=size)) for size in (32, 512))
    assert narrow == 12288 and wide == 768  # 3 x 2^18 values of the widest layer's output, of twice the hidden size
    assert fast_batch_tokens(make_model(hidden=4096, layers=1)) == 256


def test_scoring_leaves_the_global_rng_and_dropout_alone(template):
    model, encoded = make_model(), encode(template, make_records())
    model.config.attention_dropout = 0.5
    model.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = score_flat(model, template, encoded, np.arange(len(encoded)), batch_tokens=64)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first, score_flat(model, template, encoded, np.arange(len(encoded)), batch_tokens=64))


def test_head_reads_supervised_positions_only(template):
    model, encoded = make_model(), encode(template, make_records())
    seen = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[:-1].numel()))
    score_flat(model, template, encoded, np.arange(len(encoded)), batch_tokens=64)
    assert sum(seen) == encoded.target_lengths.sum()


def test_logits_piece_by_piece_give_the_same_loss_and_gradient(template, monkeypatch):
    model, encoded = make_model(), encode(template, make_records())
    batch = collate(np.arange(len(encoded)), encoded, template, None)
    seen, results = [], []
    model.lm_head.register_forward_hook(lambda _m, _inputs, output: seen.append(output.numel()))
    for limit in (2**25, 5 * 30):
        monkeypatch.setattr(baseline, "HEAD_LOGITS", limit)
        model.zero_grad()
        nll = target_nll(model, hidden_states(model, batch.plain_BT), batch.plain_first_B, batch.targets_BS, batch.active_BS)
        (nll * torch.arange(nll.shape[1])).sum().backward()
        results.append((nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    assert max(seen[1:]) <= 5 * 30 < seen[0]
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], rtol=1e-5, atol=1e-4), name


def test_budget_batches_hold_every_row_once_within_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    order = np.argsort(-lengths, kind="stable")
    batches = budget_batches(lengths, order, 100)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 100 for b in batches)


def test_weights_hash_sees_one_changed_value():
    model = make_model()
    before = weights_hash(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-6
    assert weights_hash(model) != before
    assert weights_hash(make_model()) == before


def test_fingerprint_names_everything_b_t_depends_on(template):
    encoded = encode(template, make_records())
    keys = fingerprint(make_model(), template, encoded, max_length=128, precision="fp32", attention="sdpa")
    assert set(keys) == {"weights", "tokenizer", "template", "data", "max_length", "dtype", "attention"}


# completions of one prompt, the prompt read once


def free_attention(self, prompts, branches):
    """Costs as if reading the prompt once were always worth it."""
    return {packing.PLAIN: 2.0, packing.BRANCHES: 1.0, packing.TREE: 3.0}


@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_b_t_equals_plain_transformers_where_prompts_are_shared(template, rows_a_batch, monkeypatch):
    monkeypatch.setattr(packing.Costs, "__call__", free_attention)
    records = [record for pair in zip(make_records(12, 3), make_records(12, 3, seed=1), strict=True) for record in pair]  # in no order
    model, encoded = make_model(), encode(template, records)
    tokens = []
    model.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: tokens.append(inputs[0].numel()))
    budget = rows_a_batch * int(encoded.lengths.max())
    flat = score_flat(model, template, encoded, np.arange(len(encoded)), batch_tokens=budget, share_prompts=True)
    assert max(tokens) <= budget
    assert rows_a_batch == 1 or sum(tokens) < encoded.lengths.sum()  # of which each row's prompt is a part
    assert np.abs(flat - reference(model, encoded)).max() <= 1e-5


def test_long_prompts_are_shared_and_prompts_of_one_row_are_not(template):
    long = [{"x": " ".join(["w1"] * 60), "y": y} for y in ("w2", "w3 w4", "w5 w6")]
    model = make_model()
    for records, executions in ((long, {packing.BRANCHES}), (make_records(8, 1), {packing.PLAIN})):
        encoded = encode(template, records)
        assert {execution for _, execution in baseline._plan(model, encoded, np.arange(len(encoded)), 400)} == executions


def test_batches_by_prompt_hold_every_row_once_within_budget(template):
    encoded = encode(template, make_records(30, 3))
    rows = np.random.default_rng(0).permutation(len(encoded))[:70]
    batches = baseline._by_prompt(encoded, rows, 60)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    for batch in batches:
        prompts = len(set(encoded.prompt_index[batch]))
        assert len(batch) == 1 or prompts * encoded.prompt_lengths[batch].max() + len(batch) * encoded.target_lengths[batch].max() <= 60
    longest = [encoded.lengths[batch].max() for batch in batches]
    assert longest[0] == max(longest)


def test_a_model_whose_prompts_cannot_be_shared_says_why(template, monkeypatch):
    encoded = encode(template, make_records(4, 3))
    model = make_model()
    assert why_not_shared(model, template, encoded) is None
    model.config.attention_dropout = 0.5  # it does not act where nothing is trained
    assert why_not_shared(model, template, encoded) is None
    whole = baseline.packed_hidden_states
    monkeypatch.setattr(baseline, "packed_hidden_states", lambda *inputs: 1.1 * whole(*inputs))
    assert "its packed execution differs by" in why_not_shared(model, template, encoded)
    monkeypatch.setattr(baseline, "packed_hidden_states", lambda *inputs: whole(*inputs) * float("nan"))
    assert "differs by nan" in why_not_shared(model, template, encoded)

    def breaks(*_):
        raise RuntimeError("no such mask")

    monkeypatch.setattr(baseline, "packed_hidden_states", breaks)
    assert why_not_shared(model, template, encoded) == "its packed execution fails: no such mask"
    assert why_not_shared(model, template, encode(template, make_records(4, 1))) is None
