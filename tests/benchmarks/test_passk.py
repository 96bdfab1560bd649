"""The countdown puzzle, and the benchmark's data and tables."""

import json
import random
from datetime import date
from pathlib import Path

import pytest

from benchmarks import pages, passk
from examples.tasks import countdown
from examples.tasks.countdown import TASK

ROOT = Path(__file__).parents[2]

BY_HAND = {
    "3 5 7 = 15": ("8 15 | 3 + 5 = 8 , 8 + 7 = 15", "8 2 10 4 12 2 | none"),
    "3 5 7 = 12": ("8 15 1 2 9 5 | none", "8 2 10 4 12 | 5 + 7 = 12"),
    "7 5 3 = 2": ("12 15 9 2 | 7 - 5 = 2", "12 2 | 7 - 5 = 2"),
}


@pytest.mark.parametrize("x", BY_HAND)
def test_traces_by_hand(x):
    assert tuple(TASK.traces(x).values()) == BY_HAND[x]
    for (name, trace), right in zip(
        TASK.traces(x).items(), ["none" not in y for y in BY_HAND[x]], strict=True
    ):
        assert countdown.judge(x, trace) == (name, right)


@pytest.mark.parametrize(
    ("y", "right"),
    [
        ("| 3 + 5 = 8 , 7 + 8 = 15", True),  # another order, another trace
        ("8 15 | 3 + 5 = 8 , 8 + 8 = 16", False),
        ("| 8 + 7 = 15", False),  # 8 is not there yet
        ("| 3 + 5 = 9 , 9 + 7 = 16", False),
        ("| 5 - 3 = 2", False),
        ("| 3 + 3 = 6", False),
        ("| none", False),
        ("", False),
        ("| 3 + 5 = 8 ,", False),
        ("²", False),
    ],
)
def test_steps_are_checked(y, right):
    assert countdown.judge("3 5 7 = 15", y) == (None, right)


@pytest.mark.parametrize("x", ["", "3 5 = 8", "3 3 5 = 8", "3 5 99 = 8", "3 5 7", None])
def test_what_is_no_puzzle(x):
    assert countdown.judge(x, "| none") == (None, None)


def test_each_search_finds_what_the_other_does_not():
    rng = random.Random(0)
    xs = {x for x in (TASK.sample_prompt(rng) for _ in range(2000)) if TASK.is_usable(x)}
    right = {
        name: {x for x in xs if countdown.judge(x, TASK.strategies[name](x))[1]}
        for name in TASK.strategies
    }
    only = {
        "depth": right["depth"] - right["breadth"],
        "breadth": right["breadth"] - right["depth"],
    }
    for some in only.values():
        assert 0.25 < len(some) / len(xs) < 0.5
    assert 0.03 < 1 - len(right["depth"] | right["breadth"]) / len(xs) < 0.2


def test_the_data_are_of_different_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(passk, "PROMPTS", 200)
    monkeypatch.setattr(passk, "TESTED", 50)
    passk.make_data(tmp_path, 3)
    train, test = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    assert len(train) == 800 and len(test) == 200
    assert not {r["x"] for r in train} & {r["x"] for r in test}
    share = sum(r["strategy"] == "breadth" for r in train) / len(train)
    assert 0.07 < share < 0.14
    assert all(countdown.judge(r["x"], r["y"])[0] == r["strategy"] for r in train)


def test_the_tables(tmp_path):
    arm = {"pass_at_k": [0.5, 0.75], "diversity": {"vendi": 1.5, "self_bleu": 50.0}}
    saved = {"ratio": 4.25, "ratio_ci": [3.0, 5.0], "predicted": 4.5}
    result = {
        "alignment": {"generation_one_to_one": 0.9},
        "sampling": {
            "k": [1, 2],
            "arms": {name: arm | {"temperature": 0.7} for name in passk.ARMS},
            "samples_saved": {name: saved for name in passk.ARMS if name != "frozen"},
            "temperatures": {"0.7": [0.5, 0.75]},
            "prediction": {"strategies": {"depth": {"frequency": 0.9, "accuracy": 0.5}}},
            "transmission": {"accuracy": 0.95, "left out": 1},
        },
    }
    for name in passk.RUNS:
        (tmp_path / "0").mkdir(exist_ok=True)
        (tmp_path / "0" / f"{name}.json").write_text(json.dumps(result))
    runs = passk.figures_of(tmp_path, [0])
    assert [(run["seed"], run["run"]) for run in runs] == [(0, "found"), (0, "given")]
    assert "left out" not in json.dumps(runs)
    text = passk.tables(json.loads(json.dumps(runs)))
    assert text.startswith(f"`make passk`, {date.today().isoformat()} of twcli ")
    assert "| 0, run, evenly | 0.500 | 0.750 | 4.25 (3.00 to 5.00) | 4.50 |" in text
    assert "| 0, frozen model, best temperature (0.7) | 0.500 | 0.750 |  |  |" in text
    assert "| 0, 0.7 | 0.500 | 0.750 |" in text
    assert "| 0, given | 0.90, 0.50 | - | 0.900 | 0.950 | 1.50 | 1.50 | 50.0 | 50.0 |" in text


def test_the_tables_of_the_page_are_those_of_its_file():
    """And the ratios of its first sentence."""
    page = ROOT / "docs" / "pass-at-k.md"
    runs = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert runs and pages.between(page, passk.PLACE) == passk.tables(runs).strip()
    first, second, third = (
        f"{run['sampling']['samples_saved']['even']['ratio']:.1f}"
        for run in runs
        if run["run"] == "found"
    )
    prose = " ".join(page.read_text(encoding="utf-8").split())
    assert f"pass@16 with {first}, {second} and {third} times fewer samples" in prose
