from itertools import chain

import numpy as np
import pytest

from tests.discovery.test_score import predictability
from twcli.evaluation.judged import Generations
from twcli.evaluation.metrics import summarise
from twcli.training.retention import retention

NAMES = ["a", "b", "c"]


def one_hot(latents, count=3):
    return np.eye(count)[latents]


def perfect(prompts=40, latents=3, judge=True, shuffle=None):
    """Each prompt has one record of every strategy; latent (k + 1) % 3 is strategy k."""
    prompt = np.repeat(np.arange(prompts), 3)
    strategy = np.tile(np.arange(3), prompts)
    generations = None
    if judge:
        made = [NAMES[(k - 1) % 3] for k in range(3)] * prompts
        generations = Generations(
            prompt, np.tile(np.arange(3), prompts), made, [True] * (3 * prompts)
        )
    return {
        "posterior": one_hot((strategy + 1) % 3, latents),
        "router": np.full((3 * prompts, latents), 1 / latents),
        "frozen_nll": np.full(3 * prompts, 2.0),
        "marginal_nll": np.full(3 * prompts, 1.5),
        "prompts": prompt,
        "labels": [NAMES[s] for s in strategy],
        "generations": generations,
        "bootstrap": 50,
        "seed": 0,
    }


def test_a_perfect_run():
    result = summarise(**perfect())
    posterior, alignment = result["posterior"], result["alignment"]
    assert posterior["usage"] == pytest.approx(3)
    assert posterior["active"] == 3
    assert posterior["mutual_information"] == pytest.approx(np.log(3)) == posterior["kl"]
    assert posterior["entropy"] == 0
    assert posterior["collapsed"] is False
    for key in (
        "posterior_one_to_one",
        "generation_one_to_one",
        "nmi",
        "ari",
        "coverage_mean",
        "full_coverage_rate",
    ):
        assert alignment[key] == pytest.approx(1)
        assert alignment[f"{key}_ci"] == pytest.approx([1, 1])
    assert alignment["mapping"] == {"0": "c", "1": "a", "2": "b"}
    assert result["strategy_accuracy"] == result["answer_accuracy"] == 1
    assert result["likelihood"]["gain"] == 0.5
    assert (result["records"], result["prompts"], result["latents"]) == (120, 40, 3)


def test_two_latents_that_share_a_strategy_count_in_the_many_to_one_mapping_only():
    inputs = perfect(prompts=400, latents=6)
    rng = np.random.default_rng(0)
    strategy = np.tile(np.arange(3), 400)
    inputs["posterior"] = one_hot(strategy + 3 * rng.integers(2, size=1200), 6)
    made = [NAMES[k % 3] for k in range(6)] * 400
    inputs["generations"] = Generations(
        np.repeat(np.arange(400), 6), np.tile(np.arange(6), 400), made, [True] * 2400
    )
    alignment = summarise(**inputs)["alignment"]
    assert alignment["posterior_many_to_one"] == alignment["generation_many_to_one"] == 1
    assert alignment["spare"] == {
        k: NAMES[int(k) % 3] for k, name in alignment["mapping"].items() if name is None
    }
    assert len(alignment["spare"]) == 3 and alignment["merged"] == {}
    assert alignment["generation_one_to_one"] == pytest.approx(0.5)
    assert alignment["posterior_one_to_one"] == pytest.approx(0.5, abs=0.1)


