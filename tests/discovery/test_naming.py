import dataclasses
import json
import math

import numpy as np
import pytest

from tests.conftest import encode, make_model, make_records, make_strategies, matched, strategies_of
from twcli.discovery import naming as naming_module
from twcli.discovery import one_string as one_string_module
from twcli.discovery import repeating as repeating_module
from twcli.discovery.centring import Space
from twcli.discovery.distinct import best_clustering, starts_of
from twcli.discovery.features import FIRST_SIMILARITIES, FIRST_STATES, KINDS, Features
from twcli.discovery.naming import completed, given_names, name_rows
from twcli.discovery.one_string import DISTINCT_VIEWS, STARTS, SURE, WHOLE
from twcli.discovery.prior import LatentPrior
from twcli.discovery.result import Naming, canonical_order, naming_record
from twcli.discovery.rows import ModelSource, Rows, silent
from twcli.discovery.single_rows import name_single_rows
from twcli.discovery.stored import StoredFeatures
from twcli.storage.feature_store import FeatureStore
from twcli.storage.feature_writer import FeatureWriter


def source(encoder, encoded, batch_tokens=200, model=None):
    return ModelSource(model or make_model(), encoder, encoded, batch_tokens)


def named(encoder, records, latents=3, seed=0, **how):
    encoded = encode(encoder, records)
    return name_rows(source(encoder, encoded, **how), encoded, latents, seed=seed)


def test_groups_hold_distinct_completions_only(encoder):
    pairs = [("w0", "w1"), ("w2", "w3"), ("w0", "w1"), ("w0", "w4"), ("w2", "w3")]
    rows = Rows.of(encode(encoder, [{"x": x, "y": y} for x, y in pairs]))
    assert [g.tolist() for g in rows.groups(2)] == [[0, 3]]
    assert [g.tolist() for g in rows.groups()] == [[0, 3], [1]]
    assert rows.sizes.tolist() == [2, 1] and rows.rows.tolist() == [0, 3, 1]


# each strategy writes one string


@pytest.fixture
def records():
    """Of 12 prompts three completions, each of them twice; one once more, and one by itself."""
    doubled = make_records(12, 3, seed=3)
    return [*doubled, doubled[1], {"x": "w19 w19 w19", "y": "w0"}, *doubled]


@pytest.mark.slow
def test_every_row_of_a_prompt_with_several_completions_gets_a_cluster(encoder, records):
    naming = named(encoder, records)
    assert naming.one_string and math.isinf(naming.prior.repulsion)
    assert naming.latent_N.shape == (74,)
    assert set(naming.latent_N[:37]) == set(naming.latent_N[38:]) == {0, 1, 2}
    assert np.array_equal(naming.latent_N[:36], naming.latent_N[38:])  # the same completion twice
    assert naming.latent_N[36] == naming.latent_N[1]
    assert naming.latent_N[37] in (0, 1, 2)  # the only completion of its prompt
    for prompt in naming.latent_N[:36].reshape(12, 3):
        assert sorted(prompt) == [0, 1, 2]
    assert set(naming.probability_N[:37].tolist()) == {np.float32(SURE)}
    assert 1 / 3 <= naming.probability_N[37] < SURE
    assert naming.prompts == 13


def mixed(repeated, singles, latents=2):
    """Prompts with four draws of strategies that write one string each, and others with one."""
    several = make_strategies(repeated, 4, latents=latents, again=1.0)
    alone = make_strategies(repeated + singles, 1, latents=latents, seed=5)[repeated:]
    return [*several, *alone]


