from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records
from twcli.kernels.packing import ATTENTION, attention_of
from twcli.models import forward
from twcli.models.baseline import score_flat
from twcli.models.forward import Layout, fast_batch_tokens


@pytest.mark.slow
def test_a_wide_model_reads_fewer_tokens_at_once():
    narrow, wide = (fast_batch_tokens(make_model(hidden=size)) for size in (32, 512))
    # 3 x 2^18 values of the widest layer's output, of twice the hidden size
    assert narrow == 12288 and wide == 768
    assert fast_batch_tokens(make_model(hidden=4096, layers=1)) == 256


def test_a_model_that_changes_as_it_reads_reads_one_batch_after_another(encoder, monkeypatch):
    seen = []
    one_by_one = forward.core_by_core
    monkeypatch.setattr(
        forward,
        "core_by_core",
        lambda *inputs, alone: seen.append(alone) or one_by_one(*inputs, alone=alone),
    )
    for kind, alone in (("dynamic", True), ("llama3", False)):
        parameters = {
            "rope_type": kind,
            "rope_theta": 1e4,
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        model = make_model(rope_parameters=parameters)
        encoded = encode(encoder, make_records())
        score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=100)
        assert set(seen) == {alone}
        seen.clear()


def test_batches_by_prompt_hold_every_row_once_within_budget(encoder):
    encoded = encode(encoder, make_records(30, 3))
    rows = np.random.default_rng(0).permutation(len(encoded))[:70]
    batches = forward._by_prompt(encoded, rows, 60)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    for batch in batches:
        _, leaders = np.unique(encoded.prompt_index[batch], return_index=True)
        tokens = encoded.prompt_lengths[batch][leaders].sum() + encoded.target_lengths[batch].sum()
        assert len(batch) == 1 or tokens <= 60
    longest = [encoded.lengths[batch].max() for batch in batches]
    assert longest[0] == max(longest)


@pytest.mark.parametrize("varlen", [False, True])
def test_every_token_is_found_where_it_was_read(encoder, varlen):
    model, encoded = make_model(), encode(encoder, make_records(4, 3))
    rows = np.array([7, 0, 1, 2, 11])
    lengths = encoded.prompt_lengths[rows] + encoded.target_lengths[rows]
    layout = Layout.of(model, encoder, encoded, rows, lengths, varlen=varlen)
    ids = layout.input_ids.flatten().numpy()
    columns = np.broadcast_to(np.arange(lengths.max() + 2), (len(rows), lengths.max() + 2))
    found = ids[layout.places(columns).numpy()]
    for row, length, tokens in zip(rows, lengths, found, strict=True):
        own = encoded.ids[encoded.offsets[row] :][:length]
        assert tokens[:length].tolist() == own.tolist() and set(tokens[length:].tolist()) == {
            own[-1]
        }
    assert varlen == (
        len(ids) == encoded.prompt_lengths[[0, 7, 11]].sum() + encoded.target_lengths[rows].sum()
    )


@pytest.mark.parametrize("varlen", [False, True])
def test_layers_are_those_of_plain_transformers(encoder, varlen):
    model, encoded = make_model(), encode(encoder, make_records(4, 3))
    rows = np.arange(5)
    layout = Layout.of(model, encoder, encoded, rows, encoded.lengths[rows], varlen=varlen)
    with torch.no_grad(), attention_of(model, ATTENTION) if varlen else nullcontext():
        last, layers = layout.hidden(model, all_layers=True)
    places = layout.places(
        np.broadcast_to(np.arange(encoded.lengths[rows].max()), (5, encoded.lengths[rows].max()))
    )
    for row in rows:
        ids = torch.from_numpy(
            encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]].astype(np.int64)
        )[None]
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states
        assert torch.allclose(last[places[row, : ids.shape[1]]], expected[-1][0], atol=1e-5)
        assert len(layers) == len(expected) == 3
        assert all(
            torch.allclose(found[places[row, : ids.shape[1]]], e[0], atol=1e-5)
            for found, e in zip(layers, expected, strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize("budget", [40, 60, 150, 300, 450, 2000])
def test_few_batches_are_shared_out_evenly(encoder, varlen, budget):
    encoded = encode(encoder, make_records(40, 3))
    rows, read = np.arange(len(encoded)), []
    model = make_model()
    model.model.embed_tokens.register_forward_hook(
        lambda _m, inputs, _o: read.append(inputs[0].numel())
    )
    flat = score_flat(model, encoder, encoded, rows, batch_tokens=budget, varlen=varlen)
    assert len(flat) == encoded.target_lengths.sum() and max(read) <= budget
    unaltered = len((forward._by_prompt if varlen else forward._by_length)(encoded, rows, budget))
    if unaltered > forward.FEW:
        assert len(read) == unaltered
    elif unaltered > 4:
        assert unaltered <= len(read) <= unaltered + 7
        for cores in (2, 4, 8):
            done = [0] * cores
            for tokens in read:
                done[done.index(min(done))] += tokens
            assert max(done) <= sum(read) / cores + budget / 2