def test_a_collapsed_posterior():
    inputs = perfect()
    inputs["posterior"] = inputs["router"] = np.tile([0.5, 0.3, 0.2], (120, 1))
    posterior = summarise(**inputs)["posterior"]
    assert posterior["collapsed"] is True
    assert posterior["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert posterior["kl"] == pytest.approx(0, abs=1e-12)


def test_names_that_change_from_prompt_to_prompt_are_covered_but_not_aligned():
    inputs = perfect(prompts=300)
    rng = np.random.default_rng(0)
    made = [NAMES[i] for _ in range(300) for i in rng.permutation(3)]
    inputs["generations"] = Generations(
        inputs["prompts"], np.tile(np.arange(3), 300), made, [True] * 900
    )
    alignment = summarise(**inputs)["alignment"]
    assert alignment["coverage_mean"] == alignment["full_coverage_rate"] == 1
    # chance, a third: the mapping is scored on unseen prompts
    assert 0.2 < alignment["generation_one_to_one"] < 0.47
    low, high = alignment["generation_one_to_one_ci"]
    assert low < alignment["generation_one_to_one"] < high


def test_labels_without_meaning_are_at_chance():
    rng = np.random.default_rng(1)
    inputs = perfect(prompts=400)
    inputs["posterior"] = one_hot(rng.integers(3, size=1200))
    alignment = summarise(**inputs)["alignment"]
    assert 0.26 < alignment["posterior_one_to_one"] < 0.41
    assert abs(alignment["ari"]) < 0.02


def test_completions_of_no_strategy_count_as_misses():
    inputs = perfect()
    made = [None if k == 0 else NAMES[(k - 1) % 3] for _ in range(40) for k in range(3)]
    inputs["generations"] = Generations(
        inputs["prompts"], np.tile(np.arange(3), 40), made, ([False, True, None]) * 40
    )
    result = summarise(**inputs)
    assert result["alignment"]["generation_one_to_one"] == pytest.approx(2 / 3)
    assert result["alignment"]["coverage_mean"] == pytest.approx(2 / 3)
    assert result["alignment"]["full_coverage_rate"] == 0
    assert result["answer_accuracy"] == 0.5  # None is not counted


def test_without_labels_or_judge_the_figures_are_null():
    result = summarise(**{**perfect(judge=False), "labels": None, "frozen_nll": None})
    assert set(result["alignment"].values()) == {None}
    assert result["strategy_accuracy"] is None is result["answer_accuracy"]
    assert result["likelihood"]["gain"] is None is result["likelihood"]["gain_ci"]
    assert result["likelihood"]["marginal_nll"] == 1.5
    with_labels = summarise(**perfect(judge=False))
    assert with_labels["strategy_accuracy"] == with_labels["alignment"]["posterior_one_to_one"] == 1
    assert with_labels["alignment"]["generation_one_to_one"] is None


def test_records_without_a_label_are_left_out():
    inputs = perfect()
    inputs["labels"] = [None if i % 2 else label for i, label in enumerate(inputs["labels"])]
    assert summarise(**inputs)["alignment"]["posterior_one_to_one"] == 1


def test_a_latent_too_many_is_mapped_to_nothing():
    inputs = perfect(judge=False, latents=4)
    inputs["posterior"] = one_hot((np.tile(np.arange(3), 40) + 1) % 3, 4)
    result = summarise(**inputs)
    assert result["alignment"]["mapping"] == {"0": "c", "1": "a", "2": "b", "3": None}
    assert result["posterior"]["active"] == 3 and result["posterior"]["unused"] == [3]
    assert result["alignment"]["spare"] == result["alignment"]["merged"] == {}


def test_one_prompt_cannot_be_split():
    inputs = perfect(prompts=1, judge=False)
    result = summarise(**inputs)
    assert result["alignment"]["posterior_one_to_one"] is None is result["strategy_accuracy"]
    assert result["posterior"]["usage"] == pytest.approx(3)


def test_the_interval_is_the_known_one_of_a_mean():
    rng = np.random.default_rng(0)
    inputs = {**perfect(prompts=1000, judge=False), "bootstrap": 1000}
    inputs["marginal_nll"] = rng.normal(1.5, 1, 3000)
    low, high = summarise(**inputs)["likelihood"]["marginal_nll_ci"]
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.1)


def test_the_seed_decides():
    inputs = perfect()
    inputs["marginal_nll"] = np.arange(120.0)
    assert summarise(**inputs) == summarise(**inputs)
    assert summarise(**inputs) != summarise(**{**inputs, "seed": 1})


def test_diagnostics_are_divided_once_and_have_intervals():
    inputs = perfect(prompts=2)  # six records
    rows = {
        "informative": np.array([0.1, 0.3, np.nan, np.nan, 0.2, 0.2]),
        "informative_tokens": np.full(6, 2.0),
        "uniform_rows": np.array([0, 0, 1, 1, 0, 0.0]),
        "z_sensitivity": np.full(6, 0.5),
        "z_sensitivity_weighted": np.full(6, 0.7),
        "z_sensitivity_sum": np.full(6, 5.0),
        "gradient_uniform": np.full(6, 1.0),
        "gradient_weighted": np.arange(6) * 10.0,
    }
    found = summarise(**inputs, diagnostics=rows)["diagnostics"]
    assert found["informative"] == pytest.approx(0.2) and found[
        "expected_amplification"
    ] == pytest.approx(5.0)
    assert found["uniform_rows"] == pytest.approx(1 / 3) and found[
        "amplification"
    ] == pytest.approx(5.0)
    low, high = found["amplification_ci"]
    assert low < 5.0 < high


def test_diagnostics_without_b_t_or_gradient_are_null():
    found = summarise(
        **perfect(), diagnostics={"z_sensitivity": np.ones(120), "gradient_uniform": np.zeros(120)}
    )["diagnostics"]
    assert (
        found["z_sensitivity"] == 1.0
        and found["informative"] is None
        and found["amplification"] is None
    )
    assert set(summarise(**perfect())["diagnostics"].values()) == {None}


