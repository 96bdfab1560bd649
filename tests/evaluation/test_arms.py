"""Arms from one set of draws: what they save, and what a collapse does not; draws that are kept."""

import hashlib
import json
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.conftest import WORDS, make_model, make_tokenizer
from twcli.config.evaluate import EvalConfig
from twcli.data.batches import collate
from twcli.data.encoder import ExampleEncoder
from twcli.data.example import Example
from twcli.errors import Interrupted, UserError
from twcli.evaluation import arms, comparison, samples
from twcli.evaluation.arms import FROZEN, _best_frozen, figures_of, judge_arms
from twcli.evaluation.judges import Judge
from twcli.evaluation.samples import Sampling, Writer, draw_all
from twcli.models.latents import LatentModel

XS = ["w1 w2", "w3", "w4 w5 w6 w7"]
PROMPTS = [Example(x, "") for x in XS]


def made_lines(prompts, samples=8, latents=2, *, frozen, run, seed=0):
    """Lines as `samples` writes them: `frozen(rng)` and `run(rng, k)` write one completion."""
    rng = np.random.default_rng(seed)
    return [
        {
            "x": f"x{p}",
            "frozen": {"1": [frozen(rng) for _ in range(samples)]},
            "router": [1 / latents] * latents,
            "latents": [[run(rng, k) for _ in range(samples)] for k in range(latents)],
        }
        for p in range(prompts)
    ]


def compared(lines, samples=8, latents=2, bootstrap=300):
    """A completion is its strategy and whether it is right: `a right`."""

    def read(_x, y):
        strategy, right = y.split()
        return None if strategy == "?" else strategy, right == "right"

    found = arms.arms_of(lines, samples, 0)
    judged = judge_arms(found, [line["x"] for line in lines], Judge("j", read, 1.0), silent)
    figures = figures_of(
        judged,
        latents=latents,
        samples=samples,
        temperature=1.0,
        bootstrap=bootstrap,
        seed=0,
    )
    return figures, judged.every, judged.strategies


@contextmanager
def silent(_label, _total):
    yield lambda *_: None


def mixture(rng):
    """Nine of ten times strategy a, which is right once in five; b always is."""
    if rng.random() < 0.9:
        return f"a {'right' if rng.random() < 0.2 else 'wrong'}"
    return "b right"


def strategy(rng, k):
    return "b right" if k else f"a {'right' if rng.random() < 0.2 else 'wrong'}"


def test_a_run_with_a_latent_for_each_strategy_saves_what_the_mixture_predicts():
    lines = made_lines(200, 16, frozen=mixture, run=strategy)
    figures, every, names = compared(lines, 16)
    # the frozen model is right with 0.28 a sample; two samples of the run hold b once
    assert figures["arms"]["even"]["pass_at_k"][1] == 1
    saved = figures["samples_saved"]["even"]
    low, high = saved["ratio_ci"]
    assert 4 < low <= saved["ratio"] <= high
    assert figures["difference"]["even"]["pass_at_k_ci"][0][0] > 0
    assert figures["arms"]["even"]["strategies_at_k"][1] == 2
    frozen = every[f"{FROZEN} 1"]
    predicted = arms.prediction(
        frozen, names, reference=frozen, prompts=200, latents=2, samples=16, seed=0
    )
    assert predicted["strategies"]["a"]["frequency"] == pytest.approx(0.9, abs=0.02)
    assert predicted["strategies"]["b"]["accuracy"] == 1
    assert predicted["ratio"]["even"] == pytest.approx(saved["ratio"], rel=0.15)


def hot_and_cold(prompts, samples=16, seed=2):
    """Two strategies, of which each solves prompts that the other does not. At the temperature 1,
    the run's, one is rare and one completion in fifty has a mistake; at 2 it is less rare, and one
    in four has.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for p in range(prompts):
        solved = rng.random() < 0.5, rng.random() < 0.5

        def write(k, mistakes, solved=solved):
            if rng.random() < mistakes:
                return "? wrong"
            return f"{'ab'[k]} {'right' if solved[k] else 'wrong'}"

        drawn = {
            temperature: [write(int(rng.random() < rare), mistakes) for _ in range(samples)]
            for temperature, rare, mistakes in (("1", 0.03, 0.02), ("2", 0.2, 0.25))
        }
        run = [[write(k, 0.02) for _ in range(samples)] for k in range(2)]
        lines.append({"x": f"x{p}", "frozen": drawn, "router": [0.9, 0.1], "latents": run})
    return lines


def test_the_prediction_is_of_a_run_that_draws_at_its_own_temperature():
    """The frozen model's best temperature has mistakes that the run does not make."""
    figures, every, names = compared(hot_and_cold(300), 16)
    assert figures["arms"][FROZEN]["temperature"] == 2
    saved = figures["samples_saved"]["even"]["ratio"]
    how = {"prompts": 300, "latents": 2, "samples": 16, "seed": 0}
    cold, hot = every[f"{FROZEN} 1"], every[f"{FROZEN} 2"]
    predicted = arms.prediction(cold, names, reference=hot, **how)
    assert predicted["ratio"]["even"] == pytest.approx(saved, rel=0.15)
    k = figures["arms"][FROZEN]["pass_at_k"]
    np.testing.assert_allclose(predicted["pass_at_k"][FROZEN], k)
    # with the mistakes of the other temperature it would be too low
    assert arms.prediction(hot, names, reference=hot, **how)["ratio"]["even"] < 0.85 * saved