@pytest.mark.slow
@pytest.mark.parametrize(("repeated", "singles"), [(30, 12), (20, 60)])
def test_rows_of_prompts_with_one_completion_are_named_like_all_others(encoder, repeated, singles):
    """Few of them, and most of the rows."""
    records = mixed(repeated, singles)
    naming, truth = named(encoder, records, latents=2), strategies_of(records)
    assert naming.one_string and math.isinf(naming.prior.repulsion)
    assert (naming.latent_N >= 0).all() and naming.prompts == repeated + singles
    # whichever way round the names are, it is the same for both parts
    assert matched(naming.latent_N, truth, 2) > 0.95
    alone = np.arange(len(records)) >= 4 * repeated
    confident = naming.probability_N[alone].mean()
    right = max(np.mean((naming.latent_N == names[truth])[alone]) for names in np.eye(2, dtype=int))
    assert abs(confident - right) < 0.15 and 0.5 <= naming.score <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("score", "again"), [(0.3, True), (0.95, False)])
def test_doubtful_names_are_held_against_names_of_all_rows(encoder, monkeypatch, score, again):
    """Where some rows are their prompt's only ones."""

    def doubtful(*args):
        return dataclasses.replace(one_string_module.name_one_string(*args), score=score)

    monkeypatch.setattr(naming_module, "name_one_string", doubtful)
    records = mixed(30, 12)
    naming = named(encoder, records, latents=2)
    assert naming.one_string and math.isinf(naming.prior.repulsion)
    assert (naming.stability is not None) == again  # only those of all rows have one
    assert matched(naming.latent_N, strategies_of(records), 2) > 0.95


