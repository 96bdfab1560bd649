import numpy as np
import pytest

from tests.evaluation.test_metrics import NAMES, one_hot, perfect
from twcli.evaluation.judged import Generations
from twcli.evaluation.metrics import summarise
from twcli.evaluation.report import verdict_lines
from twcli.evaluation.verdict import verdict_of, verdict_of_score, verdict_of_training
from twcli.training.retention import retention


def run(obeyed, known, seed, prompts=40, judge=True, gain=0.5, latents=3):
    """Figures of a run whose latents get their strategy in the share `obeyed` of the completions,
    else one at random, and whose posterior knows the share `known` of the records.
    """
    rng = np.random.default_rng(seed)
    inputs = perfect(prompts=prompts, judge=judge)
    strategy = np.tile(np.arange(3), prompts)
    right = rng.random(3 * prompts) < known
    inputs["posterior"] = np.where(right[:, None], one_hot(strategy), np.full((1, 3), 1 / 3))
    inputs["marginal_nll"] = inputs["frozen_nll"] - gain
    if judge:
        made = [
            NAMES[k if rng.random() < obeyed else rng.integers(3)]
            for k in np.tile(np.arange(3), prompts)
        ]
        inputs["generations"] = Generations(
            inputs["prompts"], np.tile(np.arange(3), prompts), made, [True] * (3 * prompts)
        )
    return summarise(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "obeyed, known, allowed",
    [
        (1.0, 1.0, {"works"}),
        (0.98, 0.95, {"works", "partly"}),
        (0.6, 0.9, {"partly"}),
        (0.3, 0.9, {"partly", "failed"}),  # under-trained: the generator hardly obeys
        (0.6, 0.0, {"partly"}),  # the posterior has collapsed, and the generator obeys
        (0.0, 0.0, {"failed"}),
    ],
)
def test_no_run_gets_the_opposite_verdict(obeyed, known, allowed, seed):
    verdict = run(obeyed, known, seed)["verdict"]
    assert verdict["kind"] in allowed, verdict
    assert "chance 33%" in verdict["sentence"] and verdict["advice"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("known, kind", [(1.0, "works"), (0.6, "partly"), (0.0, "failed")])
def test_without_a_judge_labels_say_it(known, kind, seed):
    verdict = run(0.0, known, seed, prompts=100, judge=False)["verdict"]
    assert verdict["kind"] == kind and "the posterior finds the strategy" in verdict["sentence"]


def test_a_rare_strategy_that_is_obeyed_works():
    """Each latent is asked for equally often, whatever share its strategy has of the records: what
    a generator without z could get is 1 / K, not the commonest strategy's share.
    """
    inputs = perfect(prompts=100)
    strategy = np.where(np.arange(300) % 10 == 0, 1, 0)  # 90 % of the records are of one strategy
    inputs["labels"] = [NAMES[s] for s in strategy]
    inputs["posterior"] = one_hot(strategy)[:, :2]
    inputs["router"] = np.full((300, 2), 0.5)
    asked = np.tile(np.arange(2), 100)
    made = [NAMES[k] for k in asked]
    prompts = np.repeat(np.arange(100), 2)
    inputs["generations"] = Generations(prompts, asked, made, [True] * 200)
    assert summarise(**inputs)["verdict"]["kind"] == "works"
    made = [NAMES[0]] * 200  # z has no effect
    inputs["generations"] = Generations(prompts, asked, made, [True] * 200)
    verdict = summarise(**inputs)["verdict"]
    assert verdict["kind"] == "failed" and "50% of the time (chance 50%)" in verdict["sentence"]


def bare(known, score=None, width=0.02):
    result = summarise(**{**perfect(judge=False), "labels": None})
    result["score"] = score
    result["score_ci"] = None if score is None else [score - width, score + width]
    if not known:
        result["posterior"] |= {"mutual_information": 0.01, "mutual_information_ci": [0.0, 0.03]}
    return result


def test_without_labels_the_score_says_what_to_expect():
    assert verdict_of(bare(True, 0.98)).kind == "works"
    assert "expected to get its strategy 98%" in verdict_of(bare(True, 0.98)).sentence
    assert verdict_of(bare(True, 0.7)).kind == "partly"
    assert verdict_of(bare(True, 0.35)).kind == "failed"
    assert verdict_of(bare(True, 0.8, width=0.6)).kind == "unknown"


def test_without_anything_only_a_collapse_is_certain():
    assert verdict_of(bare(False)).kind == "failed"
    known = verdict_of(bare(True))
    assert known.kind == "unknown" and "1.10 of at most 1.10 nats" in known.sentence


def test_too_few_records_decide_nothing():
    result = run(1.0, 1.0, 0)
    result["alignment"] |= {"generation_one_to_one": 0.8, "generation_one_to_one_ci": [0.2, 1.0]}
    assert verdict_of(result).kind == "unknown" and "more held-out" in verdict_of(result).advice


def test_a_run_that_lost_something_does_not_simply_work():
    result = run(1.0, 1.0, 0)
    entry = {"latent": 2, "below": True}
    lost = verdict_of({**result, "retention": [entry]})
    assert lost.kind == "partly" and "z2" in lost.sentence
    worse = verdict_of(run(1.0, 1.0, 0, gain=-0.5))
    assert worse.kind == "partly" and "less likely than under the original" in worse.sentence


def test_a_latent_that_few_draws_obey_is_named():
    """The likeliest completions all obey; of z1, one in ten that are drawn."""
    inputs = perfect(prompts=60)
    asked = np.tile(np.arange(3), 60)
    obeyed = [NAMES[(k - 1) % 3] for k in asked]
    drawn = [
        NAMES[1] if k == 1 and n % 30 != 1 else y
        for n, (k, y) in enumerate(zip(asked, obeyed, strict=True))
    ]
    every = [True] * len(asked)
    whole = Generations(inputs["prompts"], asked, obeyed, every)
    likelihoods = (inputs["frozen_nll"], inputs["marginal_nll"], np.zeros((len(asked), 3)))
    inputs |= {"sampled": whole, "frozen_sampled": whole}
    inputs["retained"] = retention(asked, *likelihoods)
    steady = summarise(**inputs)["verdict"]
    assert steady["kind"] == "works" and "temperature" not in steady["sentence"], steady
    inputs["sampled"] = Generations(inputs["prompts"], asked, drawn, every)
    verdict = summarise(**inputs)["verdict"]
    assert verdict["kind"] == "partly"
    assert "drawn at temperature 1: z1 10%" in verdict["sentence"]


def test_at_the_end_of_a_training():
    assert verdict_of_score(0.97, 4, []).sentence.startswith("Works: asking for a latent")
    assert verdict_of_score(0.97, 4, [1]).kind == "partly"
    assert verdict_of_score(0.3, 4, []).kind == "failed"
    assert "87% of the time" in verdict_of_score(0.87, 4, []).sentence


def test_at_the_end_of_a_training_of_too_few_records_for_a_score():
    collapsed, informed = verdict_of_training(0.01, 3), verdict_of_training(0.98, 3)
    assert collapsed.kind == "failed"
    assert collapsed.sentence == (
        "Failed: z has no effect on the output: I(z; y) is 0.01 of at most 1.10 nats."
    )
    assert informed.kind == "unknown"
    assert informed.sentence.startswith("Not decided: I(z; y) is 0.98 of at most 1.10 nats")


def test_a_loss_that_may_be_memory_gives_both_bounds():
    shared = verdict_of_score(0.87, 4, [], 0.98)
    assert shared.kind == "partly" and "87% to 98% of the time" in shared.sentence
    assert shared.sentence.startswith("Works, at least in part: ")
    # one strategy is lost whatever the others share
    lost = verdict_of_score(0.7, 4, [2], 0.8)
    assert lost.sentence.startswith("Works in part: ") and "70% to 80%" in lost.sentence
    # no memory explains that nothing is left
    assert verdict_of_score(0.2, 4, [], 0.98).kind == "failed"
    assert verdict_of_score(0.6, 4, [], 0.7).sentence.startswith("Works in part: ")


def test_the_field_that_was_looked_for_is_named():
    labels = {"field": "style", "records": 0, "unread": ["kind"]}
    result = {**bare(True, 0.9), "judge": None, "labels": labels}
    _, after = verdict_lines(result, "run/report.html")
    assert "no record has the field 'style'" in after[0] and "the records have kind" in after[0]
    assert after[-1] == "Page: run/report.html"


def test_without_labels_latents_are_described_unless_they_mean_nothing():
    card = {"latent": 1, "share": 0.4, "phrases": [{"text": "first of"}, {"text": "then"}]}
    plain = {"latent": 2, "share": 0.1, "phrases": [], "typical": [{"row": 0, "y": "Take\nit."}]}
    unused = {"latent": 3, "share": 0.0, "phrases": [], "typical": []}
    cards = [{**card, "typical": []}, plain, unused]
    _, after = verdict_lines({**bare(True, 0.98), "latent_cards": cards}, "page.html")
    assert after[:3] == [
        "z1    40%  first of / then",
        "z2    10%  like Take it.",
        "z3     0%  not used",
    ]
    failed = bare(True, 0.3)
    failed["verdict"] = verdict_of(failed).as_dict()
    _, after = verdict_lines({**failed, "latent_cards": cards}, "page.html")
    assert not any(line.startswith("z1") for line in after)
    _, after = verdict_lines({**run(1.0, 1.0, 0), "latent_cards": cards}, "page.html")
    assert not any(line.startswith("z1") for line in after)  # the table says what they mean


def finer(judge, latent_of, writes):
    """Figures of a run of four latents on three strategies.

    Args:
        latent_of: of each strategy, two latents that its records have by turns.
        writes: strategy of the completions of each latent.
    """
    prompts = 80
    inputs = perfect(prompts=prompts, judge=judge)
    turns = np.repeat(np.arange(prompts) % 2, 3)
    latent = np.array(latent_of)[np.tile(np.arange(3), prompts), turns]
    inputs["posterior"] = np.eye(4)[latent]
    inputs["router"] = np.full((3 * prompts, 4), 1 / 4)
    if judge:
        asked = np.tile(np.arange(4), prompts)
        made = [NAMES[c] for c in np.array(writes)[asked]]
        inputs["generations"] = Generations(
            np.repeat(np.arange(prompts), 4), asked, made, [True] * (4 * prompts)
        )
    return summarise(**inputs)


@pytest.mark.parametrize("judge", [True, False])
def test_latents_finer_than_strategies_work(judge):
    """Two wordings of one strategy may have a latent each, as `discover` may choose by itself."""
    verdict = finer(judge, [(0, 0), (1, 1), (2, 3)], [0, 1, 2, 2])["verdict"]
    assert verdict["kind"] == "works", verdict
    assert f"z2 and z3 are {NAMES[2]}" in verdict["sentence"]
    assert "100% of the time" in verdict["sentence"] and "--latents 3" in verdict["advice"]


def test_a_spare_latent_excuses_nothing():
    """Where z changes nothing each latent keeps to one strategy too: to the same one. And where
    records of two strategies have one latent, it keeps to none.
    """
    collapsed = finer(True, [(0, 0), (0, 0), (0, 0)], [0, 0, 0, 0])["verdict"]
    assert collapsed["kind"] != "works" and "chance" in collapsed["sentence"]
    crossed = finer(False, [(0, 0), (1, 2), (2, 3)], [])["verdict"]
    assert crossed["kind"] != "works"


@pytest.mark.parametrize("judge", [True, False])
def test_latents_of_one_strategy_alone_are_no_success(judge):
    """Each of them keeps to it whatever z does, and there is no training with one latent."""
    inputs = perfect(prompts=80, judge=judge)
    inputs["labels"] = ["a"] * 240
    inputs["posterior"] = np.eye(2)[np.arange(240) % 2]
    inputs["router"] = np.full((240, 2), 1 / 2)
    if judge:
        asked = np.tile(np.arange(2), 80)
        prompts = np.repeat(np.arange(80), 2)
        inputs["generations"] = Generations(prompts, asked, ["a"] * 160, [True] * 160)
    verdict = summarise(**inputs)["verdict"]
    assert verdict["kind"] != "works" and "--latents 1," not in verdict["advice"], verdict


@pytest.mark.parametrize("rare", [0.03, 0.07])
def test_many_latents_that_all_write_the_same_mixture_are_no_success(rare):
    """Each keeps to the common strategy, and among so many draws each prompt has the rare one."""
    latents, prompts = 100, 60
    rng = np.random.default_rng(0)
    inputs = perfect(prompts=prompts)
    inputs["labels"] = ["a", "b"] * (3 * prompts // 2)
    inputs["posterior"] = inputs["router"] = np.full((3 * prompts, latents), 1 / latents)
    asked = np.tile(np.arange(latents), prompts)
    drawn = len(asked)
    made = ["b" if number < rare else "a" for number in rng.random(drawn)]
    inputs["generations"] = Generations(
        np.repeat(np.arange(prompts), latents), asked, made, [True] * drawn
    )
    result = summarise(**inputs)
    assert result["alignment"]["spare"] and result["alignment"]["coverage_mean"] > 0.95
    assert result["verdict"]["kind"] == "failed", result["verdict"]
