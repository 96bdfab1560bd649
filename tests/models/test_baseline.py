import numpy as np
import pytest
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM, MistralConfig, MistralForCausalLM

from tests.conftest import encode, make_model, make_records
from twcli.data.padding import budget_batches
from twcli.errors import UserError
from twcli.kernels import varlen
from twcli.models import forward
from twcli.models.baseline import fingerprint, score_flat, weights_hash, why_not_varlen
from twcli.models.checks import check_model


def reference(model, encoded):
    """Plain transformers: one unpadded row at a time, all logits, log-softmax, shift by one."""
    rows = []
    for i in range(len(encoded)):
        ids = torch.tensor(
            encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]].astype(np.int64)
        )[None]
        with torch.no_grad():
            log_p = model(ids).logits[0].float().log_softmax(-1)
        first = encoded.prompt_lengths[i] + 1
        targets = ids[0, first : first + encoded.target_lengths[i]]
        rows.append(
            -log_p[first - 1 : first - 1 + len(targets)].gather(1, targets[:, None])[:, 0].numpy()
        )
    return np.concatenate(rows)


@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_b_t_equals_plain_transformers(encoder, rows_a_batch):
    model, encoded = make_model(), encode(encoder, make_records(12, 3))
    budget = rows_a_batch * int(encoded.lengths.max())
    flat = score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=budget)
    expected = reference(model, encoded)
    assert expected.std() > 0.5  # the rows differ, so a shift by one could not pass
    assert np.abs(flat - expected).max() <= 1e-5


def test_scoring_leaves_the_global_rng_and_dropout_alone(encoder):
    model, encoded = make_model(), encode(encoder, make_records())
    model.config.attention_dropout = 0.5
    model.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=64)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(
        first, score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=64)
    )


def test_head_reads_supervised_positions_only(encoder):
    model, encoded = make_model(), encode(encoder, make_records())
    seen = []
    model.lm_head.register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[0].shape[:-1].numel())
    )
    score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=64)
    assert sum(seen) == encoded.target_lengths.sum()


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


def test_fingerprint_names_everything_b_t_depends_on(encoder):
    encoded = encode(encoder, make_records())
    keys = fingerprint(
        make_model(), encoder, encoded, max_length=128, precision="fp32", attention="sdpa"
    )
    assert set(keys) == {
        "weights",
        "tokenizer",
        "template",
        "data",
        "max_length",
        "dtype",
        "attention",
    }


# without padding, a prompt once for all its completions


def read_tokens(model):
    """Tokens of each pass to come."""
    tokens = []
    model.model.embed_tokens.register_forward_hook(
        lambda _m, inputs, _o: tokens.append(inputs[0].numel())
    )
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("whole", [None, True, False])
@pytest.mark.parametrize("rows_a_batch", [1, 3, 16])
def test_every_b_t_equals_plain_transformers_without_padding(
    encoder, rows_a_batch, whole, monkeypatch
):
    if whole is not None:  # in one form or the other, whatever it costs
        monkeypatch.setattr(varlen, "_whole", lambda prompt_G, *_: np.full(len(prompt_G), whole))
    # in no order
    records = [
        record
        for pair in zip(make_records(12, 3), make_records(12, 3, seed=1), strict=True)
        for record in pair
    ]
    model, encoded = make_model(), encode(encoder, records)
    tokens = read_tokens(model)
    budget = rows_a_batch * int(encoded.lengths.max())
    flat = score_flat(
        model, encoder, encoded, np.arange(len(encoded)), batch_tokens=budget, varlen=True
    )
    assert max(tokens) <= budget
    # of which each row's prompt is a part
    assert rows_a_batch == 1 or sum(tokens) < encoded.lengths.sum()
    assert np.abs(flat - reference(model, encoded)).max() <= 1e-5


def test_a_prompt_and_every_real_token_is_read_once(encoder):
    model, encoded = make_model(), encode(encoder, make_records(30, 3))
    tokens = read_tokens(model)
    score_flat(model, encoder, encoded, np.arange(len(encoded)), batch_tokens=10**6, varlen=True)
    _, leaders = np.unique(encoded.prompt_index, return_index=True)
    assert tokens == [encoded.prompt_lengths[leaders].sum() + encoded.target_lengths.sum()]


def test_some_of_the_rows_give_their_own_b_t(encoder):
    model, encoded = make_model(), encode(encoder, make_records(12, 3))
    rows = np.array([1, 2, 7, 20, 35])
    parts = np.split(reference(model, encoded), encoded.target_offsets[1:-1])
    flat = score_flat(model, encoder, encoded, rows, batch_tokens=40, varlen=True)
    assert np.abs(flat - np.concatenate([parts[row] for row in rows])).max() <= 1e-5


def test_the_number_of_threads_changes_no_bit(encoder):
    model, encoded = make_model(), encode(encoder, make_records(30, 3))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(
                score_flat(
                    model, encoder, encoded, np.arange(len(encoded)), batch_tokens=100, varlen=True
                )
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_rows_beyond_a_sliding_window_are_read_alone(encoder):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=10,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model, encoded = MistralForCausalLM(config).eval(), encode(encoder, make_records(12, 3))
    assert why_not_varlen(model, encoder, encoded) is None
    assert 0 < (encoded.lengths > 10).sum() < len(encoded)
    flat = score_flat(
        model, encoder, encoded, np.arange(len(encoded)), batch_tokens=100, varlen=True
    )
    assert np.abs(flat - reference(model, encoded)).max() <= 1e-5


@pytest.mark.parametrize("completions", [1, 3])
def test_a_model_that_must_be_read_with_padding_says_why(encoder, completions, monkeypatch):
    encoded = encode(encoder, make_records(4, completions))
    model = make_model()
    assert why_not_varlen(model, encoder, encoded) is None
    model.config.attention_dropout = 0.5  # it does not act where nothing is trained
    assert why_not_varlen(model, encoder, encoded) is None
    whole = forward.varlen_hidden_states
    monkeypatch.setattr(
        forward, "varlen_hidden_states", lambda *inputs, **how: 1.1 * whole(*inputs, **how)
    )
    assert "scoring rows without padding differs by" in why_not_varlen(model, encoder, encoded)
    monkeypatch.setattr(
        forward, "varlen_hidden_states", lambda *inputs, **how: whole(*inputs, **how) * float("nan")
    )
    assert "differs by nan" in why_not_varlen(model, encoder, encoded)

    def breaks(*_, **__):
        raise RuntimeError("no such mask")

    monkeypatch.setattr(forward, "varlen_hidden_states", breaks)
    assert (
        why_not_varlen(model, encoder, encoded)
        == "scoring rows without padding fails: no such mask"
    )


def test_logits_that_are_not_the_heads_are_refused():
    model = make_model()
    check_model(model, "m")
    model.config.lm_head_multiplier = 0.5  # ours are smaller then, and its own are not
    with pytest.raises(
        UserError, match="m: a llama model computes its logits from its last hidden states in a way"
    ):
        check_model(model, "m")


def test_the_scaling_of_falcon_h1_is_known():
    config = FalconH1Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        lm_head_multiplier=0.1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    check_model(FalconH1ForCausalLM(config).eval(), "m")
