import numpy as np
import pytest
import torch

from tests.conftest import encode, make_model, make_records, matched
from twcli.discovery.clustering import best_clustering, starts_of
from twcli.discovery.spaces import Space
from twcli.discovery.warmstart import (
    FIRST_SIMILARITIES,
    FIRST_STATES,
    LAGS,
    PROMPT_TOKENS,
    STARTS,
    VIEWS,
    WHOLE,
    groups_of,
    pooled_features,
    warm_start,
)


def test_groups_hold_distinct_completions_only(template):
    pairs = [("w0", "w1"), ("w2", "w3"), ("w0", "w1"), ("w0", "w4"), ("w2", "w3")]
    encoded = encode(template, [{"x": x, "y": y} for x, y in pairs])
    assert [g.tolist() for g in groups_of(encoded)] == [[0, 3]]


@pytest.fixture
def records():
    doubled = make_records(12, 3, seed=3)
    return [*doubled, doubled[1], {"x": "w19 w19 w19", "y": "w0"}]


def test_every_row_of_a_prompt_with_several_completions_gets_a_cluster(template, records):
    encoded = encode(template, records)
    warm = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200)
    assert warm.latent_N.shape == (38,) and set(warm.latent_N[:37]) == {0, 1, 2}
    assert warm.latent_N[36] == warm.latent_N[1]  # the same completion twice
    assert warm.latent_N[37] == -1  # the only completion of its prompt


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clusters(template, records):
    encoded = encode(template, records)
    runs = [
        warm_start(make_model(), template, encoded, 3, seed=s, batch_tokens=60).latent_N
        for s in (0, 0, 1)
    ]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("varlen", [False, True])
def test_features_do_not_depend_on_how_rows_are_read(template, records, varlen):
    encoded = encode(template, records)
    groups = groups_of(encoded)[::-1]
    expected = pooled_features(make_model(), template, encoded, groups, 4000)
    for budget in (60, 4000):
        found = pooled_features(make_model(), template, encoded, groups, budget, varlen=varlen)
        assert all(
            np.allclose(a, b, atol=1e-4) and a.std() > 0.01
            for a, b in zip(found, expected, strict=True)
        )


def test_features_take_each_prompt_once(template, records):
    encoded, model, tokens = encode(template, records), make_model(), []
    model.model.embed_tokens.register_forward_hook(
        lambda _m, inputs, _o: tokens.append(inputs[0].numel())
    )
    groups = groups_of(encoded)
    pooled_features(model, template, encoded, groups, 10**6, varlen=True)
    rows, firsts = np.concatenate(groups), [group[0] for group in groups]
    assert tokens == [
        (encoded.lengths - encoded.prompt_lengths)[rows].sum()
        + encoded.prompt_lengths[firsts].sum()
    ]


def test_similarities_are_those_of_a_plain_loop(template):
    """One row by hand: y's first window with x's second token, and its last window
    with the token two before.
    """
    records = [{"x": "w0 w1", "y": "w2 w3 w4"}, {"x": "w0 w1", "y": "w5"}]
    encoded = encode(template, records)
    model = make_model()
    similar = pooled_features(model, template, encoded, groups_of(encoded), 4000)[
        FIRST_SIMILARITIES
    ]
    with torch.no_grad():
        states = [
            model(
                input_ids=torch.from_numpy(encoded.ids[a:b].astype(np.int64))[None],
                output_hidden_states=True,
            ).hidden_states[-1][0]
            for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)
        ]
    unit = [torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in states]
    # <bos> <x> w0 w1 </x> <y> y ... </y>: y begins at 6, w1 stands at 3; the last
    # layer's block is the last one.
    first = [(u[6:8] @ u[3]).mean().item() / 32 for u in unit]
    lag = [(unit[0][8] @ unit[0][6] + unit[0][9] @ unit[0][7]).item() / 32 / 2, 0.0]
    windows, width = 4, PROMPT_TOKENS + LAGS
    block = similar[:, -windows * width :].reshape(2, windows, width)
    assert block[:, 0, 1] == pytest.approx(first, abs=1e-5)
    assert block[:, 1, PROMPT_TOKENS + 1] == pytest.approx(lag, abs=1e-5)


