import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records
from twcli.discovery.features import (
    FIRST_SIMILARITIES,
    FIRST_STATES,
    KINDS,
    LAGS,
    PROMPT_TOKENS,
    embed_rows,
)
from twcli.discovery.rows import Rows


def rows_of(encoded):
    return Rows.of(encoded).groups(2).joined()


@pytest.fixture
def records():
    doubled = make_records(12, 3, seed=3)
    return [*doubled, doubled[1], {"x": "w19 w19 w19", "y": "w0"}]


@pytest.mark.parametrize("varlen", [False, True])
def test_features_do_not_depend_on_how_rows_are_read(encoder, records, varlen):
    encoded = encode(encoder, records)
    rows = Rows.of(encoded).groups(2)[::-1].joined()
    expected = embed_rows(make_model(), encoder, encoded, rows, batch_tokens=4000)
    for budget in (60, 4000):
        found = embed_rows(make_model(), encoder, encoded, rows, batch_tokens=budget, varlen=varlen)
        assert all(
            np.allclose(a, b, atol=1e-4) and a.std() > 0.01
            for a, b in zip(
                (*found.kinds, found.prompts), (*expected.kinds, expected.prompts), strict=True
            )
        )


def test_features_take_each_prompt_once(encoder, records):
    encoded, model, tokens = encode(encoder, records), make_model(), []
    model.model.embed_tokens.register_forward_hook(
        lambda _m, inputs, _o: tokens.append(inputs[0].numel())
    )
    groups = Rows.of(encoded).groups(2)
    rows, firsts = groups.joined(), [group[0] for group in groups]
    embed_rows(model, encoder, encoded, rows, batch_tokens=10**6, varlen=True)
    assert tokens == [
        (encoded.lengths - encoded.prompt_lengths)[rows].sum()
        + encoded.prompt_lengths[firsts].sum()
    ]


def test_rows_are_read_in_any_order_and_counted(encoder, records):
    encoded, counted = encode(encoder, records), []
    rows = rows_of(encoded)
    order = np.random.default_rng(0).permutation(len(rows))
    straight = embed_rows(make_model(), encoder, encoded, rows, batch_tokens=200)
    mixed = embed_rows(
        make_model(), encoder, encoded, rows[order], batch_tokens=200, advance=counted.append
    )
    assert sum(counted) == len(rows) and len(counted) > 1
    assert len(mixed.kinds) == len(KINDS)
    for one, other in zip(
        (*straight.kinds, straight.prompts, straight.lengths),
        (*mixed.kinds, mixed.prompts, mixed.lengths),
        strict=True,
    ):
        assert np.allclose(one[order], other, atol=1e-4)
    assert mixed.lengths.tolist() == encoded.target_lengths[rows[order]].tolist()


def states_of(model, encoded):
    """Normalised states of each layer (layers, T, H) of each row, read by itself."""
    with torch.no_grad():
        states = [
            torch.stack(
                model(
                    input_ids=torch.from_numpy(encoded.ids[a:b].astype(np.int64))[None],
                    output_hidden_states=True,
                ).hidden_states
            )[:, 0]
            for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)
        ]
    return [torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in states]


def test_similarities_are_those_of_a_plain_loop(encoder):
    """One row by hand: y's first window with x's second token, and its last window
    with the token two before.
    """
    records = [{"x": "w0 w1", "y": "w2 w3 w4"}, {"x": "w0 w1", "y": "w5"}]
    encoded = encode(encoder, records)
    model = make_model()
    similar = embed_rows(model, encoder, encoded, np.array([0, 1]), batch_tokens=4000).kinds[
        FIRST_SIMILARITIES
    ]
    unit = [states[-1] for states in states_of(model, encoded)]
    # <bos> <x> w0 w1 </x> <y> y ... </y>: y begins at 6, w1 stands at 3; the last
    # layer's block is the last one.
    first = [(u[6:8] @ u[3]).mean().item() / 32 for u in unit]
    lag = [(unit[0][8] @ unit[0][6] + unit[0][9] @ unit[0][7]).item() / 32 / 2, 0.0]
    windows, width = 4, PROMPT_TOKENS + LAGS
    block = similar[:, -windows * width :].reshape(2, windows, width)
    assert block[:, 0, 1] == pytest.approx(first, abs=1e-5)
    assert block[:, 1, PROMPT_TOKENS + 1] == pytest.approx(lag, abs=1e-5)


def test_the_prompts_features_are_the_mean_of_x_and_what_y_follows(encoder):
    """Each layer's mean over x's tokens, at 2 and 3, and after all of those the state at 5, which
    predicts y's first token.
    """
    records = [{"x": "w0 w1", "y": "w2 w3 w4"}, {"x": "w7 w1", "y": "w5"}]
    encoded, model = encode(encoder, records), make_model()
    found = embed_rows(model, encoder, encoded, np.array([0, 1]), batch_tokens=4000).prompts
    for row, states in zip(found, states_of(model, encoded), strict=True):
        expected = torch.cat([states[:, 2:4].mean(1).flatten(), states[:, 5].flatten()])
        assert row == pytest.approx(expected.numpy(), abs=1e-4)


def test_completions_of_a_prompt_have_the_same_features_of_x(encoder, records):
    encoded = encode(encoder, records)
    rows = rows_of(encoded)
    prompts = embed_rows(make_model(), encoder, encoded, rows, batch_tokens=200).prompts
    number = encoded.prompt_index[rows]
    for prompt in np.unique(number):
        own = prompts[number == prompt]
        assert np.allclose(own, own[0], atol=1e-4)
    assert len(np.unique(prompts.round(2), axis=0)) == 12


def test_features_of_the_beginning_do_not_know_what_follows(encoder):
    """Two completions a prompt, 12 tokens long: after the eighth one of them goes on otherwise."""
    begun = " ".join(f"w{i}" for i in range(8))
    pairs = [
        [{"x": "w0 w1", "y": f"{begun} {rest}"}, {"x": "w0 w1", "y": "w3 w4"}]
        for rest in ("w9 w9 w8 w7", "w1 w2 w3 w9")
    ]
    found = []
    for records in pairs:
        encoded = encode(encoder, records)
        found.append(
            embed_rows(make_model(), encoder, encoded, np.array([0, 1]), batch_tokens=4000)
        )
    for kind in range(len(KINDS)):
        same = np.allclose(found[0].kinds[kind], found[1].kinds[kind], atol=1e-5)
        assert same == (kind in (FIRST_STATES, FIRST_SIMILARITIES))
    assert np.allclose(found[0].prompts, found[1].prompts, atol=1e-5)