@pytest.mark.parametrize("predicted", [True, False])
def test_single_rows_have_the_accuracy_of_names_on_held_out_prompts(encoder, predicted):
    """Names of 40 prompts with two completions that features tell, or say nothing of."""
    rng = np.random.default_rng(0)
    pairs = [{"x": f"w{p % 20} w{p // 20}", "y": f"w{c}"} for p in range(40) for c in range(2)]
    singles = [{"x": f"w{p % 20} w{p // 20} w1", "y": "w5"} for p in range(60)]
    encoded = encode(encoder, [*pairs, *singles])
    truth = np.concatenate([rng.permuted(np.tile([0, 1], (40, 1)), axis=1).ravel(), [0, 1] * 30])
    values = rng.normal(size=(140, 6)).astype(np.float32)
    values[:, 0] += 6 * truth if predicted else 0

    def kept(rows, _advance):
        kinds = tuple(values[rows] for _ in KINDS)
        return Features(kinds, np.ones((len(rows), 3), np.float32), np.ones(len(rows)))

    known = np.where(np.arange(140) < 80, truth, -1)
    prior = LatentPrior(np.full(2, 0.5), math.inf)
    naming = naming_of(known, latents=2, probability=SURE, one_string=True, score=0.9, prior=prior)
    found = name_single_rows(kept, encoded, Rows.of(encoded).groups(), naming, 0, silent)
    assert (found.latent_N >= 0).all() and found.prompts == 100
    right = max((found.latent_N[80:] == n[truth[80:]]).mean() for n in (np.eye(2, dtype=int)))
    sure = found.probability_N[80:].mean()
    assert (right > 0.95 and sure > 0.9) if predicted else (right < 0.7 and sure < 0.65)
    # 80 rows of score 0.9, 60 that are right as often or by chance
    assert found.score == pytest.approx(
        (80 * 0.9 + 60 * (0.9 if predicted else 0.5)) / 140, abs=0.03
    )
    assert found.probability_N[:80] == pytest.approx(SURE)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clusters(encoder, records):
    runs = [named(encoder, records, seed=seed, batch_tokens=60).latent_N for seed in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


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

    assert matched(found(DISTINCT_VIEWS), truth, 4) > 0.98
    assert matched(found((WHOLE, (FIRST_STATES, FIRST_SIMILARITIES))), odd, 4) > 0.98


@pytest.mark.slow
def test_blocks_of_prompts_change_nothing_but_the_fit(encoder, records, monkeypatch):
    monkeypatch.setattr(one_string_module, "FIT_PROMPTS", 6)
    whole = named(encoder, records).latent_N
    monkeypatch.setattr(one_string_module, "BLOCK_PROMPTS", 2)
    assert np.array_equal(whole, named(encoder, records).latent_N)
    assert (whole[:37] >= 0).all()


@pytest.mark.parametrize("seed", [13, 30])
def test_the_latents_that_are_used_are_those_with_rows(encoder, monkeypatch, seed):
    """Random features of few rows: some clusters lose all of theirs."""
    rng = np.random.default_rng(seed)

    def random(rows, _advance):
        kinds = tuple(rng.normal(size=(len(rows), 6)).astype(np.float32) for _ in WHOLE)
        return Features(kinds, np.zeros((len(rows), 2), np.float32), np.ones(len(rows)))

    monkeypatch.setattr(one_string_module, "FINALISTS", 2)
    records = make_records(10 if seed == 13 else 8, 3)
    encoded = encode(encoder, records + records[1:])
    naming = name_rows(random, encoded, 8, seed=seed)
    assert set(naming.latent_N) == set(range(naming.used)) and naming.used < 8


@pytest.mark.slow
@pytest.mark.parametrize(("enough", "used"), [(0.0, 3), (10.0, 4)])
def test_latents_to_spare_have_no_rows_unless_fewer_are_predicted_worse(
    encoder, records, monkeypatch, enough, used
):
    three = named(encoder, records)
    assert (three.latents, three.used) == (3, 3)
    monkeypatch.setattr(
        one_string_module, "alternatives", lambda _clusters, _sizes, latents: min(latents, 3)
    )
    monkeypatch.setattr(one_string_module, "ENOUGH", enough)
    four = named(encoder, records, latents=4)
    assert (four.latents, four.used) == (4, used)
    assert np.array_equal(four.latent_N, three.latent_N) == (used == 3)


# strategies may repeat within a prompt


@pytest.mark.slow
def test_one_completion_a_prompt_is_enough_to_name_them_all(encoder):
    records = make_strategies(48)
    naming = named(encoder, records)
    assert not naming.one_string and naming.prior.repulsion == 0.0
    assert matched(naming.latent_N, strategies_of(records), 3) > 0.9
    assert (naming.latents, naming.used, naming.prompts) == (3, 3, 48)
    assert (naming.probability_N >= 1 / 3).all() and (naming.probability_N <= 1).all()
    assert 0 < naming.score <= 1 and 0 < naming.stability <= 1
    assert (naming.latent_N != naming.second_N).all() and set(naming.second_N) <= {0, 1, 2}
    assert naming.points.shape == (48, 2) and sorted(naming.point_rows) == list(range(48))
    assert naming.chance == pytest.approx(1 / 3)
    assert json.dumps(naming_record(naming))


@pytest.mark.slow
def test_several_completions_a_prompt_may_share_a_latent(encoder):
    records = make_strategies(16, 3)
    naming = named(encoder, records)
    assert not naming.one_string
    assert matched(naming.latent_N, strategies_of(records), 3) > 0.9
    assert any(len(set(prompt)) < 3 for prompt in naming.latent_N.reshape(16, 3).tolist())


@pytest.mark.slow
def test_identical_rows_get_identical_names(encoder):
    records = make_strategies(40)
    places = np.random.default_rng(0).choice(40, 12)
    doubled = named(encoder, [*records, *(records[i] for i in places)])
    for column in (doubled.latent_N, doubled.second_N, doubled.probability_N):
        assert np.array_equal(column[40:], column[places])


@pytest.mark.slow
def test_latents_are_numbered_by_their_share(encoder):
    """Fifteen, thirty and forty-five rows of the three strategies, in the order of the data."""
    truth, rng = np.repeat([0, 1, 2], [15, 30, 45]), np.random.default_rng(0)

    def clear(rows, _advance):
        kinds = tuple(
            (6 * np.eye(3, 8)[truth[rows]] + rng.normal(size=(len(rows), 8))).astype(np.float32)
            for _ in KINDS
        )
        return Features(kinds, np.zeros((len(rows), 2), np.float32), np.ones(len(rows)))

    encoded = encode(
        encoder, [{"x": f"w{i % 20} w{i // 20}", "y": f"w{i % 19}"} for i in range(90)]
    )
    naming = name_rows(clear, encoded, 3, seed=0)
    assert (naming.latent_N == 2 - truth).mean() > 0.97
    assert naming.prior.proportions == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.05)


