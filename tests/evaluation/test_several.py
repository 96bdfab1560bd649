import pytest
from rich.console import Console

from tests.evaluation.test_metrics import perfect
from twcli.evaluation.metrics import summarise
from twcli.evaluation.several import compare, render_comparison


def results():
    worse = {**perfect(), "marginal_nll": perfect()["marginal_nll"] + 1.0}
    one, two = summarise(**perfect()), summarise(**worse)
    return {"seed-0": {**one, "score": 0.9}, "seed-1": {**two, "score": 0.7}}


def test_runs_are_compared_by_mean_and_spread_and_the_best_is_named():
    compared = compare(results())
    assert compared["best"] == "seed-0" and compared["score"] == {"seed-0": 0.9, "seed-1": 0.7}
    assert compared["mean"]["likelihood.gain"] == pytest.approx(0.0)
    assert compared["lowest"]["likelihood.gain"] == pytest.approx(-0.5)
    assert compared["highest"]["likelihood.gain"] == pytest.approx(0.5)
    assert compared["mean"]["posterior.collapsed"] == 0.0
    assert "answer_accuracy" in compared["mean"]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render_comparison(compared))
    shown = captured.get()
    assert "best by expected alignment: seed-0" in shown and "likelihood.gain" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_without_a_score_no_run_is_the_best():
    bare = {name: {**result, "score": None} for name, result in results().items()}
    assert compare(bare)["best"] is None