def test_features_of_the_beginning_do_not_know_what_follows(template):
    """Two completions a prompt, 12 tokens long: after the eighth one of them goes on otherwise."""
    begun = " ".join(f"w{i}" for i in range(8))
    pairs = [
        [{"x": "w0 w1", "y": f"{begun} {rest}"}, {"x": "w0 w1", "y": "w3 w4"}]
        for rest in ("w9 w9 w8 w7", "w1 w2 w3 w9")
    ]
    found = []
    for records in pairs:
        encoded = encode(template, records)
        found.append(pooled_features(make_model(), template, encoded, groups_of(encoded), 4000))
    for kind in WHOLE:
        same = np.allclose(found[0][kind], found[1][kind], atol=1e-5)
        assert same == (kind in (FIRST_STATES, FIRST_SIMILARITIES))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_names_by_what_a_token_is_give_way_to_names_by_what_y_begins_like(seed):
    """Four strategies. The states tell best which of the first two has an odd number in a prompt,
    the similarities which one it is.
    """
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.permutation(4) for _ in range(300)])
    odd = np.where((truth < 2) & np.repeat(rng.integers(2, size=300) == 1, 4), 1 - truth, truth)
    features = []
    for names, scale, noise in ((odd, 3, 1.5), (odd, 3, 1.5), (truth, 1, 0.9), (truth, 1, 0.9)):
        kind = scale * np.eye(4)[names] @ rng.normal(size=(4, 12)) + noise * rng.normal(
            size=(1200, 12)
        )
        features.append(
            (kind - np.repeat(kind.reshape(300, 4, 12).mean(1), 4, axis=0)).astype(np.float32)
        )

    def found(views):
        space, draws, sizes = (
            Space.fit(features, 0, views=views),
            np.random.default_rng(seed),
            [4] * 300,
        )
        starts = starts_of((space.scaled(features, kinds) for kinds in STARTS), sizes, 4, draws)
        return best_clustering(starts, space(features), sizes, 4, draws)[0]

    assert matched(found(VIEWS), truth, 4) > 0.98
    assert matched(found((WHOLE, (FIRST_STATES, FIRST_SIMILARITIES))), odd, 4) > 0.98


def test_blocks_of_prompts_change_nothing_but_the_fit(template, records, monkeypatch):
    encoded = encode(template, records)
    monkeypatch.setattr("twcli.discovery.warmstart.FIT_PROMPTS", 6)
    whole = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N
    monkeypatch.setattr("twcli.discovery.warmstart.BLOCK_PROMPTS", 2)
    assert np.array_equal(
        whole, warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200).latent_N
    )


def test_one_completion_a_prompt_is_nothing_to_begin_with(template):
    assert (
        warm_start(
            make_model(),
            template,
            encode(template, make_records(5, 1)),
            2,
            seed=0,
            batch_tokens=200,
        )
        is None
    )


@pytest.mark.parametrize("seed", [13, 30])
def test_the_latents_that_are_used_are_those_with_rows(template, monkeypatch, seed):
    """Random features of few rows: some clusters lose all of theirs."""
    rng = np.random.default_rng(seed)

    def pooled(_model, _template, _encoded, groups, *_others, **_more):
        return tuple(rng.normal(size=(sum(map(len, groups)), 6)).astype(np.float32) for _ in WHOLE)

    monkeypatch.setattr("twcli.discovery.warmstart.pooled_features", pooled)
    monkeypatch.setattr("twcli.discovery.warmstart.FINALISTS", 2)
    warm = warm_start(
        None,
        template,
        encode(template, make_records(10 if seed == 13 else 8, 3)),
        8,
        seed=seed,
        batch_tokens=100,
    )
    assert set(warm.latent_N) == set(range(warm.used)) and warm.used < 8


@pytest.mark.slow
@pytest.mark.parametrize(("enough", "used"), [(0.0, 3), (10.0, 4)])
def test_latents_to_spare_have_no_rows_unless_fewer_are_told_worse(
    template, records, monkeypatch, enough, used
):
    encoded = encode(template, records)
    three = warm_start(make_model(), template, encoded, 3, seed=0, batch_tokens=200)
    assert (three.latents, three.used) == (3, 3)
    monkeypatch.setattr(
        "twcli.discovery.warmstart.alternatives", lambda _clusters, _sizes, latents: min(latents, 3)
    )
    monkeypatch.setattr("twcli.discovery.warmstart.ENOUGH", enough)
    four = warm_start(make_model(), template, encoded, 4, seed=0, batch_tokens=200)
    assert (four.latents, four.used) == (4, used)
    assert np.array_equal(four.latent_N, three.latent_N) == (used == 3)