def test_a_draw_without_a_strategy_has_that_of_its_latent():
    strategies = np.array([0, 0, 1, 1, 0, -1, -1, -1, -1])
    latents = np.array([2, 2, 0, 0, 0, 2, 0, 1, -1])
    found = arms.attributed(strategies, latents)
    assert found.tolist() == [0, 0, 1, 1, 0, 0, 1, -1, -1]
    nothing = np.full(3, -1)
    assert arms.attributed(nothing, latents[:3]).tolist() == [-1, -1, -1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda rng, _k: mixture(rng), id="collapsed"),
        pytest.param(lambda rng, _k: strategy(rng, rng.random() < 0.1), id="random router"),
    ],
)
def test_latents_that_mean_nothing_save_nothing(run):
    figures, _, _ = compared(made_lines(150, frozen=mixture, run=run, seed=1))
    for name in arms.COMPARED:
        low, high = figures["samples_saved"][name]["ratio_ci"]
        assert low < 1 < high and high < 1.6
        for low, high in figures["difference"][name]["pass_at_k_ci"]:
            assert low < 0.02 and high > -0.02


def test_arms_divide_the_same_completions():
    lines = made_lines(5, 7, 3, frozen=mixture, run=lambda rng, k: f"{k} {rng.integers(10**6)}")
    lines[0]["router"] = [0.7, 0.2, 0.1]
    found = arms.arms_of(lines, 7, 0)
    assert set(found) == {f"{FROZEN} 1", *arms.COMPARED}
    for p, line in enumerate(lines):
        pool = {y for ys in line["latents"] for y in ys}
        for name in arms.COMPARED:
            drawn = found[name].samples[p]
            assert len(drawn) == len(set(drawn)) == 7 and set(drawn) <= pool
        even = Counter(y.split()[0] for y in found["even"].samples[p])
        assert sorted(even.values()) == [2, 2, 3]
    counts = Counter(y.split()[0] for y in found["proportional"].samples[0])
    assert counts == {"0": 5, "1": 1, "2": 1}
    assert found["proportional"].samples[0][0].startswith("0")


def test_completions_without_a_verdict_are_left_out():
    lines = made_lines(4, 2, frozen=lambda _: "a right", run=lambda _, k: "b right")
    lines[1]["frozen"]["1"][0] = "broken"
    figures, _, _ = compared(lines, 2)
    assert figures["judged_prompts"] == 3
    assert figures["arms"]["frozen"]["pass_at_k"] == [1, 1]


def test_without_a_judge_the_texts_are_compared():
    lines = made_lines(4, 4, frozen=lambda _: "same", run=lambda rng, _: str(rng.integers(10**6)))
    judged = judge_arms(arms.arms_of(lines, 4, 0), ["x"] * 4, None, silent)
    figures = figures_of(
        judged,
        latents=2,
        samples=4,
        temperature=1.0,
        bootstrap=20,
        seed=0,
    )
    assert figures["arms"]["frozen"]["distinct_at_k"] == [1, 0.5, 0.25]
    assert figures["arms"]["even"]["distinct_at_k"] == [1, 1, 1]
    assert figures["arms"]["even"]["pass_at_k"] is None and figures["samples_saved"] == {}


# Drawing


@pytest.fixture(scope="module")
def writers():
    """A frozen model, and one with two latents whose tokens are words."""
    frozen, run = (ExampleEncoder(make_tokenizer(), "tiny") for _ in range(2))
    model = make_model()
    first = len(make_tokenizer()) - len(WORDS)
    return Writer(model, frozen, [], 64), Writer(model, run, [[first], [first + 1]], 64)


def sampling_of(writers, **settings):
    config = EvalConfig(run="run", data="data.jsonl", **({"samples": 3} | settings))
    frozen, run = writers
    return Sampling(config, run, frozen, PROMPTS, longest=6)