def test_the_score_is_chance_and_what_is_predicted_of_the_rest():
    result = summarise(**perfect(), predictability=predictability())
    expected = 1 / 3 + 2 / 3 * 0.8
    assert result["score"] == pytest.approx(expected)
    assert 0.8 < result["score_ci"][0] < expected < result["score_ci"][1] < 0.93
    assert summarise(**perfect())["score"] is None


@pytest.mark.parametrize("judge", [True, False])
def test_a_strategy_too_many_is_reported_as_merged(judge):
    inputs = perfect(judge=judge)
    inputs["posterior"], inputs["router"] = (
        one_hot(np.tile([0, 1, 1], 40), 2),
        np.full((120, 2), 0.5),
    )
    if judge:
        inputs["generations"] = Generations(
            np.repeat(np.arange(40), 2), np.tile([0, 1], 40), ["a", "b"] * 40, [True] * 80
        )
    alignment = summarise(**inputs)["alignment"]
    assert alignment["mapping"]["0"] == "a" and alignment["mapping"]["1"] in ("b", "c")
    assert alignment["merged"] == {"c" if alignment["mapping"]["1"] == "b" else "b": 1}


def test_retention_against_what_the_frozen_model_carries_out():
    """Of strategy b, a third of the records, the frozen model carries out half and is right in a
    third of those; the run is asked for it 40 times, obeys 30 times and is right 20 times.
    """
    inputs = perfect(prompts=40)
    prompt = np.repeat(np.arange(40), 3)
    made = [["c", "a", "b" if number < 30 else None] for number in range(40)]
    right = [[True, True, number < 20] for number in range(40)]
    ours = Generations(prompt, np.tile(np.arange(3), 40), list(chain(*made)), list(chain(*right)))
    drawn = [["a", "c", "b" if number % 2 else None] for number in range(40)]
    drawn_right = [[True, True, number % 6 == 1] for number in range(40)]
    frozen = Generations(
        prompt, np.tile(np.arange(3), 40), list(chain(*drawn)), list(chain(*drawn_right))
    )
    latent = inputs["posterior"].argmax(1)
    kept = retention(latent, inputs["frozen_nll"], inputs["marginal_nll"], np.zeros((120, 3)))
    result = summarise(**inputs, retained=kept, sampled=ours, frozen_sampled=frozen)
    assert [entry["strategy"] for entry in result["retention"]] == ["c", "a", "b"]
    last = result["retention"][2]
    assert last["obeyed"] == 0.75 and last["frozen_obeyed"] == pytest.approx(0.5)
    assert last["right"] == 0.5 and last["frozen_right"] == pytest.approx(7 / 20)
    assert last["obeyed_ci"][0] < 0.75 < last["obeyed_ci"][1]
    assert (last["gain"], last["below"], last["retained"]) == (0.5, False, 1.0)
    bare = summarise(**perfect(judge=False), retained=kept)["retention"][2]
    assert bare["strategy"] is bare["obeyed"] is bare["frozen_right_ci"] is None
    assert summarise(**perfect())["retention"] is None


def test_the_router_is_held_against_the_posterior():
    """Half of 400 records of each of two strategies; the router knows which prompts have which."""
    inputs = perfect(prompts=400)
    first = np.arange(1200) < 600
    inputs["posterior"] = one_hot(np.where(first, 0, np.tile([0, 1, 1], 400)))
    inputs["router"] = np.where(first[:, None], [1.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.0])
    router = summarise(**inputs)["router"]
    assert router["ece"] == pytest.approx(0, abs=1e-9)
    assert router["share_error"] == pytest.approx(0, abs=1e-9)
    # of the second half: (1/9 + 1/9) for two of three and (4/9 + 4/9) for one of three
    assert router["brier"] == pytest.approx((2 / 3 * 2 / 9 + 1 / 3 * 8 / 9) / 2)
    # a constant router has the shares and not what follows from x
    inputs["router"] = np.tile([2 / 3, 1 / 3, 0.0], (1200, 1))
    router = summarise(**inputs)["router"]
    assert router["share_error"] == pytest.approx(0, abs=1e-9) and router["ece"] < 1e-9
    assert router["brier"] == pytest.approx(4 / 9)
    # one that is too sure
    inputs["router"] = np.tile([0.9, 0.1, 0.0], (1200, 1))
    router = summarise(**inputs)["router"]
    assert router["ece"] == pytest.approx(2 * (0.9 - 2 / 3) / 3)
    assert router["share_error"] == pytest.approx(0.9 - 2 / 3)
    assert router["ece_ci"][0] < router["ece"] < router["ece_ci"][1]