def test_latents_of_one_share_are_numbered_by_how_their_completions_begin(encoder):
    """Two rows each of latents 0, 2 and 3, one of latent 1, none of latent 4."""
    beginnings = ["w7", "w9 w1", "w3 w5", "w3 w4", "w3", "w3 w4 w0", "w8"]
    records = [{"x": f"w{i}", "y": y} for i, y in enumerate(beginnings)]
    latent_N = np.array([0, 2, 3, 0, 2, 3, 1])
    orders = []
    for rows in (range(7), [6, 3, 1, 5, 0, 2, 4]):
        encoded = encode(encoder, [records[row] for row in rows])
        order_K, new_K = canonical_order(latent_N[list(rows)], 5, encoded)
        assert new_K[order_K[:4]].tolist() == [0, 1, 2, 3]
        orders.append(order_K.tolist())
    # "w3" is before "w3 w4", which is before "w3 w4 w0"
    assert orders == [[2, 0, 3, 1, -1]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 5])
def test_strategies_that_never_repeat_are_numbered_by_the_data_alone(encoder, seed):
    """Each of forty prompts has one completion of each strategy, written twice; the strategies
    begin with w2, w0 and w1. One prompt more has a single one, which is named like all others.
    """
    strategies = [
        {"x": f"w{p // 20} w{p % 20}", "y": f"w{(k + 2) % 3} w{p % 20}"}
        for p in range(40)
        for k in range(3)
    ]
    rng = np.random.default_rng(seed)
    single = {"x": "w19", "y": "w0"}
    records = [strategies[i] for i in rng.permutation(120)] + strategies + [single]
    truth = np.array([int(record["y"][1]) for record in records])

    def clear(rows, _advance):
        points = 30 * np.eye(3, 8)[truth[rows]] + rng.normal(size=(len(rows), 8))
        kinds = tuple(points.astype(np.float32) for _ in KINDS)
        return Features(kinds, np.zeros((len(rows), 2), np.float32), np.ones(len(rows)))

    naming = name_rows(clear, encode(encoder, records), 3, seed=seed)
    assert naming.one_string and naming.latent_N.tolist() == truth.tolist()


@pytest.mark.parametrize("count", [3, 15])
def test_a_few_rows_are_too_few_to_name(encoder, count):
    records = make_strategies(count)
    assert named(encoder, records, latents=2) is None
    assert named(encoder, records, latents=None) is None


def test_sixteen_rows_are_enough_for_two_latents(encoder):
    assert named(encoder, make_strategies(16, latents=2), latents=2) is not None
    assert named(encoder, make_strategies(16, latents=2), latents=3) is None


