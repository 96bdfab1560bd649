"""The figures' script: what its numbers must say, and that it draws from them."""

import json
import math

import pytest

from benchmarks import dilution


def test_slopes_of_the_posteriors_gradient_against_T():
    slope = dilution.gradients()["slope"]
    assert slope["weighted with b_t"] == pytest.approx(0.0, abs=1e-6)
    for name in ("uniform", "mean b_t subtracted", "b_t subtracted"):
        assert slope[name] == pytest.approx(-1.0, abs=1e-6)


def numbers():
    curve = {
        "step": [50, 100],
        "mutual_information": [0.1, 0.5],
        "gain": [-20.0, -0.5],
        "amplification": [2.0, None],
    }
    return {
        "profile": {
            task: {"mean": [1.0, 0.2, 0.0], "t0": 2, "effective": 1.3, "T": 3.0}
            for task in dilution.PROFILED_TASKS
        },
        "gradient": dilution.gradients(totals=(4, 8)),
        "training": {name: [curve, curve] for name in dilution.RUNS},
    }


@pytest.mark.slow
def test_figures_are_drawn_again_from_the_numbers(tmp_path, capsys):
    (tmp_path / "dilution.json").write_text(json.dumps(numbers()))
    dilution.main(["--out", str(tmp_path), "--redraw"])
    for name in ("profile", "gradient", "training"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out


def test_the_table_gives_mean_and_range():
    runs = numbers()["training"]
    runs["mixed, frozen"] = [
        {"gain": [g], "mutual_information": [math.log(2)], "amplification": [4.0]}
        for g in (-1.0, -3.0)
    ]
    line = next(
        line for line in dilution.table_of(runs).splitlines() if line.startswith("| mixed, frozen")
    )
    assert (
        line
        == "| mixed, frozen | -2.00 (-3.00 to -1.00) | 0.693 (0.693 to 0.693) | 4.0 (4.0 to 4.0) |"
    )


def test_without_numbers_there_is_nothing_to_redraw(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        dilution.main(["--out", str(tmp_path / "none"), "--redraw"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"dilution.py: {tmp_path / 'none' / 'dilution.json'}: No such file or directory"
    ]


@pytest.mark.slow
def test_a_small_run_is_measured_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(dilution, "TRAIN_RECORDS", 200)
    monkeypatch.setattr(dilution, "TEST_RECORDS", 40)
    monkeypatch.setattr(dilution, "MEASURE_EVERY", 2)
    plan = dilution.Plan(entangle_steps=5, steps=4)
    found = dilution.profile(tmp_path, dilution.TRAINED_TASK, plan)
    assert 1 < found["effective"] < found["T"] < 40 and found["t0"] < 40 and len(found["mean"]) > 5
    for name in dilution.RUNS:
        curve = dilution.curve(tmp_path, dilution.TRAINED_TASK, name, 0, plan)
        assert curve["step"] == [2, 4] and all(len(values) == 2 for values in curve.values())