@pytest.mark.slow
def test_draws_are_kept_and_resume_after_a_kill(writers, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "BLOCK", 1)  # a prompt a block
    whole = draw_all(sampling_of(writers), tmp_path / "whole.jsonl", print, silent)
    assert [line["x"] for line in whole] == XS
    for line in whole:
        assert list(line["frozen"]) == ["0.7", "1", "1.4", "2"]
        assert all(len(ys) == 3 for ys in line["frozen"].values())
        assert all(len(ys) >= 2 for ys in line["latents"])
        assert sum(line["router"]) == pytest.approx(1)
    target, real, calls = tmp_path / "killed.jsonl", Sampling.lines, []

    def killed(self, rows, advance):
        calls.append(rows.start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, rows, advance)

    monkeypatch.setattr(Sampling, "lines", killed)
    with pytest.raises(Interrupted, match="run the same command again"):
        draw_all(sampling_of(writers), target, print, silent)
    said = []
    assert draw_all(sampling_of(writers), target, said.append, silent) == whole
    assert calls == [0, 1, 1, 2]  # what was finished is not drawn again
    assert any("1 of 3 prompts" in line for line in said)
    said.clear()
    assert draw_all(sampling_of(writers), target, said.append, silent) == whole
    assert len(calls) == 4 and "drawn before" in said[0]
    # of other settings, or damaged: drawn again
    draw_all(sampling_of(writers, seed=1), target, said.append, silent)
    assert len(calls) == 7
    target.write_text(target.read_text().replace("w1", "w2"))
    draw_all(sampling_of(writers, seed=1), target, said.append, silent)
    assert len(calls) == 10


def test_samples_that_cannot_be_kept_are_drawn_all_the_same(writers, tmp_path):
    said = []
    place = tmp_path / "missing" / "samples.jsonl"
    assert len(draw_all(sampling_of(writers), place, said.append, silent)) == 3
    assert "not kept" in said[0]


def test_a_prompt_that_fills_the_context(writers):
    frozen, run = writers
    config = EvalConfig(run="run", data="data.jsonl", samples=1)
    short = Sampling(config, run, Writer(frozen.model, frozen.encoder, [], 6), PROMPTS, longest=6)
    with pytest.raises(UserError, match="the prompt 'w4 w5 w6 w7' fills the context of 6 tokens"):
        list(short.lines(range(3), lambda *_: None))


def test_what_the_frozen_model_writes_does_not_depend_on_the_run(writers):
    """A chat template may leave nothing between x and y: the last token of x begins a section."""
    frozen, run = writers
    prompt, sections = frozen.prompt_and_sections("w1 w2")
    assert [*prompt, *sections[0]] == frozen.encoder.prompt("w1 w2")
    prompt, sections = run.prompt_and_sections("w1 w2")
    for latent, section in zip(run.latents, sections.tolist(), strict=True):
        assert [*prompt, *section] == run.encoder.prompt("w1 w2", latent)


def test_what_cannot_be_read_as_a_record_is_left_out():
    encoder = ExampleEncoder(make_tokenizer(), "tiny")
    pairs = [("w1", "w2"), ("w1", ""), ("w1", "<y> w3"), ("w1", "w4 " * 90), ("w2", "w5")]
    encoded, kept = comparison.encodable(encoder, pairs, 40)
    assert kept.tolist() == [0, 4] and len(encoded) == 2
    assert comparison.encodable(encoder, [("w1", "")], 40) == (None, pytest.approx([]))


def test_stored_lines_keep_every_character(tmp_path):
    header = {"fingerprint": {"a": 1}, "prompts": 1}
    line = json.dumps({"x": "a\u2028b\x85c\nd"}, ensure_ascii=False)
    first = json.dumps({"header": header, "sha256": hashlib.sha256(line.encode()).hexdigest()})
    target = tmp_path / "samples.jsonl"
    target.write_text(f"{first}\n{line}\n", encoding="utf-8")
    assert samples._stored(target, header) == [json.loads(line)]
    assert samples._stored(target, header | {"prompts": 2}) is None


def test_latents_are_read_back_by_bayes_where_there_is_no_posterior():
    torch.manual_seed(0)
    encoder = ExampleEncoder(make_tokenizer(), "tiny")
    first = len(make_tokenizer()) - len(WORDS)
    model = LatentModel(make_model(), [[first], [first + 1]], "exact").eval()
    encoded, _ = comparison.encodable(encoder, [("w1", "w2 w3"), ("w4", "w5")], 40)
    read = comparison.read_back(model, encoder, encoded, 100)
    with torch.no_grad():
        nll, _ = model.score_branches(collate(np.arange(2), encoded, encoder, None))
    assert read.tolist() == nll.sum(-1).argmin(1).tolist()


def test_the_best_temperature_is_that_of_the_most_solved_by_all_samples():
    """Samples saved are counted against the frozen model's pass@N: a cold model that solves more
    with few samples would be the weaker opponent.
    """
    ks = np.array([1, 2, 4])
    curves = {
        "frozen 0.7": [[0.5, 0.6, 0.62, 0.65]],
        "frozen 2": [[0.3, 0.5, 0.6, 0.7]],
        "even": [[0.4, 0.8, 0.8, 0.9]],
    }
    passed = {name: np.array(curve) for name, curve in curves.items()}
    values = {"pass_at_k": passed, "distinct_at_k": passed}
    assert _best_frozen(values, ks, 1.0) == "frozen 2"
    passed["frozen 0.7"][0, 3] = 0.7  # as much: the one that solves more with few
    assert _best_frozen(values, ks, 1.0) == "frozen 0.7"
    assert _best_frozen({"distinct_at_k": passed}, ks, 1.6) == "frozen 2"
    assert _best_frozen({"distinct_at_k": {"even": passed["even"]}}, ks, 1.0) is None