def test_rows_that_are_all_alike_are_no_error(encoder):
    """The model sees no difference between any two of them."""
    encoded = encode(encoder, make_strategies(24))

    def constant(rows, _advance):
        kinds = tuple(np.ones((len(rows), 5), np.float32) for _ in KINDS)
        return Features(kinds, np.ones((len(rows), 3), np.float32), np.ones(len(rows)))

    naming = name_rows(constant, encoded, 2, seed=0)
    assert naming.used == 1 and (naming.latent_N == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("doubled", [0, 5, 20])
def test_identical_completions_decide_how_names_are_searched(encoder, doubled):
    """Four different completions a prompt and two of them again in `doubled` of 20 prompts: of the
    pairs 2 in 15 are identical at most; two strategies in even shares need a quarter, four an
    eighth.
    """
    records = make_records(20, 4, seed=1)
    records += [r for p in range(doubled) for r in records[4 * p : 4 * p + 2]]
    assert named(encoder, records, latents=2).one_string is False
    assert named(encoder, records, latents=4).one_string is (doubled == 20)


@pytest.mark.slow
def test_a_quarter_of_identical_pairs_shows_that_a_strategy_is_one_string(encoder):
    """Draws of two strategies that write one string each: half of the pairs are identical."""
    records = make_strategies(30, 4, latents=2, again=1.0)
    naming = named(encoder, records, latents=2)
    assert naming.one_string
    assert named(encoder, make_strategies(30, 4, latents=2), latents=2).one_string is False
    # prompts in which both strategies were drawn
    several = np.flatnonzero(naming.latent_N >= 0)
    assert matched(naming.latent_N[several], strategies_of(records)[several], 2) > 0.95


@pytest.mark.slow
def test_rows_that_were_not_fitted_are_named_as_well(encoder, monkeypatch):
    records = make_strategies(80)
    monkeypatch.setattr(repeating_module, "FIT_ROWS", 50)
    one = named(encoder, records)
    monkeypatch.setattr(repeating_module, "BLOCK_PROMPTS", 7)
    other = named(encoder, records)
    assert len(one.point_rows) == 50 and (one.latent_N >= 0).all()
    rest = np.setdiff1d(np.arange(80), one.point_rows)
    assert matched(one.latent_N[rest], strategies_of(records)[rest], 3) > 0.85
    assert np.array_equal(one.latent_N, other.latent_N)


@pytest.mark.slow
def test_the_seed_decides_and_nothing_else(encoder):
    records = make_records(30, 1)
    one, same, other = (named(encoder, records, 2, seed=s) for s in (0, 0, 1))
    assert np.array_equal(one.probability_N, same.probability_N)
    assert np.array_equal(one.latent_N, same.latent_N)
    assert not np.array_equal(one.probability_N, other.probability_N)


@pytest.mark.slow
def test_the_number_of_latents_is_found(encoder):
    naming = named(encoder, make_strategies(100), latents=None)
    assert naming.latents == 3 and naming.used == 3
    assert [c["latents"] for c in naming.counts] == [2, 3, 4, 5, 6, 7, 8]
    assert [c["latents"] for c in naming.counts if c["chosen"]] == [3]
    assert "nested in these 3" in naming.nested


@pytest.mark.slow
def test_a_given_number_is_held_against_its_neighbours(encoder):
    naming = named(encoder, make_strategies(48), latents=3)
    assert [c["latents"] for c in naming.counts] == [2, 3, 4]
    assert naming.nested is None


@pytest.mark.slow
def test_features_of_a_file_and_of_the_model_give_the_same_names(encoder, tmp_path):
    records = make_strategies(60, 2)
    encoded = encode(encoder, records)
    model = source(encoder, encoded)
    rows = np.sort(Rows.of(encoded).rows)
    features = model(rows, None)
    values = {**dict(zip(KINDS, features.kinds, strict=True)), "prompts": features.prompts}
    how = {"fingerprint": {"a": 1}, "row_hash": encoded.row_hash[rows]}
    with FeatureWriter(tmp_path / "f.h5", **how) as writer:
        writer.write(range(len(rows)), values)
        writer.publish()
    with FeatureStore(tmp_path / "f.h5") as store:
        stored = name_rows(StoredFeatures.of(store, encoded), encoded, 3, seed=0)
    direct = name_rows(model, encoded, 3, seed=0)
    assert np.array_equal(stored.latent_N, direct.latent_N)
    assert np.abs(stored.probability_N - direct.probability_N).max() < 0.1
    assert matched(direct.latent_N, strategies_of(records), 3) > 0.9


# names that a person gives


def naming_of(latent, latents=3, probability=0.8, **changes):
    latent = np.array(latent)
    values = {
        "latent_N": latent,
        "probability_N": np.where(latent >= 0, probability, 0).astype(np.float32),
        "second_N": np.where(latent >= 0, (latent + 1) % latents, -1),
        "prior": LatentPrior(np.full(latents, 1 / latents), 0.5),
        "latents": latents,
        "used": latents,
        "score": None,
        "stability": None,
        "one_string": False,
        "prompts": len(latent),
        **changes,
    }
    return Naming(**values)


def test_a_few_given_names_say_which_cluster_is_which():
    """Clusters 0, 1, 2 are what a person calls 2, 0, 1, as one name of each says; one name goes
    against its cluster and stays.
    """
    clusters = np.repeat([0, 1, 2], 10)
    given, sure = np.full(30, -1), np.zeros(30, np.float32)
    given[[0, 1, 10, 20, 2]], sure[[0, 1, 10, 20, 2]] = [2, 2, 0, 1, 1], 0.95
    found = completed(given, sure, naming_of(clusters))
    expected = np.repeat([2, 0, 1], 10)
    expected[2] = 1
    assert found.latent_N.tolist() == expected.tolist()
    assert found.probability_N[[0, 2]] == pytest.approx(0.95)
    assert found.probability_N[3:10] == pytest.approx(0.8)
    assert found.prior.proportions == pytest.approx(np.array([11, 12, 10]) / 33)
    assert (found.prior.repulsion, found.used, found.latents) == (0.5, 3, 3)


def lengths_and_topics(count=240, seed=0):
    """(records of one completion a prompt, two distinctions that cross each other)."""
    rng = np.random.default_rng(seed)
    length, topic = rng.integers(2, size=(2, count))
    records = [{"x": f"w{i % 20} w{i // 20}", "y": f"w{i % 17} w{i // 17}"} for i in range(count)]
    return records, length, topic


@pytest.mark.slow
@pytest.mark.parametrize("fitted", [3000, 120])
def test_rows_are_named_after_the_given_ones(encoder, monkeypatch, fitted):
    """Those that are not clustered as well, prompts with given names being clustered first."""
    monkeypatch.setattr(repeating_module, "FIT_PROMPTS", fitted)
    records, length, topic = lengths_and_topics()
    points = np.random.default_rng(1).normal(size=(len(records), 8)).astype(np.float32)
    points[:, 0] += 9 * length
    points[:, 1] += 5 * topic

    def features(rows, _advance):
        kinds = tuple(points[rows] for _ in KINDS)
        prompts = np.zeros((len(rows), 2), np.float32)
        return Features(kinds, prompts, np.full(len(rows), 9.0))

    given = np.full(len(records), -1)
    given[200:] = topic[200:]
    encoded = encode(encoder, records)
    found = name_rows(features, encoded, 2, seed=0, given_N=given)
    assert np.mean(found.latent_N[:200] == length[:200]) < 0.7
    named = completed(given, np.ones(len(records), np.float32), found)
    assert np.array_equal(named.latent_N[200:], topic[200:])
    assert np.mean(named.latent_N[:200] == topic[:200]) > 0.95
    assert named.given == 40 and named.stability is None and named.counts == []
    assert named.score > 0.9
    without = name_rows(features, encoded, 2, seed=0)
    assert without.given == 0 and matched(without.latent_N, topic, 2) < 0.8


@pytest.mark.slow
def test_a_given_name_counts_for_all_equal_rows(encoder):
    records = make_strategies(60, 1, latents=2)
    records = [*records, *records]
    truth = strategies_of(records)
    given = np.full(len(records), -1)
    given[60:] = truth[60:]
    encoded = encode(encoder, records)
    found = name_rows(source(encoder, encoded), encoded, 2, seed=0, given_N=given)
    assert found.given == 60
    assert np.mean(completed(given, np.ones(120, np.float32), found).latent_N == truth) > 0.95


@pytest.mark.slow
def test_given_names_of_some_latents_only_say_which_cluster_is_which(encoder):
    records = make_strategies(60, 1, latents=2)
    given = np.where(np.arange(60) < 6, strategies_of(records), -1)
    given[given == 1] = -1
    encoded = encode(encoder, records)
    found = name_rows(source(encoder, encoded), encoded, 2, seed=0, given_N=given)
    without = name_rows(source(encoder, encoded), encoded, 2, seed=0)
    assert found.given == 0 and np.array_equal(found.latent_N, without.latent_N)


def test_the_second_guess_goes_by_the_given_names_too():
    given = np.array([1, -1, 0, -1])
    found = completed(given, np.ones(4, np.float32), naming_of([0, 0, 1, 1], latents=2))
    assert found.latent_N.tolist() == [1, 1, 0, 0]
    assert found.second_N[[1, 3]].tolist() == [0, 1]


def test_rows_that_could_not_be_named_keep_no_name_unless_it_is_given():
    given = np.array([1, -1, -1, 0])
    found = completed(given, np.ones(4, np.float32), naming_of([-1, -1, 0, 0], latents=2))
    assert found.latent_N.tolist() == [1, -1, 0, 0]
    assert found.probability_N.tolist() == pytest.approx([1, 0, 0.8, 1])


def test_latents_that_have_names_are_used_whatever_is_before_them():
    """A person merged the second latent into the first: 0 and 2 are left, which the first three
    are to hold.
    """
    merged = np.tile([0, 2, 0], 8)
    whole = completed(merged, np.ones(24, np.float32), naming_of(merged))
    assert whole.used == 3


def test_names_that_are_all_given(encoder):
    records = make_strategies(20, 2)
    latent, sure = strategies_of(records), np.full(40, 0.9, np.float32)
    naming = given_names(encode(encoder, records), latent, sure, 3)
    assert naming.latent_N.tolist() == latent.tolist()
    assert (naming.latents, naming.used, naming.prompts) == (3, 3, 20)
    assert naming.score is None and naming.stability is None and not naming.one_string
    # a pseudo row each
    counts = np.bincount(latent)
    assert naming.prior.proportions == pytest.approx((counts + 1) / (40 + 3), abs=0.01)
    assert naming.prior.repulsion < 1


def test_all_given_names_are_used_whatever_is_before_them(encoder):
    records = make_strategies(20)
    merged = np.where(strategies_of(records) == 1, 0, strategies_of(records))
    naming = given_names(encode(encoder, records), merged, np.ones(20, np.float32), 3)
    assert naming.used == 3


def test_given_names_of_strings_that_come_twice_repel_each_other(encoder):
    records = make_strategies(30, 4, latents=2, again=1.0)
    encoded, sure = encode(encoder, records), np.ones(120, np.float32)
    naming = given_names(encoded, strategies_of(records), sure, 2)
    assert naming.one_string and math.isinf(naming.prior.repulsion)


# what a training makes of them


def test_the_record_of_a_naming_is_plain_json():
    record = naming_record(naming_of([0, 1, 1, -1], score=0.87654, stability=0.91234))
    assert json.loads(json.dumps(record)) == record
    assert (record["score"], record["stability"], record["repulsion"]) == (0.8765, 0.9123, 0.5)
    assert record["chance"] == pytest.approx(1 / 3, abs=1e-4)
    infinite = dataclasses.replace(
        naming_of([0, 1]), prior=LatentPrior(np.full(3, 1 / 3), math.inf)
    )
    assert naming_record(infinite)["repulsion"] == "infinite"


@pytest.mark.slow
def test_a_few_prompts_with_hundreds_of_completions_are_named_too(encoder):
    records = make_strategies(4, 300)
    naming = named(encoder, records, latents=None)
    assert not naming.one_string and naming.latents == 3
    assert matched(naming.latent_N, strategies_of(records), 3) > 0.95
